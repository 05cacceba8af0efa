"""Workloads as jobs: what is submitted, under which name, and with which token."""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from airflow.executors import workloads

from airflow_provider_air_executor.exceptions import AirExecutorError, InvalidJobError, JobNotFoundError
from airflow_provider_air_executor.executor import database, travelling
from airflow_provider_air_executor.executor.command_line import command_line
from airflow_provider_air_executor.executor.queues import Options, Placement, Queue
from airflow_provider_air_executor.executor.settings import Settings
from airflow_provider_air_executor.executor.tracking import Kind, TrackedWorkload
from airflow_provider_air_executor.jobs import attachments, files, inbox, manager_status
from airflow_provider_air_executor.jobs.models import SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.workload import MODULE, WORKLOAD_FILE, preload_key

log = logging.getLogger(__name__)

TASK_ID = "workload"  # of the one task of each job
LABEL = "airflow"  # of each job; its value is the kind of the workload
_SETTLED_SECONDS = 5.0  # after which Airflow's database has a name that was made here


class Submitter:
    """Submits workloads as jobs.

    :param generator: gives what signs tokens; called when the first token is needed.
    """

    def __init__(self, settings: Settings, generator: Callable[[], Any]) -> None:
        self._settings = settings
        self._generator = generator

    def submit(self, workload: Any) -> TrackedWorkload:
        """Submit a workload as a job of its external executor id.

        The job gets another name if there is no id, or an earlier job has it: that of the task before it deferred.

        :raises InvalidJobError: if the options of the task are not valid.
        :raises OSError: if the job cannot be written now.
        """
        ti, name, kind = getattr(workload, "ti", None), None, Kind.CONNECTION_TEST
        if ti is not None:
            name, kind = ti.external_executor_id, Kind.TASK
        elif workload.type == "ExecuteCallback":
            name, kind = callback_job_name(workload.callback.id), Kind.CALLBACK
        store = self._queue_of(workload).store
        settled_at = 0.0
        if name is None or self._settings.store_with(name) is not None:
            name, settled_at = str(uuid.uuid4()), time.monotonic() + _SETTLED_SECONDS
        self._create(store, name, kind, workload)
        tracked = TrackedWorkload(name, key_of(workload), store, kind, None if ti is None else ti.id, workload)
        tracked.settled_at, tracked.is_on_cluster = settled_at, self.is_on_cluster(ti)
        return tracked

    def is_on_cluster(self, ti: Any) -> bool:
        """Whether a task instance runs on other machines; False also if its options are not valid."""
        try:
            return (
                ti is not None
                and self._settings.queue(ti.queue).placement(Options.of(ti.executor_config)).is_on_cluster
            )
        except InvalidJobError:
            return False

    def resubmit(self, tracked: TrackedWorkload) -> None:
        """Submit a workload that has not begun again, under its name and with a new token.

        :raises LookupError: if another scheduler has submitted it, and its task is gone.
        :raises OSError: if the job cannot be written now.
        """
        tracked.again_at, tracked.has_started = None, False
        tracked.submissions += 1
        workload = tracked.workload or database.workload_of(tracked.ti_id, self._generator())
        token = self._token(workload.model_dump(mode="json"))
        workload = workload.model_copy(update={"token": token})
        try:
            placement = _placement(self._queue_of(workload), workload)
            attachments.attach(tracked.paths, WORKLOAD_FILE, self._dump(workload, placement))
            inbox.retry(tracked.store, tracked.name)
        except JobNotFoundError:
            self._create(tracked.store, tracked.name, tracked.kind, workload)

    def renew_tokens(self, tracked_workloads: Iterable[TrackedWorkload]) -> None:
        """Keep workloads that wait for a slot valid: their tokens, and for Airflow the time at which they were queued.

        The time is also that of those that have just begun elsewhere, until Airflow knows.

        A token is good for ``[scheduler] task_queued_timeout``, and Airflow takes a task that has been queued for so
        long for stuck. If the manager is gone it is stuck, and nothing is renewed.
        """
        alive = {store.base_path: manager_status.is_running(store) for store in self._settings.stores}
        queued = []
        for tracked in tracked_workloads:
            if tracked.begins and tracked.ti_id is not None:
                queued.append(tracked.ti_id)
            if tracked.has_started or tracked.again_at is not None:
                continue
            try:
                if alive.get(tracked.store.base_path) and self._renew_token(tracked) and tracked.ti_id is not None:
                    queued.append(tracked.ti_id)
            except FileNotFoundError:
                continue  # it has just begun
            except (OSError, ValueError, KeyError, AirExecutorError) as error:
                log.warning("the token of job %s could not be renewed: %s", tracked.name, type(error).__name__)
        database.renew_queued_time(queued)

    def _renew_token(self, tracked: TrackedWorkload) -> bool:
        content = json.loads(files.read(tracked.paths.attached(WORKLOAD_FILE))[0])
        content["workload"]["token"] = self._token(content["workload"])
        return attachments.replace(tracked.paths, WORKLOAD_FILE, json.dumps(content).encode())

    def _token(self, workload: dict[str, Any]) -> str:
        """A new token for a workload in its JSON form."""
        if "ti" in workload:
            subject = workload["ti"]["id"]
        else:
            subject = workload["callback"]["id"] if "callback" in workload else workload["connection_test_id"]
        token: str = workloads.ExecuteTask.generate_token(str(subject), self._generator())
        return token

    def _queue_of(self, workload: Any) -> Queue:
        """What is for a workload. Only tasks run on other machines than the scheduler's."""
        queue = self._settings.queue(getattr(getattr(workload, "ti", None) or workload, "queue", None))
        return queue if hasattr(workload, "ti") or not queue.is_on_cluster else self._settings.queue(None)

    def _create(self, store: JobStore, name: str, kind: Kind, workload: Any) -> None:
        ti = getattr(workload, "ti", None)
        options, queue = _options(workload), self._queue_of(workload)
        placement = _placement(queue, workload)
        labels = {LABEL: kind.value, "log_path": getattr(workload, "log_path", None) or ""}
        priority = options.priority if options.priority is not None else getattr(ti, "priority_weight", 0)
        if placement.is_on_cluster:
            how = _elsewhere(queue, placement, store.paths(name).directory)
        else:
            how = _here(preload_key(workload) if kind is Kind.TASK else None)
        task = {"id": TASK_ID, **how, **placement.fields, "env": placement.env or None, "timeout": options.timeout}
        store.submit(
            name,
            [task],
            priority=priority if kind is Kind.TASK else sys.maxsize,  # others complete what is there, before new work
            labels={key: value for key, value in labels.items() if value},
            submitted_by=None if ti is None else SubmittedBy.of_task(ti),
            attached={WORKLOAD_FILE: self._dump(workload, placement)},
            work_directory=False,
            durable=False,  # Airflow's database has the task, and a job that a power cut takes is submitted again
        )

    def _dump(self, workload: Any, placement: Placement) -> bytes:
        queue = self._queue_of(workload)
        content = {
            "server": self._settings.server(queue),
            "directory": self._settings.working_directory,
            "workload": workload.model_dump(mode="json"),
        }
        if placement.is_on_cluster:
            has_our_files = placement.runner != "kubernetes" and queue.image is None
            found = travelling.variables(queue.settings, content["server"], shares_home=has_our_files)
            content["environment"] = {key: value for key, value in found.items() if key not in placement.env}
        return json.dumps(content).encode()


def _options(workload: Any) -> Options:
    ti = getattr(workload, "ti", None)
    return Options.of(ti.executor_config if ti is not None else None)


def _placement(queue: Queue, workload: Any) -> Placement:
    """What runs a workload; callbacks and connection tests run here."""
    return queue.placement(_options(workload)) if hasattr(workload, "ti") else Placement()


def _here(key: str | None) -> dict[str, Any]:
    """How the manager's machine runs a workload.

    :param key: under which the imports of a task are counted.
    """
    return {
        "command": sys.executable,
        "args": ["-P", "-m", MODULE],  # modules in the directory of the manager must not be imported
        "runner": "warm",
        "preload": [MODULE],
        "preload_key": key,
    }


def _elsewhere(queue: Queue, placement: Placement, directory: Path) -> dict[str, Any]:
    """How another machine runs it: without the environment of the manager, in which there are Airflow's secrets.

    :param directory: that of the job.
    """
    command, *args = command_line(queue, placement.runner, directory)
    return {"command": command, "args": args, "runner": placement.runner, "append_env": False}


def key_of(workload: Any) -> Any:
    """By what Airflow knows a workload."""
    return (getattr(workload, "ti", None) or getattr(workload, "callback", None) or workload).key


def callback_job_name(callback_id: str) -> str:
    """The name of the job of a callback."""
    return f"callback-{callback_id}"
