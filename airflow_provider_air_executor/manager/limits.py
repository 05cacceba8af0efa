"""How long attempts and jobs may run, and how large logs may grow; what exceeds that is killed."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from datetime import datetime
from functools import partial

from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, utc_now
from airflow_provider_air_executor.manager.active_job import CANCELLED, ActiveJob, Cause
from airflow_provider_air_executor.manager.log_times import LogTimes
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.system import clock

log = logging.getLogger("air_executor.manager")

_LOG_SIZE_SECONDS = 1.0


class Limits:
    """Watches what runs, and kills it: SIGTERM to the process group, and SIGKILL after the grace."""

    def __init__(self, shared: Shared) -> None:
        self._store, self._settings, self._engines = shared.store, shared.settings, shared.engines
        self._jobs, self._timers, self._turns, self._guard = shared.jobs, shared.timers, shared.turns, shared.guard
        self.log_times = LogTimes(shared)
        self.strays: set[Attempt] = set()  # that are being killed and belong to no active job

    # -- setting them --------------------------------------------------------------------------------------

    def watch(self, task: Task, attempt: Attempt, *, ran: float | None = None) -> None:
        """Watch the time, the memory and the log of an attempt that has been started.

        :param ran: seconds that it has run; default: since the start of the task.
        """
        self.log_times.watch(attempt)
        if self._settings.max_log_size is not None:
            self._guard.run_later(attempt.job_name, _LOG_SIZE_SECONDS, partial(self._check_log_size, attempt))
        if task.resources is not None and task.resources.memory is not None:
            self._engines.limit_memory(attempt, task.resources.memory)
        limit = self._limit_of(task)
        if limit is not None:
            ran = clock.elapsed(None, task.started_at or utc_now()) if ran is None else ran
            kill = partial(self.kill, attempt, _ran_too_long(limit))
            self._timers.by(attempt, limit - ran, partial(self._guard.run_for, attempt.job_name, kill))

    def _limit_of(self, task: Task) -> float | None:
        """How many seconds a task may run; None: as long as it wants."""
        limit = task.timeout or self._settings.task_timeout
        needed = task.resources and task.resources.time
        return min(limit or needed, needed) if needed else limit

    def why_timed_out(self, task: Task, seconds: float) -> Cause | None:
        """Why an attempt has failed that has run so many seconds, if that was too long."""
        limit = self._limit_of(task)
        return _ran_too_long(limit) if limit is not None and seconds > limit else None

    def job_has_started(self, job: ActiveJob, started_at: datetime) -> None:
        """A task of a job has been started; the timeout of the job is counted from the first one."""
        if job.job.started_at is None:
            ago = clock.elapsed(None, started_at)
            job.change_state(started_at=started_at, started_clock=clock.mark(ago))
            self._count_start(job.job, started_at)
            self.watch_job(job)

    def _count_start(self, job: Job, started_at: datetime) -> None:
        counters = self._jobs.counters
        counters["jobs_started"] += 1
        if job.created_at is not None and job.attempt == 1:
            counters["job_wait_seconds"] += max(0.0, (started_at - job.created_at).total_seconds())

    def watch_job(self, job: ActiveJob) -> None:
        """Watch the time of a job, if one of its tasks has been started."""
        left = self._left(job)
        if left is not None and job.job.state is JobState.WORKING:
            self._timers.by(job.name, left, partial(self._guard.run_for, job.name, partial(self._job_timed_out, job)))

    def release(self, attempt: Attempt) -> None:
        """An attempt is over."""
        self._timers.cancel(attempt)
        self.log_times.release(attempt)
        self.strays.discard(attempt)

    # -- killing -------------------------------------------------------------------------------------------

    def kill(self, attempt: Attempt, cause: Cause) -> None:
        """End an attempt of an active job, if it runs and is not being killed."""
        job = self._jobs.active.get(attempt.job_name)
        if job is not None and attempt in job.running and job.running[attempt] is None:
            job.running[attempt] = cause
            self._end(attempt)

    def _end(self, attempt: Attempt) -> None:
        self._guard.run_later(attempt.job_name, self._settings.kill_grace, partial(self._kill_hard, attempt))
        self._engines.cancel(attempt, kill=False)

    def _kill_hard(self, attempt: Attempt) -> None:
        if attempt in self.strays or self._is_running(attempt):
            self._engines.cancel(attempt, kill=True)

    def _is_running(self, attempt: Attempt) -> bool:
        job = self._jobs.active.get(attempt.job_name)
        return job is not None and attempt in job.running

    def cancel_tasks(self, job: ActiveJob, task_ids: Collection[str]) -> None:
        """Kill what runs of these tasks of a job."""
        for attempt in list(job.running):
            if attempt.task_id in task_ids:
                self.kill(attempt, CANCELLED)

    def kill_stray(self, attempt: Attempt) -> None:
        """Kill at once an attempt whose task is not there any more, or has ended otherwise."""
        self.strays.add(attempt)
        self._engines.cancel(attempt, kill=True)

    def abandon(self, job: ActiveJob, *, is_removed: bool) -> None:
        """End all that runs of a job that is not active any more.

        :param is_removed: whether its directory is gone, so that records there belong to another job.
        """
        for attempt, cause in reversed(job.running.items()):  # the last one first, as in stop_job
            self.strays.add(attempt)
            self.log_times.release(attempt)  # what it still prints may be in the log of another job
            if is_removed:
                self._engines.detach(attempt)
            if cause is None:
                with contextlib.suppress(Exception):  # SIGKILL follows, whatever this has raised
                    self._end(attempt)
        job.running.clear()
        job.ahead.clear()

    def stop_job(self, job: ActiveJob, cause: Cause) -> None:
        """Start nothing more of a job, and kill what runs, unless the cause spares it."""
        if job.stopping is None or (job.stopping.spares_always and not cause.spares_always):
            log.info("job %s is stopped: %s", job.name, cause.error)
            self._turns.do(job.name, job.stop(cause))
        self._jobs.touched.add(job.name)
        # Also when this is done again, since the kill of one of them failed. The last one comes first: where an engine
        # runs several one after the other, the next must not begin because the one that runs is ended.
        for attempt in sorted(job.running, key=lambda attempt: job.graph.position(attempt.task_id), reverse=True):
            if job.refusal(job.tasks[attempt.task_id]) is not None:
                self.kill(attempt, cause)

    def why_stopped(self, job: ActiveJob) -> Cause | None:
        """Why a job must start nothing more that an earlier manager has begun; None if it may."""
        if job.job.state is not JobState.WORKING:
            return None
        if job.job.cancel_requested_at is not None:
            return cancelled(again=job.job.cancel_again_requested_at is not None)
        left = self._left(job)
        return _timed_out(job) if left is not None and left <= 0 else None

    def _left(self, job: ActiveJob) -> float | None:
        """How many seconds a job may still run; None if there is no limit, or no task of it has been started."""
        if job.job.timeout is None or job.job.started_at is None:
            return None
        return job.job.timeout - clock.elapsed(job.job.started_clock, job.job.started_at)

    def _job_timed_out(self, job: ActiveJob) -> None:
        if self._jobs.is_active(job):
            self.stop_job(job, _timed_out(job))

    def _check_log_size(self, attempt: Attempt) -> None:
        limit = self._settings.max_log_size
        if limit is None or not self._is_running(attempt):
            return
        found = files.stamp(self._store.paths(attempt.job_name).log(attempt.task_id))
        if found is not None and found.size > limit:
            error = f"its log grew over max_log_size ({limit} bytes), and it was killed"
            self.kill(attempt, Cause(Reason.SIGNAL, error))
        else:
            self._guard.run_later(attempt.job_name, _LOG_SIZE_SECONDS, partial(self._check_log_size, attempt))


def cancelled(*, again: bool) -> Cause:
    """Why a job is stopped that is cancelled.

    :param again: whether that was requested a second time.
    """
    return CANCELLED if again else CANCELLED._replace(spares_always=True)


def _ran_too_long(limit: float) -> Cause:
    return Cause(Reason.TIMEOUT, f"it ran longer than its timeout of {limit:g} s and was killed")


def _timed_out(job: ActiveJob) -> Cause:
    error = f"the job ran longer than its timeout of {job.job.timeout:g} s and was killed"
    return Cause(Reason.TIMEOUT, error, spares_always=True)
