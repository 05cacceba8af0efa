"""One job while the manager runs it: its tasks in memory, and what of them is on disk."""

from __future__ import annotations

import contextlib
import time
from datetime import datetime
from pathlib import Path

from airflow_provider_air_executor.exceptions import CorruptFileError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import (
    Job,
    JobState,
    Reason,
    Task,
    TaskStatus,
    check_task_id,
    check_task_list,
    printable,
    utc_now,
)
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.runners.protocol import Attempt
from airflow_provider_air_executor.manager.schedule import TaskGraph, outcome

# Between two snapshots of a job's tasks lie at least so many seconds, and so many times what the last one took.
_SNAPSHOT_SECONDS = 0.25
_SNAPSHOT_SHARE = 20


class ActiveJob:
    """A job that has not ended.

    While it is active the tasks in memory are the truth. ``tasks.json`` is a snapshot of them, to which a running
    task may append; see :meth:`merge_foreign`.

    :param job: the job as it stands in ``state.json``.
    :param tasks: its tasks, which have been checked.
    :param tasks_stamp: the version of ``tasks.json`` they were read from.
    """

    def __init__(self, store: JobStore, job: Job, tasks: tuple[Task, ...], tasks_stamp: files.Stamp) -> None:
        self._store = store
        self.job = job
        self.tasks = {task.id: task for task in tasks}
        self.running: set[Attempt] = set()
        self.delayed: set[str] = set()  # tasks that must not start yet, though they are pending
        self.stopping: tuple[Reason, str] | None = None  # why nothing more is started
        self.is_held = False  # whether nothing more is started for the moment
        self.unreadable_since: float | None = None  # since when tasks.json has been half-written by someone
        self.state_stamp: files.Stamp | None = None
        self.may_have_changed = True  # whether somebody else may have written the files, or removed them
        self.state_is_changed = False  # whether state.json is still to be published
        self.state_due: float | None = None  # when it is, on the monotonic clock
        self.snapshot_due = False  # whether a timer is set for the next snapshot
        self._path = store.job_path(job.name)
        self._directory = files.stamp(self._path)
        self._tasks_path = store.tasks_path(job.name)
        self._previous_path = store.previous_tasks_path(job.name)
        self._tasks_stamp: files.Stamp | None = tasks_stamp
        # None, although there may be one: a manager that was killed may not have looked at what it had replaced.
        self._previous_stamp: files.Stamp | None = None
        self._snapshot_cost = 0.0
        self.is_dirty = False  # whether the tasks have changed since the last snapshot
        self._unfinished = 0
        self.graph = TaskGraph(())
        self.rebuild_graph()

    @property
    def name(self) -> str:
        """The name of the job."""
        return self.job.name

    @property
    def can_start(self) -> bool:
        """Whether one of its tasks may start now, as far as the job itself is concerned."""
        return self.graph.has_ready and not self.is_held and len(self.running) < (self.job.max_parallel_tasks or 1)

    @property
    def is_over(self) -> bool:
        """Whether all its tasks have ended."""
        return not self._unfinished and not self.running

    @property
    def snapshot_interval(self) -> float:
        """Seconds that must lie between two snapshots."""
        return max(_SNAPSHOT_SECONDS, _SNAPSHOT_SHARE * self._snapshot_cost)

    # -- tasks ---------------------------------------------------------------------------------------------

    def begin(self, attempt: Attempt, started_at: datetime) -> None:
        """A task has started, or is found running."""
        self._put(
            self.tasks[attempt.task_id].evolve(
                status=TaskStatus.RUNNING, attempt=attempt.number, started_at=started_at, completed_at=None
            )
        )
        self.running.add(attempt)

    def place(self, attempt: Attempt, where: str) -> None:
        """It is known where an attempt is."""
        self._put(self.tasks[attempt.task_id].evolve(where=where))

    def complete(self, attempt: Attempt, ended_at: datetime) -> None:
        """The command of a task has ended with exit code 0."""
        self.running.discard(attempt)
        task = self.tasks[attempt.task_id]
        self._put(task.evolve(status=TaskStatus.COMPLETED, completed_at=ended_at, exit_code=0))
        if self.stopping is None:
            self.graph.complete(task.id)

    def fail(self, task_id: str, reason: Reason, error: str, *, exit_code: int | None, ended_at: datetime) -> None:
        """A task has failed for good; so do all that depend on it."""
        self.running = {attempt for attempt in self.running if attempt.task_id != task_id}
        self._fail(task_id, reason, error, exit_code, ended_at)
        self._fail_dependents(task_id)

    def _fail_dependents(self, task_id: str, seen: set[str] | None = None) -> None:
        for dependent in self.graph.descendants(task_id, seen):
            if not self.tasks[dependent].status.is_terminal:
                error = f"not started, because task {task_id!r} failed"
                self._fail(dependent, Reason.DEPENDENCY, error, None, utc_now())

    def _fail(self, task_id: str, reason: Reason, error: str, exit_code: int | None, ended_at: datetime) -> None:
        task = self.tasks[task_id]
        self._put(
            task.evolve(
                status=TaskStatus.FAILED,
                reason=reason,
                error=printable(error),
                exit_code=exit_code,
                completed_at=ended_at,
            )
        )

    def put_back(self, attempt: Attempt, *, failed_at: datetime | None = None) -> None:
        """A task is pending again.

        :param failed_at: when this attempt failed; None if its command was never started, and it does not count.
        """
        self.running.discard(attempt)
        number = attempt.number if failed_at is not None else attempt.number - 1
        task = self.tasks[attempt.task_id]
        self._put(
            task.evolve(status=TaskStatus.PENDING, attempt=number, started_at=None, completed_at=failed_at, where=None)
        )
        self.delayed.add(task.id)

    def stop(self, reason: Reason, error: str) -> None:
        """Start nothing more; what has not started has failed."""
        self.stopping = (reason, error)
        self.graph.drop_ready()
        for task in list(self.tasks.values()):
            if task.status is TaskStatus.PENDING:
                self._fail(task.id, reason, error, None, utc_now())

    def add(self, added: tuple[Task, ...]) -> None:
        """Append tasks.

        :raises InvalidJobError: if they do not fit the others.
        """
        present = tuple(self.tasks.values())
        for task in added:
            check_task_id(task.id)
        check_task_list(added, present=present)
        for task in added:
            self.tasks[task.id] = task.evolve(
                job_name=self.name,
                status=TaskStatus.PENDING,
                created_at=task.created_at or utc_now(),
                started_at=None,
                completed_at=None,
                error=None,
                attempt=0,
                attempts_before=0,
                exit_code=None,
                reason=None,
                where=None,
            )
        self.is_dirty = True
        self.rebuild_graph()
        if self.stopping is not None:
            self.stop(*self.stopping)

    def withdraw(self, added: tuple[Task, ...]) -> None:
        """Take back tasks that were added a moment ago and could not be written down."""
        for task in added:
            del self.tasks[task.id]
        self.rebuild_graph()

    def _put(self, task: Task) -> None:
        before = self.tasks[task.id].status.is_terminal
        self._unfinished += before - task.status.is_terminal
        self.tasks[task.id] = task
        self.is_dirty = True

    def rebuild_graph(self) -> None:
        """Find out anew which tasks can start."""
        tasks = tuple(self.tasks.values())
        self.graph = TaskGraph(tasks, self.delayed)
        self._unfinished = sum(not task.status.is_terminal for task in tasks)
        seen: set[str] = set()
        for task in tasks:
            if task.status is TaskStatus.FAILED and task.id not in seen:
                self._fail_dependents(task.id, seen)

    def is_in_place(self) -> bool:
        """Whether the directory of this job is still there, and not that of another one of its name."""
        found = files.stamp(self._path)
        return found is not None and self._directory is not None and found.inode == self._directory.inode

    # -- files ---------------------------------------------------------------------------------------------

    def change_state(self, **changes: object) -> None:
        """Change the job in memory; :meth:`publish_state` follows."""
        self.job = self._changed(**changes)
        self.state_is_changed = True

    def _changed(self, **changes: object) -> Job:
        changed = self.job.evolve(updated_at=utc_now(), **changes)
        if changed.state is not self.job.state and not self.job.state.may_become(changed.state):
            raise AssertionError(f"job {self.name!r} cannot go from {self.job.state} to {changed.state}")
        return changed

    def begin_to_work(self) -> None:
        """The first task of a job that waits is about to be started, or it ends without one."""
        if self.job.state is JobState.WAITING:
            self.change_state(
                state=JobState.WORKING,
                attempt=self.job.attempt + 1,
                started_at=None,
                cancel_requested_at=None,
                reason=None,
                error=None,
            )

    @property
    def has_history(self) -> bool:
        """Whether its tasks are not those of a job that has never been run."""
        return any(task.status is not TaskStatus.PENDING or task.attempt for task in self.tasks.values())

    def publish_state(self) -> None:
        """Publish ``state.json`` while the job has not ended; :meth:`conclude` publishes the end."""
        self.state_stamp = self._store.write_job(self.job)
        self.state_is_changed = False

    def snapshot(self) -> None:
        """Publish ``tasks.json``, after the state of the job: of one that waits, no task can have been started."""
        began = time.perf_counter()
        if self.state_is_changed:
            self.publish_state()
        self._took_place(*self._store.write_tasks(self.name, self.tasks.values()))
        self._snapshot_cost = time.perf_counter() - began

    def _took_place(self, tasks_stamp: files.Stamp, existed: bool) -> None:
        """A new ``tasks.json`` is there in place of what we believe was there.

        If somebody else has written meanwhile, what is kept now is something else; its stamp will tell.
        """
        self._previous_stamp = self._tasks_stamp if existed else None
        self._tasks_stamp = tasks_stamp
        self.is_dirty = False

    def merge_foreign(self) -> bool:
        """Take in the tasks that somebody has added to ``tasks.json``, be it the present one or the one before.

        :return: False if the file is half-written, so that it must be looked at again.
        :raises InvalidJobError: if what was added does not fit.
        """
        for path, known in (
            (self._previous_path, self._previous_stamp),
            (self._tasks_path, self._tasks_stamp),
        ):
            found = files.stamp(path)
            if found == known:
                continue
            if found is None:  # somebody has removed it; ours is written again
                self._forget(path)
                continue
            try:
                tasks, version = self._store.load_task_list(self.name, path)
            except CorruptFileError:
                self.unreadable_since = self.unreadable_since or time.monotonic()
                return False
            self._forget(path, version)
            added = tuple(task for task in tasks if task.id not in self.tasks)
            if added:
                self.add(added)
        self.unreadable_since = None
        return True

    def _forget(self, path: Path, version: files.Stamp | None = None) -> None:
        """Take a version of the file as known; ours is to be written over it."""
        if path is self._tasks_path:
            self._tasks_stamp = version
            self.is_dirty = True  # a foreign writer drops what it does not know
        else:
            self._previous_stamp = version

    def discard_foreign(self) -> None:
        """Set aside a ``tasks.json`` that somebody has spoiled, and publish our own."""
        for path, known in (
            (self._previous_path, self._previous_stamp),
            (self._tasks_path, self._tasks_stamp),
        ):
            if files.stamp(path) != known:
                self._store.set_aside(path)
        self._tasks_stamp = self._previous_stamp = None
        self.unreadable_since = None
        self.is_dirty = True
        self.snapshot()

    def conclude(self) -> bool:
        """Publish how the job has ended, first its tasks, then its state.

        The records of its runners stay where they are: on ext4 every file that is removed makes the next ones to be
        created slower for minutes, since the numbers of those removed are passed over one by one.

        :return: False if somebody has added tasks at the last moment, and it is not over.
        """
        self.begin_to_work()
        state, reason, error = outcome(self.tasks.values())
        if self.stopping is not None and (state is JobState.FAILED or self.stopping[0] is Reason.INVALID):
            # Of a list that was spoiled we do not know which tasks were meant to be in it.
            state, (reason, error) = JobState.FAILED, self.stopping
        ended = self._changed(state=state, reason=reason, error=error and printable(error))
        if self.state_is_changed and state is JobState.FAILED:
            self.publish_state()  # what failed would start again if its list were found beside a state of waiting
        version = self._store.write_outcome(ended, self.tasks.values(), self._is_over_indeed)
        if version is None:
            return False
        self.job, self.state_stamp, self.state_is_changed = ended, version, False
        with contextlib.suppress(OSError):  # the next run of the job removes it
            self._previous_path.unlink()
        return True

    def _is_over_indeed(self, tasks_stamp: files.Stamp, existed: bool) -> bool:
        """Whether nobody has added tasks to the list that was replaced by the last one."""
        self._took_place(tasks_stamp, existed)
        return self.merge_foreign() and self.is_over


def load(store: JobStore, job: Job) -> ActiveJob:
    """Read the tasks of a job that is to be run.

    :raises CorruptFileError: if ``tasks.json`` cannot be read; it may be half-written.
    :raises InvalidJobError: if the tasks cannot be run.
    """
    tasks, version = store.load_tasks(job.name)
    check_task_list(tasks)
    return ActiveJob(store, job, tasks, version)
