"""Which task may start now, and how a job has ended: no files, no processes, no clock."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from airflow_provider_air_executor.jobs.models import JobState, Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, dropping


class TaskGraph:
    """The tasks of one job that can start, in the order of the list.

    Each change costs what it touches, not the length of the list. The tasks must have been checked
    (:func:`~airflow_provider_air_executor.jobs.models.checking_task_list`).

    :param tasks: all tasks of the job, by their ids; :meth:`add` takes them in.
    """

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self._tasks = tasks
        self._position: dict[str, int] = {}
        self._ids: list[str] = []
        self._dependents: dict[str, list[str]] = {}
        self._missing: dict[str, int] = {}
        self._ready: list[int] = []
        self._is_ready: set[int] = set()

    def dropping(self) -> Pieces[None]:
        """Release all memory; the graph is not needed any more."""
        for part in (self._position, self._ids, self._dependents, self._missing):
            yield from dropping(part)

    def beginning_anew(self) -> Pieces[None]:
        """Forget which tasks can start, until :meth:`add` adds them again. Their positions stay."""
        self.drop_ready()
        before = self._dependents, self._missing
        self._dependents, self._missing = {}, {}
        for part in before:
            yield from dropping(part)

    def add(self, task: Task, *, is_delayed: bool = False) -> None:
        """Add a task; one that is not known comes behind all others.

        :param is_delayed: whether it is not to start yet; :meth:`add_ready` lets it.
        """
        if task.id not in self._position:
            self._position[task.id] = len(self._ids)
            self._ids.append(task.id)
        missing = {name for name in task.dependencies if self._tasks[name].status is not TaskStatus.COMPLETED}
        for name in missing:
            self._dependents.setdefault(name, []).append(task.id)
        self._missing[task.id] = len(missing)
        if task.status is TaskStatus.PENDING and not missing and not is_delayed:
            self.add_ready(task.id)

    def withdraw(self, task_id: str) -> None:
        """Take back the task that was added last."""
        position = self._position.pop(task_id)
        self._ids.pop()
        if position in self._is_ready:
            self._is_ready.discard(position)
            self._ready.remove(position)
            heapq.heapify(self._ready)
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

    def take_ready(self) -> str:
        """Take out the first task that can start."""
        position = heapq.heappop(self._ready)
        self._is_ready.discard(position)
        return self._ids[position]

    def add_ready(self, task_id: str) -> None:
        """Put a task among those that can start, if it is not there."""
        position = self._position[task_id]
        if position not in self._is_ready:
            self._is_ready.add(position)
            heapq.heappush(self._ready, position)

    def number_of_dependents(self, task_id: str) -> int:
        """How many tasks wait for this one, which has not completed yet."""
        return len(self._dependents.get(task_id, ()))

    def completing(self, task_id: str) -> Pieces[None]:
        """Let the dependents of a completed task come nearer to their start."""
        for number, dependent in enumerate(self._dependents.pop(task_id, ()), 1):
            self._missing[dependent] -= 1
            if not self._missing[dependent]:
                self.add_ready(dependent)
            if not number % ITEMS:
                yield False

    def drop_ready(self) -> None:
        """Let no task start any more."""
        self._ready.clear()
        self._is_ready.clear()

    def descendants(self, task_id: str, seen: set[str] | None = None) -> Iterator[str]:
        """Every task that depends on this one, directly or through others.

        :param seen: those that are passed over, and what depends on them; what is found is added.
        """
        seen = set() if seen is None else seen
        stack = [task_id]
        while stack:
            for dependent in self._dependents.get(stack.pop(), ()):
                if dependent not in seen:
                    seen.add(dependent)
                    stack.append(dependent)
                    yield dependent


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


def resetting_failed(tasks: Iterable[Task]) -> Pieces[list[Task]]:
    """The tasks for another run of their job: those that have not completed are pending again."""
    found = []
    for number, task in enumerate(tasks, 1):
        found.append(task if task.status is TaskStatus.COMPLETED else task.reset())
        if not number % ITEMS:
            yield False
    return found
