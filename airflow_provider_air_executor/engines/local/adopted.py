"""The attempts of this machine, and those of them whose processes are not children of the manager."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.engines.shim import modified_at
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record, forbid, read_record
from airflow_provider_air_executor.jobs.models import Reason, Task, utc_now
from airflow_provider_air_executor.jobs.usage import Usage, in_bytes, usage_of
from airflow_provider_air_executor.system.control_groups import Group, Measured
from airflow_provider_air_executor.system.processes import is_claimed_token, is_launcher, is_shim

_LOOK_SECONDS = 0.2  # between two looks
_UNWRITTEN_SECONDS = 2.0  # that a shim may take, after it has created its record, to write it


class Forking(NamedTuple):
    """A request to another process to start one."""

    task: Task
    words: list[str]


class TooMuchMemory(NamedTuple):
    """Why an attempt is killed that used more memory than it may."""

    limit: int  # bytes
    usage: Usage  # when that was seen

    @classmethod
    def of(cls, measured: Measured) -> TooMuchMemory | None:
        """What the group of an attempt says; None if the system has not killed it for its memory."""
        if not measured.is_killed or measured.limit is None:
            return None
        return cls(measured.limit, Usage(cpu_seconds=measured.cpu_seconds, max_memory=measured.peak or measured.limit))

    @property
    def error(self) -> str:
        """The sentence that says so."""
        used, limit = in_bytes(self.usage.max_memory or 0), in_bytes(self.limit)
        if used == limit or (self.usage.max_memory or 0) <= self.limit:  # the system has not let it have more
            return f"it was killed: it used more than the {limit} of memory that it may use"
        return f"it was killed: it used {used} of memory, and may use {limit}"

    def judge(self, ended: Ended) -> Ended:
        """The end of the attempt; one that had completed before it was killed has completed."""
        if ended.exit_code == 0:
            return ended
        seconds = max(self.usage.cpu_seconds, ended.usage.cpu_seconds if ended.usage is not None else 0)
        usage = Usage(cpu_seconds=seconds, max_memory=self.usage.max_memory)
        return ended._replace(exit_code=None, reason=Reason.SIGNAL, error=self.error, usage=usage)


@dataclass(eq=False, slots=True)
class LocalAttempt:
    """An attempt, and the process that has it."""

    attempt: Attempt
    record_path: str
    pid: int = 0
    token: str = ""
    forking: Forking | None = None  # until it is forked or launched
    is_our_shell: bool = False  # a child of ours, which keeps its number until it has been reaped
    is_killed: bool = False
    is_killed_early: bool | None = None  # before that; whether by SIGKILL
    is_detached: bool = False
    too_much_memory: TooMuchMemory | None = None  # for which it is being killed, or was killed
    group: Group | None = None  # that limits its memory
    usage: Usage | None = None  # when its process has ended

    def judge(self, ended: Ended, measured: Measured | None = None) -> Ended:
        """Its end, with what it has used, and why it was killed.

        :param measured: what its group says, if it had one.
        """
        if ended.usage is None:
            ended = ended._replace(usage=self.usage)
        if measured is not None and measured.peak is not None:
            seconds = measured.cpu_seconds if ended.usage is None else ended.usage.cpu_seconds
            ended = ended._replace(usage=Usage(cpu_seconds=seconds, max_memory=measured.peak))
        return ended if self.too_much_memory is None else self.too_much_memory.judge(ended)


class Adopted:
    """Attempts whose processes are not children of the manager, so that it must look whether they are there.

    :param released: called when the process of one is gone, with its end.
    """

    def __init__(self, released: Callable[[LocalAttempt, Ended], None]) -> None:
        self._released = released
        self._attempts: dict[Attempt, LocalAttempt] = {}
        self._next_look = 0.0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._attempts)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there are none."""
        return self._next_look - time.monotonic() if self._attempts else None

    def add(self, found: LocalAttempt) -> LocalAttempt:
        """Look after an attempt, which is returned."""
        self._attempts[found.attempt] = found
        return found

    def look(self) -> None:
        """Inspect which processes are gone, if it is time."""
        if not self._attempts or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        for attempt, found in list(self._attempts.items()):
            if is_shim(found.pid, found.token):
                continue
            # Read after it was gone: now it is final.
            try:
                record = None if found.is_detached else read_record(found.record_path)
                if record is not None and not record.is_over and is_claimed_token(found.token):
                    refuse_unwritten(found.record_path, record)
            except OSError:
                continue
            if record is not None and found.token != record.token and is_claimed_token(found.token):
                found.pid, found.token = record.pid, record.token  # it has begun
                continue
            del self._attempts[attempt]
            if record is None or not record.is_over:
                found.is_killed = True
                self._released(found, Ended(attempt, None, utc_now()))
            else:
                self._released(found, ended_by(attempt, record, modified_at(found.record_path)))


def ended_by(attempt: Attempt, record: Record, ended_at: datetime, usage: Usage | None = None) -> Ended:
    """The end of an attempt, by its record."""
    if record.spawn_error is not None:
        return Ended(attempt, None, ended_at, reason=Reason.SPAWN, error=record.spawn_error)
    return Ended(attempt, record.exit_code, ended_at, usage=usage or usage_of(record))


def record_of_killed(found: LocalAttempt) -> Record | None:
    """The record of an attempt that was killed before anybody had said whether it has a process.

    The fork server may have died between the fork and its word on it. If there is no record, there will be none.

    :raises OSError: if nothing is known now, or a process may have begun a moment ago.
    """
    record = None if found.is_detached else read_record(found.record_path)
    if record is None and not found.is_detached:
        try:
            forbid(found.record_path)
        except FileExistsError:
            refuse_unwritten(found.record_path, None)
        except OSError as error:
            if error.errno not in files.ABSENT:  # where none can be made, no process can make one either
                raise
    return record


def refuse_unwritten(path: str, record: Record | None) -> None:
    """Conclude nothing from a record that was made a moment ago and is not whole: it may be about to be written.

    :raises BlockingIOError: if it was.
    """
    if record is not None and not is_claimed_token(record.token):
        return
    if record is not None and is_launcher(record.pid):
        raise BlockingIOError(errno.EAGAIN, "a command of this attempt is being started", path)
    status = os.lstat(path)  # a shim makes a file, nothing else
    if stat.S_ISREG(status.st_mode) and abs(time.time() - status.st_mtime) < _UNWRITTEN_SECONDS:
        raise BlockingIOError(
            errno.EAGAIN, "the record of an attempt has just been created, and is not written yet", path
        )
