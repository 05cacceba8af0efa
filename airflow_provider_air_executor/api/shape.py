"""The shape of a job: how its tasks depend on each other, and when they ran."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from pydantic import BaseModel

from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.models import Task, TaskStatus
from airflow_provider_air_executor.jobs.outcomes import Outcome, outcome_of

_APART = timedelta(seconds=1)  # between two times that are not one
_MOMENTS = 500  # of such times, about

Span = tuple[datetime, datetime | None]


class JobGraph(BaseModel):
    """How the tasks of a job depend on each other, in three lists of the same length.

    ``dependencies`` has the positions of other tasks in ``ids``.
    """

    ids: list[str]
    dependencies: list[list[int]]
    outcomes: list[Outcome]

    @classmethod
    def of(cls, tasks: Sequence[Task]) -> JobGraph:
        """The graph of these tasks; a dependency on another one is left out."""
        positions = {task.id: position for position, task in enumerate(tasks)}
        return cls(
            ids=list(positions),
            dependencies=[[positions[each] for each in task.dependencies if each in positions] for task in tasks],
            outcomes=[outcome_of(task.status, task.reason) for task in tasks],
        )


def busy_times(attempts: Iterable[AttemptRecord], ended_at: datetime | None) -> list[Span]:
    """When any of these attempts ran: from and to, in their order, where what is close to each other is one.

    :param ended_at: when the job ended; None: it has not, and an attempt that has not ended runs.
    """
    spans: list[Span] = []
    for attempt in attempts:
        if attempt.started_at is not None:
            is_running = attempt.status is TaskStatus.RUNNING and ended_at is None
            spans.append((attempt.started_at, None if is_running else attempt.completed_at or attempt.started_at))
    spans.sort(key=lambda span: span[0])
    if not spans:
        return []
    last = max(end or start for start, end in spans)
    apart = max(_APART, (last - spans[0][0]) / _MOMENTS)
    merged = [spans[0]]
    for start, end in spans[1:]:
        begin, until = merged[-1]
        if until is not None and start - until > apart:
            merged.append((start, end))
        else:
            merged[-1] = (begin, None if until is None or end is None else max(until, end))
    return merged
