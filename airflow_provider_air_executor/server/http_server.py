"""Answers HTTP at some listeners, with uvicorn's protocol and without its server.

Three things are different: the certificate can be read anew while connections stay, what listens is opened elsewhere,
and the end does not wait for streams that never end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import threading
from collections.abc import Collection, Sequence
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from airflow_provider_air_executor.exceptions import ManagerError
from airflow_provider_air_executor.server.connections import (
    HEADER_SECONDS,
    MAX_HEADER_BYTES,
    Connections,
    Place,
    Protocol,
)
from airflow_provider_air_executor.server.listener import Listener, keep_alive

if TYPE_CHECKING:
    from uvicorn._types import ASGIApplication

log = logging.getLogger("air_executor.server")

IDLE_SECONDS = 75  # between two requests; longer than clients and proxies keep a connection that they do not use
END_SECONDS = 2.0  # for what is being answered when the server ends

_SHORTAGE_SECONDS = 0.2  # after a connection that could not be accepted
_END_OF_TLS_SECONDS = 2.0
_DESCRIPTORS = 4_096  # that the process may have open, where the system lets it


class Server:
    """Answers requests at some listeners.

    :param app: the ASGI application. It finds the listener of a request in ``scope["state"]["listener"]``.
    :param listeners: see :func:`.listener.open_listeners`; they are closed when it ends.
    :param forwarded_allow_ips: the addresses of proxies that are believed when they name the address of their client.
    """

    def __init__(
        self, app: ASGIApplication, listeners: Sequence[Listener], *, forwarded_allow_ips: Sequence[str] = ()
    ) -> None:
        self._config = _config(app, forwarded_allow_ips)
        self._listeners = listeners
        self._state = ServerState()
        self._connections = Connections()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()

    def run(self) -> None:
        """Answer requests until SIGTERM, SIGINT or :meth:`stop`; SIGHUP reads the certificates again.

        One that has come before is obeyed then, if the process has blocked it.
        """
        _allow_descriptors()
        asyncio.run(self.serve())

    def stop(self) -> None:
        """End it, from any thread."""
        if self._loop is None:
            self._end.set()
        else:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._end.set)

    def reload(self) -> None:
        """Read the certificates again: they hold for new connections."""
        for tls in {id(listener.tls): listener.tls for listener in self._listeners}.values():
            if tls is not None:
                tls.reload()

    async def serve(self) -> None:
        """The same as :meth:`run`, in an event loop.

        :raises ManagerError: if the application cannot start.
        """
        self._loop = asyncio.get_running_loop()
        self._config.load()
        lifespan = self._config.lifespan_class(self._config)
        await lifespan.startup()
        try:
            if lifespan.should_exit:
                raise ManagerError("the server cannot start; the lines above say why")
            self._listen_to_signals()
            await self._answer(lifespan.state)
        finally:
            await lifespan.shutdown()
            for listener in self._listeners:
                listener.close()

    def _listen_to_signals(self) -> None:
        if self._loop is None or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._end.set)
        self._loop.add_signal_handler(signal.SIGHUP, self.reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})

    async def _answer(self, state: dict[str, Any]) -> None:
        """Accept connections until the end."""
        accepting = [asyncio.create_task(self._accept(listener, state)) for listener in self._listeners]
        try:
            while not self._end.is_set():
                self._state.default_headers = [
                    (b"date", formatdate(usegmt=True).encode()),
                    *self._config.encoded_headers,
                ]
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._end.wait(), 1.0)  # what the date says is right to the second
        finally:
            await _cancelled(accepting)
            await self._close()

    async def _accept(self, listener: Listener, state: dict[str, Any]) -> None:
        """Accept the connections of a listener, one after the other."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener.socket)
            except OSError as error:  # no descriptor is left; or the client has gone
                log.debug("a connection could not be accepted: %s", error)
                await asyncio.sleep(_SHORTAGE_SECONDS)
                continue
            place = self._connections.enter(connection, is_counted=not listener.is_unix)
            if place is None:
                connection.close()
                continue
            task = asyncio.create_task(self._connect(connection, listener, {**state, "listener": listener}, place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(
        self, connection: socket.socket, listener: Listener, state: dict[str, Any], place: Place
    ) -> None:
        """Agree on TLS with a client, if that is needed, and go on with HTTP."""
        context = None if listener.tls is None else listener.tls.context
        keep_alive(connection)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Protocol(self._config, self._state, {**state, "place": place}, place),
                connection,
                ssl=context,
                ssl_handshake_timeout=None if context is None else HEADER_SECONDS,
                ssl_shutdown_timeout=None if context is None else _END_OF_TLS_SECONDS,
            )
        except OSError as error:  # the other end is gone, or does not speak TLS
            log.debug("no connection with a client: %s", error)
            place.leave()

    async def _close(self) -> None:
        """End all connections: those that are idle at once, others when they are answered, and soon in any case."""
        for listener in self._listeners:
            listener.close()
        # At the same moment: whom no new connection is given is not answered by one that is there already.
        connections = self._shut_down(but=())
        await _cancelled(self._tasks)
        self._shut_down(but=connections)
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=END_SECONDS)
        for each in list(self._state.connections):
            each.transport.abort()
        await _cancelled(self._state.tasks)

    def _shut_down(self, *, but: Collection[object]) -> Collection[object]:
        found = set(self._state.connections)
        for each in found.difference(but):
            each.shutdown()
        return found


async def _cancelled(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they have let go of what they use."""
    for task in list(tasks):
        task.cancel()
    if tasks:
        await asyncio.wait(list(tasks), timeout=END_SECONDS)


def _allow_descriptors() -> None:
    """Let the process have as many files open as it may have connections, and some more."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(_DESCRIPTORS, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _config(app: ASGIApplication, forwarded_allow_ips: Sequence[str]) -> Config:
    """The settings of uvicorn; none is taken from the environment."""
    return Config(
        app,
        loop="asyncio",
        http=Protocol,
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        log_level="error",  # what clients do wrong would fill the log
        access_log=False,
        workers=1,
        proxy_headers=bool(forwarded_allow_ips),
        forwarded_allow_ips=list(forwarded_allow_ips),
        server_header=False,
        date_header=False,
        headers=[("server", "air-executor")],
        timeout_keep_alive=IDLE_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
