"""Which job filesystems there are."""

from __future__ import annotations

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import APIRouter

from airflow_provider_air_executor.plugin.access import connections_for

router = APIRouter()


@router.get("/api/connections")
def list_connections(user: GetUserDep) -> list[str]:
    """The ids of the connections to job filesystems: the default one, and those where the user sees a job.

    One whose manager is away is among them, if nothing is known of its jobs.
    """
    return connections_for(user)
