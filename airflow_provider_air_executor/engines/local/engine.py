"""The local engine: each attempt is a process of this machine, which records how it has ended.

It is a POSIX ``sh`` of a few lines that runs one command, see :mod:`.shells`. Under load it is the command itself, and
the process that starts it records its end, see :mod:`.launching`. A task that asks for a warm start, and whose command
is ``python -m module``, is run by a process forked from one that has imported the module already, see :mod:`.warm`;
where that cannot be, the same command is run by a shell.

Such a process is known by its process id together with its token.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from datetime import datetime
from functools import partial

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.adopted import Adopted, record_of_killed, refuse_unwritten
from airflow_provider_air_executor.engines.local.attempt import LocalAttempt, TooMuchMemory, ended_by
from airflow_provider_air_executor.engines.local.elsewhere import HOST_SECONDS, Elsewhere
from airflow_provider_air_executor.engines.local.endings import Endings, say_cold
from airflow_provider_air_executor.engines.local.forked import NOT_CLAIMED
from airflow_provider_air_executor.engines.local.holdings import Holdings, holdings_of
from airflow_provider_air_executor.engines.local.launching import (
    Begun,
    CommandEnded,
    Followed,
    GivenBack,
    Launching,
    NotLaunched,
)
from airflow_provider_air_executor.engines.local.memory import MemoryLimits
from airflow_provider_air_executor.engines.local.preloading import NO_PRELOAD, Preload
from airflow_provider_air_executor.engines.local.serving import Exited, Forked, Refused
from airflow_provider_air_executor.engines.local.shells import Shells
from airflow_provider_air_executor.engines.local.starting import AttemptPaths, Starts
from airflow_provider_air_executor.engines.local.unread import Unread
from airflow_provider_air_executor.engines.local.warm import ForkServerClient
from airflow_provider_air_executor.engines.protocol import (
    Attempt,
    Ended,
    Event,
    NotStarted,
    ResourceExhaustedError,
    Running,
    SpawnError,
    Started,
)
from airflow_provider_air_executor.engines.shim import could_not_fork, modified_at
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record, read_record
from airflow_provider_air_executor.jobs.models import Task, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.system.environment import inherited
from airflow_provider_air_executor.system.processes import (
    age,
    is_shim,
    kill_family,
    kill_started_by,
)

_MAX_UNCLAIMED = 5


class _Unclaimed:
    """How often the records of attempts could not be written."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._times: dict[str, int] = {}

    def why_again(self, attempt: Attempt, path: str) -> str:
        """Why an attempt is to be started again whose record could not be written; empty if that has no point."""
        files.put_modes_back(*self._store.paths(attempt.job_name).directories)
        why = _cannot_record(path)
        self._times[path] = self._times.get(path, 0) + 1
        return why or ("its record could not be written" if self._times[path] <= _MAX_UNCLAIMED else "")


class LocalEngine:
    """Runs attempts as processes of this machine.

    :param store: the job filesystem that the attempts belong to.
    :param environment: what the commands inherit.
    :param children: calls back when a process has ended.
    :param preload: what is imported once for all tasks that start warm; modules that it names are imported at once and
        not before the first such task.
    :param holdings: what the attempts hold of this machine; default: of all that it has.
    :param host_timeout: seconds without a sign of life after which an attempt on another machine counts as lost.
    """

    def __init__(
        self,
        store: JobStore,
        environment: Mapping[str, str],
        children: Children,
        *,
        preload: Preload = NO_PRELOAD,
        holdings: Holdings | None = None,
        host_timeout: float = HOST_SECONDS,
    ) -> None:
        self.holdings = holdings or holdings_of(store, environment, children)
        environment = {"PATH": os.defpath, **inherited(environment, str(store.base_path))}
        self._store = store
        self._warm = ForkServerClient(environment, children, preload, store.base_path)
        self._attempts: dict[Attempt, LocalAttempt] = {}
        self._events: list[Event] = []
        elsewhere = Elsewhere(store, self._events.append, self._release, host_timeout)
        self._adopted = Adopted(elsewhere, self._release)  # those of them that are not our children
        self._unclaimed = _Unclaimed(store)
        self._endings = Endings(store, self._events.append)
        self._unread = Unread(store, self._result, partial(self._release, has_just_ended=False))
        self._memory = MemoryLimits(store, self._kill_for_memory)
        self._starts = Starts(
            AttemptPaths(store, self.holdings),
            self._warm,
            Launching(environment, children, self._warm.descriptor),
            Shells(environment, children),
            self._memory,
            self._attempts,
            self._shell_ended,
        )
        if preload.modules:
            self._warm.start()

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when there is something to :meth:`poll`, besides SIGCHLD; None: never."""
        return self._starts.launching.descriptor

    # -- starting ------------------------------------------------------------------------------------------

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> None:
        """Start an attempt.

        :raises SpawnError: if the command is not there, or may not be run.
        :raises ResourceExhaustedError: if the machine is short of something.
        """
        self._starts.start(attempt, task, started_at)

    def short_one(self, job_name: str) -> Attempt | None:
        """An attempt of a job that is probably over soon, after which another one may start; None: there is none."""
        return self._starts.launching.short_one(job_name)

    def start_after(self, before: Attempt, attempt: Attempt, task: Task, started_at: datetime) -> bool:
        """Have an attempt started as soon as another one has ended, if that is soon; :meth:`poll` says whether it was.

        :param before: what :meth:`short_one` gave.
        :return: whether that is possible.
        """
        return self._starts.start_after(before, attempt, task, started_at)

    def limit_memory(self, attempt: Attempt, limit: int) -> None:
        """Kill an attempt that runs when it uses more bytes of memory than this."""
        if attempt in self._attempts:
            self._memory.watch(self._attempts[attempt], limit)

    def prepare(self) -> None:
        """Start a shell that waits for the next task, if there is none."""
        self._starts.shells.prepare()

    def refresh(self) -> None:
        """Have everything imported anew that is imported ahead of warm tasks."""
        self._warm.refresh()

    def close(self) -> None:
        """End the fork server, the launchers and the shell on standby. Attempts go on."""
        for part in (self._starts.launching, self._warm, self._starts.shells):
            part.close()

    # -- what has become of them ---------------------------------------------------------------------------

    def poll(self) -> list[Event]:
        """The events since the last call."""
        self._poll_warm()
        self._poll_launched()
        self._unread.look()
        self._endings.look()
        self._adopted.look()
        self._memory.look()
        events, self._events[:] = self._events.copy(), ()
        return events

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called although no child has ended; None: never."""
        parts = (self._adopted, self._memory, self._unread, self._endings)
        due = [self._warm.poll_after, 0.0 if self._events else None, *(part.look_after for part in parts)]
        return min((max(0.0, seconds) for seconds in due if seconds is not None), default=None)

    def _poll_warm(self) -> None:
        for event in self._warm.poll():
            found = self._attempts[event.attempt]
            if isinstance(event, Forked):
                self._has_begun(found, event.pid, event.token)
            elif isinstance(event, Exited):
                found.usage = event.usage
                self._warm.release(event, may_stay=not found.is_killed)  # what is to be killed may be this process
                self._has_ended(found, event.status)
            elif isinstance(event, Refused):
                self._start_otherwise(found, event.why, is_final=event.is_final)
            else:
                self._adopted.add(found)

    def _has_begun(self, found: LocalAttempt, pid: int, token: str) -> None:
        found.pid, found.token, found.forking = pid, token, None
        if found.is_killed_early is not None:
            self.cancel(found.attempt, kill=found.is_killed_early)

    def _poll_launched(self) -> None:
        for event in self._starts.launching.poll():
            found = self._attempts[event.attempt]
            if isinstance(event, Begun):
                self._has_begun(found, event.pid, event.token)
            elif isinstance(event, CommandEnded):
                exit_code = None if found.is_detached else event.exit_code
                found.is_killed = found.is_killed or exit_code is None
                self._release(found, Ended(event.attempt, exit_code, event.ended_at, usage=event.usage))
            elif isinstance(event, Followed):
                self._events.append(Started(event.attempt, event.started_at))
            elif isinstance(event, GivenBack) and event.is_certain:
                self._release(found, NotStarted(event.attempt, ""))
            elif isinstance(event, NotLaunched | GivenBack):
                self._start_otherwise(found, "", is_final=isinstance(event, NotLaunched))
                if isinstance(event, GivenBack) and event.attempt in self._attempts:  # its launcher has started it
                    self._events.append(Started(event.attempt, utc_now()))
            else:
                self._adopted.add(found)
                self.cancel(event.attempt, kill=True)

    def _start_otherwise(self, found: LocalAttempt, why: str, *, is_final: bool) -> None:
        """A task was not started as it was to be: start a shell if that is final, or let it be tried again.

        :param why: there is no warm start; empty if it was to have none.
        """
        attempt, forking = found.attempt, found.forking
        if found.is_killed_early is not None or forking is None:
            self._has_ended(found, None)
            return
        try:
            record = read_record(found.record_path)
        except OSError as error:  # if it runs, the next one finds its record there
            self._release(found, NotStarted(attempt, str(error)))
            return
        found.forking = None
        if record is not None:  # it was forked, and the fork server has died before it could report that
            self._adopt(found, record)
        elif not is_final:
            self._release(found, NotStarted(attempt, why))
        else:
            if why:
                say_cold(self._store, attempt, why)
            try:
                self._starts.start_shell(found, *forking)
            except (SpawnError, ResourceExhaustedError, OSError) as error:
                self._release(found, NotStarted(attempt, str(error)))

    def _shell_ended(self, found: LocalAttempt, status: int, usage: Usage | None) -> None:
        found.is_our_shell = False
        found.usage = usage
        self._has_ended(found, status, is_shell=True)

    def _has_ended(self, found: LocalAttempt, status: int | None, *, is_shell: bool = False) -> None:
        try:
            result = self._result(found, status)
        except OSError:
            self._unread.add(found, status)
            return
        if is_shell and isinstance(result, Ended) and result.exit_code is None:
            _kill_group(found.pid)
        if result is not None:
            self._release(found, result)

    def _release(self, found: LocalAttempt, result: Ended | NotStarted, *, has_just_ended: bool = True) -> None:
        """The process of an attempt is gone. If it was killed, the attempt is over when what it left is gone too."""
        del self._attempts[found.attempt]
        result = self._memory.end(found, result)
        if not found.is_killed:
            self._events.append(result)
            return
        self._endings.add(kill_started_by(found.token, found.pid, has_just_ended=has_just_ended), result)
        self._endings.emit_what_is_over()

    def _result(self, found: LocalAttempt, status: int | None) -> Ended | NotStarted | None:
        """How the attempt of a process that has just been reaped ended; None if another process has it."""
        attempt, path = found.attempt, found.record_path
        if status is None:
            record = record_of_killed(found)
            if record is None:
                return Ended(attempt, None, utc_now())
            self._adopt(found, record)
            return None
        record = None if found.is_detached else read_record(path)
        exit_code = os.waitstatus_to_exitcode(status)
        if record is not None and record.pid == found.pid and could_not_fork(record) and exit_code > 0:
            os.unlink(path)
            return NotStarted(attempt, record.spawn_error or "")
        if record is not None and record.is_over:
            return ended_by(attempt, record, utc_now(), found.usage)
        if record is not None and record.pid != found.pid:  # an earlier manager's process was first
            self._adopt(found, record)
            return None
        # Its own word, or a signal before it had made its record: then the command has not begun.
        was_hit = exit_code < 0 and not found.is_killed and files.stamp(path) is None
        if record is None and not found.is_detached and (exit_code == NOT_CLAIMED or was_hit):
            why = self._unclaimed.why_again(attempt, path)
            if why:
                return NotStarted(attempt, why)
        found.is_killed = True
        return Ended(attempt, None, utc_now())

    # -- what an earlier manager has left ------------------------------------------------------------------

    def _adopt(self, found: LocalAttempt, record: Record) -> None:
        self._attempts[found.attempt] = self._adopted.add(self._memory.adopt(found, record), record.token)
        found.usage = None
        self._has_begun(found, record.pid, record.token)

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Adopt an attempt that an earlier manager may have started; None if it was never started."""
        path = self._starts.paths.record(attempt)
        if files.stamp(path) is None:
            return None
        found, record = LocalAttempt(attempt, path), read_record(path)
        if record is not None and not record.is_over:
            is_here = is_shim(record.pid, record.token)
            if is_here or self._adopted.elsewhere.host_of(record.token):
                self._adopt(found, record)
                return Running(attempt, record.started_at, age=age(record.pid, record.token) if is_here else None)
        record = read_record(path)  # again: it may have ended between the two looks
        if record is None or not record.is_over:
            refuse_unwritten(path, record)
            lost = Ended(attempt, None, utc_now())
            return self._endings.end_lost(self._memory.end_adopted(found, record, lost), record)
        ended = ended_by(attempt, record, modified_at(path))
        return self._memory.end_adopted(found, record, ended._replace(started_at=record.started_at))

    # -- ending them ---------------------------------------------------------------------------------------

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End all processes of an attempt; SIGKILL also reaches those in other sessions.

        When its own process has ended, whatever is left of it is killed.
        """
        found = self._attempts.get(attempt)
        if found is None:  # it has just ended
            return
        if found.forking is not None:
            if self._warm.withdraw(attempt):
                self._release(found, Ended(attempt, None, utc_now()))
            else:
                found.is_killed_early = kill
                self._starts.launching.withdraw(attempt)
            return
        found.is_killed = True
        # Its processes are out of reach, or gone, and its result does not matter.
        if self._adopted.elsewhere.drop(found) or self._unread.drop(found):
            self._release(found, Ended(attempt, None, utc_now()), has_just_ended=False)
        else:
            _end_processes(found, kill=kill)

    def _kill_for_memory(self, found: LocalAttempt, why: TooMuchMemory) -> None:
        if found not in self._unread:  # otherwise it has just ended
            self._memory.blame(found, why)
            found.is_killed = True
            _end_processes(found, kill=True)

    def detach(self, attempt: Attempt) -> None:
        """The job of an attempt is gone: the file at the path of its record may belong to another job."""
        if attempt in self._attempts:
            self._attempts[attempt].is_detached = True

    def kill_orphan(self, attempt: Attempt) -> None:
        """Kill what an attempt has started according to its record, whether it runs or is over."""
        record = read_record(self._starts.paths.record(attempt))
        if record is not None:
            kill_started_by(record.token, None if record.is_over else record.pid)


def _end_processes(found: LocalAttempt, *, kill: bool) -> None:
    """End the processes of an attempt, as far as they are known now."""
    if found.is_our_shell or is_shim(found.pid, found.token):
        if kill and not found.is_our_shell:  # a shell has no orphans
            kill_family(found.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what is left of it is seen at its end
            os.killpg(found.pid, signal.SIGKILL if kill else signal.SIGTERM)
            os.killpg(found.pid, signal.SIGCONT)  # one that is stopped could not hear it
    if kill:
        kill_started_by(found.token, found.pid, has_just_ended=True)


def _kill_group(pid: int) -> None:
    """Kill what is left of a group whose leader, a shell, has just been reaped.

    Its number cannot have been given away while a process of the group is left, and in the microseconds since no other
    process can have got it: numbers are given out in turn.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _cannot_record(path: str) -> str:
    """Why no record can be written here, if the machine is short of something; empty otherwise."""
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
