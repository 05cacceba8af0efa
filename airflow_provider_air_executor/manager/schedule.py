"""Which task may start now, and how a job has ended: no files, no processes, no clock."""

from __future__ import annotations

import enum
import heapq
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from airflow_provider_air_executor.engines.capacity import Amounts
from airflow_provider_air_executor.jobs.models import JobState, Reason, RunIf, Task, TaskStatus
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, dropping


class Fate(enum.Enum):
    """What becomes of a task by the ends of those that it depends on."""

    WAITS = enum.auto()  # for the end of others
    STARTS = enum.auto()  # as soon as there is room
    FAILS = enum.auto()  # since one of them failed
    IS_SKIPPED = enum.auto()  # since none of them failed


ENDS = (Fate.FAILS, Fate.IS_SKIPPED)  # without an attempt


class TaskGraph:
    """The tasks of one job that can start, in the order of the list; those apart that need other things.

    Each change costs what it touches, not the length of the list. The tasks must have been checked
    (:func:`~airflow_provider_air_executor.jobs.models.checking_task_list`).

    :param tasks: all tasks of the job, by their ids; :meth:`add` takes them in.
    :param is_in_order: whether a task must not start before an earlier one that can, whatever they need.
    """

    def __init__(self, tasks: Mapping[str, Task], *, is_in_order: bool = False) -> None:
        self._tasks = tasks
        self._is_in_order = is_in_order
        self._position: dict[str, int] = {}
        self._ids: list[str] = []
        self._dependents: dict[str, list[str]] = {}
        self._missing: dict[str, int] = {}
        self._ready: dict[Amounts | None, list[int]] = {}  # heaps, by what their tasks need; none is empty
        self._is_ready: set[int] = set()

    def dropping(self) -> Pieces[None]:
        """Release all memory; the graph is not needed any more."""
        self.drop_ready()
        for part in (self._position, self._ids, self._dependents, self._missing):
            yield from dropping(part)

    def beginning_anew(self) -> Pieces[None]:
        """Forget which tasks can start, until :meth:`add` adds them again. Their positions stay."""
        self.drop_ready()
        before = self._dependents, self._missing
        self._dependents, self._missing = {}, {}
        for part in before:
            yield from dropping(part)

    def add(self, task: Task, *, is_delayed: bool = False) -> Fate:
        """Add a task; one that is not known comes behind all others.

        :param is_delayed: whether it is not to start yet; :meth:`add_ready` lets it.
        """
        if task.id not in self._position:
            self._position[task.id] = len(self._ids)
            self._ids.append(task.id)
        missing = {name for name in task.dependencies if not self._is_met(task, name)}
        for name in missing:
            self._dependents.setdefault(name, []).append(task.id)
        self._missing[task.id] = len(missing)
        if is_delayed or task.status is not TaskStatus.PENDING:
            return Fate.WAITS
        if not missing:
            return self._decide(task)
        has_failed = task.run_if is None and any(self._has_failed(name) for name in missing)
        return Fate.FAILS if has_failed else Fate.WAITS

    def _is_met(self, task: Task, dependency: str) -> bool:
        """Whether a task need not wait for one that it depends on."""
        status = self._tasks[dependency].status
        return status is TaskStatus.COMPLETED or (task.run_if is not None and status.is_terminal)

    def _decide(self, task: Task) -> Fate:
        """What becomes of a task that waits for no other one. One that can start is among those then."""
        if task.status is not TaskStatus.PENDING:
            return Fate.WAITS
        if task.run_if is RunIf.ANY_FAILED and not any(self._has_failed(name) for name in task.dependencies):
            return Fate.IS_SKIPPED
        self.add_ready(task.id)
        return Fate.STARTS

    def _has_failed(self, task_id: str) -> bool:
        return self._tasks[task_id].status is TaskStatus.FAILED

    def withdraw(self, task_id: str) -> None:
        """Take back the task that was added last."""
        position = self._position.pop(task_id)
        self._ids.pop()
        if position in self._is_ready:
            self._is_ready.discard(position)
            needs = self._needs(task_id)
            left = [other for other in self._ready.pop(needs) if other != position]
            if left:
                heapq.heapify(left)
                self._ready[needs] = left
        del self._missing[task_id]
        for name in set(self._tasks[task_id].dependencies):
            if task_id in self._dependents.get(name, ()):
                self._dependents[name].remove(task_id)

    def position(self, task_id: str) -> int:
        """The position of a task in the list."""
        return self._position[task_id]

    @property
    def has_ready(self) -> bool:
        """Whether there is a task that can start."""
        return bool(self._ready)

    @property
    def number_ready(self) -> int:
        """How many tasks can start."""
        return sum(map(len, self._ready.values()))

    @property
    def needs(self) -> Collection[Amounts | None]:
        """What those need that can start; each comes once."""
        return self._ready.keys()

    def _needs(self, task_id: str) -> Amounts | None:
        """What a task needs that may let it wait while others start; None: nothing."""
        resources = self._tasks[task_id].resources
        return None if resources is None or self._is_in_order else Amounts.of(resources)

    def first_ready(self, needs: Amounts | None = None) -> int | None:
        """The position of the first task that can start, of those that need this; None if there is none.

        Those that have ended meanwhile, by a request, are dropped.
        """
        heap = self._ready.get(needs, [])
        while heap and self._tasks[self._ids[heap[0]]].status is not TaskStatus.PENDING:
            self._is_ready.discard(heapq.heappop(heap))
            if not heap:
                del self._ready[needs]
        return heap[0] if heap else None

    def task_at(self, position: int) -> Task:
        """The task at a position of the list."""
        return self._tasks[self._ids[position]]

    def take_ready(self, needs: Amounts | None = None) -> str:
        """Take out the first task that can start, of those that need this."""
        heap = self._ready[needs]
        position = heapq.heappop(heap)
        if not heap:
            del self._ready[needs]
        self._is_ready.discard(position)
        return self._ids[position]

    def may_follow(self, task_id: str, before: str) -> bool:
        """Whether a task may start as soon as another one has ended: if they run in order, none is overtaken."""
        is_next = self._position[task_id] == self._position[before] + 1 and not self._tasks[before].retries
        return is_next or not self._is_in_order

    def add_ready(self, task_id: str) -> None:
        """Put a task among those that can start, if it is not there."""
        position = self._position[task_id]
        if position not in self._is_ready:
            self._is_ready.add(position)
            heapq.heappush(self._ready.setdefault(self._needs(task_id), []), position)

    def is_short(self, task_id: str) -> bool:
        """Whether the end of a task that completes reaches few others."""
        dependents = self._dependents.get(task_id, ())
        return len(dependents) <= ITEMS and not any(self._tasks[name].run_if for name in dependents)

    def ending(self, task_id: str) -> Iterator[tuple[str, Fate]]:
        """The tasks that waited for one which has ended, and what becomes of each."""
        has_failed = self._has_failed(task_id)
        for dependent in self._dependents.pop(task_id, ()):
            task = self._tasks[dependent]
            if has_failed and task.run_if is None:
                yield dependent, Fate.FAILS
            else:
                self._missing[dependent] -= 1
                yield dependent, Fate.WAITS if self._missing[dependent] else self._decide(task)

    def can_start(self, task_id: str) -> bool:
        """Whether a task that has not started waits for no other one."""
        return not self._missing[task_id]

    def drop_ready(self) -> None:
        """Let no task start any more."""
        self._ready.clear()
        self._is_ready.clear()


class Outcome(NamedTuple):
    """How a job has ended."""

    state: JobState
    reason: Reason | None
    error: str | None


def outcome(tasks: Iterable[Task]) -> Pieces[Outcome]:
    """How a job has ended whose tasks have all ended. ``completed`` only if every single one has completed."""
    total = failed = 0
    first: Task | None = None  # to blame
    for total, task in enumerate(tasks, 1):
        if task.status is not TaskStatus.COMPLETED:
            failed += 1
            if first is None or (first.reason is Reason.DEPENDENCY and task.reason is not Reason.DEPENDENCY):
                first = task
        if not total % (10 * ITEMS):
            yield False
    if not total:
        return Outcome(JobState.FAILED, Reason.INVALID, "the list of tasks is empty")
    if first is None:
        return Outcome(JobState.COMPLETED, None, None)
    others = f"; {failed - 1} more of {total} tasks did not complete" if failed > 1 else ""
    return Outcome(
        JobState.FAILED, first.reason or Reason.INVALID, f"task {first.id}: {first.error or 'failed'}{others}"
    )


def resetting(tasks: Sequence[Task], chosen: Collection[str] | None = None) -> Pieces[list[Task]]:
    """The tasks for another run of their job: some are pending again.

    These are the chosen ones, those that failed because of them, and those that wait for the end of one of them,
    however it ends (:class:`~.models.RunIf`). What depends on such a one that had completed runs again, too.

    :param chosen: ids of tasks; default: of those that have not completed.
    """
    again = yield from _running_again(tasks, chosen)
    found = []
    for number, task in enumerate(tasks, 1):
        found.append(task.reset() if task.id in again else task)
        if not number % ITEMS:
            yield False
    return found


def _running_again(tasks: Sequence[Task], chosen: Collection[str] | None) -> Pieces[set[str]]:
    again: set[str] = set()
    has_conditions = False
    for number, task in enumerate(tasks, 1):
        if task.id in chosen if chosen is not None else task.status is not TaskStatus.COMPLETED:
            again.add(task.id)
        has_conditions = has_conditions or task.run_if is not None
        if not number % ITEMS:
            yield False
    if chosen is None and not has_conditions:  # all that failed is among them, and nothing else follows
        return again
    dependents = yield from _dependents_of(tasks)
    ended_anew = deque((task_id, False) for task_id in again)  # and whether it had completed
    number = 0
    while ended_anew:
        task_id, had_completed = ended_anew.popleft()
        for task in dependents.get(task_id, ()):
            number += 1
            if not number % ITEMS:
                yield False
            has_completed = task.status is TaskStatus.COMPLETED
            follows = task.run_if is not None or task.reason is Reason.DEPENDENCY or (has_completed and had_completed)
            if follows and task.id not in again:
                again.add(task.id)
                ended_anew.append((task.id, has_completed))
    return again


def _dependents_of(tasks: Iterable[Task]) -> Pieces[dict[str, list[Task]]]:
    """The tasks that depend on each task."""
    found: dict[str, list[Task]] = {}
    number = 0
    for task in tasks:
        for name in task.dependencies:
            found.setdefault(name, []).append(task)
            number += 1
            if not number % ITEMS:
                yield False
    return found
