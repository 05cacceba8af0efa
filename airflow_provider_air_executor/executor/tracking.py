"""The workloads that the executor waits for: which job runs which of them, and how far it is."""

from __future__ import annotations

import contextlib
import enum
import logging
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_air_executor.exceptions import AirExecutorError, CorruptFileError, JobNotFoundError
from airflow_provider_air_executor.executor import database
from airflow_provider_air_executor.jobs import files, inbox
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, utc_now
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.workload import WORKLOAD_FILE

if TYPE_CHECKING:
    from airflow.executors.workloads.types import WorkloadKey

log = logging.getLogger(__name__)

_BEGIN_SECONDS = 600.0  # that a cold supervisor may take on a busy machine
RESUBMISSION_SECONDS = 1.0  # before a workload is submitted for the second time; each further pause is twice as long


class Kind(enum.StrEnum):
    """The kinds of workloads, which Airflow reports in different ways."""

    TASK = "task"
    CALLBACK = "callback"
    CONNECTION_TEST = "connection_test"


@dataclass
class TrackedWorkload:
    """A workload that has been submitted as a job, until its end is reported to Airflow. Times are monotonic."""

    name: str  # of the job
    key: WorkloadKey
    store: JobStore
    kind: Kind
    ti_id: uuid.UUID | None = None  # of a task
    workload: Any = None  # to submit it again; None if another scheduler has submitted it
    seen: files.Stamp | None = None  # the state.json that was read last
    has_started: bool = False
    started_at: float = 0.0  # when that was seen
    submissions: int = 1
    settled_at: float = 0.0  # from then on Airflow's database has the name of the job
    is_on_cluster: bool = False
    locations: set[str] = field(default_factory=set)  # on the cluster, of which its log knows
    tasks_seen: files.Stamp | None = None  # the tasks.json that was read for that
    again_at: float | None = None  # when it is submitted again
    may_still_run: bool = False  # on a node that does not answer; its job has ended
    unwanted_since: float | None = None  # when Airflow was seen not to want it any more

    @property
    def paths(self) -> JobPaths:
        """Where the files of the job are."""
        return self.store.paths(self.name)

    def sees_start(self) -> bool:
        """Whether the job has begun since the last call: it removes the workload when it has read it."""
        if self.has_started or self.store.freshness.stamp(self.paths.attached(WORKLOAD_FILE)) is not None:
            return False
        self.has_started, self.started_at = True, time.monotonic()
        return True

    @property
    def begins(self) -> bool:
        """Whether its job runs on another machine, and its supervisor may not have told Airflow yet that it does."""
        return self.is_on_cluster and self.has_started and time.monotonic() - self.started_at < _BEGIN_SECONDS

    def ended_job(self) -> Job | None:
        """The job, if it has ended; None also if it has not changed since the last call, or cannot be read now."""
        found = self.store.freshness.stamp(self.paths.state)
        if found is not None and found == self.seen:
            return None
        try:
            job, seen = self.store.load_job(self.name)
        except JobNotFoundError:
            gone = Job(id=self.name, name=self.name, updated_at=utc_now())
            return gone.evolve(state=JobState.FAILED, reason=Reason.LOST, error="its job is gone")
        except (OSError, CorruptFileError):
            return None  # the manager deals with it
        if job.state.is_terminal:
            return job  # the next call returns it again, unless its end has been dealt with
        self.seen = seen
        return None

    def task(self) -> Task | None:
        """The one task of the job; None if it cannot be read."""
        try:
            return self.store.load_tasks(self.name)[0][0]
        except (OSError, AirExecutorError, IndexError):
            return None

    def new_location(self) -> str | None:
        """Where the task is on its cluster, and what it waits for, if that was not returned before."""
        found = self.store.freshness.stamp(self.paths.tasks)
        if found == self.tasks_seen:
            return None
        task, self.tasks_seen = self.task(), found
        where = task.where if task is not None else None
        if not where or where in self.locations:
            return None
        self.locations.add(where)
        return where

    def resubmit_later(self) -> None:
        """Have it submitted again after a pause. Until then its job, which has ended, does not count."""
        self.seen = self.store.freshness.stamp(self.paths.state)
        self.again_at = time.monotonic() + RESUBMISSION_SECONDS * 2.0 ** (self.submissions - 1)

    def withdraw(self) -> None:
        """Remove the workload, which holds a token; a job that has not begun can do nothing then."""
        with contextlib.suppress(OSError, AirExecutorError):
            files.remove(self.paths.attached(WORKLOAD_FILE))


class TrackedWorkloads:
    """All tracked workloads.

    A task that defers runs as several jobs one after the other, all with the same key. Only the latest one counts.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, TrackedWorkload] = {}
        self._latest: dict[WorkloadKey, TrackedWorkload] = {}

    def __iter__(self) -> Iterator[TrackedWorkload]:
        return iter(list(self._by_name.values()))

    def add(self, tracked: TrackedWorkload) -> None:
        """Track a workload, from now on the latest one of its key."""
        self._by_name[tracked.name] = self._latest[tracked.key] = tracked

    def remove(self, tracked: TrackedWorkload) -> None:
        """Track a workload no longer."""
        self._by_name.pop(tracked.name, None)
        if self.is_latest(tracked):
            del self._latest[tracked.key]

    def is_latest(self, tracked: TrackedWorkload) -> bool:
        """Whether no other job has been submitted for the same key since."""
        return self._latest.get(tracked.key) is tracked

    def find(self, key: WorkloadKey, name: str | None = None) -> TrackedWorkload | None:
        """The latest one of a key, or else the one whose job has this name."""
        return self._latest.get(key) or (self._by_name.get(name) if name else None)


def task_states(tracked: Iterable[TrackedWorkload]) -> dict[str, str | None]:
    """The states of the task instances of tasks in Airflow's database, by the names of their jobs.

    A task instance that is not there, or that another job has been submitted for, is left out.
    """
    tasks = [item for item in tracked if item.kind is Kind.TASK]
    rows = database.instances(item.key for item in tasks)  # type: ignore[misc]
    states: dict[str, str | None] = {}
    for item in tasks:
        instance = rows.get(item.key)  # type: ignore[arg-type]
        if instance is not None and instance.external_executor_id in (item.name, None):
            states[item.name] = instance.state
    return states


def cancel_job(store: JobStore, name: str) -> None:
    """Kill a job, or keep it from beginning."""
    try:
        files.remove(store.paths(name).attached(WORKLOAD_FILE))
        inbox.cancel(store, name)
    except (OSError, AirExecutorError) as error:
        log.warning("job %s could not be cancelled: %s", name, error)
