"""Which job may start its next task: no files, no processes, no clock."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

from airflow_provider_air_executor.engines.capacity import Amounts, Capacity
from airflow_provider_air_executor.engines.protocol import LOCAL
from airflow_provider_air_executor.manager.active_job import ActiveJob
from airflow_provider_air_executor.manager.lines import Entry, Lines


class ReadyQueue:
    """Jobs with a task that can start: the highest priority first, then the oldest.

    A job is blocked while the engine of its next task has no room. It keeps its position; jobs behind it with tasks for
    other engines start before it. Tasks that need resources of this machine wait apart, see :mod:`.lines`: others of
    their job, and other jobs, may start before them.

    :param has_room: whether an engine can take one more attempt, by the engine's name.
    :param capacity: the resources of this machine.
    """

    def __init__(self, has_room: Callable[[str], bool], capacity: Capacity) -> None:
        self._has_room = has_room
        self._entries: list[Entry] = []
        self._blocked: dict[str, list[Entry]] = {}  # by the name of the engine
        self.lines = Lines(capacity)
        self._queued: dict[str, set[Amounts | None]] = {}  # what the queued tasks of a job need
        self._order: dict[str, int] = {}  # the numbers of the queued jobs
        self._numbers = itertools.count()
        self.is_paused = False  # whether no task is to start

    def add(self, job: ActiveJob) -> None:
        """Add those tasks of a job that can start, unless they are in the queue."""
        queued = self._queued.get(job.name, ())
        new = [needs for needs in job.graph.needs if needs not in queued]
        for needs in new if new and job.can_start else ():
            self._add(job, needs)

    def _add(self, job: ActiveJob, needs: Amounts | None) -> None:
        position = job.graph.first_ready(needs)
        if position is None:
            return
        created = job.job.created_at.timestamp() if job.job.created_at else 0.0
        queued = self._queued.get(job.name)
        if queued is None:
            queued = self._queued[job.name] = set()
            self._order[job.name] = next(self._numbers)
        queued.add(needs)
        entry = Entry(-job.job.priority, created, self._order[job.name], position, job.name, needs)
        heapq.heappush(self._entries, entry)

    def pop(self) -> Entry | None:
        """Take the first entry that is not blocked; its tasks count as queued until :meth:`release`.

        :return: None if there is none, or the queue is paused.
        """
        if self.is_paused:
            return None
        may_have_resources = bool(self.lines) and self._has_room(LOCAL)
        for entry in self.lines.dropping_outdated() if may_have_resources else ():
            heapq.heappush(self._entries, entry)
        found = self._entries or None
        for engine, entries in self._blocked.items():
            if entries and (found is None or entries[0] < found[0]) and self._has_room(engine):
                found = entries
        line = self.lines.next() if may_have_resources else None
        if line is not None and (found is None or line.first.entry < found[0]):
            return self.lines.pop(line)
        return heapq.heappop(found) if found is not None else None

    def put_back(self, entry: Entry, job: ActiveJob) -> None:
        """Put back an entry if its job has another task that can start and needs the same; otherwise release it."""
        needs = job.graph.needs
        if not job.can_start or entry.needs not in needs:
            self.release(entry)
            return
        if len(needs) > 1:  # the order among them counts
            entry = entry._replace(position=job.graph.first_ready(entry.needs) or 0)
        heapq.heappush(self._entries, entry)

    def may_go_ahead(self, name: str) -> bool:
        """Whether a task of this job may take the next room that there is: no other job waits for its turn."""
        return not self.is_paused and not self.lines and len(self._queued) == (name in self._queued)

    def block(self, entry: Entry, engine: str) -> None:
        """Put back an entry whose job waits until an engine has room."""
        heapq.heappush(self._blocked.setdefault(engine, []), entry)

    def release(self, entry: Entry) -> None:
        """The job of an entry has no other task that can start and needs the same; :meth:`add` queues it again."""
        queued = self._queued.get(entry.name)
        if queued is not None:
            queued.discard(entry.needs)
            if not queued:
                del self._queued[entry.name], self._order[entry.name]
