"""Which job a request is about, and whether its user may see it.

Where the job filesystem is, a connection says, never the request. A user must have the right to see the DAG whose task
has submitted the job; a job without a DAG is for those who may see Airflow's own jobs. So that nobody learns which jobs
there are, one that does not exist is treated as one without a DAG.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import AccessView, DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.dag import DagModel
from airflow.sdk.exceptions import AirflowException
from fastapi import HTTPException, status

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore


class FoundJob(NamedTuple):
    """A job that the user may see."""

    job: Job
    store: JobStore
    conn_id: str
    user: BaseUser

    def permits(self, entity: DagAccessEntity) -> bool:
        """Whether the user may see also this part of the job's DAG."""
        return _is_permitted(self.user, self.job, entity)


def job_for(entity: DagAccessEntity) -> Callable[..., FoundJob]:
    """Make a dependency of a route: the job of its ``job_name``.

    It ends the request with 401 without a login, 403 without the right to see this part of the job's DAG, and 404 if
    there is no such job.

    :param entity: the part of the DAG.
    """

    def find(job_name: str, user: GetUserDep, conn_id: str = AirExecutorHook.default_conn_name) -> FoundJob:
        store = _store_of(conn_id)
        job = None if store is None else _load(store, job_name)
        if not _is_permitted(user, job, entity):
            raise HTTPException(status.HTTP_403_FORBIDDEN, "Forbidden")
        if store is None or job is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such job, or its state.json cannot be read")
        return FoundJob(job, store, conn_id, user)

    return find


def _store_of(conn_id: str) -> JobStore | None:
    """The job filesystem of a connection, if it is one of ours."""
    hook = AirExecutorHook(conn_id)
    with contextlib.suppress(AirflowException):  # the default one need not exist
        if hook.get_connection(conn_id).conn_type != hook.conn_type:
            return None
    try:
        return hook.store
    except (AirflowException, ValueError):
        return None


def _load(store: JobStore, job_name: str) -> Job | None:
    try:
        return store.get_job(job_name)
    except (AirExecutorError, OSError):
        return None


def _is_permitted(user: BaseUser, job: Job | None, entity: DagAccessEntity) -> bool:
    manager = get_auth_manager()
    if job is None or job.submitted_by is None:
        return manager.is_authorized_view(access_view=AccessView.JOBS, user=user)
    dag_id = job.submitted_by.dag_id
    if dag_id not in manager.get_authorized_dag_ids(user=user, method="GET"):
        return False
    details = DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id))
    return manager.is_authorized_dag(method="GET", access_entity=entity, details=details, user=user)
