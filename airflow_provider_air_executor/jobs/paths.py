"""The names of all files and directories of a job, see :class:`JobPaths`."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from airflow_provider_air_executor.exceptions import InvalidJobError, JobNotFoundError
from airflow_provider_air_executor.jobs.models import check_stored_name

STATE = "state.json"
TASKS = "tasks.json"
LOGS, RUNS, WORK = "logs", "runs", "work"
_OWN = (STATE, TASKS, LOGS, RUNS, WORK)  # what makes up a job, besides files that begin with a dot

_ATTACHED = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
# The names in ``runs/``: that of the record of an attempt, and that of its handle beside it.
_RUN = re.compile(r"(.+)\.(\d{1,9})(?:\.on-([a-z][a-z0-9_]*))?", re.DOTALL | re.ASCII)


class JobPaths:
    """The paths of the files of one job. Making one touches no file.

    :param jobs_path: the directory of all jobs.
    :param name: of the job.
    :raises InvalidJobError: if no job can be called so.
    """

    def __init__(self, jobs_path: Path, name: str) -> None:
        self.name = check_stored_name(name)
        self.directory = jobs_path / name

    def not_found(self) -> JobNotFoundError:
        """The error that says that there is no such job."""
        return JobNotFoundError(self.name, self.directory.parent.parent)

    @functools.cached_property
    def state(self) -> Path:
        """The state of the job."""
        return self.directory / STATE

    @functools.cached_property
    def tasks(self) -> Path:
        """The list of its tasks."""
        return self.directory / TASKS

    @functools.cached_property
    def previous_tasks(self) -> Path:
        """The list that the manager has replaced last: another process may have been writing it."""
        return self.directory / f".{TASKS}.previous"

    @functools.cached_property
    def logs(self) -> Path:
        """The directory of the logs of its tasks."""
        return self.directory / LOGS

    @functools.cached_property
    def runs(self) -> Path:
        """The directory of the records of its attempts, and of what belongs to them."""
        return self.directory / RUNS

    @functools.cached_property
    def work(self) -> Path:
        """The directory in which its tasks run, unless they say otherwise."""
        return self.directory / WORK

    @property
    def directories(self) -> tuple[Path, Path, Path, Path]:
        """The directory of the job, and those in it that its tasks use."""
        return self.directory, self.logs, self.runs, self.work

    @functools.cached_property
    def waiter(self) -> Path:
        """The file that names the try of an Airflow task that waits for the job, if another try has submitted it."""
        return self.directory / ".waiter"

    def acknowledged(self, subscriber: str) -> Path:
        """The completion of the job that a subscriber has acknowledged last, see :mod:`.completions`."""
        return self.directory / f".seen-{subscriber}"

    def attached(self, file: str) -> Path:
        """A file that was attached to the job, see :mod:`.attachments`.

        :raises InvalidJobError: if no attached file can have the name, since it is not valid or belongs to the job.
        """
        if not _ATTACHED.fullmatch(file) or file in _OWN:
            raise InvalidJobError(f"attached: {file!r} cannot be the name of an attached file")
        return self.directory / file

    def log(self, task_id: str) -> Path:
        """The log of a task: what all its attempts printed, in order."""
        return self.logs / f"{task_id}.log"

    def log_times(self, task_id: str) -> Path:
        """When the log of a task has grown, see :mod:`.log_times`."""
        return self.logs / f"{task_id}.times"

    def record(self, task_id: str, attempt: int) -> Path:
        """The record of an attempt, see :mod:`.attempt_record`."""
        return self.runs / f"{task_id}.{attempt}"

    def handle(self, task_id: str, attempt: int, engine: str) -> Path:
        """The handle of an attempt: the input of its engine, and the name by which the engine knows the attempt."""
        return self.runs / f"{task_id}.{attempt}.on-{engine}"

    def output(self, task_id: str, attempt: int) -> Path:
        """The file to which an attempt may write its result, as JSON: its ``$AIR_EXECUTOR_OUTPUT``."""
        return self.runs / f"{task_id}.{attempt}.output"


@functools.lru_cache(maxsize=256)
def paths_of(jobs_path: Path, name: str) -> JobPaths:
    """The paths of a job. They are cached: joining paths takes longer than a ``stat``.

    :raises InvalidJobError: if no job can be called so.
    """
    return JobPaths(jobs_path, name)


def parse_run(name: str) -> tuple[str, int, str | None] | None:
    """The task, the number of the attempt, and the engine of a handle, by the name of a file in ``runs/``.

    :return: None for a file that is neither a record nor a handle; the engine is None for a record.
    """
    found = _RUN.fullmatch(name)
    if found is None or found[2] != str(int(found[2])):
        return None
    return found[1], int(found[2]), found[3]
