"""The child processes of the manager: their owners, and short command lines that run in the background."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, NamedTuple

from airflow_provider_air_executor.jobs.models import printable
from airflow_provider_air_executor.jobs.usage import Usage

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


class Children:
    """Reaps the children of this process, and calls the owner of each with its status."""

    def __init__(self) -> None:
        self._owners: dict[int, Callable[[int, int], None]] = {}
        self.usage: Usage | None = None  # of the child whose owner is being called
        self._own_maxrss = 0  # the most memory that this process had, at least

    def add(self, pid: int, owner: Callable[[int, int], None]) -> None:
        """Register the owner of a child.

        :param owner: called with the process id and the status, as waitpid(2) gives it, when the child has ended.
        """
        self._owners[pid] = owner

    def reap(self) -> None:
        """Reap all children that have ended."""
        while self._owners:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:  # another part of the manager has reaped one of them
                return
            if pid == 0:
                return
            owner = self._owners.pop(pid, None)
            try:
                if owner is not None:
                    self.usage = self._usage(used)
                    owner(pid, status)
            except Exception:
                log.exception("the end of process %d could not be handled", pid)

    def _usage(self, used: resource.struct_rusage) -> Usage:
        """What a child of this process has used, as wait4(2) gives it.

        The system counts what this process has in memory as the child's, from which only its exec has freed it.
        """
        memory = used.ru_maxrss
        if memory > self._own_maxrss:
            self._own_maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage(used.ru_utime + used.ru_stime, memory if memory > self._own_maxrss else None)


def usage(cpu_seconds: float, maxrss: int | None) -> Usage:
    """What a process has used.

    :param maxrss: the most memory that it had, in the unit of getrusage(2).
    """
    return Usage(cpu_seconds=round(cpu_seconds, 3), max_memory=maxrss and maxrss * _MAXRSS_BYTES)


log = logging.getLogger("air_executor.manager")

NOT_RUN = -1000


class Result(NamedTuple):
    """How a command line has ended."""

    exit_code: int  # negative: the signal that ended it; NOT_RUN: it could not be started here, or not be heard
    output: str
    error: str

    @property
    def last_words(self) -> str:
        """Its error messages, in one line."""
        lines = [line.strip() for line in self.error.splitlines() if line.strip()]
        return printable(" ".join(lines[-3:])[:1000]) or f"exit code {self.exit_code}"


def _open_buffer() -> IO[bytes]:
    """Where a command writes: no pipe, so that nothing can block, and no disk, which may be full and cut it short."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("air-executor"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


class _Command(NamedTuple):
    words: list[str]
    text: bytes
    done: Callable[[Result], None]


class _Running(NamedTuple):
    command: _Command
    output: IO[bytes]
    error: IO[bytes]
    deadline: float


class Commands:
    """Runs short command lines, some at a time, and calls back with their results.

    Each is in a session of its own: one that is under way when the manager ends is not cut short.

    :param environment: what they inherit.
    :param limit: how many run at a time; the others wait for their turn.
    :param timeout: seconds after which one is killed.
    """

    def __init__(self, children: Children, environment: Mapping[str, str], *, limit: int, timeout: float) -> None:
        self._children = children
        self._environment = dict(environment)
        self._limit = limit
        self._timeout = timeout
        self._waiting: deque[_Command] = deque()
        self._running: dict[int, _Running] = {}

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`expire` must be called; None: never."""
        due = min((running.deadline for running in self._running.values()), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def run(self, words: Sequence[str], done: Callable[[Result], None], *, text: bytes = b"") -> None:
        """Run a command line.

        :param text: what it reads.
        :param done: called with the result.
        """
        self._waiting.append(_Command(list(words), text, done))
        self._start_more()

    def expire(self) -> None:
        """Kill what takes too long."""
        for pid, running in self._running.items():
            if time.monotonic() >= running.deadline:
                with contextlib.suppress(
                    ProcessLookupError, PermissionError
                ):  # not reaped yet, so the number is its own
                    os.killpg(pid, signal.SIGKILL)

    def _start_more(self) -> None:
        while self._waiting and len(self._running) < self._limit:
            self._start(self._waiting.popleft())

    def _start(self, command: _Command) -> None:
        files: list[IO[bytes]] = []
        try:
            files += [_open_buffer() for _ in range(3)]
            given, output, error = files
            given.write(command.text)
            given.seek(0)
            pid = os.posix_spawnp(
                command.words[0],
                command.words,
                self._environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), number) for number, file in enumerate(files)],
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
                setsigmask=(),
            )
        except OSError as problem:
            for file in files:
                file.close()
            command.done(Result(NOT_RUN, "", f"{command.words[0]}: {problem.strerror}"))
            return
        given.close()
        self._running[pid] = _Running(command, output, error, time.monotonic() + self._timeout)
        self._children.add(pid, self._ended)

    def _ended(self, pid: int, status: int) -> None:
        running = self._running.pop(pid)
        result = Result(os.waitstatus_to_exitcode(status), "", "")
        try:
            with running.output as output, running.error as error:
                for file in (output, error):
                    file.seek(0)
                result = Result(result.exit_code, *(file.read().decode(errors="replace") for file in (output, error)))
        except OSError as problem:
            result = Result(NOT_RUN, "", f"what {running.command.words[0]} has said cannot be read: {problem.strerror}")
        try:
            running.command.done(result)
        finally:
            self._start_more()
