"""AirExecutorSubmitOperator: submits a job and waits for it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from airflow.sdk import BaseOperator
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_provider_air_executor import triggers
from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    InvalidJobError,
    JobExistsError,
    JobNotFoundError,
    JobTimeoutError,
)
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs import summary
from airflow_provider_air_executor.jobs.models import (
    Job,
    JobState,
    Reason,
    SubmittedBy,
    Task,
    name_with_digest,
    parse_tasks,
    valid_job_name,
)
from airflow_provider_air_executor.jobs.stream import LogStream

if TYPE_CHECKING:
    from airflow.sdk import Context

OnRetry = Literal["failed_tasks", "all"]
OnKill = Literal["cancel", "leave"]

# The trigger's own deadline comes first; this is for a trigger that does not run at all.
_BACKSTOP_SECONDS = 60
# A job that takes no longer ends before a deferral would have begun.
_QUICK_SECONDS = 0.2
_LOG_LINES = 20  # of what a task has printed, that are shown when the job has ended
_TEMPLATE_MARKS = ("{{", "{%", "{#")


class AirExecutorSubmitOperator(BaseOperator):
    """Submits a job with a list of tasks, and waits until it has ended.

    The job's name and id are in XCom (``job_name``, ``job_id``) before the wait begins. The return value is a dict of
    what the job's tasks have written as JSON to the files ``$AIR_EXECUTOR_OUTPUT``, by their ids, at most 1 MB each.
    Without waiting, it is the job's name.

    If the Airflow task is tried again, it takes up its own job: it goes on waiting for one that runs, and lets one that
    failed run again what failed. If it was cleared, the job is replaced by a new one. The job is cancelled when the
    Airflow task is cleared or marked while it is deferred, and when one of its timeouts is over.

    :param tasks: the tasks (templated): a list of dicts, of :class:`~airflow_provider_air_executor.jobs.models.Task`,
        or of bash lines. A dict has ``command`` and ``args``, or ``bash`` with a line of shell code, and may have
        ``id``, ``dependencies``, ``env``, ``cwd``, ``timeout``, ``retries`` and ``retry_delay``; see there.
    :param job_name: the name of the job (templated). One that is not valid, because there is a ``:`` in it for
        instance, is mapped to one that is, always the same. Default: made of DAG, run, task and map index.
    :param max_parallel_tasks: how many tasks of the job may run side by side; default: all that are independent.
    :param priority: jobs with a higher number start their tasks first; default 0.
    :param labels: words by which the job can be found (templated).
    :param wait_for_completion: whether to wait for the end of the job; default True.
    :param deferrable: whether to wait in the triggerer, without a worker slot; default:
        ``[operators] default_deferrable``.
    :param poll_interval: seconds between two looks at the job where the system does not tell of its changes, and at
        least between two lines of progress in the log; default 5.
    :param timeout: seconds after which the job is cancelled and the task fails; default: no limit. The task's own
        ``execution_timeout`` does the same, deferred or not.
    :param on_retry: what a retry of the Airflow task runs of a job that failed: ``failed_tasks`` (default) keeps what
        has completed, ``all`` starts over with a new job.
    :param on_kill: what becomes of the job if the worker is told to end while it waits, be it for a user or for a
        deployment, which it cannot tell apart: ``cancel`` (default), or ``leave``; the next try takes it up then.
    :param stream_logs: whether what the tasks print appears in the log of the Airflow task while they run, looked for
        every ``poll_interval`` seconds, each line with the id of its task before it; default False: the last lines
        of each when the job has ended.
    :param air_executor_conn_id: the connection, see :class:`~airflow_provider_air_executor.hooks.AirExecutorHook`.
    """

    template_fields: Sequence[str] = ("tasks", "job_name", "labels", "air_executor_conn_id")
    template_fields_renderers = {"tasks": "json", "labels": "json"}
    ui_color = "#cfe2f3"

    def __init__(
        self,
        *,
        tasks: Sequence[Task | Mapping[str, Any] | str] | Any,
        job_name: str | None = None,
        max_parallel_tasks: int | None = None,
        priority: int = 0,
        labels: Mapping[str, str] | None = None,
        wait_for_completion: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = 5.0,
        timeout: float | timedelta | None = None,
        on_retry: OnRetry = "failed_tasks",
        on_kill: OnKill = "cancel",
        stream_logs: bool = False,
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_before_rendering(tasks)
        self.tasks = _without_records(tasks)
        self.job_name = job_name
        self.max_parallel_tasks = max_parallel_tasks
        self.priority = priority
        self.labels = labels
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        self.on_retry = on_retry
        self.when_killed = on_kill
        self.stream_logs = stream_logs
        self.air_executor_conn_id = air_executor_conn_id
        self._waits_for = ""  # the job, while this process waits for it
        for name, given, known in (("on_retry", on_retry, get_args(OnRetry)), ("on_kill", on_kill, get_args(OnKill))):
            if given not in known:
                raise InvalidJobError(f"{name}: must be one of {', '.join(known)}, not {given!r}")
        if self.poll_interval <= 0:
            raise InvalidJobError(f"poll_interval: must be greater than 0 seconds, not {self.poll_interval!r}")
        if self.timeout is not None and self.timeout <= 0:
            raise InvalidJobError(f"timeout: must be greater than 0 seconds, not {self.timeout!r}")

    @cached_property
    def hook(self) -> AirExecutorHook:
        """The job filesystem."""
        return AirExecutorHook(self.air_executor_conn_id)

    def execute(self, context: Context) -> Any:
        """Submit the job, and wait for it."""
        owner = _submitted_by(context)
        name = valid_job_name(self.job_name) if self.job_name else _default_name(owner)
        job, after_attempt = self._submit(name, owner)
        context["ti"].xcom_push(key="job_name", value=job.name)
        context["ti"].xcom_push(key="job_id", value=job.id)
        if not self.wait_for_completion:
            return job.name
        self._waits_for = job.name
        try:
            if self.deferrable:
                return self._defer_unless_quick(job.name, after_attempt, owner)
            return self._wait_here(job.name, after_attempt)
        except AirflowTaskTimeout:
            self.log.error("job %s did not end within the task's execution_timeout; it is cancelled", job.name)
            self.hook.cancel_job(job.name)
            raise

    def on_kill(self) -> None:
        """The worker is told to end: cancel the job, or leave it to the next try."""
        if self.when_killed != "cancel":
            self.log.info("job %s is left as it is", self._waits_for)
        elif self._waits_for:
            try:
                if self.hook.cancel_job(self._waits_for):
                    self.log.info("job %s is cancelled, since its task was killed", self._waits_for)
            except (AirExecutorError, OSError) as error:
                self.log.error("job %s could not be cancelled: %s", self._waits_for, error)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Take up what the trigger has found."""
        found = triggers.validate_event(event)
        name = found["job_name"]
        if found["status"] == triggers.TIMEOUT:
            self._give_up(name, found["message"])
        elif found["status"] == triggers.NOT_FOUND:
            raise JobNotFoundError(name, self.hook.store.base_path)
        return self._finish(self.hook.get_job(name))

    # -- submitting ----------------------------------------------------------------------------------------

    def _submit(self, name: str, owner: SubmittedBy) -> tuple[Job, int]:
        """Submit the job, or take up the one that an earlier try of this task has submitted.

        :return: the job, and the last of its attempts whose end we know and do not wait for.
        """
        tasks = parse_tasks(_from_json(self.tasks))
        try:
            return self._create(name, tasks, owner), -1
        except JobExistsError:
            job = self.hook.get_job(name)
            if job.submitted_by is None or not job.submitted_by.is_same_task(owner):
                raise
        starts_over = self.on_retry == "all" and job.state is JobState.FAILED
        if not job.submitted_by.is_same_run(owner) or job.reason is Reason.INVALID or starts_over:
            why = (
                "failed, and is to start over"
                if starts_over
                else "is of an earlier run of this task, which was cleared"
            )
            self.log.info("job %s %s; it is replaced", name, why)
            if self.hook.cancel_job(name):
                self.hook.wait_for_job(name, poll_interval=self.poll_interval)
            self.hook.delete_job(name)
            return self._create(name, tasks, owner), -1
        if job.state is JobState.FAILED:
            self.log.info("job %s failed (%s); what failed of it runs again", name, job.error)
            self.hook.retry_job(name)
            return job, job.attempt
        self.log.info("job %s was submitted by an earlier try of this task and is %s", name, job.state.value)
        self.hook.ensure_manager()
        return job, -1

    def _create(self, name: str, tasks: tuple[Task, ...], owner: SubmittedBy) -> Job:
        job = self.hook.create_job(
            name,
            tasks,
            max_parallel_tasks=self.max_parallel_tasks or len(tasks),
            priority=self.priority,
            labels=self.labels,
            submitted_by=owner,
        )
        self.log.info("submitted job %s with %d tasks to %s", job.name, len(tasks), self.hook.store.base_path)
        return job

    # -- waiting -------------------------------------------------------------------------------------------

    def _defer_unless_quick(self, name: str, after_attempt: int, owner: SubmittedBy) -> Any:
        limits = [self.timeout, self.execution_timeout.total_seconds() if self.execution_timeout else None]
        limit = min((seconds for seconds in limits if seconds is not None), default=None)
        try:
            return self._finish(self.hook.wait_for_job(name, timeout=_QUICK_SECONDS, after_attempt=after_attempt))
        except JobTimeoutError:
            trigger = triggers.AirExecutorJobTrigger(
                name,
                str(self.hook.store.base_path),
                embedded=self.hook.location.embedded,
                poll_interval=self.poll_interval,
                deadline=None if limit is None else time.time() + limit,
                after_attempt=after_attempt,
                owner=owner.model_dump(mode="json"),
                stream_logs=self.stream_logs,
            )
            backstop = None if limit is None else timedelta(seconds=limit + _BACKSTOP_SECONDS)
            self.defer(trigger=trigger, method_name="execute_complete", timeout=backstop)

    def _wait_here(self, name: str, after_attempt: int) -> Any:
        last = [""]

        def say_how_far(job: Job) -> None:
            self._stream(job)
            line = summary.progress(self.hook.get_tasks(job.name))
            if line != last[0]:
                last[0] = line
                self.log.info("job %s: %s", job.name, line)

        try:
            job = self.hook.wait_for_job(
                name,
                timeout=self.timeout,
                poll_interval=self.poll_interval,
                after_attempt=after_attempt,
                on_poll=say_how_far,
            )
        except JobTimeoutError as error:
            self._give_up(name, str(error))
        else:
            return self._finish(job)

    def _stream(self, job: Job) -> None:
        """Let what the tasks have printed since the last time appear in our log."""
        if self.stream_logs:
            stream = LogStream(self.hook.store, job.name, triggers.STREAM_READER)
            tasks = self.hook.get_tasks(job.name)
            stream.follow(tasks, lambda line: self.log.info("%s", line), is_over=job.state.is_terminal)

    def _give_up(self, name: str, message: str) -> NoReturn:
        cancelled = self.hook.cancel_job(name)
        ending = "it is cancelled" if cancelled else "it has ended meanwhile"
        raise JobTimeoutError(f"job {name!r} did not end in the time allowed for it ({message}); {ending}")

    def _finish(self, job: Job) -> dict[str, Any]:
        """Say how the job has ended, task by task.

        :return: what its tasks have handed over.
        """
        self._stream(job)
        # What a failed job has printed stands in the error.
        log_lines = 0 if self.stream_logs or job.state is JobState.FAILED else _LOG_LINES
        for line in summary.describe(self.hook.store, job, log_lines=log_lines):
            self.log.info("%s", line)
        if job.state is not JobState.COMPLETED:
            raise summary.error_of(self.hook.store, job)
        return self.hook.store.get_outputs(job.name)


def check_before_rendering(tasks: Any) -> None:
    """Check a list of tasks as far as that is possible before its templates are rendered.

    What is not a list yet (the output of another task, a template) is checked when the task runs, and so are ids
    and dependencies with a template in them.

    :raises InvalidJobError: naming the field that is not valid.
    """
    if isinstance(tasks, str):
        if not _has_template(tasks):
            raise InvalidJobError("tasks: must be a list of tasks; a single bash line goes into a list too")
    elif isinstance(tasks, Mapping | bytes | int | float) or tasks is None:
        raise InvalidJobError(f"tasks: must be a list of tasks, not {type(tasks).__name__}")
    elif isinstance(tasks, list | tuple) and all(isinstance(task, Task | Mapping | str) for task in tasks):
        plain = _without_records(tasks)
        names = [name for task in plain if isinstance(task, Mapping) for name in _names_in(task)]
        if not any(isinstance(name, str) and _has_template(name) for name in names):
            parse_tasks(plain)
    elif isinstance(tasks, list | tuple) and any(isinstance(task, int | float | bytes | None) for task in tasks):
        parse_tasks(tasks)


def _names_in(task: Mapping[str, Any]) -> list[Any]:
    dependencies = task.get("dependencies") or ()
    return [task.get("id"), *(dependencies if isinstance(dependencies, list | tuple) else (dependencies,))]


def _has_template(text: str) -> bool:
    return any(mark in text for mark in _TEMPLATE_MARKS)


def _without_records(tasks: Any) -> Any:
    """The tasks with each record as a dict, in which Airflow can render templates."""
    if not isinstance(tasks, list | tuple):
        return tasks
    return [task.model_dump(mode="json", exclude_unset=True) if isinstance(task, Task) else task for task in tasks]


def _from_json(tasks: Any) -> Any:
    """A list that a template has rendered as text."""
    if isinstance(tasks, str):
        try:
            return json.loads(tasks)
        except ValueError as error:
            raise InvalidJobError(f"tasks: the template did not give a JSON list: {error}") from None
    return list(tasks) if not isinstance(tasks, Mapping) and hasattr(tasks, "__iter__") else tasks


def _submitted_by(context: Context) -> SubmittedBy:
    ti = context["ti"]
    return SubmittedBy(
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        task_id=ti.task_id,
        map_index=-1 if ti.map_index is None else ti.map_index,
        try_number=ti.try_number,
        max_tries=ti.max_tries,
    )


def _default_name(owner: SubmittedBy) -> str:
    parts = [owner.dag_id, owner.run_id, owner.task_id, owner.map_index]
    mapped = f"__{owner.map_index}" if owner.map_index >= 0 else ""
    return name_with_digest(f"{owner.dag_id}__{owner.task_id}{mapped}__{owner.run_id}", json.dumps(parts))
