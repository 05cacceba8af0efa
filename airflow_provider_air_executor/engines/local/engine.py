"""The local runner: a POSIX ``sh`` of a few lines that runs one command and records how it ended, see :mod:`.records`.

A runner is known by its process id together with its token, see :mod:`.processes`.

Starting a shell takes longer than all else that the manager does for a task, so one runner is on standby: it waits at a
pipe for its only task. A manager that dies closes the pipe, and the runner ends.

A task that asks for a warm runner, and whose command is ``python -m module``, is run by a process forked from one that
has imported the module already, see :mod:`.warm`. Where that cannot be, the same command is run by a shell.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import select
import shutil
import signal
import sys
import termios
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.forkserver import NOT_CLAIMED
from airflow_provider_air_executor.engines.local.warm import Exited, Forked, Refused, WarmRunners
from airflow_provider_air_executor.engines.protocol import (
    Attempt,
    Ended,
    Event,
    NotStarted,
    ResourceExhaustedError,
    Running,
    SpawnError,
)
from airflow_provider_air_executor.engines.records import (
    FIND,
    could_not_fork,
    modified_at,
    script_here,
    task_variables,
)
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record, read_record
from airflow_provider_air_executor.jobs.models import Reason, Resources, Task, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.environment import RUN_VARIABLE, inherited
from airflow_provider_air_executor.system.processes import (
    Kill,
    age,
    is_of_this_boot,
    is_runner,
    kill_family,
    kill_started_by,
)

log = logging.getLogger("air_executor.manager")

_MAX_UNCLAIMED = 5
_SHELL = "/bin/sh"
_NO_INPUT = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
_NO_OUTPUT = ((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0), (os.POSIX_SPAWN_DUP2, 1, 2))
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_KILL_SECONDS = 20.0  # in which what was killed must be gone
_FEWEST_LOOKS = 100  # at it, however long they take on a busy machine
_LOOK_SECONDS = 0.03  # that looks for it may take at a time
# Where a container sees its limit; without one there is a word, or a number beyond all memory.
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_ADOPTED_INTERVAL = 0.2  # seconds between two looks at runners that are not our children
_READ_INTERVAL = 1.0  # seconds between two tries to read a record
_COMMAND = 4  # its place among the words that a runner is given


class Standby(NamedTuple):
    """A runner that waits for its task."""

    pid: int
    token: str
    pipe: int  # where it reads what to do


class Forking(NamedTuple):
    """An attempt that a runner is to be forked for."""

    attempt: Attempt
    task: Task
    words: list[str]


class _Reaped(NamedTuple):
    """A runner that has ended, and whose record cannot be read now."""

    attempt: Attempt
    pid: int
    status: int


class _Ending(NamedTuple):
    """An attempt whose runner is gone, and what it has left is being killed."""

    kill: Kill
    result: Ended | NotStarted
    give_up_at: float

    def has_failed(self, now: float) -> bool:
        """Whether it has been tried long enough."""
        return now >= self.give_up_at and self.kill.looks >= _FEWEST_LOOKS


class LocalEngine:
    """Runs attempts as processes of this machine.

    :param store: the job filesystem that the attempts belong to.
    :param environment: what the commands inherit.
    :param children: which tells when a runner has ended.
    :param preload: modules that are imported once for all tasks with warm runners; if there are any, that is done
        at once and not before the first such task.
    """

    def __init__(
        self,
        store: JobStore,
        environment: Mapping[str, str],
        children: Children,
        *,
        preload: tuple[str, ...] = (),
    ) -> None:
        self._store = store
        self._reaper = children
        self._environment = inherited(environment, str(store.base_path))
        self._environment.setdefault("PATH", os.defpath)
        # As the system wants it, which takes longer than all else in starting a shell if it is done for each.
        self._encoded = {os.fsencode(name): os.fsencode(value) for name, value in self._environment.items()}
        self._script = script_here(self._environment)
        # What whoever has started the manager lets it ignore, a task ignores too. About each other signal the C library
        # would ask, whenever it starts a shell, what this process does about it, if it were not named.
        self._default_signals = [
            number
            for number in signal.valid_signals()
            if number in _IGNORED_BY_PYTHON or signal.getsignal(number) != signal.SIG_IGN
        ]
        self._pids: dict[Attempt, int] = {}
        self._children: dict[int, Attempt] = {}
        self._adopted: dict[Attempt, int] = {}
        self._tokens: dict[Attempt, str] = {}
        self._killed: set[Attempt] = set()
        self._detached: set[Attempt] = set()
        self._unclaimed: dict[str, int] = {}  # how often the record of an attempt could not be written
        self._last_directory = ("", "")
        self._found: dict[str, str] = {}  # commands that warm tasks have named, in the manager's own path
        self._next_look = 0.0
        self._standby: Standby | None = None
        self._may_prepare = True
        self._shell_reads = False  # whether a runner on standby was seen to read what it is told
        self._warm = WarmRunners(self._environment, children, preload)
        self._forking: dict[int, Forking] = {}  # by the serial number of the attempt
        self._forked: dict[int, Attempt] = {}
        self._killed_early: dict[Attempt, bool] = {}  # what has not been forked yet; whether by SIGKILL
        self._events: list[Event] = []
        self._ending: deque[_Ending] = deque()
        self._unread: list[_Reaped] = []
        self._next_read = 0.0
        if preload:
            self._warm.start()

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when there is something to :meth:`poll`, besides SIGCHLD; None: never."""
        return self._warm.descriptor

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> None:
        """Start an attempt.

        :raises SpawnError: if the command is not there, or may not be run, or the machine is too small for it.
        :raises ResourceExhaustedError: if the machine is short of something.
        """
        job_name, task_id, number = attempt[:3]
        if task.resources is not None:
            _check_resources(task.resources)
        directory = self._directory(job_name)
        log_path = f"{directory}/logs/{task_id}.log"
        self._remove_output(attempt)
        words = [f"{directory}/runs/{task_id}.{number}", started_at.isoformat(), log_path, task.cwd or "", task.command]
        forking = Forking(attempt, task, words + list(task.args))
        if task.runner == "warm":
            why_cold = self._why_cold(task)
            if not why_cold:
                self._fork(forking)
                return
            self._say_cold(forking, why_cold)
        self._start_shell(forking)

    def _remove_output(self, attempt: Attempt) -> None:
        """Remove what an earlier run of a job that was reset by hand has left where this one may leave its result.

        :raises SpawnError: if it is no file.
        """
        path = self._output_path(attempt)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno in (*files.TRANSIENT, *files.FORBIDDEN):
                raise
            raise SpawnError(f"{path} is in the way of its result: {error.strerror}") from error

    def _variables(self, attempt: Attempt) -> dict[str, str]:
        return task_variables(attempt, self._directory(attempt.job_name), self._output_path(attempt))

    def _start_shell(self, what: Forking) -> None:
        attempt, task, words = what
        variables = self._variables(attempt)
        with _starting():
            os.close(files.open_log(words[2]))
            runner = None if task.env else self._hand_over(variables, words)
            if runner is None:
                runner = self._spawn({**self._environment, **(task.env or {}), **variables}, words)
        pid, self._tokens[attempt] = runner
        self._pids[attempt] = pid
        self._children[pid] = attempt
        self._reaper.add(pid, self._shell_ended)

    # -- warm runners --------------------------------------------------------------------------------------

    def _why_cold(self, task: Task) -> str:
        """Why a task that asks for a warm runner cannot have one; empty if it can."""
        if task.env:
            return "its environment differs from the manager's"
        if not self._is_this_python(task.command) or len(_python_module(task.args)) < 1:
            return f"its command is not {sys.executable} -m MODULE"
        return self._warm.why_not

    def _is_this_python(self, command: str) -> bool:
        """Whether a command is the Python that runs the manager."""
        if "/" not in command and command not in self._found:
            found = shutil.which(command, path=self._environment["PATH"])
            if found is None:  # it may come to be there
                return False
            self._found[command] = found
        return self._found.get(command, command) == sys.executable

    @staticmethod
    def _say_cold(what: Forking, why: str) -> None:
        attempt = what.attempt
        log.warning("task %s of job %s starts cold: %s", attempt.task_id, attempt.job_name, why)
        _say_in_log(what.words[2], f"a cold start, without a warm runner: {why}")

    def _fork(self, what: Forking) -> None:
        attempt, task, (record, started_at, log_path, cwd, *_) = what
        module, *args = _python_module(task.args)
        with _starting():
            os.close(files.open_log(log_path))
        self._forking[attempt.serial] = what
        self._warm.request(
            attempt.serial,
            task.preload or (),
            {
                "module": module,
                "safe": task.args[0] == "-P",
                "record": record,
                "started_at": started_at,
                "log": log_path,
                "cwd": cwd,
                "variables": self._variables(attempt),
                "args": args,
            },
        )

    def _poll_warm(self) -> list[Ended | NotStarted]:
        ended: list[Ended | NotStarted] = []
        for event in self._warm.poll():
            if isinstance(event, Forked):
                attempt = self._forking.pop(event.key).attempt
                self._forked[event.pid] = attempt
                self._pids[attempt], self._tokens[attempt] = event.pid, event.token
                if attempt in self._killed_early:
                    self.cancel(attempt, kill=self._killed_early.pop(attempt))
            elif isinstance(event, Exited):
                attempt = self._forked.pop(event.pid)
                del self._pids[attempt]
                try:
                    result = self._result(attempt, event.pid, event.status)
                except OSError:
                    self._unread.append(_Reaped(attempt, event.pid, event.status))
                    continue
                if result is not None:
                    self._let_go(attempt, event.pid, result)
            elif isinstance(event, Refused):
                ended += self._start_otherwise(self._forking.pop(event.key), event)
            else:
                self._adopt_forked()
        return ended

    def _start_otherwise(self, what: Forking, refused: Refused) -> list[Ended | NotStarted]:
        """There is no warm runner for a task: start it cold if there will be none, or let it be tried again."""
        attempt = what.attempt
        if attempt in self._killed_early:
            del self._killed_early[attempt]
            return [Ended(attempt, None, utc_now())]
        try:
            record = read_record(what.words[0])
        except OSError as error:  # if it runs, the next runner finds its record there
            return [NotStarted(attempt, str(error))]
        if record is not None:  # it was forked, and who would have told us so is dead
            self._adopted[attempt], self._tokens[attempt] = record.pid, record.token
            return []
        if not refused.is_final:
            return [NotStarted(attempt, refused.why)]
        self._say_cold(what, refused.why)
        try:
            self._start_shell(what)
        except (SpawnError, ResourceExhaustedError, OSError) as error:
            return [NotStarted(attempt, str(error))]
        return []

    def _adopt_forked(self) -> None:
        """The fork server is dead, and its runners are nobody's children."""
        for pid, attempt in self._forked.items():
            del self._pids[attempt]
            self._adopted[attempt] = pid
        self._forked.clear()

    # -- shells --------------------------------------------------------------------------------------------

    def _spawn(self, environment: Mapping[str, str], words: list[str]) -> tuple[int, str]:
        """Start a runner that has its task: its process id, and its token."""
        token = secrets.token_hex(8)
        arguments = ["-c", f'{FIND}{self._script}shift; run "$@"', "air-executor-runner", token, *words]
        return self._spawn_shell(arguments, environment, token, _NO_INPUT), token

    def _spawn_shell(
        self,
        arguments: list[str],
        environment: Mapping[Any, Any],
        token: str,
        standard_input: tuple[object, ...],
    ) -> int:
        """Start ``sh`` in a session of its own, known by a token: its process id.

        :param environment: names and values, as str or as bytes.
        """
        return os.posix_spawn(
            _SHELL,
            ["sh", *arguments],
            {**environment, RUN_VARIABLE: token},
            file_actions=[standard_input, *_NO_OUTPUT],
            setsid=True,
            setsigdef=self._default_signals,
            setsigmask=(),  # whoever has started the manager may have blocked some
        )

    def prepare(self) -> None:
        """Start a runner that waits for the next task, if there is none.

        One that has ended without a task is not replaced before the next start: where no shell works, we do not spin.
        """
        if self._standby is not None or not self._may_prepare:
            return
        self._may_prepare = False
        token = secrets.token_hex(8)
        with contextlib.suppress(OSError):  # then the next one is started when there is a task
            task, pipe = os.pipe()
            try:
                os.set_blocking(pipe, False)
                os.write(pipe, os.fsencode(self._script))
                arguments = ["-s", "air-executor-runner", token]
                pid = self._spawn_shell(arguments, self._encoded, token, (os.POSIX_SPAWN_DUP2, task, 0))
                self._standby = Standby(pid, token, pipe)
                self._reaper.add(pid, self._standby_ended)
            except OSError:
                os.close(pipe)
                raise
            finally:
                os.close(task)

    def _hand_over(self, variables: Mapping[str, str], words: list[str]) -> tuple[int, str] | None:
        """Give a task to the runner on standby; None if there is none that can take it."""
        self._may_prepare = True
        if self._standby is None:
            return None
        given = _quoted([*variables.values(), *words])
        exports = " ".join(map("=".join, zip(variables, given, strict=False)))
        find = "" if "/" in words[_COMMAND] else FIND  # the shells on standby need not learn it, each of them
        # In braces, so that half of it, should that ever arrive, is not a command.
        text = os.fsencode(f"{{ {find}export {exports}; run {' '.join(given[len(variables) :])}; }}\n")
        if len(text) > select.PIPE_BUF:  # more could be written in part
            return None
        pid, token, pipe = self._standby
        self._shell_reads = self._shell_reads or _has_been_read(pipe)
        if not self._shell_reads:  # it has just begun, or it is one that does not know how to
            return None
        try:
            os.write(pipe, text)
        except OSError:  # it has ended, or reads nothing
            return None
        self._standby = None
        os.close(pipe)
        return pid, token

    def close(self) -> None:
        """End the fork server and the runner on standby. What runs goes on."""
        self._warm.close()
        if self._standby is not None:
            os.close(self._standby.pipe)
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._standby.pid, signal.SIGKILL)
                os.waitpid(self._standby.pid, 0)
            self._standby = None

    def _directory(self, job_name: str) -> str:
        """The directory of a job, as text: joining paths would cost as much as all else here."""
        if self._last_directory[0] != job_name:
            self._last_directory = job_name, str(self._store.paths(job_name).directory)
        return self._last_directory[1]

    def _record_path(self, attempt: Attempt) -> str:
        return f"{self._directory(attempt.job_name)}/runs/{attempt.task_id}.{attempt.number}"

    def _output_path(self, attempt: Attempt) -> str:
        return f"{self._record_path(attempt)}.output"

    def poll(self) -> list[Event]:
        """What has ended since the last call."""
        self._events += self._poll_warm()
        if self._unread and time.monotonic() >= self._next_read:
            self._read_what_has_ended()
        if self._ending:
            self._look_at_ending()
        if self._adopted and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _ADOPTED_INTERVAL
            self._look_at_adopted()
        events, self._events = self._events, []
        return events

    def _standby_ended(self, pid: int, status: int) -> None:
        if self._standby is not None and pid == self._standby.pid:
            os.close(self._standby.pipe)
            self._standby = None

    def _shell_ended(self, pid: int, status: int) -> None:
        attempt = self._children.pop(pid)
        del self._pids[attempt]
        try:
            result = self._result(attempt, pid, status)
        except OSError:
            self._unread.append(_Reaped(attempt, pid, status))
            return
        if isinstance(result, Ended) and result.exit_code is None:
            # The group's number cannot have been given away while a process of the group is left, and in the
            # microseconds since sh was reaped nobody else can have got it: numbers are given out in turn.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        if result is not None:
            self._let_go(attempt, pid, result)

    def _read_what_has_ended(self) -> None:
        """Read the records that could not be read when their runners had ended."""
        unread, self._unread = self._unread, []
        self._next_read = time.monotonic() + _READ_INTERVAL
        for reaped in unread:
            try:
                result = self._result(*reaped)
            except OSError:
                self._store.put_modes_back(reaped.attempt.job_name)  # the task may have forbidden it
                self._unread.append(reaped)
                continue
            if result is not None:
                self._let_go(reaped.attempt, reaped.pid, result, has_just_ended=False)

    def _let_go(self, attempt: Attempt, pid: int, result: Ended | NotStarted, *, has_just_ended: bool = True) -> None:
        """The runner of an attempt is gone. If it was killed, it is over when what it has left behind is gone too."""
        token = self._tokens.pop(attempt)
        self._detached.discard(attempt)
        if attempt not in self._killed:
            self._events.append(result)
            return
        self._killed.discard(attempt)
        kill = kill_started_by(token, pid, has_just_ended=has_just_ended)
        self._ending.append(_Ending(kill, result, time.monotonic() + _KILL_SECONDS))
        self._tell_what_has_ended()

    def _look_at_ending(self) -> None:
        """Look whether something is left of what was killed, and kill that too; who waited longest comes first."""
        give_up = time.monotonic() + _LOOK_SECONDS
        for _ in range(len(self._ending)):
            ending = self._ending.popleft()
            self._ending.append(ending)
            if not ending.kill.is_over:
                ending.kill.look()
            if time.monotonic() > give_up:
                break
        self._tell_what_has_ended()

    def _tell_what_has_ended(self) -> None:
        now = time.monotonic()
        over = [ending for ending in self._ending if ending.kill.is_over or ending.has_failed(now)]
        for ending in over:
            self._ending.remove(ending)
            self._events.append(self._with_what_is_left(ending))

    def _with_what_is_left(self, ending: _Ending) -> Ended | NotStarted:
        """The end of an attempt, with a word on what of it lives on, beside which it must not be repeated."""
        kill, result = ending.kill, ending.result
        is_over = kill.is_over or kill.is_quiet
        if not isinstance(result, Ended) or (is_over and not kill.untouchable):
            return result
        if kill.untouchable:
            numbers = ", ".join(map(str, sorted(kill.untouchable)))
            left = f"what it has started may not be killed and lives on (process {numbers})"
        else:
            left = f"what it has started could not be killed within {_KILL_SECONDS:g} s and may live on"
        _say_in_log(str(self._store.paths(result.attempt.job_name).log(result.attempt.task_id)), left)
        return result._replace(left=left, may_repeat=False)

    def detach(self, attempt: Attempt) -> None:
        """The job of an attempt is gone: what stands at the place of its record is another one's."""
        self._detached.add(attempt)

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called although no child has ended; None: never."""
        warm = self._warm.poll_after
        if warm is None and not (self._adopted or self._events or self._unread or self._ending):
            return None
        due = [] if warm is None else [warm]
        if self._adopted:
            due.append(self._next_look - time.monotonic())
        if self._events:
            due.append(0.0)
        if self._unread:
            due.append(self._next_read - time.monotonic())
        if self._ending:
            due.append(_LOOK_SECONDS)
        return max(0.0, min(due)) if due else None

    def _result(self, attempt: Attempt, pid: int, status: int) -> Ended | NotStarted | None:
        """How the attempt of a child that has just been reaped ended; None if another runner has it."""
        path = self._record_path(attempt)
        record = None if attempt in self._detached else read_record(path)
        exit_code = os.waitstatus_to_exitcode(status)
        if record is not None and record.is_over and record.pid == pid and could_not_fork(record) and exit_code > 0:
            os.unlink(path)
            return NotStarted(attempt, record.spawn_error or "")
        if record is not None and record.is_over:
            return _ended(attempt, record, utc_now())
        if record is not None and record.pid != pid:  # an earlier manager's runner was first
            self._adopted[attempt] = record.pid
            self._tokens[attempt] = record.token
            return None
        # Its own word, or a signal before it had made its record: then the command has not begun.
        was_hit = exit_code < 0 and attempt not in self._killed and files.stamp(path) is None
        if record is None and attempt not in self._detached and (exit_code == NOT_CLAIMED or was_hit):
            self._store.put_modes_back(attempt.job_name)
            why = self._cannot_record(path)
            self._unclaimed[path] = self._unclaimed.get(path, 0) + 1
            if why or self._unclaimed[path] <= _MAX_UNCLAIMED:
                return NotStarted(attempt, why or "its record could not be written")
        self._killed.add(attempt)
        return Ended(attempt, None, utc_now())

    @staticmethod
    def _cannot_record(path: str) -> str:
        """What the machine is short of, if that is why a runner could not write its record; empty otherwise."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # created, but there was no space for its content
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            descriptor = files.open_log(f"{path}.probe")
            try:
                os.write(descriptor, b"0" * 4096)
            finally:
                os.close(descriptor)
                os.unlink(f"{path}.probe")
        except OSError as error:
            return str(error) if error.errno in files.TRANSIENT else ""
        return ""

    def _look_at_adopted(self) -> None:
        for attempt, pid in list(self._adopted.items()):
            if is_runner(pid, self._tokens[attempt]):
                continue
            path = self._record_path(attempt)
            # Read after it was gone: now it is final.
            try:
                record = None if attempt in self._detached else read_record(path)
            except OSError:
                continue
            del self._adopted[attempt]
            if record is None or not record.is_over:
                self._killed.add(attempt)
                self._let_go(attempt, pid, Ended(attempt, None, utc_now()))
            else:
                self._let_go(attempt, pid, _ended(attempt, record, modified_at(path)))

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Take over an attempt that an earlier manager may have started.

        :return: None if it was never started.
        """
        path = self._record_path(attempt)
        if files.stamp(path) is None:
            return None
        record = read_record(path)
        if record is not None and not record.is_over and is_runner(record.pid, record.token):
            self._adopted[attempt] = record.pid
            self._tokens[attempt] = record.token
            return Running(attempt, record.started_at, age=age(record.pid))
        record = read_record(path)  # again: it may have ended between the two looks
        if record is None or not record.is_over:
            ended = Ended(attempt, None, utc_now())
            if record is None:
                return ended
            kill = kill_started_by(record.token, record.pid, has_just_ended=is_of_this_boot(record.token))
            ending = _Ending(kill, ended, time.monotonic() + _KILL_SECONDS)
            if not kill.look():  # what it has left is being killed: it runs for so long
                self._ending.append(ending)
                return Running(attempt, record.started_at)
            result = self._with_what_is_left(ending)
            return result if isinstance(result, Ended) else ended
        return _ended(attempt, record, modified_at(path))._replace(started_at=record.started_at)

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End all processes of an attempt; SIGKILL also reaches those in other sessions.

        When its runner has ended, whatever is left of it is killed.
        """
        number = signal.SIGKILL if kill else signal.SIGTERM
        if attempt.serial in self._forking:
            if self._warm.withdraw(attempt.serial):
                del self._forking[attempt.serial]
                self._events.append(Ended(attempt, None, utc_now()))
            else:
                self._killed_early[attempt] = kill
            return
        for reaped in [one for one in self._unread if one.attempt == attempt]:  # nobody needs to know how it ended
            self._unread.remove(reaped)
            self._killed.add(attempt)
            self._let_go(attempt, reaped.pid, Ended(attempt, None, utc_now()), has_just_ended=False)
        pid = self._pids.get(attempt) or self._adopted.get(attempt)
        if pid is None:  # it has just ended
            return
        self._killed.add(attempt)
        # A child that has not been reaped keeps its number.
        if pid in self._children or is_runner(pid, self._tokens[attempt]):
            if kill and pid not in self._children:  # a shell has no orphans
                kill_family(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):  # what is left of it is seen at its end
                os.killpg(pid, number)
                os.killpg(pid, signal.SIGCONT)  # one that is stopped could not hear it
        if kill:
            kill_started_by(self._tokens[attempt], pid, has_just_ended=True)

    def kill_orphan(self, attempt: Attempt) -> None:
        """Kill what an attempt has started according to its record, whether it runs or is over."""
        path = self._record_path(attempt)
        record = read_record(path)
        if record is not None:
            kill_started_by(record.token, record.pid)


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Start a runner.

    :raises ResourceExhaustedError: if that may be possible later.
    :raises SpawnError: if it is not.
    :raises OSError: if it is not possible for this job for the moment; the manager tries it again.
    """
    try:
        yield
    except OSError as error:
        if error.errno in files.SHORTAGE:
            raise ResourceExhaustedError(error.strerror) from error
        if error.errno in (*files.AWAY, *files.FORBIDDEN):
            raise
        if error.errno == errno.E2BIG:
            raise SpawnError("the arguments or the environment are too long for this system") from error
        raise SpawnError(f"the log or the shell cannot be opened: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise SpawnError(f"an argument cannot be encoded for this system: {error}") from error


def _ended(attempt: Attempt, record: Record, ended_at: datetime) -> Ended:
    """How an attempt has ended whose runner has written that down."""
    if record.spawn_error is not None:
        return Ended(attempt, None, ended_at, reason=Reason.SPAWN, error=record.spawn_error)
    return Ended(attempt, record.exit_code, ended_at)


def _python_module(args: Sequence[str]) -> Sequence[str]:
    """The module that Python is to run, and its arguments; nothing if it is to do something else."""
    words = args[1:] if args[:1] == ("-P",) else args
    return words[1:] if words[:1] == ("-m",) else ()


def _say_in_log(path: str, what: str) -> None:
    """Append a line of ours to the log of a task."""
    with contextlib.suppress(OSError):
        descriptor = files.open_log(path)
        try:
            os.write(descriptor, f"air-executor: {what}\n".encode())
        finally:
            os.close(descriptor)


def _check_resources(needed: Resources) -> None:
    """Refuse what this machine could never give."""
    for what, wanted, there in (
        ("cpus", needed.cpus, _processors()),
        ("bytes of memory", needed.memory, _memory()),
        ("gpus", needed.gpus, 0),
    ):
        if wanted is not None and wanted > there:
            raise SpawnError(f"it needs {wanted:.12g} {what}; this machine has {there:.12g} for local tasks")


def _processors() -> int:
    """How many processors we may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    """How many bytes of memory we may use: those of the machine, or what a container leaves us of them."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(Path(limit).read_bytes()))
    return found


def _quoted(words: list[str]) -> list[str]:
    """Words as ``sh`` is to be given them. None holds a NUL; one by one they would take longer than all else here."""
    quoted = "\0".join(words).replace("'", "'\"'\"'")
    return [f"'{word}'" for word in quoted.split("\0")]


def _has_been_read(pipe: int) -> bool:
    """Whether what was written into a pipe has been read."""
    return not int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)
