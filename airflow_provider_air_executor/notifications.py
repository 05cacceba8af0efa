"""AirExecutorNotifier: submits a job when something has happened to an Airflow task or a DAG run."""

from __future__ import annotations

import copy
import json
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier
from asgiref.sync import sync_to_async

from airflow_provider_air_executor import arguments, task_templates
from airflow_provider_air_executor.exceptions import InvalidJobError, JobExistsError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.installation import known_installation
from airflow_provider_air_executor.jobs import spec
from airflow_provider_air_executor.jobs.models import SubmittedBy, Task, name_with_digest, valid_job_name

if TYPE_CHECKING:
    from airflow.sdk import Context

_PATIENCE = 20.0  # seconds, while another machine is away: the DAG processor and the triggerer have other work
# What a task's state says of the callback; a failure may be called for by a process that does not know the state.
_TASK_CALLBACKS = {"success": "success", "skipped": "skipped", "running": "execute"}


class AirExecutorNotifier(BaseNotifier):
    """Submits a job, and does not wait for it. It can be any callback of a task, a DAG or a deadline.

    Each event submits one job, also if Airflow calls the callback again: its name is made of DAG, run, task, map index,
    try and kind of callback, and of the tasks, so that several notifiers of one event do not get in each other's way.

    The process that calls it must see the job filesystem. For a callback of a task that is its worker; for that of a
    task whose worker died, and for those of DAGs, the DAG processor; for a deadline, the triggerer or an executor. An
    embedded manager is started there if none runs, and its tasks run with that process's user and environment.

    :param tasks: the tasks (templated), as :class:`~airflow_provider_air_executor.operators.AirExecutorSubmitOperator`
        takes them. A list that is not valid is refused when the DAG is parsed, and so is what else it refuses then.
    :param job_name: the name of the job (templated), mapped to a valid one if need be. Two events with the same name
        are an error of the second one. Default: see above.
    :param max_parallel_tasks: how many tasks of the job may run side by side (templated); default: all that are
        independent.
    :param priority: jobs with a higher number start their tasks first (templated); default 0.
    :param runner: what runs those of its tasks that do not say (templated): ``local``, ``slurm``, or another one that
        the manager has; default: what the manager's settings say.
    :param labels: words by which the job can be found (templated); default: none.
    :param air_executor_conn_id: the connection (templated), see
        :class:`~airflow_provider_air_executor.hooks.AirExecutorHook`; default ``air_executor_default``.
    :param context: given by Airflow where it awaits the notifier.
    """

    template_fields: Sequence[str] = (
        "tasks",
        "job_name",
        "max_parallel_tasks",
        "priority",
        "runner",
        "labels",
        "air_executor_conn_id",
    )

    def __init__(
        self,
        *,
        tasks: Sequence[Task | Mapping[str, Any] | str] | str,
        job_name: str | None = None,
        max_parallel_tasks: int | None = None,
        priority: int = 0,
        runner: str | None = None,
        labels: Mapping[str, str] | None = None,
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        context: Context | None = None,
    ) -> None:
        super().__init__(context)
        task_templates.check(tasks)
        self.tasks = task_templates.plain(tasks)
        self.job_name = job_name
        self.max_parallel_tasks = arguments.whole_number("max_parallel_tasks", max_parallel_tasks, least=1)
        self.priority = arguments.whole_number("priority", priority)
        self.runner = runner
        self.labels = arguments.labels(labels)
        self.air_executor_conn_id = air_executor_conn_id
        self._unrendered = json.dumps(self.tasks, default=repr)

    def _spec(self) -> spec.JobSpec:
        given = {
            "max_parallel_tasks": self.max_parallel_tasks,
            "priority": self.priority,
            "runner": self.runner,
            "labels": self.labels,
            "outlets": (),
        }
        return arguments.job_spec(given, {})

    def __call__(self, *args: Any) -> None:
        """Render the templates, and submit the job.

        Airflow renders in place, and the DAG processor calls one notifier for many tasks: a copy does it here.
        """
        BaseNotifier.__call__(copy.copy(self), *args)

    def __await__(self) -> Generator[Any, Any, None]:
        """The same, in an event loop."""
        return BaseNotifier.__await__(copy.copy(self))

    async def async_notify(self, context: Context) -> None:
        """Submit the job, without blocking the event loop."""
        await sync_to_async(self.notify)(context)

    def notify(self, context: Context) -> None:
        """Submit the job, unless an earlier call has done so.

        :raises InvalidJobError: if the tasks are not valid.
        :raises JobExistsError: if the name is that of another job.
        """
        event = _event(context).evolve(installation=known_installation())
        name = valid_job_name(self.job_name) if self.job_name else self._default_name(event)
        tasks = task_templates.to_submit(self.tasks, {})
        hook = AirExecutorHook(self.air_executor_conn_id, patience=_PATIENCE)
        try:
            hook.create_job(name, tasks, submitted_by=event, **self._spec())
        except JobExistsError:
            owner = hook.get_job(name).submitted_by
            # Earlier versions did not say which Airflow it was; a server says with which token it was asked.
            if owner is None or owner.evolve(token=None) not in (event, event.evolve(installation=None)):
                raise
            self.log.info("job %s was submitted by an earlier call of this callback", name)
            hook.ensure_manager()
        else:
            self.log.info("submitted job %s with %d tasks to %s", name, len(tasks), hook.jobs.where)

    def _default_name(self, event: SubmittedBy) -> str:
        task = f"__{event.task_id}" if event.task_id else ""
        mapped = f"__{event.map_index}" if event.map_index >= 0 else ""
        identity = event.model_dump_json() + self._unrendered
        return name_with_digest(f"{event.callback}__{event.dag_id}{task}{mapped}__{event.run_id}", identity)


def _event(context: Context) -> SubmittedBy:
    """The event that a callback is about: its kind, and the task or DAG run.

    :raises InvalidJobError: if the context names neither.
    """
    given: Mapping[str, Any] = context
    if "deadline" in given:
        run = given["dag_run"]
        return _of_run(run["dag_id"], run["dag_run_id"], callback=f"deadline_{given['deadline']['id']}")
    if "reason" in given:  # of a DAG run; a task instance in the context is only one of its tasks
        kind = "dag_success" if given["reason"] == "success" else "dag_failure"
        clear_number = getattr(given.get("dag_run"), "clear_number", None) or 0
        return _of_run(given["dag"].dag_id, given["run_id"], callback=kind, clear_number=clear_number)
    if "ti" not in given:
        raise InvalidJobError("the context of the callback names neither a task nor a DAG run")
    ti = given["ti"]
    return SubmittedBy.of_task(ti, callback=_TASK_CALLBACKS.get(ti.state, "failure"))


def _of_run(dag_id: str, run_id: str, **facts: Any) -> SubmittedBy:
    """Something that has happened to a DAG run and to no task of it."""
    return SubmittedBy(dag_id=dag_id, run_id=run_id, task_id="", **facts)
