"""How long attempts and jobs may run, and how large logs may grow; what exceeds that is killed."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime
from functools import partial

from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import JobState, Reason, Task, utc_now
from airflow_provider_air_executor.manager.active_job import ActiveJob, Cause
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.system import clock

log = logging.getLogger("air_executor.manager")

_LOG_SIZE_SECONDS = 1.0


class Limits:
    """Watches what runs, and kills it: SIGTERM to the process group, and SIGKILL after the grace."""

    def __init__(self, shared: Shared) -> None:
        self._store, self._settings, self._engines = shared.store, shared.settings, shared.engines
        self._jobs, self._timers, self._turns, self._guard = shared.jobs, shared.timers, shared.turns, shared.guard
        self.strays: set[Attempt] = set()  # that are being killed and belong to no active job

    # -- setting them --------------------------------------------------------------------------------------

    def watch(self, task: Task, attempt: Attempt, *, ran: float | None = None) -> None:
        """Watch the time and the log of an attempt that has been started.

        :param ran: seconds that it has run; default: since the start of the task.
        """
        if self._settings.max_log_size is not None:
            self._guard.run_later(attempt.job_name, _LOG_SIZE_SECONDS, partial(self._check_log_size, attempt))
        limit = task.timeout or self._settings.task_timeout
        needed = task.resources and task.resources.time
        limit = min(limit or needed, needed) if needed else limit
        if limit is not None:
            ran = clock.elapsed(None, task.started_at or utc_now()) if ran is None else ran
            cause = Cause(Reason.TIMEOUT, f"it ran longer than its timeout of {limit:g} s and was killed")
            kill = partial(self.kill, attempt, cause)
            self._timers.by(attempt, limit - ran, partial(self._guard.run_for, attempt.job_name, kill))

    def job_has_started(self, job: ActiveJob, started_at: datetime) -> None:
        """A task of a job has been started; the timeout of the job is counted from the first one."""
        if job.job.started_at is None:
            ago = clock.elapsed(None, started_at)
            job.change_state(started_at=started_at, started_clock=clock.mark(ago))
            self.watch_job(job)

    def watch_job(self, job: ActiveJob) -> None:
        """Watch the time of a job, if one of its tasks has been started."""
        if job.job.state is JobState.WORKING and job.job.timeout is not None and job.job.started_at is not None:
            ran = clock.elapsed(job.job.started_clock, job.job.started_at)
            step = partial(self._guard.run_for, job.name, partial(self._job_timed_out, job))
            self._timers.by(job.name, job.job.timeout - ran, step)

    def release(self, attempt: Attempt) -> None:
        """An attempt is over."""
        self._timers.cancel(attempt)
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

    def kill_stray(self, attempt: Attempt) -> None:
        """Kill at once an attempt whose task is not there any more, or has ended otherwise."""
        self.strays.add(attempt)
        self._engines.cancel(attempt, kill=True)

    def abandon(self, job: ActiveJob, *, is_removed: bool) -> None:
        """End all that runs of a job that is not active any more.

        :param is_removed: whether its directory is gone, so that records there belong to another job.
        """
        for attempt, cause in job.running.items():
            self.strays.add(attempt)
            if is_removed:
                self._engines.detach(attempt)
            if cause is None:
                with contextlib.suppress(Exception):  # SIGKILL follows, whatever this has raised
                    self._end(attempt)
        job.running.clear()

    def stop_job(self, job: ActiveJob, cause: Cause) -> None:
        """Start nothing more of a job, and kill what runs."""
        if job.stopping is None:
            log.info("job %s is stopped: %s", job.name, cause.error)
            self._turns.do(job.name, job.stop(cause))
        self._jobs.touched.add(job.name)
        # Also when this is done again, since the kill of one of them failed. The last one comes first: where an engine
        # runs several one after the other, the next must not begin because the one that runs is ended.
        for attempt in sorted(job.running, key=lambda attempt: job.graph.position(attempt.task_id), reverse=True):
            self.kill(attempt, cause)

    def _job_timed_out(self, job: ActiveJob) -> None:
        if self._jobs.is_active(job):
            error = f"the job ran longer than its timeout of {job.job.timeout:g} s and was killed"
            self.stop_job(job, Cause(Reason.TIMEOUT, error))

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
