"""What people see of jobs: the same routes as those of the pages of Airflow, for tokens in place of its users."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from fastapi import APIRouter, Request

from airflow_provider_air_executor.api.reading import reading_routes
from airflow_provider_air_executor.api.view import View, WholeView
from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.server import submissions
from airflow_provider_air_executor.server.access import READ, TokenDep
from airflow_provider_air_executor.server.load import WITH_LIST
from airflow_provider_air_executor.server.problems import may_answer
from airflow_provider_air_executor.server.service import service_of


async def _view(request: Request, token: TokenDep) -> View:
    """All jobs; whoever has a token may see them."""
    service = service_of(request)
    jobs = service.jobs

    def may_change(job: Job) -> bool:
        try:
            return submissions.may_change(jobs, job.name, token)
        except (AirExecutorError, OSError):  # that cannot be known
            return False

    return WholeView(
        jobs,
        may_change=may_change,
        embedded=service.embedded,
        start_command=f"air-executor manager --base-path {jobs.where}",
    )


router = APIRouter(dependencies=[READ, WITH_LIST])
router.include_router(reading_routes(cast("Callable[..., View]", _view), may_answer(404)))
