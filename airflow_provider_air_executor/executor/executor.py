"""AirExecutorExecutor: runs the tasks of an Airflow installation as jobs of Air-Executor.

Each workload is a job of one task, named by its external executor id, so that it exists exactly once. The scheduler may
die: the jobs go on, and the next one finds them by that id. The jobs run :mod:`.workload`, whose exit code says whether
the supervisor could report to Airflow how its task has ended.

On every loop the scheduler calls ``trigger_tasks``, which hands over workloads (``_process_workloads``), and then
:meth:`~AirExecutorExecutor.sync`, which inspects the jobs and reports those that have ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.executors.base_executor import BaseExecutor
from airflow.utils.state import TaskInstanceState

from airflow_provider_air_executor.exceptions import AirExecutorError, InvalidJobError
from airflow_provider_air_executor.executor import database, outcome, task_log
from airflow_provider_air_executor.executor.outcome import Decision
from airflow_provider_air_executor.executor.settings import Settings
from airflow_provider_air_executor.executor.submission import TASK_ID, Submitter, callback_job_name, key_of
from airflow_provider_air_executor.executor.tracking import (
    Kind,
    TrackedWorkload,
    TrackedWorkloads,
    cancel_job,
    task_states,
)
from airflow_provider_air_executor.executor.upkeep import Every, Managers, Pruning, measure, warn_if_cold
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.models import Job, Task

if TYPE_CHECKING:
    from airflow.executors.workloads.types import WorkloadKey
    from airflow.models.taskinstance import TaskInstance

log = logging.getLogger(__name__)

_MANAGER_SECONDS = 5.0  # between two looks at whether the embedded managers are alive
_STATES_SECONDS = 1.0  # between two looks at whether Airflow still wants what runs
_UNWANTED_SECONDS = 30.0  # that a supervisor has to end a task that Airflow does not want, before it is killed
_MARKED_SECONDS = 0.5  # the same, if it has reported that its task failed, or a user has marked it so
_LOG_BYTES = 5_000_000  # of the log of a running task that are shown
_OWN_LINES = 20  # of the log of a job that has failed, which are shown in the log of its task
_TAIL_BYTES = 65_536  # of the log of a job that has failed, in which its last lines are


class AirExecutorExecutor(BaseExecutor):
    """Runs tasks, callbacks and connection tests as jobs that outlive the scheduler.

    Its settings are in the section ``[air_executor]``; ``airflow config list --section air_executor`` shows them.
    """

    is_local = True
    serve_logs = True
    supports_callbacks = True
    supports_connection_test = True
    supports_multi_team = True
    pre_assigns_external_executor_id = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = Settings(self.conf, self.team_name, self.parallelism)
        self._submitter = Submitter(self.settings, lambda: self.jwt_generator)
        self._tracked = TrackedWorkloads()
        self._managers = Managers(self.settings)
        self._pruning = Pruning(self.settings)
        self._states_check = Every(_STATES_SECONDS)
        self._managers_check = Every(_MANAGER_SECONDS)
        timeout = conf.getfloat("scheduler", "task_queued_timeout", fallback=600.0)
        self._renewal = Every(max(1.0, timeout / 3))

    @property
    def _is_scheduler(self) -> bool:
        """Whether a scheduler has made this executor; it sets its number before it calls :meth:`start`."""
        return self.job_id is not None

    def start(self) -> None:
        """Start the managers, and in a scheduler adopt the jobs of an earlier one.

        :raises ValueError: if a setting is not valid.
        :raises ManagerError: if a manager cannot be started, and none runs.
        """
        self._managers.start(is_scheduler=self._is_scheduler)
        if self._is_scheduler:
            self._adopt_callbacks()
            threading.Thread(target=self._pruning.prune_leftovers, daemon=True).start()

    def order_queued_tasks_by_priority(self) -> list[tuple[Any, Any]]:
        """The queued tasks, those with the highest priority weight first; Airflow up to 3.3.1 sorts the other way."""
        return sorted(self.queued_tasks.items(), key=lambda item: item[1].ti.priority_weight, reverse=True)

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        """Submit workloads. One that cannot be submitted now stays queued, and comes again with the next heartbeat."""
        for workload in workload_items:
            key = key_of(workload)
            try:
                tracked = self._submitter.submit(workload)
            except InvalidJobError as error:
                self._drop_from_queue(key)
                self.log.error("%s cannot be run: %s", key, error)
                self._fail(key, str(error), getattr(workload, "log_path", None))
            except (OSError, AirExecutorError) as error:
                self.log.error("%s cannot be submitted now: %s", key, error)
                return
            else:
                if tracked.kind is Kind.TASK and tracked.name != workload.ti.external_executor_id:
                    self.event_buffer[key] = TaskInstanceState.QUEUED, tracked.name
                self._track(tracked)
                self._drop_from_queue(key)

    def _drop_from_queue(self, key: Any) -> None:
        for queue in (self.queued_tasks, self.queued_callbacks, getattr(self, "queued_connection_tests", {})):
            queue.pop(key, None)

    def _track(self, tracked: TrackedWorkload) -> None:
        self._tracked.add(tracked)
        self.running.add(tracked.key)

    def sync(self) -> None:
        """Report the jobs that have ended, and see after those that have not."""
        try:
            self._sync()
        except Exception:  # it would end the scheduler
            self.log.exception("the jobs could not be inspected; trying again")

    def _sync(self) -> None:
        self._report_ends()
        for tracked in self._tracked:
            if tracked.again_at is not None and time.monotonic() >= tracked.again_at:
                self._resubmit(tracked)
        if self._states_check.is_due():
            self._end_unwanted()
            task_log.say_where_they_wait(t for t in self._tracked if t.is_on_cluster and not t.has_started)
        if self._renewal.is_due():
            self._submitter.renew_tokens(self._tracked)
        if self._managers_check.is_due():
            self._managers.restart_missing(is_scheduler=self._is_scheduler)
        self._pruning.prune()

    def end(self) -> None:
        """The scheduler ends; the tasks go on without it."""
        self.sync()

    def terminate(self) -> None:
        """The scheduler ends at once; the tasks go on without it."""

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Forget a task, and kill it if it runs."""
        try:
            self._drop_from_queue(ti.key)
            tracked = self._tracked.find(ti.key, ti.external_executor_id)
            self._forget_key(ti.key)
            if tracked is not None:
                self._release(tracked, cancel=True)
            elif (store := self.settings.store_with(ti.external_executor_id)) is not None:
                cancel_job(store, str(ti.external_executor_id))
        except Exception:
            self.log.exception("task %s could not be revoked", ti)

    def fail_connection_test(self, key: Any) -> None:
        """Airflow has given a connection test up."""
        tracked = self._tracked.find(key)
        if tracked is not None:
            self._release(tracked, cancel=True)
        self._drop_from_queue(key)
        self.running.discard(key)

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Adopt the tasks of a scheduler that is gone, also those that have ended meanwhile.

        One that was to be submitted when that scheduler was killed is submitted now: that costs no retry.

        :return: those that cannot be adopted.
        """
        left = []
        for ti in tis:
            try:
                name, again_at = ti.external_executor_id, None
                store = self.settings.store_with(name)
                if store is None and name and ti.state == TaskInstanceState.QUEUED:
                    store, again_at = self.settings.queue(ti.queue).store, time.monotonic()
                    store.paths(name)  # it must be the name of a job
                if store is None:
                    left.append(ti)
                    continue
                tracked = TrackedWorkload(str(name), ti.key, store, Kind.TASK, ti_id=ti.id, again_at=again_at)
                tracked.is_on_cluster = self._submitter.is_on_cluster(ti)
                self._track(tracked)
            except Exception:
                self.log.exception("task %s could not be adopted", ti)
                left.append(ti)
        return left

    def _adopt_callbacks(self) -> None:
        """Adopt the callbacks of an earlier scheduler, which Airflow itself does not do."""
        for callback_id in database.pending_callbacks():
            name = callback_job_name(callback_id)
            store = self.settings.store_with(name)
            if store is not None:
                self._track(TrackedWorkload(name, database.callback_key(callback_id), store, Kind.CALLBACK))

    def get_task_log(self, ti: TaskInstance, try_number: int) -> tuple[list[str], list[str]]:
        """The output of a running task so far, for where its log file cannot be read."""
        try:
            store = self.settings.store_with(ti.external_executor_id) if ti.try_number == try_number else None
            if store is None:
                return [], []
            name = str(ti.external_executor_id)
            path = store.load_job(name)[0].labels.get("log_path")
            folder = Path(self.conf.get_mandatory_value("logging", "base_log_folder"))
            if path and task_log.is_there(folder / path, store, name):
                return [], []  # it is read anyway
            chunk = TaskLog(store.paths(name), TASK_ID).read(-_LOG_BYTES)
            return [f"Log of job {name} in {store.base_path}"], list(chunk.lines)
        except Exception as error:  # noqa: BLE001 - the rest of the log must be shown in any case
            return [], [f"The log of the job could not be read: {error}"]

    # -- jobs that have ended ------------------------------------------------------------------------------

    def _report_ends(self) -> None:
        ended = []
        for tracked in self._tracked:
            if tracked.again_at is not None:
                continue
            if tracked.sees_start() and tracked.kind is not Kind.TASK:
                self.running_state(tracked.key, tracked.name)
            if job := tracked.ended_job():
                ended.append((tracked, job))
        states = task_states(tracked for tracked, _ in ended) if ended else {}
        for tracked, job in ended:
            self._report_end(tracked, job, states.get(tracked.name))

    def _report_end(self, tracked: TrackedWorkload, job: Job, state: str | None) -> None:
        """Report the end of a job as what it means for Airflow.

        :param state: of the task instance; None if it belongs to another job by now.
        """
        task = tracked.task()
        if not self._tracked.is_latest(tracked):  # it has deferred, and runs again as another job
            self._release(tracked, job, task)
            return
        why, decision = outcome.explain(job, task), _decide(tracked, job, task, state)
        if decision is Decision.WAIT:
            _wait(tracked, job, why)
            return
        measure(tracked.kind, task)
        warn_if_cold(tracked.store, tracked.name, task)
        if decision is Decision.RESUBMIT:
            tracked.resubmit_later()
            self.log.warning("%s %s has not been started: %s; submitting it again", tracked.kind, tracked.key, why)
            return
        self._release(tracked, job, task)
        log_path = job.labels.get("log_path")
        if decision is Decision.FORGET:
            self._forget_key(tracked.key)
            if tracked.kind is Kind.TASK and outcome.is_unknown_to_airflow(state, task):
                task_log.write(log_path, tracked.key, why, *_own_lines(tracked))
        elif decision is Decision.SUCCEED:
            self.success(tracked.key, tracked.name)
        elif tracked.kind is Kind.TASK:
            self.log.error("task %s: %s", tracked.key, why)
            self._fail(tracked.key, why, log_path, *_own_lines(tracked))
        else:
            self.fail(tracked.key, "\n".join([why, *_lines(tracked)[-5:]]).strip())

    def _fail(self, key: Any, why: str, log_path: str | None, *said: str) -> None:
        """Report that a workload has failed, and write so into the log of its task.

        Airflow shows the executor's reason in its audit log alone. A task that has never begun has no log, and Airflow
        would explain why there is none.

        :param log_path: of the task's log, in Airflow's log folder.
        :param said: the last lines of the log of its job.
        """
        task_log.write(log_path, key, why, *said)
        self.fail(key, info=why)

    def _resubmit(self, tracked: TrackedWorkload) -> None:
        try:
            self._submitter.resubmit(tracked)
        except (OSError, AirExecutorError, LookupError) as error:
            self.log.error("%s could not be submitted again: %s", tracked.key, error)
            self._release(tracked)
            log_path = getattr(tracked.workload, "log_path", None)
            self._fail(tracked.key, f"it could not be submitted again: {error}", log_path)

    def _release(
        self, tracked: TrackedWorkload, job: Job | None = None, task: Task | None = None, *, cancel: bool = False
    ) -> None:
        """Track a workload no longer, and have its job removed after a while.

        :param job: its job, if that has ended.
        :param task: the one of that job.
        :param cancel: whether its job is killed.
        """
        if tracked.kind is Kind.TASK and not self.settings.uploads_logs:
            task_log.bring(tracked, job, task)
        tracked.withdraw()
        self._tracked.remove(tracked)
        self._pruning.add(tracked.store, tracked.name)
        if cancel:
            cancel_job(tracked.store, tracked.name)

    def _forget_key(self, key: WorkloadKey) -> None:
        self.running.discard(key)
        self.attempts.pop(key, None)

    # -- jobs that have not ended --------------------------------------------------------------------------

    def _end_unwanted(self) -> None:
        """Kill what Airflow does not want any more, if its supervisor has not ended it by itself."""
        now = time.monotonic()
        tasks = [tracked for tracked in self._tracked if tracked.kind is Kind.TASK and tracked.settled_at < now]
        states = task_states(tasks)
        for tracked in tasks:
            state = states.get(tracked.name)
            if state == TaskInstanceState.RESTARTING:
                # Cleared while it ran: it is to end now, and is reported then.
                if tracked.unwanted_since is None:
                    tracked.unwanted_since = now
                    cancel_job(tracked.store, tracked.name)
            elif state in outcome.ALIVE:
                tracked.unwanted_since = None
            else:
                self._end_later(tracked, state)

    def _end_later(self, tracked: TrackedWorkload, state: str | None) -> None:
        """End a task that Airflow does not want any more: its supervisor will notice, or is about to end anyway.

        A supervisor reports that its task has failed after the task's process has ended, and then only uploads its
        log. If it goes on for longer, and there is nothing to be uploaded, a user has marked the task failed. A cluster
        tells later of an end, and a supervisor that has been marked so notices by itself.
        """
        now = time.monotonic()
        tracked.unwanted_since = tracked.unwanted_since or now
        is_marked = state == TaskInstanceState.FAILED and not (self.settings.uploads_logs or tracked.is_on_cluster)
        patience = _MARKED_SECONDS if is_marked else _UNWANTED_SECONDS
        if not tracked.has_started or now - tracked.unwanted_since >= patience:
            self.log.info("task %s is not to run any more; its job %s is cancelled", tracked.key, tracked.name)
            if self._tracked.is_latest(tracked):
                self._forget_key(tracked.key)
            self._release(tracked, cancel=True)


def _lines(tracked: TrackedWorkload) -> list[str]:
    """The last lines that a job has printed."""
    try:
        return list(TaskLog(tracked.paths, TASK_ID).read(-_TAIL_BYTES).lines)
    except (OSError, AirExecutorError):
        return []


def _decide(tracked: TrackedWorkload, job: Job, task: Task | None, state: str | None) -> Decision:
    """What the end of a job means for Airflow.

    :param task: the one of that job.
    :param state: of the task instance; None if it belongs to another job by now.
    """
    again = outcome.can_be_resubmitted(job, task, tracked.submissions)
    if tracked.kind is not Kind.TASK:
        return outcome.of_other(job.state, has_started=tracked.has_started, can_be_resubmitted=again)
    code, may_still_run = task.exit_code if task is not None else None, outcome.may_still_run(task)
    return outcome.of_task(state, code, can_be_resubmitted=again, may_still_run=may_still_run)


def _wait(tracked: TrackedWorkload, job: Job, why: str) -> None:
    """Say once of a task that its heartbeats are waited for."""
    if not tracked.may_still_run:
        tracked.may_still_run = True
        log.warning("task %s: %s", tracked.key, why)
        task_log.write(job.labels.get("log_path"), tracked.key, why)


def _own_lines(tracked: TrackedWorkload) -> list[str]:
    """The same of a job on another machine, without those that the log of its task has, which are JSON."""
    lines = _lines(tracked) if tracked.is_on_cluster else []
    return [line for line in lines if line and not line.startswith("{")][-_OWN_LINES:]
