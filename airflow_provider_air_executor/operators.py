"""AirExecutorSubmitOperator: submits a job and waits for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from airflow.sdk import Asset
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferralError, TaskDeferralTimeout
from airflow.triggers.base import StartTriggerArgs

from airflow_provider_air_executor import arguments, lineage, links, task_files, task_templates, triggers
from airflow_provider_air_executor.exceptions import (
    InvalidJobError,
    JobNotFoundError,
    JobsAwayError,
    JobTimeoutError,
)
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.installation import installation_of, name_for
from airflow_provider_air_executor.job_report import JobReport
from airflow_provider_air_executor.job_tasks import JobTasksOperator, NothingToRunError, OnEmpty
from airflow_provider_air_executor.jobs import spec
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy, Task, parse_tasks, printable
from airflow_provider_air_executor.own_job import OwnJob, cancel_if_reached, why_gone
from airflow_provider_air_executor.trigger_wait import NOT_FOUND, TIMEOUT

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context

OnRetry = Literal["failed_tasks", "all"]
OnKill = Literal["cancel", "leave"]

# The trigger's own deadline comes first; this is for a trigger that does not run at all.
_BACKSTOP_SECONDS = 60
# Seconds for which it is tried to cancel a job on another machine that is away: when the worker is killed (Airflow
# waits [core] killed_task_cleanup_time, 60 s), and when the time for the job is over.
_KILL_PATIENCE, _TIMEOUT_PATIENCE = 20.0, 60.0
_LINEAGE_PATIENCE = 5.0  # less than OpenLineage has
# A job that takes no longer ends before a deferral would have begun.
_QUICK_SECONDS = 0.2


class AirExecutorSubmitOperator(JobTasksOperator):
    """Submits a job with a list of tasks, and waits until it has ended.

    The job's name and id are in XCom (``job_name``, ``job_id``) before the wait begins. The return value is a dict of
    what the job's tasks have written as JSON to the files ``$AIR_EXECUTOR_OUTPUT``, by their ids, at most 1 MB each.
    Without waiting, it is the job's name.

    If the Airflow task is tried again, it reattaches its own job: it waits on if the job runs, and retries it if it
    failed. If it was cleared, the job is replaced by a new one. The job is cancelled when the
    Airflow task is cleared or marked while it is deferred, and when one of its timeouts is over.

    :param tasks: the tasks (templated): a list of dicts, of :class:`~airflow_provider_air_executor.jobs.models.Task`,
        or of bash lines. A dict has ``command`` and ``args``, or ``bash`` with a line of shell code, and may have
        ``id``, ``dependencies``, ``run_if``, ``env``, ``cwd``, ``timeout``, ``retries``, ``retry_delay``, ``runner``,
        ``resources`` and the options of its engine; see there. Templates, and outputs of other Airflow tasks, may be
        anywhere in it. A bash line that is the name of a file ``.sh`` or ``.bash`` is read from the DAG's folder. In
        place of the list, the name of a file ``.yaml`` or ``.yml`` is a whole job.
    :param env: environment variables of all its tasks (templated); a task's own win. Default: none.
    :param cwd: the directory that its tasks run in (templated), unless they have their own; default: see there.
    :param append_env: whether the tasks have the environment of their manager, too. False: only ``env``, and what
        programs need to run (``PATH``, ``HOME``, the locale). Default True.
    :param on_empty: what happens if the list of tasks is empty when it is known: ``fail`` (default), ``skip`` skips the
        Airflow task, ``succeed`` lets it succeed.
    :param job_name: the name of the job (templated). One that is not valid, because there is a ``:`` in it for
        instance, is mapped to one that is, always the same. Default: made of installation, DAG, run, task and
        map index.
    :param max_parallel_tasks: how many tasks of the job may run side by side (templated); default: all that are
        independent.
    :param priority: jobs with a higher number start their tasks first (templated); default 0.
    :param runner: what runs those of its tasks that do not say (templated): ``local``, ``slurm``, or another one that
        the manager has; default: what the manager's settings say.
    :param labels: words by which the job can be found (templated); default: none.
    :param wait_for_completion: whether to wait for the end of the job; default True.
    :param deferrable: whether to wait in the triggerer, without a worker slot; default:
        ``[operators] default_deferrable``.
    :param poll_interval: seconds between two looks at the job where the system does not notify of changes, and at
        least between two lines of progress in the log, or ``"1m"``, or a timedelta; default 5.
    :param timeout: seconds after which the job is cancelled and the task fails, or ``"15m"``, or a timedelta
        (templated); default: no limit. The task's own ``execution_timeout`` does the same, deferred or not.
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
        every ``poll_interval`` seconds, each line with the id of its task before it and with its level; at most 10 MB
        of a job (``[air_executor] stream_limit``). Default True. False: the last lines of each when the job has ended.
    :param openlineage_inject_parent_job_info: whether the tasks find in their environment which Airflow task they
        belong to (``OPENLINEAGE_PARENT_ID``, ``OPENLINEAGE_ROOT_PARENT_ID``), so that OpenLineage links to it what they
        report; their own ``env`` wins. As with any ``env``, a fresh shell is started for each task then, and none runs
        warm. Default: ``[openlineage] spark_inject_parent_job_info``.
    :param air_executor_conn_id: the connection (templated), see
        :class:`~airflow_provider_air_executor.hooks.AirExecutorHook`; default ``air_executor_default``.
    """

    template_fields: Sequence[str] = (
        *JobTasksOperator.template_fields,
        "job_name",
        "max_parallel_tasks",
        "priority",
        "runner",
        "labels",
        "job_outlets",
        "timeout",
        "air_executor_conn_id",
    )
    template_fields_renderers = {"tasks": "json", "env": "json", "labels": "json", "job_outlets": "json"}
    operator_extra_links = (links.AirExecutorJobLink(),)
    ui_color = "#cfe2f3"

    def __init__(
        self,
        *,
        tasks: Sequence[Task | Mapping[str, Any] | str] | Any,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        append_env: bool | None = None,
        on_empty: OnEmpty = "fail",
        job_name: str | None = None,
        max_parallel_tasks: int | None = None,
        priority: int = 0,
        runner: str | None = None,
        labels: Mapping[str, str] | None = None,
        job_outlets: Sequence[str] = (),
        wait_for_completion: bool = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | str | timedelta = 5.0,
        timeout: float | str | timedelta | None = None,
        on_retry: OnRetry = "failed_tasks",
        on_kill: OnKill = "cancel",
        skip_on_exit_code: int | Collection[int] | None = (),
        stream_logs: bool = True,
        start_from_trigger: bool = False,
        openlineage_inject_parent_job_info: bool = conf.getboolean(
            "openlineage", "spark_inject_parent_job_info", fallback=False
        ),
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(tasks=tasks, env=env, cwd=cwd, append_env=append_env, on_empty=on_empty, **kwargs)
        with task_templates.naming(self):
            arguments.word("on_retry", on_retry, get_args(OnRetry))
            arguments.word("on_kill", on_kill, get_args(OnKill))
            self.max_parallel_tasks = arguments.whole_number("max_parallel_tasks", max_parallel_tasks, least=1)
            self.priority = arguments.whole_number("priority", priority)
            self.labels = arguments.labels(labels)
            self.poll_interval = arguments.known_seconds("poll_interval", poll_interval)
            self.timeout = arguments.seconds("timeout", timeout)
            self.skip_on_exit_code = arguments.exit_codes(skip_on_exit_code)
        self.job_name = job_name
        self.runner = runner
        self.job_outlets = job_outlets
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable or start_from_trigger
        self.on_retry = on_retry
        self.when_killed = on_kill
        self.stream_logs = stream_logs
        self.openlineage_inject_parent_job_info = openlineage_inject_parent_job_info
        self.air_executor_conn_id = air_executor_conn_id
        self._job = ""  # the name of the job, as soon as it is known
        self._waits_for = ""  # the same, while this process waits for it
        self._owner: SubmittedBy | None = None
        self._starts_from_trigger = start_from_trigger  # where that can be
        self._prepare_trigger()

    @cached_property
    def hook(self) -> AirExecutorHook:
        """The job filesystem."""
        return AirExecutorHook(self.air_executor_conn_id)

    def execute(self, context: Context) -> Any:
        """Submit the job, and wait for it."""
        self.hook.make_directories()
        owner = self._owner_in(context)
        variables = lineage.parent_environment(context["ti"]) if self.openlineage_inject_parent_job_info else {}
        with task_templates.naming(self):
            given = self._spec()
        own_job = OwnJob(
            self.hook,
            self._name_for(owner),
            owner,
            given,
            lambda: lineage.with_environment(self._tasks_to_submit(), variables),
        )
        try:
            job, after_attempt = own_job.submit(start_over=self.on_retry == "all", poll_interval=self.poll_interval)
        except NothingToRunError as why:
            self.log.info("there is nothing to do: %s", why)
            return {} if self.wait_for_completion else None
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
            cancel_if_reached(self.hook, job.name, owner, _TIMEOUT_PATIENCE)
            raise

    def on_kill(self) -> None:
        """The worker has received SIGTERM: cancel the job, or leave it to the next try."""
        if self.when_killed != "cancel":
            self.log.info("job %s is left as it is", self._waits_for)
        elif self._waits_for:
            with contextlib.suppress(JobNotFoundError):
                if cancel_if_reached(self.hook, self._waits_for, self._owner, _KILL_PATIENCE):
                    self.log.info("job %s is cancelled, since its task was killed", self._waits_for)

    def execute_complete(self, context: Context, event: Any = None) -> Any:
        """Continue with the event of the trigger."""
        found = triggers.validate_event(event)
        name = found["job_name"]
        if found["status"] == triggers.NOT_SUBMITTED:
            return self.execute(context)
        self._job = name
        try:
            if self.start_from_trigger:
                self._push_identity(context, self.hook.get_job(name))
            if found["status"] == TIMEOUT:
                self._time_out(name, found["message"], self._owner_in(context))
            elif found["status"] == NOT_FOUND:
                raise why_gone(self.hook.jobs, name)
            return self._end(context, self.hook.get_job(name), self._report())
        except JobNotFoundError:
            raise why_gone(self.hook.jobs, name) from None

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
        return name_for(self.job_name, self.hook.jobs, owner)

    def _owner_in(self, context: Context) -> SubmittedBy:
        ti = context["ti"]
        return SubmittedBy.of_task(ti, max_tries=ti.max_tries, installation=self._installation)

    @cached_property
    def _installation(self) -> str | None:
        return installation_of(self.hook.jobs)

    def get_openlineage_facets_on_start(self) -> OperatorLineage[Any, Any]:
        """Called by OpenLineage's extractor before the task begins."""
        try:
            tasks = parse_tasks(task_templates.rendered(self._listed))
        except InvalidJobError:  # not valid, or not known before the task runs
            tasks = ()
        return lineage.of_tasks(self, tasks)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:
        """Called by OpenLineage's extractor when the task has ended, well or badly."""
        # It may be called in a process forked for it, in which Airflow must not be asked for anything.
        found, jobs = self.get_openlineage_facets_on_start(), self.hook.patient(_LINEAGE_PATIENCE)
        with contextlib.suppress(JobsAwayError):
            name = self._job or name_for(self.job_name, jobs, SubmittedBy.of_task(task_instance))
            found = found.merge(lineage.of_job(jobs, name))
        return found

    def _push_identity(self, context: Context, job: Job) -> None:
        """Say which job this task has, also for a task that fails."""
        links.push_job(context, job.name, self.air_executor_conn_id)
        context["ti"].xcom_push(key="job_id", value=printable(job.id))

    # -- starting in the triggerer -------------------------------------------------------------------------

    def resolve_template_files(self) -> None:
        """Called by Airflow when the DAG has been parsed: let contents stand for the names of files."""
        super().resolve_template_files()
        self._prepare_trigger()

    def _prepare_trigger(self) -> None:
        """Let the task start from its trigger, if all is known that the triggerer needs for the submission."""
        self.start_from_trigger = self._starts_from_trigger and self._can_start_from_trigger()
        if self.start_from_trigger:
            self.start_trigger_args = self._start_trigger_args()

    def _can_start_from_trigger(self) -> bool:
        tasks = self._listed
        is_list = isinstance(tasks, list) and all(isinstance(task, Mapping | str) for task in tasks)
        is_known = is_list and not task_files.has_files(tasks) and not task_templates.is_unknown(self.timeout)
        is_enough = not self.openlineage_inject_parent_job_info  # the DAG run is not known there
        needed = (getattr(self, field) for field in self.template_fields)
        return self.wait_for_completion and is_known and is_enough and triggers.can_render(needed)

    def _start_trigger_args(self) -> StartTriggerArgs:
        trigger = triggers.AirExecutorSubmitTrigger(
            tasks=self._listed,
            defaults=self._defaults,
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
        own = self.execution_timeout.total_seconds() if self.execution_timeout else None
        limits = [arguments.seconds("timeout", self.timeout), own]
        return min((seconds for seconds in limits if seconds is not None), default=None)

    def _spec(self) -> spec.JobSpec:
        """The spec of the job; the assets among the outlets of the task are outlets of the job too."""
        assets = [outlet.uri for outlet in self.outlets if isinstance(outlet, Asset)]
        given = {
            "max_parallel_tasks": self.max_parallel_tasks,
            "timeout": arguments.job_timeout(self.timeout, _BACKSTOP_SECONDS if self.wait_for_completion else 0),
            "priority": self.priority or None,
            "labels": self.labels,
            "outlets": [*arguments.listed("job_outlets", self.job_outlets), *assets],
            "runner": self.runner,
        }
        return arguments.job_spec(given, self._job_file)

    # -- waiting -------------------------------------------------------------------------------------------

    def _report(self) -> JobReport:
        return JobReport(self.hook, self.log, stream_logs=self.stream_logs, skip_on_exit_code=self.skip_on_exit_code)

    def _end(self, context: Context, job: Job, report: JobReport) -> dict[str, Any]:
        return report.end(job, context if self.do_xcom_push else None)

    def _defer_unless_quick(self, context: Context, name: str, after_attempt: int) -> Any:
        limit = self._limit
        try:
            job = self.hook.wait_for_job(name, timeout=_QUICK_SECONDS, after_attempt=after_attempt)
            return self._end(context, job, self._report())
        except JobTimeoutError:
            trigger = triggers.AirExecutorJobTrigger(
                name,
                **self.hook.for_trigger(),
                poll_interval=self.poll_interval,
                deadline=None if limit is None else time.time() + limit,
                after_attempt=after_attempt,
                owner=self._owner_in(context).model_dump(mode="json"),
                stream_logs=self.stream_logs,
            )
            backstop = None if limit is None else timedelta(seconds=limit + _BACKSTOP_SECONDS)
            self.defer(trigger=trigger, method_name="execute_complete", timeout=backstop)

    def _wait_here(self, context: Context, name: str, after_attempt: int) -> Any:
        report = self._report()
        try:
            job = self.hook.wait_for_job(
                name,
                timeout=arguments.seconds("timeout", self.timeout),
                poll_interval=self.poll_interval,
                after_attempt=after_attempt,
                on_poll=report.progress,
            )
            return self._end(context, job, report)
        except JobTimeoutError as error:
            self._time_out(name, str(error), self._owner_in(context))
        except JobNotFoundError:
            raise why_gone(self.hook.jobs, name) from None

    def _time_out(self, name: str, message: str, owner: SubmittedBy | None = None) -> NoReturn:
        cancelled = cancel_if_reached(self.hook, name, owner, _TIMEOUT_PATIENCE)
        endings = {True: "it is cancelled", False: "it has ended meanwhile", None: "it could not be cancelled"}
        raise JobTimeoutError(f"job {name!r} did not end in the time allowed for it ({message}); {endings[cancelled]}")
