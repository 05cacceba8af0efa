"""The list of jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, status

from airflow_provider_air_executor.api.records import JobList, JobSummary
from airflow_provider_air_executor.api.selection import Filters, Order, Sort, in_order
from airflow_provider_air_executor.api.view import CONNECTION_ERRORS, Right, View, ViewDep
from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, utc_now
from airflow_provider_air_executor.jobs.outcomes import JobOutcome, job_outcome

MAX_JOBS = 500  # of one answer

router = APIRouter()


@router.get("/dags")
def list_dags(view: ViewDep) -> list[str]:
    """The ids of the DAGs that have submitted a job which the user may see."""
    dag_ids = {job.submitted_by.dag_id for job in view.all_jobs() if job.submitted_by is not None}
    return sorted(dag_id for dag_id in dag_ids if view.permits_dag(dag_id))


async def filters_of(
    name: Annotated[str, Query(description="Part of the job's name, in whatever case.")] = "",
    state: Annotated[Sequence[JobState], Query(description="One of these states.")] = (),
    reason: Annotated[Sequence[Reason], Query(description="Failed for one of these reasons.")] = (),
    outcome: Annotated[Sequence[JobOutcome], Query(description="One of these: state and reason in one word.")] = (),
    label: Annotated[Sequence[str], Query(description="All of these labels: `key`, or `key=value`.")] = (),
    created_after: Annotated[datetime | None, Query(description="Submitted at this time or later.")] = None,
    created_before: Annotated[datetime | None, Query(description="Submitted before this time.")] = None,
    dag_id: Annotated[str | None, Query(description="Submitted by this DAG.")] = None,
    run_id: Annotated[str | None, Query(description="Submitted by this DAG run.")] = None,
    task_id: Annotated[str | None, Query(description="Submitted by this Airflow task.")] = None,
    map_index: Annotated[int | None, Query(description="Submitted by this task instance of a mapped task.")] = None,
) -> Filters:
    """A dependency of a route: the jobs that are asked for. As a coroutine it needs no thread of its own."""
    owner = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index}
    return Filters(
        name=name,
        states=state,
        reasons=reason,
        outcomes=outcome,
        labels=label,
        created_after=created_after,
        created_before=created_before,
        owner={key: value for key, value in owner.items() if value is not None},
    )


@router.get("/jobs")
def list_jobs(
    view: ViewDep,
    filters: Annotated[Filters, Depends(filters_of)],
    sort: Annotated[Sort, Query(description="What decides about the order.")] = Sort.CREATED,
    order: Annotated[Order, Query(description="Ascending or descending.")] = Order.DESCENDING,
    limit: Annotated[int, Query(ge=0, le=MAX_JOBS)] = 50,
    offset: Annotated[int, Query(ge=0, description="How many jobs to pass over.")] = 0,
) -> JobList:
    """The jobs that the user may see, the newest first. Asking for those of a DAG needs the right to see it."""
    dag_id = filters.owner.get("dag_id")
    if dag_id is not None and not view.permits_dag(dag_id):
        raise HTTPException(status.HTTP_403_FORBIDDEN, "Forbidden")
    jobs, index = view.all_jobs(), view.jobs.index(ahead=True)
    found = view.permitted(filters.select(index, jobs))
    kinds = Counter((job.state, job.reason) for job in found)
    shown = in_order(filters.by_outcome(found), sort, order, utc_now())
    is_empty = not found and not view.permits_any(jobs)
    return JobList(
        jobs=_rows(view, shown[offset : offset + limit]),
        total=len(shown),
        state_counts={one: sum(n for (state, _), n in kinds.items() if state is one) for one in JobState},
        outcome_counts={one: sum(n for kind, n in kinds.items() if job_outcome(*kind) is one) for one in JobOutcome},
        is_empty=is_empty,
        exists=not is_empty or view.exists,
        unreadable=index.unreadable if view.sees_all else 0,
    )


def _rows(view: View, shown: Sequence[Job]) -> list[JobSummary]:
    """Jobs as rows of the list."""
    jobs = view.jobs
    blocked, index = jobs.held_up(shown), jobs.index(ahead=True)
    rows = []
    for job in shown:
        held_up = blocked.get(job.name)
        try:
            shown_job, mask = job, jobs.mask(job.name)
        except CONNECTION_ERRORS:
            raise
        except AirExecutorError:  # the secrets that must not be shown are not known
            shown_job, mask, held_up = job.evolve(labels={}), Mask(), None
        rows.append(
            JobSummary.of(
                shown_job,
                index.outcomes(job.name),
                mask,
                held_up=held_up,
                may_edit=view.permits(job, Right.CHANGE),
                addresses=view.addresses,
            )
        )
    return rows
