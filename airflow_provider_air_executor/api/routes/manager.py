"""The manager of a job filesystem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, HTTPException, status

from airflow_provider_air_executor.api.records import Manager, ResourceShare, RunnerSlots, Waiting
from airflow_provider_air_executor.api.view import CONNECTION_ERRORS, Right, View, ViewDep
from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo, OldestWaiting
from airflow_provider_air_executor.jobs.models import Job

router = APIRouter()


@router.get("/manager")
def get_manager(view: ViewDep) -> Manager:
    """The manager of a job filesystem, for users who see a job of it, or may see Airflow's own jobs."""
    jobs = _jobs_of(view)
    try:
        info, problem = view.jobs.manager(), None
    except CONNECTION_ERRORS:
        raise
    except (AirExecutorError, OSError) as error:
        info, problem = None, f"it is not known whether a manager runs: {error}"
    return Manager(
        running=None if problem else info is not None,
        problem=problem,
        embedded=view.embedded,
        command=view.start_command if info is None else None,
        **_shown(info or ManagerInfo(0), view, jobs),
    )


def _jobs_of(view: View) -> Sequence[Job]:
    """All jobs, for somebody who may know something of their manager."""
    try:
        jobs = view.all_jobs()
        is_allowed = view.sees_all or view.permits_any(jobs)
    except HTTPException:
        if view.sees_all:
            raise
        is_allowed = False
    if not is_allowed:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "Forbidden")
    return jobs


def _shown(info: ManagerInfo, view: View, jobs: Sequence[Job]) -> dict[str, Any]:
    """What somebody may know of the manager."""
    return {
        "version": info.version or None,
        "started_at": info.started_at,
        "paused": info.paused,
        "slots": {name: RunnerSlots(**slots._asdict()) for name, slots in info.slots.items()},
        "capacity": {name: ResourceShare(used=share.used, limit=share.limit) for name, share in info.capacity.items()},
        "queued": info.queued,
        "oldest_waiting": _waiting(info.oldest_waiting, view, jobs) if info.oldest_waiting else None,
        "jobs": dict(info.jobs),
        "pid": info.pid if info.pid and view.sees_all else None,
        "host": info.host if info.host and view.sees_all else None,
    }


def _waiting(oldest: OldestWaiting, view: View, jobs: Sequence[Job]) -> Waiting:
    is_shown = any(job.name == oldest.job and view.permits(job, Right.SEE) for job in jobs)
    return Waiting(job=oldest.job if is_shown else None, since=oldest.since)
