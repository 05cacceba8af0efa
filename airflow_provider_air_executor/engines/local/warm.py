"""The manager's side of the fork server: starts it, hands it tasks, and hears how they end."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.forkserver import MAX_MESSAGE

log = logging.getLogger("air_executor.manager")

_PRELOAD_SECONDS = 120.0
_RETRY_SECONDS = 60.0  # after a fork server could not be started
_CHANNEL_BYTES = 4_000_000
_FORK_SERVER = "airflow_provider_air_executor.engines.local.forkserver"


class Forked(NamedTuple):
    """A runner has been forked for a request."""

    key: int
    pid: int
    token: str


class Exited(NamedTuple):
    """A forked runner has ended; what it left has been killed if it was killed."""

    pid: int
    status: int  # as waitpid(2) gives it


class Refused(NamedTuple):
    """A request was not carried out, and will not be."""

    key: int
    why: str
    is_final: bool  # whether it is no use to ask again soon


class Gone(NamedTuple):
    """The fork server has ended; the runners it has forked go on, and nobody tells when they end."""


Event = Forked | Exited | Refused | Gone


class WarmRunners:
    """Engines that are forked from a process which has imported their modules already.

    The process, the fork server, is started with the first task, or ahead of it by :meth:`start`. Requests wait until
    it has imported what it is to import.

    :param environment: the environment of the fork server, and so that of its runners.
    :param children: which tells when the fork server has ended.
    :param modules: what it imports; if nothing is given, the first request says what.
    """

    def __init__(self, environment: Mapping[str, str], children: Children, modules: tuple[str, ...] = ()) -> None:
        self.works = sys.platform.startswith("linux")
        self._environment = dict(environment)
        self._children = children
        self._modules = modules
        self.pid: int | None = None  # of the fork server, if there is one
        self._channel: socket.socket | None = None
        self._epoll = select.epoll() if self.works else None
        self._is_ready = False
        self._give_up_at = 0.0
        self._retry_at = 0.0
        self._why_not = "" if self.works else "warm runners need Linux"
        self._waiting: collections.OrderedDict[int, dict[str, Any]] = collections.OrderedDict()
        self._sent: set[int] = set()
        self._events: list[Event] = []

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when there is something to :meth:`poll`."""
        return None if self._epoll is None else self._epoll.fileno()

    @property
    def why_not(self) -> str:
        """Why tasks must start cold at the moment; empty if they need not."""
        if not self.works or time.monotonic() < self._retry_at:
            return self._why_not
        return ""

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called in any case; None: never."""
        if self._events:
            return 0.0
        if self._channel is None:
            return None
        if not self._is_ready:
            return max(0.0, self._give_up_at - time.monotonic())
        return 0.05 if self._waiting else None  # the channel is full

    def start(self) -> None:
        """Start the fork server if there is none."""
        if self._channel is not None or self.why_not or self._epoll is None:
            return
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _CHANNEL_BYTES)
                theirs.set_inheritable(True)
                self.pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-P", "-m", _FORK_SERVER, str(theirs.fileno()), *self._modules],
                    self._environment,
                    file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                    setsid=True,
                )
        except OSError as error:
            self._fail(f"the fork server could not be started: {error.strerror}")
            return
        self._children.add(self.pid, self._ended)
        log.info("fork server %d imports %s", self.pid, ", ".join(self._modules) or "nothing")
        self._channel = ours
        self._epoll.register(ours, select.EPOLLIN)
        self._is_ready = False
        self._give_up_at = time.monotonic() + _PRELOAD_SECONDS

    def request(self, key: int, modules: tuple[str, ...], message: dict[str, Any]) -> None:
        """Ask for a runner; :meth:`poll` tells what became of it.

        :param key: by which the answer is known.
        :param modules: what the fork server is to import, if that has not been said yet.
        :param message: what the fork server is told.
        """
        self._modules = self._modules or modules
        self._waiting[key] = {**message, "key": key}
        self.start()
        self._send()

    def withdraw(self, key: int) -> bool:
        """Take a request back; False if it has been sent already."""
        return self._waiting.pop(key, None) is not None

    def _send(self) -> None:
        while self._is_ready and self._waiting and self._channel is not None:
            key, message = next(iter(self._waiting.items()))
            data = json.dumps(message).encode()
            if len(data) > MAX_MESSAGE:
                del self._waiting[key]
                self._events.append(Refused(key, "its arguments are too long for a warm start", is_final=True))
                continue
            try:
                self._channel.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # it is gone, as the next look at it tells
                return
            del self._waiting[key]
            self._sent.add(key)

    def poll(self) -> list[Event]:
        """What has happened since the last call."""
        while self._channel is not None:
            try:
                data = self._channel.recv(MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self._close()
                self._fail("the fork server has ended")
                break
            self._take(json.loads(data))
        if self._channel is not None and not self._is_ready and time.monotonic() >= self._give_up_at:
            self._close()
            self._fail(f"importing {', '.join(self._modules)} took longer than {_PRELOAD_SECONDS:g} s")
        self._send()
        events, self._events = self._events, []
        return events

    def _take(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            self._events.append(Exited(message["ended"], message["status"]))
        elif "pid" in message:
            self._sent.discard(message["key"])
            self._events.append(Forked(message["key"], message["pid"], message["token"]))
        elif "error" in message:
            self._sent.discard(message["key"])
            self._events.append(Refused(message["key"], f"no runner can be forked: {message['error']}", is_final=False))
        elif "ready" in message:
            self._is_ready = True
            log.info("fork server %s is warm", self.pid)
        else:
            self._close()
            self._fail(f"the fork server could not import its modules: {message['failed']}")

    def _fail(self, why: str) -> None:
        """There is no fork server now. If it never worked, what waits for it starts cold."""
        self._events += [Refused(key, why, is_final=False) for key in self._sent]
        self._sent.clear()
        self._events.append(Gone())
        if self._is_ready:  # it worked, and will again
            self._is_ready = False
            log.warning("%s; %s", why, "it is started again" if self._waiting else "the next task starts another one")
            if self._waiting:
                self.start()
            return
        self._why_not, self._retry_at = why, time.monotonic() + _RETRY_SECONDS
        log.error("%s; tasks start cold, and it is tried again in %g s", why, _RETRY_SECONDS)
        self._events += [Refused(key, why, is_final=True) for key in self._waiting]
        self._waiting.clear()

    def _close(self) -> None:
        if self._channel is not None:
            if self._epoll is not None:
                self._epoll.unregister(self._channel)
            self._channel.close()
            self._channel = None
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            self.pid = None

    def _ended(self, pid: int, status: int) -> None:
        if pid == self.pid:
            self.pid = None

    def close(self) -> None:
        """End the fork server. Its runners go on."""
        self._close()
