"""The ends of jobs, each once for a reader, who may be replaced by another one at any moment.

A reader is told of every end of a job that comes after it has been there for the first time. What it has done with one
it confirms, by a small file in the job's directory; what it has not confirmed its successor is told again. While a
reader is alive, and also if it only stands still, no other one of its name gets anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable

from airflow_provider_air_executor.exceptions import CorruptFileError, InvalidJobError, JobNotFoundError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.paths import STATE
from airflow_provider_air_executor.jobs.store import JobStore

_JOBS = "/jobs"  # key of the notifier; no job can be called so
_PASS_SHARE = 100  # a pass over all jobs may take one part of so many of the time
_READER = re.compile(r"[A-Za-z0-9_-]{1,64}")


class JobEnds:
    """The ends of the jobs of one base path, for one reader.

    :param reader: its name, 1 to 64 letters, digits, ``-`` and ``_``.
    :param interval: seconds between two passes over all jobs, for file systems that do not notify.
    :param matches: which jobs the reader wants to be told of.
    :param formerly: its name before, if it has another one now: it goes on where it was.
    :raises InvalidJobError: if nobody can be called so.
    """

    def __init__(
        self, store: JobStore, reader: str, *, interval: float, matches: Callable[[Job], bool], formerly: str = ""
    ) -> None:
        if not _READER.fullmatch(reader):
            raise InvalidJobError(f"reader: {reader!r} must be 1 to 64 letters, digits, '-' or '_'")
        self._store = store
        self._reader = reader
        self._formerly = formerly
        self._interval = interval
        self._matches = matches
        self._since = 0.0  # when the reader was there for the first time, in seconds since the epoch
        self._stamps: dict[str, files.Stamp] = {}  # of the state.json of jobs that have ended, and been dealt with
        self._told: dict[str, str] = {}  # the ends that have been told and are not confirmed yet, by the job's name
        self._pause = interval
        self._guard = threading.Lock()
        self._lock = -1
        self._has_let_go = False

    async def follow(self) -> AsyncGenerator[Job, None]:
        """Tell each end, the oldest first, until the caller has had enough; it can be called once."""
        notifier = Notifier()
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        if notifier.works:
            loop.add_reader(notifier.fileno(), changed.set)
        try:
            while not await asyncio.to_thread(self._be_the_only_one):  # noqa: ASYNC110 - another process
                await asyncio.sleep(self._interval)
            names: set[str] | None = None
            while True:
                changed.clear()
                for job in await asyncio.to_thread(self._look, notifier, names):
                    yield job
                names = await self._changes(notifier, changed)
        finally:
            if notifier.works:
                loop.remove_reader(notifier.fileno())
            notifier.close()
            self._let_go()

    def confirm(self, job: Job) -> None:
        """The end of this job has been dealt with for good."""
        path = self._store.paths(job.name).seen(self._reader)
        with contextlib.suppress(FileNotFoundError):  # the job has been removed since
            if files.is_real_directory(path.parent):
                files.publish(path, _end_of(job).encode())
        self._told.pop(job.name, None)

    def tell_again(self, job: Job) -> None:
        """The end of this job could not be dealt with: it is told once more."""
        self._told.pop(job.name, None)
        self._stamps.pop(job.name, None)

    def _be_the_only_one(self) -> bool:
        """Take the reader's lock; False if another process has it."""
        path = self._store.reader_path(self._reader)
        self._store.create_directories()
        files.make_directory(path.parent, exist_ok=True)
        if self._formerly and not path.exists():
            with contextlib.suppress(FileNotFoundError):  # locked or not: who holds it holds it under the new name too
                os.rename(self._store.reader_path(self._formerly), path)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as unless_kept:
            unless_kept.callback(os.close, lock)
            files.give(lock, self._store.base_path)
            if not files.lock(lock, path):
                return False
            self._since = os.fstat(lock).st_mtime
            with self._guard:
                if not self._has_let_go:  # while we asked for it, in a thread
                    unless_kept.pop_all()
                    self._lock = lock
        return True

    def _let_go(self) -> None:
        with self._guard:
            self._has_let_go = True
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    async def _changes(self, notifier: Notifier, changed: asyncio.Event) -> set[str] | None:
        """Wait until jobs may have changed: their names, or None if all must be looked at."""
        try:
            async with asyncio.timeout(self._pause):
                await changed.wait()
        except TimeoutError:
            return None
        changes, lost = notifier.read()
        if lost:
            return None
        return {name if key == _JOBS else key for key, name in changes if key == _JOBS or name == STATE}

    def _look(self, notifier: Notifier, names: Iterable[str] | None) -> list[Job]:
        """The ends that are to be told; among some jobs, or among all."""
        began = time.thread_time()
        if names is None:
            notifier.add(_JOBS, self._store.jobs_path)
            names = self._store.job_names()
            for gone in self._stamps.keys() - set(names):
                del self._stamps[gone]
        found = [job for name in names if (job := self._look_at(notifier, name)) is not None]
        self._pause = max(self._interval, _PASS_SHARE * (time.thread_time() - began))
        return sorted(found, key=lambda job: job.updated_at.timestamp() if job.updated_at else 0.0)

    def _look_at(self, notifier: Notifier, name: str) -> Job | None:
        try:
            path = self._store.paths(name).state
            stamp = files.stamp(path)
            if stamp is None or stamp == self._stamps.get(name):
                return None
            notifier.add(name, path.parent)  # before it is read, so that no change is missed
            job, stamp = self._store.load_job(name)
        except (InvalidJobError, JobNotFoundError, CorruptFileError, OSError):
            return None  # no job, or half-written: looked at again at its next change, and in the next pass
        if not job.state.is_terminal:
            return None
        end = _end_of(job)
        try:
            is_new = self._told.get(name) != end and self._is_new(job, end)
        except OSError:  # it cannot be seen now whether it was confirmed
            return None
        notifier.remove(name)
        self._stamps[name] = stamp
        if not is_new:
            return None
        self._told[name] = end
        return job

    def _is_new(self, job: Job, end: str) -> bool:
        ended_at = job.updated_at.timestamp() if job.updated_at else 0.0
        if ended_at < self._since or not self._matches(job):
            return False
        return end.encode() not in (self._confirmed(job, reader) for reader in {self._reader, self._formerly} - {""})

    def _confirmed(self, job: Job, reader: str) -> bytes:
        """The end of a job that a reader has confirmed."""
        try:
            return files.read(self._store.paths(job.name).seen(reader))[0]
        except OSError as error:
            if error.errno not in files.ABSENT:
                raise
            return b""


def _end_of(job: Job) -> str:
    """What tells one end of a job from another: it may be retried, or set back by hand."""
    return f"{job.id} {job.attempt} {job.updated_at.isoformat() if job.updated_at else ''}\n"
