"""Which job may start its next task: no files, no processes, no clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import NamedTuple

from airflow_provider_air_executor.manager.active_job import ActiveJob


class Entry(NamedTuple):
    """The position of a job in the queue; the smallest is first."""

    priority: int  # the job's, negated
    created: float
    number: int
    name: str


class ReadyQueue:
    """Jobs with a task that can start: the highest priority first, then the oldest.

    A job is blocked while the engine of its next task has no room. It keeps its position; jobs behind it with tasks for
    other engines start before it.

    :param has_room: whether an engine can take one more attempt, by the engine's name.
    """

    def __init__(self, has_room: Callable[[str], bool]) -> None:
        self._has_room = has_room
        self._entries: list[Entry] = []
        self._blocked: dict[str, list[Entry]] = {}  # by the name of the engine
        self._names: set[str] = set()
        self._numbers = itertools.count()
        self.is_paused = False  # whether no task is to start

    def add(self, job: ActiveJob) -> None:
        """Add a job if one of its tasks can start, unless it is in the queue."""
        if job.name not in self._names and job.can_start:
            created = job.job.created_at.timestamp() if job.job.created_at else 0.0
            self._names.add(job.name)
            self.put_back(Entry(-job.job.priority, created, next(self._numbers), job.name))

    def pop(self) -> Entry | None:
        """Take the first entry that is not blocked; its job counts as queued until :meth:`release`.

        :return: None if there is none, or the queue is paused.
        """
        if self.is_paused:
            return None
        found = self._entries or None
        for engine, entries in self._blocked.items():
            if entries and (found is None or entries[0] < found[0]) and self._has_room(engine):
                found = entries
        return heapq.heappop(found) if found is not None else None

    def put_back(self, entry: Entry) -> None:
        """Put back an entry whose job has another task that can start."""
        heapq.heappush(self._entries, entry)

    def block(self, entry: Entry, engine: str) -> None:
        """Put back an entry whose job waits until an engine has room."""
        heapq.heappush(self._blocked.setdefault(engine, []), entry)

    def release(self, entry: Entry) -> None:
        """The job of an entry has no other task that can start; :meth:`add` queues it again."""
        self._names.discard(entry.name)
