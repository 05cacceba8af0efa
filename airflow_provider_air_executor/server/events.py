"""Server-sent events: what a stream of them has in common with all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from airflow_provider_air_executor.server.service import Service
from airflow_provider_air_executor.server.tokens import Token

HEARTBEAT_SECONDS = 5.0
HEARTBEAT = b":\n\n"

DESCRIBED: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}


class Events(StreamingResponse):
    """A stream of events. Each piece waits until the client has taken those before, or nearly."""

    def __init__(self, events: AsyncIterator[bytes], status_code: int = 200) -> None:
        # Proxies are asked not to keep what is to be seen at once.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, status_code, headers=headers, media_type="text/event-stream")


def event(kind: str, data: bytes, word: str = "") -> bytes:
    """An event.

    :param data: JSON on one line.
    :param word: the id of the event: where the client goes on after it.
    """
    return b"event: %s\n%sdata: %s\n\n" % (kind.encode(), b"id: %s\n" % word.encode() if word else b"", data)


class Pulse:
    """Says when a heartbeat is due, and ends the stream of a token that is not valid any more."""

    def __init__(self, service: Service, token: Token) -> None:
        self._service = service
        self._token = token
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + HEARTBEAT_SECONDS

    def seconds(self) -> float:
        """Until the next heartbeat."""
        return max(0.0, self._due - self._loop.time())

    async def beat(self) -> bytes:
        """A heartbeat, if it is due; empty otherwise.

        :raises StopStreamError: if the stream is to end.
        """
        if self._loop.time() < self._due:
            return b""
        self._due = self._loop.time() + HEARTBEAT_SECONDS
        if not await run_in_threadpool(self._service.tokens.is_valid, self._token):
            raise StopStreamError
        return HEARTBEAT


class StopStreamError(Exception):
    """A stream is to end, since its token is not valid any more."""
