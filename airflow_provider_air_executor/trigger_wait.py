"""Waiting for a job in the triggerer, and saying in the log of the Airflow task how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError, JobsAwayError
from airflow_provider_air_executor.jobs import summary
from airflow_provider_air_executor.jobs.interface import CONNECTION, OUTPUT, STATE, TASKS, Jobs, JobWatch
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.own_job import why_gone
from airflow_provider_air_executor.trigger_output import TriggerOutput

COMPLETED, FAILED, TIMEOUT, NOT_FOUND = "completed", "failed", "timeout", "not_found"

_MISSING_SECONDS = 3600.0  # at most, between two lines that say that there is no such job
_LEAST_SECONDS = 0.05  # between two looks
_LAST_SECONDS = 5.0  # for the last look, when the deadline is over
_ALL_KINDS = frozenset((STATE, TASKS, OUTPUT))  # of changes of a job


class Waiting(NamedTuple):
    """What is waited for.

    :param poll_interval: seconds between two passes over the jobs for file systems that do not notify, and at least
        between two lines of progress in the log.
    :param deadline: when waiting fails, in seconds since the epoch; None: never.
    :param must_exist: whether a job that is not there ends the waiting.
    :param after_attempt: the end of this attempt of the job, or an earlier one, does not count.
    """

    job_name: str
    poll_interval: float
    deadline: float | None
    must_exist: bool
    after_attempt: int


class Waited(NamedTuple):
    """How the waiting has ended."""

    status: str  # one of those above
    message: str
    is_shown: bool = True  # whether all that the tasks have printed is in the log


class _Reminder:
    """When something is to be said again: after pauses that double.

    :param pause: the first one, in seconds.
    """

    def __init__(self, pause: float) -> None:
        self._pause = max(pause, _LEAST_SECONDS)
        self._due = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is to be said now; the next time is later then."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + self._pause
        self._pause = min(2 * self._pause, max(self._pause, _MISSING_SECONDS))
        return True

    def seconds_left(self) -> float:
        """Seconds until it is to be said."""
        return self._due - time.monotonic()


class JobWait:
    """Waits for the end of a job; no file is read in the event loop.

    :param output: shows what the tasks print; None: that is not shown.
    :param log: the logger of the trigger.
    """

    def __init__(self, jobs: Jobs, waiting: Waiting, output: TriggerOutput | None, log: Any) -> None:
        self._jobs = jobs
        self._waiting = waiting
        self._output = output
        self._log = log
        self._missing = _Reminder(waiting.poll_interval)
        self._progress = ""
        self._problem = ""  # why the job could not be read last
        self._is_away = False  # the connection to another machine

    async def until_end(self, has_moved: Callable[[], Awaitable[bool]]) -> Waited | None:
        """Wait until the job has ended, or the deadline is over.

        :param has_moved: asked while the job cannot be read, whether it is to be looked for elsewhere.
        :return: None if it is.
        """
        interval = max(self._waiting.poll_interval, _LEAST_SECONDS)
        async with self._jobs.watching(self._waiting.job_name, interval=interval) as watch:
            return await self._wait(watch, has_moved)

    async def _wait(self, watch: JobWatch, has_moved: Callable[[], Awaitable[bool]]) -> Waited | None:
        deadline = self._waiting.deadline
        must_read = True
        job, is_there, next_progress = None, True, 0.0
        news, unseen = set(_ALL_KINDS), set(_ALL_KINDS)  # what has changed since the last progress, and the last lines
        while True:
            is_late = deadline is not None and time.time() >= deadline
            if must_read or is_late:
                job, is_there = await self._read(watch)
            if job is not None and job.state.is_terminal and job.attempt > self._waiting.after_attempt:
                return await self._ended(job)
            if not is_there and self._waiting.must_exist:
                return Waited(NOT_FOUND, f"there is no such job in {self._jobs.where} any more")
            pauses = [] if deadline is None else [deadline - time.time()]
            is_unreadable = job is None and is_there  # now, and it need not change any more
            if is_unreadable:
                if await has_moved():
                    return None
                pauses.append(max(self._waiting.poll_interval, _LEAST_SECONDS))
                unseen |= _ALL_KINDS
            elif job is None:
                pauses.append(await asyncio.to_thread(self._say_missing))
            if is_late:
                return Waited(TIMEOUT, f"the job is {_state_of(job, is_there=is_there)}")
            if self._output is not None:
                poll_interval, sees_output = self._waiting.poll_interval, watch.sees_output
                pauses += await self._output.follow(unseen, poll_interval, sees_output=sees_output)
            if {STATE, TASKS} & news and time.monotonic() >= next_progress:
                await asyncio.to_thread(self._log_progress)
                next_progress = time.monotonic() + self._waiting.poll_interval
                news.clear()
            elif {STATE, TASKS} & news:
                pauses.append(next_progress - time.monotonic())
            is_woken = await watch.wait(max(0.0, min(pauses)) if pauses else None)
            must_read = is_woken or is_unreadable
            changed = _changes_of(watch) if is_woken else frozenset()
            news |= changed
            unseen |= changed

    async def _ended(self, job: Job) -> Waited:
        is_shown = self._output is None or await self._output.pass_on(is_changed=True, is_over=True)
        return Waited(job.state.value, job.error or f"the job has {job.state.value}", is_shown)

    async def _read(self, watch: JobWatch) -> tuple[Job | None, bool]:
        """The job, and whether there is one; if it cannot be read now, that is not its failure."""
        deadline = self._waiting.deadline
        left = None if deadline is None else max(_LAST_SECONDS, deadline - time.time())
        try:
            async with asyncio.timeout(left):  # a file system that stands still, also that of another machine
                job = await watch.read()
        except JobNotFoundError:
            return None, False
        except (AirExecutorError, OSError) as error:
            self._say_unreadable(error)
            return None, True
        if self._is_away:
            self._is_away = False
            self._log.info("the manager at %s is reached again", self._jobs.where)
        return job, True

    def _say_unreadable(self, error: Exception) -> None:
        """Say once that the job cannot be read."""
        name = self._waiting.job_name
        if isinstance(error, JobsAwayError):
            if not self._is_away:
                self._is_away = True
                self._log.warning("%s; job %s goes on, and is waited for", error, name)
        elif str(error) != self._problem:
            self._problem = str(error)
            self._log.warning("job %s cannot be read now: %s", name, error)

    def _say_missing(self) -> float:
        """Say that there is no such job, now and then, so that the log explains the waiting.

        :return: seconds after which it is to be said again.
        """
        if self._missing.is_due():
            name = self._waiting.job_name
            self._log.info("job %s: %s", name, why_gone(self._jobs.with_patience(0), name))
        return self._missing.seconds_left()

    def _log_progress(self) -> None:
        jobs, name = self._jobs.with_patience(0), self._waiting.job_name
        try:
            line = summary.progress(jobs.get_tasks(name, at_once=True)) + jobs.trouble(name)
        except (AirExecutorError, OSError):
            return  # not there yet, or half-written, or away: the next change shows it
        if line != self._progress:
            self._progress = line
            self._log.info("job %s: %s", name, line)


def _changes_of(watch: JobWatch) -> frozenset[str]:
    """What may have changed of the job; all, if the connection was away."""
    changed = frozenset(watch.changed)
    return changed | _ALL_KINDS if CONNECTION in changed else changed


def _state_of(job: Job | None, *, is_there: bool) -> str:
    if job is not None:
        return job.state.value
    return "not readable" if is_there else "not there"
