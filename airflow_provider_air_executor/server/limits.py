"""What one client may ask of the server: failed logins a minute, the size of a request, the number of tasks."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow_provider_air_executor.exceptions import InvalidJobError

FAILED_LOGINS = 10  # of one address in a minute; those that follow are refused unread
MAX_REQUEST_BYTES = 64 * 1024 * 1024  # the body of a submission
MAX_SMALL_REQUEST_BYTES = 4 * 1024 * 1024  # the body of any other request
MAX_BODIES_BYTES = 128 * 1024 * 1024  # the bodies of all requests that are being answered, together
MAX_TASKS = 100_000  # of one request
BODY_SECONDS = 60.0  # in which a body must have begun to arrive faster than ...
BODY_BYTES_PER_SECOND = 8_192  # ... this

_MINUTE = 60.0
_MOST_ADDRESSES = 4_096  # that are remembered
_RETRY_SECONDS = 5
_SUBMISSION = re.compile(r"/v1/jobs(?:/[^/]+/tasks)?")
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class FailedLogins:
    """Counts the failed logins of each address.

    A valid token is accepted from any address at any time: many clients may share one address, and a token cannot be
    guessed. What is limited is how much work, and how many lines in the audit log, an address can cause without one.

    :param clock: seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()  # that which failed last is last

    def wait(self, address: str) -> float:
        """For how many seconds further failures of an address are refused; 0 if they are not."""
        failed = self._failed.get(_network(address))
        if failed is None or len(failed) < FAILED_LOGINS:
            return 0.0
        return max(0.0, failed[0] + _MINUTE - self._clock())

    def failed(self, address: str) -> None:
        """Count a failed login; the addresses that have failed longest ago are forgotten where there are too many."""
        network = _network(address)
        self._failed.setdefault(network, deque(maxlen=FAILED_LOGINS)).append(self._clock())
        self._failed.move_to_end(network)
        if len(self._failed) > _MOST_ADDRESSES:
            self._failed.popitem(last=False)


def _network(address: str) -> str:
    """What counts as one address: with IPv6, a client has a whole network of them."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:100]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


def check_tasks(count: int) -> None:
    """Check how many tasks a request has.

    :raises InvalidJobError: if there are too many.
    """
    if count > MAX_TASKS:
        raise InvalidJobError(
            f"tasks: {count} in one request, of which there can be at most {MAX_TASKS}; add the others in a second one"
        )


class RequestLimits:
    """Reads the body of each request before the application does, and only as much as it may have.

    What would be too long is refused unread, so that the memory of the server stays bounded whoever sends what how
    slowly. It belongs behind what asks for a token: nothing is read of a client that has none.

    :param app: the ASGI application.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._held = 0  # bytes of all bodies that have not been answered

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY:
            await self._app(scope, receive, send)
            return
        body = _Body(_limit(scope))
        try:
            refused = await self._read(body, scope, receive)
            if refused is None:
                await self._app(scope, _replayed(body.taken(), receive), send)
            elif refused.status:
                await refused.send(send)
        finally:
            self._held -= body.size

    async def _read(self, body: _Body, scope: MutableMapping[str, Any], receive: Receive) -> _Refusal | None:
        """Read a body; why it was not read to its end, if so."""
        if _declared(scope) > body.limit:
            return _too_large(body.limit)
        began, is_whole = asyncio.get_running_loop().time(), False
        while not is_whole:
            try:
                async with asyncio.timeout_at(began + BODY_SECONDS + body.size / BODY_BYTES_PER_SECOND):
                    message = await receive()
            except TimeoutError:
                return _Refusal(408, "timeout", "the body of the request did not arrive in time")
            if message["type"] != "http.request":
                return _GONE
            if refused := self._take(body, message.get("body", b"")):
                return refused
            is_whole = not message.get("more_body", False)
        return None

    def _take(self, body: _Body, piece: bytes) -> _Refusal | None:
        """Keep a piece of a body; why it cannot be kept, if so."""
        if body.size + len(piece) > body.limit:
            return _too_large(body.limit)
        if self._held + len(piece) > MAX_BODIES_BYTES:
            return _Refusal(503, "unavailable", "too many long requests at the same time; try again later")
        body.pieces.append(piece)
        body.size += len(piece)
        self._held += len(piece)
        return None


class _Body:
    """A body that is being read."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self.pieces: list[bytes] = []

    def taken(self) -> bytes:
        """What was read; it is handed on, and not kept here."""
        pieces, self.pieces = self.pieces, []
        return b"".join(pieces)


class _Refusal:
    """An answer in place of that of the application."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        self.status, self._code, self._detail = status, code, detail

    async def send(self, send: Send) -> None:
        """Send it. What is left of the request is not kept; who is too slow is not waited for."""
        problem = {
            "type": f"urn:air-executor:{self._code}",
            "title": self._code.replace("-", " "),
            "status": self.status,
            "detail": self._detail,
        }
        body = json.dumps(problem).encode()
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
        ]
        if self.status == 408:
            headers.append((b"connection", b"close"))
        if self.status == 503:
            headers.append((b"retry-after", str(_RETRY_SECONDS).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


_GONE = _Refusal(0, "", "the client is gone")


def _too_large(limit: int) -> _Refusal:
    return _Refusal(413, "too-large", f"the body of the request may have at most {limit} bytes")


def _limit(scope: MutableMapping[str, Any]) -> int:
    is_submission = scope["method"] == "POST" and _SUBMISSION.fullmatch(scope["path"]) is not None
    return MAX_REQUEST_BYTES if is_submission else MAX_SMALL_REQUEST_BYTES


def _declared(scope: MutableMapping[str, Any]) -> int:
    """How long a body is to be, as its client says; 0 if it does not."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read, and after it what else comes."""

    async def replay() -> Message:
        return left.pop() if left else await receive()

    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    return replay
