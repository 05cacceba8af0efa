"""AirExecutorSubmitOperator: submits a job and waits for it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from airflow.sdk import Asset, BaseOperator
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSkipException, AirflowTaskTimeout, TaskDeferralError, TaskDeferralTimeout
from airflow.triggers.base import StartTriggerArgs

from airflow_provider_air_executor import lineage, links, triggers
from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    CorruptFileError,
    InvalidJobError,
    JobNotFoundError,
    JobTimeoutError,
)
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.installation import installation_of, name_for
from airflow_provider_air_executor.jobs import spec, summary
from airflow_provider_air_executor.jobs.models import (
    Job,
    JobState,
    SubmittedBy,
    Task,
    parse_tasks,
    printable,
)
from airflow_provider_air_executor.jobs.stream import LogStream
from airflow_provider_air_executor.own_job import OwnJob
from airflow_provider_air_executor.results import results_of

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

OnRetry = Literal["failed_tasks", "all"]
OnKill = Literal["cancel", "leave"]

# The trigger's own deadline comes first; this is for a trigger that does not run at all.
_BACKSTOP_SECONDS = 60
# A job that takes no longer ends before a deferral would have begun.
_QUICK_SECONDS = 0.2
_LOG_LINES = 20  # of what a task has printed, that are shown when the job has ended


class AirExecutorSubmitOperator(BaseOperator):
    """Submits a job with a list of tasks, and waits until it has ended.

    The job's name and id are in XCom (``job_name``, ``job_id``) before the wait begins. The return value is a dict of
    what the job's tasks have written as JSON to the files ``$AIR_EXECUTOR_OUTPUT``, by their ids, at most 1 MB each.
    Without waiting, it is the job's name.

    If the Airflow task is tried again, it reattaches its own job: it waits on if the job runs, and retries it if it
    failed. If it was cleared, the job is replaced by a new one. The job is cancelled when the
    Airflow task is cleared or marked while it is deferred, and when one of its timeouts is over.

    :param tasks: the tasks (templated): a list of dicts, of :class:`~airflow_provider_air_executor.jobs.models.Task`,
        or of bash lines. A dict has ``command`` and ``args``, or ``bash`` with a line of shell code, and may have
        ``id``, ``dependencies``, ``env``, ``cwd``, ``timeout``, ``retries``, ``retry_delay``, ``runner``,
        ``resources`` and the options of its engine; see there.
    :param job_name: the name of the job (templated). One that is not valid, because there is a ``:`` in it for
        instance, is mapped to one that is, always the same. Default: made of installation, DAG, run, task and
        map index.
    :param max_parallel_tasks: how many tasks of the job may run side by side; default: all that are independent.
    :param priority: jobs with a higher number start their tasks first; default 0.
    :param runner: what runs those of its tasks that do not say: ``local``, ``slurm``, or another one that the manager
        has; default: what the manager's settings say.
    :param labels: words by which the job can be found (templated); default: none.
    :param wait_for_completion: whether to wait for the end of the job; default True.
    :param deferrable: whether to wait in the triggerer, without a worker slot; default:
        ``[operators] default_deferrable``.
    :param poll_interval: seconds between two looks at the job where the system does not notify of changes, and at
        least between two lines of progress in the log; default 5.
    :param timeout: seconds after which the job is cancelled and the task fails; default: no limit. The task's own
        ``execution_timeout`` does the same, deferred or not.
    :param on_retry: what a retry of the Airflow task runs of a job that failed: ``failed_tasks`` (default) keeps what
        has completed, ``all`` starts over with a new job.
    :param on_kill: what becomes of the job if the worker receives SIGTERM while it waits: ``cancel`` (default), or
        ``leave``; the next try reattaches it then. The worker cannot know whether a user or a deployment sent it.
    :param job_outlets: the URIs of the data that the job makes or changes, for DAGs that wait for it with an
        :class:`~airflow_provider_air_executor.event_triggers.AirExecutorJobEventTrigger` (templated). The assets among
        the task's ``outlets`` are declared in any case. Default: no others.
    :param start_from_trigger: whether the job is submitted in the triggerer, so that a task whose job completes needs
        no worker at all; default False. Where that cannot be, a worker submits the job, and the task defers: when it is
        mapped, tried again or cleared, when ``tasks`` comes from another task, when there are templates with macros
        of the DAG's own, or Airflow is older than 3.3. The end needs a worker if the job fails, or the task has
        ``outlets``.
    :param skip_on_exit_code: exit codes of job tasks that skip the Airflow task instead of failing it, if no task
        failed otherwise; one, or several; default: none.
    :param stream_logs: whether what the tasks print appears in the log of the Airflow task while they run, looked for
        every ``poll_interval`` seconds, each line with the id of its task before it; default False: the last lines
        of each when the job has ended.
    :param openlineage_inject_parent_job_info: whether the tasks find in their environment which Airflow task they
        belong to (``OPENLINEAGE_PARENT_ID``, ``OPENLINEAGE_ROOT_PARENT_ID``), so that OpenLineage links to it what they
        report; their own ``env`` wins. As with any ``env``, a fresh shell is started for each task then, and none runs
        warm. Default: ``[openlineage] spark_inject_parent_job_info``.
    :param air_executor_conn_id: the connection (templated), see
        :class:`~airflow_provider_air_executor.hooks.AirExecutorHook`; default ``air_executor_default``.
    """

    template_fields: Sequence[str] = ("tasks", "job_name", "labels", "job_outlets", "air_executor_conn_id")
    template_fields_renderers = {"tasks": "json", "labels": "json", "job_outlets": "json"}
    operator_extra_links = (links.AirExecutorJobLink(),)
    ui_color = "#cfe2f3"

    def __init__(
        self,
        *,
        tasks: Sequence[Task | Mapping[str, Any] | str] | Any,
        job_name: str | None = None,
        max_parallel_tasks: int | None = None,
        priority: int = 0,
        runner: str | None = None,
        labels: Mapping[str, str] | None = None,
        job_outlets: Sequence[str] = (),
        wait_for_completion: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = 5.0,
        timeout: float | timedelta | None = None,
        on_retry: OnRetry = "failed_tasks",
        on_kill: OnKill = "cancel",
        skip_on_exit_code: int | Collection[int] = (),
        stream_logs: bool = False,
        start_from_trigger: bool = False,
        openlineage_inject_parent_job_info: bool = conf.getboolean(
            "openlineage", "spark_inject_parent_job_info", fallback=False
        ),
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_before_rendering(tasks)
        self.tasks = without_records(tasks)
        self.job_name = job_name
        self.max_parallel_tasks = max_parallel_tasks
        self.priority = priority
        self.runner = runner
        self.labels = labels
        self.job_outlets = job_outlets
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self.timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        self.on_retry = on_retry
        self.when_killed = on_kill
        self.skip_on_exit_code = _exit_codes(skip_on_exit_code)
        self.stream_logs = stream_logs
        self.openlineage_inject_parent_job_info = openlineage_inject_parent_job_info
        self.air_executor_conn_id = air_executor_conn_id
        self._job = ""  # the name of the job, as soon as it is known
        self._waits_for = ""  # the same, while this process waits for it
        self._owner: SubmittedBy | None = None
        for name, given, known in (("on_retry", on_retry, get_args(OnRetry)), ("on_kill", on_kill, get_args(OnKill))):
            if given not in known:
                raise InvalidJobError(f"{name}: must be one of {', '.join(known)}, not {given!r}")
        spec.check_spec({"max_parallel_tasks": max_parallel_tasks, "priority": priority, "labels": labels})
        if self.poll_interval <= 0:
            raise InvalidJobError(f"poll_interval: must be greater than 0 seconds, not {self.poll_interval!r}")
        if self.timeout is not None and self.timeout <= 0:
            raise InvalidJobError(f"timeout: must be greater than 0 seconds, not {self.timeout!r}")
        self.start_from_trigger = start_from_trigger and self._can_start_from_trigger()
        if start_from_trigger:
            self.deferrable = True
        if self.start_from_trigger:
            self.start_trigger_args = self._start_trigger_args()

    @cached_property
    def hook(self) -> AirExecutorHook:
        """The job filesystem."""
        return AirExecutorHook(self.air_executor_conn_id)

    def execute(self, context: Context) -> Any:
        """Submit the job, and wait for it."""
        owner = self._owner_in(context)
        variables = lineage.parent_environment(context["ti"]) if self.openlineage_inject_parent_job_info else {}
        own_job = OwnJob(
            self.hook,
            self._name_for(owner),
            owner,
            self._spec(),
            lambda: lineage.with_environment(self._tasks_to_submit(), variables),
        )
        job, after_attempt = own_job.submit(start_over=self.on_retry == "all", poll_interval=self.poll_interval)
        self._job = job.name
        self._push_identity(context, job)
        if not self.wait_for_completion:
            return job.name
        self._waits_for, self._owner = job.name, owner
        try:
            if self.deferrable:
                return self._defer_unless_quick(context, job.name, after_attempt)
            return self._wait_here(context, job.name, after_attempt)
        except AirflowTaskTimeout:
            self.log.error("job %s did not end within the task's execution_timeout; it is cancelled", job.name)
            self.hook.cancel_job(job.name, owner)
            raise

    def on_kill(self) -> None:
        """The worker has received SIGTERM: cancel the job, or leave it to the next try."""
        if self.when_killed != "cancel":
            self.log.info("job %s is left as it is", self._waits_for)
        elif self._waits_for:
            try:
                if self.hook.cancel_job(self._waits_for, self._owner):
                    self.log.info("job %s is cancelled, since its task was killed", self._waits_for)
            except (AirExecutorError, OSError) as error:
                self.log.error("job %s could not be cancelled: %s", self._waits_for, error)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Continue with the event of the trigger."""
        found = triggers.validate_event(event)
        name = found["job_name"]
        if found["status"] == triggers.NOT_SUBMITTED:
            return self.execute(context)
        self._job = name
        if self.start_from_trigger:
            with contextlib.suppress(JobNotFoundError):
                self._push_identity(context, self.hook.get_job(name))
        if found["status"] == triggers.TIMEOUT:
            self._time_out(name, found["message"], self._owner_in(context))
        elif found["status"] == triggers.NOT_FOUND:
            raise JobNotFoundError(name, self.hook.store.base_path)
        return self._finish(context, self.hook.get_job(name))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Called by Airflow in place of :meth:`execute` when the task goes on.

        If Airflow itself ends the deferral, because no triggerer ran when the time was over, or because the trigger
        failed, this method cancels the job. After a failure it leaves the job to the next try, which reattaches it, if
        there is one.
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralError, TaskDeferralTimeout) as error:
            owner = self._owner_in(context)
            is_last = (owner.try_number or 0) > (owner.max_tries or 0)
            if isinstance(error, TaskDeferralTimeout) or is_last:
                name = self._name_for(owner)
                try:
                    self._time_out(name, "the triggerer did not inspect it in time, or failed", owner)
                except JobNotFoundError:
                    self.log.warning("job %s has not been submitted", name)
            raise

    def _name_for(self, owner: SubmittedBy) -> str:
        return name_for(self.job_name, self.hook.store, owner)

    def _owner_in(self, context: Context) -> SubmittedBy:
        ti = context["ti"]
        return SubmittedBy.of_task(ti, max_tries=ti.max_tries, installation=self._installation)

    @cached_property
    def _installation(self) -> str | None:
        return installation_of(self.hook.store)

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        """Called by OpenLineage's extractor before the task begins."""
        try:
            tasks = parse_tasks(list_of(self.tasks))
        except InvalidJobError:  # not valid, or not known before the task runs
            tasks = ()
        return lineage.of_tasks(self, tasks)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Called by OpenLineage's extractor when the task has ended, well or badly."""
        # It may be called in a process forked for it, in which Airflow must not be asked for anything.
        name = self._job or self._name_for(SubmittedBy.of_task(task_instance))
        return self.get_openlineage_facets_on_start().merge(lineage.of_job(self.hook.store, name))

    def _push_identity(self, context: Context, job: Job) -> None:
        """Say which job this task has, also for a task that fails."""
        links.push_job(context, job.name, self.air_executor_conn_id)
        context["ti"].xcom_push(key="job_id", value=printable(job.id))

    # -- starting in the triggerer -------------------------------------------------------------------------

    def _can_start_from_trigger(self) -> bool:
        """Whether all arguments that the triggerer needs for the submission are known when the DAG is parsed."""
        needed = [self.tasks, self.job_name, self.labels, self.job_outlets, self.air_executor_conn_id]
        is_plain = isinstance(self.tasks, list | tuple) and all(isinstance(task, Mapping | str) for task in self.tasks)
        is_enough = not self.openlineage_inject_parent_job_info  # the DAG run is not known there
        return self.wait_for_completion and is_plain and is_enough and triggers.can_render(needed)

    def _start_trigger_args(self) -> StartTriggerArgs:
        trigger = triggers.AirExecutorSubmitTrigger(
            tasks=list(self.tasks),
            job_name=self.job_name,
            air_executor_conn_id=self.air_executor_conn_id,
            spec=self._spec(),
            retries=self.retries or 0,
            timeout=self._limit,
            poll_interval=self.poll_interval,
            stream_logs=self.stream_logs,
            end_from_trigger=not self.outlets,
            push_results=self.do_xcom_push,
        )
        classpath, kwargs = trigger.serialize()
        return StartTriggerArgs(trigger_cls=classpath, trigger_kwargs=kwargs, next_method="execute_complete")

    @property
    def _limit(self) -> float | None:
        """Seconds after which waiting fails and the job is cancelled."""
        limits = [self.timeout, self.execution_timeout.total_seconds() if self.execution_timeout else None]
        return min((seconds for seconds in limits if seconds is not None), default=None)

    @property
    def _job_timeout(self) -> float | None:
        """Seconds after which the manager itself kills the job, in case that no Airflow task waits for it any more."""
        if self.timeout is None or not self.wait_for_completion:
            return self.timeout
        return self.timeout + _BACKSTOP_SECONDS

    def _spec(self) -> spec.JobSpec:
        """The spec of the job; the assets among the outlets of the task are outlets of the job too."""
        assets = [outlet.uri for outlet in self.outlets if isinstance(outlet, Asset)]
        return {
            "max_parallel_tasks": self.max_parallel_tasks,
            "timeout": self._job_timeout,
            "priority": self.priority,
            "labels": self.labels,
            "outlets": list(dict.fromkeys([*self.job_outlets, *assets])),
            "runner": self.runner,
        }

    def _tasks_to_submit(self) -> tuple[Task, ...]:
        """The tasks of a new job. It is not called if the job of an earlier try is reattached."""
        return parse_tasks(list_of(self.tasks))

    # -- waiting -------------------------------------------------------------------------------------------

    def _defer_unless_quick(self, context: Context, name: str, after_attempt: int) -> Any:
        limit = self._limit
        try:
            job = self.hook.wait_for_job(name, timeout=_QUICK_SECONDS, after_attempt=after_attempt)
            return self._finish(context, job)
        except JobTimeoutError:
            trigger = triggers.AirExecutorJobTrigger(
                name,
                str(self.hook.store.base_path),
                embedded=self.hook.location.embedded,
                poll_interval=self.poll_interval,
                deadline=None if limit is None else time.time() + limit,
                after_attempt=after_attempt,
                owner=self._owner_in(context).model_dump(mode="json"),
                stream_logs=self.stream_logs,
            )
            backstop = None if limit is None else timedelta(seconds=limit + _BACKSTOP_SECONDS)
            self.defer(trigger=trigger, method_name="execute_complete", timeout=backstop)

    def _wait_here(self, context: Context, name: str, after_attempt: int) -> Any:
        last = [""]

        def say_how_far(job: Job) -> None:
            try:
                self._stream(job)
                line = summary.progress(self.hook.get_tasks(job.name))
                line += summary.trouble(self.hook.store, job.name, embedded=self.hook.location.embedded)
            except (CorruptFileError, OSError) as error:
                line = f"its tasks cannot be read now: {error}"
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
            self._time_out(name, str(error), self._owner_in(context))
        else:
            return self._finish(context, job)

    def _stream(self, job: Job) -> None:
        """Let what the tasks have printed since the last time appear in our log."""
        if self.stream_logs:
            stream = LogStream(self.hook.store, job.name, triggers.STREAM_READER)
            tasks = self.hook.get_tasks(job.name)
            stream.follow(tasks, lambda line: self.log.info("%s", line), is_over=job.state.is_terminal)

    def _time_out(self, name: str, message: str, owner: SubmittedBy | None = None) -> NoReturn:
        cancelled = self.hook.cancel_job(name, owner)
        ending = "it is cancelled" if cancelled else "it has ended meanwhile"
        raise JobTimeoutError(f"job {name!r} did not end in the time allowed for it ({message}); {ending}")

    def _finish(self, context: Context, job: Job) -> dict[str, Any]:
        """Say how the job has ended, task by task.

        :return: what its tasks have handed over.
        """
        self._stream(job)
        # The error contains the output of a failed job.
        log_lines = 0 if self.stream_logs or job.state is JobState.FAILED else _LOG_LINES
        for line in summary.describe(self.hook.store, job, log_lines=log_lines):
            self.log.info("%s", line)
        if job.state is not JobState.COMPLETED:
            self._push_partial_results(context, job)
            self._skip_if_meant(job)
            raise summary.error_of(self.hook.store, job)
        return results_of(self.hook.store, job.name)

    def _push_partial_results(self, context: Context, job: Job) -> None:
        """Leave what the tasks that have completed have handed over, of a job that has failed."""
        try:
            outputs = results_of(self.hook.store, job.name)
        except (AirExecutorError, OSError) as error:  # the failure of the job is what counts
            self.log.warning("results of job %s cannot be taken: %s", job.name, error)
            return
        if outputs and self.do_xcom_push:
            context["ti"].xcom_push(key="partial_results", value=outputs)

    def _skip_if_meant(self, job: Job) -> None:
        try:
            codes = {task.exit_code for task in summary.root_failures(self.hook.get_tasks(job.name))}
        except AirExecutorError:  # a list that is not valid, for instance
            return
        if codes and codes <= self.skip_on_exit_code:
            raise AirflowSkipException(f"job {job.name!r} failed with exit code {', '.join(sorted(map(str, codes)))}")


def check_before_rendering(tasks: Any) -> None:
    """Check a list of tasks as far as that is possible before its templates are rendered.

    What is not a list yet (the output of another task, a template) is checked when the task runs, and so are ids
    and dependencies with a template in them.

    :raises InvalidJobError: naming the field that is not valid.
    """
    if isinstance(tasks, str):
        if not triggers.has_template(tasks):
            raise InvalidJobError("tasks: must be a list of tasks; a single bash line goes into a list too")
    elif isinstance(tasks, Mapping | bytes | int | float) or tasks is None:
        raise InvalidJobError(f"tasks: must be a list of tasks, not {type(tasks).__name__}")
    elif isinstance(tasks, list | tuple) and all(isinstance(task, Task | Mapping | str) for task in tasks):
        plain = without_records(tasks)
        names = [name for task in plain if isinstance(task, Mapping) for name in _names_in(task)]
        if not any(triggers.has_template(name) for name in names):
            parse_tasks([_without_templates(task) if isinstance(task, Mapping) else task for task in plain])
    elif isinstance(tasks, list | tuple) and any(isinstance(task, int | float | bytes | None) for task in tasks):
        parse_tasks(tasks)


def _without_templates(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task without the options of engines that are known when templates are rendered."""
    return {
        name: {key: option for key, option in value.items() if not triggers.has_template(option)}
        if isinstance(value, Mapping) and name not in Task.model_fields
        else value
        for name, value in task.items()
    }


def _names_in(task: Mapping[str, Any]) -> list[Any]:
    dependencies = task.get("dependencies") or ()
    return [task.get("id"), *(dependencies if isinstance(dependencies, list | tuple) else (dependencies,))]


def without_records(tasks: Any) -> Any:
    """The tasks with each record as a dict, in which Airflow can render templates."""
    if not isinstance(tasks, list | tuple):
        return tasks
    return [task.model_dump(mode="json", exclude_unset=True) if isinstance(task, Task) else task for task in tasks]


def list_of(tasks: Any) -> Any:
    """A list that a template has rendered as text."""
    if isinstance(tasks, str):
        try:
            return json.loads(tasks)
        except ValueError as error:
            raise InvalidJobError(f"tasks: the template did not give a JSON list: {error}") from None
    return list(tasks) if not isinstance(tasks, Mapping) and hasattr(tasks, "__iter__") else tasks


def _exit_codes(given: Any) -> set[int]:
    """The exit codes that skip a task.

    :raises InvalidJobError: if one is no number; a text would be taken for its digits.
    """
    codes: list[Any] = [given] if isinstance(given, int | str) else list(given)
    for code in codes:
        if isinstance(code, bool) or not isinstance(code, int):
            raise InvalidJobError(f"skip_on_exit_code: must be a number, or several, not {given!r}")
    return set(codes)
