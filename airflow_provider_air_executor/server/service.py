"""What all routes share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from airflow_provider_air_executor.jobs.changes import ChangeFeed
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.server.additions import Additions
from airflow_provider_air_executor.server.audit import Audit
from airflow_provider_air_executor.server.leases import Leases
from airflow_provider_air_executor.server.limits import FailedLogins
from airflow_provider_air_executor.server.listing import Listing
from airflow_provider_air_executor.server.masking import shown_job
from airflow_provider_air_executor.server.submissions import Submissions
from airflow_provider_air_executor.server.subscribers import Subscribers
from airflow_provider_air_executor.server.tokens import Tokens


class Activity:
    """Whether somebody asks something."""

    def __init__(self) -> None:
        self._open = 0
        self._last = time.monotonic()

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is being answered."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._last = time.monotonic()

    @property
    def is_any(self) -> bool:
        """Whether a request is being answered now, such as a stream of changes."""
        return self._open > 0

    def idle_seconds(self) -> float:
        """For how long nobody has asked anything."""
        return 0.0 if self._open else time.monotonic() - self._last


class Service:
    """The job filesystem that is served, and what the server knows of it.

    :param jobs: the job filesystem; the only server of its base path holds it.
    :param embedded: whether a manager is started when one is needed and none runs.
    """

    def __init__(self, jobs: FileJobs, *, embedded: bool = False) -> None:
        self.jobs = jobs
        self.embedded = embedded
        self.tokens = Tokens(jobs.store.base_path)
        self.failed_logins = FailedLogins()
        self.audit = Audit(jobs.store.base_path)
        self.activity = Activity()
        self.submissions = Submissions(jobs)
        self.additions = Additions(jobs)
        self.leases = Leases(jobs.store)
        self.listing = Listing(jobs)
        self.changes = ChangeFeed(jobs.store, self._dump)
        self.subscribers = Subscribers()

    async def close(self) -> None:
        """End what goes on in the background."""
        await self.subscribers.close()
        await run_in_threadpool(self.changes.close)

    def _dump(self, job: Job) -> bytes:
        """What clients that follow the changes get of a job."""
        return shown_job(job, self.jobs.mask(job.name)).model_dump_json().encode()


def service_of(request: Request) -> Service:
    """What the routes share."""
    return cast("Service", request.app.state.service)


async def _service(request: Request) -> Service:
    return service_of(request)


async def _jobs(request: Request) -> FileJobs:
    return service_of(request).jobs


ServiceDep = Annotated[Service, Depends(_service)]
JobsDep = Annotated[FileJobs, Depends(_jobs)]
