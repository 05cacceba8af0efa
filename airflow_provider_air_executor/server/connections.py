"""The connections of clients: how many there may be, and what each may take how long for.

uvicorn has one limit, which refuses those who are connected already as soon as others open too many connections. Here,
clients that have shown a token are not driven out by those that have not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope

MAX_CONNECTIONS = 1_000  # by TCP; a further one gets 503
MAX_STRANGERS = 200  # by TCP, that have not shown a valid token yet; of more, the oldest one is closed
MAX_HEADER_BYTES = 32 * 1024
REST_SECONDS = 60.0  # for the rest of a request that was answered before its end, and is not looked at
HEADER_SECONDS = 10.0  # for TLS to be agreed on, and then for the header of a request to arrive

_MORE = 50  # connections above the limit that are told so; others are closed without a word
_WRITE_BUFFER_BYTES = 64 * 1024  # of a client that reads slowly


class Place:
    """The place of one connection among those that there may be.

    :param connection: the connection.
    :param connections: those that it is counted with; None: it is not counted.
    """

    def __init__(self, connection: socket.socket, connections: Connections | None) -> None:
        self._connection = connection
        self._connections = connections
        self.is_surplus = False  # whether all places were taken: its client is told so

    def trust(self) -> None:
        """Note that its client has shown a valid token; it is not closed in favour of another one any more."""
        if self._connections is not None:
            self._connections.strangers.pop(self, None)

    def leave(self) -> None:
        """The connection is over."""
        connections, self._connections = self._connections, None
        if connections is not None:
            connections.strangers.pop(self, None)
            connections.count -= 1

    def end(self) -> None:
        """End the connection, whatever is being sent or read."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


class Connections:
    """The connections by TCP, and the limits on their number."""

    def __init__(self) -> None:
        self.count = 0
        self.strangers: dict[Place, None] = {}  # whose clients have not shown a valid token, the oldest first

    def enter(self, connection: socket.socket, *, is_counted: bool) -> Place | None:
        """Give a connection a place; None if there is none, not even to tell its client so.

        :param is_counted: whether the limits hold for it.
        """
        if not is_counted:
            return Place(connection, None)
        if self.count >= MAX_CONNECTIONS + _MORE:
            return None
        place = Place(connection, self)
        place.is_surplus = self.count >= MAX_CONNECTIONS
        self.count += 1
        self.strangers[place] = None
        if len(self.strangers) > MAX_STRANGERS:
            oldest = next(iter(self.strangers))
            del self.strangers[oldest]
            oldest.end()
        return place


class Protocol(H11Protocol):
    """uvicorn's HTTP for one connection, with a time in which the header of a request must arrive."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any], place: Place) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self._place = place
        self._patience: asyncio.TimerHandle | None = None  # until the header is there
        self._rest: asyncio.TimerHandle | None = None  # until the rest of a body is
        self.app = _FULL if place.is_surplus else _with_short_headers(self.app)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._place.leave()
        self._stop_waiting()
        self._stop_resting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what has come."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._patience is None:
            self._await_header()  # it has begun
        if self.conn.their_state is not h11.SEND_BODY:
            self._stop_resting()

    def on_response_complete(self) -> None:
        """Go on with what has come meanwhile.

        A client that sends more than was wanted gets the answer when it has sent all, since most read it only then.
        """
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._rest = self.loop.call_later(REST_SECONDS, self.transport.abort)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and self._patience is None:
            self._await_header()

    def send_400_response(self, msg: str) -> None:
        """Say that a request is not HTTP, where an answer has not begun yet."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application has nobody to answer any more
            self.cycle.message_event.set()
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer has begun, or has no body, since it is one to HEAD
            self.transport.abort()

    def shutdown(self) -> None:
        """End, as soon as the answer is there; a stream of events has no end."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and any(name == b"accept" and b"text/event-stream" in value for name, value in self.headers):
            self.transport.close()
        else:
            super().shutdown()

    def _await_header(self) -> None:
        self._patience = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_resting(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _refusing(status: int, code: str, detail: str, *headers: tuple[bytes, bytes]) -> ASGI3Application:
    """An application that refuses every request."""
    problem = {"type": f"urn:air-executor:{code}", "title": code.replace("-", " "), "status": status, "detail": detail}
    body = json.dumps(problem).encode()
    shown = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *headers,
    ]

    async def refuse(_: Scope, __: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await send({"type": "http.response.start", "status": status, "headers": shown})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return refuse


_FULL = _refusing(
    503,
    "unavailable",
    f"the server has {MAX_CONNECTIONS} connections, and takes no more; try again later",
    (b"retry-after", b"5"),
)
_LONG = _refusing(431, "too-large", f"the header of the request may have at most {MAX_HEADER_BYTES} bytes")


def _with_short_headers(app: ASGI3Application) -> ASGI3Application:
    """An application to which no long header comes: h11 limits only those that come in pieces."""

    async def answer(scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        size = len(scope["raw_path"]) + len(scope["query_string"])
        size += sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        await (app if size <= MAX_HEADER_BYTES else _LONG)(scope, receive, send)

    return answer
