"""Where jobs wait for resources of this machine: no files, no processes, no clock.

Entries whose next tasks need the same stand in one line, the first one in front. So what becomes free is compared with
one entry of each line, however many tasks wait.

A later entry may start before an earlier one that does not fit. But the first of a line may be overtaken so only
:data:`MOST_OVERTAKEN` times. What it needs is kept for it then: a later one starts only if all that it needs is still
there besides. Only starts count that take something of which there is too little for the first one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import NamedTuple
from weakref import WeakKeyDictionary

from airflow_provider_air_executor.engines.capacity import NOTHING, Amounts, Capacity
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.manager.active_job import ActiveJob

MOST_OVERTAKEN = 10


class Entry(NamedTuple):
    """The position in the queue of a job's tasks that need the same; the smallest is first."""

    priority: int  # the job's, negated
    created: float
    number: int  # the job's
    position: int  # of the first one of these tasks in the list of the job
    name: str
    needs: Amounts | None = None


class Waiting(NamedTuple):
    """An entry that waits, and its job."""

    entry: Entry
    job: ActiveJob

    def __lt__(self, other: object) -> bool:
        """Whether it comes before another one."""
        return isinstance(other, Waiting) and self.entry < other.entry

    @property
    def task(self) -> Task | None:
        """The task that waits; None if there is none any more."""
        position = self.job.graph.first_ready(self.entry.needs)
        return None if position is None else self.job.graph.task_at(position)


class Line:
    """Entries that wait for the same.

    :param needs: what each of them needs.
    """

    def __init__(self, needs: Amounts) -> None:
        self.needs = needs
        self.waiting: list[Waiting] = []  # a heap, which is not empty
        self.overtaken = 0  # how often the first one was

    @property
    def first(self) -> Waiting:
        """The first one."""
        return self.waiting[0]

    @property
    def is_kept_for(self) -> bool:
        """Whether what it needs is kept for the first one."""
        return self.overtaken >= MOST_OVERTAKEN and not self.first.job.holds


class Lines:
    """All lines.

    :param capacity: what this machine has, and has left.
    """

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._lines: dict[Amounts, Line] = {}
        # How often those were overtaken that have left their line for a while.
        self._overtaken: WeakKeyDictionary[ActiveJob, dict[Amounts, int]] = WeakKeyDictionary()

    def __bool__(self) -> bool:
        """Whether somebody waits."""
        return bool(self._lines)

    def __iter__(self) -> Iterator[Line]:
        """The lines, in no order."""
        return iter(self._lines.values())

    def add(self, entry: Entry, job: ActiveJob, needs: Amounts) -> None:
        """An entry waits for what the next task of its job needs."""
        line = self._lines.get(needs)
        if line is None:
            line = self._lines[needs] = Line(needs)
        heapq.heappush(line.waiting, Waiting(entry, job))
        self._remember(line)

    def _remember(self, line: Line) -> None:
        """The first one of a line may have been there before."""
        before = self._overtaken.get(line.first.job)
        if before:
            line.overtaken = max(line.overtaken, before.pop(line.needs, 0))

    def pop(self, line: Line) -> Entry:
        """Take out the first one of a line."""
        entry = heapq.heappop(line.waiting).entry
        if not line.waiting:
            del self._lines[line.needs]
        return entry

    def dropping_outdated(self) -> Iterator[Entry]:
        """Take out the first ones whose jobs do not wait any more, or for something else.

        A job that runs as many tasks as it may does not wait either: the one behind it would wait for it in vain. It
        comes again when one of its tasks has ended.
        """
        for line in list(self._lines.values()):
            while line.waiting and not (line.first.job.can_start and _needs(line.first.task) == line.needs):
                self._overtaken.setdefault(line.first.job, {})[line.needs] = line.overtaken
                yield self.pop(line)
                line.overtaken = 0
                if line.waiting:
                    self._remember(line)

    def next(self) -> Line | None:
        """The line of the first entry, over all, for which there is enough; None if there is none."""
        fitting = [line for line in self._lines.values() if self._can_go(line)]
        if not fitting:
            return None
        if not any(line.is_kept_for for line in self._lines.values()):
            return min(fitting, key=_first)
        kept = NOTHING
        for line in sorted(self._lines.values(), key=_first):
            if self._can_go(line, kept):
                return line
            if line.is_kept_for:
                kept = kept.plus(line.needs)
        return None

    def _can_go(self, line: Line, kept: Amounts = NOTHING) -> bool:
        return line.first.job.can_start and self._has(line.needs, kept)

    def _has(self, needs: Amounts, kept: Amounts) -> bool:
        """Whether there is so much; also if there never will be, so that it is refused."""
        return self.capacity.has(needs, kept) or self.capacity.can_never_have(needs)

    def allows(self, entry: Entry, needs: Amounts) -> bool:
        """Whether there is enough for an entry, besides what is kept for earlier ones."""
        kept = NOTHING
        for line in self._lines.values():
            if line.is_kept_for and line.first.entry < entry:
                kept = kept.plus(line.needs)
        return self._has(needs, kept)

    def has_started(self, entry: Entry, needs: Amounts) -> None:
        """An entry has taken what it needs. Those that it has overtaken may not be overtaken much longer."""
        for line in self._lines.values():
            if line.first.entry < entry:
                lacking = self.capacity.free.lacks(line.needs)
                line.overtaken += any(getattr(needs, name) for name in lacking)
            elif line.needs == needs:
                line.overtaken = 0  # it was the first of this line


def _first(line: Line) -> Entry:
    return line.first.entry


def _needs(task: Task | None) -> Amounts | None:
    return None if task is None else Amounts.of(task.resources)
