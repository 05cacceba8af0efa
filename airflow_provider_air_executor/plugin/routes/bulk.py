"""The same request about several jobs."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, status

from airflow_provider_air_executor.api.view import CONNECTION_ERRORS, Right, find_job
from airflow_provider_air_executor.exceptions import (
    AccessError,
    AirExecutorError,
    JobNotFoundError,
    JobStateError,
    NotRemovedError,
)
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.plugin import audit
from airflow_provider_air_executor.plugin.access import MISSING, FoundJob, PageView, page_view
from airflow_provider_air_executor.plugin.records import Bulk, BulkAnswer
from airflow_provider_air_executor.plugin.routes.shared import ABOUT_A_JOB, ASKING

router = APIRouter()


@router.post("/api/jobs/bulk", responses=ABOUT_A_JOB, **ASKING)
def ask_of_jobs(view: Annotated[PageView, Depends(page_view)], asked: Bulk) -> list[BulkAnswer]:
    """Request that several jobs are cancelled or retried, or remove those that have ended; each has its own answer."""
    jobs = view.jobs
    answers: dict[str, BulkAnswer] = {}
    accepted = []
    for name in dict.fromkeys(asked.jobs):
        found = _find(view, name, asked.action)
        if isinstance(found, BulkAnswer):
            answers[name] = found
        else:
            answers[name] = BulkAnswer(job=name, requested=True, status=status.HTTP_202_ACCEPTED)
            accepted.append(found)
    if accepted:
        audit.record(asked.action, *accepted)
        answers |= {found.job.name: _ask(found, asked.action) for found in accepted}
    if asked.action != "remove" and any(answer.requested for answer in answers.values()):
        jobs.ensure_manager()
    return list(answers.values())


def _find(view: PageView, name: str, action: str) -> FoundJob | BulkAnswer:
    """A job of which this can be asked, or why it cannot."""
    try:
        found = FoundJob(find_job(view, name, Right.CHANGE), view)
    except HTTPException as error:
        return BulkAnswer(job=name, requested=False, status=error.status_code, detail=error.detail)
    except CONNECTION_ERRORS:
        raise
    except (AirExecutorError, OSError):
        return BulkAnswer(job=name, requested=False, status=status.HTTP_404_NOT_FOUND, detail=MISSING)
    if action == "cancel" and found.job.state.is_terminal:
        return BulkAnswer(job=name, requested=False, status=status.HTTP_202_ACCEPTED, detail="it has ended already")
    if action == "retry" and found.job.state is not JobState.FAILED:
        why = f"it is {found.job.state}; only a failed job can be retried"
        return BulkAnswer(job=name, requested=False, status=status.HTTP_409_CONFLICT, detail=why)
    if action == "remove" and not found.job.state.is_terminal:
        why = f"it is {found.job.state}; only a job that has ended can be removed"
        return BulkAnswer(job=name, requested=False, status=status.HTTP_409_CONFLICT, detail=why)
    return found


def _ask(found: FoundJob, action: str) -> BulkAnswer:
    name, code, why = found.job.name, status.HTTP_202_ACCEPTED, None
    try:
        requested = _do(found, action)
    except JobStateError as error:
        requested, code, why = False, status.HTTP_409_CONFLICT, str(error)
    except NotRemovedError as error:
        requested, code, why = False, status.HTTP_503_SERVICE_UNAVAILABLE, str(error)
    except AccessError:
        requested, code, why = False, status.HTTP_403_FORBIDDEN, "the token of this connection does not allow it"
    except CONNECTION_ERRORS:
        requested, code, why = False, status.HTTP_503_SERVICE_UNAVAILABLE, "the manager cannot be reached"
    except (AirExecutorError, OSError):
        requested, code = False, status.HTTP_503_SERVICE_UNAVAILABLE
        why = "the manager cannot be asked: the job filesystem cannot be written to from here"
    return BulkAnswer(job=name, requested=requested, status=code, detail=why)


def _do(found: FoundJob, action: str) -> bool:
    """Ask the manager, or remove the job; whether there was anything to be done."""
    name = found.job.name
    if action == "cancel":
        return found.jobs.cancel(name, again=False)
    if action == "retry":
        found.jobs.retry(name)
    else:
        with contextlib.suppress(JobNotFoundError):  # somebody else was faster
            found.jobs.delete(name)
    return True
