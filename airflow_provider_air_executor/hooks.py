"""AirExecutorHook: the job filesystem, as Airflow code uses it."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Unpack

from airflow.sdk import BaseHook
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import redact  # type: ignore[attr-defined]

from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    CorruptFileError,
    JobTimeoutError,
    ManagerError,
    ManagerRunningError,
    SettingsError,
)
from airflow_provider_air_executor.jobs import attachments, files, inbox, manager_status, masking
from airflow_provider_air_executor.jobs.logs import LogChunk, TaskLog
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy, Task
from airflow_provider_air_executor.jobs.spec import JobSpec
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.environment import as_given

log = logging.getLogger(__name__)

_START_SECONDS = 60.0
_START_ATTEMPTS = 3
_ALIVE_SECONDS = 5.0  # between two looks at whether the embedded manager is alive
_FIRST_POLL_SECONDS = 0.02
_DEFAULT_IDLE_SECONDS = 600
# Variables that describe an Airflow process itself must not reach the tasks of other jobs.
_PRIVATE_VARIABLES = ("_AIRFLOW", "__AIRFLOW", "AIRFLOW_CTX_")
# Settings with which one could speak for Airflow, by their sections; its own list has more, and those of providers.
_SECRET_SETTINGS = (
    ("api", "secret_key"),
    ("api_auth", "jwt_secret"),
    ("celery", "broker_url"),
    ("celery", "result_backend"),
    ("core", "fernet_key"),
    ("core", "sql_alchemy_conn"),
    ("database", "sql_alchemy_conn"),
    ("database", "sql_alchemy_conn_async"),
    ("webserver", "secret_key"),
)
_DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
_NO_DATABASE = "airflow-db-not-allowed:///"  # what Airflow's own tasks find there


class Location(NamedTuple):
    """Where the job filesystem is, and whether we start its manager."""

    base_path: str
    embedded: bool


class AirExecutorHook(BaseHook):
    """Creates, reads and controls jobs in the job filesystem.

    The connection's extra fields say where that is: ``base_path``, and ``embedded``, whether the manager is started
    when it is needed and none runs (default: no, it is a service of its own). If the connection
    ``air_executor_default`` does not exist, the embedded default is used: ``$AIRFLOW_HOME/air-executor``.

    An embedded manager is a process of its own. It outlives the Airflow task that started it, and ends after
    ``[air_executor] embedded_idle_timeout`` seconds (default 600) without work.

    :param air_executor_conn_id: the connection; default ``air_executor_default``.
    """

    conn_name_attr = "air_executor_conn_id"
    default_conn_name = "air_executor_default"
    conn_type = "air_executor"
    hook_name = "Air-Executor"

    def __init__(self, air_executor_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.air_executor_conn_id = air_executor_conn_id

    @cached_property
    def location(self) -> Location:
        """Where the job filesystem is.

        :raises AirflowNotFoundException: if another connection than the default one is named and does not exist.
        :raises ValueError: if a field of the connection is not valid.
        """
        try:
            extra = self.get_connection(self.air_executor_conn_id).extra_dejson
        except AirflowNotFoundException:
            if self.air_executor_conn_id != self.default_conn_name:
                raise
            return Location(embedded_base_path(), embedded=True)
        base_path, embedded = extra.get("base_path") or embedded_base_path(), extra.get("embedded") or False
        where = f"connection {self.air_executor_conn_id!r}"
        # All extras of a URI are texts.
        if isinstance(embedded, str):
            embedded = {"true": True, "false": False}.get(embedded.lower(), embedded)
        if not isinstance(base_path, str) or not os.path.isabs(files.expanded(base_path)):
            raise ValueError(f"base_path of {where} must be an absolute path, not {base_path!r}")
        if not isinstance(embedded, bool):
            raise ValueError(f"embedded of {where} must be true or false, not {embedded!r}")
        return Location(base_path, embedded)

    @cached_property
    def store(self) -> JobStore:
        """The job filesystem."""
        return JobStore(self.location.base_path)

    def get_conn(self) -> JobStore:
        """The job filesystem."""
        return self.store

    def create_job(
        self,
        job_name: str,
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        submitted_by: SubmittedBy | None = None,
        **spec: Unpack[JobSpec],
    ) -> Job:
        """Submit a job; it exists exactly once, or not at all.

        :param job_name: 1 to 100 ASCII letters, digits, ``-`` or ``_``.
        :param tasks: a list of dicts, of :class:`~airflow_provider_air_executor.jobs.models.Task`, or of bash lines.
        :param submitted_by: the Airflow task that submits it.
        :param spec: what else is said of it, see :class:`~airflow_provider_air_executor.jobs.spec.JobSpec`.
        :raises InvalidJobError: naming the field that is not valid; nothing was written.
        :raises JobExistsError: if the name is taken.
        :raises NoLocksError: if no embedded manager can run there; nothing was written.
        """
        listed = _listed(tasks)
        given = spec.get("outlets") or ()
        spec["outlets"] = given if isinstance(given, str) else tuple(given)
        secrets = _secrets_of(listed, spec.get("labels"), spec["outlets"])
        if self.location.embedded:
            manager_status.check_locks(self.store)
        job = self.store.submit(
            job_name,
            listed,
            submitted_by=submitted_by,
            attached={masking.FILE: masking.dump(secrets)} if secrets else None,
            **spec,
        )
        self.ensure_manager()
        return job

    def get_job(self, job_name: str) -> Job:
        """The job of this name.

        :raises JobNotFoundError: if there is none.
        """
        return self.store.get_job(job_name)

    def get_tasks(self, job_name: str) -> tuple[Task, ...]:
        """The tasks of a job, in the order of the list.

        :raises JobNotFoundError: if there is no such job.
        """
        return self.store.get_tasks(job_name)

    def list_jobs(self) -> list[Job]:
        """All jobs, by name."""
        return list(self.store.list_jobs())

    def read_log(self, job_name: str, task_id: str, offset: int = 0, limit: int | None = None) -> LogChunk:
        """The log of a task so far, from ``offset`` bytes on, at most ``limit`` bytes.

        :raises JobNotFoundError: if there is no such job.
        """
        return TaskLog(self.store.paths(job_name), task_id).read(offset, limit)

    def cancel_job(self, job_name: str, owner: SubmittedBy | None = None) -> bool:
        """Ask for a job to be cancelled.

        :param owner: the Airflow task that asks, if it is to be cancelled only as long as it belongs to that.
        :return: False if it had ended already, or belongs to another task.
        :raises JobNotFoundError: if there is no such job.
        """
        requested = inbox.cancel(self.store, job_name, owner)
        if requested:
            self.ensure_manager()
        return requested

    def reattach(self, job_name: str, owner: SubmittedBy) -> None:
        """Record that this try of an Airflow task waits for the job from now on, so that no earlier try can cancel it.

        :raises JobNotFoundError: if there is no such job.
        """
        inbox.reattach(self.store.paths(job_name), owner)

    def retry_job(self, job_name: str) -> None:
        """Request a retry of a failed job: failed tasks, and those that depend on them, run again; other results stay.

        :raises JobNotFoundError: if there is no such job.
        :raises JobStateError: if it has not failed.
        """
        inbox.retry(self.store, job_name)
        self.ensure_manager()

    def add_tasks(self, job_name: str, tasks: Iterable[Task | Mapping[str, Any] | str]) -> tuple[str, ...]:
        """Ask for tasks to be appended to a job that has not ended.

        :return: their ids.
        :raises JobStateError: if the job has ended.
        :raises InvalidJobError: naming the field that is not valid; nothing was asked.
        """
        listed = _listed(tasks)
        secrets = _secrets_of(listed)
        if secrets:  # before they can be seen
            attachments.append(self.store.paths(job_name), masking.FILE, masking.dump(secrets))
        added = inbox.add_tasks(self.store, job_name, listed)
        self.ensure_manager()
        return added

    def wait_for_job(
        self,
        job_name: str,
        *,
        timeout: float | None = None,
        poll_interval: float = 1.0,
        after_attempt: int = -1,
        on_poll: Callable[[Job], None] | None = None,
    ) -> Job:
        """Wait, in this process, until a job has ended.

        :param timeout: at most so many seconds; default: without limit.
        :param poll_interval: seconds between two looks; the first ones follow each other faster.
        :param after_attempt: the end of this attempt of the job, or an earlier one, does not count.
        :param on_poll: called with the job after each look at which it had not ended.
        :return: the job, completed or failed.
        :raises JobTimeoutError: when the time is over; the job goes on.
        :raises JobNotFoundError: if there is no such job.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = min(_FIRST_POLL_SECONDS, poll_interval)
        alive_until = time.monotonic() + _ALIVE_SECONDS
        problem = ""
        while True:
            job, problem = self._job_if_readable(job_name, problem)
            if job is not None and job.state.is_terminal and job.attempt > after_attempt:
                return job
            if job is not None and on_poll is not None:
                on_poll(job)
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                state = job.state.value if job is not None else "not readable"
                raise JobTimeoutError(f"job {job_name!r} is still {state} after {timeout:g} s")
            if now >= alive_until:
                self.ensure_manager()
                alive_until = now + _ALIVE_SECONDS
            time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - now)))
            pause = min(pause * 1.5, poll_interval)

    def _job_if_readable(self, job_name: str, problem: str) -> tuple[Job | None, str]:
        """The job; None and the problem if it cannot be read now, which is not the job's failure.

        :param problem: what was said last about it.
        """
        try:
            return self.get_job(job_name), ""
        except (CorruptFileError, OSError) as error:
            if str(error) != problem:
                self.log.warning("job %s cannot be read now: %s", job_name, error)
            return None, str(error)

    def delete_job(self, job_name: str) -> None:
        """Remove a job that has ended, with its logs.

        :raises JobNotFoundError: if there is no such job.
        :raises JobStateError: if it has not ended.
        :raises NotRemovedError: if some of its files may not be removed; its name is free all the same.
        """
        self.store.delete(job_name)

    def test_connection(self) -> tuple[bool, str]:
        """Whether jobs can be submitted here, and whether they will run."""
        try:
            base_path, embedded = self.location
            if not embedded and not self.store.base_path.is_dir():
                return False, f"{base_path} is not a directory on this machine"
            self.store.create_directories()
            if not os.access(self.store.inbox_path, os.W_OK):
                return False, f"{base_path} is not writable for this user"
            manager_status.check_locks(self.store)
        except (AirExecutorError, ValueError, OSError) as error:
            return False, str(error)
        if manager_status.is_running(self.store):
            return True, f"manager {manager_status.pid(self.store)} runs the jobs of {base_path}"
        if embedded:
            return True, f"jobs go to {base_path}; the manager is started with the first one"
        return False, f"no manager is running; start it: air-executor manager --base-path {base_path}"

    def ensure_manager(self) -> None:
        """Start the manager if it is embedded and none runs.

        :raises ManagerError: if it cannot be started.
        """
        if self.location.embedded:
            start_manager_if_none(self.store)


def _listed(tasks: Iterable[Task | Mapping[str, Any] | str]) -> Any:
    """The tasks as a list, to be read twice; other values stay, and are refused later."""
    return tasks if isinstance(tasks, str | bytes | Mapping) or not isinstance(tasks, Iterable) else list(tasks)


def _secrets_of(*values: Any) -> set[str]:
    """The parts of these texts that Airflow masks: passwords and sensitive variables that were read in this process."""
    secrets: set[str] = set()

    def look(value: Any, name: str | None = None) -> None:
        if isinstance(value, Task):
            value = value.model_dump(include={"command", "args", "env", "cwd"})
        if isinstance(value, Mapping):
            for key, item in value.items():
                look(item, str(key))
        elif isinstance(value, list | tuple):
            for item in value:
                look(item)
        elif isinstance(value, str):
            masked = str(redact(value, name))
            if masked != value:
                secrets.update(_masked_parts(value, masked))

    look(values)
    return secrets


def _masked_parts(text: str, masked: str) -> set[str]:
    """The parts of a text that Airflow has masked; all of it where that is not known."""
    if masked == masking.REPLACEMENT:
        return {text}
    try:
        from airflow.sdk._shared.secrets_masker import _secrets_masker

        replacer = _secrets_masker().replacer
        return set(replacer.findall(text) if replacer is not None else ()) or {text}
    except (ImportError, AttributeError):  # another Airflow, which keeps them elsewhere
        return {text}


def embedded_base_path() -> str:
    """The job filesystem that is used if no connection says otherwise."""
    home = files.expanded(os.environ.get("AIRFLOW_HOME") or "~/airflow")
    return os.path.join(home, "air-executor")


def tasks_base_path(configured: str, team_name: str | None = None) -> str:
    """The job filesystem of the executor.

    :param configured: the setting ``[air_executor] base_path``; empty: in Airflow's home, one for each team.
    :raises SettingsError: if it is not an absolute path.
    """
    home = os.environ.get("AIRFLOW_HOME") or "~/airflow"
    suffix = f"-{team_name}" if team_name else ""
    base_path = files.expanded(configured or os.path.join(home, f"air-executor-tasks{suffix}"))
    if not os.path.isabs(base_path):
        raise SettingsError(f"[air_executor] base_path must be an absolute path, not {base_path!r}")
    return base_path


def start_manager_if_none(store: JobStore) -> None:
    """Start a manager that outlives this process, unless one runs. Any number of processes may do so at once.

    Its tasks do not find Airflow's own secrets in their environment, unless the setting ``[air_executor] keep_secrets``
    says so: this process may be the API server, which has all of them.

    :raises ManagerError: if it cannot be started; the message holds what it said.
    """
    if not manager_status.is_running(store):
        start_manager(store, keep_secrets=conf.getboolean("air_executor", "keep_secrets", fallback=False))


def start_manager(store: JobStore, *flags: str, keep_secrets: bool, replace: bool = False) -> None:
    """Start a manager that outlives this process; if another one is faster, that is as good.

    :param flags: more flags of ``air-executor manager``.
    :param keep_secrets: whether its tasks find in their environment how Airflow reaches its database, and its keys.
    :param replace: whether the one that runs is ended first.
    :raises ManagerError: if it cannot be started, or the one that runs not be replaced; the message holds what it said.
    """
    manager_status.keep_alive(store)
    idle = conf.getfloat("air_executor", "embedded_idle_timeout", fallback=_DEFAULT_IDLE_SECONDS)
    # Without -P, modules of the working directory, which is one that tasks may write to, would be ours.
    command = [sys.executable, "-P", "-m", "airflow_provider_air_executor.manager.cli", "manager", "--detach"]
    command += ["--base-path", str(store.base_path), "--idle-timeout", str(idle), *flags]
    command += ["--replace"] if replace else []
    given = as_given(os.environ)
    environment = {key: value for key, value in given.items() if not key.startswith(_PRIVATE_VARIABLES)}
    if environment.get("PYTHONPATH"):  # what is relative in it, or empty, means our directory and not the manager's
        entries = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, entries))
    if not keep_secrets:
        secret = _secret_variables()
        environment = {key: value for key, value in environment.items() if not secret.fullmatch(key)}
        environment[_DATABASE] = _NO_DATABASE
    for _ in range(_START_ATTEMPTS):
        try:
            started = subprocess.run(
                command,
                cwd=store.base_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ManagerError(f"the embedded manager of {store.base_path} did not start: {error}") from None
        was_late = started.returncode == ManagerRunningError.exit_code
        if started.returncode == 0 or ((was_late or not replace) and manager_status.is_running(store)):
            if started.returncode == 0 and started.stderr:
                log.warning("the embedded manager of %s: %s", store.base_path, _text(started.stderr))
            return
        if not was_late:
            break  # otherwise the one that was in its way has ended in this moment
    said = _text(started.stderr)
    raise ManagerError(f"the embedded manager of {store.base_path} could not be started: {said}")


def _text(said: bytes) -> str:
    return said.decode(errors="replace").strip()


def _secret_variables() -> re.Pattern[str]:
    """The environment variables that hold secrets of Airflow's own, or say how to get at them; also those of a team."""
    settings = {*_SECRET_SETTINGS, *getattr(conf, "sensitive_config_values", ())}
    names = "|".join(re.escape(f"{section}__{key}".upper()) for section, key in settings)
    return re.compile(f"AIRFLOW__(.+___)?({names})(_CMD|_SECRET)?")
