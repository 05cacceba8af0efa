"""What can be asked of one job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, status

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.plugin import audit
from airflow_provider_air_executor.plugin.access import FoundJob
from airflow_provider_air_executor.plugin.records import Asked
from airflow_provider_air_executor.plugin.routes.shared import ABOUT_A_JOB, ASKING, EditedJob, refusals

_UNPROCESSABLE = 422  # whose name in Starlette has changed

router = APIRouter()


@router.post("/api/jobs/{job_name}/cancel", responses=ABOUT_A_JOB, **ASKING)
def cancel_job(
    found: EditedJob,
    task: Annotated[Sequence[str], Query(description="Only these tasks, by their ids; the job goes on.")] = (),
) -> Asked:
    """Request that a job, or some tasks of it, are cancelled: what runs is killed, and the others do not start."""
    if found.job.state.is_terminal:
        return Asked(requested=False)
    with _of_known_tasks():
        _check_tasks(found, task)
        audit.record("cancel", found, **_about(task))
        requested = found.jobs.cancel(found.job.name, tasks=task)
    if requested:
        found.jobs.ensure_manager()
    return Asked(requested=requested)


@router.post("/api/jobs/{job_name}/retry", responses={**ABOUT_A_JOB, **refusals(status.HTTP_409_CONFLICT)}, **ASKING)
def retry_job(
    found: EditedJob,
    task: Annotated[
        Sequence[str], Query(description="Only these tasks, by their ids, and those that failed because of them.")
    ] = (),
    all_tasks: Annotated[bool, Query(alias="all", description="All tasks, also those that have completed.")] = False,
) -> Asked:
    """Request that a job which has ended runs again: its failed tasks and those that depend on them, or others.

    409 if it has not ended, if nothing of it failed and no tasks are named, or if a task cannot run before another one.
    """
    if task and all_tasks:
        raise HTTPException(_UNPROCESSABLE, "name tasks, or ask for all, not both")
    with _of_known_tasks():
        _check_tasks(found, task)
        audit.record("retry", found, **_about(task), **({"all": True} if all_tasks else {}))
        found.jobs.retry(found.job.name, task, all=all_tasks)
    found.jobs.ensure_manager()
    return Asked(requested=True)


def _about(tasks: Sequence[str]) -> dict[str, list[str]]:
    """The tasks of a request, for the audit log."""
    return {"tasks": list(tasks)} if tasks else {}


def _check_tasks(found: FoundJob, task_ids: Sequence[str]) -> None:
    """Refuse a request about tasks that the job does not have, before it is in the audit log."""
    known = {task.id for task in found.jobs.get_tasks(found.job.name, task_ids)} if task_ids else set()
    missing = [task_id for task_id in task_ids if task_id not in known]
    if missing:
        raise InvalidJobError(f"there is no task {missing[0]!r} in this job")


@contextmanager
def _of_known_tasks() -> Iterator[None]:
    """Say that there is no such task, where one is named that the job does not have."""
    try:
        yield
    except InvalidJobError as error:
        raise HTTPException(status.HTTP_404_NOT_FOUND, str(error)) from None
