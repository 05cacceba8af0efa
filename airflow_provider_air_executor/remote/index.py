"""All jobs of a server at a glance: a copy that is kept up to date by what has changed, once a second at most."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from airflow_provider_air_executor.jobs.index import OutcomeCounts
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.outcomes import Outcome
from airflow_provider_air_executor.remote.link import Link
from airflow_provider_air_executor.remote.outage import BUSY
from airflow_provider_air_executor.remote.records import parsed
from airflow_provider_air_executor.remote.transport import Transport, url_path

_FRESH_SECONDS = 1.0
_LOOK_SECONDS = 0.2
_LOCK_SECONDS = 3.0  # for which who does not wait for a server waits for one who asks it


class _Known(NamedTuple):
    job: Job
    outcomes: OutcomeCounts
    labels: Mapping[str, str]


class _Copy:
    """The jobs as the server has sent them last."""

    def __init__(self, transport: Transport) -> None:
        self.begin()
        transport.on_fork(self.begin)

    def begin(self) -> None:
        self.lock = threading.Lock()
        self.known: dict[str, _Known] = {}
        self.jobs: tuple[Job, ...] = ()
        self.cursor: str | None = None
        self.unreadable = 0
        self.fresh_until = 0.0


class RemoteIndex:
    """All jobs; see :class:`~airflow_provider_air_executor.jobs.interface.JobIndexView`. Threads may share it.

    :param copy: that of another one, over the same connections.
    """

    def __init__(self, link: Link, copy: _Copy | None = None) -> None:
        self._link = link
        self._copy = copy or _Copy(link.transport)

    def with_link(self, link: Link) -> RemoteIndex:
        """The same jobs for somebody with another patience."""
        return RemoteIndex(link, self._copy)

    @property
    def unreadable(self) -> int:
        """How many jobs the server cannot read."""
        return self._copy.unreadable

    def jobs(self) -> tuple[Job, ...]:
        """All jobs, the newest first, as they were at most a second ago.

        :raises JobsAwayError: if the server is away: then it is not known which jobs there are.
        """
        copy = self._copy
        self._acquire(copy.lock)
        try:
            if time.monotonic() >= copy.fresh_until:
                self._take(self._link.lines(url_path("records"), lambda line: line, after=copy.cursor))
                copy.fresh_until = time.monotonic() + _FRESH_SECONDS
            return copy.jobs
        finally:
            copy.lock.release()

    def _acquire(self, lock: threading.Lock) -> None:
        """Wait for who asks the server; only for a moment, if that is not to be waited for.

        :raises JobsAwayError: if it is away, as far as is known.
        """
        outage, until = self._link.transport.outage, time.monotonic() + _LOCK_SECONDS
        while not lock.acquire(timeout=_LOOK_SECONDS):
            if self._link.patience == 0:
                if (error := outage.error) is not None:
                    raise error
                if time.monotonic() >= until:
                    raise outage.unknown(BUSY)

    def outcomes(self, job_name: str) -> OutcomeCounts:
        """How many tasks of a job stand how; empty if that is not known."""
        known = self._copy.known.get(job_name)
        return known.outcomes if known is not None else {}

    def shown_labels(self, job: Job) -> Mapping[str, str]:
        """The labels of a job without secrets."""
        known = self._copy.known.get(job.name)
        return known.labels if known is not None and known.job is job else job.labels

    def _take(self, lines: list[Any]) -> None:
        """Take what has changed, or all jobs, if the server does not know any more what this copy has."""
        *changed, last = lines or [{}]
        copy = self._copy
        known = {} if last.get("whole") or copy.cursor is None else dict(copy.known)
        for name in last.get("removed", ()):
            known.pop(name, None)
        for line in changed:
            job = parsed(Job, line["job"])
            outcomes = {Outcome(word): int(number) for word, number in line.get("outcomes", {}).items()}
            known[job.name] = _Known(job, outcomes, line.get("labels", {}))
        if changed or len(known) != len(copy.known):
            copy.jobs = tuple(sorted((each.job for each in known.values()), key=_age, reverse=True))
        copy.known, copy.cursor, copy.unreadable = known, last.get("cursor"), int(last.get("unreadable", 0))


def _age(job: Job) -> tuple[float, str]:
    return (job.created_at.timestamp() if job.created_at else 0.0, job.name)
