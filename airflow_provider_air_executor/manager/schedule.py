"""Which task may start now, and how a job has ended: no files, no processes, no clock."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from airflow_provider_air_executor.jobs.models import JobState, Reason, Task, TaskStatus


class TaskGraph:
    """The tasks of one job that can start, in the order of the list.

    Each change costs what it touches, not the length of the list. The tasks must have been checked
    (:func:`~airflow_provider_air_executor.jobs.models.check_task_list`).

    :param tasks: the tasks of the job.
    :param delayed: ids of tasks that are not to start yet; :meth:`add_ready` lets them.
    """

    def __init__(self, tasks: Sequence[Task], delayed: Collection[str] = ()) -> None:
        self._position = {task.id: position for position, task in enumerate(tasks)}
        self._ids = [task.id for task in tasks]
        self._dependents: dict[str, list[str]] = {}
        self._missing: dict[str, int] = {}
        self._ready: list[int] = []
        self._is_ready: set[int] = set()
        completed = {task.id for task in tasks if task.status is TaskStatus.COMPLETED}
        for task in tasks:
            missing = {name for name in task.dependencies if name not in completed}
            for name in missing:
                self._dependents.setdefault(name, []).append(task.id)
            self._missing[task.id] = len(missing)
            if task.status is TaskStatus.PENDING and not missing and task.id not in delayed:
                self.add_ready(task.id)

    def position(self, task_id: str) -> int:
        """The place of a task in the list."""
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

    def complete(self, task_id: str) -> None:
        """Let the dependents of a completed task come nearer to their start."""
        for dependent in self._dependents.pop(task_id, ()):
            self._missing[dependent] -= 1
            if not self._missing[dependent]:
                self.add_ready(dependent)

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


def outcome(tasks: Iterable[Task]) -> Outcome:
    """How a job has ended whose tasks have all ended. ``completed`` only if every single one has completed."""
    tasks = list(tasks)
    if not tasks:
        return Outcome(JobState.FAILED, Reason.INVALID, "the list of tasks is empty")
    failed = [task for task in tasks if task.status is not TaskStatus.COMPLETED]
    if not failed:
        return Outcome(JobState.COMPLETED, None, None)
    culprits = [task for task in failed if task.reason is not Reason.DEPENDENCY] or failed
    first = culprits[0]
    others = f"; {len(failed) - 1} more of {len(tasks)} tasks did not complete" if len(failed) > 1 else ""
    return Outcome(
        JobState.FAILED, first.reason or Reason.INVALID, f"task {first.id}: {first.error or 'failed'}{others}"
    )


def reset_failed(tasks: Iterable[Task]) -> tuple[Task, ...]:
    """The tasks for another run of their job: what has not completed is pending again."""
    return tuple(
        task
        if task.status is TaskStatus.COMPLETED
        else task.evolve(
            status=TaskStatus.PENDING,
            started_at=None,
            completed_at=None,
            error=None,
            exit_code=None,
            reason=None,
            where=None,
            attempts_before=task.attempt,
        )
        for task in tasks
    )
