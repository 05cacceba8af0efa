"""An attempt of this engine: its process, why it is being killed, and its end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.jobs.attempt_record import Record
from airflow_provider_air_executor.jobs.models import Reason, Task
from airflow_provider_air_executor.jobs.usage import Usage, in_bytes, usage_of
from airflow_provider_air_executor.system.control_groups import Group, Measured


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


def ended_by(attempt: Attempt, record: Record, ended_at: datetime, usage: Usage | None = None) -> Ended:
    """The end of an attempt, by its record."""
    if record.spawn_error is not None:
        return Ended(attempt, None, ended_at, reason=Reason.SPAWN, error=record.spawn_error)
    return Ended(attempt, record.exit_code, ended_at, usage=usage or usage_of(record))
