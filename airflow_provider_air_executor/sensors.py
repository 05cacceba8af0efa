"""AirExecutorJobSensor: waits for a job that was submitted elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowSensorTimeout
from airflow.triggers.base import StartTriggerArgs

from airflow_provider_air_executor import arguments, links, task_templates, triggers
from airflow_provider_air_executor.exceptions import CorruptFileError, JobNotFoundError, JobsAwayError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs import summary
from airflow_provider_air_executor.jobs.models import Job, JobState, valid_job_name
from airflow_provider_air_executor.own_job import why_gone
from airflow_provider_air_executor.results import results_of
from airflow_provider_air_executor.trigger_wait import TIMEOUT

if TYPE_CHECKING:
    from airflow.sdk import Context

# The trigger's own deadline comes first; this is for a trigger that does not run at all.
_BACKSTOP_SECONDS = 60
_POKE_PATIENCE = 10.0  # seconds, while another machine is away: a longer poke would not see that its time is over


class AirExecutorJobSensor(BaseSensorOperator):
    """Waits until a job has completed, and fails when it has failed.

    A job that is not there yet is waited for, and so is one that was removed; the log says then how it had ended. When
    it fails, the sensor fails with the reason of each task that failed and the end of its log; ``soft_fail`` does not
    turn that into a skip, but the sensor's ``timeout`` does it turn into one. The return value is that of
    :class:`AirExecutorSubmitOperator`.

    :param job_name: the job (templated); the name that was given to :class:`AirExecutorSubmitOperator`, or that it
        returned.
    :param deferrable: whether to wait in the triggerer, without a worker slot; default:
        ``[operators] default_deferrable``. Then ``mode`` does not matter.
    :param start_from_trigger: whether the waiting begins in the triggerer, so that a sensor whose job completes needs
        no worker at all; default False. Where that cannot be, a worker begins: when it is mapped, there are templates
        with macros of the DAG's own, or Airflow is older than 3.3. The end needs a worker if the job fails, or the
        sensor has ``outlets``.
    :param air_executor_conn_id: the connection (templated), see
        :class:`~airflow_provider_air_executor.hooks.AirExecutorHook`; default ``air_executor_default``.
    :param kwargs: those of a sensor, among them ``poke_interval`` and ``timeout`` (seconds, ``"15m"`` or a timedelta),
        ``mode`` and ``soft_fail``.
    """

    template_fields: Sequence[str] = ("job_name", "air_executor_conn_id")
    operator_extra_links = (links.AirExecutorJobLink(),)
    ui_color = "#d9ead3"

    def __init__(
        self,
        *,
        job_name: str,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        start_from_trigger: bool = False,
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        texts = {name: kwargs.pop(name) for name in ("poke_interval", "timeout") if isinstance(kwargs.get(name), str)}
        super().__init__(**kwargs)
        with task_templates.naming(self):
            for name, given in texts.items():  # Airflow takes numbers and timedeltas only
                setattr(self, name, arguments.known_seconds(name, given))
        self.job_name = job_name
        self.deferrable = deferrable or start_from_trigger
        self.air_executor_conn_id = air_executor_conn_id
        if start_from_trigger and triggers.can_render([job_name, air_executor_conn_id]):
            self.start_from_trigger = True
            self.start_trigger_args = self._start_trigger_args()

    def _start_trigger_args(self) -> StartTriggerArgs:
        trigger = triggers.AirExecutorJobTrigger(
            self.job_name,
            air_executor_conn_id=self.air_executor_conn_id,
            poll_interval=self.poke_interval,
            must_exist=False,
            end_from_trigger=not self.outlets,
            push_results=self.do_xcom_push,
        )
        classpath, kwargs = trigger.serialize()
        # The timeout is Airflow's own here: no deadline is known yet, and there is no job to be cancelled.
        return StartTriggerArgs(
            trigger_cls=classpath,
            trigger_kwargs=kwargs,
            next_method="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )

    @cached_property
    def hook(self) -> AirExecutorHook:
        """The job filesystem."""
        return AirExecutorHook(self.air_executor_conn_id)

    def execute(self, context: Context) -> Any:
        """Wait, in this process or in the triggerer."""
        links.push_job(context, valid_job_name(self.job_name), self.air_executor_conn_id)
        if not self.deferrable:
            return super().execute(context)
        poked = self.poke(context)
        if poked:
            return poked.xcom_value
        self.defer(
            trigger=triggers.AirExecutorJobTrigger(
                valid_job_name(self.job_name),
                **self.hook.for_trigger(),
                poll_interval=self.poke_interval,
                deadline=time.time() + self.timeout,
                must_exist=False,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout + _BACKSTOP_SECONDS),
        )
        return None

    def execute_complete(self, context: Context, event: Any = None) -> dict[str, Any]:
        """Continue with the event of the trigger.

        :return: what the tasks of the job have handed over.
        """
        found = triggers.validate_event(event)
        if found["status"] == triggers.NOT_SUBMITTED:
            result: dict[str, Any] = self.execute(context)
            return result
        if self.start_from_trigger:
            links.push_job(context, found["job_name"], self.air_executor_conn_id)
        if found["status"] == TIMEOUT:
            raise AirflowSensorTimeout(
                f"job {found['job_name']!r} did not end within {self.timeout:g} s: {found['message']}"
            )
        try:
            return self._finish(self.hook.get_job(found["job_name"]))
        except JobNotFoundError:
            raise why_gone(self.hook.jobs, found["job_name"]) from None

    def poke(self, context: Context) -> PokeReturnValue:
        """Whether the job has completed, and what its tasks have handed over.

        :raises JobFailedError: if it has failed.
        """
        name, jobs = valid_job_name(self.job_name), self.hook.patient(_POKE_PATIENCE)
        try:
            jobs.ensure_manager()
            job = jobs.get_job(name)
            if not job.state.is_terminal:
                self.log.info("job %s: %s", name, summary.progress(jobs.get_tasks(name)))
                return PokeReturnValue(is_done=False)
        except JobsAwayError:  # the log says so once
            return PokeReturnValue(is_done=False)
        except JobNotFoundError:
            self.log.info("job %s: %s", name, why_gone(jobs, name))
            return PokeReturnValue(is_done=False)
        except (CorruptFileError, OSError) as error:
            self.log.info("job %s: %s", name, error)
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._finish(job))

    def _finish(self, job: Job) -> dict[str, Any]:
        if job.state is not JobState.COMPLETED:
            raise summary.error_of(self.hook.jobs, job)
        for line in summary.describe(self.hook.jobs, job):
            self.log.info("%s", line)
        return results_of(self.hook.jobs, job.name)
