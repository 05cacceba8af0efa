"""JobStore: submits, reads, lists and deletes jobs; see :mod:`.paths` for the names of all files of a job.

After a job is published, only the manager writes its ``state.json`` and ``tasks.json``; everybody else asks through
a file in ``inbox/``, see :mod:`.inbox`. Layout::

    <base_path>/
      jobs/<job name>/        state.json  tasks.json  logs/<task id>.log  logs/<task id>.times  runs/  work/
      inbox/                  requests to the manager
      readers/                the subscribers of completions of jobs
      manager.lock  manager.pid  manager.log  manager.keep-alive  manager.info.json
      manager.leases/<term>
      manager.bell  jobs.bell
      manager.control.json  manager.control.lock  manager.problems.json  manager.not-replaced
      history.jsonl  history.jsonl.1
      config.yaml
      installation.lock       for a moment, by processes of Airflow
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Unpack

from pydantic import TypeAdapter, ValidationError

from airflow_provider_air_executor.exceptions import (
    CorruptFileError,
    InvalidJobError,
    JobExistsError,
    JobNotFoundError,
    JobStateError,
    NotRemovedError,
)
from airflow_provider_air_executor.jobs import bell, files, history, task_lists
from airflow_provider_air_executor.jobs.attempts import AttemptRecord, attempts_of
from airflow_provider_air_executor.jobs.freshness import Freshness
from airflow_provider_air_executor.jobs.models import (
    STORED_NAME,
    Job,
    SubmittedBy,
    Task,
    check_submitted_name,
    parse_tasks,
    utc_now,
)
from airflow_provider_air_executor.jobs.paths import LOGS, RUNS, STATE, TASKS, WORK, JobPaths, paths_of
from airflow_provider_air_executor.jobs.pieces import Pieces, finish
from airflow_provider_air_executor.jobs.spec import JobSpec, fields_of
from airflow_provider_air_executor.jobs.validation import describe_validation_error, validate

T = TypeVar("T")

DEFAULT_BASE_PATH = ".air-executor"

# External writers do not write atomically: how long a half-written file may stay one before it counts as corrupt.
_HALF_WRITTEN_SECONDS, _HALF_WRITTEN_PAUSE = 0.5, 0.02
_ABANDONED_BUILD_SECONDS = 3600
_LONGEST_STATE = 4_000_000  # bytes of a state.json; the manager reads it without doing something else in between

_JOB = TypeAdapter(Job)


class Pruned(NamedTuple):
    """The result of :meth:`JobStore.prune`."""

    removed: list[str]  # the names of jobs
    left: list[NotRemovedError]  # of which something is still there, also by an earlier call


class JobStore:
    """The job filesystem below one base path.

    Making one touches nothing; the directories come with the first job or manager.

    :param base_path: the directory that holds ``jobs/`` and ``inbox/``; ``~`` and ``$VARIABLE`` are expanded.
    """

    def __init__(self, base_path: Path | str) -> None:
        self.base_path = Path(os.path.abspath(files.expanded(base_path)))
        self.jobs_path = self.base_path / "jobs"
        self.inbox_path = self.base_path / "inbox"
        self.lock_path = self.base_path / "manager.lock"
        self.pid_path = self.base_path / "manager.pid"
        self.manager_log_path = self.base_path / "manager.log"
        self.keep_alive_path = self.base_path / "manager.keep-alive"
        self.not_replaced_path = self.base_path / "manager.not-replaced"
        self.problems_path = self.base_path / "manager.problems.json"
        self.config_path = self.base_path / "config.yaml"
        self.freshness = Freshness(self.jobs_path)

    def __repr__(self) -> str:
        return f"JobStore({str(self.base_path)!r})"

    # -- paths ---------------------------------------------------------------------------------------------

    def paths(self, name: str) -> JobPaths:
        """Where the files of a job are.

        :raises InvalidJobError: if no job can be called so.
        """
        return paths_of(self.jobs_path, name)

    def create_directories(self) -> None:
        """Make the directories that all jobs share, each of mode 0700, where they are missing."""
        self.base_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.jobs_path, self.inbox_path):
            files.make_directory(path, exist_ok=True)

    # -- submitting ----------------------------------------------------------------------------------------

    def submit(
        self,
        name: str,
        tasks: Iterable[Task | Mapping[str, Any] | str],
        *,
        submitted_by: SubmittedBy | None = None,
        attached: Mapping[str, bytes] | None = None,
        work_directory: bool = True,
        durable: bool = True,
        **spec: Unpack[JobSpec],
    ) -> Job:
        """Publish a job: it appears whole, durable, and exactly once, or not at all.

        :param name: 1 to 100 ASCII letters, digits, ``-`` or ``_``.
        :param tasks: the tasks, see :func:`~airflow_provider_air_executor.jobs.models.parse_tasks`.
        :param submitted_by: the Airflow task that submits it.
        :param attached: files for its tasks, by name, that are published with it in its directory, of mode 0600.
        :param work_directory: whether its tasks run in a directory of the job, ``work/``, which is removed with it;
            otherwise in the one in which the manager was started.
        :param durable: whether it must survive a power cut; False for a caller that submits it again after one.
        :param spec: the other fields of the job, see :class:`~.spec.JobSpec`.
        :raises InvalidJobError: naming the field; nothing was written.
        :raises JobExistsError: if the name is taken; nothing was changed.
        """
        check_submitted_name(name)
        for file in attached or ():
            self.paths(name).attached(file)
        now = utc_now()
        job: Job = validate(
            _JOB,
            {
                "id": f"{name}-{int(now.timestamp())}",
                "name": name,
                "created_at": now,
                "updated_at": now,
                **fields_of(spec),
                "work_directory": work_directory,
                "submitted_by": submitted_by,
            },
            "",
        )
        listed = tasks if isinstance(tasks, str | bytes | Mapping) else list(tasks)
        records = tuple(task.fresh(name, now) for task in parse_tasks(listed))
        self._publish_job(job, records, attached or {}, durable=durable)
        return job

    def _publish_job(self, job: Job, tasks: tuple[Task, ...], attached: Mapping[str, bytes], *, durable: bool) -> None:
        self.create_directories()
        path, state, listed = self.paths(job.name).directory, dump_job(job), dump_tasks(tasks)
        task_lists.check_lengths(tasks, listed)
        if len(state) > task_lists.LONGEST_NEW:
            raise InvalidJobError(f"job {job.name}: its labels, outlets and what else is said of it are too long")
        if files.stamp(path) is not None:
            raise self._exists(job)
        build = self.jobs_path / files.unique_name(".submit-")
        try:
            for directory in ("", LOGS, RUNS, *([WORK] if job.work_directory else [])):
                files.make_directory(build / directory)
            written = {**attached, TASKS: listed, STATE: state}
            for file, data in written.items():
                files.write_new(build / file, data)
            if durable:
                files.flush(*(build / file for file in written))
            files.publish_directory(build, path, durable=durable)
        except FileExistsError:
            _remove_tree(build)
            raise self._exists(job) from None
        except BaseException:
            _remove_tree(build)
            raise
        bell.ring(self.base_path, bell.MANAGER)

    def _exists(self, job: Job) -> JobExistsError:
        """The error that names the owner of the existing job of this name."""
        owned = ""
        with contextlib.suppress(JobNotFoundError, CorruptFileError):
            owner = self.get_job(job.name).submitted_by
            is_elsewhere = owner is not None and job.submitted_by is not None and owner.is_elsewhere(job.submitted_by)
            owned = f"{owner or ''}{' in another Airflow' if is_elsewhere else ''}"
        return JobExistsError(job.name, self.base_path, owned)

    # -- reading -------------------------------------------------------------------------------------------

    def job_names(self) -> list[str]:
        """The names of all jobs, sorted; directories that cannot be a job are left out."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.jobs_path) as entries:
            found = [entry for entry in entries if STORED_NAME.fullmatch(entry.name)]
            return sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
        return []

    def list_jobs(self) -> Iterator[Job]:
        """All jobs that can be read, by name. A directory without a readable ``state.json`` is left out."""
        for name in self.job_names():
            # A job of another user is skipped; other errors are those of the file system.
            with contextlib.suppress(JobNotFoundError, CorruptFileError, PermissionError):
                yield self.load_job(name)[0]

    def get_job(self, name: str) -> Job:
        """The job of this name. A half-written file is read again for half a second.

        :raises JobNotFoundError: if there is none.
        :raises CorruptFileError: if its ``state.json`` stays unreadable.
        """
        return _patiently(lambda: self.load_job(name))[0]

    def get_tasks(self, name: str) -> tuple[Task, ...]:
        """The tasks of a job, in the order of the list. A half-written file is read again for half a second.

        :raises JobNotFoundError: if there is no such job.
        :raises CorruptFileError: if its ``tasks.json`` stays unreadable.
        """
        return _patiently(lambda: self.load_tasks(name))[0]

    def get_attempts(self, name: str, tasks: Iterable[Task] | None = None) -> tuple[AttemptRecord, ...]:
        """The attempts of a job's tasks, task by task in the order of the list, the latest attempt of a task last.

        :param tasks: only these of its tasks, as they were read; default: all.
        :raises JobNotFoundError: if there is no such job.
        :raises CorruptFileError: if its ``tasks.json`` stays unreadable.
        """
        return tuple(attempts_of(self.get_tasks(name) if tasks is None else tuple(tasks), self.paths(name).runs))

    def load_job(self, name: str) -> tuple[Job, files.Stamp]:
        """Read ``state.json`` once; see :meth:`get_job`."""
        path = self.paths(name).state
        with self._reads(name, path):
            data, stamp = files.read(path, limit=_LONGEST_STATE)
        try:
            job: Job = _JOB.validate_json(data)
        except ValidationError as error:
            raise CorruptFileError(path, describe_validation_error(error, STATE)) from None
        return job, stamp

    def load_tasks(self, name: str) -> tuple[tuple[Task, ...], files.Stamp]:
        """Read ``tasks.json`` once; see :meth:`get_tasks`. The list is not checked as a whole."""
        tasks, stamp = finish(self.loading_task_list(name, self.paths(name).tasks))
        return tuple(tasks), stamp

    def loading_task_list(self, name: str, path: Path) -> Pieces[tuple[list[Task], files.Stamp]]:
        """Read a task list of a job, its ``tasks.json`` or another file, in pieces."""
        with self._reads(name, path):
            data, stamp = yield from files.reading(path)
        try:
            return (yield from task_lists.parsing(data)), stamp
        except InvalidJobError as error:
            raise CorruptFileError(path, str(error)) from None

    @contextlib.contextmanager
    def _reads(self, name: str, path: Path) -> Iterator[None]:
        """Say what is wrong with a file of a job that cannot be read."""
        try:
            if not files.is_real_directory(path.parent):
                raise self.paths(name).not_found()
            self.freshness.renew(path.parent)
            yield
        except FileNotFoundError:
            raise CorruptFileError(path, "it is missing") from None
        except OSError as error:
            if error.errno == files.TOO_LARGE:
                raise CorruptFileError(path, f"it is longer than {_LONGEST_STATE} bytes") from None
            if error.errno in files.NOT_A_FILE:
                raise CorruptFileError(path, os.strerror(error.errno)) from None
            raise  # the file system is at fault, not the file

    # -- removing ------------------------------------------------------------------------------------------

    def delete(self, name: str) -> None:
        """Remove a job that has ended, with its logs. A line of :mod:`.history` says that it was there.

        :raises JobNotFoundError: if there is no such job.
        :raises JobStateError: if it has not ended; cancel it first.
        :raises NotRemovedError: if some of its files may not be removed; its name is free then.
        """
        line = b""
        with contextlib.suppress(CorruptFileError):
            job = self.get_job(name)
            if not job.state.is_terminal:
                raise JobStateError(f"job {name!r} is {job.state}; cancel it before it is deleted")
            line = history.line_of(job, self.paths(name))
        directory, doomed = self.paths(name).directory, self.jobs_path / files.unique_name(f".deleted-{name}-")
        try:
            os.rename(directory, doomed)
        except FileNotFoundError:
            raise self.paths(name).not_found() from None
        except PermissionError as error:
            raise NotRemovedError(name, directory, f"{directory}: {error.strerror}") from None
        if line:
            with contextlib.suppress(OSError):  # a full disk needs the job to go
                history.append(self, line)
        why = _remove_tree(doomed)
        if why:
            raise NotRemovedError(name, doomed, why)

    def ended_before(self, age: timedelta) -> Iterator[Job]:
        """The jobs that ended longer ago than ``age``, by name."""
        before = utc_now() - age
        for job in self.list_jobs():
            ended = job.updated_at or job.created_at
            if job.state.is_terminal and ended is not None and ended < before:
                yield job

    def prune(self, older_than: timedelta) -> Pruned:
        """Remove the jobs that ended longer ago than ``older_than``, and what submits and deletions left behind."""
        return self.remove(job.name for job in self.ended_before(older_than))

    def remove(self, names: Iterable[str]) -> Pruned:
        """Remove jobs that have ended, one after the other, and what submits and deletions left behind.

        :raises JobStateError: if one has not ended; cancel it first.
        """
        pruned, left = [], {}
        for name in names:
            try:
                self.delete(name)
                pruned.append(name)
            except NotRemovedError as error:
                left[error.path] = error
            except JobNotFoundError:
                continue
        left.update((error.path, error) for error in self.remove_abandoned())
        return Pruned(pruned, list(left.values()))

    def remove_abandoned(self) -> list[NotRemovedError]:
        """Remove what deletions left behind, and interrupted submits over an hour ago.

        :return: an error for each that is still there.
        """
        oldest = time.time() - _ABANDONED_BUILD_SECONDS
        left = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.jobs_path) as entries:
            for entry in entries:
                kind, _, name = entry.name.partition("-")
                if kind == ".deleted" or (kind == ".submit" and entry.stat(follow_symlinks=False).st_mtime < oldest):
                    why = _remove_tree(entry.path)
                    if why:
                        left.append(NotRemovedError(name.rsplit("-", 3)[0], entry.path, why))
        return left


def dump_job(job: Job) -> bytes:
    """A job as the bytes of a ``state.json``."""
    return job.model_dump_json(indent=2).encode() + b"\n"


def dump_tasks(tasks: Iterable[Task]) -> bytes:
    """Tasks as the bytes of a ``tasks.json``."""
    return b"".join(task_lists.dumping(tasks))


def _remove_tree(path: Path | str) -> str:
    """Remove a directory and all that is in it, also if another process does so at the same time.

    :return: what could not be removed first, and why; empty if all is gone.
    """
    import shutil  # late, since it is slow to import and seldom needed

    failed: list[tuple[str, OSError]] = []

    def collect(_function: object, failed_path: str, error: tuple[Any, Any, Any]) -> None:
        if not isinstance(error[1], FileNotFoundError):
            failed.append((os.fspath(failed_path), error[1]))

    shutil.rmtree(path, onerror=collect)
    if any(error.errno == errno.EACCES for _, error in failed):
        failed.clear()
        _unlock(path)
        shutil.rmtree(path, onerror=collect)
    return f"{failed[0][0]}: {failed[0][1].strerror}" if failed else ""


def _unlock(path: Path | str) -> None:
    """Give the directories below a path the modes back that their owner needs to remove what is in them."""
    files.put_modes_back(Path(path))
    for directory, names, _ in os.walk(path):
        files.put_modes_back(*(Path(directory, name) for name in names))


def _patiently(load: Callable[[], T]) -> T:
    """Call ``load`` again for a while if a file is corrupt, since it may be half-written, or cannot be read now."""
    deadline = time.monotonic() + _HALF_WRITTEN_SECONDS
    while True:
        try:
            return load()
        except (CorruptFileError, OSError):
            if time.monotonic() >= deadline:
                raise
        time.sleep(_HALF_WRITTEN_PAUSE)
