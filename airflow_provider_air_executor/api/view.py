"""Who asks, and what he may see of a job filesystem: the routes know no more of it than a :class:`View`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, Protocol, cast

from fastapi import Depends, HTTPException, Request, status

from airflow_provider_air_executor.exceptions import (
    AccessError,
    AirExecutorError,
    JobsAwayError,
    ProtocolError,
    SettingsError,
    SshError,
)
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy

#: Errors of the way to the jobs on another machine, which say nothing of a job.
CONNECTION_ERRORS = (AccessError, JobsAwayError, ProtocolError, SettingsError, SshError)

HEADERS: Mapping[str, str] = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Right(enum.Enum):
    """What somebody may do with a job."""

    SEE = enum.auto()  # the job and its tasks
    SEE_LOGS = enum.auto()  # also what they print, and their results
    CHANGE = enum.auto()  # cancel, retry and remove it


class Addresses(Protocol):
    """The addresses of what has submitted a job, in the UI of its Airflow."""

    def run_url(self, owner: SubmittedBy) -> str:
        """The address of a DAG run."""

    def task_url(self, owner: SubmittedBy) -> str:
        """The address of an Airflow task."""


class View(Protocol):
    """A job filesystem as somebody may see it."""

    @property
    def jobs(self) -> Jobs:
        """The job filesystem.

        :raises HTTPException: if there is none.
        """

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of all answers."""

    @property
    def addresses(self) -> Addresses | None:
        """Where Airflow is; None if that is not known here."""

    @property
    def sees_all(self) -> bool:
        """Whether he may see also what concerns no job of his: the manager's process, and how many cannot be read."""

    @property
    def embedded(self) -> bool:
        """Whether a manager is started if none runs."""

    @property
    def start_command(self) -> str | None:
        """What starts a manager, if he may know it."""

    @property
    def exists(self) -> bool:
        """Whether the base path is there."""

    def all_jobs(self) -> Sequence[Job]:
        """All jobs, the newest first; also those that he may not see.

        :raises HTTPException: if there is no job filesystem, or it cannot be read.
        :raises OSError: if they cannot be read now.
        """

    def permits(self, job: Job | None, right: Right) -> bool:
        """Whether he has a right to a job; None: to one that does not exist, of which he may not learn that."""

    def permits_dag(self, dag_id: str) -> bool:
        """Whether he may see the jobs of a DAG."""

    def permitted(self, jobs: Iterable[Job]) -> Sequence[Job]:
        """Those of the jobs that he may see."""

    def permits_any(self, jobs: Iterable[Job]) -> bool:
        """Whether he may see one of these jobs."""


@dataclass(frozen=True)
class WholeView:
    """That of somebody who may see all jobs, and change those that he may.

    :param jobs: the job filesystem.
    :param may_change: whether he may change a job.
    :param headers: of all answers.
    :param embedded: whether a manager is started if none runs.
    :param start_command: what starts a manager.
    """

    jobs: Jobs
    may_change: Callable[[Job], bool] = lambda _: False
    headers: Mapping[str, str] = field(default_factory=lambda: HEADERS)
    embedded: bool = False
    start_command: str | None = None
    addresses: Addresses | None = None
    sees_all: bool = True
    exists: bool = True

    def all_jobs(self) -> Sequence[Job]:
        """See :class:`View`."""
        return self.jobs.index(ahead=True).jobs()

    def permits(self, job: Job | None, right: Right) -> bool:
        """See :class:`View`."""
        return right is not Right.CHANGE or job is None or self.may_change(job)

    def permits_dag(self, dag_id: str) -> bool:
        """See :class:`View`."""
        return True

    def permitted(self, jobs: Iterable[Job]) -> Sequence[Job]:
        """See :class:`View`."""
        return list(jobs)

    def permits_any(self, jobs: Iterable[Job]) -> bool:
        """See :class:`View`."""
        return any(True for _ in jobs)


async def view_of(request: Request) -> View:
    """A dependency of a route: what :func:`.reading.reading_routes` has been given for this request."""
    return cast("View", request.state.air_executor_view)


ViewDep = Annotated[View, Depends(view_of)]


class FoundJob(NamedTuple):
    """A job that somebody may see."""

    job: Job
    view: View

    @property
    def jobs(self) -> Jobs:
        """The job filesystem it is in."""
        return self.view.jobs


def find_job(view: View, name: str, right: Right) -> Job:
    """The job of this name, for somebody with a right to it.

    :raises HTTPException: 403 without the right; a job that does not exist is one that nobody has submitted.
    :raises AirExecutorError: if there is none, or it cannot be read.
    :raises OSError: if it cannot be read now.
    """
    try:
        job = view.jobs.get_job(name)
    except CONNECTION_ERRORS:
        raise
    except (AirExecutorError, HTTPException, OSError):
        if not view.permits(None, right):
            raise _forbidden() from None
        raise
    if not view.permits(job, right):
        raise _forbidden()
    return job


def _forbidden() -> HTTPException:
    return HTTPException(status.HTTP_403_FORBIDDEN, "Forbidden")


def _found_with(right: Right) -> Callable[..., FoundJob]:
    def find(job_name: str, view: ViewDep) -> FoundJob:
        return FoundJob(find_job(view, job_name, right), view)

    return find


SeenJob = Annotated[FoundJob, Depends(_found_with(Right.SEE))]
SeenLog = Annotated[FoundJob, Depends(_found_with(Right.SEE_LOGS))]
