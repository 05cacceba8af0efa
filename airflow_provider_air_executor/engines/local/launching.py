"""The manager's side of the launcher: starts it under load, sends it commands, and receives their ends.

A shell costs as much as a short command. So under load commands are started without one, if nothing about them needs a
shell: their environment is the manager's, they run where the manager does or in the directory of their job, and they
are in a directory of programs of this machine. To look for them elsewhere could take for ever, if a file system is
away, and all others would wait meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic_core import from_json

from airflow_provider_air_executor.engines.children import Children, usage
from airflow_provider_air_executor.engines.local.launcher import MAX_MESSAGE, Request
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.system.environment import default_signals
from airflow_provider_air_executor.system.python import module_command

log = logging.getLogger("air_executor.manager")

_LAUNCHER = "airflow_provider_air_executor.engines.local.launcher"
_UNDER_LOAD = 20  # tasks, each of which starts so soon after the one before:
_SOON = 0.1  # seconds
_MOST = min(8, os.cpu_count() or 1)  # launchers: each waits while a command of its own begins
_CHANNEL_BYTES = 4_000_000
_LONGEST = MAX_MESSAGE // 2  # characters of a command line
_PROGRAMS = ("/bin", "/usr/bin", "/usr/local/bin", "/sbin", "/usr/sbin", "/usr/local/sbin")
_FOUND_SECONDS = 1.0  # after which it is looked again where a command is
# It may outlive the manager, at whose output somebody may wait for the end of that.
_NO_STREAMS = (
    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    (os.POSIX_SPAWN_DUP2, 1, 2),
)


class Begun(NamedTuple):
    """A command has been started."""

    attempt: Attempt
    pid: int
    token: str


class CommandEnded(NamedTuple):
    """A command has ended."""

    attempt: Attempt
    exit_code: int | None  # None: it could not be recorded
    usage: Usage


class NotLaunched(NamedTuple):
    """A command was not started, and will not be."""

    attempt: Attempt


class Lost(NamedTuple):
    """A command was started, and its end will not be known: the launcher is gone."""

    attempt: Attempt


Event = Begun | CommandEnded | NotLaunched | Lost


class _Launcher:
    """A launcher that runs.

    :raises OSError: if it cannot be started.
    """

    def __init__(self, environment: Mapping[str, str], children: Children) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.is_ready = False
        self.attempts: dict[int, Attempt] = {}  # that it has, by their serial numbers
        self._begun: set[int] = set()  # those of them whose commands have been started
        try:
            with theirs:
                for end in (self.channel, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHANNEL_BYTES)
                theirs.set_inheritable(True)
                pid = os.posix_spawn(
                    sys.executable,
                    module_command(_LAUNCHER, str(theirs.fileno())),
                    environment,
                    file_actions=_NO_STREAMS,
                    setsid=True,
                    setsigdef=default_signals(),
                    setsigmask=(),
                )
        except BaseException:
            self.channel.close()
            raise
        children.add(pid, lambda _pid, _status: None)

    def launch(self, attempt: Attempt, data: bytes) -> bool:
        """Send it a request; whether that was possible."""
        try:
            self.channel.send(data, socket.MSG_DONTWAIT)
        except OSError:  # it is busy, or gone, which the next poll finds
            return False
        self.attempts[attempt.serial] = attempt
        return True

    def poll(self, events: list[Event]) -> bool:
        """Add what its next message says to the events; False if the launcher has ended."""
        try:
            data = self.channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            for key, attempt in self.attempts.items():
                events.append(Lost(attempt) if key in self._begun else NotLaunched(attempt))
            return False
        events += filter(None, (self._event(*event) for event in from_json(data)))
        return True

    def _event(self, what: str, key: int = 0, *more: Any) -> Event | None:
        if what == "ready":
            self.is_ready = True
            return None
        if what == "begun":
            self._begun.add(key)
            return Begun(self.attempts[key], *more)
        self._begun.discard(key)
        attempt = self.attempts.pop(key)
        if what != "ended":
            return NotLaunched(attempt)
        exit_code, *used = more
        return CommandEnded(attempt, exit_code, usage(*used))


class Launching:
    """Has commands started without a shell.

    :param environment: what the commands inherit.
    :param children: calls back when a launcher has ended.
    :param other: a descriptor for whose sake :attr:`descriptor` becomes readable, too.
    """

    def __init__(self, environment: Mapping[str, str], children: Children, other: int | None = None) -> None:
        self._environment = environment
        self._children = children
        self._epoll = select.epoll() if sys.platform.startswith("linux") else None
        if self._epoll is not None and other is not None:
            self._epoll.register(other, select.EPOLLIN)
        self._launchers: dict[int, _Launcher] = {}  # by the descriptors of their channels
        self._in_a_row = 0  # tasks that have started soon after the one before
        self._last_start = 0.0
        self._programs = {*_PROGRAMS, os.path.dirname(sys.executable)}
        self._found: dict[str, tuple[str, float]] = {}  # where commands are, and until when that holds

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when there is something to :meth:`poll`; None: there never is."""
        return None if self._epoll is None else self._epoll.fileno()

    def start(self, attempt: Attempt, task: Task, words: list[str], variables: Mapping[str, str], own: str) -> bool:
        """Have a command started, if it needs no shell and there is a launcher; :meth:`poll` says what became of it.

        :param words: the record, the time, the log, the directory to run in or nothing, the command, its arguments.
        :param variables: the environment variables that describe the task.
        :param own: the directory that belongs to the job.
        :return: whether it was handed over; otherwise a shell must start it.
        """
        now = time.monotonic()
        self._in_a_row = self._in_a_row + 1 if now - self._last_start < _SOON else 0
        self._last_start = now
        launcher = self._next_launcher()
        record, started_at, log_path, directory, command, *args = words
        if launcher is None or task.env or not task.append_env or directory not in ("", own):
            return False
        path = self._path(command, now)
        if not path or sum(map(len, args)) > _LONGEST:
            return False
        given = [f"{name}={value}" for name, value in variables.items()]
        if directory:
            given.append(f"PWD={directory}")
        token = secrets.token_hex(8)
        request = Request(attempt.serial, token, record, started_at, log_path, directory, path, given, args)
        try:
            data = request.data
        except UnicodeEncodeError:
            return False
        return len(data) <= MAX_MESSAGE and launcher.launch(attempt, data)

    def _next_launcher(self) -> _Launcher | None:
        """The launcher that has least to do, if there is one. Under load there is one more if all have much to do."""
        ready = [launcher for launcher in self._launchers.values() if launcher.is_ready]
        least = min(ready, key=lambda launcher: len(launcher.attempts), default=None)
        is_busy = self._in_a_row >= _UNDER_LOAD and (least is None or least.attempts)
        if is_busy and len(ready) == len(self._launchers) < _MOST and self._epoll is not None:
            self._in_a_row = 0
            with contextlib.suppress(OSError):
                launcher = _Launcher(self._environment, self._children)
                self._launchers[launcher.channel.fileno()] = launcher
                self._epoll.register(launcher.channel, select.EPOLLIN)
        return least

    def _path(self, command: str, now: float) -> str:
        """Where a command is, if that can be found out at once; empty otherwise."""
        found, until = self._found.get(command, ("", 0.0))
        if now < until:
            return found
        if len(self._found) > 1000:
            self._found.clear()
        found = self._find(command)
        self._found[command] = found, now + _FOUND_SECONDS
        return found

    def _find(self, command: str) -> str:
        if "/" in command:
            return command if os.path.dirname(command) in self._programs else ""
        for directory in self._environment["PATH"].split(":"):
            if directory not in self._programs:
                return ""  # a shell looks there
            path = f"{directory}/{command}"
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
        return ""

    def poll(self) -> list[Event]:
        """The events of the next message of each launcher. If there are more, :attr:`descriptor` stays readable."""
        events: list[Event] = []
        if self._epoll is None or not self._launchers:
            return events
        for descriptor, _ in self._epoll.poll(0):
            launcher = self._launchers.get(descriptor)  # None: it is the other descriptor
            if launcher is None or launcher.poll(events):
                continue
            if launcher.attempts:  # it has not ended because it had nothing to do for a while
                log.warning("a launcher was killed; what it had started is lost: %d tasks", len(launcher.attempts))
            self._drop(launcher)
        return events

    def _drop(self, launcher: _Launcher) -> None:
        del self._launchers[launcher.channel.fileno()]
        if self._epoll is not None:
            self._epoll.unregister(launcher.channel)
        launcher.channel.close()

    def close(self) -> None:
        """Do without launchers from now on; each ends when the commands that it has started have ended."""
        for launcher in list(self._launchers.values()):
            self._drop(launcher)
        if self._epoll is not None:
            self._epoll.close()
