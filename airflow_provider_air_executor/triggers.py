"""AirExecutorJobTrigger: waits in the triggerer until a job has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_air_executor.exceptions import AirExecutorError, CorruptFileError, JobNotFoundError
from airflow_provider_air_executor.hooks import start_manager_if_none
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.summary import progress
from airflow_provider_air_executor.jobs.watch import Waiter, watching

COMPLETED, FAILED, TIMEOUT, NOT_FOUND = "completed", "failed", "timeout", "not_found"
STATUSES = (COMPLETED, FAILED, TIMEOUT, NOT_FOUND)


class AirExecutorJobTrigger(BaseTrigger):
    """Fires once, when a job has ended or the deadline is over.

    The event is a dict with ``status`` (one of :data:`STATUSES`), ``job_name`` and ``message``. All triggers of one
    base path share one watcher, and no file is read in the event loop.

    :param job_name: the job.
    :param base_path: the job filesystem.
    :param embedded: whether the manager is started again if it is gone.
    :param poll_interval: seconds between two passes over the jobs for file systems that do not notify, and at least
        between two lines of progress in the log.
    :param deadline: when to give up, in seconds since the epoch; default: never.
    :param must_exist: whether a job that is not there ends the waiting; otherwise it may still come.
    :param after_attempt: the end of this attempt of the job, or an earlier one, does not count.
    """

    def __init__(
        self,
        job_name: str,
        base_path: str,
        *,
        embedded: bool = False,
        poll_interval: float = 5.0,
        deadline: float | None = None,
        must_exist: bool = True,
        after_attempt: int = -1,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_name = job_name
        self.base_path = base_path
        self.embedded = embedded
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.must_exist = must_exist
        self.after_attempt = after_attempt
        self._store = JobStore(base_path)
        self._progress = ""
        self._problem = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, to be made again in the triggerer."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "job_name": self.job_name,
                "base_path": self.base_path,
                "embedded": self.embedded,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "must_exist": self.must_exist,
                "after_attempt": self.after_attempt,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the job, and say in the task's log how far it is."""
        keep_alive = self._keep_alive if self.embedded else None
        interval = max(self.poll_interval, 0.05)
        async with watching(self._store, self.job_name, interval=interval, on_pass=keep_alive) as waiter:
            yield TriggerEvent(await self._wait(waiter))

    async def _wait(self, waiter: Waiter) -> dict[str, str]:
        changed, next_progress = True, 0.0
        while True:
            job, is_there = await asyncio.to_thread(self._read)
            if job is not None and job.state.is_terminal and job.attempt > self.after_attempt:
                return self._event(job.state.value, job.error or f"the job has {job.state.value}")
            if not is_there and self.must_exist:
                return self._event(NOT_FOUND, f"there is no such job in {self.base_path} any more")
            if self.deadline is not None and time.time() >= self.deadline:
                return self._event(TIMEOUT, f"the job is {job.state.value if job else 'not there'}")
            pauses = [] if self.deadline is None else [self.deadline - time.time()]
            if changed and time.monotonic() >= next_progress:
                await asyncio.to_thread(self._log_progress)
                changed, next_progress = False, time.monotonic() + self.poll_interval
            elif changed:
                pauses.append(next_progress - time.monotonic())
            if await waiter.wait(max(0.0, min(pauses)) if pauses else None):
                changed = True

    def _read(self) -> tuple[Job | None, bool]:
        """The job, and whether there is one; a file that cannot be read now is not the job's failure."""
        try:
            return self._store.load_job(self.job_name)[0], True
        except JobNotFoundError:
            return None, False
        except (CorruptFileError, OSError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self.log.warning("job %s cannot be read now: %s", self.job_name, error)
            return None, True

    def _log_progress(self) -> None:
        try:
            line = progress(self._store.load_tasks(self.job_name)[0])
            if not self.embedded and not self._store.manager_is_running():
                line += f" (no manager is running: air-executor manager --base-path {self.base_path})"
        except (AirExecutorError, OSError):
            return  # not there yet, or half-written: the next change shows it
        if line != self._progress:
            self._progress = line
            self.log.info("job %s: %s", self.job_name, line)

    def _keep_alive(self) -> None:
        try:
            start_manager_if_none(self._store)
        except (AirExecutorError, OSError) as error:
            self.log.warning("job %s: %s", self.job_name, error)

    def _event(self, status: str, message: str) -> dict[str, str]:
        return {"status": status, "job_name": self.job_name, "message": message}


def validate_event(event: object) -> dict[str, str]:
    """Return the event of an :class:`AirExecutorJobTrigger` if it is one.

    :raises ValueError: for anything else, so that nothing unknown is taken for success.
    """
    if not isinstance(event, dict) or event.get("status") not in STATUSES or "job_name" not in event:
        raise ValueError(f"the trigger fired an event that is not known here: {event!r}")
    return event
