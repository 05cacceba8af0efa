"""System calls of the package that fail, chosen by the module that makes them, by the call, and by the error."""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import fcntl
import io
import os
import socket
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import inotify_simple

from airflow_provider_air_executor.jobs import files

_PACKAGE = "airflow_provider_air_executor."
# Modules by which all others read and write: a call of theirs is also one of the module that has called them.
_SHARED = {"jobs.files", "jobs.store", "jobs.attempt_record", "jobs.inotify", "manager.job_writer"}

_NO_FILE_SYSTEM = (errno.ESTALE, errno.EIO)
_NO_PERMISSION = (errno.EACCES, errno.EPERM)
_NO_WRITING = (errno.EROFS, errno.ENOSPC, errno.EDQUOT)
_ANY = (*_NO_FILE_SYSTEM, *_NO_PERMISSION)
_CHANGE = (*_ANY, *_NO_WRITING)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_PROCESS = (errno.EAGAIN, errno.ENOMEM, errno.EACCES, errno.EPERM, *_NO_FILE_SYSTEM)

#: The calls, and what each of them can fail with.
CALLS: dict[str, tuple[int, ...]] = {
    "open": (*_CHANGE, errno.EMFILE, errno.ENFILE),
    "read": (*_NO_FILE_SYSTEM, errno.EACCES),
    "write": (*_NO_FILE_SYSTEM, errno.ENOSPC, errno.EDQUOT),
    "rename": _CHANGE,
    "replace": _CHANGE,
    "renameat2": _CHANGE,
    "link": _CHANGE,
    "unlink": _CHANGE,
    "mkdir": _CHANGE,
    "rmdir": _CHANGE,
    "utime": (*_ANY, errno.EROFS),
    "stat": _ANY,
    "lstat": _ANY,
    "fstat": _NO_FILE_SYSTEM,
    "scandir": (*_ANY, errno.EMFILE),
    "listdir": (*_ANY, errno.EMFILE),
    "fsync": (*_NO_FILE_SYSTEM, errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EROFS),
    "flock": (errno.ENOLCK, *_NO_FILE_SYSTEM),
    "posix_spawn": _PROCESS,
    "posix_spawnp": _PROCESS,
    "fork": (errno.EAGAIN, errno.ENOMEM),
    "pipe": _NO_ROOM,
    "memfd_create": _NO_ROOM,
    "socketpair": _NO_ROOM,
    "inotify_init1": _NO_ROOM,
    "inotify_add_watch": (errno.ENOSPC, errno.ENOMEM, *_ANY),
    "inotify_rm_watch": (errno.EINVAL,),
}
_MODULES = {"flock": fcntl, "socketpair": socket}


class Trouble(NamedTuple):
    """What fails, as long as it lasts."""

    module: str  # without the package's name, ``manager.requests``
    call: str
    error: int


class Faults:
    """Makes the calls of the package fail while there is trouble, inside of :meth:`installed` and :meth:`on`.

    These are two, since a thread may be in the midst of work when the calls may no longer fail. ``shutil.rmtree`` of
    Python 3.13 and newer keeps ``os.lstat`` and ``os.rmdir``, and must find the same ones a moment later.
    """

    def __init__(self) -> None:
        self.trouble: Trouble | None = None
        self._is_on = False
        self.seen: set[tuple[str, str]] = set()  # the calls that were made: module and call
        self.failed = 0  # how many calls have failed

    def check(self, call: str, *, is_write: bool = True, is_directory: bool = False) -> None:
        """A call is about to be made.

        :param is_write: whether it would change something.
        :raises OSError: if there is trouble with it.
        """
        if not self._is_on:
            return
        modules = _callers(sys._getframe(2))
        self.seen.update((module, call) for module in modules)
        trouble = self.trouble
        if trouble is None or trouble.call != call or trouble.module not in modules:
            return
        if trouble.error in _NO_WRITING and not is_write:
            return
        if trouble.error == errno.EINVAL and call == "fsync" and not is_directory:
            return
        self.failed += 1
        raise OSError(trouble.error, os.strerror(trouble.error))

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Calls fail if there is trouble with them, and are seen."""
        self._is_on = True
        try:
            yield
        finally:
            self._is_on = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Stand between the package and the system; calls are made as they are until :meth:`on`."""
        with contextlib.ExitStack() as stack:
            for call in CALLS:
                where = _MODULES.get(call, os)
                if call in ("open", "renameat2") or call.startswith("inotify") or not hasattr(where, call):
                    continue
                _put(stack, where, call, self._failing(call, getattr(where, call)))
            _put(stack, os, "open", self._os_open(os.open))
            opening, file = self._open(builtins.open)
            for module in (builtins, io):
                _put(stack, module, "open", opening)
            _put(stack, files, "FileIO", file)
            _put(stack, inotify_simple, "_libc_call", self._libc_call(inotify_simple._libc_call))
            _put(stack, files, "_libc_renameat2", lambda: self._renameat2)
            yield

    def _failing(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            is_directory = call == "fsync" and os.path.isdir(f"/proc/self/fd/{args[0]}")
            self.check(call, is_directory=is_directory)
            return real(*args, **kwargs)

        return checked

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def checked(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            self.check("open", is_write=bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
            return real(path, flags, *args, **kwargs)

        return checked

    def _open(self, real: Callable[..., Any]) -> tuple[Callable[..., Any], type[io.FileIO]]:
        faults = self

        class File(io.FileIO):
            """A file whose reads and writes are calls too, and which looks at what it is given."""

            def __init__(self, file: Any, *args: Any) -> None:
                if isinstance(file, int):
                    faults.check("fstat")
                super().__init__(file, *args)

            def readinto(self, buffer: Any) -> int | None:
                faults.check("read")
                return super().readinto(buffer)

            def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
                faults.check("read")
                return super().read(-1 if size is None else size)

            def readall(self) -> bytes:
                faults.check("read")
                return super().readall()

            def write(self, data: Any) -> int:
                faults.check("write")
                return super().write(data)

        def checked(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if not self._is_on or not _callers(sys._getframe(1)):
                return real(file, mode, buffering, *args, **kwargs)
            if not isinstance(file, int):
                self.check("open", is_write=mode[0] != "r" or "+" in mode)
            if "b" not in mode or buffering != 0:  # as little of them as there is in the package
                raw = File(file, mode.replace("b", "").replace("t", ""))
                buffered: Any = (io.BufferedReader if mode[0] == "r" else io.BufferedWriter)(raw)
                return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)
            return File(file, mode.replace("b", ""))

        return checked, File

    def _libc_call(self, real: Callable[..., int]) -> Callable[..., int]:
        def checked(function: Any, *args: Any) -> int:
            self.check(function.__name__)
            return real(function, *args)

        return checked

    def _renameat2(self, *args: Any) -> int:
        try:
            self.check("renameat2")
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1
        real = _real_renameat2()
        return int(real(*args))


_real_renameat2 = files._libc_renameat2


def _put(stack: contextlib.ExitStack, where: Any, name: str, value: Any) -> None:
    stack.callback(setattr, where, name, getattr(where, name))
    setattr(where, name, value)


def _callers(frame: FrameType | None) -> list[str]:
    """The modules of the package that make a call: the nearest one, and who has called it if that is a shared one."""
    found: list[str] = []
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith(_PACKAGE):
            found.append(name.removeprefix(_PACKAGE))
            if found[-1] not in _SHARED:
                break
        elif name.startswith("tests.") and name != __name__:
            break
        frame = frame.f_back
    return list(dict.fromkeys(found))
