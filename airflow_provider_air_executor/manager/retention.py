"""Removes jobs that ended long ago, and the oldest ones where there are too many; the settings ``keep_...`` say so.

Nobody tells the manager who still wants to read a job. So each job stays for a while after its end: a job of an Airflow
task longer than others, as its task may wait while Airflow is down, and a completion that a subscriber has not
acknowledged longest.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError
from airflow_provider_air_executor.jobs import completions, files, inbox
from airflow_provider_air_executor.jobs.models import Job, JobState
from airflow_provider_air_executor.jobs.pieces import Pieces
from airflow_provider_air_executor.manager.intake import Intake
from airflow_provider_air_executor.manager.shared import Shared

log = logging.getLogger("air_executor.manager")

EXECUTOR_LABEL = "airflow"  # that of jobs of the executor, which removes them itself
HOUR, DAY, WEEK = 3600.0, 86_400.0, 7 * 86_400.0

_SWEEP_SECONDS = 60.0
# Removed in one sweep. On ext4, each removed file makes the next ones to be created slower for a while.
_MOST = 200
_KEY = "/retention"  # of the work to find what is to be removed; no job can be called so


class _Ended(NamedTuple):
    """A job that has ended, and the stamp of the ``state.json`` that says so."""

    stamp: files.Stamp
    job: Job


class Retention:
    """Looks once a minute which ended jobs are to be removed, and removes them."""

    def __init__(self, shared: Shared, intake: Intake) -> None:
        self._store, self._jobs, self._intake = shared.store, shared.jobs, intake
        self._timers, self._turns, self._guard = shared.timers, shared.turns, shared.guard
        settings = shared.settings
        self._poll_interval = settings.poll_interval
        self._keep_jobs = settings.keep_jobs
        self._keep_days = {JobState.COMPLETED: settings.keep_days, JobState.FAILED: settings.keep_failed_days}
        if settings.keep_failed_days is None:
            self._keep_days[JobState.FAILED] = settings.keep_days
        self._known: dict[str, _Ended] = {}
        self._failing: set[str] = set()  # jobs that could not be removed

    def begin(self) -> None:
        """Begin to remove jobs, if a setting says so."""
        if self._keep_jobs is not None or any(self._keep_days.values()):
            self._timers.after(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._timers.after(_SWEEP_SECONDS, self._sweep)
        if not self._turns.is_busy(_KEY):
            self._turns.do(_KEY, self._sweeping())

    def _sweeping(self) -> Pieces[None]:
        try:
            chosen = yield from self._choosing()
        except OSError as error:
            log.debug("it is not known now which jobs are to be removed: %s", error)
            return
        for name, stamp in chosen:
            if not self._turns.is_busy(name):
                self._turns.do(name, self._removing(name, stamp))
            while self._turns.is_busy(name):  # one after the other
                yield True

    # -- which ones ----------------------------------------------------------------------------------------

    def _choosing(self) -> Pieces[list[tuple[str, files.Stamp]]]:
        """The jobs that are to be removed. For their number, failed ones go only if there are too many of these alone.

        :raises OSError: if that cannot be known now.
        """
        now = self._timers.clock.time_ns() / 1e9
        ended = sorted((stamp.mtime_ns / 1e9, name, stamp) for name, stamp in self._jobs.ended.items() if stamp)
        surplus = 0 if self._keep_jobs is None else len(ended) - self._keep_jobs
        shortest = min((DAY * days for days in self._keep_days.values() if days), default=float("inf"))
        subscribers = completions.subscribers(self._store)
        doomed: list[tuple[str, files.Stamp]] = []
        failed: list[tuple[str, files.Stamp]] = []
        known, self._known = self._known, {}
        for ended_at, name, stamp in ended:
            age = now - ended_at
            if age < HOUR or len(doomed) >= _MOST or (surplus <= len(doomed) and age < shortest):
                break
            yield False
            job = self._load(name, stamp, known.get(name))
            if job is None:
                continue
            days = self._keep_days.get(job.state)
            is_old = days is not None and age > DAY * days
            if (is_old or surplus > len(doomed)) and not self._is_needed(job, age, subscribers):
                (failed if job.state is JobState.FAILED and not is_old else doomed).append((name, stamp))
        too_many = 0 if self._keep_jobs is None else max(0, len(failed) - self._keep_jobs)
        return (doomed + failed[:too_many])[:_MOST]

    def _load(self, name: str, stamp: files.Stamp, known: _Ended | None) -> Job | None:
        if known is None or known.stamp != stamp:
            try:
                job, read = self._store.load_job(name)
            except (AirExecutorError, OSError):  # it is gone, or cannot be read now
                return None
            if read != stamp or not job.state.is_terminal:
                return None
            known = _Ended(stamp, job)
        self._known[name] = known
        return known.job

    def _is_needed(self, job: Job, age: float, subscribers: dict[str, float]) -> bool:
        """Whether somebody may still want to know of the end of a job."""
        if EXECUTOR_LABEL in job.labels or (job.submitted_by is not None and age < DAY):
            return True
        try:
            return age < WEEK and not completions.is_acknowledged(self._store, job, subscribers)
        except OSError:  # that cannot be known now
            return True

    # -- removing them -------------------------------------------------------------------------------------

    def _removing(self, name: str, stamp: files.Stamp) -> Pieces[None]:
        """Remove a job, unless it was retried meanwhile: work on one job is done one after the other."""
        if name in self._jobs.active or self._jobs.ended.get(name) != stamp:
            return
        try:
            if files.stamp(self._store.paths(name).state) == stamp:
                yield from files.in_thread(None, partial(self._remove, name))
            self._failing.discard(name)
        except JobNotFoundError:
            pass
        except (OSError, AirExecutorError) as error:
            if name not in self._failing:
                self._failing.add(name)
                log.warning("job %s cannot be removed now: %s", name, error)
        self._timers.after(0, partial(self._guard.run_for, name, partial(self._intake.inspect, name)))

    def _remove(self, name: str) -> None:
        """Remove a job, unless somebody asks for something about it or fills its directory anew; in a thread."""
        if not inbox.has_requests(self._store, name) and not self._is_being_written(name):
            self._store.delete(name)
            log.info("job %s, which ended long ago, is removed", name)

    def _is_being_written(self, name: str) -> bool:
        """Whether a script may have written a new list of tasks, and is about to write the state beside it."""
        listed = files.stamp(self._store.paths(name).tasks)
        if listed is None:
            return False
        return abs(self._timers.clock.time_ns() - listed.mtime_ns) < 1e9 * self._poll_interval
