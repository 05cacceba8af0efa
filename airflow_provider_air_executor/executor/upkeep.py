"""Work of the executor beside its jobs: it keeps embedded managers alive, removes old jobs, and emits metrics."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError, ManagerError, NotRemovedError
from airflow_provider_air_executor.executor import database
from airflow_provider_air_executor.executor.queues import Queue, is_of_this_machine
from airflow_provider_air_executor.executor.settings import Settings
from airflow_provider_air_executor.executor.submission import LABEL, TASK_ID, callback_job_name
from airflow_provider_air_executor.hooks import start_manager
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.models import Task, utc_now
from airflow_provider_air_executor.jobs.store import JobStore

log = logging.getLogger(__name__)

OTHERS_SECONDS = 30.0  # after which a process that is no scheduler starts a missing manager: a scheduler is faster
_KEEP_ALIVE_SECONDS = 30.0
_PRUNED_A_TIME = 20
_REMOVE_AGAIN_SECONDS = 60.0  # after which it is tried again to remove a job that could not be removed
_COLD = re.compile("air-executor: a cold start, without a warm runner: (.*)")  # so the log of its job begins


class Every:
    """A periodic task: it is due every so many seconds, for the first time after as many."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def is_due(self) -> bool:
        """Whether it is to be done now; it is not due again before its time has passed."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class Managers:
    """The embedded managers, one for each base path."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keep_alive = Every(_KEEP_ALIVE_SECONDS)
        self._missing_since: dict[Path, float] = {}
        self._starting: threading.Thread | None = None

    def start(self, *, is_scheduler: bool) -> None:
        """Start the managers.

        Only a scheduler replaces managers that run, so that tasks have the scheduler's environment and settings. Others
        start an executor too, as ``dag.test(use_executor=True)`` does.

        :raises ValueError: if a setting is not valid.
        :raises ManagerError: if a manager cannot be started, and none runs.
        """
        for name, queue in self._settings.queues.items():
            if queue.is_on_cluster and is_of_this_machine(server := self._settings.server(queue)):
                log.warning(
                    "tasks of queue %s run on other machines, where the API server is not at %s: set server in "
                    "[air_executor] queues, or [core] execution_api_server_url",
                    name,
                    server,
                )
            if self._settings.is_embedded and is_scheduler:
                self._replace(queue)
            elif manager_status.is_running(queue.store):
                continue
            elif self._settings.is_embedded:
                self._start(queue)
            else:
                path, flags = queue.store.base_path, shlex.join(self._flags(queue))
                log.warning(
                    "no manager runs on %s; tasks wait until one is started: air-executor manager --base-path %s %s",
                    path,
                    path,
                    flags,
                )

    def restart_missing(self, *, is_scheduler: bool) -> threading.Thread | None:
        """Start embedded managers that are gone, in a thread, since the loop of the scheduler must not wait.

        :return: the thread, if there was none yet and one is needed.
        """
        if not self._settings.is_embedded or (self._starting is not None and self._starting.is_alive()):
            return None
        keep_alive = self._keep_alive.is_due()
        patience = 0.0 if is_scheduler else OTHERS_SECONDS
        now = time.monotonic()
        missing = []
        for queue in self._settings.queues.values():
            store = queue.store
            if keep_alive:
                manager_status.keep_alive(store)
            if manager_status.is_running(store):
                self._missing_since.pop(store.base_path, None)
            elif now - self._missing_since.setdefault(store.base_path, now) >= patience:
                missing.append(queue)
        if not missing:
            return None
        self._starting = threading.Thread(target=self._start_missing, args=(missing,), daemon=True)
        self._starting.start()
        return self._starting

    def _start_missing(self, missing: list[Queue]) -> None:
        for queue in missing:
            log.warning("the manager of %s is gone; starting another one", queue.store.base_path)
            try:
                self._start(queue)
            except (OSError, AirExecutorError):
                log.exception("the manager of %s could not be started", queue.store.base_path)

    def _replace(self, queue: Queue) -> None:
        """Start a manager that replaces the one that runs, if there is one. If that fails, the old one goes on."""
        store = queue.store
        try:
            self._start(queue, replace=True)
        except ManagerError as error:
            if not manager_status.is_running(store):
                raise
            why = f"not replaced, and works with the code and the settings that it was started with: {error}"
            log.error("manager %s of %s is %s", manager_status.pid(store), store.base_path, why)
            with contextlib.suppress(OSError):  # the log has it
                manager_status.say_not_replaced(store, why)

    def _start(self, queue: Queue, *, replace: bool = False) -> None:
        # A supervisor is a part of Airflow, and reads its configuration.
        start_manager(queue.store, *self._flags(queue), replace=replace, keep_secrets=True)

    def _flags(self, queue: Queue) -> list[str]:
        """The settings of the manager of a queue. That of a cluster runs a task here only if the task says so."""
        flags = ["--kill-grace", str(self._settings.kill_grace)]
        if not queue.is_on_cluster:
            return [
                *flags,
                "--max-concurrent-runners",
                str(queue.max_running_tasks),
                "--preload",
                self._settings.preload,
            ]
        flags += ["--max-concurrent-runners", str(self._settings.queues[None].max_running_tasks)]
        if queue.max_running_tasks is not None:
            flags += ["--max-concurrent", f"{queue.runner}={queue.max_running_tasks}"]
        return flags


class Pruning:
    """Removes the jobs of workloads some time after they have ended."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ended: deque[tuple[float, JobStore, str]] = deque()  # when to remove it, on the monotonic clock

    def add(self, store: JobStore, name: str) -> None:
        """Have a job removed after ``[air_executor] prune_after``."""
        self._ended.append((time.monotonic() + self._settings.prune_after, store, name))

    def prune(self) -> None:
        """Remove some of the jobs whose time has come."""
        for _ in range(_PRUNED_A_TIME):
            if not self._ended or time.monotonic() < self._ended[0][0]:
                return
            _, store, name = self._ended.popleft()
            try:
                store.delete(name)
            except JobNotFoundError:
                continue
            except NotRemovedError as error:
                log.warning("%s", error)
            except (OSError, AirExecutorError) as error:  # it has not ended yet, for instance
                log.debug("job %s is kept for now: %s", name, error)
                self._ended.append((time.monotonic() + _REMOVE_AGAIN_SECONDS, store, name))

    def prune_leftovers(self) -> None:
        """Remove the jobs that an earlier scheduler has left, except those that Airflow still waits for."""
        try:
            for store in self._settings.stores:
                old = self._old_jobs(store)
                needed = database.still_needed(old)
                needed.update(map(callback_job_name, database.pending_callbacks()))
                for name in set(old) - needed:
                    with contextlib.suppress(JobNotFoundError, NotRemovedError):  # remove_abandoned returns the latter
                        store.delete(name)
                for error in store.remove_abandoned():
                    log.warning("%s", error)
        except Exception:
            log.exception("old jobs could not be removed")

    def _old_jobs(self, store: JobStore) -> list[str]:
        before = utc_now() - timedelta(seconds=self._settings.prune_after)
        ended = (job for job in store.list_jobs() if LABEL in job.labels and job.state.is_terminal)
        return [job.name for job in ended if job.updated_at is not None and job.updated_at < before]


def warn_if_cold(store: JobStore, name: str, task: Task | None) -> None:
    """Warn if the task of this job has started cold, and so seconds later; one with variables of its own always does.

    There is one warning for each reason, since it may hold for all tasks.
    """
    if task is None or task.env:
        return
    with contextlib.suppress(OSError, AirExecutorError):
        found = _COLD.match(TaskLog(store.paths(name), TASK_ID).read(limit=4096).text)
        if found:
            _warn_of_cold_starts(store.base_path, found[1])


@functools.cache
def _warn_of_cold_starts(base_path: Path, reason: str) -> None:
    log.warning("tasks of %s start cold, without a warm runner, and take longer: %s", base_path, reason)


def measure(kind: str, task: Task | None) -> None:
    """Emit how long a workload has waited for a slot, and how long it took, as metrics of Airflow's."""
    if task is None or task.created_at is None or task.started_at is None:
        return
    from airflow.observability import stats

    timing: Callable[..., None] = getattr(stats, "timing", None) or stats.Stats.timing
    timing("air_executor.queue_time", task.started_at - task.created_at, tags={"kind": kind})
    if task.seconds is not None:
        timing("air_executor.run_time", timedelta(seconds=task.seconds), tags={"kind": kind})
