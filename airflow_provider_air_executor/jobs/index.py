"""All jobs of a base path at a glance, for repeated reads.

A look at a job that has not changed costs one ``stat``, and all looks of the same second share them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pydantic_core import from_json

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs import files, masking
from airflow_provider_air_executor.jobs.models import Job, TaskStatus
from airflow_provider_air_executor.jobs.outcomes import Outcome, outcome_of
from airflow_provider_air_executor.jobs.store import JobStore

_FRESH_SECONDS = 1.0
_IDLE_SECONDS = 10.0  # without a call, after which the thread ends
_SHARE = 20  # the looks may take one part of so many of the time
_COUNTS = 5_000  # jobs whose counts of tasks are remembered

TaskCounts = dict[TaskStatus, int]
OutcomeCounts = dict[Outcome, int]


class JobIndex:
    """The jobs of a base path, the newest first. It may be used by several threads.

    Directories without a readable ``state.json`` are passed over.

    :param ahead: whether a thread reads the jobs ahead as long as there are calls now and then, so that calls need not.
    """

    def __init__(self, store: JobStore, *, ahead: bool = False) -> None:
        self._store = store
        self._ahead = ahead
        self._lock = threading.Lock()
        self._known: dict[str, tuple[files.Stamp, Job]] = {}
        self._jobs: tuple[Job, ...] | None = None
        self._fresh_until = 0.0
        self._asked_at = 0.0
        self._looks_ahead = False
        self._labels: dict[str, tuple[Job, Mapping[str, str]]] = {}
        self.unreadable = 0  # jobs of which nothing is known, since this process may not read them

    def jobs(self) -> tuple[Job, ...]:
        """All jobs, as they were at most a second ago, or longer if there are very many of them.

        :raises OSError: if the file system is away.
        """
        self._asked_at = time.monotonic()
        # A call during the pass of another one gets the result of the pass before.
        if self._asked_at >= self._fresh_until and self._lock.acquire(blocking=self._jobs is None):
            try:
                if self._asked_at >= self._fresh_until and not self._looks_ahead:
                    self._look()
                    if self._ahead:
                        self._looks_ahead = True
                        threading.Thread(target=self._look_ahead, name="air-executor-index", daemon=True).start()
            finally:
                self._lock.release()
        return self._jobs or ()

    def keep_ahead(self) -> None:
        """Read the jobs ahead from now on."""
        self._ahead = True

    def _look_ahead(self) -> None:
        try:
            while time.monotonic() - self._asked_at < _IDLE_SECONDS:
                time.sleep(max(0.0, self._fresh_until - time.monotonic()))
                with self._lock:
                    self._look()
        except OSError:
            self._fresh_until = 0.0  # the next call raises it
        finally:
            self._looks_ahead = False

    def counts(self, job_name: str) -> TaskCounts:
        """How many tasks of a job have which status; empty if its list cannot be read."""
        counts: Counter[TaskStatus] = Counter()
        for outcome, number in self.outcomes(job_name).items():
            counts[outcome.status] += number
        return dict(counts)

    def outcomes(self, job_name: str) -> OutcomeCounts:
        """How many tasks of a job stand how; empty if its list cannot be read."""
        path = self._store.paths(job_name).tasks
        try:
            stamp = self._stamp(job_name, path)
        except OSError:
            return {}
        return {} if stamp is None else _outcomes(path, stamp)

    def shown_labels(self, job: Job) -> Mapping[str, str]:
        """The labels of a job without secrets: a list must not confirm a guess by its filter.

        Secrets are read again when the job's ``state.json`` has changed.

        :param job: as :meth:`jobs` has it.
        """
        known = self._labels.get(job.name)
        if known is None or known[0] is not job:
            known = self._labels[job.name] = (job, _shown_labels(self._store, job))
        return known[1]

    def _look(self) -> None:
        began = time.monotonic()
        known, changed, unreadable = {}, self._jobs is None, 0
        folder = str(self._store.jobs_path)  # put together as text: a Path takes ten times as long
        for name in self._names():
            before = self._known.get(name)
            try:
                if before is not None and before[0] == self._stamp(name, f"{folder}/{name}/state.json"):
                    known[name] = before
                    continue
                job, read = self._store.load_job(name)
                known[name] = (read, job)
                changed = True
            except OSError:  # it cannot be seen now, and is not gone for that
                if before is not None:
                    known[name] = before
                else:
                    unreadable += 1
            except AirExecutorError:
                continue
        if changed or len(known) != len(self._known):
            self._jobs = tuple(sorted((job for _, job in known.values()), key=_age, reverse=True))
            self._labels = {name: labels for name, labels in self._labels.items() if name in known}
        self._known, self.unreadable = known, unreadable
        now = time.monotonic()
        self._fresh_until = now + max(_FRESH_SECONDS, _SHARE * (now - began))

    def _stamp(self, job_name: str, path: Path | str) -> files.Stamp | None:
        """The stamp of a job's file. To open that of each job that has ended would take long where it matters."""
        known = self._known.get(job_name)
        has_ended = known is not None and known[1].state.is_terminal
        return files.stamp(path) if has_ended else self._store.freshness.stamp(path)

    def _names(self) -> list[str]:
        """The names of directories that may be jobs; of those that are known, nothing is checked again."""
        try:
            listed = os.listdir(self._store.jobs_path)
        except FileNotFoundError:
            return []
        if all(name in self._known for name in listed):
            return listed
        return self._store.job_names()


def _age(job: Job) -> tuple[float, str]:
    return (job.created_at.timestamp() if job.created_at else 0.0, job.name)


def _shown_labels(store: JobStore, job: Job) -> Mapping[str, str]:
    try:
        mask = masking.load(store.paths(job.name))
    except AirExecutorError:  # the secrets that must not be shown are not known
        return {}
    if not mask.secrets:
        return job.labels
    return {key: mask.text(value) for key, value in job.labels.items() if mask.text(key) == key}


@lru_cache(maxsize=_COUNTS)
def _outcomes(path: Path, _stamp: files.Stamp) -> OutcomeCounts:
    try:
        listed = from_json(files.read(path)[0])
        found = Counter((task.get("status", TaskStatus.PENDING), task.get("reason")) for task in listed)
        counts: Counter[Outcome] = Counter()
        for (status, reason), number in found.items():
            counts[outcome_of(TaskStatus(status), reason)] += number
        return dict(counts)
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
