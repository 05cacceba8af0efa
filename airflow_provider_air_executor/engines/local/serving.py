"""A process that forks shims, as the manager sees it: the fork server itself, or a generation of it.

The manager sends one JSON message for each attempt, and for what else the process is to do; it answers with events.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from datetime import datetime
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.children import usage
from airflow_provider_air_executor.engines.local.forked import MAX_MESSAGE
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.models import utc_now
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.system import handover

CHANNEL_BYTES = 4_000_000


class Forked(NamedTuple):
    """A process has been forked for an attempt."""

    attempt: Attempt
    pid: int
    token: str


class Exited(NamedTuple):
    """An attempt has ended; what it left has been killed if its process was killed."""

    attempt: Attempt
    pid: int
    status: int  # as waitpid(2) gives it
    usage: Usage
    server: Server
    is_idle: bool = False  # whether its process may have another attempt: it is to be kept, or dismissed
    file: str | None = None  # of its task


class Refused(NamedTuple):
    """No process was forked for an attempt, and none will be."""

    attempt: Attempt
    why: str
    is_final: bool  # whether it is no use to ask again soon


class Orphaned(NamedTuple):
    """The fork server has ended. A process that it has forked goes on, and its end is not reported any more."""

    attempt: Attempt


Event = Forked | Exited | Refused | Orphaned


class Imported(NamedTuple):
    """What the modules of a process have cost."""

    at: datetime
    seconds: float  # of CPU
    memory: int  # bytes


class Server:
    """A process that forks shims, or is about to.

    :param number: of this manager's fork servers, or of their generations.
    :param channel: to the process; its other end has been handed over.
    :param modules: that it imports, besides those of the process that it was forked from.
    :param seconds: that it may take to import them.
    :param parent: the process that it is forked from; None: it is a fork server.
    """

    def __init__(
        self,
        number: int,
        channel: socket.socket,
        modules: tuple[str, ...],
        seconds: float,
        parent: Server | None = None,
    ) -> None:
        self.number = number
        self.channel = channel
        self.modules = modules
        self.deadline = time.monotonic() + seconds
        self.parent = parent
        self.child: int | None = None  # the process, if it is a child of the manager that has not been reaped
        self.pid = 0  # known when it is ready
        self.imported: Imported | None = None  # when it is ready
        self.is_retired = False  # whether it gets no more attempts
        self._sent: dict[int, tuple[Attempt, str | None]] = {}  # by their serial numbers, with the file of the task
        self._forked: dict[int, tuple[Attempt, str | None]] = {}  # by the process ids
        self._idle: dict[int, str | None] = {}  # processes that may have another attempt, with the file of the last one

    @property
    def is_ready(self) -> bool:
        """Whether it has imported its modules."""
        return self.imported is not None

    @property
    def owes_an_answer(self) -> bool:
        """Whether it was asked for processes, and has not said yet what has become of that."""
        return bool(self._sent)

    @property
    def attempts(self) -> int:
        """How many attempts it has."""
        return len(self._sent) + len(self._forked)

    @property
    def is_needed(self) -> bool:
        """Whether it has an attempt."""
        return self.attempts > 0

    def describe(self) -> dict[str, Any]:
        """What it is, as plain data."""
        found: dict[str, Any] = {"number": self.number, "modules": list(self.modules)}
        if self.imported is None:
            return found
        at, seconds, memory = self.imported
        found |= {"pid": self.pid, "since": at.isoformat(), "ms": round(1000 * seconds), "mb": round(memory / 2**20, 1)}
        return {**found, "attempts": self.attempts} if self.is_retired else found

    def send(self, attempt: Attempt, message: dict[str, Any], file: str | None = None) -> bool:
        """Ask for a process for an attempt.

        :param file: of the task; a process that has had a task of it comes first.
        :return: False if the channel is full; also if the process is gone, which is seen when it is read from.
        :raises ValueError: if the message is too long.
        """
        pid = next((pid for pid in reversed(self._idle) if self._idle[pid] == file), next(reversed(self._idle), None))
        shim = {} if pid is None else {"shim": pid}
        data = json.dumps({**message, **shim}).encode()
        if len(data) > MAX_MESSAGE:  # what it can do without, first
            data = json.dumps({**message, **shim, "hint": {}}).encode()
        if len(data) > MAX_MESSAGE:
            raise ValueError("its arguments are too long for a warm start")
        try:
            self.channel.send(data, socket.MSG_DONTWAIT)
        except OSError:
            return False
        if pid is not None:
            del self._idle[pid]
        self._sent[attempt.serial] = attempt, file
        return True

    def tell(self, *, given: int | None = None, **message: Any) -> bool:
        """Send another message.

        :param given: a descriptor that is handed over.
        :return: False if it cannot be sent now, or is too long.
        """
        data = json.dumps(message).encode()
        if len(data) > MAX_MESSAGE:
            return False
        try:
            handover.send(self.channel, data, [] if given is None else [given], socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def keep(self, pid: int, file: str | None) -> None:
        """Use a process again whose attempt has ended; it ends if this server gets no more attempts.

        :param file: of the task that it has run.
        """
        if self.is_retired:
            self.dismiss(pid)
        else:
            self._idle[pid] = file

    def dismiss(self, pid: int) -> None:
        """Have a process end whose attempt has ended. If that cannot be said now, it ends by itself after a while."""
        self.tell(dismiss=pid)

    def retire(self) -> None:
        """Give it no more attempts; those that it has go on."""
        self.is_retired = True
        for pid in self._idle:
            self.dismiss(pid)
        self._idle.clear()

    def receive(self) -> dict[str, Any] | None:
        """The next message; None if there is none now.

        :raises EOFError: if the process has ended.
        """
        try:
            data = self.channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            raise EOFError
        message: dict[str, Any] = json.loads(data)
        return message

    def take(self, message: dict[str, Any]) -> Event | None:
        """The event that a message about an attempt means; None if it is about something else."""
        if "ended" in message:
            pid = message["ended"]
            used, is_idle = usage(*message["used"]), message.get("idle", False)
            attempt, file = self._forked.pop(pid)
            return Exited(attempt, pid, message["status"], used, self, is_idle, file)
        if "token" in message:
            attempt, _ = self._forked[message["pid"]] = self._sent.pop(message["key"])
            return Forked(attempt, message["pid"], message["token"])
        if "error" in message:
            attempt, _ = self._sent.pop(message["key"])
            return Refused(attempt, f"no process can be forked: {message['error']}", is_final=False)
        if "ready" in message:
            self.pid = message["pid"]
            self.imported = Imported(utc_now(), message["seconds"], message["memory"])
        return None

    def close(self, why: str) -> list[Event]:
        """Close the channel, so that the process ends; its attempts go on.

        :param why: what is said of attempts that have no process yet.
        :return: what becomes of its attempts.
        """
        with contextlib.suppress(OSError):
            self.channel.close()
        events: list[Event] = [Refused(attempt, why, is_final=False) for attempt, _ in self._sent.values()]
        events += [Orphaned(attempt) for attempt, _ in self._forked.values()]
        self._sent.clear()
        self._forked.clear()
        self._idle.clear()
        return events
