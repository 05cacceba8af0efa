"""AirExecutorJobEventTrigger: schedules DAGs when jobs end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Collection, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_air_executor.connections import Location
from airflow_provider_air_executor.exceptions import InvalidJobError, JobsAwayError
from airflow_provider_air_executor.hooks import AirExecutorHook, jobs_at
from airflow_provider_air_executor.installation import installation_of
from airflow_provider_air_executor.jobs.interface import Completions, JobFilter, Jobs
from airflow_provider_air_executor.jobs.models import Job, JobState, SubmittedBy, printable
from airflow_provider_air_executor.trigger_locations import location_of
from airflow_provider_air_executor.triggers import class_and_arguments

if TYPE_CHECKING:
    from airflow_provider_air_executor.remote.protocol import Target

try:
    from airflow.triggers.shared_stream import SharedStreamProducer
except ImportError:  # before Airflow 3.3 a trigger does not learn when its events have been stored
    SharedStreamProducer = None  # type: ignore[assignment, misc]

_STORED_SECONDS = 5.0  # after which Airflow has stored an event, where it does not say so
_AWAY_SECONDS = 1.0  # between two tries, at least
_UNACKNOWLEDGED = 100  # completions that are delivered before Airflow has stored the first of them
_ENDS = (JobState.COMPLETED.value, JobState.FAILED.value)


class AirExecutorJobEventTrigger(BaseEventTrigger):
    """Fires at the end of each job that matches, with any submitter: for an ``AssetWatcher``, to schedule DAGs.

    The event has ``job_name``, ``job_id``, ``state``, ``reason``, ``error``, ``attempt``, ``labels``, ``outlets``,
    ``ended_at`` and ``submitted_by``. Jobs that ended before the trigger was there for the first time do not count;
    those that end while no triggerer runs do, when there is one again. Each end fires once, also across restarts. Only
    if a triggerer ends between the moment in which Airflow stores an event and that in which the trigger learns
    of it may it come twice: a second or two, or 5 s before Airflow 3.3, where the trigger does not learn of it.

    :param job_name: names that match, with ``*``, ``?`` and ``[...]`` as in a shell; default: all.
    :param labels: labels that the job must have, with their values; default: any.
    :param states: how it must have ended: ``completed``, ``failed``, or both (default).
    :param outlet: the URI of something that the job must have declared to make or change; default: any.
    :param air_executor_conn_id: the connection; default ``air_executor_default``.
    :param base_path: the job filesystem; default: that of the connection.
    :param poll_interval: seconds between two passes over the jobs for file systems that do not notify; default 5.
    :raises InvalidJobError: for another state.
    """

    def __init__(
        self,
        *,
        job_name: str = "*",
        labels: Mapping[str, str] | Sequence[Sequence[str]] | None = None,
        states: Collection[str] = _ENDS,
        outlet: str | None = None,
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        base_path: str | None = None,
        poll_interval: float = 5.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        for state in states:
            if state not in _ENDS:
                raise InvalidJobError(f"states: must be {' or '.join(_ENDS)}, not {state!r}")
        self.job_name = job_name
        self.labels: dict[str, str] = dict(labels or {})  # type: ignore[arg-type]
        self.states = sorted(states)
        self.outlet = outlet
        self.air_executor_conn_id = air_executor_conn_id
        self.base_path = base_path
        self.poll_interval = poll_interval

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, to be made again in the triggerer."""
        path, arguments = class_and_arguments(self)
        # Before Airflow 3.3 a dict arrives encoded.
        return path, {**arguments, "labels": [list(label) for label in sorted(self.labels.items())]}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Fire at each end; for an Airflow that does not say when it has stored an event."""
        completions = await self.completions()
        waiting: set[asyncio.Task[None]] = set()

        async def ack(job: Job) -> None:
            await asyncio.sleep(_STORED_SECONDS)
            await asyncio.to_thread(completions.ack, job)

        try:
            async for job in completions.follow():
                yield TriggerEvent(event_of(job))
                task = asyncio.create_task(ack(job))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
        finally:
            for task in waiting:
                task.cancel()

    async def completions(self) -> Completions:
        """The completions of jobs, for this trigger as their subscriber."""
        if self.base_path is not None:
            location: Location | Target = Location(self.base_path, embedded=False)
        else:
            location = await location_of(self.air_executor_conn_id)
        jobs = await asyncio.to_thread(jobs_at, location, f"connection {self.air_executor_conn_id!r}")
        subscriber, formerly = self.subscriber(await self._installation(jobs)), self.subscriber()
        return jobs.completions(
            subscriber,
            self.wanted,
            interval=self.poll_interval,
            formerly=formerly if formerly != subscriber else "",
        )

    async def _installation(self, jobs: Jobs) -> str | None:
        """The identity of this Airflow; the connection to another machine, by which it is made up, may be away."""
        is_said = False
        while True:
            try:
                return await sync_to_async(installation_of)(jobs.with_patience(0))
            except JobsAwayError as error:
                if not is_said:
                    self.log.warning("%s; it is tried again", error)
                is_said = True
            await asyncio.sleep(max(self.poll_interval, _AWAY_SECONDS))

    def subscriber(self, installation: str | None = None) -> str:
        """A name that is the same for this trigger in each triggerer, and another one for each other trigger.

        :param installation: which Airflow it is; earlier versions did not say.
        """
        text = json.dumps(self.serialize()[1], sort_keys=True) + (installation or "")
        return f"airflow-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def wanted(self) -> JobFilter:
        """Which jobs those are whose ends are emitted."""
        return JobFilter(self.job_name, tuple(self.labels.items()), tuple(self.states), self.outlet)

    def matches(self, job: Job) -> bool:
        """Whether the end of this job is to be emitted."""
        return self.wanted.matches(job)

    # Since Airflow 3.3 a trigger can learn when its events have been stored, if it subscribes to a stream.

    def shared_stream_key(self) -> Hashable | None:
        """The stream of completions that belongs to this trigger alone: each trigger acknowledges its own."""
        return None if SharedStreamProducer is None else ("air-executor", self.subscriber())

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> Any:
        """The producer of that stream."""
        return _CompletionsProducer(cls(**kwargs))

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Fire at each end that comes from the stream."""
        async for event in shared_stream:
            yield TriggerEvent(event)


if SharedStreamProducer is not None:

    class _CompletionsProducer(SharedStreamProducer):
        """Delivers the completions of jobs, and acknowledges those whose events have been stored."""

        def __init__(self, trigger: AirExecutorJobEventTrigger) -> None:
            self._trigger = trigger
            self._completions: Completions | None = None
            # A subscriber that is behind by more than [triggerer] shared_stream_subscriber_queue_size is ended.
            self._room = asyncio.Semaphore(_UNACKNOWLEDGED)

        async def open_stream(self) -> AsyncIterator[tuple[Any, Any]]:
            self._completions = await self._trigger.completions()
            async with contextlib.aclosing(self._completions.follow()) as found:
                async for job in found:
                    await self._room.acquire()
                    yield event_of(job), job

        async def advance(self, batch: Sequence[Any]) -> None:
            completions = self._completions
            if completions is None:
                return
            for job, outcome in batch:
                self._room.release()
                await asyncio.to_thread(completions.ack if outcome.is_clean else completions.nack, job)


def event_of(job: Job) -> dict[str, Any]:
    """The payload of the event of the end of a job; Airflow can store it, whatever the files of the job hold."""
    owner = job.submitted_by
    return {
        "job_name": printable(job.name),
        "job_id": printable(job.id),
        "state": job.state.value,
        "reason": job.reason.value if job.reason is not None else None,
        "error": printable(job.error) if job.error is not None else None,
        "attempt": job.attempt,
        "labels": job.labels,
        "outlets": list(job.outlets),
        "ended_at": job.updated_at.isoformat() if job.updated_at is not None else None,
        "submitted_by": owner.model_dump(include=set(SubmittedBy.model_fields)) if owner is not None else None,
    }
