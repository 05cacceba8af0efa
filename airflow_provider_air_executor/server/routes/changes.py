"""The changes of all jobs, as they come: one stream for each client, which goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.changes import Change, ChangeFeed
from airflow_provider_air_executor.jobs.interface import STATE
from airflow_provider_air_executor.server.access import READ, TokenDep
from airflow_provider_air_executor.server.events import DESCRIBED, HEARTBEAT, Events, Pulse, StopStreamError, event
from airflow_provider_air_executor.server.problems import may_answer
from airflow_provider_air_executor.server.service import Service, ServiceDep
from airflow_provider_air_executor.server.tokens import Token

router = APIRouter(tags=["changes"])

_PIECE = 256  # changes that are sent at a time


@router.get("/changes", response_class=Events, responses={**may_answer(), **DESCRIBED}, dependencies=[READ])
async def follow_changes(
    service: ServiceDep,
    token: TokenDep,
    cursor: Annotated[str | None, Query(max_length=100, description="The id of the last event.")] = None,
) -> Events:
    """Server-sent events: a `job` for each change.

    It has `name`, `kind` (`state`, `tasks` or `log`) and, if the state has changed, the `job` as it is now; null if it
    is gone. What has changed several times comes once.

    Where the cursor says nothing (any more), `reset` comes first: the client looks at all that it waits for. A comment
    comes every five seconds.
    """
    return Events(_events(service, token, cursor))


async def _events(service: Service, token: Token, cursor: str | None) -> AsyncGenerator[bytes, None]:
    feed, pulse = service.changes, Pulse(service, token)
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(woken.set)

    feed.follow(wake)
    try:
        yield HEARTBEAT  # so that the client knows that it is connected
        position, epoch = None, ""
        while True:
            woken.clear()
            if feed.epoch != epoch:
                position, epoch = None, feed.epoch
            if not feed.is_ready:
                changes: list[Change] = []
            elif position is None:
                position = feed.position_of(cursor)
                if position is None:
                    position = feed.last
                    yield event("reset", b"{}", feed.cursor_of(position))
                continue
            else:
                changes = feed.changes(position, _PIECE)
                if not feed.has_all_since(position):  # the client was too slow
                    position = None
                    continue
            if changes:
                position = changes[-1].number
                yield await _dumped(feed, changes)
            else:
                await _wait(woken, pulse.seconds())
            if beat := await pulse.beat():
                yield beat
    except StopStreamError:
        return
    finally:
        feed.leave(wake)


async def _wait(woken: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await woken.wait()


async def _dumped(feed: ChangeFeed, changes: list[Change]) -> bytes:
    """Changes as events; what is not at hand is read in a thread."""
    names = {change.name for change in changes if change.kind == STATE}
    kept = {name: feed.kept(name) for name in names}
    missing = [name for name, job in kept.items() if job is None]
    if missing:
        kept.update(await run_in_threadpool(_load, feed, missing))
    return b"".join(
        event("job", _data(change, kept.get(change.name)), feed.cursor_of(change.number)) for change in changes
    )


def _load(feed: ChangeFeed, names: list[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
        with contextlib.suppress(AirExecutorError, OSError):  # the client asks for it, and learns why
            found[name] = feed.load(name)
    return found


def _data(change: Change, job: bytes | None) -> bytes:
    head = json.dumps({"name": change.name, "kind": change.kind}).encode()
    if change.kind != STATE or job is None:
        return head
    return b'%s, "job": %s}' % (head[:-1], job or b"null")
