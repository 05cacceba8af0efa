"""The results of tasks: what they have written to ``$AIR_EXECUTOR_OUTPUT``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from airflow_provider_air_executor.api.records import Result, ResultList
from airflow_provider_air_executor.api.view import SeenLog

MAX_RESULTS = 100  # of one answer; each may have a megabyte

router = APIRouter()


@router.get("/jobs/{job_name}/results")
def list_results(
    found: SeenLog,
    task_id: Annotated[Sequence[str], Query(description="Of one of these tasks.")] = (),
    limit: Annotated[int, Query(ge=0, le=MAX_RESULTS)] = 20,
    offset: Annotated[int, Query(ge=0, description="How many results to pass over.")] = 0,
) -> ResultList:
    """The results of a job's tasks, in the order of its list, without secrets. It needs the right to see logs."""
    shown = found.jobs.shown_results(found.job.name, task_id, limit=limit, offset=offset)
    return ResultList(results=[Result(**one._asdict()) for one in shown.results], total=shown.total)
