"""What each request passes first: which protocol it speaks, and whose it is.

A request without a valid token is refused before anything of its body is read.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.remote.protocol import HIGHEST, LOWEST, PROTOCOL_HEADER, VERSION_HEADER
from airflow_provider_air_executor.server.problems import ProblemError
from airflow_provider_air_executor.server.service import Service
from airflow_provider_air_executor.server.tokens import UNIX, InvalidTokenError, Token

log = logging.getLogger("air_executor.server")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OPEN = (("GET", "/v1/health"), ("HEAD", "/v1/health"))  # for which anybody may ask; they have no body


class Gate:
    """Lets those in who have a token, or came by the Unix socket.

    :param app: what answers.
    """

    def __init__(self, app: App, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sending = _Sending(send, partial(self._record, scope))
        with self._service.activity.request():
            try:
                await self._admit(scope)
            except ProblemError as problem:
                await problem.response()(scope, receive, sending)
            else:
                await self._app(scope, receive, sending)

    async def _admit(self, scope: MutableMapping[str, Any]) -> None:
        """Find out whose request it is.

        :raises ProblemError: if it cannot be answered.
        """
        headers = Headers(scope=scope)
        _check_protocol(headers.get(PROTOCOL_HEADER))
        if (scope["method"], scope["path"]) not in _OPEN:
            is_unix = scope["state"]["listener"].is_unix
            scope["state"]["token"] = UNIX if is_unix else await self._token(scope, headers)

    async def _token(self, scope: MutableMapping[str, Any], headers: Headers) -> Token:
        try:
            token = await run_in_threadpool(self._service.tokens.identify, _bearer(headers.get("authorization", "")))
        except InvalidTokenError as error:
            raise await self._refusal(address_of(scope), error) from None
        scope["state"]["place"].trust()
        return token

    async def _refusal(self, address: str, error: InvalidTokenError) -> ProblemError:
        """A client has no valid token; it may try that a few times a minute."""
        logins = self._service.failed_logins
        seconds = logins.wait(address)
        if seconds > 0:
            headers = {"Retry-After": str(int(seconds) + 1)}
            return ProblemError(429, "too-many", "there were too many failed logins from here", headers=headers)
        logins.failed(address)
        record = partial(self._service.audit.record, "login", token=error.name, scope="", address=address)
        await run_in_threadpool(record, outcome=error.why)
        return ProblemError(401, "unauthorized", str(error), headers={"WWW-Authenticate": "Bearer"})

    async def _record(self, scope: MutableMapping[str, Any], status: int) -> None:
        """Write down what was asked for, if something was to change, before the client has the answer."""
        asked = scope["state"].get("asked")
        if asked is not None:
            token: Token = scope["state"]["token"]
            record = partial(self._service.audit.record, asked.action, job=asked.job, address=address_of(scope))
            outcome = "done" if status < 400 else f"refused ({status})"
            await run_in_threadpool(record, token=token.name, scope=token.scope, outcome=outcome)


def address_of(scope: MutableMapping[str, Any]) -> str:
    """The address of a client; empty if it came by the Unix socket."""
    if scope["state"]["listener"].is_unix:
        return ""
    client = scope.get("client")
    return client[0] if client else "unknown"  # it has gone already


def _bearer(header: str) -> str:
    """The token in a header.

    :raises InvalidTokenError: if there is none.
    """
    kind, _, text = header.partition(" ")
    if kind.lower() != "bearer":
        raise InvalidTokenError("there is none")
    return text.strip()


def _check_protocol(header: str | None) -> None:
    """Refuse a client that would not understand the answers. One that says nothing takes them as they are.

    :raises ProblemError: naming the versions of both.
    """
    if header is None:
        return
    is_number = header.isascii() and header.isdigit() and len(header) < 10
    if not is_number or int(header) < LOWEST:
        detail = (
            f"the client speaks protocol {header[:20]!r} at most, and air-executor {__version__} here {LOWEST} to "
            f"{HIGHEST}; upgrade the client"
        )
        raise ProblemError(400, "protocol", detail, lowest=LOWEST, highest=HIGHEST, version=__version__)


class _Sending:
    """Sends an answer with the headers that all answers have.

    :param record: is called with its status before it is sent.
    """

    def __init__(self, send: Send, record: Callable[[int], Awaitable[None]]) -> None:
        self._send = send
        self._record = record

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._record(message["status"])
            headers = MutableHeaders(scope=message)
            headers[PROTOCOL_HEADER] = str(HIGHEST)
            headers[VERSION_HEADER] = __version__
            headers.setdefault("Cache-Control", "no-store")
            headers.setdefault("X-Content-Type-Options", "nosniff")
        await self._send(message)
