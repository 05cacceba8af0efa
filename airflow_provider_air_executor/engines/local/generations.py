"""Which processes fork shims for the manager: the fork server, its generations, and those that others have replaced.

A generation is forked from the fork server, has imported more, and gets the tasks that it is meant for. The next one is
made while the present one serves. One that has been replaced lives until its attempts have ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.offspring import IMPORT_SECONDS
from airflow_provider_air_executor.engines.local.serving import CHANNEL_BYTES, Event, Server
from airflow_provider_air_executor.system.python import module_command

log = logging.getLogger("air_executor.manager")

_FORK_SERVER = "airflow_provider_air_executor.engines.local.forkserver"
_MOST_RETIRED = 8  # processes that serve no more, but have attempts


class Generations:
    """Starts the processes that fork shims, and knows which of them gets an attempt.

    :param environment: the environment of the fork server, and so that of its tasks.
    :param children: calls back when the fork server has ended.
    """

    def __init__(self, environment: Mapping[str, str], children: Children) -> None:
        self._environment = environment
        self._children = children
        self._epoll = select.epoll() if sys.platform.startswith("linux") else None
        self._count = 0  # of fork servers so far
        self._generation_count = 0
        self.reports: socket.socket | None = None  # to which tasks send what they have imported
        self.base: Server | None = None  # the fork server
        self.next_base: Server | None = None  # that will replace it
        self.generation: Server | None = None
        self.next_generation: Server | None = None
        self._retired: list[Server] = []  # the oldest one first

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when one of the processes has something to say."""
        return None if self._epoll is None else self._epoll.fileno()

    @property
    def poll_after(self) -> float | None:
        """Seconds after which one of the processes has taken too long; None: none can."""
        due = [server.deadline for server in self._servers() if not server.is_ready]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _servers(self) -> Iterator[Server]:
        for server in (*self._retired, self.generation, self.next_generation, self.base, self.next_base):
            if server is not None:
                yield server

    @property
    def attempts(self) -> int:
        """How many attempts there are."""
        return sum(server.attempts for server in self._servers())

    def describe(self) -> dict[str, Any]:
        """The processes, as plain data."""
        named = {
            "fork_server": self.base,
            "next_fork_server": self.next_base,
            "generation": self.generation,
            "next_generation": self.next_generation,
        }
        found: dict[str, Any] = {name: server and server.describe() for name, server in named.items()}
        return {**found, "earlier": [server.describe() for server in self._retired]}

    # -- which one -----------------------------------------------------------------------------------------

    def server_for(self, *, is_for_base: bool) -> Server | None:
        """The process that gets an attempt; None: it is not ready.

        :param is_for_base: whether it is not to have what generations import.
        """
        server = self.base if is_for_base or self.generation is None else self.generation
        return server if server is not None and server.is_ready else None

    @property
    def is_serving(self) -> bool:
        """Whether a fork server is ready."""
        return self.base is not None and self.base.is_ready

    # -- making them -----------------------------------------------------------------------------------------

    def start_base(self, modules: tuple[str, ...]) -> None:
        """Start a fork server. If one is ready it serves until the new one is; then the new one replaces it.

        :raises OSError: if it cannot be started.
        """
        given = [] if self.reports is None else [self.reports]
        with self._channel() as (ours, theirs), _inheritable(theirs, *given):
            numbers = [str(end.fileno()) for end in (theirs, *given)]
            pid = os.posix_spawn(
                sys.executable,
                module_command(_FORK_SERVER, ",".join(numbers), *modules),
                self._environment,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsid=True,
            )
        self._count += 1
        server = self._register(Server(self._count, ours, modules, IMPORT_SECONDS))
        server.child = server.pid = pid
        self._children.add(pid, self._ended)
        log.info("fork server %d imports %s", pid, ", ".join(modules) or "nothing")
        if self.base is None:
            self.base = server
        else:
            self.next_base = server

    def make_generation(self, modules: tuple[str, ...]) -> bool:
        """Begin to make the next generation.

        :return: whether it is being made; otherwise it may be tried later.
        """
        base = self.base
        if base is None or not base.is_ready or self.next_base is not None or self.next_generation is not None:
            return False
        try:
            with self._channel() as (ours, theirs):
                is_told = base.tell(given=theirs.fileno(), generation=modules)
        except OSError:
            return False
        if not is_told:
            ours.close()
            return False
        self._generation_count += 1
        server = Server(self._generation_count, ours, modules, IMPORT_SECONDS, base)
        self.next_generation = self._register(server)
        return True

    @contextlib.contextmanager
    def _channel(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A channel: our end, and the one to be handed over, which is closed then."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                for end in (ours, theirs):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHANNEL_BYTES)
                yield ours, theirs
        except BaseException:
            ours.close()
            raise

    def _register(self, server: Server) -> Server:
        if self._epoll is not None:
            self._epoll.register(server.channel, select.EPOLLIN)
        return server

    def make_way(self, server: Server) -> None:
        """Let a process that has become ready serve, in place of an earlier one."""
        if server is self.next_generation:
            self._retire(self.generation)
            self.generation, self.next_generation = server, None
        elif server in (self.base, self.next_base):
            for earlier in (self.base, self.generation, self.next_generation):
                if earlier is not server:
                    self._retire(earlier)
            self.base, self.next_base, self.generation, self.next_generation = server, None, None, None

    def _retire(self, server: Server | None) -> None:
        if server is not None:
            server.retire()
            self._retired.append(server)

    # -- their ends --------------------------------------------------------------------------------------------

    def receive(self) -> Iterator[tuple[Server, dict[str, Any] | None]]:
        """The messages of all processes; None instead of one: the process has ended."""
        for server in list(self._servers()):
            try:
                while (message := server.receive()) is not None:
                    yield server, message
            except EOFError:
                yield server, None

    def late(self) -> list[Server]:
        """The processes that take too long to import their modules."""
        now = time.monotonic()
        return [server for server in self._servers() if not server.is_ready and now >= server.deadline]

    def drop(self, server: Server, why: str) -> list[Event]:
        """End a process, or note that it has ended; its attempts go on.

        :return: what becomes of its attempts.
        """
        for name in ("base", "next_base", "generation", "next_generation"):
            if getattr(self, name) is server:
                setattr(self, name, None)
        if self.base is None:
            self.base, self.next_base = self.next_base, None
        if server in self._retired:
            self._retired.remove(server)
        if self._epoll is not None:
            self._epoll.unregister(server.channel)
        if server.child is not None and not server.is_ready:  # otherwise it ends when its channel is closed
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(server.child, signal.SIGKILL)
                os.waitpid(server.child, 0)
        return server.close(why)

    def drop_unneeded(self) -> list[Event]:
        """End the processes that serve no more and have no attempt; of those that have some, the oldest of too many."""
        events = []
        for server in list(self._retired):
            # The parent of another one reaps it.
            is_parent = any(other.parent is server for other in self._servers())
            is_one_too_many = len(self._retired) > _MOST_RETIRED and not server.owes_an_answer
            if not (server.is_needed or is_parent) or is_one_too_many:
                events += self.drop(server, "its fork server has been replaced")
        return events

    def _ended(self, pid: int, status: int) -> None:
        for server in self._servers():
            if server.child == pid:
                server.child = None

    def close(self) -> None:
        """End all processes. Attempts go on."""
        for server in list(self._servers()):
            self.drop(server, "the manager ends")
        if self._epoll is not None:
            self._epoll.close()


@contextlib.contextmanager
def _inheritable(*sockets: socket.socket) -> Iterator[None]:
    """Let a process that is started meanwhile inherit sockets, under the same numbers."""
    try:
        for each in sockets:
            each.set_inheritable(True)
        yield
    finally:
        for each in sockets:
            if each.fileno() >= 0:
                each.set_inheritable(False)
