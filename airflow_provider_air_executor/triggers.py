"""AirExecutorJobTrigger: waits in the triggerer until a job has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_air_executor.exceptions import AirExecutorError, CorruptFileError, JobNotFoundError
from airflow_provider_air_executor.hooks import start_manager_if_none
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.stream import LogStream
from airflow_provider_air_executor.jobs.summary import progress
from airflow_provider_air_executor.jobs.watch import Waiter, watching

COMPLETED, FAILED, TIMEOUT, NOT_FOUND = "completed", "failed", "timeout", "not_found"
STATUSES = (COMPLETED, FAILED, TIMEOUT, NOT_FOUND)

STREAM_READER = "airflow"  # whose position in the logs of a job is kept
_CANCEL_SECONDS = 20.0  # for what is asked when a trigger is ended
# Since Airflow 3.3 a trigger is told that a user has ended its task; before that it is only cancelled.
_IS_TOLD = hasattr(BaseTrigger, "on_kill")


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
    :param owner: the Airflow task that waits, as the fields of
        :class:`~airflow_provider_air_executor.jobs.models.SubmittedBy`, if the job is to be cancelled when a user
        clears or marks that task; None: it never is.
    :param stream_logs: whether what the tasks print goes to the log of the Airflow task as it comes.
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
        owner: dict[str, Any] | None = None,
        stream_logs: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_name = job_name
        self.base_path = base_path
        self.embedded = embedded
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.must_exist = must_exist
        self.after_attempt = after_attempt
        self.owner = owner
        self.stream_logs = stream_logs
        self._stream: LogStream | None = None
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
                "owner": self.owner,
                "stream_logs": self.stream_logs,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the job, and say in the task's log how far it is."""
        keep_alive = self._keep_alive if self.embedded else None
        interval = max(self.poll_interval, 0.05)
        try:
            async with watching(self._store, self.job_name, interval=interval, on_pass=keep_alive) as waiter:
                event = await self._wait(waiter)
        except asyncio.CancelledError:
            if not _IS_TOLD:
                await self._cancel_if_ended_by_user()
            raise
        yield TriggerEvent(event)

    async def on_kill(self) -> None:
        """A user has cleared or marked the task that waits: cancel its job.

        Airflow calls this also when a triggerer that had stood still finds its triggers elsewhere. Then the task is
        still deferred, and the job goes on.
        """
        if self.owner is None:
            return
        owner = SubmittedBy.model_validate(self.owner)
        if await self._task_state(owner) == "deferred":
            self.log.info("job %s goes on: the task is still deferred, another triggerer waits for it", self.job_name)
        elif await asyncio.to_thread(self._cancel_for, owner):
            self.log.info("job %s is cancelled, since its task was cleared or marked", self.job_name)

    async def _cancel_if_ended_by_user(self) -> None:
        try:
            await asyncio.wait_for(self.on_kill(), _CANCEL_SECONDS)
        except Exception as error:  # noqa: BLE001 - the triggerer ends, most likely, and nobody answers any more
            self.log.info("job %s goes on: the state of its task is not known (%r)", self.job_name, error)

    @staticmethod
    async def _task_state(owner: SubmittedBy) -> str | None:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
            dag_id=owner.dag_id, task_ids=[owner.task_id], run_ids=[owner.run_id], map_index=owner.map_index
        )
        key = owner.task_id if owner.map_index < 0 else f"{owner.task_id}_{owner.map_index}"
        found: str | None = states.get(owner.run_id, {}).get(key)
        return found

    def _cancel_for(self, owner: SubmittedBy) -> bool:
        """Cancel the job if it is still the owner's: a task that was cleared may have submitted another one."""
        job = self._store.get_job(self.job_name)
        if job.submitted_by is None or not job.submitted_by.is_same_run(owner):
            return False
        return self._store.cancel(self.job_name)

    async def _wait(self, waiter: Waiter) -> dict[str, str]:
        changed, next_progress = True, 0.0
        while True:
            job, is_there = await asyncio.to_thread(self._read)
            if job is not None and job.state.is_terminal and job.attempt > self.after_attempt:
                await asyncio.to_thread(self._log_output, is_over=True)
                return self._event(job.state.value, job.error or f"the job has {job.state.value}")
            if not is_there and self.must_exist:
                return self._event(NOT_FOUND, f"there is no such job in {self.base_path} any more")
            if self.deadline is not None and time.time() >= self.deadline:
                return self._event(TIMEOUT, f"the job is {job.state.value if job else 'not there'}")
            pauses = [] if self.deadline is None else [self.deadline - time.time()]
            if self.stream_logs:
                await asyncio.to_thread(self._log_output)
                pauses.append(self.poll_interval)
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

    def _log_output(self, *, is_over: bool = False) -> None:
        if not self.stream_logs:
            return
        self._stream = self._stream or LogStream(self._store, self.job_name, STREAM_READER)
        try:
            tasks = self._store.load_tasks(self.job_name)[0]
            self._stream.follow(tasks, lambda line: self.log.info("%s", line), is_over=is_over)
        except (AirExecutorError, OSError):
            return  # not there yet, or half-written; nothing is lost, and the next pass reads it

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
