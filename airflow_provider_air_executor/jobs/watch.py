"""One watcher per base path that serves any number of waiters of an event loop.

A waiter is woken when a file of its job changes, by inotify. For file systems that do not notify, one pass in a
thread inspects the jobs of all waiters; it costs two ``stat`` calls a job, and is made less often where there are so
many that it would take more than a hundredth of the time. On a shared file system it is made at once when the manager
rings (:mod:`.bell`). What waits costs nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine

from airflow_provider_air_executor.jobs import bell, files
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.paths import STATE, TASKS
from airflow_provider_air_executor.jobs.store import JobStore

log = logging.getLogger(__name__)

JOBS_KEY = "/jobs"  # of the notifier, for the directory of all jobs; no job can be called so
_WATCHED = (STATE, TASKS)
PASS_SHARE = 100  # a pass over all jobs may take one part of so many of the time

_Key = tuple[str, float]
_watchers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key, JobWatcher]] = weakref.WeakKeyDictionary()


class Waiter:
    """Waits in an event loop until a job may have changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Wake the waiter: the job may have changed."""
        self._changed.set()

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - it is no error
        """Wait until the job may have changed since the last call.

        :param timeout: at most so many seconds.
        :return: False if nothing has changed in that time.
        """
        try:
            # Not wait_for, which before Python 3.12 loses a cancellation that comes with the change.
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True


class Passes:
    """When all jobs are looked at: now and then, and on a shared file system when the manager rings.

    :param interval: seconds between two passes, at least, if nobody rings.
    """

    def __init__(self, store: JobStore, interval: float) -> None:
        self.interval = interval
        self._store = store
        self._listener: bell.Listener | None = None
        self._quiet = 0.0  # seconds after a pass in which nobody listens; who rings then is heard later

    async def begin(self) -> None:
        """Listen from now on."""
        self._listener = await asyncio.to_thread(bell.listener, self._store.base_path, bell.JOBS)

    def took(self, seconds: float) -> None:
        """A pass has taken so much of a processor: the next one is not before it is one part of so many of the time."""
        self._quiet = PASS_SHARE * seconds

    async def wait(self, waiter: Waiter) -> bool:
        """Wait until it is time for a pass.

        :return: True if the waiter was woken before.
        """
        until = time.monotonic() + max(self.interval, self._quiet)
        pause = max(self._quiet, bell.SECONDS)
        while self._listener is not None and (left := until - time.monotonic()) > pause:
            if await waiter.wait(min(left, pause)):
                return True
            if await asyncio.to_thread(self._listener.has_rung):
                return False
            pause = bell.SECONDS
        return await waiter.wait(max(0.0, until - time.monotonic()))


@contextlib.asynccontextmanager
async def watching(
    store: JobStore, job_name: str, *, interval: float, on_pass: Callable[[], None] | None = None
) -> AsyncIterator[Waiter]:
    """Watch a job, which need not exist yet, with the watcher that all waiters of this base path share.

    :param interval: seconds between two passes over the jobs of all waiters, at least.
    :param on_pass: called in each pass, in its thread.
    """
    watchers = _watchers.setdefault(asyncio.get_running_loop(), {})
    key = (str(store.base_path), interval)
    watcher = watchers.get(key)
    if watcher is None:
        watcher = watchers[key] = JobWatcher(store, interval, on_pass)
    waiter = Waiter()
    try:
        await watcher.add(job_name, waiter)
        yield waiter
    finally:
        watcher.remove(job_name, waiter)
        if watcher.is_unused and watchers.get(key) is watcher:
            del watchers[key]
            watcher.close()


class JobWatcher:
    """Wakes the waiters of one base path in one event loop; see :func:`watching`."""

    def __init__(self, store: JobStore, interval: float, on_pass: Callable[[], None] | None = None) -> None:
        self._store = store
        self._interval = interval
        self._on_pass = on_pass
        self._waiters: dict[str, set[Waiter]] = {}
        # Of each job its name, and the files that are looked at: to put paths together costs more than to look.
        self._paths: dict[str, tuple[str, str, str]] = {}
        self._stamps: dict[str, tuple[files.Stamp | None, ...]] = {}
        self._loop = asyncio.get_running_loop()
        self._notifier = Notifier()
        if self._notifier.works:
            self._loop.add_reader(self._notifier.fileno(), self._read)
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._pass_over_all())

    @property
    def is_unused(self) -> bool:
        """Whether there is no waiter."""
        return not self._waiters

    async def add(self, job_name: str, waiter: Waiter) -> None:
        """Wake this waiter when the job changes."""
        self._waiters.setdefault(job_name, set()).add(waiter)
        state, tasks = self._store.paths(job_name).state, self._store.paths(job_name).tasks
        self._paths[job_name] = (job_name, str(state), str(tasks))
        await asyncio.to_thread(self._watch, job_name)

    def remove(self, job_name: str, waiter: Waiter) -> None:
        """Do not wake this waiter any more."""
        waiters = self._waiters.get(job_name, set())
        waiters.discard(waiter)
        if not waiters:
            self._waiters.pop(job_name, None)
            self._paths.pop(job_name, None)
            self._stamps.pop(job_name, None)
            self._notifier.remove(job_name)

    def close(self) -> None:
        """Stop watching."""
        if self._notifier.works:
            self._loop.remove_reader(self._notifier.fileno())
        self._notifier.close()
        for task in self._tasks:
            task.cancel()

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _watch(self, job_name: str) -> None:
        self._notifier.add(JOBS_KEY, self._store.jobs_path)
        self._notifier.add(job_name, self._store.paths(job_name).directory)

    def _read(self) -> None:
        changes, lost = self._notifier.read()
        for key, name in changes:
            if key == JOBS_KEY:
                if name in self._waiters:  # it has appeared, or was replaced
                    self._start(self._watch_again(name))
            elif name in _WATCHED:
                self._wake(key)
        if lost:
            for job_name in list(self._waiters):
                self._wake(job_name)

    async def _watch_again(self, job_name: str) -> None:
        await asyncio.to_thread(self._watch, job_name)
        self._wake(job_name)

    def _wake(self, job_name: str) -> None:
        for waiter in self._waiters.get(job_name, ()):
            waiter.wake()

    async def _pass_over_all(self) -> None:
        trouble, nobody = "", Waiter()
        passes = Passes(self._store, self._interval)
        await passes.begin()
        while True:
            await passes.wait(nobody)
            paths = list(self._paths.values())
            try:
                found, cost = await asyncio.to_thread(self._stamps_of, paths)
                passes.took(cost)
            except OSError as error:  # the file system is away for a moment
                if trouble != error.strerror:
                    trouble = error.strerror or str(error)
                    log.warning("the jobs in %s cannot be inspected now: %s", self._store.base_path, error)
                continue
            if trouble:
                trouble = ""
                log.info("the jobs in %s can be inspected again", self._store.base_path)
            for name, stamps in found.items():
                if self._stamps.get(name) != stamps:  # also at the first pass: it may have changed before
                    self._wake(name)
                if name in self._waiters:
                    self._stamps[name] = stamps

    def _stamps_of(self, paths: list[tuple[str, str, str]]) -> tuple[dict[str, tuple[files.Stamp | None, ...]], float]:
        """The stamps of the files of the jobs, and how many seconds of CPU that took."""
        if self._on_pass is not None:
            self._on_pass()
        began = time.thread_time()
        stamps = self._store.freshness.stamps
        found = {name: stamps(state, tasks) for name, state, tasks in paths}
        return found, time.thread_time() - began
