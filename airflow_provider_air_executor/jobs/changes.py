"""The changes of all jobs of a base path, numbered: one feed for any number of followers.

A follower is somewhere in the row of numbers, and that is all that is known of it: nothing is kept for it. Of each job
only the last change of each kind is kept, so that a follower that is slow, or was away, gets the latest of each. A
cursor, ``<epoch>-<number>``, says where a follower is. The epoch is another one for each feed.

Changes are seen by inotify: those of the directory of all jobs, and of jobs that have not ended or have ended lately.
That something was printed is seen when a log is closed, or its notes (:mod:`.log_times`) are, about once a second, and
not at each write. For file systems that do not notify, a slow pass goes over all jobs, a few at a time, and takes at
most a hundredth of the time of a processor. On a shared file system new jobs, and those that have not ended, are
looked at when the manager rings (:mod:`.bell`), for as small a part of the time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError
from airflow_provider_air_executor.jobs import bell, files, interface
from airflow_provider_air_executor.jobs.inotify import Change as Notified
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.models import STORED_NAME, Job
from airflow_provider_air_executor.jobs.paths import LOGS, STATE, TASKS
from airflow_provider_air_executor.jobs.store import JobStore

log = logging.getLogger(__name__)

MOST_CHANGES = 100_000  # that are kept: of each job one of each kind
MOST_WATCHED = 5_000  # jobs that have ended, whose directories are watched
MOST_DUMPED = 4_096  # jobs whose content is kept
PASS_SECONDS = 5.0  # between the beginnings of two passes, at least
_PASS_SHARE = 100  # a pass may take one part of so many of the time
_AWAY_SECONDS = 1.0  # between two looks at whether the file system is back
_SLICE = 100  # jobs that are looked at in one go
_JOBS_KEY, _LOGS_SUFFIX = "/jobs", "/logs"  # of the notifier; no job can be called so
_CURSOR = re.compile(r"([0-9a-f]{8})-(\d{1,18})", re.ASCII)
_PRINTED = (".log", ".times")


class Change(NamedTuple):
    """The last change of a kind of a job."""

    number: int
    name: str
    kind: str  # state: its state.json is another one, or it is gone; tasks: the same of its list; log: it has printed


class _Known:
    """A job as it was seen last."""

    __slots__ = ("has_ended", "has_printed", "logs", "name", "state", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.has_ended = False
        self.has_printed = False  # since the last pass
        self.state: files.Stamp | None = None
        self.tasks: files.Stamp | None = None
        self.logs: tuple[int, int] | None = None  # how many, and how many bytes


class ChangeFeed:
    """Numbers the changes of the jobs of one base path, in a thread of its own that begins with the first follower.

    :param dump: makes of a job what followers get; called in that thread, and others.
    """

    def __init__(self, store: JobStore, dump: Callable[[Job], bytes]) -> None:
        self._store = store
        self._dump = dump
        self._log = _ChangeLog()
        self._dumped: OrderedDict[str, bytes] = OrderedDict()
        self._followers: set[Callable[[], None]] = set()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake_end, self._wake = -1, -1
        self._is_closed = False
        self._watch: _Jobs | None = None

    def follow(self, wake: Callable[[], None]) -> None:
        """Let this be called, from another thread, when there are changes, and when the feed is ready."""
        with self._guard:
            self._followers.add(wake)
            if self._thread is None and not self._is_closed:
                self._wake_end, self._wake = os.pipe()
                self._thread = threading.Thread(target=self._run, name="air-executor-changes", daemon=True)
                self._thread.start()

    def leave(self, wake: Callable[[], None]) -> None:
        """Call this no more."""
        with self._guard:
            self._followers.discard(wake)

    def close(self) -> None:
        """End."""
        with self._guard:
            self._is_closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            os.write(self._wake, b"x")
            thread.join()

    @property
    def is_ready(self) -> bool:
        """Whether all jobs have been seen once: what changes from then on is not missed."""
        return self._watch is not None

    def position_of(self, cursor: str | None) -> int | None:
        """The number that a cursor stands for; None if it says nothing here, or too much has come since then."""
        return self._log.position_of(cursor)

    def cursor_of(self, number: int) -> str:
        """The cursor of a follower that has got all up to a number."""
        return f"{self._log.epoch}-{number}"

    @property
    def epoch(self) -> str:
        """The word by which cursors are known; another one comes when changes may have been missed."""
        return self._log.epoch

    @property
    def last(self) -> int:
        """The number of the last change."""
        return self._log.number

    def changes(self, after: int, limit: int) -> list[Change]:
        """The changes after a number, the oldest first; at most so many."""
        return self._log.changes(after, limit)

    def has_all_since(self, number: int) -> bool:
        """Whether no change after a number has been forgotten."""
        return self._log.has_all_since(number)

    def kept(self, name: str) -> bytes | None:
        """What followers get of a job, if it is at hand: empty if there is no such job."""
        return self._dumped.get(name)

    def load(self, name: str) -> bytes:
        """The same, read now.

        :raises AirExecutorError: if it cannot be read.
        :raises OSError: if it cannot be read now.
        """
        try:
            return self._dump(self._store.get_job(name))
        except JobNotFoundError:
            return b""

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        said = ""
        while not self._is_closed:
            try:
                self._watch_jobs()
            except OSError as error:  # the file system is away
                if str(error) != said:
                    said = str(error)
                    log.warning("the jobs in %s cannot be watched now: %s", self._store.base_path, error)
                # What has changed meanwhile is not known: followers are to look at all that they wait for.
                self._watch, self._log = None, _ChangeLog()
                select.select([self._wake_end], [], [], _AWAY_SECONDS)
        os.close(self._wake_end)
        os.close(self._wake)

    def _watch_jobs(self) -> None:
        """Number what changes, until the end.

        :raises OSError: if the file system is away.
        """
        watch = _Jobs(self._store, self._add)
        listener = bell.listener(self._store.base_path, bell.JOBS)
        try:
            watch.scan()
            self._watch = watch
            self._wake_followers()
            poll = select.poll()
            for descriptor in (self._wake_end, watch.notifier.fileno()):
                if descriptor >= 0:
                    poll.register(descriptor, select.POLLIN)
            before = self._log.number
            while not self._is_closed:
                pause = watch.next_look - time.monotonic()
                poll.poll(max(0.0, pause if listener is None else min(pause, bell.SECONDS)) * 1000)
                watch.take_notified()
                if listener is not None and time.monotonic() >= watch.next_hearing and listener.has_rung():
                    watch.look_at_active()
                watch.look_on()
                if self._log.number != before:
                    before = self._log.number
                    self._wake_followers()
        finally:
            watch.notifier.close()

    def _wake_followers(self) -> None:
        with self._guard:
            followers = tuple(self._followers)
        for wake in followers:
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                wake()

    def _add(self, name: str, kind: str, job: Job | None) -> None:
        """Number a change.

        :param job: the job, if its state has changed and it can be read.
        """
        if kind == interface.STATE:
            self._keep(name, job)
        self._log.add(name, kind)

    def _keep(self, name: str, job: Job | None) -> None:
        self._dumped.pop(name, None)
        if job is None:  # it is read when somebody wants it
            return
        with contextlib.suppress(AirExecutorError, OSError):
            self._dumped[name] = self._dump(job)
        if len(self._dumped) > MOST_DUMPED:
            self._dumped.popitem(last=False)


class _ChangeLog:
    """The last change of each kind of each job, by their numbers."""

    def __init__(self) -> None:
        self.epoch = os.urandom(4).hex()
        self.number = 0
        self._forgotten = 0  # the number of the last change that is not kept
        self._guard = threading.Lock()
        self._numbers: OrderedDict[tuple[str, str], int] = OrderedDict()

    def add(self, name: str, kind: str) -> None:
        """Number a change, which takes the place of the one before."""
        with self._guard:
            self.number += 1
            self._numbers[name, kind] = self.number
            self._numbers.move_to_end((name, kind))
            if len(self._numbers) > MOST_CHANGES:
                self._forgotten = self._numbers.popitem(last=False)[1]

    def position_of(self, cursor: str | None) -> int | None:
        """See :meth:`ChangeFeed.position_of`."""
        found = _CURSOR.fullmatch(cursor or "")
        if found is None or found[1] != self.epoch:
            return None
        return int(found[2]) if self._forgotten <= int(found[2]) <= self.number else None

    def has_all_since(self, number: int) -> bool:
        """See :meth:`ChangeFeed.has_all_since`."""
        return self._forgotten <= number

    def changes(self, after: int, limit: int) -> list[Change]:
        """See :meth:`ChangeFeed.changes`."""
        found: deque[Change] = deque()
        with self._guard:
            for (name, kind), number in reversed(self._numbers.items()):
                if number <= after:
                    break
                found.appendleft(Change(number, name, kind))
        return list(found)[:limit]


class _Jobs:
    """Sees what changes: all jobs, as they were seen last.

    :param add: called with the name of a job, the kind of its change, and the job.
    """

    def __init__(self, store: JobStore, add: Callable[[str, str, Job | None], None]) -> None:
        self._store = store
        self._add = add
        self.notifier = Notifier()
        self._known: dict[str, _Known] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()  # jobs that are watched, though they have ended
        self._to_look: deque[str] = deque()
        self._pass_began = 0.0
        self.next_look = 0.0  # on the monotonic clock
        self.next_hearing = 0.0  # before which a bell is not listened to

    def scan(self) -> None:
        """See all jobs for the first time."""
        self._watch_all()
        for name in self._store.job_names():
            self._look_quietly(name)
        self._pass_began = time.monotonic()
        self.next_look = self._pass_began + PASS_SECONDS

    def take_notified(self) -> None:
        """Look at what the system has said that it has changed."""
        changes, is_lost = self.notifier.read()
        for change in changes:
            with contextlib.suppress(OSError):  # the file system is away: the next pass looks again
                self._take(change)
        if is_lost:
            self._to_look, self.next_look = deque(), 0.0
            self._pass_began = 0.0

    def _take(self, change: Notified) -> None:
        key, name = change
        if key == _JOBS_KEY:
            if STORED_NAME.fullmatch(name):
                if name in self._known:  # it may be another one
                    self._watch(name)
                self._look_at(name)
            elif not name:  # the directory of all jobs is gone
                self._watch_all()
        elif key.endswith(_LOGS_SUFFIX):
            if name.endswith(_PRINTED) and not name.startswith("."):
                self._print(key.removesuffix(_LOGS_SUFFIX))
        elif name in (STATE, ""):
            self._look_at(key)
        elif name == TASKS:
            self._look_at_tasks(key)
        elif name == LOGS:
            self._watch(key)

    def look_at_active(self) -> None:
        """Look at new jobs, and at those that have not ended."""
        began = time.thread_time()
        with contextlib.suppress(OSError):  # the file system is away
            active = {name for name, known in self._known.items() if not known.has_ended}
            for name in active | (set(self._store.job_names()) - self._known.keys()):
                self._look_over(name)
        self.next_hearing = time.monotonic() + _PASS_SHARE * (time.thread_time() - began)

    def look_on(self) -> None:
        """Go on with the pass over all jobs, if it is time."""
        now = time.monotonic()
        if now < self.next_look:
            return
        began = time.thread_time()
        with contextlib.suppress(OSError):  # the file system is away
            if not self._to_look:
                self._begin_pass(now)
            for _ in range(min(_SLICE, len(self._to_look))):
                self._look_over(self._to_look.popleft())
        pause = _PASS_SHARE * (time.thread_time() - began)
        self.next_look = now + pause if self._to_look else max(now + pause, self._pass_began + PASS_SECONDS)

    def _begin_pass(self, now: float) -> None:
        self._pass_began = now
        self._watch_all()
        names = self._store.job_names()
        self._to_look.extend(names)
        self._to_look.extend(self._known.keys() - set(names))

    def _look_over(self, name: str) -> None:
        self._look_at(name)
        known = self._known.get(name)
        if known is None or known.has_ended:
            return
        self._look_at_tasks(name)
        logs = _size_of(str(self._store.paths(name).logs))
        if logs != known.logs and known.logs is not None and not known.has_printed:
            self._add(name, interface.OUTPUT, None)
        known.logs, known.has_printed = logs, False

    def _look_quietly(self, name: str) -> None:
        """See a job for the first time."""
        known = self._known[name] = _Known(name)
        with contextlib.suppress(OSError):
            self._watch(name)
            job = self._read(known)
            known.tasks = files.stamp(self._store.paths(name).tasks)
            if not known.has_ended:
                known.logs = _size_of(str(self._store.paths(name).logs))
            self._after(known, job)

    def _look_at(self, name: str) -> None:
        """Look whether the state of a job is another one."""
        known = self._known.get(name)
        stamp = self._stamp(known, self._store.paths(name).state)
        if known is not None and stamp == known.state:
            if stamp is None and not files.is_real_directory(self._store.paths(name).directory):
                self._forget(name)
            return
        if known is None:
            if stamp is None and not files.is_real_directory(self._store.paths(name).directory):
                return
            known = self._known[name] = _Known(name)
            self._watch(name)
            known.tasks = files.stamp(self._store.paths(name).tasks)
        job = self._read(known)
        if known.state is None and not files.is_real_directory(self._store.paths(name).directory):
            self._forget(name)
        else:
            self._after(known, job)
        self._add(name, interface.STATE, job)

    def _stamp(self, known: _Known | None, path: Path) -> files.Stamp | None:
        """The stamp of a job's file; of one that has ended as it was seen lately, which takes less time."""
        has_ended = known is not None and known.has_ended
        return files.stamp(path) if has_ended else self._store.freshness.stamp(path)

    def _read(self, known: _Known) -> Job | None:
        """Read the state of a job; None if it cannot be read."""
        known.state = files.stamp(self._store.paths(known.name).state)
        known.has_ended = False
        job = None
        with contextlib.suppress(AirExecutorError):
            job, known.state = self._store.load_job(known.name)
            known.has_ended = job.state.is_terminal
        return job

    def _after(self, known: _Known, job: Job | None) -> None:
        """Watch a job for as long as it is to be watched."""
        if not known.has_ended:
            if known.name in self._ended or not self.notifier.has(known.name):
                self._ended.pop(known.name, None)
                self._watch(known.name)
            return
        self.notifier.remove(known.name + _LOGS_SUFFIX)
        self._ended[known.name] = None
        self._ended.move_to_end(known.name)
        if len(self._ended) > MOST_WATCHED:
            self.notifier.remove(self._ended.popitem(last=False)[0])

    def _look_at_tasks(self, name: str) -> None:
        known = self._known.get(name)
        if known is not None:
            before, known.tasks = known.tasks, self._stamp(known, self._store.paths(name).tasks)
            if known.tasks != before:
                self._add(name, interface.TASKS, None)

    def _print(self, name: str) -> None:
        known = self._known.get(name)
        if known is not None:
            known.has_printed = True
            self._add(name, interface.OUTPUT, None)

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)
        self._ended.pop(name, None)
        self.notifier.remove(name)
        self.notifier.remove(name + _LOGS_SUFFIX)

    def _watch_all(self) -> None:
        self.notifier.add(_JOBS_KEY, self._store.jobs_path, removals=True)

    def _watch(self, name: str) -> None:
        paths = self._store.paths(name)
        self.notifier.add(name, paths.directory)
        self.notifier.add(name + _LOGS_SUFFIX, paths.logs, only_closed=True)


def _size_of(logs: str) -> tuple[int, int]:
    """How many logs there are, and how many bytes in all of them."""
    number = size = 0
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(logs) as entries:
        for entry in entries:
            if entry.name.endswith(".log"):
                number += 1
                with contextlib.suppress(FileNotFoundError):
                    size += entry.stat(follow_symlinks=False).st_size
    return number, size
