"""The Slurm runner: a batch job for each attempt, by Slurm's own command line (``sbatch``, ``squeue``, ``scancel``).

The job filesystem must be shared with the nodes. What a node runs is the same few lines of ``sh`` as on this machine:
it writes the log, and the record in ``runs/``, which it creates exclusively. So an attempt runs once even if Slurm
starts it twice, and its result is known even if Slurm has forgotten the job.

Before ``sbatch`` is called, what it is to run is written to ``runs/<task id>.<attempt>.on-slurm``, with a token that
also stands in the comment of the Slurm job: by that a later manager finds the job, or submits it again if there is
none. One ``squeue`` asks for all attempts. It never waits for Slurm: while Slurm does not answer, nothing is concluded.

Short tasks may share a batch job (option ``bundle``), which runs them one after the other. Its comment has all of their
tokens. Those that it does not come to are submitted again, and one that is cancelled before its turn has its record
claimed by the manager, so that it is passed over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import secrets
import shlex
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

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
from airflow_provider_air_executor.engines.records import (
    modified_at,
    preparing,
    script_elsewhere,
    task_variables,
)
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record, claim, put_start, read_record
from airflow_provider_air_executor.jobs.models import Reason, Resources, Task, check_options, printable, utc_now
from airflow_provider_air_executor.system.environment import RUN_VARIABLE, VARIABLE, inherited

log = logging.getLogger("air_executor.manager")

NAME = "slurm"
_COMMANDS = ("sbatch", "squeue", "scancel")
_COMMENT = "air-executor:"
_FIRST_LINE = "# air-executor "
_HANDLE_BYTES = 100_000
_AT_A_TIME = 4  # command lines; more make slurmctld slower, not faster
_COMMAND_SECONDS = 120.0
_LOOK_SECONDS = 0.2  # between two looks at the records; longer if there are many
_LOOK_SECONDS_EACH = 0.001
_QUERY_SHARE = 20  # of the time: squeue is asked again after so many times what it took
_LONGEST_QUERY_PAUSE = 30.0  # it may have taken so long because Slurm was away; and Slurm forgets what has ended
_AGAIN_SECONDS = 5.0  # after sbatch, squeue or scancel could not reach Slurm
_SETTLE_SECONDS = 2.0  # that a shared file system may take to show what a node wrote before its job ended
_LONGEST_STATE_SECONDS = 10.0  # that a command ended by a signal waits for Slurm to say why
_PUT_BACK_SECONDS = 15.0  # that Slurm may say of what runs that it waits
_MISSTARTS = 1  # that are made up for: a node may fail to start a job, and then has no record of it
_LARGEST_BUNDLE = 50  # so that the comment, in which all are named, stays short
_MEBIBYTE = 1 << 20

# What ends a Slurm job before its time, and what that is to us.
_REASONS = {
    "TIMEOUT": Reason.TIMEOUT,
    "DEADLINE": Reason.TIMEOUT,
    "OUT_OF_MEMORY": Reason.SIGNAL,
    "CANCELLED": Reason.CANCELLED,
    "REVOKED": Reason.CANCELLED,
    "PREEMPTED": Reason.LOST,
}
_CANCELLED = {"CANCELLED", "REVOKED"}
_OVER = {*_REASONS, "COMPLETED", "FAILED", "NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL"}
_WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
_LOST_NODE = {"NODE_FAIL", "BOOT_FAIL"}
_GONE = "unknown"  # what squeue does not list any more
_HAD_NO_END = re.compile(r"\bExitCode=0:0\b")  # of a job that was cancelled; one that ran has been told by a signal
_HAD_NO_TIME = re.compile(r"\bRunTime=00:00:00\b")
_OF_PROLOG = re.compile(r"prolog", re.IGNORECASE)  # why a node is taken out of service
_IS_DOWN = re.compile(r"\*|down|fail", re.IGNORECASE)  # what sinfo says of a node that is off, or does not answer
_NEVER_TWICE = 2  # a reason is believed if it is given again
# Why a job waits that will wait for ever.
_NEVER = {
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "BadConstraints",
    "AccountNotAllowed",
    "QOSNotAllowed",
    "InvalidAccount",
    "InvalidQOS",
    "DependencyNeverSatisfied",
    "MaxMemPerLimit",
    "launch failed requeued held",
}
# The same of limits for each job or node. Those of a group (Grp) are also given by one that is full at the moment.
_NEVER_FITS = re.compile(r"(QOS|Assoc)(Max(?!Submit|Jobs)\w*Per(Job|Node)\w*|Min\w+)")
# What sbatch says when the same call may succeed later.
_SAID_FOR_NOW = re.compile(
    "unable to contact|timed out|temporarily unable|zero bytes|connection refused|connect failure|"
    "submit limit|resource temporarily|slurmctld.*not responding|munge|protocol authentication",
    re.IGNORECASE,
)
_LIMIT = re.compile(r"\b(QOS|Assoc)[A-Z]\w+")  # the limit by which it refuses, where it names that
# What Slurm's commands are told of the environment. All of it becomes that of the job, in which others could read it,
# and a manager that itself runs in a job must not hand that on.
_FOR_COMMANDS = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_.*|TZ|LD_LIBRARY_PATH|SLURM_CONF|SLURM_CLUSTERS|SLURM_SACK_SOCKET|SBATCH_.*"
)
# Options that decide how the attempt is known, where its output goes, or as whom it runs.
_OURS = {
    "array",
    "chdir",
    "error",
    "export",
    "export-file",
    "get-user-env",
    "gid",
    "help",
    "hold",
    "input",
    "job-name",
    "no-requeue",
    "open-mode",
    "output",
    "parsable",
    "quiet",
    "requeue",
    "test-only",
    "uid",
    "usage",
    "version",
    "wait",
    "wrap",
}
_NOT_FOR_SBATCH = {"SBATCH_ARRAY_INX", *(f"SBATCH_{name.upper().replace('-', '_')}" for name in _OURS)}
# Options of which sbatch takes one, or of which one decides what another one means: the nearest one counts.
_GROUPS = (
    {"mem", "mem-per-cpu", "mem-per-gpu"},
    {"cpus-per-task", "cpus-per-gpu"},
    {"gres", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"},
    {"exclusive", "oversubscribe"},
)


class _State(NamedTuple):
    """What squeue says of a job."""

    state: str
    reason: str
    nodes: str
    is_bundled: bool = False  # whether it runs several attempts

    @property
    def is_over(self) -> bool:
        return self.state in _OVER or self.state == _GONE


class _Submission(NamedTuple):
    """What is submitted, and how.

    :param name: of the job and the task.
    :param handle_path: the script that is to run.
    :param log_path: where Slurm puts what it has to say itself.
    :param options: those of ``sbatch``.
    :param seconds: that it may take.
    """

    name: str
    handle_path: str
    log_path: str
    options: Mapping[str, str]
    seconds: float | None = None


@dataclass
class _Batch:
    """An attempt that Slurm has, or is to get."""

    attempt: Attempt
    token: str
    record_path: str
    submit: _Submission | None = None  # None: it must not be submitted again
    is_bundled: bool = False  # whether it was submitted with others
    is_submitting: bool = False
    submitted_at: float = math.inf
    submit_again_at: float = 0.0
    states: dict[str, _State] = field(default_factory=dict)  # by the number of the job; there may be two by misfortune
    left: set[str] = field(default_factory=set)  # jobs that were to run it among others, and did not come to it
    size: int = -1  # of the record when it was read last
    record: Record | None = None
    read_at: float = math.inf  # when there was a record for the first time
    has_started: bool = False
    where: str = ""
    over_since: float | None = None
    ended_since: float | None = None
    put_back_at: float | None = None  # when Slurm said that it waits although it has started
    never_seen: int = 0  # how often in a row Slurm has given a reason that does not go away
    misstarts: int = 0  # jobs that failed without having begun it
    cancelling: bool | None = None  # whether it is killed; None: nobody has asked
    cancelled_at: float = 0.0
    is_detached: bool = False
    asked: str = ""  # the command by which Slurm was asked for more
    is_answered: bool = False
    found_out: str = ""
    is_there: bool = False  # whether its node answers, although Slurm says that it has failed

    @property
    def holder(self) -> _State | None:
        """The Slurm job that runs the attempt, or the last one that may."""
        if self.record is not None:
            return self.states.get(str(self.record.pid))
        alive = [state for state in self.states.values() if not state.is_over]
        return alive[0] if alive else next(iter(self.states.values()), None)


class SlurmEngine:
    """Runs attempts as Slurm's batch jobs, see the module.

    Options, besides ``max_concurrent``: ``poll_interval`` (seconds between two calls of ``squeue``, default 2, longer
    if it takes long), ``fenced`` (whether a node that Slurm calls failed is known to be off, so that what it ran may
    be tried again; default false), ``bundle`` (how many tasks of a job that are ready at the same time and need the
    same one batch job runs, one after the other; default 1, at most 50; a task may say so too), and options of
    ``sbatch`` that a task does not give itself, by their long names.

    :raises SettingsError: if Slurm's commands are not there, or an option is not valid.
    """

    descriptor = None

    def __init__(self, context: Context) -> None:
        missing = [name for name in _COMMANDS if shutil.which(name, path=context.environment.get("PATH")) is None]
        if missing:
            raise SettingsError(f"the runner slurm needs the commands of Slurm; {', '.join(missing)} are not in PATH")
        options = dict(context.options)
        self._poll_interval = options.pop("poll_interval", 2.0)
        self._is_fenced = options.pop("fenced", False)
        self._bundle = options.pop("bundle", 1)
        if isinstance(self._poll_interval, bool) or not isinstance(self._poll_interval, int | float):
            raise SettingsError(f"runners.slurm.poll_interval must be seconds, not {self._poll_interval!r}")
        if not isinstance(self._is_fenced, bool):
            raise SettingsError(f"runners.slurm.fenced must be true or false, not {self._is_fenced!r}")
        try:
            _check_bundle(self._bundle)
            self._options = sbatch_options(options)
        except ValueError as error:
            raise SettingsError(f"runners.slurm: {error}") from None
        self._store = context.store
        self._environment = inherited(context.environment, str(context.store.base_path))
        told = {
            key: value
            for key, value in context.environment.items()
            if _FOR_COMMANDS.fullmatch(key) and key not in _NOT_FOR_SBATCH
        }
        # Two, so that what is asked and cancelled does not wait for a thousand submissions.
        self._submissions, self._commands = (
            Commands(context.children, told, limit=_AT_A_TIME, timeout=_COMMAND_SECONDS) for _ in range(2)
        )
        self._batches: dict[Attempt, _Batch] = {}
        self._by_token: dict[str, _Batch] = {}
        self._gathered: dict[tuple[str, int, str], list[_Batch]] = {}  # what is to share a batch job
        self._ended_by_us: set[str] = set()
        self._events: list[Event] = []
        self._old_handles: dict[Path, tuple[Path, Record | None]] = {}  # of what has ended, and its record
        self._next_look = 0.0
        self._next_query = 0.0
        self._is_asking = False
        self._has_complained = False
        self._is_silent = False

    # -- starting --------------------------------------------------------------------------------------------

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> bool:
        """Hand an attempt to Slurm; it waits for its turn there."""
        job_name, task_id, number = attempt[:3]
        paths = self._store.paths(job_name)
        record_path, log_path = str(paths.record(task_id, number)), str(paths.log(task_id))
        handle_path, output_path = paths.handle(task_id, number, NAME), str(paths.output(task_id, number))
        words = [log_path, task.cwd or "", task.command, *task.args]
        token = secrets.token_hex(8)
        try:
            given = dict(task.slurm or {})
            bundle = _check_bundle(given.pop("bundle", self._bundle))
            options = _nearest(self._options, sbatch_options(given), _resource_options(task.resources))
        except ValueError as error:
            raise SpawnError(f"slurm.{error}") from None
        variables = task_variables(attempt, str(paths.directory), output_path)
        with preparing("Slurm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(output_path)
            os.close(files.open_log(log_path))
            text = _script(token, options, {**self._environment, **(task.env or {}), **variables}, record_path, words)
            files.publish(handle_path, text)
        self._old_handles.pop(handle_path, None)  # of a removed job of the same name
        batch = _Batch(attempt, token, record_path)
        seconds = task.resources.time if task.resources is not None else None
        batch.submit = _Submission(_name(attempt), str(handle_path), log_path, options, seconds)
        self._batches[attempt] = self._by_token[token] = batch
        if bundle > 1:
            self._gathered.setdefault((job_name, bundle, json.dumps(options, sort_keys=True)), []).append(batch)
        else:
            self._submit([batch])
        return True

    def _submit_gathered(self) -> None:
        """Submit what was started since the last call, several to a batch job."""
        gathered, self._gathered = self._gathered, {}
        for (_, size, _), batches in gathered.items():
            wanted = [batch for batch in batches if batch.cancelling is None]
            for place in range(0, len(wanted), size):
                self._submit(wanted[place : place + size])

    def _submit(self, batches: list[_Batch]) -> None:
        """Submit a batch job for one attempt or several."""
        given = [(batch.token, batch.submit) for batch in batches if batch.submit is not None]
        if len(given) != len(batches):
            return
        for batch in batches:
            batch.is_submitting = True
            batch.is_bundled = len(batches) > 1
        words, text = _command_line(given)
        self._submissions.run(words, lambda result: self._all_submitted(batches, result), text=text)

    def _submit_alone(self, batch: _Batch) -> None:
        """Submit once more what its batch job has not come to. Its record, once there, keeps it from running twice."""
        batch.left.update(batch.states)
        batch.states.clear()
        batch.submitted_at, batch.over_since, batch.never_seen = math.inf, None, 0
        self._submit([batch])

    def _all_submitted(self, batches: list[_Batch], result: Result) -> None:
        for batch in batches:
            batch.is_submitting = False
        # One that has ended already is passed over: a second job of it will find that out.
        batches = [batch for batch in batches if self._batches.get(batch.attempt) is batch]
        if len(batches) > 1 and result.exit_code > 0 and not _is_for_now(_last_words(result)):
            for batch in batches:  # it may be that only all together are too much
                self._submit([batch])
            return
        for batch in batches:
            self._submitted(batch, result)

    def _submitted(self, batch: _Batch, result: Result) -> None:
        attempt = batch.attempt
        said = _last_words(result)
        number = _number(result.output) if result.exit_code == 0 else None
        if number is not None:
            batch.submitted_at = time.monotonic()
            batch.states.setdefault(number, _State("PENDING", "", "", batch.is_bundled))
            self._has_complained = False
            self._tell_where(batch)
            self._next_query = min(self._next_query, time.monotonic() + self._poll_interval)
            if batch.cancelling is not None:
                self._cancel(batch)
        elif batch.cancelling is not None or result.exit_code <= 0 or _is_for_now(said):
            # It may have been taken in all the same; whether it was is told by the next squeue that answers.
            if not self._has_complained:
                log.warning("Slurm does not take task %s of job %s: %s", attempt.task_id, attempt.job_name, said)
                self._has_complained = True
            if batch.cancelling is None:
                self._place(batch, f"not taken by Slurm yet: {said}")
            batch.submit_again_at = time.monotonic() + _AGAIN_SECONDS
            self._next_query = min(self._next_query, batch.submit_again_at)
        else:
            self._end(batch, None, reason=Reason.SPAWN, error=f"Slurm refused it: {said}")

    # -- what has become of them -----------------------------------------------------------------------------

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called."""
        if self._events or self._gathered or self._old_handles:
            return 0.0
        if not self._batches:
            return None
        now = time.monotonic()
        due = [self._next_look - now] if self._is_asking else [self._next_look - now, self._next_query - now]
        limits = (self._submissions.poll_after, self._commands.poll_after)
        due += [seconds for seconds in limits if seconds is not None]
        return max(0.0, min(due))

    def poll(self) -> list[Event]:
        """What has happened since the last call."""
        now = time.monotonic()
        self._remove_handles()
        self._submissions.expire()
        self._commands.expire()
        self._submit_gathered()
        if self._batches and now >= self._next_look:
            for batch in list(self._batches.values()):
                self._look_at(batch, now)
            seconds = max(_LOOK_SECONDS, _LOOK_SECONDS_EACH * len(self._batches))
            self._next_look = time.monotonic() + seconds
        if self._batches and now >= self._next_query and not self._is_asking:
            self._ask()
        events, self._events = self._events, []
        return events

    def _look_at(self, batch: _Batch, now: float) -> None:
        """See what the node has written so far."""
        if not batch.is_detached:
            try:
                size = os.stat(batch.record_path, follow_symlinks=False).st_size
            except OSError:
                size = -1
            if size != batch.size:
                batch.size = size
                self._read(batch)
        self._judge(batch, now)

    def _read(self, batch: _Batch) -> None:
        """Read the record; to open it is what makes a network file system show what another machine wrote."""
        if batch.is_detached:
            return
        try:
            record = read_record(batch.record_path, self._handle_path(batch.attempt))
        except OSError:
            batch.size = -1  # it is read again at the next look
            return
        if record is None:
            return
        if batch.record is None:
            batch.read_at = time.monotonic()
        batch.record = record
        if not batch.has_started:
            batch.has_started = True
            self._events.append(Started(batch.attempt, record.started_at or utc_now()))
            self._tell_where(batch)

    def _judge(self, batch: _Batch, now: float) -> None:
        """Conclude what record and state together say, if they say enough."""
        record, holder = batch.record, batch.holder
        if record is not None and record.spawn_error is not None:
            self._end(batch, None, reason=Reason.SPAWN, error=record.spawn_error)
        elif record is not None and record.exit_code is not None:
            self._look_at_result(batch, record.exit_code, holder, now)
        elif holder is None or not holder.is_over:
            batch.over_since = None
        elif batch.over_since is None:
            batch.over_since = now
        elif now - batch.over_since >= _SETTLE_SECONDS:
            before = batch.record
            self._read(batch)
            if batch.record == before:
                self._conclude(batch, holder)

    def _look_at_result(self, batch: _Batch, exit_code: int, holder: _State | None, now: float) -> None:
        """The command has ended; if it failed, Slurm may know why: a signal may be handled, and end with any code."""
        was_told = batch.record is not None and batch.record.was_told
        is_its_own = (exit_code == 0 and not was_told) or (exit_code <= 128 and batch.is_bundled)
        if is_its_own or batch.cancelling is not None:
            self._end(batch, exit_code)
            return
        if batch.ended_since is None:
            batch.ended_since = now
            self._next_query = min(self._next_query, now)
        if holder is not None and holder.state in _WAITING and batch.put_back_at is not None:
            self._commands.run(["scancel", *batch.states], _ignore)
            error = f"Slurm ended it and put it back into its queue: {_in_words(holder, batch)}"
            self._end(batch, exit_code, reason=Reason.LOST, error=error)
        elif holder is not None and holder.state in _REASONS and (exit_code > 128 or holder.state != "OUT_OF_MEMORY"):
            self._end(batch, exit_code, reason=_REASONS[holder.state], error=_in_words(holder, batch))
        elif (holder is not None and holder.is_over) or now - batch.ended_since > _LONGEST_STATE_SECONDS:
            self._end(batch, exit_code)

    def _conclude(self, batch: _Batch, state: _State) -> None:
        """A job is over, and its command has left no result."""
        error = _in_words(state, batch)
        is_wanted = state.state not in _CANCELLED or not self._ended_by_us.isdisjoint(batch.states)
        if state.is_bundled and batch.record is None and batch.submit is not None and is_wanted:
            self._submit_alone(batch)
            return
        is_by_others = batch.cancelling is None and self._ended_by_us.isdisjoint(batch.states)
        if batch.record is None and state.state == "CANCELLED" and is_by_others and state.nodes:
            never_ran = self._has_never_run(batch, state)
            if never_ran is None:
                return
            if never_ran:
                self._never_ran(batch, f"{error}, although nobody has asked for that: its node could not start it")
                return
        if state.state in _REASONS:
            self._end(batch, None, reason=_REASONS[state.state], error=error)
        elif batch.record is None and state.state == "FAILED" and self._may_have_misstarted(batch):
            log.warning("%s, without having begun task %s; it is submitted again", error, batch.attempt.task_id)
            batch.misstarts += 1
            self._submit_alone(batch)
        elif batch.record is None and state.state in ("FAILED", "COMPLETED"):
            error += "; its node could not write to the job filesystem: is that shared with the nodes?"
            self._end(batch, None, reason=Reason.LOST, error=error)
        else:
            is_cut_off = state.state in _LOST_NODE
            if is_cut_off and self._is_fenced and state.nodes:
                words = ["sinfo", "--noheader", "--Node", f"--nodes={state.nodes}", "--format=%T"]
                if self._find_out(batch, words):
                    return
                # The node answers: it was not the node that failed, but what Slurm has there for each job.
                batch.is_there = not _IS_DOWN.search(batch.found_out)
            may_repeat, error = self._may_repeat(batch, f"{error}; it left no result", is_cut_off=is_cut_off)
            self._end(batch, None, reason=Reason.LOST, error=error, may_repeat=may_repeat)

    def _find_out(self, batch: _Batch, words: list[str]) -> bool:
        """Ask Slurm what decides how an attempt is concluded; whether the answer is still to come."""
        if batch.asked != words[0]:
            batch.asked, batch.found_out, batch.is_answered = words[0], "", False

            def answered(result: Result) -> None:
                batch.found_out, batch.is_answered = result.output, True

            self._commands.run(words, answered)
        return not batch.is_answered

    def _has_never_run(self, batch: _Batch, state: _State) -> bool | None:
        """Whether a job was cancelled because its node could not start it; None if that is not known yet."""
        if batch.asked != "sinfo":
            if self._find_out(batch, ["scontrol", "--oneliner", "show", "job", *list(batch.states)[-1:]]):
                return None
            if not _HAD_NO_END.search(batch.found_out):
                return False
            if _HAD_NO_TIME.search(batch.found_out):
                return True
        # It was being started for a while; it may have been cancelled meanwhile, or a prolog has failed late.
        if self._find_out(batch, ["sinfo", "--noheader", "--Node", f"--nodes={state.nodes}", "--format=%E"]):
            return None
        return _OF_PROLOG.search(batch.found_out) is not None

    def _never_ran(self, batch: _Batch, error: str) -> None:
        """Slurm has ended a job that its node could not start, because of a prolog that fails for instance."""
        if self._may_have_misstarted(batch):
            log.warning("%s; task %s is submitted again", error, batch.attempt.task_id)
            batch.misstarts += 1
            batch.asked = ""
            self._submit_alone(batch)
        else:
            self._end(batch, None, reason=Reason.LOST, error=error)

    @staticmethod
    def _may_have_misstarted(batch: _Batch) -> bool:
        """Whether a failure may be the node's own: slurmd, when busy, may miss the script that it has just written."""
        return batch.submit is not None and batch.cancelling is None and batch.misstarts < _MISSTARTS

    def _end(
        self,
        batch: _Batch,
        exit_code: int | None,
        *,
        reason: Reason | None = None,
        error: str | None = None,
        may_repeat: bool = True,
    ) -> None:
        ended_at = modified_at(batch.record_path) if exit_code is not None else utc_now()
        started_at = batch.record.started_at if batch.record is not None else None
        self._events.append(Ended(batch.attempt, exit_code, ended_at, started_at, reason, error, may_repeat))
        del self._batches[batch.attempt]
        self._by_token.pop(batch.token, None)
        if not batch.is_detached:
            self._old_handles[self._handle_path(batch.attempt)] = Path(batch.record_path), batch.record

    def _remove_handles(self) -> None:
        """Remove the notes of what has ended: there is an environment in them, and nobody needs it any more.

        They tell the start, which the record tells from now on.
        """
        while self._old_handles:
            handle_path, (record_path, record) = self._old_handles.popitem()
            with contextlib.suppress(OSError):
                if record is not None:
                    put_start(record_path, record)
            with contextlib.suppress(OSError):
                handle_path.unlink(missing_ok=True)

    # -- asking Slurm ----------------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._is_asking = True
        asked_at = time.monotonic()
        words = ["squeue", "--noheader", "--states=all", f"--user={os.geteuid()}", "--format=%i|%T|%r|%N|%k"]
        self._commands.run(words, lambda result: self._answered(result, asked_at))

    def _answered(self, result: Result, asked_at: float) -> None:
        now = time.monotonic()
        self._is_asking = False
        pause = min(_QUERY_SHARE * (now - asked_at), _LONGEST_QUERY_PAUSE if result.exit_code == 0 else _AGAIN_SECONDS)
        self._next_query = now + max(self._poll_interval, pause)
        if result.exit_code != 0:
            if not self._is_silent:
                log.warning("squeue does not answer: %s", _last_words(result))
            self._is_silent = True
            return
        if self._is_silent:
            log.info("squeue answers again")
        self._is_silent = False
        # A number is known to be ours; a comment may be anybody's, and is for what has no number yet.
        known: dict[str, list[_Batch]] = {}
        for batch in self._batches.values():
            numbers = {*batch.states, *([str(batch.record.pid)] if batch.record is not None else [])}
            for number in numbers - batch.left:
                known.setdefault(number, []).append(batch)
        listed: set[tuple[str, str]] = set()
        for line in result.output.splitlines():
            number, state, reason, rest = [*line.split("|", 3), "", "", ""][:4]
            nodes, _, comment = rest.partition("|")
            tokens = comment.strip().removeprefix(_COMMENT).partition(" ")[0].split(",")
            found = [self._by_token[token] for token in tokens if token in self._by_token]
            for batch in [*found, *(batch for batch in known.get(number, ()) if batch not in found)]:
                if number not in batch.left:
                    listed.add((batch.token, number))
                    is_bundled = len(tokens) > 1 if batch.token in tokens else batch.is_bundled
                    batch.states[number] = _State(state, reason, nodes, is_bundled)
        for batch in list(self._batches.values()):
            if batch.record is not None and batch.read_at < asked_at:
                batch.states.setdefault(str(batch.record.pid), _State(_GONE, "", ""))
            for number in batch.states:
                if (batch.token, number) not in listed and batch.submitted_at < asked_at:
                    batch.states[number] = batch.states[number]._replace(state=_GONE, reason="")
            self._take_answer(batch, asked_at, now)

    def _take_answer(self, batch: _Batch, asked_at: float, now: float) -> None:
        if batch.submitted_at == math.inf and not batch.is_submitting:
            if batch.states:  # it had been taken in, by a call that was cut short
                batch.submitted_at = asked_at
            elif batch.record is None and asked_at > batch.submit_again_at - _AGAIN_SECONDS:
                if batch.cancelling is not None or batch.submit is None:
                    self._end(batch, None)
                elif now >= batch.submit_again_at:
                    self._submit([batch])
                else:
                    self._next_query = min(self._next_query, batch.submit_again_at)
                return
            elif batch.record is not None:
                batch.submitted_at = asked_at
        holder = batch.holder
        if holder is None:
            return
        self._tell_where(batch)
        if batch.cancelling is None and holder.state in _WAITING:
            if batch.has_started:
                self._look_at_what_was_put_back(batch, holder, now)
                return
            batch.never_seen = batch.never_seen + 1 if _is_never(holder.reason) else 0
            if batch.never_seen >= _NEVER_TWICE and holder.is_bundled and batch.submit is not None:
                self._end_jobs(batch.states)  # all together may be too much
                self._submit_alone(batch)
                return
            if batch.never_seen >= _NEVER_TWICE:
                self._give_up(batch, Reason.SPAWN, f"Slurm will never start it: {holder.reason}")
                return
        if batch.cancelling is not None and not holder.is_over and now - batch.cancelled_at > _AGAIN_SECONDS:
            self._cancel(batch)
        self._judge(batch, now)

    def _look_at_what_was_put_back(self, batch: _Batch, state: _State, now: float) -> None:
        """Slurm says that what has started waits.

        Either it was put back into the queue, or a slurmctld that crashed does not know any more that it runs. If it
        does, its node will soon say so; if not, it is lost, for the record cannot be claimed again.
        """
        if batch.put_back_at is None:
            batch.put_back_at = now
        elif now - batch.put_back_at > _PUT_BACK_SECONDS:
            self._give_up(batch, Reason.LOST, f"Slurm has put it back into its queue: {_in_words(state, batch)}")

    def _give_up(self, batch: _Batch, reason: Reason, error: str) -> None:
        self._end_jobs(batch.states)
        may_repeat, error = self._may_repeat(batch, error)
        self._end(batch, None, reason=reason, error=error, may_repeat=may_repeat)

    def _may_repeat(self, batch: _Batch, error: str, *, is_cut_off: bool = False) -> tuple[bool, str]:
        """Whether what was lost can be tried again without running twice; and the error, saying so if it cannot.

        :param is_cut_off: whether its node does not answer.
        """
        is_off = self._is_fenced and not batch.is_there
        if is_off or not (is_cut_off or batch.put_back_at is not None):
            return True, error
        return False, f"{error}; it may still run there, so it is not tried again (see the setting fenced)"

    def _tell_where(self, batch: _Batch) -> None:
        holder = batch.holder
        numbers = list(batch.states)
        if holder is None or not numbers:
            return
        number = str(batch.record.pid) if batch.record is not None else numbers[-1]
        where = f"Slurm job {number}"
        if holder.state in _WAITING and (not batch.has_started or batch.put_back_at is not None):
            where += f", waiting ({holder.reason})" if holder.reason not in ("", "None") else ", waiting"
        elif holder.nodes:
            where += f" on {holder.nodes}"
            if holder.is_bundled and not batch.has_started:
                where += ", waiting for its turn"
        self._place(batch, where)

    def _place(self, batch: _Batch, where: str) -> None:
        if where != batch.where:
            batch.where = where
            self._events.append(Located(batch.attempt, where))

    # -- ending them -----------------------------------------------------------------------------------------

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt."""
        batch = self._batches.get(attempt)
        if batch is None:
            return
        batch.cancelling = kill
        if batch.is_bundled or batch.states:
            self._cancel(batch)
        self._next_query = min(self._next_query, time.monotonic() + 0.5)

    def _cancel(self, batch: _Batch) -> None:
        batch.cancelled_at = time.monotonic()
        is_bundled = batch.is_bundled or any(state.is_bundled for state in batch.states.values())
        if not batch.has_started:
            # What can be claimed has not begun. Plain scancel tells the script alone, not the command that it runs.
            is_claimed = self._claim(batch)
            if is_claimed and is_bundled:  # the one that runs in its Slurm job has its grace
                return
            if not is_claimed:
                self._read(batch)
        numbers = [number for number, state in batch.states.items() if not state.is_over]
        if not numbers:
            return
        if not batch.has_started:
            self._commands.run(["scancel", *numbers], _ignore)
        elif not batch.cancelling:
            self._commands.run(["scancel", "--signal=TERM", "--full", *numbers], _ignore)
            self._commands.run(["scancel", "--signal=CONT", "--full", *numbers], _ignore)  # one may be stopped
        else:  # the signal goes to what runs at once, the end of the job takes Slurm's own time
            killed = ["scancel", "--signal=KILL", "--full", *numbers]
            self._commands.run(killed, lambda _: self._end_jobs(numbers))

    def _end_jobs(self, numbers: Iterable[str]) -> None:
        """Have Slurm end jobs. Others that they were to run are still wanted."""
        self._ended_by_us.update(numbers)
        self._commands.run(["scancel", *numbers], _ignore)

    def _handle_path(self, attempt: Attempt) -> Path:
        return self._store.paths(attempt.job_name).handle(attempt.task_id, attempt.number, NAME)

    def _claim(self, batch: _Batch) -> bool:
        """Write the record of an attempt that is not to run; False if it runs already, or nothing can be written."""
        if batch.is_detached:
            return False
        try:
            os.close(claim(batch.record_path, Record(0, utc_now(), batch.token, 128 + signal.SIGTERM)))
        except OSError:
            return False
        return True

    def detach(self, attempt: Attempt) -> None:
        """The job of an attempt is gone."""
        batch = self._batches.get(attempt)
        if batch is not None:
            batch.is_detached = True
            batch.submit = None

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Take over an attempt that an earlier manager may have started."""
        job_name, task_id, number = attempt[:3]
        paths = self._store.paths(job_name)
        record_path, handle_path = str(paths.record(task_id, number)), paths.handle(task_id, number, NAME)
        token, options = _read_handle(handle_path)
        record = read_record(record_path, handle_path)
        if record is not None and record.is_over and token is not None:
            self._old_handles[handle_path] = Path(record_path), record
        if record is not None and record.exit_code is not None:
            return Ended(attempt, record.exit_code, modified_at(record_path), record.started_at)
        if record is not None and record.spawn_error is not None:
            return Ended(attempt, None, utc_now(), record.started_at, Reason.SPAWN, record.spawn_error)
        if token is None and record is not None:  # its note has gone, since a manager has seen its end
            why = "it had ended without a result when its manager was killed"
            return Ended(attempt, None, utc_now(), record.started_at, Reason.LOST, why)
        if token is None:
            handle_path.unlink(missing_ok=True)
            return None  # it was never written whole, and so never submitted
        if attempt not in self._batches:
            batch = _Batch(attempt, token, record_path, record=record, has_started=record is not None)
            batch.read_at = math.inf if record is None else time.monotonic()
            log_path = str(paths.log(task_id))
            batch.submit = _Submission(_name(attempt), str(handle_path), log_path, options)
            self._batches[attempt] = self._by_token[token] = batch
            self._next_query = 0.0
        return Running(attempt, record.started_at if record else None, waits=record is None)

    def kill_orphan(self, attempt: Attempt) -> None:
        """Kill what an attempt has started according to its record."""
        if isinstance(self.adopt(attempt), Running):
            self.detach(attempt)
            self.cancel(attempt, kill=True)

    def prepare(self) -> None:
        """Nothing is started ahead."""

    def close(self) -> None:
        """Slurm has what was submitted, and the next manager finds it."""
        self._remove_handles()


def sbatch_options(given: dict[str, Any]) -> dict[str, str]:
    """Options of ``sbatch`` by their long names, as their values stand in a command line; ``""`` for a mere flag.

    :raises ValueError: naming the one that is not valid, or that is not free to choose.
    """
    options = {}
    for key, value in check_options(given).items():
        name = key.replace("_", "-")
        ours = [option for option in _OURS if option.startswith(name)]  # sbatch takes the beginning of a name, too
        if ours:
            raise ValueError(f"{key}: the option {ours[0]} of sbatch is given by air-executor itself")
        if value is not None and value is not False:
            options[name] = "" if value is True else str(value)
    return options


def _nearest(*layers: Mapping[str, str]) -> dict[str, str]:
    """Options put together, the nearest layer last: of those that exclude each other, the nearest one is left."""
    options: dict[str, str] = {}
    for layer in layers:
        for group in _GROUPS:
            if not group.isdisjoint(layer):
                options = {name: value for name, value in options.items() if name not in group}
        options.update(layer)
    return options


def _number(output: str) -> str | None:
    """The number of the job that sbatch has submitted; whatever a site prints before it is not."""
    found = [line.partition(";")[0].strip() for line in output.splitlines()]
    return next((text for text in reversed(found) if text.isascii() and text.isdecimal()), None)


def _is_for_now(said: str) -> bool:
    """Whether what sbatch has said may pass: of limits, only that of the number of jobs submitted."""
    limit = _LIMIT.search(said)
    return "Submit" in limit[0] if limit else bool(_SAID_FOR_NOW.search(said))


def _is_never(reason: str) -> bool:
    """Whether what waits for this reason waits for ever."""
    return reason in _NEVER or _NEVER_FITS.fullmatch(reason) is not None


def _resource_options(resources: Resources | None) -> dict[str, str]:
    """What a task needs, in the words of ``sbatch``: whole processors, mebibytes and minutes."""
    options = {}
    if resources is not None:
        if resources.cpus is not None:
            options["cpus-per-task"] = str(math.ceil(resources.cpus))
        if resources.memory is not None:
            options["mem"] = f"{math.ceil(resources.memory / _MEBIBYTE)}M"
        if resources.gpus:
            options["gres"] = f"gpu:{resources.gpus}"
        if resources.time is not None:
            options["time"] = str(math.ceil(resources.time / 60))
    return options


def _check_bundle(size: object) -> int:
    """Return how many attempts may share a batch job.

    :raises ValueError: if it is not a number of them.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST_BUNDLE:
        raise ValueError(f"bundle: must be a whole number from 1 to {_LARGEST_BUNDLE}, not {size!r}")
    return size


def _name(attempt: Attempt) -> str:
    return printable(f"{attempt.job_name}/{attempt.task_id}")


# What one attempt runs is read by the shell that is there, since a shell more for each costs as much as the rest of it.
# One that has a record has been run, or is not to be.
_WAIT = """\
ae_n=0
while [ ! -r "$ae_note" ] && [ ! -e "${ae_note%.on-*}" ] && [ $ae_n -lt 30 ]; do ae_n=$((ae_n + 1)); sleep 1; done
"""
# The time of this is that of the start. To ask `date` would double what the script costs, and the clock of a node may
# be another than that of the file system, which tells the end.
_BEGIN = f'echo >> "$1.on-{NAME}"'


def _command_line(given: Sequence[tuple[str, _Submission]]) -> tuple[list[str], bytes]:
    """The command line that submits one attempt or several, and what it reads.

    The scripts that are to run are named in it. They are not what sbatch is given, since that refuses carriage returns
    and keeps a copy, in which others could read what a task has in its environment.

    :param given: their tokens, and what is submitted; the options are those of the first.
    """
    first = given[0][1]
    options = dict(first.options)
    own_comment = options.pop("comment", "")
    name, log_path = first.name, first.log_path
    if len(given) > 1:
        name, log_path = f"{name} and {len(given) - 1} more", "/dev/null"
        if first.seconds is not None:
            options["time"] = str(math.ceil(sum(each.seconds or 0 for _, each in given) / 60))
    # A percent sign in it stands for something, and a backslash turns that off.
    output = "/dev/null" if "\\" in log_path else log_path.replace("%", "%%")
    words = [
        "sbatch",
        "--parsable",
        "--no-requeue",
        "--export=ALL",  # of what it is started with, which is next to nothing; NONE and NIL start a login shell there
        "--chdir=/",
        "--open-mode=append",
        f"--output={output}",
        f"--job-name={name}",
        f"--comment={_COMMENT}{','.join(token for token, _ in given)} {own_comment}".rstrip(),
        *(f"--{name}={value}" if value else f"--{name}" for name, value in options.items()),
    ]
    paths = [shlex.quote(each.handle_path) for _, each in given]
    if len(given) == 1:
        return words, os.fsencode(f'#!/bin/sh\nae_note={paths[0]}\n{_WAIT}. "$ae_note"\n')
    # A signal is meant for the one that runs, and the next ones have their turn all the same.
    text = f"#!/bin/sh\ntrap : TERM HUP INT QUIT USR1 USR2\nfor ae_note in {' '.join(paths)}; do\n{_WAIT}"
    return words, os.fsencode(f'{text}if [ -r "$ae_note" ]; then (. "$ae_note"); fi\ndone\n')


# Variables that a shell does not let go, or that are those of another machine.
_NOT_EXPORTED = re.compile(
    r"SLURM_(?!CONF).*|SBATCH_.*|BASHOPTS|SHELLOPTS|PPID|UID|EUID|GROUPS|PWD|OLDPWD|SHLVL|_|HOSTNAME"
)


def _script(
    token: str, options: Mapping[str, str], environment: Mapping[str, str], record_path: str, words: Sequence[str]
) -> bytes:
    """What a node runs; its first line is what :func:`_read_handle` reads."""
    lines = [f"{_FIRST_LINE}{token} {json.dumps(options)}"]
    for name, value in {**environment, RUN_VARIABLE: token}.items():
        if VARIABLE.fullmatch(name) and not _NOT_EXPORTED.fullmatch(name):
            lines.append(f"export {name}={shlex.quote(value)}")
    lines.append(script_elsewhere("$SLURM_JOB_ID", _BEGIN))
    record = shlex.quote(record_path)
    lines.append(f"[ ! -e {record} ] || exit 97")  # it has run: what sh says of the record would go into the task's log
    lines.append(f"run {record} - {shlex.join(words)}")
    return os.fsencode("\n".join(lines) + "\n")


def _read_handle(path: Path) -> tuple[str | None, dict[str, str]]:
    """The token of what was handed to Slurm, and the options; no token if there is no such note.

    :raises OSError: if it cannot be read now.
    """
    try:
        with files.open_file(path) as file:
            line = (file.read(_HANDLE_BYTES) or b"").partition(b"\n")[0].decode()
        token, options = line.removeprefix(_FIRST_LINE).split(" ", 1)
        return token, sbatch_options(json.loads(options))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in files.ABSENT:
            raise
        return None, {}


def _last_words(result: Result) -> str:
    """What a command has said, in one line."""
    lines = [line.strip() for line in result.error.splitlines() if line.strip()]
    return printable(" ".join(lines[-3:])[:1000]) or f"exit code {result.exit_code}"


def _in_words(state: _State, batch: _Batch) -> str:
    """How a job stands, for people."""
    numbers = [str(batch.record.pid)] if batch.record is not None else list(batch.states)
    words = f"Slurm job {', '.join(numbers)}"
    if state.nodes:
        words += f" on {state.nodes}"
    if state.state == _GONE:
        return f"{words} is not known to Slurm any more"
    reason = f" ({state.reason})" if state.reason not in ("", "None") else ""
    return f"{words} ended as {state.state}{reason}" if state.is_over else f"{words} is {state.state}{reason}"


def _ignore(result: Result) -> None:
    """What could not be ended now is tried again, and what has ended cannot be."""
