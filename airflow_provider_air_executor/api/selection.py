"""Which jobs of the list somebody asks for, and in which order."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Any

from airflow_provider_air_executor.api.records import ended_at, seconds_of
from airflow_provider_air_executor.jobs.interface import JobIndexView
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason
from airflow_provider_air_executor.jobs.outcomes import JobOutcome, job_outcome

_REASONS: tuple[Reason | None, ...] = (None, *Reason)


class Sort(enum.StrEnum):
    """What the list is sorted by."""

    CREATED = "created"
    ENDED = "ended"
    DURATION = "duration"
    NAME = "name"
    STATE = "state"  # by outcome: what waits and runs, what completed, what failed


class Order(enum.StrEnum):
    """In which direction."""

    ASCENDING = "asc"
    DESCENDING = "desc"


@dataclass(frozen=True)
class Filters:
    """What a job must be to be in the list; every filter is passed if it is empty.

    :param name: a part of the name, in whatever case.
    :param owner: fields of the Airflow task that submitted it.
    :param created_after: not before this time.
    :param created_before: before this time.
    :param labels: those that it must have, all of them: ``key``, or ``key=value``.
    :param states: one of these.
    :param reasons: one of these.
    :param outcomes: one of these.
    """

    name: str = ""
    owner: Mapping[str, Any] = field(default_factory=dict)
    created_after: datetime | None = None
    created_before: datetime | None = None
    labels: Sequence[str] = ()
    states: Sequence[JobState] = ()
    reasons: Sequence[Reason] = ()
    outcomes: Sequence[JobOutcome] = ()

    def select(self, index: JobIndexView, jobs: Sequence[Job]) -> Sequence[Job]:
        """The jobs that fit, whatever their outcome; see :meth:`by_outcome`.

        :param index: what knows their labels.
        """
        # Filter by filter, since there may be very many jobs and most requests have none.
        if self.name:
            part = self.name.lower()
            jobs = [job for job in jobs if part in job.name.lower()]
        if self.owner:
            jobs = [job for job in jobs if _is_owned(job, self.owner)]
        if self.created_after is not None:
            first = _aware(self.created_after)
            jobs = [job for job in jobs if job.created_at is not None and job.created_at >= first]
        if self.created_before is not None:
            last = _aware(self.created_before)
            jobs = [job for job in jobs if job.created_at is not None and job.created_at < last]
        if self.labels:
            wanted = [text.partition("=") for text in self.labels]
            jobs = [job for job in jobs if job.labels and _has_labels(index.shown_labels(job), wanted)]
        return jobs

    def by_outcome(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Those of the jobs with the state, the reason and the outcome that are asked for."""
        if not self.states and not self.reasons and not self.outcomes:
            return jobs
        kinds = {
            (state, reason)
            for state in self.states or JobState
            for reason in self.reasons or _REASONS
            if not self.outcomes or job_outcome(state, reason) in self.outcomes
        }
        return [job for job in jobs if (job.state, job.reason) in kinds]


def in_order(jobs: Sequence[Job], sort: Sort, order: Order, now: datetime) -> Sequence[Job]:
    """The jobs in this order; those without what they are sorted by come last.

    :param jobs: the newest first, as an index has them; where nothing else decides, it stays so.
    """
    is_descending = order is Order.DESCENDING
    if sort is Sort.CREATED:
        return jobs if is_descending else jobs[::-1]
    last = -inf if is_descending else inf
    keys: dict[Sort, Callable[[Job], Any]] = {
        Sort.ENDED: lambda job: ended.timestamp() if (ended := ended_at(job)) is not None else last,
        Sort.DURATION: lambda job: seconds if (seconds := seconds_of(job, now)) is not None else last,
        Sort.NAME: lambda job: job.name.lower(),
        Sort.STATE: lambda job: _RANKS[job.state, job.reason],
    }
    return sorted(jobs, key=keys[sort], reverse=is_descending)


_RANKS = {
    (state, reason): list(JobOutcome).index(job_outcome(state, reason)) for state in JobState for reason in _REASONS
}


def _aware(time: datetime) -> datetime:
    """A time without a zone is in UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def _is_owned(job: Job, asked: Mapping[str, Any]) -> bool:
    owner = job.submitted_by
    return owner is not None and all(getattr(owner, name) == value for name, value in asked.items())


def _has_labels(labels: Mapping[str, str], wanted: Iterable[tuple[str, str, str]]) -> bool:
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in wanted)
