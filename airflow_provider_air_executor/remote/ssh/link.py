"""One SSH connection, which is made again when it is lost, and the server at its other end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

import asyncssh

from airflow_provider_air_executor.exceptions import SshError
from airflow_provider_air_executor.remote.protocol import SshTarget
from airflow_provider_air_executor.remote.ssh.connecting import connect
from airflow_provider_air_executor.remote.ssh.remote_server import Server, Started, command_line, read_answer

ENSURE_SECONDS = 60.0  # for a manager and a server that have to start
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between two attempts; who asks waits longer

_RANDOM = random.SystemRandom()  # the one of the module is for the main thread, and may be seeded

Factory = Callable[[], Any]


class Link:
    """A connection to another machine, for one event loop.

    Whoever needs it makes it: one attempt at a time, which all that need it wait for. After a failure, it is not tried
    again for a while; meanwhile all get the same error.

    :param target: the other machine.
    :param command: ``air-executor`` there.
    """

    def __init__(self, target: SshTarget, *, command: str, base_path: str | None, embedded: bool) -> None:
        self._target, self._command = target, command
        self._options: dict[str, Any] = {"base_path": base_path, "embedded": embedded}
        self._connection: asyncssh.SSHClientConnection | None = None
        self._server: Server | None = None
        self._is_bridged = False  # whether sshd does not forward, and so a command there does
        self._has_worked = False
        self._pauses = _Pauses()
        self._attempt: asyncio.Task[tuple[asyncssh.SSHClientConnection, Server]] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether there is a connection, and a server at its other end, as far as is known."""
        return self._server is not None and self._connection is not None and not self._connection.is_closed()

    @property
    def descriptor(self) -> int:
        """The descriptor of the connection; -1 if there is none."""
        socket = self._connection.get_extra_info("socket") if self._connection is not None else None
        return -1 if socket is None else int(socket.fileno())

    async def make_ready(self) -> tuple[asyncssh.SSHClientConnection, Server]:
        """Connect, and start the server, as far as that is needed.

        :raises SshError: if that is of no use, however often it is tried.
        :raises OSError: if it cannot be reached now.
        """
        if self._attempt is None or self._attempt.done():
            self._pauses.check()
            self._attempt = asyncio.get_running_loop().create_task(self._try())
            self._attempt.add_done_callback(_look_at)
        # It goes on if the one who waits gives up: the next one finds what has been done so far.
        return await asyncio.shield(self._attempt)

    async def _try(self) -> tuple[asyncssh.SSHClientConnection, Server]:
        try:
            connection = await self._connected()
            server = self._server = self._server or await self._ask(connection)
        except SshError as error:
            # What has worked works again when those who look after it have finished.
            raise self._pauses.failed(ConnectionError(str(error)) if self._has_worked else error) from error
        except (OSError, asyncssh.Error) as error:
            raise self._pauses.failed(_away(self._target, error)) from error
        self._pauses.clear()
        self._has_worked = True
        return connection, server

    async def _connected(self) -> asyncssh.SSHClientConnection:
        if self._connection is None or self._connection.is_closed():
            self._connection, self._server, self._is_bridged = None, None, False
            self._connection = await connect(self._target)
        return self._connection

    async def _ask(self, connection: asyncssh.SSHClientConnection) -> Server:
        """Start the server on the other machine if none runs."""
        line = command_line(self._command, "--ensure", **self._options)
        run = connection.run(line, check=False, stdin=asyncssh.DEVNULL, errors="replace")
        done = await asyncio.wait_for(run, ENSURE_SECONDS)
        started = Started(done.exit_status, str(done.stdout or ""), str(done.stderr or ""))
        return read_answer(started, host=self._target.host, command=self._command)

    async def open(self, session_factory: Factory) -> None:
        """Open a connection to the server; start it anew if it is not there any more.

        :param session_factory: makes what receives what the server sends.
        :raises SshError: see :meth:`make_ready`.
        :raises OSError: see :meth:`make_ready`.
        :raises asyncssh.Error: if the connection is lost meanwhile.
        """
        connection, server = await self.make_ready()
        with contextlib.suppress(asyncssh.ChannelOpenError):
            return await self._open(session_factory, connection, server)
        if self._server is server:  # and no other one has found that out
            self._server = None
        connection, server = await self.make_ready()
        with contextlib.suppress(asyncssh.ChannelOpenError):
            return await self._open(session_factory, connection, server)
        self._is_bridged = True  # it runs, and sshd does not connect with it: AllowStreamLocalForwarding no
        return await self._open(session_factory, connection, server)

    async def _open(self, session_factory: Factory, connection: asyncssh.SSHClientConnection, server: Server) -> None:
        if self._is_bridged:
            line = command_line(self._command, "--ensure", "--stdio", **self._options)
            await connection.create_session(session_factory, line, encoding=None)
        else:
            await connection.create_unix_connection(session_factory, server.socket, encoding=None)

    async def close(self) -> None:
        """End the connection."""
        if self._attempt is not None and not self._attempt.done():
            self._attempt.cancel()
            await asyncio.wait([self._attempt])
        connection, self._connection, self._server = self._connection, None, None
        if connection is not None:
            connection.close()
            await connection.wait_closed()


class _Pauses:
    """Says when it may be tried again: after a random part of a time that doubles, so that not all return at once."""

    def __init__(self) -> None:
        self._error: Exception | None = None
        self._until, self._longest = 0.0, _FIRST_PAUSE

    def check(self) -> None:
        """Raise the last error if it is too early for another attempt."""
        if self._error is not None and time.monotonic() < self._until:
            raise type(self._error)(*self._error.args)

    def failed(self, error: Exception) -> Exception:
        """Note an error; it is returned."""
        self._error = error
        self._until = time.monotonic() + _RANDOM.uniform(0, self._longest)
        self._longest = min(2 * self._longest, _LONGEST_PAUSE)
        return error

    def clear(self) -> None:
        """Note that it works."""
        self._error, self._longest = None, _FIRST_PAUSE


def _look_at(attempt: asyncio.Task[Any]) -> None:
    """Take the error of an attempt that nobody waits for any more."""
    if not attempt.cancelled():
        attempt.exception()


def _away(target: SshTarget, error: Exception) -> Exception:
    if isinstance(error, TimeoutError):
        return ConnectionError(f"{target.host} by SSH does not answer")
    return ConnectionError(f"{target.host} by SSH: {getattr(error, 'reason', None) or error or type(error).__name__}")
