"""Where the job filesystems of connections are, for all triggers of a process: Airflow is asked once a minute."""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

from asgiref.sync import sync_to_async

from airflow_provider_air_executor.connections import Location
from airflow_provider_air_executor.hooks import AirExecutorHook

if TYPE_CHECKING:
    from airflow_provider_air_executor.remote.protocol import Target

_FRESH_SECONDS = 60.0


class _Asked(NamedTuple):
    """A question, and until when its answer counts."""

    answer: asyncio.Future[Location | Target]
    until: float  # on the monotonic clock


_asked: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Asked]] = weakref.WeakKeyDictionary()


async def location_of(conn_id: str) -> Location | Target:
    """Where the job filesystem of a connection is, or was at most a minute ago.

    :raises AirflowNotFoundException: if there is no such connection.
    :raises ValueError: if it is not valid.
    """
    asked = _asked.setdefault(asyncio.get_running_loop(), {})
    known = asked.get(conn_id)
    if known is None or time.monotonic() >= known.until or _has_failed(known.answer):
        answer = asyncio.ensure_future(sync_to_async(lambda: AirExecutorHook(conn_id).location)())
        known = asked[conn_id] = _Asked(answer, time.monotonic() + _FRESH_SECONDS)
    return await asyncio.shield(known.answer)  # others wait for it, too


def _has_failed(answer: asyncio.Future[Location | Target]) -> bool:
    return answer.done() and (answer.cancelled() or answer.exception() is not None)
