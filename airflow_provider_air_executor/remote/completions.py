"""The ends of jobs of a server for a subscriber, over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator
from typing import Any

from airflow_provider_air_executor.exceptions import AirExecutorError, JobsAwayError
from airflow_provider_air_executor.jobs.interface import JobFilter
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.remote import records
from airflow_provider_air_executor.remote.events import Event, Follower
from airflow_provider_air_executor.remote.link import Link
from airflow_provider_air_executor.remote.transport import Ask, url_path

_REMEMBERED = 10_000  # ends that were delivered last
_AHEAD = 100  # ends that are taken from the connection before the first of them is delivered


class RemoteCompletions:
    """The ends of jobs; see :class:`~airflow_provider_air_executor.jobs.interface.Completions`.

    The server holds the subscriber's lock for this object, also over a connection that is made again. What it sends
    again then, since it does not know whether it has arrived, is not delivered again.
    """

    def __init__(self, link: Link, subscriber: str, wanted: JobFilter, *, formerly: str = "") -> None:
        self._link = link
        self._path = url_path("completions", subscriber)
        self._holder = os.urandom(16).hex()
        labels = [f"{name}={value}" for name, value in wanted.labels]
        self._params = {
            "holder": self._holder,
            "name": wanted.name,
            "label": labels,
            "state": list(wanted.states),
            "outlet": wanted.outlet,
            "formerly": formerly or None,
        }
        # By the job's name; also those that are acknowledged, which may be on their way once more.
        self._delivered: OrderedDict[str, dict[str, Any]] = OrderedDict()

    async def follow(self) -> AsyncGenerator[Job, None]:
        """Deliver each end, the oldest first, until the caller has had enough; it can be called once."""
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Job | AirExecutorError] = asyncio.Queue()
        room = threading.Semaphore(_AHEAD)
        is_over = threading.Event()

        def put(item: Job | AirExecutorError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        def take(event: Event | None) -> bool:
            if event is not None and event.kind == "job":
                job = records.parsed(Job, records.parsed_json(event.data))
                if self._is_new(job):
                    while not room.acquire(timeout=1.0):
                        if is_over.is_set():
                            return False
                    put(job)
            return not is_over.is_set()

        def refuse(error: AirExecutorError) -> bool:
            if not isinstance(error, JobsAwayError):  # which passes, and is said by the transport
                put(error)
            return not is_over.is_set()

        follower = Follower(self._link.transport, self._ask, on_open=lambda: None, on_event=take, on_broken=refuse)
        follower.start()
        try:
            while True:
                item = await arrived.get()
                if isinstance(item, AirExecutorError):
                    raise item
                room.release()
                yield item
        finally:
            is_over.set()
            follower.close()
            await asyncio.shield(asyncio.to_thread(self._give_back))

    def ack(self, job: Job) -> None:
        """Acknowledge an end: it has been dealt with."""
        self._link.send("POST", f"{self._path}/ack", {"job": records.identity_of(job)})

    def nack(self, job: Job) -> None:
        """Refuse an end: it is delivered once more."""
        self._delivered.pop(job.name, None)
        self._link.send("POST", f"{self._path}/nack", {"job": records.identity_of(job)}, holder=self._holder)

    def _ask(self) -> Ask:
        params = {name: value for name, value in self._params.items() if value is not None}
        return Ask("GET", self._path, params=params, headers={"Accept": "text/event-stream"})

    def _is_new(self, job: Job) -> bool:
        identity = records.identity_of(job)
        if self._delivered.get(job.name) == identity:
            return False
        self._delivered[job.name] = identity
        self._delivered.move_to_end(job.name)
        if len(self._delivered) > _REMEMBERED:
            self._delivered.popitem(last=False)
        return True

    def _give_back(self) -> None:
        """Let the next holder have the lock at once, and not only when this one is not heard of for a while."""
        with contextlib.suppress(AirExecutorError, OSError):
            Link(self._link.transport, 0.0).delete(self._path, holder=self._holder)
