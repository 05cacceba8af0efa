"""The attempts of a job's tasks.

``tasks.json`` describes the latest attempt of each task. Of earlier ones there are the records, see
:mod:`.attempt_record`. A job that was retried may have lost the records of what it had run before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import read_record
from airflow_provider_air_executor.jobs.models import Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.paths import parse_run
from airflow_provider_air_executor.jobs.usage import Usage, usage_of


class AttemptRecord(NamedTuple):
    """One attempt of a task, as far as it is known.

    Of an attempt that is not the latest one, reason and error are not recorded. A task that waits for its next attempt,
    or failed without it, has that one as its latest, which has not started.
    """

    task_id: str
    number: int  # 1 for the first
    status: TaskStatus
    reason: Reason | None = None
    exit_code: int | None = None
    error: str | None = None
    started_at: datetime | None = None  # None: it has not started
    completed_at: datetime | None = None
    usage: Usage | None = None  # as far as it is known

    @property
    def seconds(self) -> float | None:
        """How long it ran, in seconds, if that is known."""
        if self.started_at is None or self.completed_at is None:
            return None
        return (self.completed_at - self.started_at).total_seconds()


def attempts_of(tasks: Iterable[Task], runs_path: Path) -> Iterator[AttemptRecord]:
    """The attempts of some tasks, task by task in their order, each with its latest one last.

    :param runs_path: the directory of the records of these tasks.
    """
    latest = {task.id: _latest(task) for task in tasks}
    earlier: dict[str, list[AttemptRecord]] = {task_id: [] for task_id in latest}
    for (task_id, number), handle_path in sorted(_recorded(runs_path).items(), key=lambda item: item[0]):
        if task_id in latest and 0 < number < latest[task_id].number:
            earlier[task_id] += _read(runs_path / f"{task_id}.{number}", handle_path, task_id, number)
    for task_id, attempt in latest.items():
        yield from earlier[task_id]
        yield attempt


def _latest(task: Task) -> AttemptRecord:
    """The attempt that ``tasks.json`` describes."""
    return AttemptRecord(
        task_id=task.id,
        # Other systems do not count attempts.
        number=task.attempt + 1 if task.started_at is None else max(task.attempt, 1),
        status=task.status,
        reason=task.reason,
        exit_code=task.exit_code,
        error=task.error,
        started_at=task.started_at,
        # Of a task that waits, it is the end of the attempt before.
        completed_at=task.completed_at if task.status.is_terminal else None,
        usage=task.usage,
    )


def _recorded(runs_path: Path) -> dict[tuple[str, int], Path | None]:
    """Which attempts have left a record, and the handle of what they ran, if an engine has left one."""
    if not files.is_real_directory(runs_path):
        return {}
    found: dict[tuple[str, int], Path | None] = {}
    for name in os.listdir(runs_path):
        run = parse_run(name)
        if run is not None:
            task_id, number, engine = run
            found[task_id, number] = found.get((task_id, number)) if engine is None else runs_path / name
    return found


def _read(path: Path, handle_path: Path | None, task_id: str, number: int) -> list[AttemptRecord]:
    """The recorded attempt, which has failed, for another one has followed it; empty if there is no record."""
    record = read_record(path, handle_path)
    modified_at = _modified_at(path)
    if record is None or record.started_at is None or modified_at is None:
        return []
    return [
        AttemptRecord(
            task_id,
            number,
            TaskStatus.FAILED,
            exit_code=record.exit_code,
            started_at=record.started_at,
            # The clock of a file system is some milliseconds late.
            completed_at=max(modified_at, record.started_at) if record.is_over else None,
            usage=usage_of(record),
        )
    ]


def _modified_at(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(os.lstat(path).st_mtime, tz=UTC)
    except OSError:
        return None
