"""AirExecutorHook: the job filesystem, as Airflow code uses it."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Unpack

from airflow.sdk import BaseHook
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import redact  # type: ignore[attr-defined]

from airflow_provider_air_executor.connections import Location, location_of
from airflow_provider_air_executor.exceptions import AirExecutorError, SettingsError
from airflow_provider_air_executor.jobs import embedded_manager, files, manager_status, masking
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.logs import LogChunk
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy, Task
from airflow_provider_air_executor.jobs.spec import JobSpec
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.waiting import wait_until_ended
from airflow_provider_air_executor.system.environment import as_given

if TYPE_CHECKING:
    from airflow_provider_air_executor.remote.protocol import SshTarget, Target

log = logging.getLogger(__name__)

_LOGIN_SECONDS = 20.0  # by SSH, with the start of a server there

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
DATABASE_VARIABLE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
# In memory. Airflow cannot be imported with what its own tasks find there, "airflow-db-not-allowed:///"
# (apache/airflow #56356).
NO_DATABASE = "sqlite://"


class AirExecutorHook(BaseHook):
    """Creates, reads and controls jobs in the job filesystem.

    The connection says where that is. A directory of this machine is in its extra field ``base_path``, and in
    ``embedded``, whether the manager is started when it is needed and none runs (default: no, it is a service of its
    own). If the connection ``air_executor_default`` does not exist, the embedded default is used:
    ``$AIRFLOW_HOME/air-executor``.

    A manager on another machine is reached by HTTPS, with ``host``, ``port`` and the token as ``password``, or by SSH,
    with the extra field ``ssh_conn_id``.

    An embedded manager is a process of its own. It outlives the Airflow task that started it, and ends after
    ``[air_executor] embedded_idle_timeout`` seconds (default 600) without work.

    :param air_executor_conn_id: the connection; default ``air_executor_default``.
    :param patience: seconds for which a call is repeated while another machine is away, until it raises
        :class:`~airflow_provider_air_executor.exceptions.JobsAwayError`; default: until it is back.
    """

    conn_name_attr = "air_executor_conn_id"
    default_conn_name = "air_executor_default"
    conn_type = "air_executor"
    hook_name = "Air-Executor"

    def __init__(
        self, air_executor_conn_id: str = default_conn_name, *, patience: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.air_executor_conn_id = air_executor_conn_id
        self.patience = patience

    @cached_property
    def location(self) -> Location | Target:
        """Where the job filesystem is: in a directory of this machine, or on another machine.

        :raises AirflowNotFoundException: if another connection than the default one is named and does not exist.
        :raises ValueError: if a field of the connection is not valid.
        """
        try:
            connection = self.get_connection(self.air_executor_conn_id)
        except AirflowNotFoundException:
            if self.air_executor_conn_id != self.default_conn_name:
                raise
            return Location(embedded_base_path(), embedded=True)
        return location_of(connection, self._whose, embedded_base_path(), self._ssh_target)

    def _ssh_target(self, ssh_conn_id: str) -> SshTarget:
        from airflow_provider_air_executor.ssh_connection import ssh_target

        return ssh_target(self.get_connection(ssh_conn_id))

    @property
    def _whose(self) -> str:
        return f"connection {self.air_executor_conn_id!r}"

    @cached_property
    def store(self) -> JobStore:
        """The job filesystem, if it is in a directory of this machine.

        :raises SettingsError: if it is on another one, which only :attr:`jobs` can reach.
        """
        if not isinstance(self.location, Location):
            raise SettingsError(f"the jobs of {self._whose} are on another machine, without files here; use hook.jobs")
        return JobStore(self.location.base_path)

    @cached_property
    def jobs(self) -> Jobs:
        """The jobs in it."""
        return jobs_at(self.location, self._whose).with_patience(self.patience)

    def patient(self, seconds: float) -> Jobs:
        """The jobs, for calls with another patience.

        :param seconds: see ``patience``; 0: a call is not repeated.
        """
        return self.jobs.with_patience(seconds)

    def for_trigger(self) -> dict[str, Any]:
        """The arguments by which a trigger finds the job filesystem, in another process: never a token."""
        if isinstance(self.location, Location):
            return {"base_path": str(self.store.base_path), "embedded": self.location.embedded}
        return {"air_executor_conn_id": self.air_executor_conn_id}

    def get_conn(self) -> Jobs:
        """The jobs."""
        return self.jobs

    def make_directories(self) -> None:
        """Make the directories of the job filesystem where they are missing.

        :raises BasePathError: naming the connection, if that cannot be.
        """
        self.jobs.prepare()

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
        :raises BasePathError: if there can be no job filesystem.
        """
        self.jobs.prepare()
        listed = _listed(tasks)
        given = spec.get("outlets") or ()
        spec["outlets"] = given if isinstance(given, str) else tuple(given)
        secrets = _secrets_of(listed, spec.get("labels"), spec["outlets"])
        job = self.jobs.submit(job_name, listed, submitted_by=submitted_by, secrets=secrets, **spec)
        self.ensure_manager()
        return job

    def get_job(self, job_name: str) -> Job:
        """The job of this name.

        :raises JobNotFoundError: if there is none.
        """
        return self.jobs.get_job(job_name)

    def get_tasks(self, job_name: str) -> tuple[Task, ...]:
        """The tasks of a job, in the order of the list.

        :raises JobNotFoundError: if there is no such job.
        """
        return self.jobs.get_tasks(job_name)

    def list_jobs(self) -> list[Job]:
        """All jobs, by name."""
        return list(self.jobs.list_jobs())

    def read_log(self, job_name: str, task_id: str, offset: int = 0, limit: int | None = None) -> LogChunk:
        """The log of a task so far, from ``offset`` bytes on, at most ``limit`` bytes.

        :raises JobNotFoundError: if there is no such job.
        """
        return self.jobs.log(job_name, task_id).read(offset, limit)

    def cancel_job(
        self,
        job_name: str,
        owner: SubmittedBy | None = None,
        tasks: Iterable[str] = (),
        *,
        again: bool = False,
        patience: float | None = None,
    ) -> bool:
        """Ask for a job to be cancelled. Tasks whose ``run_if`` is ``always`` still run.

        :param owner: the Airflow task that asks, if it is to be cancelled only as long as it belongs to that.
        :param tasks: ids of tasks: only these are to end, and the job goes on.
        :param again: also tasks are to end that always run, if the job is being cancelled already.
        :param patience: seconds for which it is tried while another machine is away; default: that of the hook.
        :return: False if it had ended already, or belongs to another task.
        :raises JobNotFoundError: if there is no such job.
        :raises InvalidJobError: if it has no such task.
        :raises JobsAwayError: if the patience is over.
        """
        jobs = self.jobs if patience is None else self.jobs.with_patience(patience)
        requested = jobs.cancel(job_name, owner, tasks, again=again)
        if requested:
            jobs.ensure_manager()
        return requested

    def reattach(self, job_name: str, owner: SubmittedBy) -> None:
        """Record that this try of an Airflow task waits for the job from now on, so that no earlier try can cancel it.

        :raises JobNotFoundError: if there is no such job.
        """
        self.jobs.reattach(job_name, owner)

    def retry_job(self, job_name: str, tasks: Iterable[str] = (), *, all: bool = False) -> None:  # noqa: A002
        """Request a retry of a job that has ended: failed tasks, and those that depend on them, run again.

        :param tasks: ids of tasks: only these run again, and those that failed because of them.
        :param all: all tasks run again, also of a job that has completed.
        :raises JobNotFoundError: if there is no such job.
        :raises JobStateError: if it has not ended, or nothing of it failed.
        :raises InvalidJobError: if it has no such task.
        """
        self.jobs.retry(job_name, tasks, all=all)
        self.ensure_manager()

    def add_tasks(self, job_name: str, tasks: Iterable[Task | Mapping[str, Any] | str]) -> tuple[str, ...]:
        """Ask for tasks to be appended to a job that has not ended.

        :return: their ids.
        :raises JobStateError: if the job has ended.
        :raises InvalidJobError: naming the field that is not valid; nothing was asked.
        """
        listed = _listed(tasks)
        added = self.jobs.add_tasks(job_name, listed, secrets=_secrets_of(listed))
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
        return wait_until_ended(
            self.jobs,
            job_name,
            timeout=timeout,
            poll_interval=poll_interval,
            after_attempt=after_attempt,
            on_poll=on_poll,
            on_problem=lambda problem: self.log.warning("job %s cannot be read now: %s", job_name, problem),
        )

    def delete_job(self, job_name: str) -> None:
        """Remove a job that has ended, with its logs.

        :raises JobNotFoundError: if there is no such job.
        :raises JobStateError: if it has not ended.
        :raises NotRemovedError: if some of its files may not be removed; its name is free all the same.
        """
        self.jobs.delete(job_name)

    def test_connection(self) -> tuple[bool, str]:
        """Whether jobs can be submitted here, and whether they will run."""
        try:
            is_by_ssh = not isinstance(self.location, Location) and self.location.ssh is not None
            found = self.patient(_LOGIN_SECONDS if is_by_ssh else 0).test()
        except (AirExecutorError, ValueError, OSError) as error:
            return False, str(error)
        return found.is_well, found.message

    def ensure_manager(self) -> None:
        """Start the manager if it is embedded and none runs.

        :raises ManagerError: if it cannot be started.
        """
        self.jobs.ensure_manager()


def jobs_at(location: Location | Target, whose: str) -> Jobs:
    """The jobs in a job filesystem. All that is on one other machine shares its connections in this process.

    :param whose: what says that they are to be there.
    """
    if not isinstance(location, Location):
        from airflow_provider_air_executor import remote

        return remote.connect(location, patience=None)
    store = JobStore(location.base_path)
    start = partial(start_manager_if_none, store) if location.embedded else None
    return FileJobs(store, start_manager=start, whose=whose)


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
        elif isinstance(value, str | int | float | os.PathLike):  # what becomes a text
            value = str(value)
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
        start_manager(store, "--embedded", keep_secrets=conf.getboolean("air_executor", "keep_secrets", fallback=False))


def start_manager(store: JobStore, *flags: str, keep_secrets: bool, replace: bool = False) -> None:
    """Start a manager that outlives this process; if another one is faster, that is as good.

    :param flags: more flags of ``air-executor manager``.
    :param keep_secrets: whether its tasks find in their environment how Airflow reaches its database, and its keys.
    :param replace: whether the one that runs is ended first.
    :raises ManagerError: if it cannot be started, or the one that runs not be replaced; the message holds what it said.
    """
    given = as_given(os.environ)
    environment = {key: value for key, value in given.items() if not key.startswith(_PRIVATE_VARIABLES)}
    if not keep_secrets:
        secret = secret_variables()
        environment = {key: value for key, value in environment.items() if not secret.fullmatch(key)}
        environment[DATABASE_VARIABLE] = NO_DATABASE
    idle = conf.getfloat("air_executor", "embedded_idle_timeout", fallback=embedded_manager.IDLE_SECONDS)
    capacity = conf.get("air_executor", "capacity", fallback="")
    flags += ("--capacity", capacity) if capacity else ()
    warning = embedded_manager.start(store, *flags, environment=environment, idle_seconds=idle, replace=replace)
    if warning:
        log.warning("the embedded manager of %s: %s", store.base_path, warning)


def secret_variables() -> re.Pattern[str]:
    """The environment variables that hold secrets of Airflow's own, or say how to get at them; also those of a team."""
    settings = {*_SECRET_SETTINGS, *getattr(conf, "sensitive_config_values", ())}
    names = "|".join(re.escape(f"{section}__{key}".upper()) for section, key in settings)
    return re.compile(f"AIRFLOW__(.+___)?({names})(_CMD|_SECRET)?")
