"""JobStore: every read and every write of the job filesystem; see :mod:`.paths` for the names of all files.

After a job is published, only the manager writes its ``state.json`` and ``tasks.json``; everybody else asks,
through a file in ``inbox/``. Layout::

    <base_path>/
      jobs/<job name>/        state.json  tasks.json  logs/<task id>.log  runs/  work/
      inbox/                  requests to the manager
      manager.lock  manager.pid  manager.log  manager.keep-alive  manager.problems.json  manager.not-replaced
      config.yaml
      installation.lock       for a moment, by processes of Airflow
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
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
    OutputError,
)
from airflow_provider_air_executor.jobs import files, task_lists
from airflow_provider_air_executor.jobs.attempts import AttemptRecord, attempts_of
from airflow_provider_air_executor.jobs.models import (
    Job,
    Record,
    SubmittedBy,
    Task,
    TaskStatus,
    Timestamp,
    check_stored_name,
    check_submitted_name,
    check_task_id,
    describe_validation_error,
    parse_tasks,
    utc_now,
    validate,
)
from airflow_provider_air_executor.jobs.outputs import why_unfit
from airflow_provider_air_executor.jobs.paths import LOGS, OWN, RUNS, STATE, TASKS, WORK, JobPaths, paths_of
from airflow_provider_air_executor.jobs.pieces import Pieces, finish
from airflow_provider_air_executor.jobs.spec import JobSpec, fields_of

T = TypeVar("T")

DEFAULT_BASE_PATH = ".air-executor"
MAX_OUTPUT_BYTES = 1_000_000  # of what one task may hand over as its result
MAX_OUTPUTS_BYTES = 5_000_000  # of what all tasks of a job may, together

# A foreign writer does not write atomically: how long half a file may stay one before it counts as corrupt.
_HALF_WRITTEN_SECONDS = 0.5
_ABANDONED_BUILD_SECONDS = 3600
_LONGEST_STATE = 4_000_000  # bytes of a state.json; the manager reads it without doing something else in between
_LONGEST_NEW = 1_000_000  # bytes of a task, or a state.json; they get longer when they have failed
_ATTACHED = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")

_JOB = TypeAdapter(Job)


class Action(enum.StrEnum):
    """What can be asked of the manager."""

    CANCEL = "cancel"  # kill what runs, start nothing more
    RETRY = "retry"  # run again what failed
    ADD_TASKS = "add_tasks"  # append tasks to the list


class Request(Record):
    """A file in the inbox: what somebody asks of the manager about one job.

    :param owner: who asks, if it is to be done only while the job is his; by the time it is done, another job may have
        taken its name.
    """

    request: Action
    job: str
    created_at: Timestamp | None = None
    owner: SubmittedBy | None = None
    tasks: Sequence[Task] = ()


class LogChunk(NamedTuple):
    """A piece of a task's log."""

    data: bytes
    next_offset: int  # where to go on reading, in bytes

    @property
    def text(self) -> str:
        """The piece as text; bytes that are not UTF-8 are shown as a replacement character."""
        return self.data.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The lines of the piece, as :func:`split_lines` has them, as text."""
        return [line.decode(errors="replace") for line in split_lines(self.data)]


class Pruned(NamedTuple):
    """What :meth:`JobStore.prune` has done."""

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

    def __repr__(self) -> str:
        return f"JobStore({str(self.base_path)!r})"

    # -- paths ---------------------------------------------------------------------------------------------

    def paths(self, name: str) -> JobPaths:
        """Where the files of a job are.

        :raises InvalidJobError: if no job can be called so.
        """
        return paths_of(self.jobs_path, name)

    def reader_path(self, reader: str) -> Path:
        """The file that a reader of :class:`~.ends.JobEnds` holds; it is as old as the reader."""
        return self.base_path / "readers" / reader

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
        :param durable: whether it must survive a power cut; False for who would submit it again after one.
        :param spec: what else is said of it, see :class:`~.spec.JobSpec`.
        :raises InvalidJobError: naming the field; nothing was written.
        :raises JobExistsError: if the name is taken; nothing was changed.
        """
        check_submitted_name(name)
        for file in attached or ():
            _check_attached(file)
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
        _check_lengths(tasks, listed)
        if len(state) > _LONGEST_NEW:
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

    def attached_path(self, name: str, file: str) -> Path:
        """Where a file is that was attached to a job."""
        return self.paths(name).directory / _check_attached(file)

    def replace_attached(self, name: str, file: str, data: bytes) -> bool:
        """Put new content in place of an attached file, if it is still there.

        :return: False if it has been removed; nothing was written then.
        """
        path = self.attached_path(name, file)
        try:
            return files.replace(path, data)
        except FileNotFoundError:
            return False

    def append_attached(self, name: str, file: str, line: bytes) -> None:
        """Append a line to an attached file, which need not be there; others may do so at the same time.

        :raises JobNotFoundError: if there is no such job.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self.attached_path(name, file), flags, 0o600)
        except FileNotFoundError:
            raise JobNotFoundError(name, self.base_path) from None
        try:
            files.give(descriptor, self.paths(name).directory)
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def attach(self, name: str, file: str, data: bytes) -> None:
        """Give a job an attached file, or put new content in its place.

        :raises JobNotFoundError: if there is no such job.
        """
        try:
            files.publish(self.attached_path(name, file), data)
        except FileNotFoundError:
            raise JobNotFoundError(name, self.base_path) from None

    def remove_attached(self, name: str, file: str) -> None:
        """Remove an attached file, if it is there."""
        files.remove(self.attached_path(name, file))

    def _exists(self, job: Job) -> JobExistsError:
        """The error that says who has the name of this job already."""
        owned = ""
        with contextlib.suppress(JobNotFoundError, CorruptFileError):
            owner = self.get_job(job.name).submitted_by
            is_elsewhere = owner is not None and job.submitted_by is not None and owner.is_elsewhere(job.submitted_by)
            owned = f"{owner or ''}{' in another Airflow' if is_elsewhere else ''}"
        return JobExistsError(job.name, self.base_path, owned)

    # -- reading -------------------------------------------------------------------------------------------

    def job_names(self) -> list[str]:
        """The names of all jobs, sorted; directories that cannot be a job are left out."""
        try:
            with os.scandir(self.jobs_path) as entries:
                return sorted(
                    entry.name for entry in entries if _is_job_name(entry.name) and entry.is_dir(follow_symlinks=False)
                )
        except FileNotFoundError:
            return []

    def list_jobs(self) -> Iterator[Job]:
        """All jobs that can be read, by name. A directory without a readable ``state.json`` is passed over."""
        for name in self.job_names():
            # One that another user has made concerns nobody else; other errors are those of the file system.
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
        """What is known of the attempts of a job's tasks, task by task in the order of the list, the latest one last.

        :param tasks: those of its tasks that are meant, as they were read; default: all.
        :raises JobNotFoundError: if there is no such job.
        :raises CorruptFileError: if its ``tasks.json`` stays unreadable.
        """
        return tuple(attempts_of(self.get_tasks(name) if tasks is None else tuple(tasks), self.paths(name).runs))

    def load_job(self, name: str) -> tuple[Job, files.Stamp]:
        """Read ``state.json`` once; see :meth:`get_job`."""
        path = self.paths(name).state
        with self._reads(name, path):
            data, version = files.read(path, limit=_LONGEST_STATE)
        try:
            job: Job = _JOB.validate_json(data)
        except ValidationError as error:
            raise CorruptFileError(path, describe_validation_error(error, STATE)) from None
        return job, version

    def load_tasks(self, name: str) -> tuple[tuple[Task, ...], files.Stamp]:
        """Read ``tasks.json`` once; see :meth:`get_tasks`. The list is not checked as a whole."""
        return self.load_task_list(name, self.paths(name).tasks)

    def load_task_list(self, name: str, path: Path) -> tuple[tuple[Task, ...], files.Stamp]:
        """Read a task list of a job from another file than its ``tasks.json``."""
        tasks, version = finish(self.loading_task_list(name, path))
        return tuple(tasks), version

    def loading_task_list(self, name: str, path: Path) -> Pieces[tuple[list[Task], files.Stamp]]:
        """The same in pieces."""
        with self._reads(name, path):
            data, version = yield from files.reading(path)
        try:
            return (yield from task_lists.parsing(data)), version
        except InvalidJobError as error:
            raise CorruptFileError(path, str(error)) from None

    @contextlib.contextmanager
    def _reads(self, name: str, path: Path) -> Iterator[None]:
        """Say what is wrong with a file of a job that cannot be read."""
        try:
            if not files.is_real_directory(path.parent):
                raise JobNotFoundError(name, self.base_path)
            yield
        except FileNotFoundError:
            raise CorruptFileError(path, "it is missing") from None
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise CorruptFileError(path, f"it is longer than {_LONGEST_STATE} bytes") from None
            if error.errno in files.NOT_A_FILE:
                raise CorruptFileError(path, os.strerror(error.errno)) from None
            raise  # the file system is at fault, not the file

    def read_log(self, name: str, task_id: str, offset: int = 0, limit: int | None = None) -> LogChunk:
        """What a task has printed so far, from ``offset`` on.

        :param offset: where to start, in bytes; negative: that many bytes before the end.
        :param limit: at most so many bytes; default: all there is.
        :raises JobNotFoundError: if there is no such job.
        :raises InvalidJobError: if no task can be called so.
        """
        paths = self.paths(name)
        if not files.is_real_directory(paths.directory):
            raise JobNotFoundError(name, self.base_path)
        check_task_id(task_id)
        if not files.is_real_directory(paths.logs):
            return LogChunk(b"", max(offset, 0))
        try:
            file = files.open_file(paths.log(task_id))
        except FileNotFoundError:
            return LogChunk(b"", max(offset, 0))
        with file:
            if offset < 0:
                offset = max(0, os.fstat(file.fileno()).st_size + offset)
            file.seek(offset)
            data = file.readall() if limit is None else file.read(limit)
        return LogChunk(data or b"", offset + len(data or b""))

    def log_size(self, name: str, task_id: str) -> int:
        """How many bytes a task has printed so far."""
        stamp = files.stamp(self.paths(name).log(check_task_id(task_id)))
        return stamp.size if stamp is not None else 0

    def tail(self, name: str, task_id: str, lines: int = 20) -> str:
        """The last lines of a task's log, of at most 64 KiB, as text."""
        chunk = self.read_log(name, task_id, offset=-65536)
        return "\n".join(chunk.lines[-lines:])

    def get_outputs(
        self, name: str, *, limit: int = MAX_OUTPUT_BYTES, reserved: Iterable[frozenset[str]] = ()
    ) -> dict[str, Any]:
        """What the tasks of a job that have completed have written to ``$AIR_EXECUTOR_OUTPUT``, by their ids.

        :param limit: bytes that one of them may have written; all together may have five times as many.
        :param reserved: keys that mean something to who keeps the results: no object in them may have all of one of
            these sets; see :func:`~airflow_provider_air_executor.jobs.outputs.why_unfit` for what is refused besides.
        :raises JobNotFoundError: if there is no such job.
        :raises OutputError: if what one of them has written is not JSON, or longer, or cannot be kept.
        """
        reserved = tuple(reserved)
        outputs, left = {}, limit * MAX_OUTPUTS_BYTES // MAX_OUTPUT_BYTES
        for task in self.get_tasks(name):
            if task.status is TaskStatus.COMPLETED:
                with contextlib.suppress(FileNotFoundError):
                    outputs[task.id], size = self._read_output(name, task, limit, reserved)
                    left -= size
                if left < 0:
                    raise OutputError(
                        name, task.id, "those of all tasks are too long together; write what is long to files"
                    )
        return outputs

    def _read_output(self, name: str, task: Task, limit: int, reserved: Iterable[frozenset[str]]) -> tuple[Any, int]:
        path = self.paths(name).output(check_task_id(task.id), task.attempt)
        try:
            if not files.is_real_directory(path.parent):
                raise FileNotFoundError(path)
            with io.BufferedReader(files.open_file(path)) as file:
                data = file.read(limit + 1)
        except OSError as error:
            if error.errno in files.NOT_A_FILE:
                raise OutputError(name, task.id, f"{path} is not a regular file") from None
            raise
        if len(data) > limit:
            raise OutputError(name, task.id, f"{path} is longer than {limit} bytes; write what is long to a file")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise OutputError(name, task.id, f"{path} is not JSON that can be read: {error}") from None
        why = why_unfit({task.id: value}, reserved)
        if why is not None:
            raise OutputError(name, task.id, f"{path} cannot be kept: {why}")
        return value, len(data)

    # -- asking the manager --------------------------------------------------------------------------------

    def cancel(self, name: str, owner: SubmittedBy | None = None) -> bool:
        """Ask for a job to be cancelled: what runs is killed, nothing more is started.

        What is asked is not lost if no manager runs: the next one does it.

        :param owner: the try of an Airflow task that asks, if the job is to be cancelled only as long as it belongs to
            this run of the task, and no later try waits for it; default: in any case.
        :return: False if the job had ended already, or is somebody else's, and nothing was asked.
        :raises JobNotFoundError: if there is no such job.
        """
        job = self.get_job(name)
        if job.state.is_terminal or not self.may_cancel(job, owner):
            return False
        self._ask(Request(request=Action.CANCEL, job=name, owner=owner))
        return True

    def may_cancel(self, job: Job, owner: SubmittedBy | None) -> bool:
        """Whether the job is still that of this try of an Airflow task; see :meth:`cancel`.

        :raises OSError: if that cannot be seen now.
        """
        if owner is None or not job.belongs_to(owner):
            return owner is None
        try:
            waiter = SubmittedBy.model_validate_json(files.read(self.paths(job.name).waiter)[0])
        except (OSError, ValidationError) as error:
            if isinstance(error, OSError) and error.errno not in files.ABSENT:
                raise  # there may be one
            waiter = job.submitted_by or owner
        return (waiter.try_number or 0) <= (owner.try_number or 0)

    def take_up(self, name: str, owner: SubmittedBy) -> None:
        """Say that this try of an Airflow task waits for the job from now on: an earlier one must not cancel it.

        :raises JobNotFoundError: if there is no such job.
        """
        try:
            files.publish(self.paths(name).waiter, owner.model_dump_json().encode())
        except FileNotFoundError:
            raise JobNotFoundError(name, self.base_path) from None

    def retry(self, name: str) -> None:
        """Ask for a failed job to go on: failed tasks, and what depends on them, run again; the rest is kept.

        :raises JobNotFoundError: if there is no such job.
        :raises JobStateError: if the job has not failed.
        """
        job = self.get_job(name)
        if job.state != "failed":
            raise JobStateError(f"job {name!r} is {job.state}; only a failed job can be retried")
        self._ask(Request(request=Action.RETRY, job=name))

    def add_tasks(self, name: str, tasks: Iterable[Task | Mapping[str, Any] | str]) -> tuple[str, ...]:
        """Ask for tasks to be appended to a job that has not ended.

        They may depend on tasks of the job, ended or not, and on each other. Ids that are missing are filled in.

        :return: the ids of the new tasks.
        :raises JobNotFoundError: if there is no such job.
        :raises JobStateError: if the job has ended.
        :raises InvalidJobError: naming the field; nothing was asked.
        """
        job = self.get_job(name)
        if job.state.is_terminal:
            raise JobStateError(f"job {name!r} is {job.state}; tasks can be added only before it ends")
        # The requests first: one that is gone when we look is in the list.
        asked = [task for request in self._pending_requests(name) for task in request.tasks]
        present = self.get_tasks(name)
        known = {task.id for task in present}
        present += tuple(task for task in asked if task.id not in known)
        now = utc_now()
        listed = tasks if isinstance(tasks, str | bytes | Mapping) else list(tasks)
        added = [task.fresh(name, now) for task in parse_tasks(listed, present=present)]
        given = {task.id for task in listed if isinstance(task, Task)} | {
            task.get("id") for task in listed if isinstance(task, Mapping)
        }
        # Somebody else may be adding tasks at the same time, who would count on from the same number.
        token = os.urandom(3).hex()
        renamed = {task.id: f"{task.id}-{token}" for task in added if task.id not in given}
        added = [
            task.evolve(
                id=renamed.get(task.id, task.id),
                dependencies=tuple(renamed.get(dependency, dependency) for dependency in task.dependencies),
            )
            for task in added
        ]
        self._ask(Request(request=Action.ADD_TASKS, job=name, tasks=tuple(added)))
        return tuple(task.id for task in added)

    def _pending_requests(self, name: str) -> Iterator[Request]:
        """What has been asked about a job, and not been done yet."""
        for path in self.requests():
            with contextlib.suppress(CorruptFileError, FileNotFoundError):
                request = self.load_request(path)
                if request.job == name:
                    yield request

    def _ask(self, request: Request) -> None:
        self.create_directories()
        path = self.inbox_path / f"{time.time_ns():020d}-{files.unique_name('')}.json"
        data = request.evolve(created_at=utc_now()).model_dump_json(exclude_none=True).encode() + b"\n"
        _check_lengths(request.tasks, data)
        files.publish(path, data, durable=True)

    def keep_alive(self) -> None:
        """Tell the manager that somebody will need it: it does not end for lack of work before its idle timeout."""
        self.create_directories()
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self.keep_alive_path, flags, 0o600)
        try:
            files.give(descriptor, self.base_path)
            os.utime(descriptor)
        finally:
            os.close(descriptor)

    # -- removing ------------------------------------------------------------------------------------------

    def delete(self, name: str) -> None:
        """Remove a job that has ended, with its logs.

        :raises JobNotFoundError: if there is no such job.
        :raises JobStateError: if it has not ended; cancel it first.
        :raises NotRemovedError: if some of its files may not be removed; its name is free then.
        """
        with contextlib.suppress(CorruptFileError):
            job = self.get_job(name)
            if not job.state.is_terminal:
                raise JobStateError(f"job {name!r} is {job.state}; cancel it before it is deleted")
        directory, doomed = self.paths(name).directory, self.jobs_path / files.unique_name(f".deleted-{name}-")
        try:
            os.rename(directory, doomed)
        except FileNotFoundError:
            raise JobNotFoundError(name, self.base_path) from None
        except PermissionError as error:
            raise NotRemovedError(name, directory, f"{directory}: {error.strerror}") from None
        why = _remove_tree(doomed)
        if why:
            raise NotRemovedError(name, doomed, why)

    def prune(self, older_than: timedelta, *, now: datetime | None = None) -> Pruned:
        """Remove the jobs that ended longer ago than ``older_than``, and what submits and deletions left behind."""
        before = (now or utc_now()) - older_than
        pruned, left = [], {}
        for job in self.list_jobs():
            ended = job.updated_at or job.created_at
            if job.state.is_terminal and ended is not None and ended < before:
                try:
                    self.delete(job.name)
                    pruned.append(job.name)
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

    # -- the manager's side --------------------------------------------------------------------------------

    def requests(self) -> list[Path]:
        """The requests in the inbox, oldest first."""
        try:
            names = [name for name in os.listdir(self.inbox_path) if name.endswith(".json") and name[0] != "."]
        except FileNotFoundError:
            return []
        return [self.inbox_path / name for name in sorted(names)]

    def load_request(self, path: Path) -> Request:
        """Read a request.

        :raises CorruptFileError: if it is not valid.
        """
        return finish(self.loading_request(path))

    def loading_request(self, path: Path) -> Pieces[Request]:
        """The same in pieces."""
        try:
            data, _ = yield from files.reading(path)
            if task_lists.is_short(data):
                return Request.model_validate_json(data[0])
            given = yield from task_lists.parsing_object(data)
            tasks = given.pop("tasks", ())
            return Request.model_validate(given).evolve(tasks=tasks)
        except ValidationError as error:
            raise CorruptFileError(path, describe_validation_error(error, "request")) from None
        except InvalidJobError as error:
            raise CorruptFileError(path, f"request: {error}") from None
        except OSError as error:
            if error.errno in files.NOT_A_FILE:
                raise CorruptFileError(path, os.strerror(error.errno)) from None
            raise

    def manager_is_running(self) -> bool:
        """Whether a manager holds this base path.

        :raises NoLocksError: if that cannot be told, since its file system has no locks.
        """
        try:
            descriptor = os.open(self.lock_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # A manager that starts at this moment tries again for longer than this lock is held.
            return not files.lock(descriptor, self.lock_path, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def check_locks(self) -> None:
        """Make sure that a manager could hold this base path, before something is submitted there.

        :raises NoLocksError: if the file system has no locks.
        """
        self.create_directories()
        if self.lock_path.exists():
            self.manager_is_running()
            return
        path = self.base_path / files.unique_name(".lock-")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            files.lock(descriptor, self.lock_path)
        finally:
            os.close(descriptor)
            files.remove(path)

    def problems(self) -> dict[str, str]:
        """What the manager cannot do at the moment, by the names of the jobs that are concerned: a sentence each."""
        try:
            found = json.loads(files.read(self.problems_path)[0])
            return {str(name): f"{told['problem']} (since {told['since']})" for name, told in found.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}

    def say_not_replaced(self, why: str) -> None:
        """Leave word for who looks that the manager which runs was to be replaced, and was not.

        :param why: a sentence; the next manager removes it.
        """
        files.publish(self.not_replaced_path, why.encode())

    def why_not_replaced(self) -> str:
        """Why the manager that runs is an old one; empty if it is not."""
        try:
            return files.read(self.not_replaced_path)[0].decode(errors="replace")
        except OSError:
            return ""

    def manager_pid(self) -> int | None:
        """The process id of the manager that holds this base path, if one does and it can be told."""
        if not self.manager_is_running():
            return None
        try:
            return int(files.read(self.pid_path)[0])
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in files.ABSENT:
                raise
            return None


def split_lines(data: bytes) -> list[bytes]:
    """The lines of what a task has printed.

    A newline ends a line, and nothing else does. Of a line that carriage returns write over, as progress bars do, only
    the last state counts.
    """
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]


def dump_job(job: Job) -> bytes:
    """A job as the bytes of a ``state.json``."""
    return job.model_dump_json(indent=2).encode() + b"\n"


def dump_tasks(tasks: Iterable[Task]) -> bytes:
    """Tasks as the bytes of a ``tasks.json``."""
    return b"".join(task_lists.dumping(tasks))


def _check_lengths(tasks: Sequence[Task], written: bytes) -> None:
    """Refuse a task that no reader would take.

    :param written: all of them together.
    """
    if len(written) <= _LONGEST_NEW:
        return
    for index, task in enumerate(tasks):
        if len(dump_tasks([task])) > _LONGEST_NEW:
            raise InvalidJobError(
                f"tasks[{index}]: it is longer than {_LONGEST_NEW} bytes; write what is long to a file"
            )


def _remove_tree(path: Path | str) -> str:
    """Remove a directory and all that is in it, also if somebody else does so at the same time.

    :return: what could not be removed first, and why; empty if all is gone.
    """
    import shutil  # late, since it is slow to import and seldom needed

    failed: list[tuple[str, OSError]] = []

    def note(_function: object, place: str, error: tuple[Any, Any, Any]) -> None:
        if not isinstance(error[1], FileNotFoundError):
            failed.append((os.fspath(place), error[1]))

    shutil.rmtree(path, onerror=note)
    if any(error.errno == errno.EACCES for _, error in failed):
        failed.clear()
        _unlock(path)
        shutil.rmtree(path, onerror=note)
    return f"{failed[0][0]}: {failed[0][1].strerror}" if failed else ""


def _unlock(path: Path | str) -> None:
    """Give the directories below a path the modes back that their owner needs to remove what is in them."""
    files.put_modes_back(Path(path))
    for directory, names, _ in os.walk(path):
        files.put_modes_back(*(Path(directory, name) for name in names))


def _check_attached(file: str) -> str:
    if not _ATTACHED.fullmatch(file) or file in OWN:
        raise InvalidJobError(f"attached: {file!r} cannot be the name of an attached file")
    return file


def _is_job_name(name: str) -> bool:
    try:
        check_stored_name(name)
    except InvalidJobError:
        return False
    return True


def _patiently(load: Callable[[], T]) -> T:
    """Call ``load`` again for a while if a file is corrupt, since it may be half-written, or cannot be read now."""
    try:
        return load()
    except (CorruptFileError, OSError):
        # Imported here, since in nearly every case the first attempt succeeds.
        from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

        retrying = Retrying(
            retry=retry_if_exception_type((CorruptFileError, OSError)),
            stop=stop_after_delay(_HALF_WRITTEN_SECONDS),
            wait=wait_fixed(0.02),
            reraise=True,
        )
        return retrying(load)
