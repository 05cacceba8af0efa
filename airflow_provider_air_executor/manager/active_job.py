"""One job while the manager runs it, in memory: no files, no processes."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.jobs import models
from airflow_provider_air_executor.jobs.files import Stamp
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, RunIf, Task, TaskStatus, printable, utc_now
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, dropping
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.manager.schedule import ENDS, Fate, TaskGraph

_SNAPSHOT_SECONDS = 0.25  # between two snapshots of a job's tasks at least,
_SNAPSHOT_SHARE = 20  # and so many times what the last one took


class Cause(NamedTuple):
    """Why a job is stopped, or an attempt is killed."""

    reason: Reason
    error: str
    spares_always: bool = False  # whether tasks still run whose `run_if` is `always`

    def stops(self, task: Task) -> bool:
        """Whether this task must not run any more if its job is stopped for this."""
        return not (self.spares_always and task.run_if is RunIf.ALWAYS)


CANCELLED = Cause(Reason.CANCELLED, "cancelled")


class Hold(enum.Enum):
    """Why no task of a job may start for the moment."""

    REATTACH = enum.auto()  # the attempts of an earlier manager are being adopted
    ADD_TASKS = enum.auto()  # tasks are being added; the next manager would not know of what has started
    CANCEL_TASKS = enum.auto()  # tasks are cancelled; the next manager would not know it of those that have ended
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
        self.graph = TaskGraph(self.tasks, is_in_order=(job.max_parallel_tasks or 1) == 1)
        self.running: dict[Attempt, Cause | None] = {}  # and why it is being killed, if it is
        self.ahead: set[Attempt] = set()  # those of them that start when another one ends
        self.delayed: set[str] = set()  # tasks that are pending and must not start yet
        self.holds: set[Hold] = set()
        self.stopping: Cause | None = None  # why nothing more is started
        self.is_dirty = False  # whether the tasks have changed since the last snapshot
        self._unfinished = 0

    @property
    def room(self) -> int:
        """How many more of its tasks may run."""
        return (self.job.max_parallel_tasks or 1) - len(self.running) + len(self.ahead)

    @property
    def can_start(self) -> bool:
        """Whether one of its tasks may start now, as far as the job itself is concerned."""
        has_room = self.room > 0 and not self.holds
        return self.graph.has_ready and has_room and (self.stopping is None or self._has_ended(self.stopping))

    def release(self, attempt: Attempt) -> Cause | None:
        """An attempt does not run any more; why it was being killed, if it was."""
        self.ahead.discard(attempt)
        return self.running.pop(attempt)

    def _has_ended(self, stopping: Cause) -> bool:
        """Whether what is killed for this has ended, and something else may start."""
        return stopping.spares_always and all(cause is None for cause in self.running.values())

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
                cancel_again_requested_at=None,
                keep_failed=False,
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
                status=TaskStatus.RUNNING, attempt=attempt.number, started_at=started_at, completed_at=None, usage=None
            )
        )

    def locate(self, attempt: Attempt, where: str) -> None:
        """It is known where an attempt is."""
        self._put(self.tasks[attempt.task_id].evolve(where=where))

    def say_what_for(self, task_id: str, why: str) -> None:
        """A task that can start waits for something."""
        if self.tasks[task_id].where != why:
            self._put(self.tasks[task_id].evolve(where=why))

    def measure(self, attempt: Attempt, usage: Usage) -> None:
        """It is known what an attempt has used that has failed."""
        self._put(self.tasks[attempt.task_id].evolve(usage=usage))

    def complete(self, task_id: str, ended_at: datetime, usage: Usage | None = None) -> Pieces[None]:
        """The command of a task has ended with exit code 0.

        :param usage: what it has used, if that is known.
        :return: work that is to be done next: the tasks that depend on it come nearer to their start.
        """
        task = self.tasks[task_id]
        self._put(task.evolve(status=TaskStatus.COMPLETED, completed_at=ended_at, exit_code=0, usage=usage))
        return self._spreading([task_id])

    def fail(self, task_id: str, cause: Cause, ended: Ended | None = None) -> Pieces[None]:
        """A task has failed for good.

        :param ended: how its last attempt has ended, if there was one.
        :return: work that is to be done next: the tasks that depend on it fail, too, or come nearer to their start.
        """
        self._fail(task_id, cause, ended)
        return self._spreading([task_id])

    def _spreading(self, ended: Iterable[str]) -> Pieces[None]:
        """Let the ends of tasks take effect on those that depend on them, and theirs on the next ones."""
        waiting, number = deque(ended), 0
        while waiting:
            task_id = waiting.popleft()
            for dependent, fate in self.graph.ending(task_id):
                if fate in ENDS and self._end_by(fate, dependent):
                    waiting.append(dependent)
                number += 1
                if not number % ITEMS:
                    yield False

    def _end_by(self, fate: Fate, task_id: str) -> bool:
        """Let a task end without an attempt; False if it has ended before."""
        task = self.tasks[task_id]
        if task.status.is_terminal:
            return False
        if fate is Fate.FAILS:
            failed = next(name for name in task.dependencies if self.tasks[name].status is TaskStatus.FAILED)
            self._fail(task_id, _dependency_failed(self.tasks[failed]))
        else:
            self._put(task.evolve(status=TaskStatus.COMPLETED, reason=Reason.SKIPPED, completed_at=utc_now()))
        return True

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
        """Start nothing more, unless the cause spares it.

        :return: work that is to be done next: the tasks that have not started fail.
        """
        self.stopping = cause
        self.graph.drop_ready()
        return self._failing_pending()

    def _failing_pending(self) -> Pieces[None]:
        failed, spares = [], False
        for number, task in enumerate(self.tasks.values(), 1):
            if self._fail_if_refused(task):
                failed.append(task.id)
            elif task.status is TaskStatus.PENDING:
                spares = True
                if self.graph.can_start(task.id) and task.id not in self.delayed:
                    self.graph.add_ready(task.id)
            if not number % ITEMS:
                yield False
        if spares:
            yield from self._spreading(failed)

    def cancel_task(self, task_id: str, now: datetime) -> Pieces[None]:
        """The end of a task was requested. If it runs, it is to be killed.

        :return: work that is to be done next: it fails if it has not started, and so do those that depend on it.
        """
        task = self.tasks[task_id]
        if not task.status.is_terminal:
            self._put(task.evolve(cancel_requested_at=now))
        return self.fail(task_id, CANCELLED) if task.status is TaskStatus.PENDING else self._spreading(())

    def refusal(self, task: Task) -> Cause | None:
        """Why a task must not start any more; None if it may."""
        if task.cancel_requested_at is not None:
            return CANCELLED
        return self.stopping if self.stopping is not None and self.stopping.stops(task) else None

    def _fail_if_refused(self, task: Task) -> bool:
        cause = self.refusal(task)
        if cause is None or task.status is not TaskStatus.PENDING:
            return False
        self._fail(task.id, cause)
        return True

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
        ended = []
        for number, task in enumerate(added, 1):
            if not number % ITEMS:
                yield False
            is_over = self._fail_if_refused(self.tasks[task.id])
            fate = self.graph.add(self.tasks[task.id])
            if is_over or (fate in ENDS and self._end_by(fate, task.id)):
                ended.append(task.id)
        yield from self._spreading(ended)

    def withdraw(self, added: Sequence[Task]) -> None:
        """Take back tasks that were added a moment ago, since they could not be written."""
        for task in reversed(added):
            self._unfinished -= not self.tasks[task.id].status.is_terminal
            self.graph.withdraw(task.id)
            del self.tasks[task.id]

    def _put(self, task: Task) -> None:
        before = self.tasks[task.id].status
        self._unfinished += before.is_terminal - task.status.is_terminal
        if task.where is not None and before is TaskStatus.PENDING and task.status is not before:
            task = task.evolve(where=None)  # it does not wait any more
        self.tasks[task.id] = task
        self.is_dirty = True

    def building_graph(self) -> Pieces[None]:
        """Find out anew which tasks can start. Some may end meanwhile; none may be added."""
        yield from self.graph.beginning_anew()
        ended = []
        for number, task in enumerate(self.tasks.values(), 1):
            is_over = self._fail_if_refused(task)
            fate = self.graph.add(self.tasks[task.id], is_delayed=task.id in self.delayed)
            if is_over or (fate in ENDS and self._end_by(fate, task.id)):
                ended.append(task.id)
            if not number % ITEMS:
                yield False
        yield from self._spreading(ended)


def _dependency_failed(failed: Task) -> Cause:
    """Why a task fails that depends on this one: because of the first one that failed, if it is known."""
    is_first = failed.reason is not Reason.DEPENDENCY or not failed.error
    error = f"not started, because task {failed.id!r} failed" if is_first else failed.error
    return Cause(Reason.DEPENDENCY, error or "")
