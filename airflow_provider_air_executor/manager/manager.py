"""The manager: runs the jobs of one base path on this machine.

:meth:`Manager.tick` is the table of contents: it takes in what has ended, what has been submitted and asked, and what
is due, starts what may start, and publishes how the jobs stand. Between two ticks the manager sleeps until a runner
ends, a file changes, a timer is due, or the slow pass over everything is.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import logging
import os
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.engines.protocol import (
    Attempt,
    Ended,
    Event,
    Located,
    NotStarted,
    ResourceExhaustedError,
    Running,
    SpawnError,
    Started,
)
from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    CorruptFileError,
    InvalidJobError,
    JobNotFoundError,
)
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.models import (
    Job,
    JobState,
    Reason,
    Task,
    TaskStatus,
    checking_ids,
    checking_task_list,
    printable,
    utc_now,
)
from airflow_provider_air_executor.jobs.paths import STATE, TASKS
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, dropping, finish
from airflow_provider_air_executor.jobs.store import Action, JobStore, Request
from airflow_provider_air_executor.manager.active import ActiveJob
from airflow_provider_air_executor.manager.job_writer import JobWriter
from airflow_provider_air_executor.manager.lock import ManagerLock
from airflow_provider_air_executor.manager.schedule import resetting_failed
from airflow_provider_air_executor.manager.settings import Settings
from airflow_provider_air_executor.manager.timers import Timers
from airflow_provider_air_executor.manager.troubles import Step, Troubles
from airflow_provider_air_executor.manager.turns import Turns
from airflow_provider_air_executor.system import clock

log = logging.getLogger("air_executor.manager")

_JOBS, _INBOX = "/jobs", "/inbox"  # keys of the notifier; no job can be called so
_GONE = "/gone"  # what is let go of
_STATE_SECONDS = 0.005  # after which a job that has begun is said to work
_RETRY_SECONDS = 1.0  # after the machine was short of something
_LONGEST_ASK_PAUSE = 30.0  # seconds between two tries to carry out requests
_LOG_SIZE_SECONDS = 1.0
_RECORDS = 10  # of runners that are looked at before something else is done
_WAKEUP_BYTES = 4096  # read at a time of those that signals leave
_CHECKED_A_PASS = 200  # ended jobs looked at in one slow pass, lest it grow with the history
_REOPENED = (None, Reason.EXIT, Reason.SIGNAL, Reason.DEPENDENCY, Reason.LOST, Reason.SPAWN)


class Manager:
    """Runs the jobs of one base path. There is one manager per base path, see :class:`ManagerLock`.

    :param store: the job filesystem.
    :param settings: limits and intervals.
    :param runners: how tasks run.
    """

    def __init__(self, store: JobStore, settings: Settings, runners: Engines) -> None:
        self._store = store
        self._settings = settings
        self._runners = runners
        self._notifier = Notifier()
        self._active: dict[str, ActiveJob] = {}
        self._ended: dict[str, files.Stamp | None] = {}  # jobs that have ended, and the state.json that says so
        self._unsettled: dict[str, float] = {}  # jobs whose files are not whole, and until when we wait
        self._queue: list[_Turn] = []
        self._held_up: dict[str, list[_Turn]] = {}  # jobs whose next task waits for room with its runner
        self._queued: set[str] = set()
        self._timers = Timers()
        self._troubles = Troubles(store, self._timers)
        self._turns = Turns(self._spoil)
        self._look_again: set[str] = set()  # jobs that have changed while they were looked at
        self._in_work: dict[str, str] = {}  # requests that are being carried out, and their jobs
        self._failing: Counter[str] = Counter()  # steps on a job that are to be taken again
        self._failures: dict[str, str] = {}  # steps that failed as a whole the last time, and how
        self._running: dict[Attempt, Reason | None] = {}  # and why it is being killed, if it is
        self._kill_errors: dict[Attempt, str] = {}
        self._touched: set[str] = set()  # jobs that something has happened to in this tick
        self._numbers = itertools.count()
        self._paused_until = 0.0
        self._next_pass = 0.0
        self._rotation: list[str] = []
        self._listed: files.Stamp | None = None  # the jobs/ directory when it was listed last
        self._idle_since = time.monotonic()
        self._is_notified = True  # whether there may be something to read from the notifier
        self._has_missed_some = False  # whether changes were not told, since there were too many
        self._is_asked = False  # whether there may be requests
        self._answered: dict[str, str] = {}  # those that are carried out and still there, and their jobs
        self._will_ask_again = False
        self._ask_pause = _RETRY_SECONDS
        self._stopping = False

    # -- the loop ------------------------------------------------------------------------------------------

    def run(self, lock: ManagerLock) -> None:
        """Run jobs until SIGTERM or SIGINT, or for lack of work. Tasks that run then go on by themselves.

        :param lock: the lock on the base path, held.
        """
        wakeup, wake = socket.socketpair()
        for end in (wakeup, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it only has to end the sleep
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        watched = {wakeup.fileno()}
        if self._notifier.works:
            watched.add(self._notifier.fileno())
        poll = select.poll()
        for descriptor in watched:
            poll.register(descriptor, select.POLLIN)
        self.recover()
        log.info("manager %d runs the jobs of %s", os.getpid(), self._store.base_path)
        while not self._stopping and self.go_round(lock):
            for descriptor in self._runners.descriptors:
                if descriptor not in watched:  # a runner may have come along meanwhile
                    poll.register(descriptor, select.POLLIN)
                    watched.add(descriptor)
            ready = [descriptor for descriptor, _ in poll.poll(1000 * self._sleep_seconds())]
            self._is_notified = self._notifier.fileno() in ready
            if wakeup.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    while len(wakeup.recv(_WAKEUP_BYTES)) == _WAKEUP_BYTES:
                        pass
        self.close()

    def go_round(self, lock: ManagerLock) -> bool:
        """Do everything that can be done now; False if this manager is not needed any more."""
        passes = time.monotonic() >= self._next_pass
        self.tick()
        if passes and not self._is_still_ours(lock):
            log.critical("%s was removed or replaced; manager %d ends", self._store.lock_path, os.getpid())
            return False
        try:
            is_over = self._is_idle() and self._may_retire(lock)
        except OSError:  # what cannot be seen now may be there
            is_over, self._idle_since = False, time.monotonic()
        if is_over:
            log.info("manager %d ends: there was nothing to do", os.getpid())
        return not is_over

    def tick(self) -> None:
        """Take all steps once."""
        for step in (
            self._reap,
            self._accept,
            self._timers.expire,
            self._turns.go_on,
            self._launch,
            self._conclude,
            self._runners.prepare,
        ):
            self._trying(step)

    def _trying(self, step: Callable[[], None]) -> bool:
        """Take a step that must not end the manager, whatever it raises: it is tried again soon.

        Where a single job is concerned, the step itself has dealt with it; this is for what concerns them all.

        :return: whether it could be taken.
        """
        name = step.__name__
        try:
            step()
        except Exception as error:
            if self._failures.get(name) != repr(error):
                self._failures[name] = repr(error)
                log.exception("something could not be done (%s); it is tried again", name)
            self._timers.after(_RETRY_SECONDS, lambda: None)
            return False
        if self._failures and self._failures.pop(name, None) is not None:
            log.info("%s: that is over", name)
        return True

    def _guard(self, name: str, step: Callable[[], None], *, is_again: bool = False) -> None:
        """Take a step on one job, which must harm no other, whatever it raises."""
        self._failing[name] -= is_again
        try:
            step()
        except OSError as error:
            self._failing[name] += 1  # each of them is taken again
            self._met(name, Step.ACT, error)
            self._timers.after(_RETRY_SECONDS, lambda: self._guard(name, step, is_again=True))
        except Exception as error:  # noqa: BLE001 - what a job's files hold may raise anything
            self._spoil(name, error)
        else:
            if not self._failing[name]:
                del self._failing[name]
                self._troubles.over(name, Step.ACT)

    def _met(self, name: str, step: Step, error: Exception, again: Callable[[], None] | None = None) -> None:
        """A step on a job has failed; see :meth:`Troubles.met`. What a task of it has forbidden us is allowed again."""
        if isinstance(error, PermissionError):
            with contextlib.suppress(InvalidJobError):  # it may be the name of a request
                files.put_modes_back(*self._store.paths(name).directories)
        self._troubles.met(name, step, error, again)

    def _later(self, name: str, seconds: float, step: Callable[[], None]) -> None:
        """Take a step on one job in so many seconds."""
        self._timers.after(seconds, lambda: self._guard(name, step))

    def _spoil(self, name: str, error: Exception) -> None:
        """A step on a job has raised what nobody has thought of: this job ends, and all others go on."""
        log.error("job %s cannot be run", name, exc_info=error)
        why = f"the manager cannot go on with it ({type(error).__name__}: {error})"
        job = self._active.get(name)
        try:
            if job is None:
                self._reject(self._known(name), why)
                return
            if job.stopping is None:
                why_ended = printable(f"{why}; put that right and retry the job")
                told = job.running - self._running.keys()  # of their end, which is lost
                for attempt in told:
                    rest = job.fail(attempt.task_id, Reason.INVALID, why_ended, exit_code=None, ended_at=utc_now())
                    self._turns.do(name, rest)
                self._stop_job(job, Reason.INVALID, why_ended)
                return
        except Exception as problem:  # noqa: BLE001 - it may be the same again
            log.error("job %s cannot be ended as others are: %r", name, problem)
        self._drop(name, why)

    def _drop(self, name: str, why: str) -> None:
        """End a job without a look at its tasks."""
        self._turns.drop(name)
        job = self._active.pop(name, None)
        known = self._known(name) if job is None else job.job
        if job is not None:
            self._turns.do(_GONE, job.dropping())
            for attempt in list(job.running):
                with contextlib.suppress(Exception):
                    self._kill(attempt, Reason.INVALID, why)
            job.running.clear()
            self._timers.cancel(name)
        try:
            self._reject(known, why)
        except OSError as error:
            self._met(name, Step.END, error, lambda: self._drop(name, why))
        except Exception as error:
            log.exception("job %s is left as it is, since its end cannot be written either", name, exc_info=error)
            with contextlib.suppress(OSError):
                self._remember(name, files.stamp(self._store.paths(name).state))

    def _known(self, name: str) -> Job:
        """What can be read of a job, or what stands for it."""
        with contextlib.suppress(Exception):
            return self._store.load_job(name)[0].evolve(name=name)
        return Job(id=f"{name}-{int(time.time())}", name=name, created_at=utc_now())

    def close(self) -> None:
        """Write down how the jobs stand. What runs goes on."""
        for job in list(self._active.values()):
            self._turns.drop(job.name)
            with contextlib.suppress(Exception):
                if job.name in self._active and finish(job.merging_external_edits()):
                    finish(job.snapshotting())
        with contextlib.suppress(OSError):
            files.remove(self._store.problems_path)
        self._runners.close()
        self._notifier.close()
        if self._running:
            log.info("manager %d leaves %d tasks running; the next one takes over", os.getpid(), len(self._running))

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _sleep_seconds(self) -> float:
        due = min(self._next_pass, self._timers.next_due)
        if self._settings.idle_timeout is not None:
            due = min(due, self._idle_since + self._settings.idle_timeout)
        seconds = due - time.monotonic()
        for poll_after in (self._runners.poll_after, self._turns.poll_after):
            if poll_after is not None:
                seconds = min(seconds, poll_after)
        return max(0.0, seconds)

    def _is_idle(self) -> bool:
        if self._settings.idle_timeout is None:
            return False
        if self._active or self._unsettled or self._turns.poll_after is not None:
            self._idle_since = time.monotonic()
        if time.monotonic() - self._idle_since < self._settings.idle_timeout:
            return False
        kept = files.stamp(self._store.keep_alive_path)
        if kept is not None:
            self._idle_since = max(self._idle_since, time.monotonic() - max(0.0, time.time() - kept.mtime_ns / 1e9))
        return time.monotonic() - self._idle_since >= self._settings.idle_timeout

    def _is_still_ours(self, lock: ManagerLock) -> bool:
        try:
            return lock.is_still_ours()
        except OSError:  # that cannot be seen now
            return True

    def _may_retire(self, lock: ManagerLock) -> bool:
        """Give the lock up, and take it back if a job or a request came meanwhile.

        Who publishes a job and then sees the lock held can rely on us: the last look is after the lock is given up.

        :raises OSError: if there may be something to do; the lock is held then.
        """
        if not self._has_work():
            lock.release()
            try:
                has_work = self._has_work()
            except OSError:
                has_work = True
            # If the lock cannot be had again, another manager was faster and does the work.
            if not (has_work and self._takes_back(lock)):
                return True
        self._idle_since, self._next_pass = time.monotonic(), 0.0
        return False

    def _has_work(self) -> bool:
        """Whether there is a request, or a job that has changed since it ended."""
        return bool(self._store.requests()) or any(
            files.stamp(self._store.paths(name).state) != self._ended.get(name) for name in self._store.job_names()
        )

    @staticmethod
    def _takes_back(lock: ManagerLock) -> bool:
        try:
            return lock.acquire()
        except OSError as error:
            log.critical("manager %d cannot take its lock back: %s", os.getpid(), error)
            return False

    # -- taking in jobs ------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take over what an earlier manager left, and begin to watch.

        :raises OSError: if the base path cannot be used now.
        """
        clock.boot()  # read once, before it is needed in the midst of something
        self._store.create_directories()
        with contextlib.suppress(OSError):
            files.remove(self._store.problems_path)
            files.remove(self._store.not_replaced_path)
        with contextlib.suppress(OSError):
            for error in self._store.remove_abandoned():
                log.warning("%s", error)
        self._trying(self._accept)

    def _watch(self) -> None:
        """Be told of new jobs and requests; again and again, since it may not have worked."""
        self._notifier.add(_JOBS, self._store.jobs_path)
        self._notifier.add(_INBOX, self._store.inbox_path)

    def _accept(self) -> None:
        """Look at the jobs that somebody has submitted or changed, and at the requests."""
        changes, lost = self._notifier.read() if self._is_notified else (set(), False)
        for key, _ in (change for change in changes if not change.name and change.key in self._active):
            self._abandon(self._active[key])
        for key, name in changes:
            if key == _INBOX:
                self._is_asked = True
            elif key == _JOBS:
                self._look_at(name)
            elif name in (STATE, TASKS):
                self._look_at(key)
        self._has_missed_some = self._has_missed_some or lost
        if lost or time.monotonic() >= self._next_pass:
            self._is_asked = True
            self._watch()
            is_done = self._trying(self._look_at_everything)
            self._next_pass = time.monotonic() + (
                self._settings.poll_interval if is_done else min(_RETRY_SECONDS, self._settings.poll_interval)
            )
        if self._is_asked or not self._notifier.works:
            self._is_asked = not self._trying(self._answer_requests)

    def _look_at_everything(self) -> None:
        """The slow pass, for what no notification told of: new jobs, jobs that run, and some of those that ended."""
        listed = files.stamp(self._store.jobs_path)
        # A directory that was changed a moment ago may change again without a new time stamp.
        if listed != self._listed or listed is None or time.time_ns() - listed.mtime_ns < 2e9:
            names = self._store.job_names()
            for name in self._ended.keys() - set(names):
                self._forget(name)
            for name in names:
                if name not in self._ended:
                    self._look_at(name)
            self._listed = listed
        for name in list(self._active):
            self._look_at(name)
        if self._has_missed_some or not self._rotation:
            self._rotation = list(self._ended)
        number = len(self._rotation) if self._has_missed_some else _CHECKED_A_PASS
        for _ in range(min(number, len(self._rotation))):
            self._look_at(self._rotation.pop())
        self._has_missed_some = False

    def _look_at(self, name: str, *, is_settled: bool = False) -> None:
        """Take in a job if there is something to do for it.

        :param is_settled: whether its files are known to belong together.
        """
        if name in self._active:
            self._active[name].may_have_changed = True
            self._touched.add(name)
            return
        if self._turns.is_busy(name):
            self._look_again.add(name)
            return
        if self._troubles.is_waiting(name, Step.TAKE_IN) or self._troubles.is_waiting(name, Step.END):
            return
        try:
            path = self._store.paths(name).state
        except InvalidJobError:
            if not name.startswith("."):
                log.warning("jobs/%s is passed over: no job can be called so", ascii(name))
            return
        self._turns.do(name, self._looking_at(name, path, is_settled=is_settled))

    def _looking_at(self, name: str, path: Path, *, is_settled: bool) -> Pieces[None]:
        try:
            if name in self._ended:
                if files.stamp(path) == self._ended[name]:
                    return
            elif path.parent.is_symlink():
                log.warning("jobs/%s is passed over: it is a symbolic link", name)
                return
            self._notifier.add(name, path.parent)  # before it is read, so that no change is missed
            yield from self._taking_in(name, is_settled=is_settled)
            self._troubles.over(name, Step.TAKE_IN)
        except OSError as error:
            self._unsettled.setdefault(name, 0.0)  # there is something to do
            self._met(name, Step.TAKE_IN, error, lambda: self._look_at(name))
        finally:
            if name in self._look_again:
                self._look_again.discard(name)
                self._timers.after(0, lambda: self._look_at(name))

    def _taking_in(self, name: str, *, is_settled: bool) -> Pieces[None]:
        try:
            job, version = self._store.load_job(name)
            if job.name != name:
                self._reject(job.evolve(name=name), f"state.json names the job {job.name!r}, its directory {name!r}")
            elif job.state.is_terminal:
                self._remember(name, version)
            else:
                yield from self._taking_over(job, is_settled=is_settled)
        except JobNotFoundError:
            self._forget(name)
        except CorruptFileError as error:
            self._wait_until_whole(name, error)
        except InvalidJobError as error:
            self._reject(job, str(error))

    def _remember(self, name: str, version: files.Stamp | None) -> None:
        self._unsettled.pop(name, None)
        self._ended[name] = version

    def _forget(self, name: str) -> None:
        self._unsettled.pop(name, None)
        self._ended.pop(name, None)
        self._notifier.remove(name)
        self._troubles.over(name)

    def _has_settled(self, name: str) -> bool:
        """Whether a job whose files are not whole has been given the time that its writer may take."""
        until = self._unsettled.get(name)
        if not until:
            until = self._unsettled[name] = time.monotonic() + self._settings.poll_interval
            self._timers.after(self._settings.poll_interval, lambda: self._look_at(name))
        return time.monotonic() >= until

    def _wait_until_whole(self, name: str, error: CorruptFileError) -> None:
        """A file of a job is missing or half-written: give its writer some time, then call it invalid."""
        if not self._has_settled(name):
            return
        if error.path != self._store.paths(name).state:
            self._reject(self._store.load_job(name)[0], str(error))
        elif files.stamp(error.path) is None:  # nobody has called it a job yet
            self._remember(name, None)
        else:
            JobWriter(self._store).quarantine(error.path)
            self._reject(Job(id=f"{name}-{int(time.time())}", name=name, created_at=utc_now()), str(error))

    def _reject(self, job: Job, error: str) -> None:
        """End a job that cannot be run."""
        log.error("job %s is not valid: %s", job.name, error)
        if job.name not in self._ended:  # what an ended run has left running was meant to
            for record in finish(self._runners.recording(job.name)):
                try:
                    self._runners.kill_orphan(record)
                except Exception as problem:  # noqa: BLE001 - the end of the job is what counts
                    log.warning("job %s: task %s cannot be killed: %r", job.name, record.task_id, problem)
        failed = job.evolve(
            state=JobState.FAILED,
            reason=Reason.INVALID,
            error=printable(f"{error}; put that right and retry the job"),
            updated_at=utc_now(),
            # It was an attempt to run the job, and who waits for its end must see that it is over.
            attempt=job.attempt if job.state is JobState.WORKING else job.attempt + 1,
        )
        self._remember(job.name, JobWriter(self._store).write_job(failed, durable=True))
        self._troubles.over(job.name)

    def _taking_over(self, job: Job, *, is_settled: bool) -> Pieces[None]:
        """Begin to run a job, or go on with one that an earlier manager began."""
        job_is_new = job.state is JobState.WAITING
        JobWriter(self._store).prepare_job_directory(job)
        taken = yield from ActiveJob.loading(self._store, job)
        if job_is_new and not taken.is_fresh:
            # Set to waiting by hand. The list may be that of an earlier run, and a new one still to be written.
            if not is_settled and not self._has_settled(job.name):
                return
            taken = yield from taken.resetting()  # what has not completed is meant to run again
        finding = self._dropping_outdated if job_is_new else self._runners.recording
        records = yield from finding(job.name)
        self._unsettled.pop(job.name, None)
        self._ended.pop(job.name, None)
        self._active[job.name] = taken
        taken.is_held = True
        try:
            yield from self._adopting(taken, records)
        except BaseException:
            self._active.pop(job.name, None)  # it is taken in as a whole, or not at all
            raise
        taken.is_held = False
        self._set_job_limit(taken)
        if taken.job.started_at is not None and not clock.is_of_this_boot(taken.job.started_clock):
            taken.change_state(started_clock=clock.mark(clock.elapsed(None, taken.job.started_at)))
        if not job_is_new and taken.job.cancel_requested_at is not None:
            self._stop_job(taken, Reason.CANCELLED, "cancelled")
        self._enqueue(taken)
        self._touched.add(job.name)
        log.info("job %s: %d tasks", job.name, len(taken.tasks))

    def _set_job_limit(self, job: ActiveJob) -> None:
        """Let the timeout of a job run, which is counted from the first start of a task."""
        if job.job.state is JobState.WORKING and job.job.timeout is not None and job.job.started_at is not None:
            ran = clock.elapsed(job.job.started_clock, job.job.started_at)
            self._timers.by(
                job.name, job.job.timeout - ran, partial(self._guard, job.name, partial(self._job_timed_out, job))
            )

    def _has_started(self, job: ActiveJob, started_at: datetime) -> None:
        """A task of a job has been started."""
        if job.job.started_at is None:
            ago = clock.elapsed(None, started_at)
            job.change_state(started_at=started_at, started_clock=clock.mark(ago))
            self._set_job_limit(job)

    def _dropping_outdated(self, name: str) -> Pieces[list[Attempt]]:
        """The records of a job that is waiting: what was started before somebody set it to waiting does not count.

        What was started later does: by a manager that was killed before it had published that the job works. The list
        that an earlier run replaced last goes the same way.
        """
        # The time of the last change: that of the content may be older, if the file was prepared or copied.
        # Rounded as the times are that it is compared with, so that equal ones stay equal.
        since = os.lstat(self._store.paths(name).state).st_ctime_ns / 1e9
        has_ended = name in self._ended  # before our eyes, with all that was recorded
        previous = self._store.paths(name).previous_tasks
        replaced = files.stamp(previous)
        if replaced is not None and (has_ended or replaced.mtime_ns / 1e9 < since):
            yield from files.unlinking(previous)
        kept = []
        for number, attempt in enumerate((yield from self._runners.recording(name)), 1):
            if not number % _RECORDS:
                yield False
            path = self._store.paths(attempt.job_name).record(attempt.task_id, attempt.number)
            found, record = self._runners.adopt(attempt), files.stamp(path)
            if isinstance(found, Ended) and record is not None:
                started = found.started_at.timestamp() if found.started_at else record.mtime_ns / 1e9
                if has_ended or started < since:
                    self._runners.discard(attempt)
                    continue
            kept.append(attempt)
        return kept

    def _adopting(self, job: ActiveJob, records: list[Attempt]) -> Pieces[None]:
        """Find out what became of the tasks that an earlier manager may have started."""
        recorded = {attempt.task_id: attempt for attempt in records}  # the latest of each task
        ended: list[Ended] = []
        for number, attempt in enumerate(list(recorded.values()), 1):
            if not number % _RECORDS:
                yield False
            task = job.tasks.get(attempt.task_id)
            found = self._runners.adopt(attempt)
            if found is None:
                del recorded[attempt.task_id]
                continue
            if task is None or task.status.is_terminal:
                self._kill_stray(found)
                continue
            job.begin_to_work()
            job.begin(attempt, found.started_at or task.started_at or utc_now())
            if isinstance(found, Ended) or not found.waits:
                self._has_started(job, job.tasks[task.id].started_at or utc_now())
            self._running[attempt] = None
            if isinstance(found, Ended):
                ended.append(found)
            elif not found.waits:
                self._set_limits(job.tasks[task.id], attempt, ran=found.age)
        for number, task in enumerate(job.tasks.values(), 1):
            if not number % ITEMS:
                yield False
            if task.status is TaskStatus.RUNNING and task.id not in recorded:
                self._recover_unrecorded(job, task)
            elif task.status is TaskStatus.PENDING and task.completed_at is not None:  # it waits for its next attempt
                job.delayed.add(task.id)
                waited = clock.elapsed(None, task.completed_at)
                self._later(job.name, task.retry_delay - waited, partial(self._ready_again, job, task.id))
        for number, end in enumerate(ended, 1):
            self._end(end)
            if not number % _RECORDS:
                yield False
        if recorded or job.delayed or not job.is_fresh:
            yield from job.building_graph()  # not before: what has ended may depend on each other

    def _kill_stray(self, found: Ended | Running) -> None:
        """A runner works for a task that is not there any more, or has been settled otherwise."""
        if isinstance(found, Running):
            self._running[found.attempt] = Reason.CANCELLED
            self._runners.cancel(found.attempt, kill=True)

    def _recover_unrecorded(self, job: ActiveJob, task: Task) -> None:
        """A task is said to run, but no runner has left a record of it."""
        attempt = Attempt.of(job.name, task.id, max(task.attempt, 1))
        if task.attempt > 0 and clock.is_of_this_boot(job.job.started_clock):
            job.put_back(attempt)  # its runner never came to the point of starting the command
            job.delayed.discard(task.id)
        else:
            error = "it was running when its manager or the machine went down, and left no result; retry the job"
            self._fail(job, attempt, Reason.LOST, error, None, utc_now())

    # -- starting and ending tasks -------------------------------------------------------------------------

    def _enqueue(self, job: ActiveJob) -> None:
        """Put a job in the queue if one of its tasks can start."""
        if job.name not in self._queued and job.can_start:
            created = job.job.created_at.timestamp() if job.job.created_at else 0.0
            heapq.heappush(self._queue, _Turn(-job.job.priority, created, next(self._numbers), job.name))
            self._queued.add(job.name)

    def _launch(self) -> None:
        """Start tasks while there is room: the job with the highest priority first, then the oldest, whatever waits."""
        while time.monotonic() >= self._paused_until:
            turns = self._next_turns()
            if turns is None:
                return
            turn = heapq.heappop(turns)
            try:
                self._take_turn(turn)
            except Exception as error:  # noqa: BLE001 - see _guard
                self._queued.discard(turn.name)
                self._spoil(turn.name, error)

    def _next_turns(self) -> list[_Turn] | None:
        """The queue whose first turn is next: what has just come, or what waits for a runner that has room again."""
        found = self._queue or None
        for runner, turns in self._held_up.items():
            if turns and (found is None or turns[0] < found[0]) and self._runners.has_room(runner):
                found = turns
        return found

    def _take_turn(self, turn: _Turn) -> None:
        """Start the next task of a job, or let it wait until its runner has room."""
        job = self._active.get(turn.name)
        if job is None or not job.can_start:
            self._queued.discard(turn.name)
            return
        task = job.tasks[job.graph.take_ready()]
        runner = self._runners.name_for(job.job, task)
        if self._runners.has_room(runner):
            self._start(job, task, runner)
            if job.can_start:
                heapq.heappush(self._queue, turn)
            else:
                self._queued.discard(turn.name)
        else:
            job.graph.add_ready(task.id)
            heapq.heappush(self._held_up.setdefault(runner, []), turn)

    def _start(self, job: ActiveJob, task: Task, runner: str) -> None:
        if task.status is not TaskStatus.PENDING:
            return
        attempt = Attempt.of(job.name, task.id, task.attempt + 1, runner)
        started_at = utc_now()
        try:
            if job.job.state is JobState.WAITING:
                job.begin_to_work()  # published in a moment, when its first tasks are under way already
            if job.state_is_changed and not job.running and job.job.started_at is None and job.has_history:
                job.publish_state()  # before anything starts: see _taking_over what the next manager would make of it
            waits = self._runners.start(attempt, job.job, task, started_at)
        except ResourceExhaustedError as error:
            job.graph.add_ready(task.id)
            self._troubles.met(job.name, Step.START, error)
            self._pause()
            return
        except SpawnError as error:
            why = str(error)
        except OSError as error:
            is_forbidden = error.errno in files.FORBIDDEN and files.put_modes_back(
                *self._store.paths(job.name).directories
            )
            if error.errno in files.TRANSIENT or is_forbidden:
                job.graph.add_ready(task.id)
                self._hold(job, error)
                return
            why = f"it cannot be started: {error}"
        except Exception as error:
            log.exception("task %s of job %s cannot be started", task.id, job.name)
            why = f"it cannot be started: {type(error).__name__}: {error}"
        else:
            self._troubles.over(job.name, Step.START)
            self._running[attempt] = None
            job.running.add(attempt)  # before anything else: it must be known, lest it go on when the job is ended
            job.begin(attempt, started_at)
            if not waits:
                self._has_started(job, started_at)
                self._set_limits(job.tasks[task.id], attempt)
            self._touched.add(job.name)
            return
        job.begin(attempt, started_at)
        self._fail(job, attempt, Reason.SPAWN, why, None, utc_now())

    def _hold(self, job: ActiveJob, error: OSError) -> None:
        """Start nothing of a job for a while, since its files cannot be written now."""
        job.is_held = True
        self._met(job.name, Step.START, error, lambda: self._let_go_on(job))

    def _let_go_on(self, job: ActiveJob) -> None:
        job.is_held = False
        if self._active.get(job.name) is job:
            self._enqueue(job)

    def _pause(self) -> None:
        """Start nothing for a while, since the machine is short of something."""
        self._paused_until = time.monotonic() + _RETRY_SECONDS
        self._timers.after(_RETRY_SECONDS, lambda: None)

    def _reap(self) -> None:
        """Take in what has become of the attempts."""
        for event in self._runners.poll():
            take_in: Callable[[], None] = (
                partial(self._end, event) if isinstance(event, Ended) else partial(self._go_on, event)
            )
            try:
                take_in()
            except Exception as error:  # noqa: BLE001 - see _guard
                self._spoil(event.attempt.job_name, error)

    def _go_on(self, event: Event) -> None:
        """An attempt has got nearer to its start, or further away from it."""
        attempt = event.attempt
        job = self._active.get(attempt.job_name)
        if job is not None and attempt not in job.running:
            job = None  # it is another one by now
        if isinstance(event, NotStarted):
            self._running.pop(attempt, None)
            if job is not None:
                self._troubles.met(job.name, Step.BEGIN, ResourceExhaustedError(event.why))
                job.put_back(attempt)
                self._ready_again(job, attempt.task_id)
            self._pause()
        elif job is not None:
            self._touched.add(job.name)
            if isinstance(event, Started):
                self._troubles.over(job.name, Step.BEGIN)
                job.begin(attempt, event.started_at)
                self._has_started(job, event.started_at)
                self._set_limits(job.tasks[attempt.task_id], attempt)
            elif isinstance(event, Located):
                job.place(attempt, event.where)

    def _end(self, ended: Ended) -> None:
        attempt, exit_code, ended_at = ended[:3]
        self._timers.cancel(attempt)
        killed = self._running.pop(attempt, None)
        kill_error = self._kill_errors.pop(attempt, "")
        job = self._active.get(attempt.job_name)
        if job is None or attempt not in job.running:  # of a job that was removed, or is another one by now
            return
        self._troubles.over(job.name, Step.BEGIN)
        if ended.started_at is not None and ended.started_at != job.tasks[attempt.task_id].started_at:
            job.begin(attempt, ended.started_at)  # so short that nobody was told of its start
            self._has_started(job, ended.started_at)
        # The time of a file may be some milliseconds behind, and an engine's clock more than that.
        ended_at = max(ended_at, job.tasks[attempt.task_id].started_at or ended_at)
        may_repeat, left = ended.may_repeat, f"; {ended.left}" if ended.left else ""
        if killed is not None:
            self._fail(job, attempt, killed, kill_error + left, exit_code, ended_at, may_repeat=may_repeat)
        elif ended.reason is not None:
            error = (ended.error or ended.reason.value) + left
            self._fail(job, attempt, ended.reason, error, exit_code, ended_at, may_repeat=may_repeat)
        elif exit_code == 0:
            is_short = job.graph.number_of_dependents(attempt.task_id) <= ITEMS and not self._turns.is_busy(job.name)
            rest = job.complete(attempt, ended_at)
            if is_short:
                finish(rest)
            else:
                self._turns.do(job.name, rest)
        elif exit_code is None:
            error = f"its runner was killed, or the machine restarted, and left no result{left}"
            self._fail(job, attempt, Reason.LOST, error, None, ended_at, may_repeat=may_repeat)
        else:
            reason, error = _explain(exit_code)
            self._fail(job, attempt, reason, error, exit_code, ended_at)
        self._enqueue(job)
        self._touched.add(job.name)

    def _fail(
        self,
        job: ActiveJob,
        attempt: Attempt,
        reason: Reason,
        error: str,
        exit_code: int | None,
        ended_at: datetime,
        *,
        may_repeat: bool = True,
    ) -> None:
        """An attempt has failed: try again if the task says so, or let the task fail."""
        task = job.tasks[attempt.task_id]
        made = attempt.number - task.attempts_before
        self._touched.add(job.name)
        if job.stopping is None and made <= task.retries and reason is not Reason.CANCELLED and may_repeat:
            log.info("job %s: task %s, attempt %d: %s; trying again", job.name, task.id, attempt.number, error)
            job.put_back(attempt, failed_at=ended_at)
            self._later(job.name, task.retry_delay, lambda: self._ready_again(job, task.id))
            return
        log.info("job %s: task %s failed: %s", job.name, task.id, error)
        self._turns.do(job.name, job.fail(task.id, reason, error, exit_code=exit_code, ended_at=ended_at))

    def _ready_again(self, job: ActiveJob, task_id: str) -> None:
        if self._active.get(job.name) is not job or job.tasks[task_id].status is not TaskStatus.PENDING:
            return
        job.delayed.discard(task_id)
        if job.stopping is not None:
            job.fail_if_stopped(task_id)
            self._touched.add(job.name)
        else:
            job.graph.add_ready(task_id)
            self._enqueue(job)

    # -- killing -------------------------------------------------------------------------------------------

    def _set_limits(self, task: Task, attempt: Attempt, *, ran: float | None = None) -> None:
        """Watch the time and the log of an attempt that has been started.

        :param ran: seconds that it has run; default: since the start that it tells.
        """
        if self._settings.max_log_size is not None:
            self._later(attempt.job_name, _LOG_SIZE_SECONDS, lambda: self._check_log_size(attempt))
        limit = task.timeout or self._settings.task_timeout
        needed = task.resources and task.resources.time
        limit = min(limit or needed, needed) if needed else limit
        if limit is not None:
            ran = clock.elapsed(None, task.started_at or utc_now()) if ran is None else ran
            error = f"it ran longer than its timeout of {limit:g} s and was killed"
            kill = partial(self._kill, attempt, Reason.TIMEOUT, error)
            self._timers.by(attempt, limit - ran, partial(self._guard, attempt.job_name, kill))

    def _kill(self, attempt: Attempt, reason: Reason, error: str) -> None:
        """End an attempt: SIGTERM to its process group, and SIGKILL after the grace."""
        if attempt not in self._running or self._running[attempt] is not None:
            return
        self._running[attempt] = reason
        self._kill_errors[attempt] = error
        self._later(attempt.job_name, self._settings.kill_grace, lambda: self._kill_hard(attempt))
        self._runners.cancel(attempt, kill=False)

    def _kill_hard(self, attempt: Attempt) -> None:
        if attempt in self._running:
            self._runners.cancel(attempt, kill=True)

    def _stop_job(self, job: ActiveJob, reason: Reason, error: str) -> None:
        """Start nothing more of a job, and kill what runs."""
        if job.stopping is None:
            log.info("job %s is stopped: %s", job.name, error)
            self._turns.do(job.name, job.stop(reason, error))
        self._touched.add(job.name)
        # Also when this is done again, since the kill of one of them failed. The last one comes first: where an engine
        # runs several one after the other, the next must not begin because the one that runs is ended.
        for attempt in sorted(job.running, key=lambda attempt: job.graph.position(attempt.task_id), reverse=True):
            self._kill(attempt, reason, error)

    def _job_timed_out(self, job: ActiveJob) -> None:
        if self._active.get(job.name) is job:
            limit = job.job.timeout
            self._stop_job(job, Reason.TIMEOUT, f"the job ran longer than its timeout of {limit:g} s and was killed")

    def _check_log_size(self, attempt: Attempt) -> None:
        limit = self._settings.max_log_size
        if attempt not in self._running or limit is None:
            return
        found = files.stamp(self._store.paths(attempt.job_name).log(attempt.task_id))
        if found is not None and found.size > limit:
            self._kill(attempt, Reason.SIGNAL, f"its log grew over max_log_size ({limit} bytes), and it was killed")
        else:
            self._later(attempt.job_name, _LOG_SIZE_SECONDS, lambda: self._check_log_size(attempt))

    # -- requests ------------------------------------------------------------------------------------------

    def _answer_requests(self) -> None:
        is_open = False
        for path in self._store.requests():
            if not self._is_in_work(path):
                self._turns.do(f"{_INBOX}/{path.name}", self._taking_up(path))  # no job can be called so
            is_open = is_open or self._will_ask_again or self._is_in_work(path)
        if not is_open:
            self._ask_pause = _RETRY_SECONDS
            self._troubles.over_everywhere(Step.REQUEST)

    def _is_in_work(self, path: Path) -> bool:
        """Whether a request is being read or carried out, so that it is not known yet what becomes of it."""
        return self._turns.is_busy(f"{_INBOX}/{path.name}") or self._turns.is_busy(self._in_work.get(path.name, ""))

    def _taking_up(self, path: Path) -> Pieces[None]:
        """Read a request, and begin to carry it out."""
        name, request = self._answered.get(path.name, path.name), None
        try:
            if path.name not in self._answered:
                request = yield from self._store.loading_request(path)
                name = request.job
                if name not in self._active:
                    self._look_at(name)
        except FileNotFoundError:  # somebody has taken it back
            return
        except Exception as error:  # noqa: BLE001 - see _guard
            self._not_answered(path, name, error)
        else:
            self._in_work[path.name] = name
            self._turns.do(name, self._answering(path, name, request))

    def _answering(self, path: Path, name: str, request: Request | None) -> Pieces[None]:
        """Carry out a request, and remove it.

        :param request: None if it has been carried out already.
        """
        try:
            if request is not None:
                yield from self._carrying_out(request)
                self._answered[path.name] = name
                if isinstance(request.tasks, list):
                    yield from dropping(request.tasks)
            path.unlink(missing_ok=True)
            del self._answered[path.name]
        except Exception as error:  # noqa: BLE001 - see _guard
            self._not_answered(path, name, error)
        finally:
            self._in_work.pop(path.name, None)

    def _not_answered(self, path: Path, name: str, error: Exception) -> None:
        """A request could not be carried out, now or at all."""
        if isinstance(error, OSError):
            self._met(name, Step.REQUEST, error)
            self._ask_again()
            return
        if not isinstance(error, AirExecutorError) and name in self._active:
            self._spoil(name, error)
        log.warning("request %s is quarantined: %r", path.name, error)
        try:
            JobWriter(self._store).quarantine(path)
        except OSError as problem:
            self._met(name, Step.REQUEST, problem)
            self._ask_again()

    def _ask_again(self) -> None:
        if not self._will_ask_again:
            self._will_ask_again = True
            self._timers.after(self._ask_pause, self._answer_again)
            self._ask_pause = min(2 * self._ask_pause, _LONGEST_ASK_PAUSE)

    def _answer_again(self) -> None:
        self._will_ask_again = False
        self._is_asked = not self._trying(self._answer_requests)

    def _carrying_out(self, request: Request) -> Pieces[None]:
        """Carry out a request. It may be the second time, if a manager was killed in between.

        :raises OSError: if it must be tried again.
        :raises AirExecutorError: if it cannot be carried out at all.
        """
        job = self._active.get(request.job)
        stored = job.job if job is not None else self._store.load_job(request.job)[0]
        if not self._store.may_cancel(stored, request.owner):
            log.info("job %s is not cancelled: it does not belong to %s any more", request.job, request.owner)
        elif job is None and not stored.state.is_terminal:  # its tasks may run
            raise BlockingIOError(errno.EAGAIN, "the job could not be taken in yet")
        elif job is None:
            if request.request is not Action.CANCEL:
                yield from self._reopening(stored, request.tasks)
        elif request.request is Action.CANCEL:
            job.begin_to_work()
            job.change_state(cancel_requested_at=utc_now())
            job.publish_state()
            self._stop_job(job, Reason.CANCELLED, "cancelled")
        elif request.request is Action.ADD_TASKS:
            yield from self._adding_tasks(job, request.tasks)

    def _adding_tasks(self, job: ActiveJob, tasks: Iterable[Task]) -> Pieces[None]:
        if job.unreadable_since is not None:
            raise BlockingIOError(errno.EAGAIN, "somebody else is writing tasks.json")
        added = yield from _not_there_yet(tasks, job.tasks)
        job.is_growing = True  # nothing may start that the next manager would not know of
        try:
            if added:
                yield from job.adding(added)
            try:
                yield from job.snapshotting()
            except BaseException:
                job.withdraw(added)
                raise
        finally:
            job.is_growing = False
        self._enqueue(job)
        self._touched.add(job.name)
        yield from dropping(added)

    def _reopening(self, job: Job, added: Sequence[Task]) -> Pieces[None]:
        """Let a job that has ended go on: with what failed, or with tasks that were added too late."""
        try:
            tasks, _ = yield from self._store.loading_task_list(job.name, self._store.paths(job.name).tasks)
        except CorruptFileError as error:
            self._reject(job, str(error))
            return
        if added:
            if job.reason not in _REOPENED:
                raise InvalidJobError(f"job {job.name} has ended ({job.reason}) and takes no more tasks")
            added = yield from _not_there_yet(added, {task.id: task for task in tasks})
            yield from checking_ids(added)
            tasks += added
            yield from checking_task_list(tasks)
            if all(task.status.is_terminal for task in tasks):
                return
        elif job.state is not JobState.FAILED:
            return
        else:
            before, tasks = tasks, (yield from resetting_failed(tasks))
            yield from dropping(before)
        yield from self._dropping_outdated(job.name)
        yield from JobWriter(self._store).resetting_tasks(job.name, tasks)
        yield from dropping(tasks)
        waiting = job.evolve(state=JobState.WAITING, updated_at=utc_now(), started_at=None, reason=None, error=None)
        JobWriter(self._store).write_job(waiting.evolve(cancel_requested_at=None), durable=True)
        yield from self._looking_at(job.name, self._store.paths(job.name).state, is_settled=True)

    # -- publishing ----------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        """Publish how the jobs stand that something has happened to, and end those that are over."""
        touched, self._touched = self._touched, set()
        for name in touched:
            job = self._active.get(name)
            if job is None or self._troubles.is_waiting(name, Step.WRITE):
                continue
            if self._turns.is_busy(name):
                self._touched.add(name)
            elif job.has_news:
                self._turns.do(name, self._publishing_as_far_as_possible(job))
            else:
                self._enqueue(job)

    def _publishing_as_far_as_possible(self, job: ActiveJob) -> Pieces[None]:
        try:
            yield from self._publishing(job)
            self._troubles.over(job.name, Step.WRITE)
        except (FileNotFoundError, NotADirectoryError, JobNotFoundError) as error:
            self._guard(job.name, partial(self._abandon_if_gone, job, error))
        except OSError as error:
            self._met(job.name, Step.WRITE, error, partial(self._touched.add, job.name))

    def _publishing(self, job: ActiveJob) -> Pieces[None]:
        if job.state_is_changed and not job.is_over and self._may_publish_state(job):
            if not job.is_in_place():
                self._abandon(job)
                return
            job.publish_state()
        if job.may_have_changed or job.is_over:
            if not job.is_in_place():
                self._abandon(job)
                return
            if not (yield from self._merging_foreign(job)):
                return
            job.may_have_changed = False
        self._enqueue(job)
        if job.is_over:
            if not (yield from self._concluding(job)):
                self._touched.add(job.name)
                self._timers.after(0, lambda: None)
                return
            del self._active[job.name]
            self._turns.do(_GONE, job.dropping())
            self._timers.cancel(job.name)
            self._remember(job.name, job.state_stamp)
            self._troubles.over(job.name)
            log.info("job %s %s%s", job.name, job.job.state.value, f": {job.job.error}" if job.job.error else "")
        elif job.is_dirty and not job.snapshot_due:
            job.snapshot_due = True
            self._later(job.name, job.snapshot_interval, partial(self._snapshot, job))

    def _concluding(self, job: ActiveJob) -> Pieces[bool]:
        """Publish the end of a job; False if it is not the end, for something was added at the last moment."""
        try:
            return (yield from job.concluding())
        except InvalidJobError as problem:
            yield from self._discarding_foreign(job, problem)
            return False

    def _may_publish_state(self, job: ActiveJob) -> bool:
        """Whether it is time to say that the job works: one of an instant has ended before anybody could read it."""
        if job.state_due is None:
            job.state_due = time.monotonic() + _STATE_SECONDS
            self._timers.after(_STATE_SECONDS, partial(self._touched.add, job.name))
        return time.monotonic() >= job.state_due

    def _snapshot(self, job: ActiveJob) -> None:
        self._turns.do(job.name, self._snapshotting(job))

    def _snapshotting(self, job: ActiveJob) -> Pieces[None]:
        job.snapshot_due = False
        if self._active.get(job.name) is not job or job.unreadable_since is not None:
            return
        job.may_have_changed = True  # to see what the snapshot has replaced
        self._touched.add(job.name)
        if not job.is_in_place():
            return
        try:
            yield from job.snapshotting()
            self._troubles.over(job.name, Step.LIST)
        except FileNotFoundError as error:
            self._guard(job.name, partial(self._abandon_if_gone, job, error))
        except OSError as error:
            job.snapshot_due = True
            self._met(job.name, Step.LIST, error, partial(self._snapshot, job))

    def _merging_foreign(self, job: ActiveJob) -> Pieces[bool]:
        """Take in tasks that a running task has added; False while the list is half-written."""
        try:
            if (yield from job.merging_external_edits()):
                return True
            if time.monotonic() - (job.unreadable_since or 0) < self._settings.poll_interval:
                self._timers.after(min(0.05, self._settings.poll_interval), lambda: self._touched.add(job.name))
                return False
            yield from self._discarding_foreign(job)
        except InvalidJobError as problem:
            yield from self._discarding_foreign(job, problem)
        return True

    def _discarding_foreign(self, job: ActiveJob, problem: InvalidJobError | None = None) -> Pieces[None]:
        """Go back to our own list of tasks, and end the job.

        :param problem: what is wrong with the tasks that were added; None if there is no list at all.
        """
        error = "tasks.json was overwritten with something that is not a list of tasks"
        if problem is not None:
            error = f"tasks were added to tasks.json that are not valid: {problem}"
        yield from job.discarding_external_edits()
        self._stop_job(job, Reason.INVALID, f"{error}; put that right and retry the job")

    def _abandon_if_gone(self, job: ActiveJob, error: Exception) -> None:
        if self._active.get(job.name) is not job:
            return
        if job.is_in_place():
            self._met(job.name, Step.WRITE, error, partial(self._touched.add, job.name))
        else:
            self._abandon(job)

    def _abandon(self, job: ActiveJob) -> None:
        """The directory of a job is gone: somebody has removed it while it ran."""
        log.warning("the directory of job %s is gone; what runs of it is killed", job.name)
        del self._active[job.name]
        self._turns.drop(job.name)
        self._timers.cancel(job.name)
        self._forget(job.name)
        self._turns.do(_GONE, job.dropping())
        for attempt in job.running:
            self._runners.detach(attempt)
            self._guard(job.name, partial(self._kill, attempt, Reason.CANCELLED, "its job was removed"))
        job.running.clear()
        self._look_at(job.name)  # there may be another one by now


class _Turn(NamedTuple):
    """The place of a job in the queue; the smallest is first."""

    priority: int  # the job's, negated
    created: float
    number: int
    name: str


def _not_there_yet(tasks: Iterable[Task], present: Mapping[str, Task]) -> Pieces[list[Task]]:
    """The tasks without those that have been added before, by the same request.

    :raises InvalidJobError: if another task has the id of one.
    """
    added = []
    for number, task in enumerate(tasks, 1):
        if not number % ITEMS:
            yield False
        there = present.get(task.id)
        if there is None:
            added.append(task)
        elif (there.command, there.args, there.dependencies) != (task.command, task.args, task.dependencies):
            raise InvalidJobError(f"task id {task.id!r} is taken by another task of this job")
    return added


def _explain(exit_code: int) -> tuple[Reason, str]:
    """Why a command failed, from the exit code that the shell gives: 128 + n for signal n."""
    with contextlib.suppress(ValueError):
        return Reason.SIGNAL, f"ended by {signal.Signals(exit_code - 128).name} (exit code {exit_code})"
    return Reason.EXIT, f"exit code {exit_code}"
