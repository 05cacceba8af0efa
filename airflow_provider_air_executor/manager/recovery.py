"""Recovers a job of an earlier manager: adopts its attempts, and removes records that do not count."""

from __future__ import annotations

import logging
import os

from airflow_provider_air_executor.engines.protocol import Attempt, Ended, Running
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import JobState, Reason, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces
from airflow_provider_air_executor.manager.active_job import CANCELLED, ActiveJob, Cause, Hold
from airflow_provider_air_executor.manager.attempts import Attempts
from airflow_provider_air_executor.manager.limits import Limits
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.system import clock

log = logging.getLogger("air_executor.manager")

_RECORDS = 10  # that are read before something else is done
_FILE_TIME_SECONDS = 0.1  # that the time of a file may be behind


class Recovery:
    """Activates jobs, and reattaches to their attempts."""

    def __init__(self, shared: Shared, limits: Limits, attempts: Attempts) -> None:
        self._store, self._engines, self._jobs = shared.store, shared.engines, shared.jobs
        self._queue = shared.queue
        self._limits, self._attempts = limits, attempts

    def reattaching(self, job: ActiveJob) -> Pieces[None]:
        """Begin to run a job, or go on with one that an earlier manager began."""
        is_new = job.job.state is JobState.WAITING
        records = yield from (self.dropping_outdated if is_new else self._engines.recording)(job.name)
        self._jobs.activate(job)
        job.holds.add(Hold.REATTACH)
        try:
            yield from self._adopting(job, records)
        except BaseException:
            self._jobs.active.pop(job.name, None)  # it is active as a whole, or not at all
            raise
        job.holds.discard(Hold.REATTACH)
        self._limits.watch_job(job)
        if job.job.started_at is not None and not clock.is_of_this_boot(job.job.started_clock):
            job.change_state(started_clock=clock.mark(clock.elapsed(None, job.job.started_at)))
        if job.stopping is not None:
            self._limits.stop_job(job, job.stopping)
        self._limits.cancel_tasks(job, _cancelled_tasks(job))
        self._queue.add(job)
        self._jobs.touched.add(job.name)
        log.info("job %s: %d tasks", job.name, len(job.tasks))

    def dropping_outdated(self, name: str) -> Pieces[list[Attempt]]:
        """The records of a waiting job, without those of attempts that ended before it was set to waiting.

        Attempts that started later count: a manager started them that was killed before it had published that the job
        works. The list that an earlier run replaced last is removed like a record.
        """
        # The time of the last change: that of the content may be older, if the file was prepared or copied.
        # Rounded as the times are that it is compared with, so that equal ones stay equal.
        since = os.lstat(self._store.paths(name).state).st_ctime_ns / 1e9
        has_ended = name in self._jobs.ended  # this manager has seen its end, with all that was recorded
        previous = self._store.paths(name).previous_tasks
        replaced = files.stamp(previous)
        if replaced is not None and (has_ended or replaced.mtime_ns / 1e9 < since):
            yield from files.unlinking(previous)
        kept = []
        for number, attempt in enumerate((yield from self._engines.recording(name)), 1):
            if not number % _RECORDS:
                yield False
            path = self._store.paths(attempt.job_name).record(attempt.task_id, attempt.number)
            found, record = self._engines.adopt(attempt), files.stamp(path)
            if isinstance(found, Ended) and record is not None:
                started = found.started_at.timestamp() if found.started_at else record.mtime_ns / 1e9
                if has_ended or started < since:
                    self._engines.discard(attempt)
                    continue
            kept.append(attempt)
        return kept

    def _adopting(self, job: ActiveJob, records: list[Attempt]) -> Pieces[None]:
        """Find out what became of the tasks that an earlier manager may have started."""
        recorded = {attempt.task_id: attempt for attempt in records}  # the latest of each task
        ended: list[Ended] = []
        stopped = self._limits.why_stopped(job)  # before it begins to work, if it waits
        for number, attempt in enumerate(list(recorded.values()), 1):
            if not number % _RECORDS:
                yield False
            task = job.tasks.get(attempt.task_id)
            found = self._engines.adopt(attempt)
            if found is None:
                del recorded[attempt.task_id]
                continue
            if task is None or task.status.is_terminal:
                if isinstance(found, Running):
                    self._limits.kill_stray(attempt)
                continue
            job.begin_to_work()
            job.running[attempt] = None
            job.begin(attempt, found.started_at or task.started_at or utc_now())
            if isinstance(found, Ended) or not found.waits:
                self._limits.job_has_started(job, job.tasks[task.id].started_at or utc_now())
            if isinstance(found, Ended):
                ended.append(found)
                cause = _why_killed(job, task, found, stopped) or self._why_timed_out(job.tasks[task.id], found)
                job.running[attempt] = cause
            elif not found.waits:
                self._limits.watch(job.tasks[task.id], attempt, ran=found.age)
        for number, task in enumerate(job.tasks.values(), 1):
            if not number % ITEMS:
                yield False
            if task.status is TaskStatus.RUNNING and task.id not in recorded:
                self._recover_unrecorded(job, task)
            elif task.status is TaskStatus.PENDING and task.completed_at is not None:  # it waits for its next attempt
                job.delayed.add(task.id)
                waited = clock.elapsed(None, task.completed_at)
                self._attempts.retry_later(job, task.id, task.retry_delay - waited)
        if stopped is not None:
            yield from job.stop(stopped)
        for number, end in enumerate(ended, 1):
            self._attempts.end(end)
            if not number % _RECORDS:
                yield False
        if job.is_dirty or job.delayed:
            yield from job.building_graph()  # not before: what has ended may depend on each other

    def _why_timed_out(self, task: Task, ended: Ended) -> Cause | None:
        """Why the earlier manager has killed an attempt whose time was over; None if it was not over."""
        if not ended.exit_code or task.started_at is None:
            return None
        seconds = (ended.ended_at - task.started_at).total_seconds()
        return self._limits.why_timed_out(task, seconds + _FILE_TIME_SECONDS)

    def _recover_unrecorded(self, job: ActiveJob, task: Task) -> None:
        """A task is said to run, but there is no record of its attempt."""
        attempt = Attempt.of(job.name, task.id, max(task.attempt, 1))
        if task.attempt > 0 and clock.is_of_this_boot(job.job.started_clock):
            job.put_back(attempt)  # its shim has not started the command
            job.delayed.discard(task.id)
        else:
            error = "it was running when its manager or the machine went down, and left no result; retry the job"
            self._attempts.fail(job, Ended(attempt, None, utc_now()), Cause(Reason.LOST, error))


def _why_killed(job: ActiveJob, task: Task, ended: Ended, stopped: Cause | None) -> Cause | None:
    """Why the earlier manager has killed an attempt, as far as can be known; None if it has not.

    :param stopped: why the job was stopped, if it was.
    """
    if task.cancel_requested_at is not None:
        return CANCELLED
    if ended.exit_code == 0 or stopped is None or not stopped.stops(task):
        return None
    started, limit = job.job.started_at, job.job.timeout
    if stopped.reason is not Reason.TIMEOUT or started is None or limit is None:
        return stopped
    is_late = ended.ended_at.timestamp() > started.timestamp() + limit - _FILE_TIME_SECONDS
    return stopped if is_late else None


def _cancelled_tasks(job: ActiveJob) -> set[str]:
    """The running tasks whose end was requested."""
    running = (job.tasks[attempt.task_id] for attempt in job.running)
    return {task.id for task in running if task.cancel_requested_at is not None}
