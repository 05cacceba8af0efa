"""The job of an Airflow task: its first try submits it, and later tries reattach it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    JobExistsError,
    JobNotFoundError,
    JobRemovedError,
    NotRemovedError,
)
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, SubmittedBy, Task
from airflow_provider_air_executor.jobs.spec import JobSpec

log = logging.getLogger(__name__)


def why_gone(jobs: Jobs, job_name: str) -> JobNotFoundError:
    """The error for a job that was waited for and is not there any more; its history may say how it had ended."""
    past = None
    with contextlib.suppress(OSError):
        past = next((past for past in jobs.past_jobs() if past.name == job_name), None)
    if past is None:
        return JobNotFoundError(job_name, jobs.where)
    at = f" at {past.ended_at:%Y-%m-%d %H:%M:%S %Z}" if past.ended_at else ""
    error = f" ({past.error})" if past.error else ""
    return JobRemovedError(job_name, jobs.where, f"{past.state}{at}{error}")


def cancel_if_reached(hook: AirExecutorHook, job_name: str, owner: SubmittedBy | None, patience: float) -> bool | None:
    """Cancel a job, if its manager can be reached.

    :param patience: seconds for which that is tried.
    :return: False if it had ended already; None if it could not be cancelled, which is logged.
    :raises JobNotFoundError: if there is no such job.
    """
    try:
        return hook.cancel_job(job_name, owner, patience=patience)
    except JobNotFoundError:
        raise
    except (AirExecutorError, OSError) as error:
        log.error("job %s could not be cancelled: %s", job_name, error)
        return None


@dataclass(frozen=True)
class OwnJob:
    """The job of an Airflow task.

    :param name: of the job.
    :param owner: the task, and its try.
    :param spec: of a new job.
    :param make_tasks: makes the tasks of a new job; not called if the job of an earlier try is reattached.
    """

    hook: AirExecutorHook
    name: str
    owner: SubmittedBy
    spec: JobSpec
    make_tasks: Callable[[], tuple[Task, ...]]

    def submit(self, *, start_over: bool, poll_interval: float) -> tuple[Job, int]:
        """Submit the job, or reattach the one that an earlier try has submitted.

        A job of an earlier run of the task, which was cleared, is replaced by a new one.

        :param start_over: whether a job that failed is replaced too. Otherwise its failed tasks run again.
        :param poll_interval: seconds between two looks at a job that is to be replaced, until it has ended.
        :return: the job, and the last of its attempts whose end does not count; -1: all count.
        :raises JobExistsError: if the name is that of a job of another task.
        """
        job = self._find()
        if job is None:
            tasks = self.make_tasks()
            try:
                return self._create(tasks), -1
            except JobExistsError:
                job = self._find()  # another try, that is still alive, was faster
                if job is None:
                    raise
        is_same_run = job.submitted_by is not None and job.submitted_by.is_same_run(self.owner)
        if start_over and job.state is JobState.FAILED:
            log.info("job %s failed, and is to start over; it is replaced", self.name)
        elif not is_same_run or job.reason is Reason.INVALID:
            log.info("job %s is of an earlier run of this task, which was cleared; it is replaced", self.name)
        else:
            return self._reattach(job)
        return self._replace(poll_interval), -1

    def _find(self) -> Job | None:
        """The job that an earlier try has submitted, if there is one."""
        try:
            job = self.hook.get_job(self.name)
        except JobNotFoundError:
            return None
        return job if job.submitted_by is not None and job.submitted_by.is_same_task(self.owner) else None

    def _create(self, tasks: tuple[Task, ...]) -> Job:
        job = self.hook.create_job(self.name, tasks, submitted_by=self.owner, **self.spec)
        log.info("submitted job %s with %d tasks to %s", job.name, len(tasks), self.hook.jobs.where)
        return job

    def _reattach(self, job: Job) -> tuple[Job, int]:
        has_failed = job.state is JobState.FAILED
        if has_failed:
            log.info("job %s failed (%s); what failed of it runs again", job.name, job.error)
        else:
            log.info("job %s was submitted by an earlier try of this task and is %s", job.name, job.state.value)
        self.hook.reattach(job.name, self.owner)
        if has_failed:
            self.hook.retry_job(job.name)
            return job, job.attempt
        self.hook.ensure_manager()
        return job, -1

    def _replace(self, poll_interval: float) -> Job:
        if self.hook.cancel_job(self.name):
            self.hook.wait_for_job(self.name, poll_interval=poll_interval)
        tasks = self.make_tasks()
        try:
            self.hook.delete_job(self.name)
        except NotRemovedError as error:  # its name is free all the same
            log.warning("%s", error)
        return self._create(tasks)
