"""Publishes what the manager says of itself, see :mod:`~airflow_provider_air_executor.jobs.manager_info`."""

from __future__ import annotations

import json
import os
import time

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.jobs import files, manager_info
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo, OldestWaiting, Slots
from airflow_provider_air_executor.jobs.models import JobState, utc_now
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.timers import RETRY_SECONDS, Seldom

_SECONDS = 1.0  # between two looks,
_SHARE = 100  # and so many times what the last one took: it grows with the number of active jobs


class InfoPublisher:
    """Publishes ``manager.info.json`` when something has changed, once a second at most."""

    def __init__(self, shared: Shared) -> None:
        self._jobs, self._queue = shared.jobs, shared.queue
        self._engines, self._timers = shared.engines, shared.timers
        self._path = manager_info.path_of(shared.store)
        self._started_at = utc_now()
        self.latest: ManagerInfo | None = None  # other threads may read it
        self._published: ManagerInfo | None = None
        self._looks = Seldom(shared.timers)

    def publish_info(self) -> None:
        """Publish what has changed, or set a timer if it is too early. What cannot be written is written later."""
        if not self._looks.is_due():
            return
        began = time.perf_counter()
        info = self.latest = self.info()
        self._looks.rest(max(_SECONDS, _SHARE * (time.perf_counter() - began)))
        if info == self._published:
            return
        try:
            files.publish(self._path, json.dumps(info.as_json()).encode())
        except OSError:  # while the file system is away, it cannot be read either
            self._timers.wake(RETRY_SECONDS)
        else:
            self._published = info

    def info(self) -> ManagerInfo:
        """How the manager stands now."""
        states, queued = dict.fromkeys((JobState.WAITING, JobState.WORKING), 0), 0
        oldest: OldestWaiting | None = None
        for job in self._jobs.active.values():
            states[job.job.state] += 1
            if not job.can_start:
                continue
            queued += min(job.graph.number_ready, job.room)
            since = job.job.updated_at or job.job.created_at
            if job.job.state is JobState.WAITING and since and (oldest is None or since < oldest.since):
                oldest = OldestWaiting(job.name, since)
        return ManagerInfo(
            pid=os.getpid(),
            version=__version__,
            started_at=self._started_at,
            paused=self._queue.is_paused,
            host=os.uname().nodename,
            slots={name: Slots(*slots) for name, slots in self._engines.slots.items()},
            capacity=self._engines.holdings.capacity.shares(),
            queued=queued,
            oldest_waiting=oldest,
            jobs={state.value: number for state, number in states.items()},
            counters=dict(self._jobs.counters),
            idle=not self._jobs.active,
        )
