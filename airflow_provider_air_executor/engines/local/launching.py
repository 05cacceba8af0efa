"""The manager's side of the launcher: starts it under load, sends it commands, and receives their ends.

A shell costs as much as a short command. So under load commands are started without one, if nothing about them needs a
shell: their environment is the manager's, they run where the manager does or in the directory of their job, and they
are in a directory of programs of this machine. To look for them elsewhere could take for ever, if a file system is
away, and all others would wait meanwhile.

Between the end of a short command and the start of the next one the manager would have to be asked. So a launcher whose
commands are short gets the next one ahead, which follows the one that it has.
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
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import from_json

from airflow_provider_air_executor.engines.children import Children, usage
from airflow_provider_air_executor.engines.local.launcher import MAX_MESSAGE, Request
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.models import Task, utc_now
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
_SHORT_IN_A_ROW = 3  # commands of a launcher, after which it gets one ahead
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
    ended_at: datetime


class Followed(NamedTuple):
    """The command before this one has ended, as the next event says; this one starts in its place."""

    attempt: Attempt
    started_at: datetime


class GivenBack(NamedTuple):
    """A command was not started, for the one before it is not short, or is killed."""

    attempt: Attempt
    is_certain: bool = True  # False: its launcher is gone, and may have started it


class NotLaunched(NamedTuple):
    """A command was not started, and will not be."""

    attempt: Attempt


class Lost(NamedTuple):
    """A command was started, and its end will not be known: the launcher is gone."""

    attempt: Attempt


Event = Begun | CommandEnded | Followed | GivenBack | NotLaunched | Lost


class _Launcher:
    """A launcher that runs.

    :raises OSError: if it cannot be started.
    """

    def __init__(self, environment: Mapping[str, str], children: Children) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.is_ready = False
        self.attempts: dict[int, Attempt] = {}  # that it has, by their serial numbers
        self._begun: set[int] = set()  # those of them of which it has said that they have been started
        self._follower: tuple[int, int] | None = None  # which attempt it is to start after which one
        self._short_in_a_row = 0  # commands that have ended before it said that they had been started
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

    def short_one(self) -> Attempt | None:
        """The attempt that another one may follow: all that it has, and probably short. None: there is none."""
        is_likely = self._short_in_a_row >= _SHORT_IN_A_ROW and not self._begun and self._follower is None
        is_likely = is_likely and len(self.attempts) == 1
        return next(iter(self.attempts.values())) if is_likely else None

    def launch(self, attempt: Attempt, data: bytes, after: Attempt | None = None) -> bool:
        """Send it a request; whether that was possible."""
        try:
            self.channel.send(data, socket.MSG_DONTWAIT)
        except OSError:  # it is busy, or gone, which the next poll finds
            return False
        self.attempts[attempt.serial] = attempt
        if after is not None:
            self._follower = attempt.serial, after.serial
        return True

    def withdraw(self, attempt: Attempt) -> None:
        """Ask for an attempt back, or for its process if it has one."""
        if attempt.serial not in self._begun:
            with contextlib.suppress(OSError):  # then it says that itself soon
                self.channel.send(str(attempt.serial).encode(), socket.MSG_DONTWAIT)

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
                events.append(Lost(attempt) if key in self._begun else self._not_started(attempt, is_certain=False))
            return False
        for what, *more in from_json(data):
            events += self._said(what, *more)
        return True

    def _said(self, what: str, key: int = 0, *more: Any) -> Iterator[Event]:
        if what == "ready":
            self.is_ready = True
        elif what == "begun":
            self._short_in_a_row = 0
            self._begun.add(key)
            yield Begun(self.attempts[key], *more)
        elif what == "ended":
            yield from self._ended(key, *more)
        else:  # what a launcher cannot start a shell may start
            attempt = self.attempts.pop(key)
            yield GivenBack(attempt) if what == "later" else self._not_started(attempt)
            if self._follower is not None and self._follower[0] == key:
                self._follower = None

    def _not_started(self, attempt: Attempt, *, is_certain: bool = True) -> Event:
        """One that was to follow another one has no place of its own."""
        is_follower = self._follower is not None and self._follower[0] == attempt.serial
        return GivenBack(attempt, is_certain) if is_follower else NotLaunched(attempt)

    def _ended(self, key: int, exit_code: int | None, seconds: float, memory: int | None, *new: Any) -> Iterator[Event]:
        """A command has ended.

        :param new: if it has not been said that it was started: its process, its token, and when the follower starts.
        """
        attempt, started_at = self.attempts.pop(key), ""
        self._begun.discard(key)
        if new:
            self._short_in_a_row += 1
            pid, token, started_at = new
            yield Begun(attempt, pid, token)
        ended_at = datetime.fromisoformat(started_at) if started_at else utc_now()
        if (
            self._follower is not None and self._follower[1] == key
        ):  # before the end, so that nobody else gets its place
            follower = self.attempts[self._follower[0]]
            self._follower = None
            yield Followed(follower, ended_at)
        yield CommandEnded(attempt, exit_code, usage(seconds, memory), ended_at)


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

    def short_one(self, job_name: str) -> Attempt | None:
        """An attempt of this job that another one may follow, see :meth:`start`; None: there is none."""
        found = (launcher.short_one() for launcher in self._launchers.values())
        return next((attempt for attempt in found if attempt is not None and attempt.job_name == job_name), None)

    def start(
        self,
        attempt: Attempt,
        task: Task,
        words: list[str],
        variables: Mapping[str, str],
        own: str,
        after: Attempt | None = None,
    ) -> bool:
        """Have a command started, if it needs no shell and there is a launcher; :meth:`poll` says what became of it.

        :param words: the record, the time, the log, the directory to run in or nothing, the command, its arguments.
        :param variables: the environment variables that describe the task.
        :param own: the directory that belongs to the job.
        :param after: one that this one follows, which was the :meth:`short_one`.
        :return: whether it was handed over; otherwise a shell must start it.
        """
        now = time.monotonic()
        self._in_a_row = self._in_a_row + 1 if now - self._last_start < _SOON else 0
        self._last_start = now
        launcher = self._next_launcher() if after is None else self._launcher_of(after)
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
        follows = -1 if after is None else after.serial
        request = Request(attempt.serial, follows, token, record, started_at, log_path, directory, path, given, args)
        try:
            data = request.data
        except UnicodeEncodeError:
            return False
        return len(data) <= MAX_MESSAGE and launcher.launch(attempt, data, after)

    def withdraw(self, attempt: Attempt) -> None:
        """Let an attempt not start that is to follow another one. An event says at once whether it has."""
        launcher = self._launcher_of(attempt)
        if launcher is not None:
            launcher.withdraw(attempt)

    def _launcher_of(self, attempt: Attempt) -> _Launcher | None:
        return next((each for each in self._launchers.values() if attempt.serial in each.attempts), None)

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
