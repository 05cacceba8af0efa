"""Jobs that the manager cannot run: they end with a sentence that says why."""

from __future__ import annotations

import contextlib
import logging
import time
from functools import partial

from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, printable, utc_now
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.manager.active_job import Cause
from airflow_provider_air_executor.manager.limits import Limits
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.troubles import Step

log = logging.getLogger("air_executor.manager")


class Rejection:
    """Ends jobs that are not valid, and those on which a step has raised an unexpected error."""

    def __init__(self, shared: Shared, limits: Limits) -> None:
        self._store, self._writer, self._engines = shared.store, shared.writer, shared.engines
        self._jobs, self._turns, self._troubles = shared.jobs, shared.turns, shared.troubles
        self._limits = limits

    def reject(self, job: Job, error: str) -> None:
        """End a job that cannot be run and is not active.

        :raises OSError: if its end cannot be written now.
        """
        log.error("job %s is not valid: %s", job.name, error)
        if job.name not in self._jobs.ended:  # what an ended run has left running was meant to
            for record in finish(self._engines.recording(job.name)):
                try:
                    self._engines.kill_orphan(record)
                except Exception as problem:  # noqa: BLE001 - the end of the job is what counts
                    log.warning("job %s: task %s cannot be killed: %r", job.name, record.task_id, problem)
        failed = job.evolve(
            state=JobState.FAILED,
            reason=Reason.INVALID,
            error=_advice(error),
            keep_failed=False,
            updated_at=utc_now(),
            # It was an attempt to run the job, and those who wait for its end must see that it is over.
            attempt=job.attempt if job.state is JobState.WORKING else job.attempt + 1,
        )
        self._jobs.remember(job.name, self._writer.write_job(failed, durable=True))
        self._jobs.counters["jobs_failed"] += 1
        self._troubles.over(job.name)

    def reject_unreadable(self, name: str, error: str) -> None:
        """End a job whose ``state.json`` cannot be read.

        :raises OSError: if its end cannot be written now.
        """
        self.reject(Job(id=f"{name}-{int(time.time())}", name=name, created_at=utc_now()), error)

    def fail(self, name: str, error: Exception, lost: Attempt | None = None) -> None:
        """A step on a job has raised an unexpected error: this job ends, and all others go on.

        :param lost: an attempt that has ended, if the step was to process its end.
        """
        log.error("job %s cannot be run", name, exc_info=error)
        why = f"the manager cannot go on with it ({type(error).__name__}: {error})"
        job = self._jobs.active.get(name)
        try:
            if job is None:
                self._reject_known(name, why)
                return
            if job.stopping is None or job.stopping.spares_always:
                cause = Cause(Reason.INVALID, _advice(why))
                if lost is not None and not job.tasks[lost.task_id].status.is_terminal:
                    self._turns.do(name, job.fail(lost.task_id, cause))
                self._limits.stop_job(job, cause)
                return
        except Exception as problem:  # noqa: BLE001 - it may be the same error again
            log.error("job %s cannot be ended as others are: %r", name, problem)
        self._drop(name, why)

    def _drop(self, name: str, why: str) -> None:
        """End a job without a look at its tasks."""
        self._turns.drop(name)
        job = self._jobs.active.get(name)
        if job is not None:
            self._jobs.release(job)
            self._limits.abandon(job, is_removed=False)
        try:
            if job is not None:
                self.reject(job.job, why)
            else:
                self._reject_known(name, why)
        except OSError as error:
            self._troubles.met(name, Step.END, error, partial(self._drop, name, why))
        except Exception as error:
            log.exception("job %s is left as it is, since its end cannot be written either", name, exc_info=error)
            with contextlib.suppress(OSError):
                self._jobs.remember(name, files.stamp(self._store.paths(name).state))

    def _reject_known(self, name: str, why: str) -> None:
        """End a job that is not active, with all that can be read of it."""
        try:
            job = self._store.load_job(name)[0].evolve(name=name)
        except Exception:  # noqa: BLE001 - it may be what was unexpected
            self.reject_unreadable(name, why)
        else:
            self.reject(job, why)


def _advice(error: str) -> str:
    return printable(f"{error}; put that right and retry the job")
