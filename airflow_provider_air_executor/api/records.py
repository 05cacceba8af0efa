"""Jobs as the API shows them, with secrets masked; :mod:`.task_records` has their tasks."""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from airflow_provider_air_executor.api.view import Addresses
from airflow_provider_air_executor.jobs.index import OutcomeCounts
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import (
    Job,
    JobState,
    Reason,
    SubmittedBy,
    TaskStatus,
    default_job_name,
    name_with_digest,
    utc_now,
)
from airflow_provider_air_executor.jobs.outcomes import JobOutcome, Outcome, job_outcome

_DIGEST_LENGTH = 17  # of a generated name, at its end
_DIGEST = re.compile("-[0-9a-f]{16}")


class Owner(BaseModel):
    """The Airflow task that submitted a job, or the callback of a task or a DAG run.

    ``run_url`` and ``task_url`` are null where it is not known in which Airflow.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int | None
    callback: str | None
    run_url: str | None
    task_url: str | None

    @classmethod
    def of(cls, submitted_by: SubmittedBy, addresses: Addresses | None = None) -> Owner:
        """The owner as it is shown.

        :param addresses: in its Airflow.
        """
        return cls(
            **submitted_by.model_dump(include={"dag_id", "run_id", "task_id", "map_index", "try_number", "callback"}),
            run_url=addresses.run_url(submitted_by) if addresses else None,
            task_url=addresses.task_url(submitted_by) if addresses and submitted_by.task_id else None,
        )


class JobSummary(BaseModel):
    """A job as a row of the list. Times are in UTC; ``seconds`` is how long it has been running, or ran.

    ``title`` is what a reader needs of a generated name: the Airflow task, or the callback. ``held_up`` says why the
    job does not progress: what it waits for, or what the manager cannot do with it now. ``may_edit`` says whether the
    user may cancel and retry it.
    """

    name: str
    title: str | None
    state: JobState
    reason: Reason | None
    outcome: JobOutcome  # state and reason in one word
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    seconds: float | None
    cancel_requested_at: datetime | None
    labels: dict[str, str]
    owner: Owner | None
    task_counts: dict[TaskStatus, int]
    outcome_counts: dict[Outcome, int]  # a failure of its own, and one that follows from it, apart
    held_up: str | None
    may_edit: bool

    @classmethod
    def fields_of(
        cls,
        job: Job,
        counts: OutcomeCounts,
        mask: Mask,
        *,
        held_up: str | None,
        may_edit: bool,
        addresses: Addresses | None,
    ) -> dict[str, Any]:
        """The fields of a job.

        :param addresses: those of its owner, in its Airflow.
        """
        task_counts: Counter[TaskStatus] = Counter()
        for outcome, number in counts.items():
            task_counts[outcome.status] += number
        return {
            **job.model_dump(include={"name", "state", "reason", "created_at", "started_at", "cancel_requested_at"}),
            "title": title_of(job),
            "outcome": job_outcome(job.state, job.reason),
            "ended_at": ended_at(job),
            "seconds": seconds_of(job, utc_now()),
            "labels": {mask.text(key): mask.text(value) for key, value in job.labels.items()},
            "owner": Owner.of(job.submitted_by, addresses) if job.submitted_by is not None else None,
            "task_counts": dict(task_counts),
            "outcome_counts": counts,
            "held_up": mask.text(held_up) if held_up else None,
            "may_edit": may_edit,
        }

    @classmethod
    def of(
        cls,
        job: Job,
        counts: OutcomeCounts,
        mask: Mask,
        *,
        held_up: str | None = None,
        may_edit: bool = False,
        addresses: Addresses | None = None,
    ) -> JobSummary:
        """The row of a job; see :meth:`fields_of`."""
        return cls(**cls.fields_of(job, counts, mask, held_up=held_up, may_edit=may_edit, addresses=addresses))


class JobList(BaseModel):
    """One page of the list, and how many jobs there are on all pages, by their states.

    ``is_empty`` says whether the user sees no job at all, whatever the filters are; ``exists`` whether the base path is
    there. ``unreadable`` is the number of jobs that the API server may not read.
    """

    jobs: list[JobSummary]
    total: int
    state_counts: dict[JobState, int]
    outcome_counts: dict[JobOutcome, int]
    is_empty: bool
    exists: bool
    unreadable: int


class JobDetails(JobSummary):
    """A job as its own page shows it.

    ``may_read_logs`` says whether the user may read what it prints.
    """

    error: str | None
    attempt: int
    priority: int
    timeout: float | None
    max_parallel_tasks: int | None
    runner: str | None
    outlets: tuple[str, ...]
    may_read_logs: bool

    @classmethod
    def shown(
        cls,
        job: Job,
        counts: OutcomeCounts,
        mask: Mask,
        *,
        held_up: str | None,
        may_edit: bool,
        may_read_logs: bool,
        addresses: Addresses | None = None,
    ) -> JobDetails:
        """The job as it is shown; see :meth:`fields_of`."""
        return cls(
            **cls.fields_of(job, counts, mask, held_up=held_up, may_edit=may_edit, addresses=addresses),
            **job.model_dump(include={"attempt", "priority", "timeout", "max_parallel_tasks", "runner"}),
            outlets=tuple(mask.text(uri) for uri in job.outlets),
            error=mask.text(job.error) if job.error else None,
            may_read_logs=may_read_logs,
        )


class PastRun(BaseModel):
    """An earlier job of the same series; ``is_there`` says whether it still has a page."""

    name: str
    started_at: datetime
    seconds: float
    state: str
    is_there: bool


class Durations(BaseModel):
    """How long the runs before a job took, the latest first.

    They are jobs of the same Airflow task, or, without one, of the same name, also those that have been removed.
    """

    runs: list[PastRun]


class LogPart(BaseModel):
    """The part of a task's log that an attempt has printed, in bytes."""

    number: int
    begin: int
    end: int


class LogTimes(BaseModel):
    """When a task's log has grown: times in seconds since 1970, with the length of the log in bytes at that time."""

    size: int
    times: list[tuple[float, int]]
    attempts: list[LogPart]


class LogMatches(BaseModel):
    """Where lines of a log begin that have a text, in bytes, and where to go on with the search, unless it is over."""

    offsets: list[int]
    next_offset: int | None


class Result(BaseModel):
    """What a task has written to `$AIR_EXECUTOR_OUTPUT`; ``problem`` says why it cannot be shown."""

    task_id: str
    value: Any
    problem: str | None


class ResultList(BaseModel):
    """Results of tasks, in the order of the job's list, and of how many tasks there are any."""

    results: list[Result]
    total: int


class RunnerSlots(BaseModel):
    """How many attempts of tasks a runner has, and how many it may have."""

    used: int
    limit: int


class ResourceShare(BaseModel):
    """How much of a resource of the manager's machine tasks hold, and how much there is for them.

    Of ``cpus`` it is processors, of ``memory`` bytes, and of ``gpus`` graphics processors.
    """

    used: float
    limit: float


class Waiting(BaseModel):
    """The job that has waited longest for its start; its name only for users who may see it."""

    job: str | None
    since: datetime


class Manager(BaseModel):
    """The manager of a job filesystem.

    ``running`` is null if that cannot be known, and ``problem`` says why. ``embedded`` says whether one is started when
    a job is submitted, and ``command`` what starts one otherwise, for users who may edit the connection. ``pid`` and
    ``host`` are for users who may see Airflow's own jobs.
    """

    running: bool | None
    problem: str | None
    embedded: bool
    command: str | None
    version: str | None
    started_at: datetime | None
    paused: bool
    slots: dict[str, RunnerSlots]
    capacity: dict[str, ResourceShare]
    queued: int
    oldest_waiting: Waiting | None
    jobs: dict[str, int]
    pid: int | None
    host: str | None


def ended_at(job: Job) -> datetime | None:
    """When a job ended."""
    return job.updated_at if job.state.is_terminal else None


def seconds_of(job: Job, now: datetime) -> float | None:
    """How long a job has been running, or ran; None if it has not started."""
    if job.started_at is None:
        return None
    return max(0.0, ((ended_at(job) or now) - job.started_at).total_seconds())


def title_of(job: Job) -> str | None:
    """What a generated name stands for: ``task [index]``, or the callback; None for a name that somebody has given."""
    owner = job.submitted_by
    if owner is None or not _DIGEST.fullmatch(job.name[-_DIGEST_LENGTH:]):
        return None
    mapped = f" [{owner.map_index}]" if owner.map_index >= 0 else ""
    if owner.callback is None:
        is_generated = _readable_part(default_job_name(owner)) == _readable_part(job.name)
        return f"{owner.task_id}{mapped}" if is_generated else None
    if not job.name.startswith(_readable_part(name_with_digest(f"{owner.callback}__{owner.dag_id}", ""))):
        return None
    return f"{owner.task_id}{mapped}: {owner.callback}" if owner.task_id else owner.callback


def _readable_part(name: str) -> str:
    return name[:-_DIGEST_LENGTH]
