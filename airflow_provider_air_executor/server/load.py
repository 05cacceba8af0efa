"""What takes much memory, and how much of it there may be at a time.

What a long request says, or the list of a job with very many tasks, takes a multiple of the bytes that it is sent or
kept as. Few of them are there at a time, whatever clients do; the others wait for their turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.store import JobStore

_SHORT = 1_000_000  # bytes
_BODIES, _LISTS = 2, 3  # long ones at a time


class Load:
    """Lets few long things be there at a time."""

    def __init__(self) -> None:
        self._bodies = asyncio.Semaphore(_BODIES)
        self._lists = asyncio.Semaphore(_LISTS)

    @asynccontextmanager
    async def body(self, size: int) -> AsyncIterator[None]:
        """Have a request of so many bytes."""
        if size <= _SHORT:
            yield
            return
        async with self._bodies:
            yield

    @asynccontextmanager
    async def list_of(self, store: JobStore, name: str) -> AsyncIterator[None]:
        """Have the list of the tasks of a job."""
        if await run_in_threadpool(_is_short, store, name):
            yield
            return
        async with self._lists:
            yield


def _is_short(store: JobStore, name: str) -> bool:
    try:
        found = files.stamp(store.paths(name).tasks)
    except (InvalidJobError, OSError):  # the route says so
        return True
    return found is None or found.size <= _SHORT


def load_of(request: Request) -> Load:
    """What the application keeps."""
    load: Load = request.app.state.load
    return load


async def _with_list(request: Request) -> AsyncGenerator[None, None]:
    name = request.path_params.get("job_name") or request.path_params.get("name") or ""
    async with load_of(request).list_of(request.app.state.service.jobs.store, name):
        yield


# For the dependencies of a route that reads the list of a job. It is over when the answer is made, not when it is sent.
WITH_LIST = Depends(_with_list, scope="function")
