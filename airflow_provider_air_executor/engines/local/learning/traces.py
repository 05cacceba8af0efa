"""What an import may leave behind in a process: taken before and after it, and compared."""

from __future__ import annotations

import builtins
import contextlib
import functools
import gc
import locale
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_provider_air_executor.engines.local.forked import other_threads
from airflow_provider_air_executor.system.processes import has_children

# Packages whose own threads, which are none of Python's, survive a fork: their library ends them before it, and starts
# them anew in each process that needs them.
_THREADS_SURVIVE = {
    # OpenBLAS: openblas_fork_handler() in driver/others/memory.c registers BLASFUNC(blas_thread_shutdown) with
    # pthread_atfork; exec_blas_async() in driver/others/blas_server.c starts them again.
    "numpy",
    "scipy",
    # Arrow: its pools of threads are made anew in a child, https://github.com/apache/arrow/pull/2363 and, for all of
    # them at the fork, https://github.com/apache/arrow/pull/14704.
    "pyarrow",
}


@dataclass(frozen=True)
class Changes:
    """What an import has left behind.

    :param why_not: a sentence that says what it is; empty if it is nothing.
    :param variables: the environment variables that it has changed.
    """

    why_not: str
    variables: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Traces:
    """How a process is at a moment."""

    environment: dict[str, str]
    threads: list[str]
    native_threads: int
    descriptors: dict[str, str]
    mappings: set[str]
    has_children: bool
    others: dict[str, Any]

    @classmethod
    def take(cls) -> Traces:
        """How this process is now."""
        return cls(
            dict(os.environ),
            _threads(),
            len(os.listdir("/proc/self/task")),
            _descriptors(),
            set(_shared_mappings()),
            has_children(),
            {what: look() for what, look in _OTHERS.items()},
        )

    def changes(self, now: Traces, root: str) -> Changes:
        """What has changed since, by an import.

        :param root: the package that was imported.
        """
        variables = frozenset(
            name
            for name in self.environment.keys() | now.environment.keys()
            if self.environment.get(name) != now.environment.get(name)
        )
        return Changes(next(self._reasons(now, root, variables), ""), variables)

    def _reasons(self, now: Traces, root: str, variables: frozenset[str]) -> Iterator[str]:
        """Why it must not be imported ahead, the most telling one first."""
        if now.has_children:
            yield "it starts a process when it is imported"
        if len(now.threads) > len(self.threads):
            yield f"it starts a thread when it is imported ({now.threads[-1]})"
        if now.native_threads > self.native_threads and root not in _THREADS_SURVIVE:
            yield "its library starts threads when it is imported, and it is not known whether they survive a fork"
        for number, target in now.descriptors.items():
            if self.descriptors.get(number) != target:
                yield f"it opens {_kind(target)} when it is imported, which all tasks would share"
        for name in sorted(now.mappings - self.mappings):
            yield f"it shares memory with other processes when it is imported ({name})"
        if variables:
            yield f"it changes the environment when it is imported ({', '.join(sorted(variables)[:5])})"
        for what, value in now.others.items():
            if value != self.others[what]:
                yield f"it changes {what} when it is imported"


def _threads() -> list[str]:
    """The threads of Python's that a fork would lose."""
    known = {thread.ident for thread in threading.enumerate()}
    nameless = ["one without a name" for ident in sys._current_frames() if ident not in known]  # noqa: SLF001
    return [*other_threads(), *nameless]


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it was that of the directory
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


def _kind(target: str) -> str:
    """What a descriptor is, in words."""
    if target.startswith("/dev/") and not target.startswith("/dev/shm/"):  # noqa: S108
        return f"a device ({target})"
    for start, kind in (("socket:", "a socket"), ("pipe:", "a pipe"), ("/", "a file")):
        if target.startswith(start):
            return kind
    return f"a descriptor ({target})"


def _shared_mappings() -> Iterator[str]:
    """The memory that this process shares with others for writing, and devices that are in its memory."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            _, modes, _, _, inode, *name = line.split(None, 5)
            path = name[0].strip() if name else ""
            if (modes[3:4] == "s" and "w" in modes) or path.startswith(("/dev/nvidia", "/dev/dri", "/dev/kfd")):
                yield path if path.startswith("/dev/") else f"number {inode}"


def _umask() -> str:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next((line for line in file if line.startswith("Umask:")), "")


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return ""


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _loggers() -> tuple[Any, ...]:
    return logging.root.level, tuple(map(id, logging.root.handlers)), logging.root.manager.disable


def _patched() -> tuple[int, ...]:
    """The identities of what libraries such as gevent replace in others."""
    found = (socket.socket, socket.create_connection, threading.Thread, threading.Lock, time.sleep, time.time)
    return (*map(id, (*found, os.fork, subprocess.Popen, subprocess.run, builtins.open, builtins.__import__)),)


def _small_number() -> float:
    """What becomes nothing when a library has the processor round small numbers so."""
    smallest = sys.float_info.min
    return smallest / 4


_seeds: list[None] = []  # one for each call


def watch_seeds() -> None:
    """Notice from now on that the global generator of random numbers is seeded, which a fork undoes.

    That numbers are drawn from it does no harm: each forked process has others.
    """
    for name in ("seed", "setstate"):
        setattr(random, name, _noticed(getattr(random, name)))


def _noticed(call: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(call)
    def noticed(*args: Any, **kwargs: Any) -> None:
        _seeds.append(None)
        call(*args, **kwargs)

    return noticed


def _start_method() -> Any:
    loaded = sys.modules.get("multiprocessing")
    return None if loaded is None else loaded.get_start_method(allow_none=True)


def _hooks() -> tuple[Any, ...]:
    return sys.excepthook, sys.unraisablehook, sys.displayhook, threading.excepthook, sys.gettrace(), sys.getprofile()


def _limits() -> tuple[Any, ...]:
    names = sorted(name for name in vars(resource) if name.startswith("RLIMIT_"))
    return (*(resource.getrlimit(getattr(resource, name)) for name in names), os.nice(0))


# What else is looked at, in the words of the sentence that says it has changed.
_OTHERS: dict[str, Callable[[], Any]] = {
    "a signal handler": _handlers,
    "the mask of signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    "a timer": lambda: [signal.getitimer(which)[0] > 0 for which in range(3)],
    "the working directory": _working_directory,
    "the umask": _umask,
    "sys.path": lambda: list(sys.path),
    "a hook of Python's": _hooks,
    "the standard streams": lambda: (id(sys.stdin), id(sys.stdout), id(sys.stderr)),
    "the logging": _loggers,
    "functions of other modules": _patched,
    "the locale": lambda: locale.setlocale(locale.LC_ALL),
    "the time zone": lambda: time.tzname,
    "the limits of the process": _limits,
    "the session or the group of the process": lambda: (os.getsid(0), os.getpgid(0)),
    "the user": lambda: (os.getresuid(), os.getresgid()),
    "how other processes are started": _start_method,
    "the state of the module random": lambda: len(_seeds),
    "the garbage collector": lambda: (gc.isenabled(), gc.get_threshold(), gc.get_debug()),
    "the limits of Python": lambda: (sys.getrecursionlimit(), sys.getswitchinterval()),
    "the timeout of sockets": socket.getdefaulttimeout,
    "how numbers are computed": _small_number,
}
