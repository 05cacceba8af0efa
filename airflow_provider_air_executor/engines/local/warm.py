"""The manager's side of the fork server: starts it, sends it tasks, and receives their ends."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.forkserver import MAX_MESSAGE
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.models import Task

log = logging.getLogger("air_executor.manager")

_IS_LINUX = sys.platform.startswith("linux")
_PRELOAD_SECONDS = 120.0
_RETRY_SECONDS = 60.0  # after a fork server could not be started
_CHANNEL_BYTES = 4_000_000
_FORK_SERVER = "airflow_provider_air_executor.engines.local.forkserver"


class Forked(NamedTuple):
    """A process has been forked for an attempt."""

    attempt: Attempt
    pid: int
    token: str


class Exited(NamedTuple):
    """A forked process has ended; what it left has been killed if it was killed."""

    attempt: Attempt
    pid: int
    status: int  # as waitpid(2) gives it


class Refused(NamedTuple):
    """No process was forked for an attempt, and none will be."""

    attempt: Attempt
    why: str
    is_final: bool  # whether it is no use to ask again soon


class Orphaned(NamedTuple):
    """The fork server has ended. A process that it has forked goes on, and its end is not reported any more."""

    attempt: Attempt


Event = Forked | Exited | Refused | Orphaned


@dataclass
class _Process:
    """A fork server that runs."""

    pid: int | None  # None: it has been reaped
    channel: socket.socket
    deadline: float  # if it has not imported its modules by then
    is_ready: bool = False


class ForkServerClient:
    """The manager's side of its fork server, which has imported modules already, and is forked for each task.

    It is started with the first task, or ahead of it by :meth:`start`. Requests wait until it has imported what it is
    to import.

    :param environment: the environment of the fork server, and so that of its tasks.
    :param children: calls back when the fork server has ended.
    :param modules: what it imports; if nothing is given, the first request says what.
    """

    def __init__(self, environment: Mapping[str, str], children: Children, modules: tuple[str, ...] = ()) -> None:
        self._environment = dict(environment)
        self._children = children
        self._modules = modules
        self._epoll = select.epoll() if _IS_LINUX else None
        self._process: _Process | None = None
        self._why_not = "" if _IS_LINUX else "warm runners need Linux"
        self._retry_at = 0.0 if _IS_LINUX else math.inf
        self._found: dict[str, str] = {}  # commands that tasks have named, in the manager's own path
        self._waiting: dict[Attempt, dict[str, Any]] = {}
        self._sent: dict[int, Attempt] = {}  # by their serial numbers
        self._forked: dict[int, Attempt] = {}  # by the process ids
        self._events: list[Event] = []

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when there is something to :meth:`poll`."""
        return None if self._epoll is None else self._epoll.fileno()

    def why_cold(self, task: Task) -> str:
        """Why a task cannot start warm; empty if it can."""
        if task.env:
            return "its environment differs from the manager's"
        if not self._is_this_python(task.command) or not _python_module(task.args):
            return f"its command is not {sys.executable} -m MODULE"
        return self._why_none

    @property
    def _why_none(self) -> str:
        """Why there can be no fork server at the moment; empty if there can."""
        return self._why_not if time.monotonic() < self._retry_at else ""

    def _is_this_python(self, command: str) -> bool:
        """Whether a command is the Python that runs the manager."""
        if "/" not in command and command not in self._found:
            found = shutil.which(command, path=self._environment["PATH"])
            if found is None:  # it may come to be there
                return False
            self._found[command] = found
        return self._found.get(command, command) == sys.executable

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called in any case; None: never."""
        if self._events:
            return 0.0
        process = self._process
        if process is None:
            return None
        if not process.is_ready:
            return max(0.0, process.deadline - time.monotonic())
        return 0.05 if self._waiting else None  # the channel is full

    def start(self) -> None:
        """Start the fork server if there is none."""
        if self._process is not None or self._why_none or self._epoll is None:
            return
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHANNEL_BYTES)
                theirs.set_inheritable(True)
                pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-P", "-m", _FORK_SERVER, str(theirs.fileno()), *self._modules],
                    self._environment,
                    file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                    setsid=True,
                )
        except OSError as error:
            self._fail(f"the fork server could not be started: {error.strerror}")
            return
        self._children.add(pid, self._ended)
        log.info("fork server %d imports %s", pid, ", ".join(self._modules) or "nothing")
        self._process = _Process(pid, ours, time.monotonic() + _PRELOAD_SECONDS)
        self._epoll.register(ours, select.EPOLLIN)

    def fork(self, attempt: Attempt, task: Task, words: list[str], variables: Mapping[str, str]) -> None:
        """Ask for a process that runs a task; :meth:`poll` returns the answer.

        :param task: if the modules to import have not been said yet, it says them.
        :param words: the record, the time, the log, the directory to run in or nothing, the command, its arguments.
        :param variables: the environment variables that describe the task.
        """
        self._modules = self._modules or task.preload or ()
        module, *args = _python_module(task.args)
        record, started_at, log_path, cwd, *_ = words
        self._waiting[attempt] = {
            "key": attempt.serial,
            "module": module,
            "safe": task.args[0] == "-P",
            "record": record,
            "started_at": started_at,
            "log": log_path,
            "cwd": cwd,
            "variables": variables,
            "args": args,
        }
        self.start()
        self._send()

    def withdraw(self, attempt: Attempt) -> bool:
        """Take a request back; False if it has been sent already."""
        return self._waiting.pop(attempt, None) is not None

    def _send(self) -> None:
        while self._process is not None and self._process.is_ready and self._waiting:
            attempt, message = next(iter(self._waiting.items()))
            data = json.dumps(message).encode()
            if len(data) > MAX_MESSAGE:
                del self._waiting[attempt]
                self._events.append(Refused(attempt, "its arguments are too long for a warm start", is_final=True))
                continue
            try:
                self._process.channel.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # it is gone, which the next poll finds
                return
            del self._waiting[attempt]
            self._sent[attempt.serial] = attempt

    def poll(self) -> list[Event]:
        """The events since the last call."""
        while self._process is not None:
            try:
                data = self._process.channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._fail("the fork server has ended")
                break
            self._take(json.loads(data))
        process = self._process
        if process is not None and not process.is_ready and time.monotonic() >= process.deadline:
            self._fail(f"importing {', '.join(self._modules)} took longer than {_PRELOAD_SECONDS:g} s")
        self._send()
        events, self._events = self._events, []
        return events

    def _take(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            attempt = self._forked.pop(message["ended"])
            self._events.append(Exited(attempt, message["ended"], message["status"]))
        elif "pid" in message:
            attempt = self._forked[message["pid"]] = self._sent.pop(message["key"])
            self._events.append(Forked(attempt, message["pid"], message["token"]))
        elif "error" in message:
            attempt = self._sent.pop(message["key"])
            self._events.append(Refused(attempt, f"no process can be forked: {message['error']}", is_final=False))
        elif "ready" in message and self._process is not None:
            self._process.is_ready = True
            log.info("fork server %s is warm", self._process.pid)
        else:
            self._fail(f"the fork server could not import its modules: {message['failed']}")

    def _fail(self, why: str) -> None:
        """There is no fork server any more. If it never worked, what waits for it starts cold."""
        has_worked = self._process is not None and self._process.is_ready
        self._end_process()
        self._events += [Refused(attempt, why, is_final=False) for attempt in self._sent.values()]
        self._events += [Orphaned(attempt) for attempt in self._forked.values()]
        self._sent.clear()
        self._forked.clear()
        if has_worked:  # and will again
            log.warning("%s; %s", why, "it is started again" if self._waiting else "the next task starts another one")
            if self._waiting:
                self.start()
            return
        self._why_not, self._retry_at = why, time.monotonic() + _RETRY_SECONDS
        log.error("%s; tasks start cold, and it is tried again in %g s", why, _RETRY_SECONDS)
        self._events += [Refused(attempt, why, is_final=True) for attempt in self._waiting]
        self._waiting.clear()

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._epoll is not None:
            self._epoll.unregister(process.channel)
        process.channel.close()
        if process.pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(process.pid, signal.SIGKILL)
                os.waitpid(process.pid, 0)

    def _ended(self, pid: int, status: int) -> None:
        if self._process is not None and self._process.pid == pid:
            self._process.pid = None

    def close(self) -> None:
        """End the fork server. The tasks go on."""
        self._end_process()
        if self._epoll is not None:
            self._epoll.close()


def _python_module(args: Sequence[str]) -> Sequence[str]:
    """The module that Python is to run, and its arguments; nothing if it is to do something else."""
    words = args[1:] if args[:1] == ("-P",) else args
    return words[1:] if words[:1] == ("-m",) else ()
