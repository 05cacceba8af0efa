"""FileJobs: the job filesystem in a directory of this machine, as :class:`~.interface.Jobs`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from airflow_provider_air_executor.exceptions import AirExecutorError, BasePathError, InvalidJobError
from airflow_provider_air_executor.jobs import (
    attachments,
    files,
    history,
    inbox,
    log_search,
    log_times,
    manager_control,
    manager_info,
    manager_status,
    masking,
    outputs,
    summary,
)
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.index import JobIndex, OutcomeCounts
from airflow_provider_air_executor.jobs.interface import STATE, TASKS, JobFilter, LinePosition, NewLines, Reached, Tasks
from airflow_provider_air_executor.jobs.logs import LogChunk, TaskLog
from airflow_provider_air_executor.jobs.manager_control import Control
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, SubmittedBy, Task
from airflow_provider_air_executor.jobs.new_lines import new_lines
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.jobs.spec import JobSpec
from airflow_provider_air_executor.jobs.store import JobStore

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.completions import JobCompletions
    from airflow_provider_air_executor.jobs.watch import Waiter

log = logging.getLogger(__name__)

_WORD = re.compile(r"[A-Za-z0-9]{1,64}")

_indexes: dict[str, JobIndex] = {}  # that this process keeps, by the base path
_indexes_guard = threading.Lock()


class FileJobs:
    """The jobs of one base path.

    :param start_manager: starts the manager, unless one runs; default: nobody does so from here, it is a service.
    :param whose: whose base path it is, for the error that it cannot be made.
    """

    def __init__(
        self, store: JobStore, *, start_manager: Callable[[], None] | None = None, whose: str = "this program"
    ) -> None:
        self.store = store
        self._start_manager = start_manager
        self._whose = whose

    def __repr__(self) -> str:
        return f"FileJobs({self.where!r})"

    @property
    def where(self) -> str:
        """The base path."""
        return str(self.store.base_path)

    def with_patience(self, patience: float | None) -> FileJobs:
        """The same jobs: nothing is away here."""
        return self

    # -- submitting and changing -------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the directories where they are missing, and look whether an embedded manager can run there."""
        try:
            self.store.create_directories()
        except OSError as error:
            raise BasePathError(self.store.base_path, self._whose, str(error)) from None
        if self._start_manager is not None:
            manager_status.check_locks(self.store)

    def submit(
        self,
        name: str,
        tasks: Tasks,
        *,
        submitted_by: SubmittedBy | None = None,
        secrets: Collection[str] = (),
        **spec: Unpack[JobSpec],
    ) -> Job:
        """Publish a job."""
        attached = {masking.FILE: masking.dump(secrets)} if secrets else None
        return self.store.submit(name, tasks, submitted_by=submitted_by, attached=attached, **spec)

    def cancel(
        self, name: str, owner: SubmittedBy | None = None, tasks: Iterable[str] = (), *, again: bool | None = None
    ) -> bool:
        """Request that a job, or some of its tasks, are cancelled."""
        return inbox.cancel(self.store, name, owner, tasks, again=again)

    def retry(self, name: str, tasks: Iterable[str] = (), *, all: bool = False) -> None:  # noqa: A002
        """Request a retry."""
        inbox.retry(self.store, name, tasks, all=all)

    def add_tasks(self, name: str, tasks: Tasks, *, secrets: Collection[str] = ()) -> tuple[str, ...]:
        """Ask for tasks to be appended."""
        if secrets:  # before they can be seen
            attachments.append(self.store.paths(name), masking.FILE, masking.dump(secrets))
        return inbox.add_tasks(self.store, name, tasks)

    def reattach(self, name: str, owner: SubmittedBy) -> None:
        """Record that this try of an Airflow task waits for the job from now on."""
        inbox.reattach(self.store.paths(name), owner)

    def delete(self, name: str) -> None:
        """Remove a job that has ended."""
        self.store.delete(name)

    def may_change(self, job: Job) -> bool:
        """One learns by trying whether a job may be changed."""
        return True

    # -- reading -----------------------------------------------------------------------------------------------

    def get_job(self, name: str) -> Job:
        """The job of this name."""
        return self.store.get_job(name)

    def get_tasks(self, name: str, only: Collection[str] = (), *, at_once: bool = False) -> tuple[Task, ...]:
        """The tasks of a job, in the order of the list."""
        tasks = self.store.load_tasks(name)[0] if at_once else self.store.get_tasks(name)
        return tuple(task for task in tasks if task.id in only) if only else tasks

    def outcomes(self, name: str) -> OutcomeCounts:
        """How many tasks of a job stand how."""
        return self.index().outcomes(name)

    def get_attempts(self, name: str, tasks: Iterable[Task] | None = None) -> tuple[AttemptRecord, ...]:
        """The attempts of a job's tasks."""
        return self.store.get_attempts(name, tasks)

    def list_jobs(self) -> Iterator[Job]:
        """All jobs that can be read, by name."""
        return self.store.list_jobs()

    def index(self, *, ahead: bool = False) -> JobIndex:
        """All jobs at a glance."""
        with _indexes_guard:
            index = _indexes.setdefault(self.where, JobIndex(self.store))
        if ahead:
            index.keep_ahead()
        return index

    def mask(self, name: str) -> Mask:
        """What replaces the secrets of a job's records."""
        return masking.load(self.store.paths(name))

    def log(self, name: str, task_id: str) -> FileLog:
        """The log of a task."""
        return FileLog(self.store.paths(name), task_id)

    def log_location(self, name: str) -> str:
        """The directory of the logs of a job."""
        return str(self.store.paths(name).logs)

    def new_lines(
        self, name: str, positions: Mapping[str, LinePosition], *, is_over: bool = False
    ) -> dict[str, NewLines]:
        """What the tasks have printed since some positions."""
        return new_lines(self.store.paths(name), positions, is_over=is_over)

    def load_positions(self, name: str, reader: str) -> dict[str, int]:
        """The position of a reader in the logs of a job."""
        path = _positions(self.store.paths(name), reader)
        try:
            found = json.loads(files.read(path)[0])
            return {str(key): int(value) for key, value in found.items()}
        except (ValueError, AttributeError, TypeError, RecursionError):
            return {}
        except OSError as error:
            if error.errno not in files.ABSENT:
                raise
            return {}

    def save_positions(self, name: str, reader: str, offsets: Mapping[str, int]) -> None:
        """Persist the position of a reader: ``logs/.<reader>.offsets``."""
        path = _positions(self.store.paths(name), reader)
        with contextlib.suppress(FileNotFoundError):
            files.publish(path, json.dumps(dict(offsets)).encode())

    def results(self, name: str, reserved: Sequence[frozenset[str]] = (), *, masked: bool = False) -> dict[str, Any]:
        """What the completed tasks of a job have handed over, by their ids."""
        paths = self.store.paths(name)
        found = outputs.read_outputs(paths, self.store.get_tasks(name), reserved)
        return masking.masked(found, masking.load(paths)) if masked else found

    def shown_results(
        self, name: str, tasks: Collection[str] = (), *, limit: int, offset: int = 0
    ) -> outputs.ShownResults:
        """The results of the completed tasks of a job for people, without secrets."""
        found = self.store.get_tasks(name)
        return outputs.shown_results(
            self.store.paths(name), found, self.mask(name), only=tasks, limit=limit, offset=offset
        )

    def past_jobs(self) -> Iterator[history.PastJob]:
        """The jobs that were removed."""
        return history.read(self.store)

    def durations(self, series: str) -> list[history.Run]:
        """The runs of a series that have ended."""
        return history.durations(self.store, self.index(), series)

    # -- the manager -------------------------------------------------------------------------------------------

    def manager(self) -> ManagerInfo | None:
        """The manager that runs the jobs; None if there is none."""
        return manager_info.load(self.store)

    def ensure_manager(self) -> None:
        """Start the manager if it is embedded and none runs."""
        if self._start_manager is not None:
            self._start_manager()

    def trouble(self, name: str) -> str:
        """What is said beside the progress of a job that does not progress."""
        return summary.trouble(self.store, name, embedded=self._start_manager is not None)

    def held_up(self, jobs: Iterable[Job]) -> dict[str, str]:
        """Why some jobs do not progress, by their names."""
        unfinished = [job for job in jobs if not job.state.is_terminal]
        return summary.why_each_blocked(self.store, unfinished, self.index().jobs()) if unfinished else {}

    def control(self) -> Control:
        """What the manager is to do."""
        return manager_control.load(self.store)

    def set_paused(self, paused: bool) -> None:
        """Let the manager start no more tasks, or start them again."""
        manager_control.set_paused(self.store, paused)

    def set_slots(self, slots: int | None, runner: str = "local") -> None:
        """Set how many attempts a runner may have at a time."""
        manager_control.set_slots(self.store, slots, runner)

    def test(self) -> Reached:
        """Whether jobs can be submitted here, and will run."""
        try:
            if self._start_manager is None and not self.store.base_path.is_dir():
                return Reached(False, f"{self.where} is not a directory on this machine")
            self.prepare()
            if not os.access(self.store.inbox_path, os.W_OK):
                return Reached(False, f"{self.where} is not writable for this user")
            manager_status.check_locks(self.store)
            otherwise = self._otherwise()
            info = self.manager()
        except (AirExecutorError, OSError) as error:
            return Reached(False, str(error))
        if info is not None:
            return Reached(True, f"manager {info.pid} runs the jobs of {self.where}{_abilities(info)}{otherwise}")
        if self._start_manager is not None:
            return Reached(True, f"jobs go to {self.where}; the manager is started with the first one{otherwise}")
        return Reached(False, f"no manager is running; start it: air-executor manager --base-path {self.where}")

    def _otherwise(self) -> str:
        """What is done otherwise because of the file system.

        :raises ManagerError: if no manager can run there.
        """
        from airflow_provider_air_executor.jobs import base_path_check

        findings = base_path_check.check_in_time(self.store.base_path)
        base_path_check.refuse(self.store.base_path, self.store.lock_path, findings)
        otherwise = base_path_check.what_is_otherwise(findings)
        return f". Its file system: {otherwise}" if otherwise else ""

    # -- waiting -----------------------------------------------------------------------------------------------

    def wait(self, name: str, timeout: float) -> bool:
        """Let the time pass; the job may have changed then."""
        time.sleep(timeout)
        return True

    @contextlib.asynccontextmanager
    async def watching(self, name: str, *, interval: float) -> AsyncGenerator[FileWatch, None]:
        """Watch a job."""
        from airflow_provider_air_executor.jobs import watch

        on_pass = None if self._start_manager is None else self._keep_manager
        async with watch.watching(self.store, name, interval=interval, on_pass=on_pass) as waiter:
            yield FileWatch(self.store, name, waiter)

    def _keep_manager(self) -> None:
        try:
            self.ensure_manager()
        except (AirExecutorError, OSError) as error:
            log.warning("%s", error)

    def completions(self, subscriber: str, wanted: JobFilter, *, interval: float, formerly: str = "") -> JobCompletions:
        """The ends of jobs for a subscriber."""
        from airflow_provider_air_executor.jobs.completions import JobCompletions

        return JobCompletions(self.store, subscriber, interval=interval, wanted=wanted, formerly=formerly)

    @contextlib.contextmanager
    def only_one(self, what: str) -> Iterator[None]:
        """Let one process after the other do what is within: ``<what>.lock``."""
        self.store.create_directories()
        with files.opened(self.store.base_path / f"{_word('lock', what)}.lock", os.O_RDWR) as descriptor:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield


class FileLog:
    """The log of one task, without secrets; see :class:`~.interface.JobLog`.

    :raises InvalidJobError: if no task can have this id.
    """

    def __init__(self, paths: JobPaths, task_id: str) -> None:
        self._paths = paths
        self._task_id = task_id
        self._log = TaskLog(paths, task_id)

    def size(self) -> int:
        """Its length in bytes."""
        return self._log.size()

    def read(self, offset: int = 0, limit: int | None = None, *, is_over: bool = True) -> LogChunk:
        """A piece of it."""
        return self._mask().read_log(self._log, offset, limit, is_over=is_over)

    def line_from(self, offset: int, limit: int) -> int:
        """Where the first line begins that is whole."""
        return self._log.line_from(offset, limit)

    def lines_before(self, offset: int, limit: int) -> int | None:
        """How many lines end before an offset."""
        return self._log.lines_before(offset, limit)

    def tail(self, lines: int) -> list[str]:
        """The last lines."""
        return self._mask().tail(self._log, lines)

    def search(self, text: str, offset: int, end: int) -> log_search.Found:
        """The lines that have a text."""
        return log_search.search(self._log, self._mask(), text, offset, end)

    def times(self) -> log_times.LogTimes:
        """When it has grown."""
        return log_times.read(self._paths, self._task_id)

    def _mask(self) -> Mask:
        return masking.load(self._paths)  # tasks that are added may bring secrets of their own


class FileWatch:
    """Waits in an event loop until one job may have changed, and reads it; see :class:`~.interface.JobWatch`."""

    def __init__(self, store: JobStore, name: str, waiter: Waiter) -> None:
        self._store = store
        self._name = name
        self._waiter = waiter

    @property
    def sees_output(self) -> bool:
        """Only what is in the files of the job is watched."""
        return False

    @property
    def changed(self) -> Collection[str]:
        """The files are not told apart."""
        return (STATE, TASKS)

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - it is no error
        """Wait until the job may have changed since the last call."""
        return await self._waiter.wait(timeout)

    async def read(self) -> Job:
        """The job as it is now."""
        import asyncio

        return (await asyncio.to_thread(self._store.load_job, self._name))[0]


def _abilities(info: ManagerInfo) -> str:
    """What a manager says of itself: which version it is, and how many slots are free."""
    free = ", ".join(f"{max(0, slots.limit - slots.used)} of {slots.limit}" for slots in info.slots.values())
    version = f", version {info.version}" if info.version else ""
    return version + (f", {free} slots free" if free else "")


def _positions(paths: JobPaths, reader: str) -> Path:
    return paths.logs / f".{_word('reader', reader)}.offsets"


def _word(what: str, text: str) -> str:
    """A word that is part of the name of a file.

    :raises InvalidJobError: if it cannot be one.
    """
    if not _WORD.fullmatch(text):
        raise InvalidJobError(f"{what}: {text!r} must be 1 to 64 letters and digits")
    return text
