"""One job while the manager runs it: its tasks in memory, and what of them is on disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.exceptions import CorruptFileError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import (
    Job,
    JobState,
    Reason,
    Task,
    TaskStatus,
    checking_ids,
    checking_task_list,
    printable,
    utc_now,
)
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, dropping
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.job_writer import JobWriter
from airflow_provider_air_executor.manager.schedule import TaskGraph, outcome, resetting_failed

# Between two snapshots of a job's tasks lie at least so many seconds, and so many times what the last one took.
_SNAPSHOT_SECONDS = 0.25
_SNAPSHOT_SHARE = 20


class ActiveJob:
    """A job that has not ended.

    While it is active the tasks in memory are the truth. ``tasks.json`` is a snapshot of them, to which a running
    task may append; see :meth:`merging_external_edits`.

    What takes longer the more tasks there are is done in pieces. :meth:`loading` makes one.

    :param job: the job as it stands in ``state.json``.
    :param directory: that of the job; None if it is gone.
    :param tasks_stamp: the version of ``tasks.json`` that its tasks are read from.
    """

    def __init__(self, store: JobStore, job: Job, directory: files.Stamp | None, tasks_stamp: files.Stamp) -> None:
        self._store = store
        self.job = job
        self.tasks: dict[str, Task] = {}
        self.running: set[Attempt] = set()
        self.delayed: set[str] = set()  # tasks that must not start yet, though they are pending
        self.stopping: tuple[Reason, str] | None = None  # why nothing more is started
        self.is_fresh = True  # whether all its tasks were pending when they were read
        self.has_history = False  # whether they are not those of a job that has never been run
        self.is_growing = False  # whether tasks are being added
        self.is_held = False  # whether nothing more is started for the moment
        self.unreadable_since: float | None = None  # since when tasks.json has been half-written by someone
        self.state_stamp: files.Stamp | None = None
        self.may_have_changed = True  # whether somebody else may have written the files, or removed them
        self.state_is_changed = False  # whether state.json is still to be published
        self.state_due: float | None = None  # when it is, on the monotonic clock
        self.snapshot_due = False  # whether a timer is set for the next snapshot
        paths = store.paths(job.name)
        self._path = paths.directory
        self._directory = directory
        self._tasks_path = paths.tasks
        self._previous_path = paths.previous_tasks
        self._tasks_stamp: files.Stamp | None = tasks_stamp
        # None, although there may be one: a manager that was killed may not have looked at what it had replaced.
        self._previous_stamp: files.Stamp | None = None
        self._snapshot_cost = 0.0
        self.is_dirty = False  # whether the tasks have changed since the last snapshot
        self._unfinished = 0
        self.graph = TaskGraph(self.tasks)

    @property
    def name(self) -> str:
        """The name of the job."""
        return self.job.name

    @property
    def can_start(self) -> bool:
        """Whether one of its tasks may start now, as far as the job itself is concerned."""
        return (
            self.graph.has_ready
            and self.stopping is None
            and not (self.is_held or self.is_growing)
            and len(self.running) < (self.job.max_parallel_tasks or 1)
        )

    @property
    def is_over(self) -> bool:
        """Whether all its tasks have ended."""
        return not self._unfinished and not self.running

    @property
    def has_news(self) -> bool:
        """Whether something is to be published or read."""
        return (
            self.state_is_changed or self.may_have_changed or (self.is_dirty and not self.snapshot_due) or self.is_over
        )

    @property
    def snapshot_interval(self) -> float:
        """Seconds that must lie between two snapshots."""
        return max(_SNAPSHOT_SECONDS, _SNAPSHOT_SHARE * self._snapshot_cost)

    # -- reading them ----------------------------------------------------------------------------------------

    @classmethod
    def loading(cls, store: JobStore, job: Job) -> Pieces[ActiveJob]:
        """Read the tasks of a job that is to be run.

        :raises CorruptFileError: if ``tasks.json`` cannot be read; it may be half-written.
        :raises InvalidJobError: if the tasks cannot be run.
        """
        paths = store.paths(job.name)
        directory = files.stamp(paths.directory)
        tasks, version = yield from store.loading_task_list(job.name, paths.tasks)
        yield from checking_task_list(tasks)
        return (yield from cls(store, job, directory, version).taking(tasks))

    def resetting(self) -> Pieces[ActiveJob]:
        """The same job with what has not completed pending again, which is published; this one is let go of."""
        tasks = yield from resetting_failed(self.tasks.values())
        version = yield from JobWriter(self._store).resetting_tasks(self.name, tasks)
        found = yield from ActiveJob(self._store, self.job, self._directory, version).taking(tasks)
        yield from self.dropping()
        return found

    def dropping(self) -> Pieces[None]:
        """Let go of all tasks; the job is not active any more."""
        yield from dropping(self.tasks)
        yield from self.graph.dropping()

    def taking(self, tasks: Iterable[Task]) -> Pieces[ActiveJob]:
        """Have these tasks, and no others.

        :return: this job.
        """
        for number, task in enumerate(tasks, 1):
            self._take(task)
            if not number % ITEMS:
                yield False
        yield from self.building_graph()
        return self

    def _take(self, task: Task) -> None:
        self.tasks[task.id] = task
        self._unfinished += not task.status.is_terminal
        self.is_fresh = self.is_fresh and task.status is TaskStatus.PENDING
        self.has_history = self.has_history or not self.is_fresh or task.attempt > 0

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

    def complete(self, attempt: Attempt, ended_at: datetime) -> Pieces[None]:
        """The command of a task has ended with exit code 0.

        :return: what is to be done next: those that depend on it come nearer to their start.
        """
        self.running.discard(attempt)
        task = self.tasks[attempt.task_id]
        self._put(task.evolve(status=TaskStatus.COMPLETED, completed_at=ended_at, exit_code=0))
        return self.graph.completing(task.id)

    def fail(
        self, task_id: str, reason: Reason, error: str, *, exit_code: int | None, ended_at: datetime
    ) -> Pieces[None]:
        """A task has failed for good.

        :return: what is to be done next: all that depend on it fail, too.
        """
        self.running = {attempt for attempt in self.running if attempt.task_id != task_id}
        self._fail(task_id, reason, error, exit_code, ended_at)
        return self._failing_dependents(task_id)

    def _failing_dependents(self, task_id: str, seen: set[str] | None = None) -> Pieces[None]:
        error = printable(f"not started, because task {task_id!r} failed")
        for number, dependent in enumerate(self.graph.descendants(task_id, seen), 1):
            if not self.tasks[dependent].status.is_terminal:
                self._fail(dependent, Reason.DEPENDENCY, error, None, utc_now())
            if not number % ITEMS:
                yield False

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

    def stop(self, reason: Reason, error: str) -> Pieces[None]:
        """Start nothing more.

        :return: what is to be done next: what has not started fails.
        """
        self.stopping = (reason, error)
        self.graph.drop_ready()
        return self._failing(self.tasks)

    def _failing(self, ids: Iterable[str]) -> Pieces[None]:
        """Let those of some tasks fail that have not started, as the job is stopped."""
        for number, task_id in enumerate(ids, 1):
            self.fail_if_stopped(task_id)
            if not number % ITEMS:
                yield False

    def fail_if_stopped(self, task_id: str) -> None:
        """Let a task fail that has not started, if its job is stopped."""
        if self.stopping is not None and self.tasks[task_id].status is TaskStatus.PENDING:
            self._fail(task_id, *self.stopping, None, utc_now())

    def adding(self, added: Sequence[Task]) -> Pieces[None]:
        """Append tasks.

        :raises InvalidJobError: if they do not fit the others.
        """
        yield from checking_ids(added)
        yield from checking_task_list(added, present=self.tasks)
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
                error = f"not started, because task {failed!r} failed"
                self._fail(task.id, Reason.DEPENDENCY, error, None, utc_now())
                yield from self._failing_dependents(task.id)

    def withdraw(self, added: Sequence[Task]) -> None:
        """Take back tasks that were added a moment ago and could not be written down."""
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
        """Find out anew which tasks can start. Some may end meanwhile, but no tasks may be added."""
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

    def publish_state(self) -> None:
        """Publish ``state.json`` while the job has not ended; :meth:`concluding` publishes the end."""
        self.state_stamp = JobWriter(self._store).write_job(self.job)
        self.state_is_changed = False

    def snapshotting(self) -> Pieces[None]:
        """Publish ``tasks.json``, after the state of the job: of one that waits, no task can have been started."""
        began = time.perf_counter()
        if self.state_is_changed:
            self.publish_state()
        # What changes meanwhile may be in it or not, and is in the next one. A copy would take as long as a whole piece
        # of work, and longer to let go of. Nothing can be added: what is done for the same job is done in turn.
        self.is_dirty = False
        try:
            self._took_place(*(yield from JobWriter(self._store).writing_tasks(self.name, self.tasks.values())))
        except BaseException:
            self.is_dirty = True
            raise
        self._snapshot_cost = time.perf_counter() - began

    def _took_place(self, tasks_stamp: files.Stamp, existed: bool) -> None:
        """A new ``tasks.json`` is there in place of what we believe was there.

        If somebody else has written meanwhile, what is kept now is something else; its stamp will tell.
        """
        self._previous_stamp = self._tasks_stamp if existed else None
        self._tasks_stamp = tasks_stamp

    def merging_external_edits(self) -> Pieces[bool]:
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
                tasks, version = yield from self._store.loading_task_list(self.name, path)
            except CorruptFileError:
                self.unreadable_since = self.unreadable_since or time.monotonic()
                return False
            self._forget(path, version)
            added = []
            for number, task in enumerate(tasks, 1):
                if task.id not in self.tasks:
                    added.append(task)
                if not number % ITEMS:
                    yield False
            if added:
                yield from self.adding(added)
            yield from dropping(added)
            yield from dropping(tasks)
        self.unreadable_since = None
        return True

    def _forget(self, path: Path, version: files.Stamp | None = None) -> None:
        """Take a version of the file as known; ours is to be written over it."""
        if path is self._tasks_path:
            self._tasks_stamp = version
            self.is_dirty = True  # a foreign writer drops what it does not know
        else:
            self._previous_stamp = version

    def discarding_external_edits(self) -> Pieces[None]:
        """Set aside a ``tasks.json`` that somebody has spoiled, and publish our own."""
        for path, known in (
            (self._previous_path, self._previous_stamp),
            (self._tasks_path, self._tasks_stamp),
        ):
            if files.stamp(path) != known:
                JobWriter(self._store).quarantine(path)
        self._tasks_stamp = self._previous_stamp = None
        self.unreadable_since = None
        self.is_dirty = True
        yield from self.snapshotting()

    def concluding(self) -> Pieces[bool]:
        """Publish how the job has ended, first its tasks, then its state.

        The records of its runners stay where they are: on ext4 every file that is removed makes the next ones to be
        created slower for minutes, since the numbers of those removed are passed over one by one.

        :return: False if somebody has added tasks at the last moment, and it is not over.
        """
        self.begin_to_work()
        state, reason, error = yield from outcome(self.tasks.values())
        if self.stopping is not None and (state is JobState.FAILED or self.stopping[0] is Reason.INVALID):
            # Of a list that was spoiled we do not know which tasks were meant to be in it.
            state, (reason, error) = JobState.FAILED, self.stopping
        ended = self._changed(state=state, reason=reason, error=error and printable(error))
        if self.state_is_changed and state is JobState.FAILED:
            self.publish_state()  # what failed would start again if its list were found beside a state of waiting
        self.is_dirty = False
        version = yield from JobWriter(self._store).writing_outcome(ended, self.tasks.values(), self._is_over_indeed)
        if version is None:
            return False
        self.job, self.state_stamp, self.state_is_changed = ended, version, False
        with contextlib.suppress(OSError):  # the next run of the job removes it
            yield from files.unlinking(self._previous_path)
        return True

    def _is_over_indeed(self, tasks_stamp: files.Stamp, existed: bool) -> Pieces[bool]:
        """Whether nobody has added tasks to the list that was replaced by the last one."""
        self._took_place(tasks_stamp, existed)
        return (yield from self.merging_external_edits()) and self.is_over
