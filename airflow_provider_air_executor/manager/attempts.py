"""How attempts start and end, and which of them are followed by another one."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from datetime import datetime
from functools import partial

from airflow_provider_air_executor.engines import protocol
from airflow_provider_air_executor.engines.protocol import LOCAL, Attempt, Ended, Event, Located, NotStarted, Started
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import JobState, Reason, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.manager.active_job import CANCELLED, ActiveJob, Cause, Hold
from airflow_provider_air_executor.manager.limits import Limits
from airflow_provider_air_executor.manager.lines import Entry
from airflow_provider_air_executor.manager.rejection import Rejection
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.timers import RETRY_SECONDS
from airflow_provider_air_executor.manager.troubles import Step

log = logging.getLogger("air_executor.manager")

_SETTLE_SECONDS, _SETTLE_LOOKS = 0.005, 40  # between two looks at what was handed over ahead, before a manager ends


class Attempts:
    """Starts the tasks of active jobs while there is room, and processes how they end."""

    def __init__(self, shared: Shared, limits: Limits, rejection: Rejection) -> None:
        self._store, self._files, self._engines = shared.store, shared.files, shared.engines
        self._jobs, self._queue = shared.jobs, shared.queue
        self._timers, self._troubles = shared.timers, shared.troubles
        self._turns, self._guard = shared.turns, shared.guard
        self._limits, self._rejection = limits, rejection
        self._paused_until = 0.0

    # -- starting ------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start tasks while there is room, those of the first jobs in the queue first."""
        if self._engines.holdings.pledged and not self._queue.is_paused:
            self._start_pledged()
        while self._timers.now() >= self._paused_until:
            entry = self._queue.pop()
            if entry is None:
                return
            try:
                self._launch_one(entry)
            except Exception as error:  # noqa: BLE001 - see Guard.run_for
                self._queue.release(entry)
                self._rejection.fail(entry.name, error)

    def _launch_one(self, entry: Entry) -> None:
        """Start the next task of a job, or block the job until its engine has room."""
        job = self._jobs.active.get(entry.name)
        if job is None or not job.can_start or entry.needs not in job.graph.needs:
            self._queue.release(entry)
            return
        task = job.tasks[job.graph.take_ready(entry.needs)]
        engine = self._engines.name_for(job.job, task)
        if not self._engines.has_room(engine):
            job.graph.add_ready(task.id)
            self._queue.block(entry, engine)
            self._start_ahead(job)
            return
        needs = self._engines.needs(engine, task)
        if needs is None:
            self._start(job, task, engine)
        elif self._queue.lines.allows(entry, needs):
            if self._start(job, task, engine):
                self._queue.lines.has_started(entry, needs)
        elif task.status is TaskStatus.PENDING:
            job.graph.add_ready(task.id)
            self._queue.lines.add(entry, job, needs)
            return
        self._queue.put_back(entry, job)
        if not job.can_start:
            self._start_ahead(job)

    def _start_ahead(self, job: ActiveJob) -> None:
        """Hand over the next tasks of a job for which there is no room: each starts when a short one of the job ends.

        So the machine need not wait for the manager. Nobody else may wait for that room.
        """
        while self._hand_over_ahead(job):
            pass

    def _hand_over_ahead(self, job: ActiveJob) -> bool:
        is_possible = job.stopping is None and not job.holds and job.room >= 0 and self._queue.may_go_ahead(job.name)
        before = self._engines.short_one(job.name) if is_possible and None in job.graph.needs else None
        if before is None or job.running.get(before, CANCELLED) is not None or self._timers.now() < self._paused_until:
            return False
        task = job.tasks[job.graph.take_ready(None)]
        if task.status is not TaskStatus.PENDING:
            return False
        attempt, started_at = Attempt.of(job.name, task.id, 1), utc_now()
        is_plain = not task.attempt and task.resources is None and job.refusal(task) is None
        is_plain = is_plain and job.graph.may_follow(task.id, before.task_id)
        is_taken = False
        if is_plain and self._engines.name_for(job.job, task) == LOCAL:
            with contextlib.suppress(OSError, protocol.SpawnError):  # it meets that again when there is room
                is_taken = self._engines.start_after(before, attempt, job.job, task, started_at)
        if not is_taken:
            job.graph.add_ready(task.id)
            return False
        job.running[attempt] = None
        job.ahead.add(attempt)
        job.begin(attempt, started_at)
        return True

    def _start_pledged(self) -> None:
        """Start first what an earlier manager was about to start when it was killed, and may have begun."""
        for attempt in self._engines.holdings.pledged:
            job = self._jobs.active.get(attempt.job_name)
            task = None if job is None else job.tasks.get(attempt.task_id)
            if job is None or task is None or task.status is not TaskStatus.PENDING or job.refusal(task) is not None:
                self._engines.holdings.drop_pledge(attempt)
            elif job.can_start and task.id not in job.delayed and self._engines.has_room(LOCAL):
                self._start(job, task, LOCAL)

    def _start(self, job: ActiveJob, task: Task, engine: str) -> bool:
        """Start an attempt; False if none was started."""
        if task.status is not TaskStatus.PENDING or job.refusal(task) is not None:
            return False
        attempt = Attempt.of(job.name, task.id, task.attempt + 1, engine)
        started_at = utc_now()
        try:
            if job.job.state is JobState.WAITING:
                job.begin_to_work()  # published in a moment, when its first tasks are under way already
            if not job.running and job.job.started_at is None and job.on_disk.has_history and job.state_is_changed:
                # Before anything starts: see Recovery.reattaching what the next manager would make of it.
                self._files.publish_state(job)
            self._limits.log_times.begin(attempt)
            waits = self._engines.start(attempt, job.job, task, started_at)
        except protocol.ResourceExhaustedError as error:
            job.graph.add_ready(task.id)
            self._troubles.met(job.name, Step.START, error)
            self._pause()
            return False
        except protocol.SpawnError as error:
            why = str(error)
        except OSError as error:
            directories = self._store.paths(job.name).directories
            is_forbidden = error.errno in files.FORBIDDEN and files.put_modes_back(*directories)
            if error.errno in files.TRANSIENT or is_forbidden:
                job.graph.add_ready(task.id)
                job.holds.add(Hold.TROUBLE)
                self._troubles.met(job.name, Step.START, error, partial(self._start_again, job))
                return False
            why = f"it cannot be started: {error}"
        except Exception as error:
            log.exception("task %s of job %s cannot be started", task.id, job.name)
            why = f"it cannot be started: {type(error).__name__}: {error}"
        else:
            self._troubles.over(job.name, Step.START)
            self._jobs.counters["tasks_started"] += 1
            job.running[attempt] = None  # before anything else: it must be known, so that it ends with its job
            job.begin(attempt, started_at)
            if not waits:
                self._limits.job_has_started(job, started_at)
                self._limits.watch(job.tasks[task.id], attempt)
            self._jobs.touched.add(job.name)
            return True
        job.begin(attempt, started_at)
        self.fail(job, Ended(attempt, None, utc_now()), Cause(Reason.SPAWN, why))
        return False

    def _start_again(self, job: ActiveJob) -> None:
        job.holds.discard(Hold.TROUBLE)
        if self._jobs.is_active(job):
            self._queue.add(job)

    def settle(self) -> None:
        """Wait a moment until it is known of all that was handed over ahead whether it starts; nothing more does."""
        self._queue.is_paused = True
        for _ in range(_SETTLE_LOOKS):
            if not any(job.ahead for job in self._jobs.active.values()):
                return
            time.sleep(_SETTLE_SECONDS)
            self.reap()

    def _pause(self) -> None:
        """Start nothing for a while, since the machine is short of something."""
        self._paused_until = self._timers.now() + RETRY_SECONDS
        self._timers.wake(RETRY_SECONDS)

    # -- events --------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Process what has become of the attempts."""
        for event in self._engines.poll():
            try:
                if isinstance(event, Ended):
                    self.end(event)
                else:
                    self._advance(event)
            except Exception as error:  # noqa: BLE001 - see Guard.run_for
                lost = event.attempt if isinstance(event, Ended) else None
                self._rejection.fail(event.attempt.job_name, error, lost)

    def _advance(self, event: Event) -> None:
        """An attempt has come nearer to its start, or further away from it."""
        attempt = event.attempt
        job = self._jobs.active.get(attempt.job_name)
        if job is not None and attempt not in job.running:
            job = None  # it is another one by now
        if isinstance(event, NotStarted):
            self._limits.release(attempt)
            if job is not None:
                job.release(attempt)
                if event.why:
                    self._troubles.met(job.name, Step.BEGIN, protocol.ResourceExhaustedError(event.why))
                job.put_back(attempt)
                self.make_ready(job, attempt.task_id)
            if event.why:
                self._pause()
        elif job is not None:
            self._jobs.touched.add(job.name)
            if isinstance(event, Started):
                self._troubles.over(job.name, Step.BEGIN)
                job.begin(attempt, event.started_at)
                self._limits.job_has_started(job, event.started_at)
                self._limits.watch(job.tasks[attempt.task_id], attempt)
                if attempt in job.ahead:
                    self._jobs.counters["tasks_started"] += 1
                    job.ahead.discard(attempt)
            elif isinstance(event, Located):
                job.locate(attempt, event.where)

    def end(self, ended: Ended) -> None:
        """An attempt has ended: its task completes, fails, or is tried again."""
        attempt = ended.attempt
        self._limits.release(attempt)
        job = self._jobs.active.get(attempt.job_name)
        if job is None or attempt not in job.running:  # of a job that was removed, or is another one by now
            return
        killed = job.release(attempt)
        if job.tasks[attempt.task_id].cancel_requested_at is not None:
            killed = killed or CANCELLED  # it has ended in the moment in which it was to be killed
        self._troubles.over(job.name, Step.BEGIN)
        if ended.started_at is not None and ended.started_at != job.tasks[attempt.task_id].started_at:
            job.begin(attempt, ended.started_at)  # so short that there was no event of its start
            self._limits.job_has_started(job, ended.started_at)
        # The time of a file may be some milliseconds behind, and an engine's clock more than that.
        ended_at = max(ended.ended_at, job.tasks[attempt.task_id].started_at or ended.ended_at)
        self._count_seconds(job.tasks[attempt.task_id], ended_at)
        cause = _why_failed(ended, killed)
        if cause is not None:
            if ended.usage is not None:
                job.measure(attempt, ended.usage)
            self.fail(job, ended._replace(ended_at=ended_at), cause)
        else:
            self._jobs.counters["tasks_completed"] += 1
            is_short = job.graph.is_short(attempt.task_id) and not self._turns.is_busy(job.name)
            rest = job.complete(attempt.task_id, ended_at, ended.usage)
            if is_short:
                finish(rest)
            else:
                self._turns.do(job.name, rest)
        self._queue.add(job)
        if not job.can_start:
            self._start_ahead(job)
        self._jobs.touched.add(job.name)

    def _count_seconds(self, task: Task, ended_at: datetime) -> None:
        if task.started_at is not None:
            self._jobs.counters["task_seconds"] += (ended_at - task.started_at).total_seconds()

    def fail(self, job: ActiveJob, ended: Ended, cause: Cause) -> None:
        """An attempt has failed: try again if the task has retries left, or let the task fail."""
        attempt = ended.attempt
        task = job.tasks[attempt.task_id]
        made = attempt.number - task.attempts_before
        self._jobs.touched.add(job.name)
        may_start = job.refusal(task) is None and cause.reason is not Reason.CANCELLED
        if may_start and made <= task.retries and ended.may_repeat:
            log.info("job %s: task %s, attempt %d: %s; trying again", job.name, task.id, attempt.number, cause.error)
            self._jobs.counters["tasks_retried"] += 1
            job.put_back(attempt, failed_at=ended.ended_at)
            self.retry_later(job, task.id, task.retry_delay)
            return
        log.info("job %s: task %s failed: %s", job.name, task.id, cause.error)
        self._jobs.counters["tasks_failed"] += 1
        self._turns.do(job.name, job.fail(task.id, cause, ended))

    def retry_later(self, job: ActiveJob, task_id: str, seconds: float) -> None:
        """Let a pending task start in so many seconds."""
        self._guard.run_later(job.name, seconds, partial(self.make_ready, job, task_id))

    def make_ready(self, job: ActiveJob, task_id: str) -> None:
        """Let a pending task start that was not to start yet, or fail if its job is stopped by now."""
        task = job.tasks.get(task_id)
        if not self._jobs.is_active(job) or task is None or task.status is not TaskStatus.PENDING:
            return
        job.delayed.discard(task_id)
        refusal = job.refusal(task)
        if refusal is not None:
            self._turns.do(job.name, job.fail(task_id, refusal))
            self._jobs.touched.add(job.name)
        else:
            job.graph.add_ready(task_id)
            self._queue.add(job)


def _why_failed(ended: Ended, killed: Cause | None) -> Cause | None:
    """Why an attempt has failed; None if it has not.

    :param killed: why the manager was killing it, if it was.
    """
    left = f"; {ended.left}" if ended.left else ""
    if killed is not None:
        return Cause(killed.reason, killed.error + left)
    if ended.reason is not None:
        return Cause(ended.reason, (ended.error or ended.reason.value) + left)
    if ended.exit_code is None:
        return Cause(Reason.LOST, f"its process was killed, or the machine restarted, and left no result{left}")
    return _explain(ended.exit_code) if ended.exit_code else None


def _explain(exit_code: int) -> Cause:
    """Why a command failed, by the exit code of the shell: 128 + n for signal n."""
    with contextlib.suppress(ValueError):
        return Cause(Reason.SIGNAL, f"ended by {signal.Signals(exit_code - 128).name} (exit code {exit_code})")
    return Cause(Reason.EXIT, f"exit code {exit_code}")
