"""The Unix socket on this machine, and what is sent to and fro between it and the other machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any

import asyncssh

from airflow_provider_air_executor.exceptions import SshError
from airflow_provider_air_executor.remote.ssh.link import Link
from airflow_provider_air_executor.remote.ssh.socket_directory import SocketDirectory


class Forwarder:
    """Listens on a socket, and connects each connection with the server on the other machine."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._directory = SocketDirectory()
        self._server: asyncio.Server | None = None
        self._local: set[_LocalEnd] = set()
        self.path = self._directory.socket

    @property
    def is_ready(self) -> bool:
        """Whether a connection to the socket reaches the other machine, as far as is known."""
        return self._link.is_ready

    async def make_ready(self) -> None:
        """Wait until it does; see :meth:`.Tunnel.socket`."""
        await self._link.make_ready()

    async def listen(self) -> None:
        """Listen on the socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _LocalEnd(self._link, self._local), self.path)

    async def close(self) -> None:
        """End all connections."""
        if self._server is not None:
            self._server.close()
        for end in list(self._local):
            end.close()
        await self._link.close()

    def remove_socket(self) -> None:
        """Remove the socket from the file system."""
        self._directory.remove()

    def leave(self) -> None:
        """In a child process: close the descriptors alone.

        Each becomes one of /dev/null: its number stays taken, so that nothing that is finalized late closes another's.
        """
        listening = [each.fileno() for each in (self._server.sockets if self._server is not None else ())]
        local = [end.descriptor for end in list(self._local)]
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (*listening, *local, self._link.descriptor, self._directory.lock):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.dup2(nowhere, descriptor, inheritable=False)
        os.close(nowhere)


class _End:
    """One of two ends; what it receives is sent by the other one."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.peer: _End | None = None
        self._has_all = False  # whether this end sends no more

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        if datatype is None and self.peer is not None:
            with contextlib.suppress(OSError):  # the other end is about to close
                self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self._has_all = True
        if self.peer is None or self.peer.has_all:
            return False
        with contextlib.suppress(OSError):
            self.peer.transport.write_eof()
        return True

    @property
    def has_all(self) -> bool:
        return self._has_all

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        peer, self.peer = self.peer, None
        if peer is not None:
            peer.peer = None
            peer.close()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()


class _RemoteEnd(_End, asyncssh.SSHClientSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """The end on the other machine: its socket, or a command there."""


class _LocalEnd(_End, asyncio.Protocol):
    """A connection to the socket. It is closed if it cannot be connected; :meth:`.Tunnel.socket` says why."""

    def __init__(self, link: Link, all_ends: set[_LocalEnd]) -> None:
        super().__init__()
        self._link, self._all = link, all_ends
        self._task: asyncio.Task[None] | None = None
        self.descriptor = -1

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.descriptor = transport.get_extra_info("socket").fileno()
        self._all.add(self)
        loop = asyncio.get_running_loop()
        # Until there is somewhere to send it to. Before 3.11.4, Python begins to read after this method in any case.
        loop.call_soon(transport.pause_reading)
        self._task = loop.create_task(self._connect())

    async def _connect(self) -> None:
        remote = _RemoteEnd()
        remote.peer = self
        try:
            await self._link.open(lambda: remote)
        except (SshError, OSError, asyncssh.Error):
            self.close()
            return
        if self.transport.is_closing():
            remote.close()
            return
        self.peer = remote
        self.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._all.discard(self)
        self.descriptor = -1
        if self._task is not None:
            self._task.cancel()
        super().connection_lost(error)
