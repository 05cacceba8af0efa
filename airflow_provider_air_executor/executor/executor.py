"""AirExecutorExecutor: runs the tasks of an Airflow installation as jobs of Air-Executor.

Each workload is a job of one task, named by its external executor id, so that it exists exactly once. The scheduler may
die: the jobs go on, and the next one finds them by that id. What the jobs run is :mod:`.workload`, whose exit code says
what became of it; how a task has ended its supervisor tells Airflow itself.

On every loop the scheduler calls ``trigger_tasks``, which hands over workloads (``_process_workloads``), and then
:meth:`~AirExecutorExecutor.sync`, which looks at the jobs and reports those that have ended.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.configuration import conf
from airflow.executors import workloads
from airflow.executors.base_executor import BaseExecutor
from airflow.sdk.log import init_log_file
from airflow.utils.state import CallbackState, TaskInstanceState

from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    CorruptFileError,
    InvalidJobError,
    JobNotFoundError,
    ManagerError,
    NotRemovedError,
)
from airflow_provider_air_executor.executor import database
from airflow_provider_air_executor.executor.settings import Options, Settings, Site
from airflow_provider_air_executor.hooks import start_manager
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, SubmittedBy, Task, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.workload import MODULE, WORKLOAD_FILE, ExitCode

if TYPE_CHECKING:
    from airflow.executors.workloads.types import WorkloadKey
    from airflow.models.taskinstance import TaskInstance

TASK_ID = "workload"  # of the one task of each job
LABEL = "airflow"  # its value tells what kind of workload a job is
_TASK, _CALLBACK, _CONNECTION_TEST = "task", "callback", "connection_test"
_CALLBACK_PREFIX = "callback-"

_MANAGER_SECONDS = 5.0  # between two looks at whether the embedded managers are alive
_OTHERS_SECONDS = 30.0  # after which who is no scheduler starts one that is gone: a scheduler does so before
_KEEP_ALIVE_SECONDS = 30.0
_STATES_SECONDS = 1.0  # between two looks at whether Airflow still wants what runs
_UNWANTED_SECONDS = 30.0  # the supervisor ends by itself what nobody wants any more; after so long it is killed
_SETTLED_SECONDS = 5.0  # after which the database knows the name that we have given a job
_MARKED_SECONDS = 0.5  # that a supervisor may need to end after it has said that its task failed
_PRUNED_A_TIME = 20
_MAX_RESUBMISSIONS = 5
_LOG_BYTES = 5_000_000  # of the log of a running task that are shown
_COLD = re.compile("air-executor: a cold start, without a warm runner: (.*)")  # so the log of its job begins


@dataclass
class Submitted:
    """A workload that has been handed over to a manager, and has not been reported yet."""

    name: str  # of the job
    key: WorkloadKey
    store: JobStore
    kind: str
    ti_id: uuid.UUID | None = None  # of a task
    workload: Any = None  # to submit it again; None if another scheduler has submitted it
    version: files.Stamp | None = None  # of the state.json that was looked at last
    has_started: bool = False
    submissions: int = 1
    settled_at: float = 0.0  # when the database is sure to know the name, on the monotonic clock
    again_at: float | None = None  # when it is submitted again, on the monotonic clock
    unwanted_since: float | None = None


class AirExecutorExecutor(BaseExecutor):
    """Runs tasks, callbacks and connection tests as jobs that outlive the scheduler.

    Its settings are in the section ``[air_executor]``; ``airflow config list --section air_executor`` shows them.
    """

    is_local = True
    is_production = True
    serve_logs = True
    supports_callbacks = True
    supports_connection_test = True
    supports_multi_team = True
    pre_assigns_external_executor_id = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._submitted: dict[str, Submitted] = {}
        self._latest: dict[WorkloadKey, str] = {}  # the job of a key; an earlier one of the same key is superseded
        self._ended: deque[tuple[float, JobStore, str]] = deque()  # jobs to be pruned, and when
        self._next: dict[str, float] = {}
        self._helper: threading.Thread | None = None
        self._gone_since: dict[Path, float] = {}  # when the manager of a base path was missed first
        self._cold: set[tuple[Path, str]] = set()  # base paths whose tasks start cold, and why: it has been said
        self.settings = Settings(self.conf, self.team_name, self.parallelism)

    # -- what the scheduler calls --------------------------------------------------------------------------

    def start(self) -> None:
        """Start the managers, with the present configuration, and take up the callbacks of an earlier scheduler.

        Only a scheduler replaces managers that run, and takes up what is there. Others start an executor too, as
        ``dag.test(use_executor=True)`` does: they use what runs.

        :raises ValueError: if a setting is not valid.
        :raises ManagerError: if a manager cannot be started, and none runs.
        """
        is_scheduler = self.job_id is not None  # a scheduler says so before it calls this
        for site in self.settings.sites.values():
            if self.settings.is_embedded and is_scheduler:
                self._replace_manager(site)
            elif self.settings.is_embedded:
                if not site.store.manager_is_running():
                    self._start_manager(site)
            elif not site.store.manager_is_running():
                self.log.warning(
                    "no manager runs on %s; tasks wait until one is started: air-executor manager --base-path %s "
                    "--preload %s",
                    site.store.base_path,
                    site.store.base_path,
                    MODULE,
                )
        if is_scheduler:
            self._adopt_callbacks()
            threading.Thread(target=self._prune_left, daemon=True).start()

    def _replace_manager(self, site: Site) -> None:
        """Start a manager in place of the one that runs, if there is one. If that fails, the old one goes on."""
        try:
            self._start_manager(site, replace=True)
        except ManagerError as error:
            if not site.store.manager_is_running():
                raise
            why = f"not replaced, and works with the code and the settings that it was started with: {error}"
            self.log.error("manager %s of %s is %s", site.store.manager_pid(), site.store.base_path, why)
            with contextlib.suppress(OSError):  # it has been said
                site.store.say_not_replaced(why)

    def _start_manager(self, site: Site, *, replace: bool = False) -> None:
        flags = ["--max-concurrent-runners", str(site.max_running_tasks)]
        flags += ["--kill-grace", str(self.settings.kill_grace), "--preload", self.settings.preload]
        # A supervisor is a part of Airflow, and reads its configuration.
        start_manager(site.store, *flags, replace=replace, keep_secrets=True)

    def order_queued_tasks_by_priority(self) -> list[tuple[Any, Any]]:
        """The queued tasks, those with the highest priority weight first; Airflow up to 3.3.1 sorts the other way."""
        return sorted(self.queued_tasks.items(), key=lambda item: item[1].ti.priority_weight, reverse=True)

    def _process_workloads(self, workload_items: Sequence[Any]) -> None:
        """Submit workloads. One that cannot be submitted now stays queued, and comes again with the next heartbeat."""
        for workload in workload_items:
            key = _key_of(workload)
            try:
                self._submit(workload, key)
            except InvalidJobError as error:
                self._drop_from_queue(key)
                self.log.error("%s cannot be run: %s", key, error)
                self._fail(key, str(error), getattr(workload, "log_path", None))
            except (OSError, AirExecutorError) as error:
                self.log.error("%s cannot be submitted now: %s", key, error)
                return
            else:
                self._drop_from_queue(key)
                self.running.add(key)

    def _drop_from_queue(self, key: Any) -> None:
        for queue in (self.queued_tasks, self.queued_callbacks, getattr(self, "queued_connection_tests", {})):
            queue.pop(key, None)

    def sync(self) -> None:
        """Report the jobs that have ended, and see after those that have not."""
        try:
            self._sync()
        except Exception:  # it would end the scheduler
            self.log.exception("the jobs could not be looked at; trying again")

    def _sync(self) -> None:
        ended = [(submitted, job) for submitted in self._submitted.values() if (job := self._look_at(submitted))]
        if ended:
            instances = _instances(submitted for submitted, _ in ended)
            for submitted, job in ended:
                self._take_in(submitted, job, instances)
        if self._is_due("again", 1.0):
            self._submit_again()
        if self._is_due("states", _STATES_SECONDS):
            self._end_unwanted()
        if self._is_due("renew", self._renewal_seconds):
            self._renew()
        if self._is_due("managers", _MANAGER_SECONDS):
            self._look_after_managers()
        self._prune()

    def _is_due(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._next.setdefault(what, now + seconds):
            return False
        self._next[what] = now + seconds
        return True

    def end(self) -> None:
        """The scheduler ends; the tasks go on without it."""
        self.sync()

    def terminate(self) -> None:
        """The scheduler ends at once; the tasks go on without it."""

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Forget a task, and kill it if it runs."""
        try:
            self._drop_from_queue(ti.key)
            name = self._latest.get(ti.key) or ti.external_executor_id
            if name is None:
                return
            submitted = self._submitted.get(name)
            self._forget_key(ti.key)
            store = submitted.store if submitted is not None else self._find(name)
            if submitted is not None:
                self._drop(submitted)
            if store is not None:
                self._cancel(store, name)
        except Exception:
            self.log.exception("task %s could not be revoked", ti)

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Take over the tasks of a scheduler that is gone, also those that have ended meanwhile.

        One that was to be submitted when that scheduler was killed is submitted now: that costs no retry.

        :return: those that cannot be taken over.
        """
        left = []
        for ti in tis:
            try:
                name, again_at = ti.external_executor_id, None
                store = self._find(name)
                if store is None and name and ti.state == TaskInstanceState.QUEUED:
                    store, again_at = self.settings.store_of(ti.queue), time.monotonic()
                    store.paths(name)  # it must be the name of a job
                if store is None:
                    left.append(ti)
                    continue
                self._track(Submitted(str(name), ti.key, store, _TASK, ti_id=ti.id, again_at=again_at))
                self.running.add(ti.key)
            except Exception:
                self.log.exception("task %s could not be adopted", ti)
                left.append(ti)
        return left

    def get_task_log(self, ti: TaskInstance, try_number: int) -> tuple[list[str], list[str]]:
        """What a running task has printed so far, for where its log file cannot be read."""
        try:
            store = self._find(ti.external_executor_id) if ti.try_number == try_number else None
            if store is None:
                return [], []
            name = str(ti.external_executor_id)
            path = store.load_job(name)[0].labels.get("log_path")
            if path and (Path(self.conf.get_mandatory_value("logging", "base_log_folder")) / path).exists():
                return [], []  # it is read anyway
            chunk = store.read_log(name, TASK_ID, offset=-_LOG_BYTES)
            return [f"Log of job {name} in {store.base_path}"], list(chunk.lines)
        except Exception as error:  # noqa: BLE001 - the rest of the log must be shown in any case
            return [], [f"The log of the job could not be read: {error}"]

    def fail_connection_test(self, key: Any) -> None:
        """Airflow has given a connection test up."""
        name = self._latest.get(key)
        if name is not None and name in self._submitted:
            submitted = self._submitted[name]
            self._drop(submitted)
            self._cancel(submitted.store, name)
        self._drop_from_queue(key)
        self.running.discard(key)

    # -- submitting ----------------------------------------------------------------------------------------

    def _submit(self, workload: Any, key: WorkloadKey) -> None:
        """Submit a workload as a job.

        :raises InvalidJobError: if the options of the task are not valid.
        :raises OSError: if the job cannot be written now.
        """
        kind, name, ti = _CONNECTION_TEST, None, getattr(workload, "ti", None)
        if ti is not None:
            kind, name = _TASK, ti.external_executor_id
        elif workload.type == "ExecuteCallback":
            kind, name = _CALLBACK, f"{_CALLBACK_PREFIX}{workload.callback.id}"
        queue = ti.queue if ti is not None else getattr(workload, "queue", None)
        store = self.settings.store_of(queue)
        settled_at = 0.0
        if name is None or self._find(name) is not None:
            # Not assigned to us, or left from an earlier leg of this task.
            name, settled_at = str(uuid.uuid4()), time.monotonic() + _SETTLED_SECONDS
            self._create(store, name, kind, workload)
            if ti is not None:
                self.event_buffer[key] = TaskInstanceState.QUEUED, name
        else:
            self._create(store, name, kind, workload)
        ti_id = ti.id if ti is not None else None
        self._track(Submitted(name, key, store, kind, ti_id, workload, settled_at=settled_at))

    def _create(self, store: JobStore, name: str, kind: str, workload: Any) -> None:
        ti = getattr(workload, "ti", None)
        options = Options.of(ti.executor_config if ti is not None else None)
        labels = {LABEL: kind, "log_path": getattr(workload, "log_path", None) or ""}
        priority = options.priority if options.priority is not None else getattr(ti, "priority_weight", 0)
        store.submit(
            name,
            [
                {
                    "id": TASK_ID,
                    "command": sys.executable,
                    "args": ["-P", "-m", MODULE],  # what lies in the directory of the manager is nobody's module
                    "runner": "warm",
                    "preload": [MODULE],
                    "env": options.env or None,
                    "timeout": options.timeout,
                }
            ],
            priority=priority if kind == _TASK else sys.maxsize,  # they complete what is there, before new work
            labels={key: value for key, value in labels.items() if value},
            submitted_by=None if ti is None else SubmittedBy.of_task(ti),
            attached={WORKLOAD_FILE: self._dump(workload)},
            work_directory=False,
            durable=False,  # the database knows of it, and what a power cut takes is submitted again
        )

    def _dump(self, workload: Any) -> bytes:
        content = {
            "server": self.settings.server(),
            "directory": self.settings.working_directory,
            "workload": workload.model_dump(mode="json"),
        }
        return json.dumps(content).encode()

    def _track(self, submitted: Submitted) -> None:
        self._submitted[submitted.name] = submitted
        self._latest[submitted.key] = submitted.name

    def _drop(self, submitted: Submitted) -> None:
        """Forget a job, and remove it after a while; at once what has its token, if it has never begun."""
        with contextlib.suppress(OSError, AirExecutorError):
            submitted.store.remove_attached(submitted.name, WORKLOAD_FILE)
        self._submitted.pop(submitted.name, None)
        if self._latest.get(submitted.key) == submitted.name:
            del self._latest[submitted.key]
        self._ended.append((time.monotonic() + self.settings.prune_after, submitted.store, submitted.name))

    def _forget_key(self, key: WorkloadKey) -> None:
        self.running.discard(key)
        self.attempts.pop(key, None)

    def _find(self, name: str | None) -> JobStore | None:
        """The job filesystem that has a job of this name."""
        if not name:
            return None
        for store in self.settings.stores:
            try:
                if files.is_real_directory(store.paths(name).directory):
                    return store
            except InvalidJobError:
                return None
        return None

    def _cancel(self, store: JobStore, name: str) -> None:
        """Kill a job, or let it not begin."""
        try:
            store.remove_attached(name, WORKLOAD_FILE)
            store.cancel(name)
        except (OSError, AirExecutorError) as error:
            self.log.warning("job %s could not be cancelled: %s", name, error)

    # -- jobs that have ended ------------------------------------------------------------------------------

    def _look_at(self, submitted: Submitted) -> Job | None:
        """The job if it has ended since it was looked at last."""
        if submitted.again_at is not None:
            return None
        if not submitted.has_started:
            self._see_start(submitted)
        path = submitted.store.paths(submitted.name).state
        found = files.stamp(path)
        if found is not None and found == submitted.version:
            return None
        try:
            job, version = submitted.store.load_job(submitted.name)
        except JobNotFoundError:
            gone = Job(id=submitted.name, name=submitted.name, updated_at=utc_now())
            return gone.evolve(state=JobState.FAILED, reason=Reason.LOST, error="its job is gone")
        except (OSError, CorruptFileError):
            return None  # the manager deals with it
        if job.state.is_terminal:
            return job  # looked at again until it has been taken in
        submitted.version = version
        return None

    def _see_start(self, submitted: Submitted) -> None:
        """The runner removes the workload when it has read it."""
        if files.stamp(submitted.store.attached_path(submitted.name, WORKLOAD_FILE)) is not None:
            return
        submitted.has_started = True
        if submitted.ti_id is None:
            self.change_state(submitted.key, _state_of(submitted, "RUNNING"), submitted.name, remove_running=False)

    def _take_in(self, submitted: Submitted, job: Job, instances: Mapping[str, database.Instance]) -> None:
        """Report a job that has ended as what it means for Airflow."""
        task = self._task_of(submitted)
        if self._latest.get(submitted.key) != submitted.name:  # a new leg of the same task is under way
            self._drop(submitted)
            return
        code = task.exit_code if task is not None else None
        why = _explain(job, task)
        self._measure(submitted, task)
        self._say_if_cold(submitted, task)
        if submitted.ti_id is None:
            self._take_in_other(submitted, job, why)
            return
        instance = instances.get(submitted.name)
        state = instance.state if instance is not None else None
        if state == TaskInstanceState.RESTARTING or (state in database.ALIVE and code == ExitCode.REPORTED):
            self._drop(submitted)
            self.success(submitted.key, submitted.name)
        elif state not in database.ALIVE or code == ExitCode.SUPERSEDED:
            self._drop(submitted)
            self._forget_key(submitted.key)
        elif state == TaskInstanceState.QUEUED and self._may_submit_again(submitted, job, task):
            self.log.warning("task %s has not been started: %s; submitting it again", submitted.key, why)
        else:
            self.log.error("task %s: %s", submitted.key, why)
            self._drop(submitted)
            self._fail(submitted.key, why, job.labels.get("log_path"))

    def _fail(self, key: Any, why: str, log_path: str | None) -> None:
        """Report that a task has failed, which nobody else does, and say so where Airflow's users look first.

        Airflow shows the executor's reason in its audit log alone. A task that has never begun has no log, and Airflow
        would explain why there is none. A log handler that uploads logs does so in the supervisor, so not this one.

        :param log_path: of the task's log, in Airflow's log folder.
        """
        line = {"timestamp": utc_now().isoformat(), "level": "error", "logger": __name__, "event": why}
        try:
            if log_path:
                with init_log_file(log_path).open("ab") as file:
                    file.write(json.dumps(line).encode() + b"\n")
        except (OSError, ValueError) as error:  # a setting of the log may not be valid
            self.log.warning("the log of task %s could not be written: %s", key, error)
        self.fail(key, info=why)

    def _take_in_other(self, submitted: Submitted, job: Job, why: str) -> None:
        """Report a callback or a connection test, of which nobody else does."""
        if not submitted.has_started and self._may_submit_again(submitted, job, self._task_of(submitted)):
            return
        self._drop(submitted)
        if job.state == "completed":
            self.change_state(submitted.key, _state_of(submitted, "SUCCESS"), submitted.name)
        else:
            said = submitted.store.tail(submitted.name, TASK_ID, 5) if job.reason is not Reason.LOST else ""
            self.change_state(submitted.key, _state_of(submitted, "FAILED"), f"{why}\n{said}".strip())

    def _task_of(self, submitted: Submitted) -> Task | None:
        try:
            return submitted.store.load_tasks(submitted.name)[0][0]
        except (OSError, AirExecutorError, IndexError):
            return None

    def _measure(self, submitted: Submitted, task: Task | None) -> None:
        """Tell how long a workload has waited for a slot, and how long it took."""
        if task is None or task.created_at is None or task.started_at is None:
            return
        tags = {"kind": submitted.kind}
        _timing("air_executor.queue_time", task.started_at - task.created_at, tags)
        if task.seconds is not None:
            _timing("air_executor.run_time", timedelta(seconds=task.seconds), tags)

    def _say_if_cold(self, submitted: Submitted, task: Task | None) -> None:
        """Say why tasks start cold, and so seconds later; once, since it may be so with all of them."""
        if task is None or task.env:  # with variables of its own it always does
            return
        try:
            found = _COLD.match(submitted.store.read_log(submitted.name, TASK_ID, limit=4096).text)
        except (OSError, AirExecutorError):
            return
        site = submitted.store.base_path
        if found and (site, found[1]) not in self._cold:
            self._cold.add((site, found[1]))
            self.log.warning("tasks of %s start cold, without a warm runner, and take longer: %s", site, found[1])

    # -- submitting again ----------------------------------------------------------------------------------

    def _may_submit_again(self, submitted: Submitted, job: Job, task: Task | None) -> bool:
        """Arrange for a workload that has not begun to be submitted again; False if that is no use."""
        if job.reason is Reason.CANCELLED or submitted.submissions > _MAX_RESUBMISSIONS:
            return False
        if task is not None and task.reason is Reason.SPAWN:  # it cannot be started, now or later
            return False
        submitted.version = files.stamp(submitted.store.paths(submitted.name).state)
        submitted.again_at = time.monotonic() + 2.0 ** (submitted.submissions - 1)
        return True

    def _submit_again(self) -> None:
        for submitted in list(self._submitted.values()):
            if submitted.again_at is None or time.monotonic() < submitted.again_at:
                continue
            submitted.again_at = None
            submitted.submissions += 1
            submitted.has_started = False
            try:
                workload = submitted.workload or database.workload_of(submitted.ti_id, self.jwt_generator)
                workload = self._with_new_token(workload)
                try:
                    submitted.store.attach(submitted.name, WORKLOAD_FILE, self._dump(workload))
                    submitted.store.retry(submitted.name)
                except JobNotFoundError:
                    self._create(submitted.store, submitted.name, submitted.kind, workload)
            except (OSError, AirExecutorError, LookupError) as error:
                self.log.error("%s could not be submitted again: %s", submitted.key, error)
                self._drop(submitted)
                log_path = getattr(submitted.workload, "log_path", None)
                self._fail(submitted.key, f"it could not be submitted again: {error}", log_path)

    def _with_new_token(self, workload: Any) -> Any:
        return workload.model_copy(update={"token": self._token(_subject_of(workload))})

    def _token(self, subject: str) -> str:
        token: str = workloads.ExecuteTask.generate_token(subject, self.jwt_generator)
        return token

    # -- jobs that have not ended --------------------------------------------------------------------------

    @property
    def _renewal_seconds(self) -> float:
        timeout = conf.getfloat("scheduler", "task_queued_timeout", fallback=600.0)
        return max(1.0, timeout / 3)

    def _renew(self) -> None:
        """Keep what waits for a slot valid: its token, and for Airflow the time at which it was queued.

        A token is good for ``[scheduler] task_queued_timeout``, and a task that has been queued for so long is taken
        for stuck. If the manager is gone it is indeed, and Airflow may do what it does then.
        """
        waiting = [item for item in self._submitted.values() if not item.has_started and item.again_at is None]
        alive = {store.base_path: store.manager_is_running() for store in self.settings.stores}
        queued = []
        for submitted in waiting:
            if not alive.get(submitted.store.base_path):
                continue
            try:
                path = submitted.store.attached_path(submitted.name, WORKLOAD_FILE)
                content = json.loads(files.read(path)[0])
                content["workload"]["token"] = self._token(_subject_in(content["workload"]))
                if submitted.store.replace_attached(submitted.name, WORKLOAD_FILE, json.dumps(content).encode()):
                    queued += [submitted.ti_id] if submitted.ti_id is not None else []
            except FileNotFoundError:
                continue  # it has just begun
            except (OSError, ValueError, KeyError, AirExecutorError) as error:
                self.log.warning("the token of job %s could not be renewed: %s", submitted.name, type(error).__name__)
        database.say_still_queued(queued)

    def _end_unwanted(self) -> None:
        """Kill what Airflow does not want any more, if its supervisor has not done so by itself."""
        # A name that we have given ourselves is in the database a moment later.
        now = time.monotonic()
        tasks = [item for item in self._submitted.values() if item.ti_id is not None and item.settled_at < now]
        instances = _instances(tasks)
        for submitted in tasks:
            instance = instances.get(submitted.name)
            if instance is not None and instance.state == TaskInstanceState.RESTARTING:
                # Cleared while it ran: it is to end now, and to be reported then.
                if submitted.unwanted_since is None:
                    submitted.unwanted_since = time.monotonic()
                    self._cancel(submitted.store, submitted.name)
            elif instance is not None and instance.state in database.ALIVE:
                submitted.unwanted_since = None
            else:
                self._end_later(submitted, instance.state if instance is not None else None)

    def _end_later(self, submitted: Submitted, state: str | None) -> None:
        """Airflow does not want a task any more: its supervisor will notice, or is about to end anyway.

        A supervisor reports that its task has failed after the task's process has ended, and then only uploads its
        log. If it goes on for longer, and there is nothing to be uploaded, somebody else has marked the task failed.
        """
        now = time.monotonic()
        submitted.unwanted_since = submitted.unwanted_since or now
        is_marked = state == TaskInstanceState.FAILED and not self.settings.uploads_logs
        patience = _MARKED_SECONDS if is_marked else _UNWANTED_SECONDS
        if not submitted.has_started or now - submitted.unwanted_since >= patience:
            self.log.info("task %s is not to run any more; its job %s is cancelled", submitted.key, submitted.name)
            if self._latest.get(submitted.key) == submitted.name:
                self._forget_key(submitted.key)
            self._drop(submitted)
            self._cancel(submitted.store, submitted.name)

    def _adopt_callbacks(self) -> None:
        """Take over the callbacks of an earlier scheduler, which Airflow itself does not do."""
        for callback_id in database.pending_callbacks():
            name = f"{_CALLBACK_PREFIX}{callback_id}"
            store = self._find(name)
            if store is not None:
                key = _callback_key(callback_id)
                self._track(Submitted(name, key, store, _CALLBACK))
                self.running.add(key)

    # -- managers, and old jobs ----------------------------------------------------------------------------

    def _look_after_managers(self) -> None:
        """Start an embedded manager that is gone, beside the scheduler's loop: that must not wait."""
        if not self.settings.is_embedded or (self._helper is not None and self._helper.is_alive()):
            return
        keep_alive = self._is_due("keep alive", _KEEP_ALIVE_SECONDS)
        patience = 0.0 if self.job_id is not None else _OTHERS_SECONDS
        now = time.monotonic()
        gone = []
        for site in self.settings.sites.values():
            if keep_alive:
                site.store.keep_alive()
            if site.store.manager_is_running():
                self._gone_since.pop(site.store.base_path, None)
            elif now - self._gone_since.setdefault(site.store.base_path, now) >= patience:
                gone.append(site)
        if gone:
            self._helper = threading.Thread(target=self._start_managers, args=(gone,), daemon=True)
            self._helper.start()

    def _start_managers(self, sites: list[Site]) -> None:
        for site in sites:
            self.log.warning("the manager of %s is gone; starting another one", site.store.base_path)
            try:
                self._start_manager(site)
            except (OSError, AirExecutorError):
                self.log.exception("the manager of %s could not be started", site.store.base_path)

    def _prune(self) -> None:
        """Remove jobs that ended a while ago."""
        for _ in range(_PRUNED_A_TIME):
            if not self._ended or time.monotonic() < self._ended[0][0]:
                return
            _, store, name = self._ended.popleft()
            try:
                store.delete(name)
            except JobNotFoundError:
                continue
            except NotRemovedError as error:
                self.log.warning("%s", error)
            except (OSError, AirExecutorError) as error:  # it has not ended yet, for instance
                self.log.debug("job %s is kept for now: %s", name, error)
                self._ended.append((time.monotonic() + 60, store, name))

    def _prune_left(self) -> None:
        """Remove the jobs that an earlier scheduler has left, but for those that Airflow still waits for."""
        try:
            before = utc_now() - timedelta(seconds=self.settings.prune_after)
            for store in self.settings.stores:
                old = [
                    job.name
                    for job in store.list_jobs()
                    if LABEL in job.labels
                    and job.state.is_terminal
                    and job.updated_at is not None
                    and job.updated_at < before
                ]
                needed = database.still_needed(old)
                needed.update(f"{_CALLBACK_PREFIX}{callback_id}" for callback_id in database.pending_callbacks())
                for name in set(old) - needed:
                    with contextlib.suppress(JobNotFoundError, NotRemovedError):  # what is left is told below
                        store.delete(name)
                for error in store.remove_abandoned():
                    self.log.warning("%s", error)
        except Exception:
            self.log.exception("old jobs could not be removed")


def _instances(submitted: Iterable[Submitted]) -> dict[str, database.Instance]:
    """How the database says that the tasks of jobs stand, by the name of the job.

    One that is not there, or that another job has been submitted for, is left out.
    """
    tasks = [item for item in submitted if item.ti_id is not None]
    rows = database.instances(item.key for item in tasks)  # type: ignore[misc]
    found: dict[str, database.Instance] = {}
    for item in tasks:
        instance = rows.get(item.key)  # type: ignore[arg-type]
        if instance is not None and instance.external_executor_id in (item.name, None):
            found[item.name] = instance
    return found


def _key_of(workload: Any) -> Any:
    if workload.type == "ExecuteTask":
        return workload.ti.key
    if workload.type == "ExecuteCallback":
        return workload.callback.key
    return workload.key


def _state_of(submitted: Submitted, name: str) -> Any:
    if submitted.kind == _CALLBACK:
        return CallbackState[name]
    from airflow.models.connection_test import ConnectionTestState

    return ConnectionTestState[name]


def _callback_key(callback_id: str) -> Any:
    from airflow.models import callback

    return callback.CallbackKey(callback_id)  # before Airflow 3.3 another name of str


def _subject_of(workload: Any) -> str:
    return _subject_in(workload.model_dump(mode="json"))


def _subject_in(workload: Mapping[str, Any]) -> str:
    """Who a token of this workload is made for."""
    if "ti" in workload:
        return str(workload["ti"]["id"])
    return str(workload["callback"]["id"] if "callback" in workload else workload["connection_test_id"])


def _explain(job: Job, task: Task | None) -> str:
    """What happened to a job, in a sentence."""
    code = task.exit_code if task is not None else None
    texts = {
        ExitCode.BAD_WORKLOAD: "its workload could not be read",
        ExitCode.UNREACHABLE: "the API server could not be reached",
        ExitCode.SUPERVISOR_FAILED: "its supervisor failed",
        ExitCode.SUPERSEDED: "it was running already, or was not to run any more",
        ExitCode.REFUSED: "the API server did not accept its token",
    }
    said = texts.get(code) if code is not None else None  # type: ignore[call-overload]
    error = (task is not None and task.error) or job.error
    return f"{said or error or 'it has ended'} (job {job.name})"


def _timing(name: str, value: timedelta, tags: dict[str, str]) -> None:
    from airflow.observability import stats

    timing: Callable[..., None] = getattr(stats, "timing", None) or stats.Stats.timing
    timing(name, value, tags=tags)
