"""The server of a base path, as other processes see it: its lock, and ``server.json``.

Nothing of the server itself is imported here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.exceptions import ManagerError, ServerRunningError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import utc_now
from airflow_provider_air_executor.jobs.store import JobStore

LOCK, INFO, SOCKET = "server.lock", "server.json", "server.sock"
IDLE_SECONDS = 600.0  # after which a server that was started because it was needed ends
LONGEST_SOCKET = 100  # bytes of the path; Linux takes 107
_PATIENCE_SECONDS = 0.5  # longer than anyone holds the lock just to see whether it is taken
_PAUSE_SECONDS = 0.02
_END_SECONDS = 10.0  # that a server has to end
_LIMIT = 100_000  # bytes of server.json


class ServerInfo(NamedTuple):
    """A server that runs."""

    pid: int
    version: str
    socket: str  # the path of its Unix socket
    listen: tuple[str, ...] = ()  # where it listens besides
    started_at: str = ""
    is_temporary: bool = False  # whether it ends when nobody asks it anything
    embedded: bool = False  # whether it starts managers


def socket_path(store: JobStore) -> Path:
    """Where the Unix socket of a base path is to be.

    :raises ManagerError: if its directory is not one that only this user can use.
    """
    path = store.base_path / SOCKET
    if len(os.fsencode(path)) <= LONGEST_SOCKET:
        return path
    name = f"{hashlib.sha256(os.fsencode(store.base_path)).hexdigest()[:16]}.sock"
    for runtime in (os.environ.get("XDG_RUNTIME_DIR") or "/tmp", "/tmp"):  # noqa: S108 - checked below
        path = Path(runtime, f"air-executor-{os.geteuid()}", name)
        if len(os.fsencode(path)) <= LONGEST_SOCKET:
            break
    _check_own(path.parent)
    return path


def _check_own(directory: Path) -> None:
    """Make a directory that only this user can use; it may be in one that all users write to.

    :raises ManagerError: if there is another one of this name.
    """
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = os.lstat(directory)
    except OSError as error:
        raise ManagerError(f"{directory}, for the socket of the server, cannot be made: {error.strerror}") from None
    is_own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    if not is_own:
        raise ManagerError(f"{directory}, for the socket of the server, is not a directory of this user alone")


@contextlib.contextmanager
def holding(store: JobStore, *, replaces_temporary: bool) -> Iterator[Callable[[], bool]]:
    """Be the server of a base path; the system releases the lock when the process ends, however that happens.

    :param replaces_temporary: whether a server that was started because somebody needed one is ended.
    :return: what says whether it still is the only one: somebody may have removed the file of the lock.
    :raises ServerRunningError: if another one is.
    :raises NoLocksError: if the file system has no locks.
    """
    store.create_directories()
    with files.opened(store.base_path / LOCK, os.O_RDWR) as descriptor:
        is_ours = _lock(store, descriptor, _PATIENCE_SECONDS)
        info = read(store)
        if not is_ours and replaces_temporary and info is not None and info.is_temporary:
            end(info)
            is_ours = _lock(store, descriptor, _END_SECONDS)
        if not is_ours:
            raise ServerRunningError(store.base_path, info and info.pid)
        files.remove(store.base_path / INFO)  # of a server that was killed
        try:
            yield lambda: _is_still_there(store.base_path / LOCK, descriptor)
        finally:
            files.remove(store.base_path / INFO)


def _is_still_there(path: Path, descriptor: int) -> bool:
    """Whether the file that is locked is the one that others will find."""
    try:
        return os.stat(path).st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
    except OSError:  # it cannot be seen now
        return True


def _lock(store: JobStore, descriptor: int, seconds: float) -> bool:
    """Lock the file within a time; False if another process holds it all along."""
    deadline = time.monotonic() + seconds
    while not files.lock(descriptor, store.base_path / LOCK):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


def end(info: ServerInfo) -> None:
    """Tell a server to end."""
    if _is_server(info.pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(info.pid, signal.SIGTERM)


def _is_server(pid: int) -> bool:
    """Whether a process of this machine, or container, is a server: the number may stem from another one."""
    try:
        return b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return not os.path.isdir("/proc/self")  # elsewhere than on Linux there is nothing to ask


def publish(store: JobStore, **facts: Any) -> None:
    """Say that the server answers, and where.

    :param facts: fields of :class:`ServerInfo`, but for those that are the same for all servers of this process.
    """
    info = ServerInfo(os.getpid(), __version__, started_at=utc_now().isoformat(), **facts)
    files.publish(store.base_path / INFO, json.dumps(info._asdict()).encode())


def running(store: JobStore) -> ServerInfo | None:
    """The server of a base path; None if there is none, or it does not answer yet.

    :raises NoLocksError: if that cannot be known, since the file system has no locks.
    """
    return read(store) if is_running(store) else None


def is_running(store: JobStore) -> bool:
    """Whether a server holds the base path; it may not answer yet.

    :raises NoLocksError: if that cannot be known, since the file system has no locks.
    """
    path = store.base_path / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not files.lock(descriptor, path, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def read(store: JobStore) -> ServerInfo | None:
    """What the last server has said of itself, if it has not taken that back."""
    try:
        found = json.loads(files.read(store.base_path / INFO, limit=_LIMIT)[0])
        return ServerInfo(
            int(found["pid"]),
            str(found["version"]),
            str(found["socket"]),
            tuple(map(str, found["listen"])),
            str(found["started_at"]),
            bool(found["is_temporary"]),
            bool(found["embedded"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
