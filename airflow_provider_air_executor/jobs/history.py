"""What is left of jobs that were removed: a line each in ``history.jsonl``, and how long the runs of a series took.

The jobs of an Airflow task are a series, and so are jobs of the same name. A file that has got long is replaced by a
new one, and stays beside it. Secrets are masked in it: when a job is gone, it is not known any more which texts are
secrets.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json

from airflow_provider_air_executor.exceptions import AirExecutorError, NoLocksError
from airflow_provider_air_executor.jobs import files, masking, task_lists
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.jobs.pieces import finish

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.index import JobIndex
    from airflow_provider_air_executor.jobs.store import JobStore

MAX_BYTES = 8_000_000  # of a file; there are two at most
_LONGEST_ERROR = 2_000  # characters
_LONGEST_LABELS = 4_000  # bytes; longer ones are left out
_LONGEST = 2 * MAX_BYTES  # bytes of a file that is read


class PastJob(NamedTuple):
    """A job that was removed."""

    name: str
    series: str
    state: str
    reason: str | None
    error: str | None
    created_at: datetime | None
    started_at: datetime | None  # None: none of its tasks was started
    ended_at: datetime | None
    seconds: float | None  # from the start of its first task to its end
    tasks: int | None  # how many it had
    submitted_by: Mapping[str, Any] | None
    labels: Mapping[str, str]
    cpu_seconds: float | None = None  # that its tasks have used, as far as that is known
    max_memory: int | None = None  # bytes, the most that one of them had


class Run(NamedTuple):
    """A job of a series that has ended."""

    name: str
    started: datetime
    seconds: float
    state: str


def series_of(job: Job) -> str:
    """The series of a job: ``dag/task`` for a job of an Airflow task, ``dag/task/index`` for one of a mapped task.

    For other jobs it is their name.
    """
    owner = job.submitted_by
    if owner is None:
        return job.name
    mapped = f"/{owner.map_index}" if owner.map_index >= 0 else ""
    callback = f"/{owner.callback}" if owner.callback else ""
    return f"{owner.dag_id}/{owner.task_id}{mapped}{callback}"


def seconds_of(job: Job) -> float | None:
    """How long a job that has ended ran, in seconds; None if that is not known, or none of its tasks was started."""
    if not job.state.is_terminal or job.started_at is None or job.updated_at is None:
        return None
    return max(0.0, (job.updated_at - job.started_at).total_seconds())


# -- writing -----------------------------------------------------------------------------------------------


def line_of(job: Job, paths: JobPaths) -> bytes:
    """The line of a job that is about to be removed.

    :param paths: where it still is.
    """
    try:
        mask = masking.load(paths)
        error = job.error and mask.text(job.error)[:_LONGEST_ERROR]
        labels = {mask.text(name): mask.text(value) for name, value in job.labels.items()}
    except AirExecutorError:  # it is not known what must not be shown
        error, labels = None, {}
    if len(json.dumps(labels)) > _LONGEST_LABELS:
        labels = {}
    totals = _totals(paths)
    past = PastJob(
        name=job.name,
        series=series_of(job),
        state=job.state,
        reason=job.reason,
        error=error,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.updated_at,
        seconds=seconds_of(job),
        tasks=totals.tasks if totals is not None else None,
        submitted_by=job.submitted_by.model_dump(mode="json", exclude_none=True) if job.submitted_by else None,
        labels=labels,
        cpu_seconds=totals.cpu_seconds if totals is not None else None,
        max_memory=totals.max_memory if totals is not None else None,
    )
    return json.dumps(past._asdict(), default=datetime.isoformat).encode(errors="replace") + b"\n"


def _totals(paths: JobPaths) -> task_lists.Totals | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return task_lists.totals(finish(files.reading(paths.tasks))[0])
    return None


def append(store: JobStore, line: bytes) -> None:
    """Append the line of a job that has been removed.

    :raises OSError: if it cannot be written.
    """
    path, earlier = _paths(store.base_path)
    with files.opened(path, os.O_RDWR | os.O_APPEND) as descriptor:
        os.write(descriptor, line)
        # Several processes may remove jobs, and one of them begins a new file.
        if os.fstat(descriptor).st_size > MAX_BYTES and _lock(descriptor, path):
            found = files.stamp(path)
            if found is not None and found.inode == os.fstat(descriptor).st_ino:
                os.rename(path, earlier)


def _lock(descriptor: int, path: Path) -> bool:
    try:
        return files.lock(descriptor, path)
    except NoLocksError:  # jobs are removed there, too, though no manager runs
        return True


def _paths(base_path: Path) -> tuple[Path, Path]:
    """The file, and the one that it has replaced."""
    return base_path / "history.jsonl", base_path / "history.jsonl.1"


# -- reading -----------------------------------------------------------------------------------------------


def read(store: JobStore) -> Iterator[PastJob]:
    """The jobs that were removed, those first that were removed last; lines that are not valid are left out.

    :raises OSError: if the files cannot be read now.
    """
    for path in _paths(store.base_path):
        for line in reversed(_read(path).split(b"\n")):
            past = _parse(line)
            if past is not None:
                yield past


def _read(path: Path) -> bytes:
    try:
        return files.read(path, limit=_LONGEST)[0]
    except OSError as error:
        if error.errno not in (*files.ABSENT, files.TOO_LARGE):
            raise
        return b""


def _parse(line: bytes) -> PastJob | None:
    if not line:
        return None
    try:
        found = from_json(line)
        times = {name: _time(found[name]) for name in ("created_at", "started_at", "ended_at")}
        later = PastJob._field_defaults  # fields that older lines do not have
        past = PastJob(**{name: found[name] for name in PastJob._fields if name in found or name not in later} | times)
        is_valid = isinstance(past.name, str) and isinstance(past.series, str) and isinstance(past.state, str)
        is_valid = is_valid and isinstance(past.seconds, int | float | None) and isinstance(past.labels, dict)
        is_valid = is_valid and isinstance(past.cpu_seconds, int | float | None)
        is_valid = is_valid and isinstance(past.max_memory, int | None)
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    return past if is_valid else None


def _time(text: str | None) -> datetime | None:
    found = None if text is None else datetime.fromisoformat(text)
    if found is not None and found.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return found


def durations(store: JobStore, index: JobIndex, series: str, *, limit: int = 500) -> list[Run]:
    """The runs of a series that have ended, of jobs that are there and of those that were removed; the latest is last.

    :param index: the jobs that are there.
    :param limit: at most so many, the latest ones.
    :raises OSError: if they cannot be read now.
    """
    found = list(_past_runs(store.base_path).of(series))
    for job in index.jobs():
        seconds = seconds_of(job)
        if seconds is not None and job.started_at is not None and series_of(job) == series:
            found.append(Run(job.name, job.started_at, seconds, job.state.value))
    return sorted(found, key=lambda run: run.started)[-limit:]


class _PastRuns:
    """The runs of all removed jobs, by their series. Only what was appended since the last call is read."""

    def __init__(self, base_path: Path) -> None:
        self._path, self._earlier = _paths(base_path)
        self._lock = threading.Lock()
        self._runs: defaultdict[str, list[Run]] = defaultdict(list)
        self._inode: int | None = None
        self._earlier_stamp: files.Stamp | None = None
        self._position = 0  # up to which the present file has been read

    def of(self, series: str) -> Iterable[Run]:
        """The runs of a series."""
        with self._lock:
            self._catch_up()
            return tuple(self._runs.get(series, ()))

    def _catch_up(self) -> None:
        now, earlier = files.stamp(self._path), files.stamp(self._earlier)
        inode, size = (now.inode, now.size) if now is not None else (None, 0)
        if inode != self._inode or earlier != self._earlier_stamp or size < self._position:
            self._runs.clear()
            self._position = 0
            self._add(_read(self._earlier))
            self._inode, self._earlier_stamp = inode, earlier
        if size > self._position:
            data = _read(self._path)[self._position :]
            whole = data.rfind(b"\n") + 1
            self._add(data[:whole])
            self._position += whole

    def _add(self, data: bytes) -> None:
        for line in data.split(b"\n"):
            past = _parse(line)
            if past is not None and past.started_at is not None and past.seconds is not None:
                self._runs[past.series].append(Run(past.name, past.started_at, past.seconds, past.state))


@lru_cache(maxsize=32)
def _past_runs(base_path: Path) -> _PastRuns:
    return _PastRuns(base_path)
