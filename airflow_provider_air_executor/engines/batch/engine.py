"""An engine whose attempts are batch jobs of a system that shares the job filesystem.

A node runs the same shim as this machine. It writes the log, and the record in ``runs/``, which it creates exclusively.
So an attempt runs once even if the system starts it twice, and its result is known even if the system has forgotten the
batch job.

Before an attempt is submitted, its script is written to its handle, with a token that the system stores as well. By the
token a later manager finds the batch job; if there is none, it submits the attempt again. The engine never waits for
the system: while that does not answer, no attempt changes its state.

Short tasks may share a batch job, which runs them one after the other. Those that it does not start are submitted
again, and one that is cancelled before its turn has its record claimed by the manager, so that it is passed over.
"""

from __future__ import annotations

import abc
import json
import logging
import math
import secrets
import shutil
import time
from datetime import datetime
from functools import partial
from typing import ClassVar, NamedTuple

from airflow_provider_air_executor.engines.batch.accounting import Events
from airflow_provider_air_executor.engines.batch.attempt import BatchedAttempt
from airflow_provider_air_executor.engines.batch.canceller import Canceller
from airflow_provider_air_executor.engines.batch.dialect import SUBMITTED, Dialect, Phase, State
from airflow_provider_air_executor.engines.batch.handles import Handles, make_script
from airflow_provider_air_executor.engines.batch.query import AGAIN_SECONDS, Query
from airflow_provider_air_executor.engines.batch.submitter import Submitter
from airflow_provider_air_executor.engines.batching import pop_tasks_per_submission
from airflow_provider_air_executor.engines.children import Commands, Result
from airflow_provider_air_executor.engines.protocol import (
    Attempt,
    Context,
    Ended,
    Event,
    Located,
    Running,
    SpawnError,
    Started,
)
from airflow_provider_air_executor.engines.shim import modified_at, prepare_files, preparing, task_variables
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.attempt_record import Record
from airflow_provider_air_executor.jobs.models import MAY_STILL_RUN, Reason, Task, utc_now
from airflow_provider_air_executor.jobs.usage import usage_of
from airflow_provider_air_executor.system.environment import inherited, of_command

log = logging.getLogger("air_executor.manager")

_AT_A_TIME = 4  # command lines; more make the system slower, not faster
_COMMAND_SECONDS = 120.0
_LOOK_SECONDS = 0.2  # between two looks at the records; longer if there are many
_LOOK_SECONDS_EACH = 0.001
_SETTLE_SECONDS = 2.0  # that a shared file system may take to show what a node wrote before its job ended
_LONGEST_STATE_SECONDS = 10.0  # that a command ended by a signal waits for the system to say why
_PUT_BACK_SECONDS = 15.0  # that the system may say of what runs that it waits
_NEVER_TWICE = 2  # a reason is believed if it is given again


class Options(NamedTuple):
    """The options of the engine.

    :param poll_interval: seconds between two questions to the system; more if an answer takes long. Default 2.
    :param fenced: whether a node that the system calls failed is known to be off, so that what it ran may be tried
        again. Default false.
    :param tasks_per_submission: how many tasks of a job that are ready at the same time and need the same one batch job
        runs, one after the other; 1 to 50, default 1. A task may say so too.
    :param submit: options of the command that submits, by their long names, for tasks that do not give them.
    """

    poll_interval: float
    fenced: bool
    tasks_per_submission: int
    submit: dict[str, str]


class BatchEngine(abc.ABC):
    """Runs attempts as batch jobs, see the module.

    Its options, besides ``max_concurrent``, are those of :class:`Options` and of the command that submits.

    :raises SettingsError: if the system's commands are not there, or an option is not valid.
    """

    dialect: ClassVar[Dialect]
    descriptor = None

    def __init__(self, context: Context) -> None:
        found = context.environment
        _check_commands(self.dialect, found.get("PATH"))
        self._options = _read_options(self.dialect, dict(context.options))
        self._store = context.store
        self._handles = Handles(self.dialect, context.store)
        self._environment = inherited(found, str(context.store.base_path))
        exported = {key: value for key, value in found.items() if self.dialect.is_for_commands(key)}
        # Two, so that what is asked and cancelled does not wait for a thousand submissions.
        commands = partial(Commands, context.children, exported, limit=_AT_A_TIME, timeout=_COMMAND_SECONDS)
        submissions, self._commands = commands(), commands()
        self._attempts: dict[Attempt, BatchedAttempt] = {}
        self._submitter = Submitter(self.dialect, submissions, self._submitted)
        interval = self._options.poll_interval
        self._query = Query(self.dialect, self._commands, self._attempts, interval, self._update_from_list)
        self._canceller = Canceller(self.dialect, self._commands, self._read)
        self._events = Events(self.dialect, self._commands)
        self._next_look = 0.0
        self._has_complained = False

    # -- starting --------------------------------------------------------------------------------------------

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> bool:
        """Hand an attempt to the system; it waits for its turn there."""
        job_name, task_id, number = attempt[:3]
        dialect, paths = self.dialect, self._store.paths(job_name)
        log_path, output_path = paths.log(task_id), paths.output(task_id, number)
        words = [str(log_path), task.cwd or "", task.command, *task.args]
        try:
            given = task.engine_options(dialect.NAME)
            size = pop_tasks_per_submission(given, dialect.NAME, self._options.tasks_per_submission)
            own, needed = dialect.check_options(given), dialect.resource_options(task.resources)
        except ValueError as error:
            raise SpawnError(f"{dialect.NAME}.{error}") from None
        options = dialect.nearest(self._options.submit, own, needed)
        variables = task_variables(attempt, str(paths.directory), str(output_path))
        environment = {**of_command(self._environment, task.env, append=task.append_env), **variables}
        seconds = task.resources.time if task.resources is not None else None
        found = self._handles.make(attempt, secrets.token_hex(8), options, seconds)
        with preparing(dialect.TITLE):
            prepare_files(output_path, log_path)
            script = make_script(dialect, found.token, options, environment, found.record_path, words)
            self._handles.write(found, script)
        self._attempts[attempt] = found
        if size > 1:
            self._submitter.gather(found, size, json.dumps(options, sort_keys=True))
        else:
            self._submitter.submit([found])
        return True

    def _submitted(self, found: BatchedAttempt, result: Result) -> None:
        """The system has answered to the submission of an attempt."""
        attempt, said = found.attempt, result.last_words
        number = self.dialect.number(result.output) if result.exit_code == 0 else None
        if number is not None:
            found.submitted_at = time.monotonic()
            found.states.setdefault(number, SUBMITTED._replace(is_shared=found.is_shared))
            self._has_complained = False
            self._locate(found, found.where())
            self._query.soon()
            if found.cancelling is not None:
                self._canceller.cancel(found)
        elif found.cancelling is not None or result.exit_code <= 0 or self.dialect.may_pass(said):
            # It may have been accepted all the same; the next list shows whether it was.
            title = self.dialect.TITLE
            if not self._has_complained:
                log.warning("%s does not take task %s of job %s: %s", title, attempt.task_id, attempt.job_name, said)
                self._has_complained = True
            if found.cancelling is None:
                self._locate(found, f"not taken by {title} yet: {said}")
            found.submit_again_at = time.monotonic() + AGAIN_SECONDS
            self._query.by(found.submit_again_at)
        else:
            self._end(found, None, reason=Reason.SPAWN, error=f"{self.dialect.TITLE} refused it: {said}")

    # -- what has become of them -----------------------------------------------------------------------------

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called."""
        if self._handles.has_old:
            return 0.0
        look = min(self._next_look, self._query.due) if self._attempts else math.inf
        look = min(look, self._events.due) - time.monotonic()
        due = (look if look < math.inf else None, self._submitter.poll_after, self._commands.poll_after)
        return min((max(0.0, seconds) for seconds in due if seconds is not None), default=None)

    def poll(self) -> list[Event]:
        """The events since the last call."""
        now = time.monotonic()
        self._handles.remove_old()
        self._submitter.poll()
        self._commands.expire()
        if self._attempts and now >= self._next_look:
            for found in list(self._attempts.values()):
                if found.has_new_record():
                    self._read(found)
                self._judge(found, now)
            self._next_look = time.monotonic() + max(_LOOK_SECONDS, _LOOK_SECONDS_EACH * len(self._attempts))
        if self._attempts and now >= self._query.due:
            self._query.ask()
        return self._events.take()

    def _read(self, found: BatchedAttempt) -> None:
        """Read the record of an attempt, by which it is known that it has started."""
        found.read()
        if found.record is not None and not found.has_started:
            found.has_started = True
            self._events.append(Started(found.attempt, found.record.started_at or utc_now()))
            self._locate(found, found.where())

    def _judge(self, found: BatchedAttempt, now: float) -> None:
        """End an attempt, if its record and the state of its batch job show that it is over."""
        record, holder = found.record, found.holder
        if record is not None and record.spawn_error is not None:
            self._end(found, None, reason=Reason.SPAWN, error=record.spawn_error)
        elif record is not None and record.exit_code is not None and not found.has_half_a_record():
            self._judge_result(found, record.exit_code, holder, now)
        elif holder is None or not holder.is_over or (record is not None and record.is_over):
            found.over_since = None
        elif found.over_since is None:
            found.over_since = now
        elif now - found.over_since >= _SETTLE_SECONDS:
            self._read(found)
            if found.record == record:
                self._finalize(found, holder)

    def _judge_result(self, found: BatchedAttempt, exit_code: int, holder: State | None, now: float) -> None:
        """The command has ended. If it failed, the system may know why: a command may handle a signal."""
        got_sigterm = found.record is not None and found.record.got_sigterm
        is_its_own = (exit_code == 0 and not got_sigterm) or (exit_code <= 128 and found.is_shared)
        if is_its_own or found.cancelling is not None:
            self._end(found, exit_code)
            return
        if found.ended_since is None:
            found.ended_since = now
            self._query.by(now)
        if holder is not None and holder.phase is Phase.WAITING and found.put_back_at is not None:
            self._canceller.signal(found.states)
            error = f"{self.dialect.TITLE} ended it and put it back into its queue: {found.describe(holder)}"
            self._end(found, exit_code, reason=Reason.LOST, error=error)
        elif holder is not None and holder.reason and (exit_code > 128 or holder.reason is not Reason.SIGNAL):
            self._end(found, exit_code, reason=holder.reason, error=found.describe(holder))
        elif (holder is not None and holder.is_over) or now - found.ended_since > _LONGEST_STATE_SECONDS:
            self._end(found, exit_code)

    @abc.abstractmethod
    def _finalize(self, found: BatchedAttempt, state: State) -> None:
        """End or resubmit an attempt whose batch job is over, and whose command has left no result."""

    def _end(
        self,
        found: BatchedAttempt,
        exit_code: int | None,
        *,
        reason: Reason | None = None,
        error: str | None = None,
        may_repeat: bool = True,
    ) -> None:
        ended_at = modified_at(found.record_path) if exit_code is not None else utc_now()
        started_at, usage = found.record.started_at if found.record is not None else None, usage_of(found.record)
        end = Ended(found.attempt, exit_code, ended_at, started_at, reason, error, may_repeat, usage=usage)
        self._events.end(end, found)
        del self._attempts[found.attempt]
        found.is_over = True
        self._handles.leave(found, found.record)

    def _update_from_list(self, asked_at: float) -> None:
        now = time.monotonic()
        for found in list(self._attempts.values()):
            is_unknown = found.submitted_at == math.inf and not found.is_submitting
            if is_unknown and self._must_resubmit(found, asked_at, now):
                continue
            holder = found.holder
            if holder is None:
                continue
            self._locate(found, found.where())
            if found.cancelling is None and holder.phase is Phase.WAITING and self._waits_in_vain(found, holder, now):
                continue
            if found.cancelling is not None and not holder.is_over and now - found.cancelled_at > AGAIN_SECONDS:
                self._canceller.cancel(found)
            self._judge(found, now)

    def _must_resubmit(self, found: BatchedAttempt, asked_at: float, now: float) -> bool:
        """Whether the system does not have an attempt, since a call was cut short, so that it is submitted again."""
        if found.states or found.record is not None:
            found.submitted_at = asked_at
            return False
        if asked_at <= found.submit_again_at - AGAIN_SECONDS:
            return False
        if found.cancelling is not None or found.submission is None:
            self._end(found, None)
        elif now >= found.submit_again_at:
            self._submitter.submit([found])
        else:
            self._query.by(found.submit_again_at)
        return True

    def _waits_in_vain(self, found: BatchedAttempt, holder: State, now: float) -> bool:
        """Whether the system says that an attempt waits which has started, or which it will never start."""
        title = self.dialect.TITLE
        if found.has_started:
            # Either it was put back into the queue, or a controller that crashed does not know any more that it runs.
            # If it does, its node will soon say so; if not, it is lost, for the record cannot be claimed again.
            found.put_back_at = found.put_back_at or now
            if now - found.put_back_at > _PUT_BACK_SECONDS:
                self._canceller.end_jobs(found.states)
                self._lose(found, Reason.LOST, f"{title} has put it back into its queue: {found.describe(holder)}")
            return True
        found.hopeless_answers = found.hopeless_answers + 1 if holder.waits_for_ever else 0
        if found.hopeless_answers < _NEVER_TWICE:
            return False
        self._canceller.end_jobs(found.states)
        if holder.is_shared and found.submission is not None:  # all together may be too much
            self._submitter.submit_alone(found)
        else:
            self._lose(found, Reason.SPAWN, f"{title} will never start it: {holder.why}")
        return True

    def _lose(self, found: BatchedAttempt, reason: Reason, error: str, *, is_cut_off: bool = False) -> None:
        """An attempt is lost. It can be tried again if it does not run twice then.

        :param is_cut_off: whether its node does not answer.
        """
        is_off = self._options.fenced and not found.has_living_node
        may_run = not is_off and (is_cut_off or found.put_back_at is not None)
        if may_run:
            error += MAY_STILL_RUN
        self._end(found, None, reason=reason, error=error, may_repeat=not may_run)

    def _locate(self, found: BatchedAttempt, where: str) -> None:
        if where and where != found.location:
            found.location = where
            self._events.append(Located(found.attempt, where))

    # -- ending them -----------------------------------------------------------------------------------------

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt."""
        found = self._attempts.get(attempt)
        if found is None:
            return
        found.cancelling = kill
        if found.is_shared or found.states:
            self._canceller.cancel(found)
        self._query.by(time.monotonic() + 0.5)

    def detach(self, attempt: Attempt) -> None:
        """The job of an attempt is gone."""
        found = self._attempts.get(attempt)
        if found is not None:
            found.is_detached = True
            found.submission = None

    # -- what an earlier manager has left ----------------------------------------------------------------------

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Adopt an attempt that an earlier manager may have started."""
        found, record = self._handles.read(attempt)
        if found is not None and record is not None and record.is_over:
            self._handles.leave(found, record)
        if record is not None and (record.is_over or found is None):
            path = self._store.paths(attempt.job_name).record(attempt.task_id, attempt.number)
            return _recorded_end(attempt, record, str(path))
        if found is None:
            self._handles.make(attempt, "", {}).handle_path.unlink(missing_ok=True)
            return None  # it was never written whole, and so never submitted
        if attempt not in self._attempts:
            self._attempts[attempt] = found
            found.record, found.has_started = record, record is not None
            found.read_at = math.inf if record is None else time.monotonic()
            self._query.by(0.0)
        return Running(attempt, record.started_at if record else None, waits=record is None)

    def kill_orphan(self, attempt: Attempt) -> None:
        """Kill what an attempt has started according to its record."""
        if isinstance(self.adopt(attempt), Running):
            self.detach(attempt)
            self.cancel(attempt, kill=True)

    def close(self) -> None:
        """Batch jobs go on, and the next manager finds them by their handles."""
        self._handles.remove_old()

    def prepare(self) -> None:  # noqa: B027 - a dialect has nothing to start ahead either
        """Nothing is started ahead."""


def _check_commands(dialect: Dialect, path: str | None) -> None:
    missing = [word for word in dialect.COMMANDS if shutil.which(word, path=path) is None]
    if missing:
        title, words = dialect.TITLE, ", ".join(missing)
        raise SettingsError(f"the runner {dialect.NAME} needs the commands of {title}; {words} are not in PATH")


def _read_options(dialect: Dialect, given: dict[str, object]) -> Options:
    """The options of the engine.

    :raises SettingsError: naming the one that is not valid.
    """
    interval, fenced = given.pop("poll_interval", 2.0), given.pop("fenced", False)
    path = f"runners.{dialect.NAME}"
    if isinstance(interval, bool) or not isinstance(interval, int | float):
        raise SettingsError(f"{path}.poll_interval must be seconds, not {interval!r}")
    if not isinstance(fenced, bool):
        raise SettingsError(f"{path}.fenced must be true or false, not {fenced!r}")
    try:
        size = pop_tasks_per_submission(given, dialect.NAME)
        return Options(interval, fenced, size, dialect.check_options(given))
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from None


def _recorded_end(attempt: Attempt, record: Record, path: str) -> Ended:
    """How an attempt has ended whose record says so, or whose handle has gone, since a manager has seen its end."""
    if record.exit_code is not None:
        return Ended(attempt, record.exit_code, modified_at(path), record.started_at, usage=usage_of(record))
    if record.spawn_error is not None:
        return Ended(attempt, None, utc_now(), record.started_at, Reason.SPAWN, record.spawn_error)
    why = "it had ended without a result when its manager was killed"
    return Ended(attempt, None, utc_now(), record.started_at, Reason.LOST, why)
