"""Jobs are submitted and changed.

Each of these requests may be sent again after a lost answer, without another effect.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from airflow_provider_air_executor.exceptions import JobNotFoundError
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy
from airflow_provider_air_executor.server import submissions
from airflow_provider_air_executor.server.access import SUBMIT, Asked, Asks, TokenDep
from airflow_provider_air_executor.server.bodies import Body
from airflow_provider_air_executor.server.limits import check_tasks
from airflow_provider_air_executor.server.load import WITH_LIST
from airflow_provider_air_executor.server.masking import shown_job
from airflow_provider_air_executor.server.messages import Added, Addition, Cancel, Requested, Retry, Submission
from airflow_provider_air_executor.server.problems import may_answer
from airflow_provider_air_executor.server.service import JobsDep, ServiceDep

router = APIRouter(tags=["changes"])

_SUBMISSION, _CANCEL, _RETRY = Body(Submission), Body(Cancel), Body(Retry)
_ADDITION, _WAITER = Body(Addition), Body(SubmittedBy)

_CHANGES = may_answer(404, 408, 409, 413)
_SUBMITTED: dict[int | str, dict[str, Any]] = {
    **may_answer(408, 409, 413),
    200: {"model": Job, "description": "The same request has submitted this job before."},
}


@router.post(
    "/jobs",
    status_code=201,
    responses=_SUBMITTED,
    openapi_extra=_SUBMISSION.described,
    dependencies=[Depends(Asks("submit")), SUBMIT],
)
def submit(
    submission: Annotated[Submission, Depends(_SUBMISSION)],
    token: TokenDep,
    service: ServiceDep,
    request: Request,
    response: Response,
) -> Job:
    """Submit a job: it exists exactly once, or not at all."""
    request.state.asked = Asked("submit", submission.name)
    check_tasks(len(submission.tasks))
    job, is_new = service.submissions.submit(submission, token)
    response.status_code = 201 if is_new else 200
    return shown_job(job, Mask(submission.secrets))


@router.post(
    "/jobs/{job_name}/cancel",
    responses=_CHANGES,
    openapi_extra=_CANCEL.described,
    dependencies=[Depends(Asks("cancel")), SUBMIT, WITH_LIST],
)
def cancel(job_name: str, wanted: Annotated[Cancel, Depends(_CANCEL)], token: TokenDep, jobs: JobsDep) -> Requested:
    """Ask the manager to cancel a job, or some of its tasks."""
    submissions.check_may_change(jobs, job_name, token)
    requested = jobs.cancel(job_name, wanted.owner, wanted.tasks, again=wanted.again)
    if requested:
        jobs.ensure_manager()
    return Requested(requested=requested)


@router.post(
    "/jobs/{job_name}/retry",
    status_code=204,
    responses=_CHANGES,
    openapi_extra=_RETRY.described,
    dependencies=[Depends(Asks("retry")), SUBMIT, WITH_LIST],
)
def retry(job_name: str, wanted: Annotated[Retry, Depends(_RETRY)], token: TokenDep, jobs: JobsDep) -> None:
    """Ask the manager to run again what failed of a job, some of its tasks, or all."""
    submissions.check_may_change(jobs, job_name, token)
    inbox.retry(jobs.store, job_name, wanted.tasks, all=wanted.all, attempt=wanted.attempt)
    jobs.ensure_manager()


@router.post(
    "/jobs/{job_name}/tasks",
    responses=_CHANGES,
    openapi_extra=_ADDITION.described,
    dependencies=[Depends(Asks("add tasks")), SUBMIT, WITH_LIST],
)
def add_tasks(
    job_name: str,
    addition: Annotated[Addition, Depends(_ADDITION)],
    token: TokenDep,
    jobs: JobsDep,
    service: ServiceDep,
) -> Added:
    """Ask the manager to append tasks to a job."""
    check_tasks(len(addition.tasks))
    submissions.check_may_change(jobs, job_name, token)
    return Added(ids=list(service.additions.add(job_name, addition)))


@router.put(
    "/jobs/{job_name}/waiter",
    status_code=204,
    responses=_CHANGES,
    openapi_extra=_WAITER.described,
    dependencies=[Depends(Asks("wait")), SUBMIT],
)
def set_waiter(job_name: str, owner: Annotated[SubmittedBy, Depends(_WAITER)], token: TokenDep, jobs: JobsDep) -> None:
    """Record that this try of an Airflow task waits for a job from now on."""
    submissions.check_may_change(jobs, job_name, token)
    jobs.reattach(job_name, owner.evolve(token=token.name))


@router.delete("/jobs/{job_name}", status_code=204, responses=_CHANGES, dependencies=[Depends(Asks("delete")), SUBMIT])
def delete(
    job_name: str,
    token: TokenDep,
    jobs: JobsDep,
    job_id: Annotated[str | None, Query(alias="id", description="That of the job: no other one is removed.")] = None,
) -> None:
    """Remove a job that has ended.

    With the id of the job, nothing happens if the job is gone already.
    """
    if job_id is not None:
        try:
            if jobs.get_job(job_name).id != job_id:
                return
        except JobNotFoundError:
            return
    submissions.check_may_change(jobs, job_name, token)
    jobs.delete(job_name)
