"""Jobs from any Python program, without Airflow: ``Client(base_path).run(["make report"])``.

In place of a base path there may be the URL of a manager on another machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from airflow_provider_air_executor import remote
from airflow_provider_air_executor.exceptions import JobExistsError, SettingsError
from airflow_provider_air_executor.jobs import embedded_manager, summary
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.interface import Jobs
from airflow_provider_air_executor.jobs.models import Job, JobState, Task
from airflow_provider_air_executor.jobs.names import made_up_name
from airflow_provider_air_executor.jobs.spec import JobSpec
from airflow_provider_air_executor.jobs.store import DEFAULT_BASE_PATH, JobStore
from airflow_provider_air_executor.jobs.waiting import wait_until_ended
from airflow_provider_air_executor.remote import address

log = logging.getLogger("air_executor.client")

Tasks = Iterable[Task | Mapping[str, Any] | str]


class Client:
    """Submits jobs to a job filesystem, and finds those that are there.

    :param base_path: the directory that holds ``jobs/``, or the address of a manager's server: ``https://host:port``,
        or ``unix:///path`` of a socket. Default: ``AIR_EXECUTOR_BASE_PATH``, ``AIR_EXECUTOR_URL``, or ``.air-executor``
        in the current directory.
    :param embedded: whether a manager is started when a job needs one and none runs. It is a process of its own, which
        ends after 10 minutes without work. Default: no, the manager is a service. A server decides that by itself.
    :param token: the bearer token for a server; default: ``AIR_EXECUTOR_TOKEN``.
    :param ca: a file with the certificates by which a server's is checked; default: ``AIR_EXECUTOR_CA``, or those of
        the system.
    :param patience: seconds for which a call is repeated while a server is away, until it raises
        :class:`~airflow_provider_air_executor.exceptions.JobsAwayError`; None: until it is back. Default 10.
    :raises SettingsError: if the address is not valid.
    """

    def __init__(
        self,
        base_path: str | os.PathLike[str] | None = None,
        *,
        embedded: bool = False,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        patience: float | None = 10.0,
    ) -> None:
        known = (os.environ.get(variable) for variable in ("AIR_EXECUTOR_BASE_PATH", "AIR_EXECUTOR_URL"))
        given = os.fspath(base_path or next(filter(None, known), DEFAULT_BASE_PATH))
        self._jobs: Jobs
        if address.is_address(given):
            ca = ca or os.environ.get("AIR_EXECUTOR_CA")
            target = address.target_of(
                given,
                token=os.environ.get("AIR_EXECUTOR_TOKEN", "").strip() if token is None else token,
                ca=os.path.abspath(ca) if ca else None,
            )
            self._base_path, self._jobs = None, remote.connect(target, patience=patience)
            return
        store = JobStore(given)
        self._base_path = store.base_path
        self._jobs = FileJobs(store, start_manager=partial(_start_manager, store) if embedded else None)

    def __repr__(self) -> str:
        return f"Client({self._jobs.where!r})"

    @property
    def base_path(self) -> Path:
        """The directory that holds ``jobs/``.

        :raises SettingsError: if it is on another machine.
        """
        if self._base_path is None:
            raise SettingsError(f"the base path of {self._jobs.where} is on another machine")
        return self._base_path

    def create_job(
        self, job_name: str | None, tasks: Tasks, *, replace: bool = False, **spec: Unpack[JobSpec]
    ) -> ClientJob:
        """Submit a job; it exists exactly once, or not at all.

        :param job_name: 1 to 100 ASCII letters, digits, ``-`` or ``_``; None: a name is made up.
        :param tasks: a list of dicts, of :class:`~airflow_provider_air_executor.jobs.models.Task`, or of bash lines.
        :param replace: whether a job of this name that has ended is removed first.
        :param spec: the other fields of the job: ``max_parallel_tasks``, ``timeout``, ``priority``, ``labels``,
            ``outlets``, ``runner``.
        :raises InvalidJobError: naming the field that is not valid; nothing was written.
        :raises JobExistsError: if the name is taken.
        :raises JobStateError: if the job that is to be replaced has not ended.
        :raises ManagerError: if a manager is to be started, and cannot be.
        """
        name = made_up_name("job") if job_name is None else job_name
        listed: Any = tasks if isinstance(tasks, str | bytes | Mapping) else list(tasks)
        self._jobs.prepare()
        try:
            self._jobs.submit(name, listed, **spec)
        except JobExistsError:  # and so it is valid
            if not replace:
                raise
            self._jobs.delete(name)
            self._jobs.submit(name, listed, **spec)
        self.ensure_manager()
        return ClientJob(self, name)

    def run(self, tasks: Tasks, job_name: str | None = None, **spec: Unpack[JobSpec]) -> dict[str, Any]:
        """Submit a job, and wait until it has ended. An interrupt (Ctrl-C) cancels it.

        :param tasks: as for :meth:`create_job`.
        :param job_name: default: a name is made up.
        :param spec: as for :meth:`create_job`.
        :return: what its tasks have written to ``$AIR_EXECUTOR_OUTPUT``, by their ids.
        :raises JobFailedError: if it failed, with the errors of its tasks and the last lines of their output.
        :raises OutputError: if a result is not JSON, or is too long.
        """
        job = self.create_job(job_name, tasks, **spec)
        try:
            job.wait()
        except KeyboardInterrupt:
            job.cancel()
            raise
        return job.results()

    def job(self, job_name: str) -> ClientJob:
        """The job of this name.

        :param job_name: its name.
        :raises JobNotFoundError: if there is none.
        """
        self._jobs.get_job(job_name)
        return ClientJob(self, job_name)

    def jobs(self) -> list[ClientJob]:
        """All jobs, by name."""
        return [ClientJob(self, job.name) for job in self._jobs.list_jobs()]

    def ensure_manager(self) -> None:
        """Start a manager if none runs, and the client is to start one.

        :raises ManagerError: if it cannot be started.
        """
        self._jobs.ensure_manager()


def _start_manager(store: JobStore) -> None:
    warning = embedded_manager.start_if_none(store)
    if warning:
        log.warning("the embedded manager of %s: %s", store.base_path, warning)


class ClientJob:
    """A job: how it stands, its output, and what can be done with it. Each call reads the files anew.

    As a text it is the id of the job.
    """

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self._client = client
        self._jobs = client._jobs  # noqa: SLF001 - both are of this module
        self._after_attempt = -1

    def __repr__(self) -> str:
        return f"<job {self.name} in {self._jobs.where}>"

    def __str__(self) -> str:
        return self.info().id

    def info(self) -> Job:
        """The job's record: ``state``, ``reason``, ``error``, ``labels``, times, and so on.

        :raises JobNotFoundError: if it has been deleted.
        """
        return self._jobs.get_job(self.name)

    @property
    def state(self) -> JobState:
        """``waiting``, ``working``, ``completed`` or ``failed``."""
        return self.info().state

    def tasks(self) -> tuple[Task, ...]:
        """The tasks, in the order of the list, each with its ``status``, ``exit_code``, ``error``, and so on."""
        return self._jobs.get_tasks(self.name)

    def wait(self, timeout: float | None = None, *, poll_interval: float = 1.0) -> Job:
        """Wait until the job has ended. If no manager runs, a warning is logged, unless the client starts one.

        :param timeout: at most so many seconds; default: without limit.
        :param poll_interval: seconds between two looks; the first ones follow each other faster. Default 1.
        :return: its record: it has completed.
        :raises JobFailedError: if it failed, with the errors of its tasks and the last lines of their output.
        :raises JobTimeoutError: when the time is over; the job goes on.
        :raises JobNotFoundError: if it has been deleted.
        """
        self._warn_if_none_runs()
        job = wait_until_ended(
            self._jobs,
            self.name,
            timeout=timeout,
            poll_interval=poll_interval,
            after_attempt=self._after_attempt,
            on_problem=lambda problem: log.warning("job %s cannot be read now: %s", self.name, problem),
        )
        if job.state is JobState.FAILED:
            raise summary.error_of(self._jobs, job)
        return job

    def _warn_if_none_runs(self) -> None:
        if not self.info().state.is_terminal and self._jobs.manager() is None:
            log.warning("no manager is running; start it: air-executor manager --base-path %s", self._jobs.where)

    def logs(self) -> dict[str, str]:
        """What all tasks have printed so far, by their ids."""
        return {task.id: self.log(task.id) for task in self.tasks()}

    def log(self, task_id: str) -> str:
        """What a task has printed so far, in all its attempts; bytes that are not UTF-8 are replaced.

        :param task_id: its id.
        :raises JobNotFoundError: if the job has been deleted.
        """
        return self._jobs.log(self.name, task_id).read().text

    def results(self) -> dict[str, Any]:
        """What the tasks that have completed have written to ``$AIR_EXECUTOR_OUTPUT``, by their ids.

        :raises OutputError: if a result is not JSON, or is too long.
        """
        return self._jobs.results(self.name)

    def cancel(self, *task_ids: str) -> bool:
        """Ask the manager to cancel the job, or only some of its tasks.

        :param task_ids: only these are to end; the job goes on.
        :return: False if it had ended already.
        :raises InvalidJobError: if it has no such task.
        """
        return self._jobs.cancel(self.name, tasks=task_ids)

    def retry(self, *task_ids: str, all: bool = False) -> None:  # noqa: A002
        """Ask the manager to run failed tasks again, and those that depend on them. :meth:`wait` waits for that run.

        :param task_ids: only these run again, and those that failed because of them.
        :param all: all tasks run again, also of a job that has completed. Default: no.
        :raises JobStateError: if the job has not ended, or nothing of it failed.
        """
        before = self.info().attempt
        self._jobs.retry(self.name, task_ids, all=all)
        self._after_attempt = before
        self._client.ensure_manager()

    def delete(self) -> None:
        """Remove the job, which must have ended, with its logs.

        :raises JobStateError: if it has not ended.
        :raises NotRemovedError: if some of its files may not be removed; its name is free all the same.
        """
        self._jobs.delete(self.name)


#: The name of the class in the existing system.
AirExecutorClient = Client
