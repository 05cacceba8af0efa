"""One job while the manager runs it, in memory: no files, no processes."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.jobs import models
from airflow_provider_air_executor.jobs.files import Stamp
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, TaskStatus, printable, utc_now
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, dropping
from airflow_provider_air_executor.manager.schedule import TaskGraph

_SNAPSHOT_SECONDS = 0.25  # between two snapshots of a job's tasks at least,
_SNAPSHOT_SHARE = 20  # and so many times what the last one took


class Cause(NamedTuple):
    """Why a job is stopped, or an attempt is killed."""

    reason: Reason
    error: str


class Hold(enum.Enum):
    """Why no task of a job may start for the moment."""

    REATTACH = enum.auto()  # the attempts of an earlier manager are being adopted
    ADD_TASKS = enum.auto()  # tasks are being added; the next manager would not know of what has started
    TROUBLE = enum.auto()  # a start has failed, since the files of the job cannot be written now


@dataclass
class OnDisk:
    """The state of the files of an active job as the manager knows it, and when it publishes them next."""

    job: Job  # what state.json holds, as it was read or published last
    directory: Stamp | None  # None: it is gone
    tasks: Stamp | None  # of the tasks.json that the manager has read or written
    # None, although there may be one: a manager that was killed may not have read the list that it had replaced.
    previous_tasks: Stamp | None = None
    all_pending: bool = True  # whether all its tasks were pending when they were read
    has_history: bool = False  # whether one of them had been started before
    state: Stamp | None = None
    may_have_changed: bool = True  # whether another process may have written or removed the files
    unreadable_since: float | None = None  # since when tasks.json has been half-written by someone else
    snapshot_seconds: float = 0.0  # that the last snapshot of the tasks took
    snapshot_due: bool = False  # whether a timer is set for the next snapshot
    state_due: float | None = None  # when state.json is published, on the monotonic clock

    @property
    def snapshot_interval(self) -> float:
        """Seconds that must lie between two snapshots."""
        return max(_SNAPSHOT_SECONDS, _SNAPSHOT_SHARE * self.snapshot_seconds)


class ActiveJob:
    """A job that has not ended.

    While it is active the tasks in memory are the truth, and :class:`JobFiles` publishes them. Work that takes longer
    the more tasks there are is done in pieces.

    :param job: the job as ``state.json`` has it.
    :param on_disk: its files.
    """

    def __init__(self, job: Job, on_disk: OnDisk) -> None:
        self.job = job
        self.name = job.name
        self.on_disk = on_disk
        self.tasks: dict[str, Task] = {}
        self.graph = TaskGraph(self.tasks)
        self.running: dict[Attempt, Cause | None] = {}  # and why it is being killed, if it is
        self.delayed: set[str] = set()  # tasks that are pending and must not start yet
        self.holds: set[Hold] = set()
        self.stopping: Cause | None = None  # why nothing more is started
        self.is_dirty = False  # whether the tasks have changed since the last snapshot
        self._unfinished = 0

    @property
    def can_start(self) -> bool:
        """Whether one of its tasks may start now, as far as the job itself is concerned."""
        return (
            self.graph.has_ready
            and self.stopping is None
            and not self.holds
            and len(self.running) < (self.job.max_parallel_tasks or 1)
        )

    @property
    def is_over(self) -> bool:
        """Whether all its tasks have ended."""
        return not self._unfinished and not self.running

    @property
    def state_is_changed(self) -> bool:
        """Whether the job has changed since ``state.json`` was read or published."""
        return self.job is not self.on_disk.job

    @property
    def has_news(self) -> bool:
        """Whether something is to be published or read."""
        disk = self.on_disk
        return (
            self.state_is_changed or disk.may_have_changed or (self.is_dirty and not disk.snapshot_due) or self.is_over
        )

    # -- the job as a whole --------------------------------------------------------------------------------

    def change_state(self, **changes: object) -> None:
        """Change the job; it is to be published then."""
        self.job = self.changed(**changes)

    def changed(self, **changes: object) -> Job:
        """The job with some changes.

        :raises AssertionError: if it cannot go from its state to the new one.
        """
        changed = self.job.evolve(updated_at=utc_now(), **changes)
        if changed.state is not self.job.state and not self.job.state.may_become(changed.state):
            raise AssertionError(f"job {self.name!r} cannot go from {self.job.state} to {changed.state}")
        return changed

    def begin_to_work(self) -> None:
        """The first task of a waiting job is about to be started, or the job ends without one."""
        if self.job.state is JobState.WAITING:
            self.change_state(
                state=JobState.WORKING,
                attempt=self.job.attempt + 1,
                started_at=None,
                cancel_requested_at=None,
                reason=None,
                error=None,
            )

    def taking(self, tasks: Iterable[Task]) -> Pieces[None]:
        """Have these tasks, as they were read, and no others."""
        disk = self.on_disk
        for number, task in enumerate(tasks, 1):
            self.tasks[task.id] = task
            self._unfinished += not task.status.is_terminal
            disk.all_pending = disk.all_pending and task.status is TaskStatus.PENDING
            disk.has_history = disk.has_history or not disk.all_pending or task.attempt > 0
            if not number % ITEMS:
                yield False
        yield from self.building_graph()

    def dropping(self) -> Pieces[None]:
        """Release all tasks; the job is not active any more."""
        yield from dropping(self.tasks)
        yield from self.graph.dropping()

    # -- tasks ---------------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt, started_at: datetime) -> None:
        """A task has started, or is found running."""
        self._put(
            self.tasks[attempt.task_id].evolve(
                status=TaskStatus.RUNNING, attempt=attempt.number, started_at=started_at, completed_at=None
            )
        )

    def locate(self, attempt: Attempt, where: str) -> None:
        """It is known where an attempt is."""
        self._put(self.tasks[attempt.task_id].evolve(where=where))

    def complete(self, task_id: str, ended_at: datetime) -> Pieces[None]:
        """The command of a task has ended with exit code 0.

        :return: work that is to be done next: the tasks that depend on it come nearer to their start.
        """
        self._put(self.tasks[task_id].evolve(status=TaskStatus.COMPLETED, completed_at=ended_at, exit_code=0))
        return self.graph.completing(task_id)

    def fail(self, task_id: str, cause: Cause, ended: Ended | None = None) -> Pieces[None]:
        """A task has failed for good.

        :param ended: how its last attempt has ended, if there was one.
        :return: work that is to be done next: all tasks that depend on it fail, too.
        """
        self._fail(task_id, cause, ended)
        return self._failing_dependents(task_id)

    def _failing_dependents(self, task_id: str, seen: set[str] | None = None) -> Pieces[None]:
        cause = _dependency_failed(task_id)
        for number, dependent in enumerate(self.graph.descendants(task_id, seen), 1):
            if not self.tasks[dependent].status.is_terminal:
                self._fail(dependent, cause)
            if not number % ITEMS:
                yield False

    def _fail(self, task_id: str, cause: Cause, ended: Ended | None = None) -> None:
        task = self.tasks[task_id]
        self._put(
            task.evolve(
                status=TaskStatus.FAILED,
                reason=cause.reason,
                error=printable(cause.error),
                exit_code=ended and ended.exit_code,
                completed_at=ended.ended_at if ended is not None else utc_now(),
            )
        )

    def put_back(self, attempt: Attempt, *, failed_at: datetime | None = None) -> None:
        """A task is pending again, and must not start yet.

        :param failed_at: when this attempt failed; None if its command was never started, and it does not count.
        """
        number = attempt.number if failed_at is not None else attempt.number - 1
        task = self.tasks[attempt.task_id]
        self._put(
            task.evolve(status=TaskStatus.PENDING, attempt=number, started_at=None, completed_at=failed_at, where=None)
        )
        self.delayed.add(task.id)

    def stop(self, cause: Cause) -> Pieces[None]:
        """Start nothing more.

        :return: work that is to be done next: the tasks that have not started fail.
        """
        self.stopping = cause
        self.graph.drop_ready()
        return self._failing_pending()

    def _failing_pending(self) -> Pieces[None]:
        for number, task_id in enumerate(self.tasks, 1):
            self.fail_if_stopped(task_id)
            if not number % ITEMS:
                yield False

    def fail_if_stopped(self, task_id: str) -> None:
        """Let a task fail if it has not started and its job is stopped."""
        if self.stopping is not None and self.tasks[task_id].status is TaskStatus.PENDING:
            self._fail(task_id, self.stopping)

    def adding(self, added: Sequence[Task]) -> Pieces[None]:
        """Append tasks.

        :raises InvalidJobError: if they do not fit the others.
        """
        yield from models.checking_ids(added)
        yield from models.checking_task_list(added, present=self.tasks)
        self.is_dirty = True
        for number, task in enumerate(added, 1):
            self.tasks[task.id] = task.fresh(self.name, task.created_at or utc_now())
            self._unfinished += 1
            if not number % ITEMS:
                yield False
        for number, task in enumerate(added, 1):
            self.graph.add(self.tasks[task.id])
            if not number % ITEMS:
                yield False
        if self.stopping is not None:
            self.graph.drop_ready()
        for number, task in enumerate(added, 1):
            if not number % ITEMS:
                yield False
            self.fail_if_stopped(task.id)
            failed = next((name for name in task.dependencies if self.tasks[name].status is TaskStatus.FAILED), None)
            if failed is not None and not self.tasks[task.id].status.is_terminal:
                self._fail(task.id, _dependency_failed(failed))
                yield from self._failing_dependents(task.id)

    def withdraw(self, added: Sequence[Task]) -> None:
        """Take back tasks that were added a moment ago, since they could not be written."""
        for task in reversed(added):
            self._unfinished -= not self.tasks[task.id].status.is_terminal
            self.graph.withdraw(task.id)
            del self.tasks[task.id]

    def _put(self, task: Task) -> None:
        before = self.tasks[task.id].status.is_terminal
        self._unfinished += before - task.status.is_terminal
        self.tasks[task.id] = task
        self.is_dirty = True

    def building_graph(self) -> Pieces[None]:
        """Find out anew which tasks can start. Some may end meanwhile; none may be added."""
        yield from self.graph.beginning_anew()
        failed = []
        for number, task in enumerate(self.tasks.values(), 1):
            self.graph.add(task, is_delayed=task.id in self.delayed)
            if task.status is TaskStatus.FAILED:
                failed.append(task.id)
            if not number % ITEMS:
                yield False
        seen: set[str] = set()
        for task_id in failed:
            if task_id not in seen:
                yield from self._failing_dependents(task_id, seen)


def _dependency_failed(task_id: str) -> Cause:
    return Cause(Reason.DEPENDENCY, f"not started, because task {task_id!r} failed")
