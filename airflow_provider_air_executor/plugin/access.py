"""Which job a request is about, and what its user may see and do.

Where the job filesystem is, a connection says, never the request. To see a job, a user must have the right to see the
task instances of the DAG whose task has submitted it, and for its logs the right to see theirs; to change it, the right
to edit them, as one needs it to clear a task. A job without a DAG is for those who may see Airflow's own jobs, and to
change it one must be allowed to edit the connection. So that nobody learns which jobs there are, one that does not
exist is treated as one without a DAG.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from shlex import quote
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

from airflow_provider_air_executor import links
from airflow_provider_air_executor.api.view import CONNECTION_ERRORS, Right, find_job
from airflow_provider_air_executor.connections import Location
from airflow_provider_air_executor.exceptions import AirExecutorError, JobsAwayError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.plugin.pages import HEADERS

_ASKED_AT_ONCE = 8  # connections
_ANSWER_SECONDS = 3.0  # for which they are waited for, all together

MISSING = "there is no such job, or its state.json cannot be read"

Method = Literal["GET", "PUT"]


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
            return self.sees_jobs and (method == "GET" or self.edits_connection)
        return self.permit_dag(job.submitted_by.dag_id, entity, method)

    def permitted(self, jobs: Iterable[Job]) -> list[Job]:
        """Those of the jobs that the user may see; there may be very many, of few DAGs."""
        known: dict[str | None, bool] = {}
        found = []
        for job in jobs:
            owner = job.submitted_by
            dag_id = None if owner is None else owner.dag_id
            if dag_id not in known:
                known[dag_id] = self.permit(job, DagAccessEntity.TASK_INSTANCE)
            if known[dag_id]:
                found.append(job)
        return found

    def permit_any(self, jobs: Iterable[Job]) -> bool:
        """Whether the user may see one of these jobs."""
        return any(self.permit(job, DagAccessEntity.TASK_INSTANCE) for job in jobs)

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
    def sees_jobs(self) -> bool:
        """Whether the user may see Airflow's own jobs, and so those without a DAG."""
        return get_auth_manager().is_authorized_view(access_view=AccessView.JOBS, user=self.user)

    @cached_property
    def edits_connection(self) -> bool:
        """Whether the user may edit the connection."""
        details = ConnectionDetails(conn_id=self.conn_id, team_name=Connection.get_team_name(self.conn_id))
        return get_auth_manager().is_authorized_connection(method="PUT", details=details, user=self.user)


ConnId = Annotated[str, Query(description="The connection that says where the job filesystem is.")]


def rights_of(user: GetUserDep, conn_id: ConnId = AirExecutorHook.default_conn_name) -> Rights:
    """A dependency of a route: what the user may do."""
    return Rights(user, conn_id)


RightsDep = Annotated[Rights, Depends(rights_of)]


_ASKED: Mapping[Right, tuple[DagAccessEntity, Method]] = {
    Right.SEE: (DagAccessEntity.TASK_INSTANCE, "GET"),
    Right.SEE_LOGS: (DagAccessEntity.TASK_LOGS, "GET"),
    Right.CHANGE: (DagAccessEntity.TASK_INSTANCE, "PUT"),
}


class PageView:
    """The job filesystem of a connection as a user of Airflow may see it; see the top of this module.

    :param rights: the user's, and which connection it is.
    """

    headers = HEADERS
    addresses = links

    def __init__(self, rights: Rights) -> None:
        self.rights = rights

    @cached_property
    def hook(self) -> AirExecutorHook:
        """The hook of the connection.

        :raises HTTPException: if it is none of ours, or is not valid.
        """
        hook = hook_of(self.rights.conn_id)
        if hook is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, "this is no connection to a job filesystem")
        return hook

    @cached_property
    def jobs(self) -> Jobs:
        """See :class:`~..api.view.View`. A manager that is away is not waited for: the API server has few threads."""
        return self.hook.patient(0.0)

    @property
    def sees_all(self) -> bool:
        """See :class:`~..api.view.View`."""
        return self.rights.sees_jobs

    @property
    def embedded(self) -> bool:
        """See :class:`~..api.view.View`."""
        return self.hook.location.embedded

    @property
    def start_command(self) -> str | None:
        """See :class:`~..api.view.View`."""
        if not self.rights.edits_connection:
            return None
        base_path = self.hook.location.base_path
        return "air-executor manager" + (f" --base-path {quote(base_path)}" if base_path else "")

    @property
    def exists(self) -> bool:
        """See :class:`~..api.view.View`."""
        location = self.hook.location
        return not isinstance(location, Location) or os.path.isdir(location.base_path)  # another machine has answered

    def all_jobs(self) -> Sequence[Job]:
        """See :class:`~..api.view.View`."""
        try:
            return self.jobs.index(ahead=True).jobs()
        except JobsAwayError:
            raise
        except OSError as error:
            why = f"the job filesystem of this connection cannot be read by the API server: {error.strerror}"
            raise HTTPException(status.HTTP_404_NOT_FOUND, why) from None

    def permits(self, job: Job | None, right: Right) -> bool:
        """See :class:`~..api.view.View`."""
        if not self.rights.permit(job, *_ASKED[right]):
            return False
        return right is not Right.CHANGE or job is None or self.jobs.may_change(job)

    def permits_dag(self, dag_id: str) -> bool:
        """See :class:`~..api.view.View`."""
        return self.rights.permit_dag(dag_id, DagAccessEntity.TASK_INSTANCE)

    def permitted(self, jobs: Iterable[Job]) -> Sequence[Job]:
        """See :class:`~..api.view.View`."""
        return self.rights.permitted(jobs)

    def permits_any(self, jobs: Iterable[Job]) -> bool:
        """See :class:`~..api.view.View`."""
        return self.rights.permit_any(jobs)


def page_view(request: Request, rights: RightsDep) -> PageView:
    """A dependency of a route: what its user may see of the connection that the request names."""
    view = PageView(rights)
    request.state.page_view = view  # for the answer to an error
    return view


class FoundJob(NamedTuple):
    """A job of which the user may see or change something."""

    job: Job
    view: PageView

    @property
    def jobs(self) -> Jobs:
        """The job filesystem it is in."""
        return self.view.jobs

    @property
    def rights(self) -> Rights:
        """The rights of the user."""
        return self.view.rights


def job_for(right: Right) -> Callable[..., FoundJob]:
    """Make a dependency of a route: the job of its ``job_name``.

    It ends the request with 401 without a login, 403 without the right to it, and 404 if there is no such job.
    """

    def find(job_name: str, view: Annotated[PageView, Depends(page_view)]) -> FoundJob:
        return FoundJob(find_job(view, job_name, right), view)

    return find


def hook_of(conn_id: str) -> AirExecutorHook | None:
    """The hook of a connection, if it is one of ours and valid."""
    hook = AirExecutorHook(conn_id)
    with contextlib.suppress(AirflowException):  # the default one need not exist
        if hook.get_connection(conn_id).conn_type != hook.conn_type:
            return None
    try:
        _ = hook.jobs
    except (AirflowException, ValueError):
        return None
    return hook


def connections_for(user: BaseUser) -> list[str]:
    """The default connection, and of the others of our type in Airflow's database those where the user sees a job.

    Those of which that is not known in time are among them, so that a manager that is away is not taken for one that
    has no jobs.
    """
    query = select(Connection.conn_id).where(Connection.conn_type == AirExecutorHook.conn_type)
    with create_session() as session:
        found = set(session.scalars(query))
    default = AirExecutorHook.default_conn_name
    return [default, *_with_jobs(user, sorted(found - {default}))]


def _with_jobs(user: BaseUser, conn_ids: Sequence[str]) -> list[str]:
    """Those of the connections where the user sees a job, or it is not known whether he does; all are asked at once."""
    if not conn_ids:
        return []
    pool = ThreadPoolExecutor(min(_ASKED_AT_ONCE, len(conn_ids)), thread_name_prefix="air-executor-connections")
    answers = {conn_id: pool.submit(_sees_any_job, user, conn_id) for conn_id in conn_ids}
    known, _ = wait(answers.values(), timeout=_ANSWER_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    return [conn_id for conn_id, answer in answers.items() if answer not in known or answer.result()]


def _sees_any_job(user: BaseUser, conn_id: str) -> bool:
    view = PageView(Rights(user, conn_id))
    try:
        return view.permits_any(view.all_jobs())
    except CONNECTION_ERRORS:
        return True  # it is not known that he does not
    except (AirExecutorError, HTTPException):
        return False


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
