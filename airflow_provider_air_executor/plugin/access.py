"""Which job a request is about, and what its user may see and do.

Where the job filesystem is, a connection says, never the request. To see a job, a user must have the right to see the
task instances of the DAG whose task has submitted it, and for its logs the right to see theirs; to change it, the right
to edit them, as one needs it to clear a task. A job without a DAG is for those who may see Airflow's own jobs, and to
change it one must be allowed to edit the connection. So that nobody learns which jobs there are, one that does not
exist is treated as one without a DAG.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import (
    AccessView,
    ConnectionDetails,
    DagAccessEntity,
    DagDetails,
)
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.models.connection import Connection
from airflow.models.dag import DagModel
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException
from airflow.utils.session import create_session
from fastapi import Depends, HTTPException, Query, Request, status
from sqlalchemy import select

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.index import JobIndex
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore

Method = Literal["GET", "PUT"]
_indexes: dict[str, JobIndex] = {}


class Rights:
    """The rights of a user; each is asked for once in a request."""

    def __init__(self, user: BaseUser, conn_id: str) -> None:
        self.user = user
        self.conn_id = conn_id
        self._dag_ids: dict[Method, set[str]] = {}
        self._of_dags: dict[tuple[str, DagAccessEntity, Method], bool] = {}

    def permit(self, job: Job | None, entity: DagAccessEntity, method: Method = "GET") -> bool:
        """Whether the user may see or edit this part of the job's DAG; see the top of this module."""
        if job is None or job.submitted_by is None:
            return self._sees_jobs and (method == "GET" or self._edits_connection)
        return self.permit_dag(job.submitted_by.dag_id, entity, method)

    def permit_dag(self, dag_id: str, entity: DagAccessEntity, method: Method = "GET") -> bool:
        """Whether the user may see or edit this part of a DAG."""
        key = (dag_id, entity, method)
        if key not in self._of_dags:
            self._of_dags[key] = self._ask(*key)
        return self._of_dags[key]

    def _ask(self, dag_id: str, entity: DagAccessEntity, method: Method) -> bool:
        manager = get_auth_manager()
        for each in ("GET", method):
            if each not in self._dag_ids:
                self._dag_ids[each] = manager.get_authorized_dag_ids(user=self.user, method=each)
            if dag_id not in self._dag_ids[each]:
                return False
        details = DagDetails(id=dag_id, team_name=self._teams.get(dag_id))
        return manager.is_authorized_dag(method=method, access_entity=entity, details=details, user=self.user)

    @cached_property
    def _teams(self) -> dict[str, str | None]:
        """The teams of all DAGs that the user may see: one query, however many jobs there are."""
        if not conf.getboolean("core", "multi_team", fallback=False):
            return {}
        return DagModel.get_dag_id_to_team_name_mapping(list(self._dag_ids["GET"]))

    @cached_property
    def _sees_jobs(self) -> bool:
        return get_auth_manager().is_authorized_view(access_view=AccessView.JOBS, user=self.user)

    @cached_property
    def _edits_connection(self) -> bool:
        details = ConnectionDetails(conn_id=self.conn_id, team_name=Connection.get_team_name(self.conn_id))
        return get_auth_manager().is_authorized_connection(method="PUT", details=details, user=self.user)


ConnId = Annotated[str, Query(description="The connection that says where the job filesystem is.")]


def rights_of(user: GetUserDep, conn_id: ConnId = AirExecutorHook.default_conn_name) -> Rights:
    """A dependency of a route: what the user may do."""
    return Rights(user, conn_id)


RightsDep = Annotated[Rights, Depends(rights_of)]


class FoundJob(NamedTuple):
    """A job that the user may see."""

    job: Job
    hook: AirExecutorHook
    rights: Rights

    @property
    def store(self) -> JobStore:
        """The job filesystem it is in."""
        return self.hook.store

    def permits(self, entity: DagAccessEntity, method: Method = "GET") -> bool:
        """Whether the user may see or edit also this part of the job's DAG."""
        return self.rights.permit(self.job, entity, method)


def job_for(entity: DagAccessEntity, method: Method = "GET") -> Callable[..., FoundJob]:
    """Make a dependency of a route: the job of its ``job_name``.

    It ends the request with 401 without a login, 403 without the right to see or edit this part of the job's DAG, and
    404 if there is no such job.

    :param entity: the part of the DAG.
    :param method: ``GET`` to see it, ``PUT`` to edit it.
    """

    def find(job_name: str, rights: RightsDep) -> FoundJob:
        hook = hook_of(rights.conn_id)
        job = None if hook is None else _load(hook.store, job_name)
        if not rights.permit(job, entity, method):
            raise HTTPException(status.HTTP_403_FORBIDDEN, "Forbidden")
        if hook is None or job is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such job, or its state.json cannot be read")
        return FoundJob(job, hook, rights)

    return find


def hook_of(conn_id: str) -> AirExecutorHook | None:
    """The hook of a connection, if it is one of ours and valid."""
    hook = AirExecutorHook(conn_id)
    with contextlib.suppress(AirflowException):  # the default one need not exist
        if hook.get_connection(conn_id).conn_type != hook.conn_type:
            return None
    try:
        _ = hook.store
    except (AirflowException, ValueError):
        return None
    return hook


def index_of(store: JobStore) -> JobIndex:
    """The index of the jobs of a base path, which this process keeps."""
    return _indexes.setdefault(str(store.base_path), JobIndex(store, ahead=True))


def connections_for(user: BaseUser) -> list[str]:
    """The default connection, and of the others of our type in Airflow's database those where the user sees a job."""
    query = select(Connection.conn_id).where(Connection.conn_type == AirExecutorHook.conn_type)
    with create_session() as session:
        found = set(session.scalars(query.order_by(Connection.conn_id)))
    default = AirExecutorHook.default_conn_name
    return [default, *(conn_id for conn_id in sorted(found - {default}) if _sees_any_job(user, conn_id))]


def _sees_any_job(user: BaseUser, conn_id: str) -> bool:
    rights, hook = Rights(user, conn_id), hook_of(conn_id)
    try:
        jobs = () if hook is None else index_of(hook.store).jobs()
    except OSError:
        return False
    return any(rights.permit(job, DagAccessEntity.TASK_INSTANCE) for job in jobs)


def same_site(request: Request) -> None:
    """A dependency of a route that changes something: a page of another site cannot call it in the user's name.

    A browser says where a request comes from; a client that does not is no browser, and has no cookie of a user.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        allowed = site == "same-origin"
    else:
        ours = {request.headers.get("host"), urlsplit(conf.get("api", "base_url", fallback="") or "").netloc}
        theirs = "" if origin is None else urlsplit(origin).netloc  # of "null", which hides where it is, too
        allowed = origin is None or (theirs != "" and theirs in ours)
    if not allowed:
        raise HTTPException(status.HTTP_403_FORBIDDEN, "this request comes from another site")


def _load(store: JobStore, job_name: str) -> Job | None:
    try:
        return store.get_job(job_name)
    except (AirExecutorError, OSError):
        return None
