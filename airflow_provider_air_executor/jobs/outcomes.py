"""How a task stands, in one word: its status, and of a failure what kind it was.

Status and reason are what the files hold. People need one word: a task that failed by itself is a cause, one that never
ran because of it is a consequence.
"""

from __future__ import annotations

import enum

from airflow_provider_air_executor.jobs.models import JobState, Reason, TaskStatus


class Outcome(enum.StrEnum):
    """How a task stands."""

    PENDING = "pending"  # not started, or to be started again
    RUNNING = "running"
    COMPLETED = "completed"
    SKIPPED = "skipped"  # it was not needed, and counts as completed
    FAILED = "failed"  # by itself: exit code, signal, or it could not be started
    TIMED_OUT = "timed_out"
    LOST = "lost"
    CANCELLED = "cancelled"
    UPSTREAM_FAILED = "upstream_failed"  # it did not run, for one that it depends on failed

    @property
    def status(self) -> TaskStatus:
        """The status of a task that stands so."""
        if self in (Outcome.PENDING, Outcome.RUNNING):
            return TaskStatus(self.value)
        return TaskStatus.COMPLETED if self in (Outcome.COMPLETED, Outcome.SKIPPED) else TaskStatus.FAILED


class JobOutcome(enum.StrEnum):
    """How a job stands; in the order in which lists have them."""

    WAITING = "waiting"
    WORKING = "working"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    LOST = "lost"


# By the values, since a file may hold a reason of a later version.
_OF_FAILURES: dict[str, Outcome] = {
    "timeout": Outcome.TIMED_OUT,
    "lost": Outcome.LOST,
    "cancelled": Outcome.CANCELLED,
    "dependency": Outcome.UPSTREAM_FAILED,
}


def outcome_of(status: TaskStatus, reason: Reason | str | None) -> Outcome:
    """The word for a task."""
    if status is TaskStatus.FAILED:
        return _OF_FAILURES.get(reason or "", Outcome.FAILED)
    if status is TaskStatus.COMPLETED and reason == "skipped":
        return Outcome.SKIPPED
    return Outcome(status.value)


def job_outcome(state: JobState, reason: Reason | None) -> JobOutcome:
    """The word for a job."""
    if state is not JobState.FAILED:
        return JobOutcome(state.value)
    return _OF_FAILED_JOBS.get(reason, JobOutcome.FAILED)


_OF_FAILED_JOBS: dict[Reason | None, JobOutcome] = {
    Reason.CANCELLED: JobOutcome.CANCELLED,
    Reason.TIMEOUT: JobOutcome.TIMED_OUT,
    Reason.LOST: JobOutcome.LOST,
}
