"""The triggers of tasks: one waits for a job in the triggerer, and one submits it before."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2
import msgspec
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent
from asgiref.sync import sync_to_async

from airflow_provider_air_executor import arguments, links, task_templates
from airflow_provider_air_executor.connections import Location
from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    JobExistsError,
    JobNotFoundError,
)
from airflow_provider_air_executor.hooks import AirExecutorHook, jobs_at
from airflow_provider_air_executor.installation import installation_of, name_for
from airflow_provider_air_executor.job_report import lines_at_end, log_line
from airflow_provider_air_executor.jobs import summary
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy, printable, valid_job_name
from airflow_provider_air_executor.jobs.spec import JobSpec
from airflow_provider_air_executor.results import results_of
from airflow_provider_air_executor.trigger_locations import location_of
from airflow_provider_air_executor.trigger_output import TriggerOutput
from airflow_provider_air_executor.trigger_wait import COMPLETED, FAILED, NOT_FOUND, TIMEOUT, JobWait, Waited, Waiting

if TYPE_CHECKING:
    from airflow_provider_air_executor.remote.protocol import Target

NOT_SUBMITTED = "not_submitted"  # the worker is to submit the job
STATUSES = (COMPLETED, FAILED, TIMEOUT, NOT_FOUND, NOT_SUBMITTED)

_CANCEL_SECONDS = 20.0  # for what is asked when a trigger is ended
_START_SECONDS = 20.0  # for a submission, until another machine answers; a worker has more time
_RESULT_SECONDS = 60.0  # for the results, likewise
_AHEAD_SECONDS = 2.0  # of Airflow's own timeout, after which the trigger could not cancel the job
# Since Airflow 3.3 a trigger has on_kill for the case that a user ends its task; before that it is only cancelled.
_HAS_ON_KILL = hasattr(BaseTrigger, "on_kill")
# And the scheduler lets a task start from its trigger.
_STARTS = _HAS_ON_KILL
_CATCH_ALL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class AirExecutorJobTrigger(BaseTrigger):
    """Fires once, when a job has ended or the deadline is over.

    The event is a dict with ``status`` (one of :data:`STATUSES`), ``job_name`` and ``message``. All triggers of one
    base path share one watcher, and no file is read in the event loop.

    :param job_name: the job (templated where a task starts from this trigger).
    :param base_path: the job filesystem; default: that of the connection.
    :param air_executor_conn_id: the connection, which is looked up if there is no ``base_path``; default:
        ``air_executor_default``.
    :param embedded: whether the manager is started again if it is gone; default False, or as the connection says.
    :param poll_interval: seconds between two passes over the jobs for file systems that do not notify, and at least
        between two lines of progress in the log; default 5.
    :param deadline: when waiting fails, in seconds since the epoch; default: never.
    :param must_exist: whether a job that is not there ends the waiting (default); otherwise it may still come.
    :param after_attempt: the end of this attempt of the job, or an earlier one, does not count; default: all do.
    :param owner: the Airflow task that waits, as the fields of
        :class:`~airflow_provider_air_executor.jobs.models.SubmittedBy`, if the job is to be cancelled when a user
        clears or marks that task; default: it never is.
    :param stream_logs: whether what the tasks print goes to the log of the Airflow task as it comes; default False.
    :param end_from_trigger: whether a job that has completed ends the Airflow task, without a worker; default False.
    :param push_results: whether what the tasks hand over becomes the return value then; default True.
    """

    def __init__(
        self,
        job_name: str,
        base_path: str | None = None,
        *,
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        embedded: bool = False,
        poll_interval: float = 5.0,
        deadline: float | None = None,
        must_exist: bool = True,
        after_attempt: int = -1,
        owner: dict[str, Any] | None = None,
        stream_logs: bool = False,
        end_from_trigger: bool = False,
        push_results: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_name = job_name
        self.base_path = base_path
        self.air_executor_conn_id = air_executor_conn_id
        self.embedded = embedded
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.must_exist = must_exist
        self.after_attempt = after_attempt
        self.owner = owner
        self.stream_logs = stream_logs
        self.end_from_trigger = end_from_trigger
        self.push_results = push_results
        self._output: TriggerOutput | None = None
        self._location: Location | Target = Location(base_path or "", embedded)
        self._jobs = jobs_at(self._location, "a trigger")
        self._unrendered = ""  # why the templates could not be rendered
        self._submitting: asyncio.Future[Job] | None = None
        self._killing: asyncio.Future[None] | None = None

    def render_template_fields(self, context: Any, jinja_env: Any = None) -> None:
        """Render the templates, as Airflow asks for it where a task starts from this trigger.

        Here are neither the DAG's own macros and filters nor its ``template_undefined``. What is not known must not
        become an empty text, as it would by default, but is left to a worker.
        """
        environment = jinja_env or self.get_template_env()
        environment.undefined = jinja2.StrictUndefined
        try:
            super().render_template_fields(context, environment)
        except Exception as error:  # noqa: BLE001 - whatever a template does
            self._unrendered = f"{type(error).__name__}: {error}"

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments, to be made again in the triggerer."""
        return class_and_arguments(self)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait for the job, and say in the task's log how far it is."""
        if self._unrendered:
            self.log.info("a worker is to begin, since a template cannot be rendered here: %s", self._unrendered)
            yield TriggerEvent(self._event(NOT_SUBMITTED, self._unrendered))
            return
        await self._locate()
        self.job_name = valid_job_name(self.job_name)
        yield await self._wait_for_end()

    async def _locate(self) -> None:
        """Find out where the job filesystem is."""
        if self.base_path is not None:
            return
        self._location = await location_of(self.air_executor_conn_id)
        if isinstance(self._location, Location):
            self.base_path, self.embedded = self._location
        # A client of another machine reads certificates when it is made.
        self._jobs = await asyncio.to_thread(jobs_at, self._location, f"connection {self.air_executor_conn_id!r}")

    async def _has_moved(self) -> bool:
        """Whether the connection says now that the jobs, which cannot be read, are elsewhere, or has another token."""
        if isinstance(self._location, Location):
            return False
        try:
            return await location_of(self.air_executor_conn_id) != self._location
        except Exception as error:  # noqa: BLE001 - whatever the connection is now, it was well
            self.log.warning("connection %r cannot be read again: %s", self.air_executor_conn_id, error)
            return False

    async def _wait_for_end(self) -> TriggerEvent:
        try:
            while (waited := await self._wait()) is None:
                await self._locate()
            fired = await self._fired(waited)
            if self._output is not None:
                await self._output.let_be_read()
        except asyncio.CancelledError as cancelled:
            # Beside the rest: a triggerer of Airflow 3.2 that ends answers nothing, and is killed before this gives up.
            asked = None if _HAS_ON_KILL else asyncio.ensure_future(self._cancel_if_ended_by_user())
            if not cancelled.args and self._output is not None:  # the triggerer ends; what a user does has a word
                await self._output.let_arrive()
            if asked is not None:
                await asked
            raise
        return fired

    async def _wait(self) -> Waited | None:
        """Wait for the job where it is now; None if that is elsewhere meanwhile."""
        waiting = Waiting(self.job_name, self.poll_interval, self.deadline, self.must_exist, self.after_attempt)
        if self._output is not None:
            self._output.move(self._jobs)
        elif self.stream_logs:
            self._output = TriggerOutput(self._jobs, self.job_name, self.log)
        return await JobWait(self._jobs, waiting, self._output, self.log).until_end(self._has_moved)

    async def _fired(self, waited: Waited) -> TriggerEvent:
        # What could not be shown the worker shows.
        if self.end_from_trigger and waited.status == COMPLETED and waited.is_shown:
            try:
                return await asyncio.to_thread(self._success)
            except Exception as error:  # noqa: BLE001 - whatever it is, the worker meets it too, and can say so
                self.log.info("the worker is to inspect job %s: %s", self.job_name, error)
        return TriggerEvent(self._event(waited.status, waited.message))

    def _success(self) -> TriggerEvent:
        """The event that ends the task.

        :raises Exception: if Airflow could not hand it on, which would end the triggerer: a number of more than 64 bits
            in a result, for instance.
        """
        event = TaskSuccessEvent(xcoms=self._results())
        msgspec.msgpack.encode(event.model_dump())
        return event

    def _results(self) -> dict[str, Any]:
        """The XComs of a task that ends here; the log gets a table of how the job has ended."""
        jobs = self._jobs.with_patience(_RESULT_SECONDS)
        job, log_lines = jobs.get_job(self.job_name), lines_at_end(None if self._output is None else self._output.lines)
        for line in summary.describe(jobs, job, log_lines=log_lines):
            log_line(self.log, line)
        results: dict[str, Any] = {**links.xcoms_of(self.job_name, self.air_executor_conn_id)}
        return {**results, "return_value": results_of(jobs, self.job_name)} if self.push_results else results

    async def on_kill(self) -> None:
        """A user has cleared or marked the task that waits: cancel its job.

        Airflow calls this also when a triggerer that had stood still finds its triggers elsewhere. Then the task is
        still deferred, and the job goes on.

        Airflow (3.3.2) cancels a trigger every second until it has ended, and with it this call: what is asked here
        goes on all the same.
        """
        self._killing = self._killing or asyncio.ensure_future(self._cancel_unless_deferred())
        await asyncio.shield(self._killing)

    async def _cancel_unless_deferred(self) -> None:
        if self.owner is None:
            return
        owner = SubmittedBy.model_validate(self.owner)
        if self._submitting is not None:  # it goes on in its thread
            await asyncio.wait([self._submitting])
        if await task_state(owner) == "deferred":
            self.log.info("job %s goes on: the task is still deferred, another triggerer waits for it", self.job_name)
        elif await asyncio.to_thread(self._cancel_for, owner):
            self.log.info("job %s is cancelled, since its task was cleared or marked", self.job_name)

    async def _cancel_if_ended_by_user(self) -> None:
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                await self.on_kill()
        except Exception as error:  # noqa: BLE001 - the triggerer ends, most likely, and the API does not answer
            self.log.info("job %s goes on: the state of its task is not known (%r)", self.job_name, error)

    def _cancel_for(self, owner: SubmittedBy) -> bool:
        """Cancel the job if it is still the owner's: a task that was cleared may have submitted another one.

        If the manager is away, the next one cancels it.
        """
        jobs = self._jobs.with_patience(_CANCEL_SECONDS)
        try:
            is_asked = jobs.cancel(self.job_name, owner)
        except JobNotFoundError:
            return False
        except (AirExecutorError, OSError) as error:
            self.log.error("job %s could not be cancelled: %s", self.job_name, error)
            return False
        try:
            if is_asked:
                jobs.ensure_manager()
        except (AirExecutorError, OSError) as error:
            self.log.warning("job %s: %s", self.job_name, error)
        return is_asked

    def _event(self, status: str, message: str) -> dict[str, str]:
        # PostgreSQL has no NUL, and the triggerer can do nothing with an event that it cannot store.
        return {"status": status, "job_name": self.job_name, "message": printable(message)}


class AirExecutorSubmitTrigger(AirExecutorJobTrigger):
    """Submits a job, and waits for it: a task of the operator that starts from here needs no worker.

    It does so for a task that runs for the first time. What is not that simple (a retry, a task that was cleared, a
    name that is taken, a list that is not valid) it leaves to the worker, by an event :data:`NOT_SUBMITTED`.

    :param tasks: the tasks (templated), as :class:`~airflow_provider_air_executor.operators.AirExecutorSubmitOperator`
        takes them.
    :param defaults: the fields that all of them have (templated), unless they have their own; default: none.
    :param job_name: the name of the job (templated); default: made of installation, DAG, run, task and map
        index.
    :param air_executor_conn_id: the connection (templated); default ``air_executor_default``.
    :param spec: what else is said of the job (templated), see
        :class:`~airflow_provider_air_executor.jobs.spec.JobSpec`; default: nothing.
    :param retries: of the Airflow task; default 0.
    :param timeout: seconds after the submission of the job at which waiting fails; default: no limit.
    :param poll_interval: seconds, see :class:`AirExecutorJobTrigger`; default 5.
    :param stream_logs: see there.
    :param end_from_trigger: see there; default True.
    :param push_results: see there.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[Any],
        defaults: Mapping[str, Any] | None = None,
        job_name: str | None = None,
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        spec: JobSpec | None = None,
        retries: int = 0,
        timeout: float | None = None,
        poll_interval: float = 5.0,
        stream_logs: bool = False,
        end_from_trigger: bool = True,
        push_results: bool = True,
    ) -> None:
        super().__init__(
            job_name or "",
            air_executor_conn_id=air_executor_conn_id,
            poll_interval=poll_interval,
            stream_logs=stream_logs,
            end_from_trigger=end_from_trigger,
            push_results=push_results,
        )
        self.tasks = tasks
        self.defaults = defaults or {}
        self.spec: JobSpec = spec or {}
        self.retries = retries
        self.timeout = timeout

    def render_template_fields(self, context: Any, jinja_env: Any = None) -> None:
        """Render the templates, those in :attr:`spec` and :attr:`defaults` too, which are several of the operator's."""
        self.template_fields = (*self.template_fields, "spec", "defaults")
        super().render_template_fields(context, jinja_env)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Submit the job, or find it submitted, and wait for it."""
        ti: Any = self.task_instance
        job = None
        if ti.try_number == 1 and not self._unrendered:
            try:
                await self._locate()
                jobs = self._jobs.with_patience(_START_SECONDS)
                installation = await sync_to_async(installation_of)(jobs)
                owner = SubmittedBy.of_task(ti, max_tries=self.retries, installation=installation)
                self.job_name = await asyncio.to_thread(name_for, self.job_name, jobs, owner)
                self.owner = owner.model_dump(mode="json")
                self._submitting = asyncio.ensure_future(asyncio.to_thread(self._submit, owner))
                job = await asyncio.shield(self._submitting)
            except Exception as error:  # noqa: BLE001 - whatever it is, the worker meets it too, and can say so
                self.log.info("job %s is not submitted here: %s", self.job_name, error)
        if job is None:
            yield TriggerEvent(self._event(NOT_SUBMITTED, self._unrendered or "the worker is to submit it"))
            return
        self.deadline = self._deadline_of(job)
        yield await self._wait_for_end()

    def _submit(self, owner: SubmittedBy) -> Job:
        """The job of this task: submitted now, or by a triggerer before this one.

        :raises AirExecutorError: if it cannot be submitted.
        """
        tasks, jobs = task_templates.to_submit(self.tasks, self.defaults), self._jobs.with_patience(_START_SECONDS)
        if self.embedded:
            jobs.prepare()
        try:
            job = jobs.submit(
                self.job_name, tasks, submitted_by=owner, **arguments.job_spec({"outlets": (), **self.spec}, {})
            )
            self.log.info("submitted job %s with %d tasks to %s", job.name, len(tasks), jobs.where)
        except JobExistsError:
            job = jobs.get_job(self.job_name)
            if not job.belongs_to(owner):
                raise
        jobs.ensure_manager()
        return job

    def _deadline_of(self, job: Job) -> float | None:
        """When waiting fails: the same moment for each triggerer, and before Airflow's own limit."""
        limits = []
        if self.timeout is not None and job.created_at is not None:
            limits.append(job.created_at.timestamp() + self.timeout)
        given: datetime | None = getattr(self, "timeout_after", None)
        if given is not None:
            limits.append(given.timestamp() - _AHEAD_SECONDS)
        return min(limits, default=None)

    def _results(self) -> dict[str, Any]:
        job = self._jobs.with_patience(_RESULT_SECONDS).get_job(self.job_name)
        return {**super()._results(), "job_id": printable(job.id)}


async def task_state(owner: SubmittedBy) -> str | None:
    """The state of an Airflow task now."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = await sync_to_async(RuntimeTaskInstance.get_task_states)(
        dag_id=owner.dag_id, task_ids=[owner.task_id], run_ids=[owner.run_id], map_index=owner.map_index
    )
    key = owner.task_id if owner.map_index < 0 else f"{owner.task_id}_{owner.map_index}"
    found: str | None = states.get(owner.run_id, {}).get(key)
    return found


def class_and_arguments(trigger: BaseTrigger) -> tuple[str, dict[str, Any]]:
    """The path of a trigger's class, and the arguments to make it again; it has each of them as an attribute.

    A class of a user may hand arguments on to its base, whose names are in the signature of that.
    """
    kind, arguments = type(trigger), {}
    for each in kind.__mro__:
        parameters = list(inspect.signature(each.__init__).parameters.values())[1:]  # type: ignore[misc]
        named = [parameter.name for parameter in parameters if parameter.kind not in _CATCH_ALL]
        arguments.update({name: getattr(trigger, name) for name in named})
        if len(named) == len(parameters):
            break
    return f"{kind.__module__}.{kind.__qualname__}", arguments


def validate_event(event: object) -> dict[str, str]:
    """Return the event of an :class:`AirExecutorJobTrigger` if it is one.

    :raises ValueError: for anything else, so that nothing unknown is taken for success.
    """
    if not isinstance(event, dict) or event.get("status") not in STATUSES or "job_name" not in event:
        raise ValueError(f"the trigger fired an event that is not known here: {event!r}")
    return event


def can_render(values: Iterable[Any]) -> bool:
    """Whether a task with these values can start from its trigger.

    What is neither plain nor a template, the output of another task for instance, cannot be known there.
    """
    return _STARTS and all(_is_plain(value) for value in values)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)
