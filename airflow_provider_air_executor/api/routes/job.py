"""One job: what it is, its tasks, its events."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response, status
from fastapi.responses import StreamingResponse

from airflow_provider_air_executor.api import live
from airflow_provider_air_executor.api.records import Durations, JobDetails, PastRun, ended_at
from airflow_provider_air_executor.api.shape import JobGraph, busy_times
from airflow_provider_air_executor.api.task_records import TaskDetails, TaskList
from airflow_provider_air_executor.api.view import Right, SeenJob
from airflow_provider_air_executor.jobs import history
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.models import Task, TaskStatus, nearest_tasks
from airflow_provider_air_executor.jobs.outcomes import Outcome, outcome_of

MAX_TASKS = 2_000  # of one answer
MAX_RUNS = 200  # of one answer
MAX_GRAPH = 20_000  # tasks

router = APIRouter()


@router.get("/jobs/{job_name}")
def get_job(found: SeenJob) -> JobDetails:
    """A job."""
    job, jobs, view = found.job, found.jobs, found.view
    return JobDetails.shown(
        job,
        jobs.outcomes(job.name),
        jobs.mask(job.name),
        held_up=jobs.held_up([job]).get(job.name),
        may_edit=view.permits(job, Right.CHANGE),
        may_read_logs=view.permits(job, Right.SEE_LOGS),
        addresses=view.addresses,
    )


@router.get("/jobs/{job_name}/tasks")
def list_tasks(
    found: SeenJob,
    task_status: Annotated[Sequence[TaskStatus], Query(alias="status", description="With one of these statuses.")] = (),
    outcome: Annotated[Sequence[Outcome], Query(description="Which stand in one of these ways.")] = (),
    text: Annotated[str, Query(description="Part of the task's id, in whatever case.")] = "",
    task_id: Annotated[Sequence[str], Query(description="One of these ids.")] = (),
    near: Annotated[str, Query(description="Not the first ones, but those nearest to this task in the graph.")] = "",
    limit: Annotated[int, Query(ge=0, le=MAX_TASKS)] = 500,
    offset: Annotated[int, Query(ge=0, description="How many tasks to pass over.")] = 0,
) -> TaskList:
    """The tasks of a job, in the order of its list."""
    jobs, name = found.jobs, found.job.name
    listed = jobs.get_tasks(name)
    wanted: list[Task] = [
        task
        for task in (nearest_tasks(listed, near, limit) if near else listed)
        if (not task_status or task.status in task_status)
        and (not outcome or outcome_of(task.status, task.reason) in outcome)
        and text.lower() in task.id.lower()
        and (not task_id or task.id in task_id)
    ]
    page = wanted[offset : offset + limit]
    attempts: dict[str, list[AttemptRecord]] = {task.id: [] for task in listed}
    for record in jobs.get_attempts(name, listed):
        attempts[record.task_id].append(record)
    mask = jobs.mask(name)
    return TaskList(
        tasks=[TaskDetails.of(task, attempts[task.id], mask) for task in page],
        total=len(wanted),
        busy=busy_times(chain.from_iterable(attempts.values()), ended_at(found.job)),
    )


@router.get("/jobs/{job_name}/tasks/{task_id}")
def get_task(found: SeenJob, task_id: str) -> TaskDetails:
    """A task of a job, with its whole command."""
    jobs, name = found.jobs, found.job.name
    for task in jobs.get_tasks(name, [task_id]):
        attempts = list(jobs.get_attempts(name, [task]))
        return TaskDetails.of(task, attempts, jobs.mask(name), characters=None)
    raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such task in this job")


@router.get("/jobs/{job_name}/graph")
def get_graph(
    found: SeenJob,
    near: Annotated[str, Query(description="Not the first ones, but those nearest to this task.")] = "",
    limit: Annotated[int, Query(ge=0, le=MAX_GRAPH, description="At most so many tasks.")] = MAX_GRAPH,
) -> JobGraph:
    """How the tasks of a job depend on each other, and how each stands."""
    listed = found.jobs.get_tasks(found.job.name)
    return JobGraph.of(nearest_tasks(listed, near, limit) if near else listed[:limit])


@router.get("/jobs/{job_name}/durations")
def list_durations(found: SeenJob, limit: Annotated[int, Query(ge=1, le=MAX_RUNS)] = 30) -> Durations:
    """How long earlier jobs of the same Airflow task took, or of the same name, also those that have been removed."""
    job, jobs = found.job, found.jobs
    present = {each.name: each.started_at for each in jobs.index(ahead=True).jobs()}
    runs = jobs.durations(history.series_of(job))
    before = [run for run in runs if job.started_at is None or run.started < job.started_at]
    return Durations(
        runs=[
            PastRun(
                name=run.name,
                started_at=run.started,
                seconds=run.seconds,
                state=run.state,
                is_there=present.get(run.name) == run.started,
            )
            for run in before[::-1][:limit]
        ]
    )


@router.get("/jobs/{job_name}/events", response_class=Response, responses={200: live.DESCRIBED})
def follow_job(found: SeenJob) -> StreamingResponse:
    """Server-sent events of a job: `changed` when its files have changed, `end` when it has ended."""
    return live.stream(found)
