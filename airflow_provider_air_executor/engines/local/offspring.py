"""What a fork server forks beside shims: generations, which import more and then serve as it does, and trials.

A generation has a channel of its own to the manager. It lives until that is closed, also without its fork server. A
trial is a process that imports something and says what that has cost, and whether it has left anything behind. Both
have a time limit, which the fork server enforces.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from airflow_provider_air_executor.system.processes import Kill, die_with_parent, has_children, kill_family

IMPORT_SECONDS = 120.0  # that a fork server may take to import its modules
_PR_SET_CHILD_SUBREAPER = 36
_NICE = 10  # how much trials yield to tasks


@dataclass
class _Child:
    """A process that a fork server has forked for itself."""

    deadline: float | None  # by the monotonic clock; None: it has done what has a limit
    word: socket.socket  # a generation that is ready closes its end; a trial leaves its outcome there
    is_trial: bool = False
    is_late: bool = False


class Offspring:
    """The generations and the trials of a fork server.

    :param leave: called in a forked process: it closes what belongs to the fork server alone.
    :param report: called with the outcome of a trial: its text, the status of the process, and whether it was too late.
    """

    def __init__(self, leave: Callable[[], None], report: Callable[[bytes, int, bool], None]) -> None:
        self._leave = leave
        self._report = report
        self._children: dict[int, _Child] = {}

    def __bool__(self) -> bool:
        return bool(self._children)

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: never."""
        due = [child.deadline for child in self._children.values() if child.deadline is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def fork(self, run: Callable[[socket.socket], object], seconds: float, *, is_trial: bool = False) -> None:
        """Fork a generation, or a trial.

        :param run: called in the new process with a socket: a generation closes it when it is ready, a trial sends its
            outcome there. The process ends when this returns.
        :param seconds: how long it may take.
        :raises OSError: if there can be no more processes.
        """
        parent = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            raise
        finally:
            if os.getpid() == parent:
                theirs.close()
        if pid == 0:
            self._become(run, theirs, ours, parent)
        self._children[pid] = _Child(time.monotonic() + seconds, ours, is_trial)

    def _become(
        self, run: Callable[[socket.socket], object], word: socket.socket, other_end: socket.socket, parent: int
    ) -> NoReturn:
        try:
            die_with_parent(parent)
            self._leave()
            self.leave()
            other_end.close()
            os.setsid()
            run(word)
        finally:
            os._exit(1)

    def leave(self) -> None:
        """Close what belongs to the fork server alone, in a process that it has forked."""
        for child in self._children.values():
            child.word.close()
        self._children.clear()

    def look(self) -> None:
        """Kill what has taken too long."""
        for pid, child in self._children.items():
            if not child.is_trial and child.deadline is not None and select.select([child.word], [], [], 0)[0]:
                child.deadline = None  # it is ready, or has ended
            if child.deadline is not None and time.monotonic() >= child.deadline:
                child.deadline, child.is_late = None, True
                _kill(pid)

    def end_trials(self) -> None:
        """Kill the trials, with all that they have started."""
        for pid, child in self._children.items():
            if child.is_trial:
                _kill(pid)

    def forget(self, pid: int) -> Callable[[int], None] | None:
        """Take note of a process that has ended, and has not been reaped yet.

        :return: to be called with its status when it has been reaped; None if it is no process of these.
        """
        child = self._children.pop(pid, None)
        if child is None:
            return None
        text = b""
        with contextlib.suppress(OSError):
            text = child.word.recv(1_000_000, socket.MSG_DONTWAIT)
        child.word.close()
        if child.is_trial:
            Kill("", pid).look()  # its session: the number is still its own

        def reaped(status: int) -> None:
            if child.is_trial:
                self._report(text, status, child.is_late)

        return reaped


def _kill(pid: int) -> None:
    """Kill a child that has not been reaped, with what it has started."""
    kill_family(pid)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def begin_trial() -> None:
    """Let this process be one that imports something and ends: it yields to others, and is not heard."""
    os.nice(_NICE)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_what_was_started() -> None:
    """Kill the processes that this one has started, in its session and as its children."""
    if has_children():
        Kill("", os.getsid(0), {os.getpid()}, os.getpid()).finish()


def private_memory() -> int:
    """The bytes of memory that this process does not share with others; 0 if that is not known."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/smaps_rollup", "rb") as file:
        return 1024 * sum(
            int(line.split()[1]) for line in file if line.startswith((b"Private_Clean", b"Private_Dirty"))
        )
    return 0
