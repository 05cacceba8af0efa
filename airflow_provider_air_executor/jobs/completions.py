"""The completions of jobs, each delivered once to a subscriber, whose process may be replaced at any moment.

A subscriber gets every completion that comes after it has subscribed for the first time, of jobs that have completed
and of those that have failed. It acknowledges a completion when it has dealt with it, and that is persisted in a small
file in the job's directory. The next process of the same subscriber gets those that are not acknowledged. While one
process of a subscriber lives, also if it only stands still, no other one gets anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path

from airflow_provider_air_executor.exceptions import CorruptFileError, InvalidJobError, JobNotFoundError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.interface import JobFilter
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.paths import STATE
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.watch import JOBS_KEY, Passes, Waiter

_SUBSCRIBER = re.compile(r"[A-Za-z0-9_-]{1,64}")


class JobCompletions:
    """The completions of the jobs of one base path, for one subscriber.

    :param subscriber: its name, 1 to 64 letters, digits, ``-`` and ``_``.
    :param interval: seconds between two passes over all jobs, for file systems that do not notify.
    :param wanted: which jobs the subscriber wants; default: all.
    :param formerly: the name that it had before, if it has another one now: it goes on where it was.
    :raises InvalidJobError: if no subscriber can have the name.
    """

    def __init__(
        self,
        store: JobStore,
        subscriber: str,
        *,
        interval: float,
        wanted: JobFilter = JobFilter(),  # noqa: B008 - it cannot change
        formerly: str = "",
    ) -> None:
        if not _SUBSCRIBER.fullmatch(subscriber):
            raise InvalidJobError(f"subscriber: {subscriber!r} must be 1 to 64 letters, digits, '-' or '_'")
        self._store = store
        self._subscriber = subscriber
        self._formerly = formerly
        self._passes = Passes(store, interval)
        self._wanted = wanted
        self._since = 0.0  # when it subscribed for the first time, in seconds since the epoch
        self._stamps: dict[str, files.Stamp] = {}  # of the state.json of jobs that have ended, and been dealt with
        self._delivered: dict[str, str] = {}  # the completions that are not acknowledged yet, by the job's name
        self._guard = threading.Lock()
        self._lock = -1
        self._is_released = False

    async def follow(self) -> AsyncGenerator[Job, None]:
        """Deliver each completion, the oldest first, until the caller has had enough; it can be called once."""
        notifier = Notifier()
        changed = Waiter()
        loop = asyncio.get_running_loop()
        if notifier.works:
            loop.add_reader(notifier.fileno(), changed.wake)
        try:
            while not await asyncio.to_thread(self._acquire):  # noqa: ASYNC110 - another process
                await asyncio.sleep(self._passes.interval)
            await self._passes.begin()
            names: set[str] | None = None
            while True:
                for job in await asyncio.to_thread(self._find, notifier, names):
                    yield job
                names = await self._changes(notifier, changed)
        finally:
            if notifier.works:
                loop.remove_reader(notifier.fileno())
            notifier.close()
            self._release()

    def ack(self, job: Job) -> None:
        """Acknowledge a completion: it has been dealt with, and is not delivered again."""
        path = self._store.paths(job.name).acknowledged(self._subscriber)
        with contextlib.suppress(FileNotFoundError):  # the job has been removed since
            if files.is_real_directory(path.parent):
                files.publish(path, _completion_of(job).encode())
        self._delivered.pop(job.name, None)

    def nack(self, job: Job) -> None:
        """Refuse a completion: it could not be dealt with, and is delivered once more."""
        self._delivered.pop(job.name, None)
        self._stamps.pop(job.name, None)

    def _acquire(self) -> bool:
        """Take the subscriber's lock; False if another process holds it."""
        path = subscriber_path(self._store, self._subscriber)
        self._store.create_directories()
        files.make_directory(path.parent, exist_ok=True)
        if self._formerly and not path.exists():
            with contextlib.suppress(FileNotFoundError):  # a lock that is held is held under the new name too
                os.rename(subscriber_path(self._store, self._formerly), path)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as unless_acquired:
            unless_acquired.callback(os.close, lock)
            files.give(lock, self._store.base_path)
            if not files.lock(lock, path):
                return False
            self._since = os.fstat(lock).st_mtime
            with self._guard:
                if not self._is_released:  # while we asked for it, in a thread
                    unless_acquired.pop_all()
                    self._lock = lock
        return True

    def _release(self) -> None:
        with self._guard:
            self._is_released = True
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    async def _changes(self, notifier: Notifier, changed: Waiter) -> set[str] | None:
        """Wait until jobs may have changed: their names, or None if all must be read."""
        if not await self._passes.wait(changed):
            return None
        changes, lost = notifier.read()
        if lost:
            return None
        return {name if key == JOBS_KEY else key for key, name in changes if key == JOBS_KEY or name == STATE}

    def _find(self, notifier: Notifier, names: Iterable[str] | None) -> list[Job]:
        """The completions that are to be delivered; those of some jobs, or of all."""
        began, is_pass = time.thread_time(), names is None
        if names is None:
            notifier.add(JOBS_KEY, self._store.jobs_path)
            names = self._store.job_names()
            for gone in self._stamps.keys() - set(names):
                del self._stamps[gone]
        found = [job for name in names if (job := self._completed(notifier, name)) is not None]
        if is_pass:
            self._passes.took(time.thread_time() - began)
        return sorted(found, key=_completed_at)

    def _completed(self, notifier: Notifier, name: str) -> Job | None:
        """The job, if its completion is to be delivered."""
        try:
            path = self._store.paths(name).state
            stamp = files.stamp(path)
            if stamp is None or stamp == self._stamps.get(name):
                return None
            notifier.add(name, path.parent)  # before it is read, so that no change is missed
            job, stamp = self._store.load_job(name)
        except (InvalidJobError, JobNotFoundError, CorruptFileError, OSError):
            return None  # no job, or half-written: read again at its next change, and in the next pass
        if not job.state.is_terminal:
            return None
        completion = _completion_of(job)
        try:
            is_new = self._delivered.get(name) != completion and self._is_new(job, completion)
        except OSError:  # whether it is acknowledged cannot be read now
            return None
        notifier.remove(name)
        self._stamps[name] = stamp
        if not is_new:
            return None
        self._delivered[name] = completion
        return job

    def _is_new(self, job: Job, completion: str) -> bool:
        if _completed_at(job) < self._since or not self._wanted.matches(job):
            return False
        paths, names = self._store.paths(job.name), {self._subscriber, self._formerly} - {""}
        return completion.encode() not in (files.read_if_there(paths.acknowledged(name)) for name in names)


def subscribers(store: JobStore) -> dict[str, float]:
    """All that have ever subscribed, and when they did so for the first time, in seconds since the epoch."""
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(subscriber_path(store, "")) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # it has just got its other name
                found[entry.name] = entry.stat(follow_symlinks=False).st_mtime
    return found


def is_acknowledged(store: JobStore, job: Job, subscribers: Mapping[str, float]) -> bool:
    """Whether all subscribers have acknowledged the completion of a job. Those who do not want it never do.

    :param subscribers: see :func:`subscribers`.
    """
    paths, completion = store.paths(job.name), _completion_of(job).encode()
    return all(
        _completed_at(job) < since or files.read_if_there(paths.acknowledged(name)) == completion
        for name, since in subscribers.items()
    )


def subscriber_path(store: JobStore, subscriber: str) -> Path:
    """The file that a subscriber locks; it is as old as the subscription."""
    return store.base_path / "readers" / subscriber


def _completed_at(job: Job) -> float:
    return job.updated_at.timestamp() if job.updated_at else 0.0


def _completion_of(job: Job) -> str:
    """The identity of a completion: a job has several if it is retried, or set back by hand."""
    return f"{job.id} {job.attempt} {job.updated_at.isoformat() if job.updated_at else ''}\n"
