"""How active jobs are published, merged with what others write into their files, and ended."""

from __future__ import annotations

import logging
from functools import partial

from airflow_provider_air_executor.exceptions import InvalidJobError, JobNotFoundError
from airflow_provider_air_executor.jobs import bell
from airflow_provider_air_executor.jobs.models import Reason
from airflow_provider_air_executor.jobs.pieces import Pieces
from airflow_provider_air_executor.manager.active_job import ActiveJob, Cause
from airflow_provider_air_executor.manager.intake import Intake
from airflow_provider_air_executor.manager.limits import Limits
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.troubles import Step
from airflow_provider_air_executor.manager.waiting_words import WaitingWords

log = logging.getLogger("air_executor.manager")

_STATE_SECONDS = 0.005  # after which the state of a job that has begun to work is published
_REREAD_SECONDS = 0.05  # after which a half-written list is read again


class Publishing:
    """Publishes the state, the tasks and the ends of jobs."""

    def __init__(self, shared: Shared, limits: Limits, intake: Intake) -> None:
        self._files, self._jobs, self._queue = shared.files, shared.jobs, shared.queue
        self._timers, self._troubles = shared.timers, shared.troubles
        self._turns, self._guard = shared.turns, shared.guard
        self._poll_interval = shared.settings.poll_interval
        self._limits, self._intake = limits, intake
        self._waiting_words = WaitingWords(shared)
        self._ringer = bell.Ringer(shared.store.base_path, bell.JOBS)

    def publish(self) -> None:
        """Publish the jobs that something has happened to, and end those that are over."""
        self._waiting_words.say()
        touched = self._jobs.touched.copy()
        self._jobs.touched.clear()  # timers add to this very set
        for name in touched:
            job = self._jobs.active.get(name)
            if job is None or self._troubles.is_waiting(name, Step.WRITE):
                continue
            if self._turns.is_busy(name):
                self._jobs.touched.add(name)
            elif job.has_news:
                self._turns.do(name, self._publishing(job))
            else:
                self._queue.add(job)

    def _publishing(self, job: ActiveJob) -> Pieces[None]:
        """Publish a job as far as its files can be written now."""
        try:
            yield from self._publishing_all(job)
            self._troubles.over(job.name, Step.WRITE)
        except (FileNotFoundError, NotADirectoryError, JobNotFoundError) as error:
            self._guard.run_for(job.name, partial(self._abandon_if_gone, job, error))
        except OSError as error:
            self._troubles.met(job.name, Step.WRITE, error, partial(self._jobs.touched.add, job.name))

    def _publishing_all(self, job: ActiveJob) -> Pieces[None]:
        disk = job.on_disk
        publishes = job.state_is_changed and not job.is_over and self._may_publish_state(job)
        merges = disk.may_have_changed or job.is_over
        if (publishes or merges) and not self._files.is_in_place(job):
            self.abandon(job)
            return
        if publishes:
            self._files.publish_state(job)
            self._ringer.ring()
        if merges:
            if not (yield from self._merging(job)):
                return
            disk.may_have_changed = False
        self._queue.add(job)
        if job.is_over:
            if not (yield from self._finalizing(job)):
                self._jobs.touched.add(job.name)
                self._timers.wake(0)
                return
            self._ringer.ring()
            self._jobs.release(job)
            self._jobs.remember(job.name, disk.state)
            self._jobs.counters[f"jobs_{job.job.state.value}"] += 1
            self._troubles.over(job.name)
            log.info("job %s %s%s", job.name, job.job.state.value, f": {job.job.error}" if job.job.error else "")
        elif job.is_dirty and not disk.snapshot_due:
            disk.snapshot_due = True
            self._guard.run_later(job.name, disk.snapshot_interval, partial(self._snapshot, job))

    def _may_publish_state(self, job: ActiveJob) -> bool:
        """Whether it is time to publish that a job works: a very short one has ended before anybody could read it."""
        disk = job.on_disk
        if disk.state_due is None:
            disk.state_due = self._timers.now() + _STATE_SECONDS
            self._timers.after(_STATE_SECONDS, partial(self._jobs.touched.add, job.name))
        return self._timers.now() >= disk.state_due

    def _finalizing(self, job: ActiveJob) -> Pieces[bool]:
        """Publish the end of a job; False if it is not the end, for something was added at the last moment."""
        try:
            return (yield from self._files.finalizing(job))
        except InvalidJobError as problem:
            yield from self._discarding_external_edits(job, problem)
            return False

    def _snapshot(self, job: ActiveJob) -> None:
        self._turns.do(job.name, self._snapshotting(job))

    def _snapshotting(self, job: ActiveJob) -> Pieces[None]:
        disk = job.on_disk
        disk.snapshot_due = False
        if not self._jobs.is_active(job) or disk.unreadable_since is not None:
            return
        if not job.is_dirty:  # a request has had one made meanwhile
            return
        disk.may_have_changed = True  # also to see that its directory is gone
        self._jobs.touched.add(job.name)
        if not self._files.is_in_place(job):
            return
        try:
            yield from self._files.snapshotting(job)
            self._troubles.over(job.name, Step.LIST)
        except FileNotFoundError as error:
            self._guard.run_for(job.name, partial(self._abandon_if_gone, job, error))
        except OSError as error:
            disk.snapshot_due = True
            self._troubles.met(job.name, Step.LIST, error, partial(self._snapshot, job))

    # -- what others write ---------------------------------------------------------------------------------

    def _merging(self, job: ActiveJob) -> Pieces[bool]:
        """Add the tasks that a running task has appended; False while the list is half-written."""
        try:
            if (yield from self._files.merging_external_edits(job)):
                return True
            if self._timers.now() - (job.on_disk.unreadable_since or 0) < self._poll_interval:
                again = partial(self._jobs.touched.add, job.name)
                self._timers.after(min(_REREAD_SECONDS, self._poll_interval), again)
                return False
            yield from self._discarding_external_edits(job)
        except InvalidJobError as problem:
            yield from self._discarding_external_edits(job, problem)
        return True

    def _discarding_external_edits(self, job: ActiveJob, problem: InvalidJobError | None = None) -> Pieces[None]:
        """Go back to our own list of tasks, and end the job.

        :param problem: what is wrong with the tasks that were added; None if the list cannot be read at all.
        """
        error = "tasks.json was overwritten with something that is not a list of tasks"
        if problem is not None:
            error = f"tasks were added to tasks.json that are not valid: {problem}"
        yield from self._files.discarding_external_edits(job)
        self._limits.stop_job(job, Cause(Reason.INVALID, f"{error}; put that right and retry the job"))

    def _abandon_if_gone(self, job: ActiveJob, error: Exception) -> None:
        if not self._jobs.is_active(job):
            return
        if self._files.is_in_place(job):
            self._troubles.met(job.name, Step.WRITE, error, partial(self._jobs.touched.add, job.name))
        else:
            self.abandon(job)

    def abandon(self, job: ActiveJob) -> None:
        """The directory of a job is gone: it was removed while the job ran."""
        log.warning("the directory of job %s is gone; what runs of it is killed", job.name)
        self._turns.drop(job.name)
        self._jobs.release(job)
        self._intake.forget(job.name)
        self._limits.abandon(job, is_removed=True)
        self._intake.inspect(job.name)  # there may be another one by now
