"""Jobs and tasks as the JSON API shows them: without the values of environment variables, and with secrets masked."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from airflow_provider_air_executor import links
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.index import TaskCounts
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, SubmittedBy, Task, TaskStatus, utc_now

_COMMAND_CHARACTERS = 2_000


class Owner(BaseModel):
    """The Airflow task that submitted a job, or the callback of a task or a DAG run."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int | None
    callback: str | None
    run_url: str
    task_url: str | None

    @classmethod
    def of(cls, submitted_by: SubmittedBy) -> Owner:
        """The owner as it is shown."""
        return cls(
            **submitted_by.model_dump(include={"dag_id", "run_id", "task_id", "map_index", "try_number", "callback"}),
            run_url=links.run_url(submitted_by),
            task_url=links.task_url(submitted_by) if submitted_by.task_id else None,
        )


class JobSummary(BaseModel):
    """A job as a row of the list. Times are in UTC; ``seconds`` is how long it has been running, or ran."""

    name: str
    state: JobState
    reason: Reason | None
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    seconds: float | None
    cancel_requested_at: datetime | None
    labels: dict[str, str]
    owner: Owner | None
    task_counts: dict[TaskStatus, int]

    @classmethod
    def fields_of(cls, job: Job, counts: TaskCounts, mask: Mask) -> dict[str, Any]:
        """The fields of a job."""
        ended_at = job.updated_at if job.state.is_terminal else None
        seconds = None
        if job.started_at is not None:
            seconds = max(0.0, ((ended_at or utc_now()) - job.started_at).total_seconds())
        return {
            **job.model_dump(include={"name", "state", "reason", "created_at", "started_at", "cancel_requested_at"}),
            "ended_at": ended_at,
            "seconds": seconds,
            "labels": {mask.text(key): mask.text(value) for key, value in job.labels.items()},
            "owner": Owner.of(job.submitted_by) if job.submitted_by is not None else None,
            "task_counts": counts,
        }

    @classmethod
    def of(cls, job: Job, counts: TaskCounts, mask: Mask) -> JobSummary:
        """The row of a job."""
        return cls(**cls.fields_of(job, counts, mask))


class JobList(BaseModel):
    """One page of the list, and how many jobs there are on all pages, by their states."""

    jobs: list[JobSummary]
    total: int
    state_counts: dict[JobState, int]


class JobDetails(JobSummary):
    """A job as its own page shows it.

    ``may_edit`` says whether the user may cancel and retry it, ``may_read_logs`` whether he may read what it prints.
    """

    error: str | None
    held_up: str | None  # what it waits for, or what the manager cannot do with it at the moment
    attempt: int
    priority: int
    timeout: float | None
    max_parallel_tasks: int | None
    outlets: tuple[str, ...]
    may_edit: bool
    may_read_logs: bool

    @classmethod
    def shown(
        cls, job: Job, counts: TaskCounts, mask: Mask, *, held_up: str | None, may_edit: bool, may_read_logs: bool
    ) -> JobDetails:
        """The job as it is shown."""
        return cls(
            **cls.fields_of(job, counts, mask),
            **job.model_dump(include={"attempt", "priority", "timeout", "max_parallel_tasks"}),
            outlets=tuple(mask.text(uri) for uri in job.outlets),
            error=mask.text(job.error) if job.error else None,
            held_up=mask.text(held_up) if held_up else None,
            may_edit=may_edit,
            may_read_logs=may_read_logs,
        )


class Attempt(BaseModel):
    """One attempt of a task."""

    number: int
    status: TaskStatus
    exit_code: int | None
    started_at: datetime | None
    ended_at: datetime | None

    @classmethod
    def of(cls, record: AttemptRecord) -> Attempt:
        """The attempt as it is shown."""
        return cls(
            number=record.number,
            status=record.status,
            exit_code=record.exit_code,
            started_at=record.started_at,
            ended_at=record.completed_at,
        )


class TaskDetails(BaseModel):
    """A task of a job. ``environment`` has the names of variables, never their values."""

    id: str
    command: str
    cwd: str | None
    environment: list[str]
    dependencies: tuple[str, ...]
    status: TaskStatus
    reason: Reason | None
    error: str | None
    where: str | None  # where an engine has it, and what it waits for there
    exit_code: int | None
    retries: int
    timeout: float | None
    attempts: list[Attempt]

    @classmethod
    def of(cls, task: Task, attempts: list[AttemptRecord], mask: Mask) -> TaskDetails:
        """The task as it is shown."""
        return cls(
            **task.model_dump(include={"id", "dependencies", "status", "reason", "exit_code", "retries", "timeout"}),
            command=_command(task, mask),
            cwd=mask.text(task.cwd) if task.cwd else None,
            environment=sorted(task.env or ()),
            error=mask.text(task.error) if task.error else None,
            where=mask.text(task.where) if task.where else None,
            attempts=[Attempt.of(attempt) for attempt in attempts if attempt.started_at is not None],
        )


class TaskList(BaseModel):
    """Tasks of a job, in the order of its list, and how many there are that were asked for."""

    tasks: list[TaskDetails]
    total: int


class Asked(BaseModel):
    """Whether something was asked of the manager; not if the job had ended already."""

    requested: bool


class Refusal(BaseModel):
    """Why a request was not carried out."""

    detail: str


def _command(task: Task, mask: Mask) -> str:
    """The command of a task: a line of shell code as it was written, anything else as one would type it."""
    if task.command == "bash" and len(task.args) == 2 and task.args[0] == "-c":
        text = mask.text(task.args[1])
    else:
        text = shlex.join(mask.text(word) for word in (task.command, *task.args))
    return text if len(text) <= _COMMAND_CHARACTERS else f"{text[:_COMMAND_CHARACTERS]} ..."
