"""What a batch system's accounting knows of attempts that have not said themselves what they have used.

These are the ones that the system has killed with the shim that would have written it, and those that have failed where
no control group tells how much memory they had. They end some moments later: the system needs these for its books.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_provider_air_executor.engines.batch.attempt import BatchedAttempt
from airflow_provider_air_executor.engines.batch.dialect import Dialect, Kept
from airflow_provider_air_executor.engines.children import Commands, Result
from airflow_provider_air_executor.engines.protocol import Ended, Event
from airflow_provider_air_executor.jobs.models import Reason
from airflow_provider_air_executor.jobs.usage import Usage

_PAUSE_SECONDS = 1.0  # between two questions
_LONGEST_SECONDS = 8.0  # that an end waits for the books
_ASKED_AT_ONCE = 500  # in one command line


@dataclass(eq=False)
class _Waiting:
    """An end of which the system is asked what was used."""

    end: Ended
    number: str  # of its batch job
    deadline: float  # on the monotonic clock
    usage: Usage | None = None  # as far as it is known


class Events:
    """The events of an engine, among them ends, which may wait for the accounting.

    :param commands: runs its command lines.
    """

    def __init__(self, dialect: Dialect, commands: Commands) -> None:
        self._dialect = dialect
        self._commands = commands
        self._events: list[Event] = []
        self._waiting: list[_Waiting] = []
        self._next = 0.0
        self._is_asking = False

    def append(self, event: Event) -> None:
        """Have an event returned by the next :meth:`take`."""
        self._events.append(event)

    def end(self, end: Ended, found: BatchedAttempt) -> None:
        """The same for the end of an attempt, when it is known what that has used, or nobody knows it."""
        number = _number_of(found)
        if number is None or not _is_asked_for(end, found):
            self._events.append(end)
        else:
            self._waiting.append(_Waiting(end, number, time.monotonic() + _LONGEST_SECONDS))

    @property
    def due(self) -> float:
        """When :meth:`take` must be called, on the monotonic clock."""
        if self._events:
            return 0.0
        deadline = min((each.deadline for each in self._waiting), default=math.inf)
        return deadline if self._is_asking or not self._waiting else min(self._next, deadline)

    def take(self) -> list[Event]:
        """The events since the last call."""
        now = time.monotonic()
        for each in [each for each in self._waiting if now >= each.deadline]:
            self._leave(each)
        if self._waiting and not self._is_asking and now >= self._next:
            self._ask()
        events, self._events = self._events, []
        return events

    def _leave(self, waiting: _Waiting) -> None:
        """An end waits no more."""
        self._waiting.remove(waiting)
        self._events.append(waiting.end._replace(usage=_together(waiting.end.usage, waiting.usage)))

    def _ask(self) -> None:
        self._is_asking = True
        asked = self._waiting[:_ASKED_AT_ONCE]
        numbers = sorted({each.number for each in asked})
        self._commands.run(self._dialect.accounting(numbers), lambda result: self._heard(asked, result))

    def _heard(self, asked: list[_Waiting], result: Result) -> None:
        self._is_asking, self._next = False, time.monotonic() + _PAUSE_SECONDS
        kept: Mapping[str, Kept] = self._dialect.kept(result.output) if result.exit_code == 0 else {}
        for each in [each for each in asked if each in self._waiting]:
            found = kept.get(each.number)
            if found is not None:
                each.usage = found.usage
            if result.exit_code != 0 or (found is not None and found.is_final):
                self._leave(each)


def _number_of(found: BatchedAttempt) -> str | None:
    """The batch job that has run an attempt; None if it is not known, or has run other ones too."""
    holder = found.holder
    if found.is_shared or found.is_detached or (holder is not None and holder.is_shared):
        return None
    if found.record is not None:
        return str(found.record.pid)
    return list(found.states)[-1] if holder is not None and holder.nodes else None


def _is_asked_for(end: Ended, found: BatchedAttempt) -> bool:
    """Whether something is missing that is worth a moment."""
    if found.cancelling is not None or end.reason is Reason.SPAWN or end.exit_code == 0:
        return False
    return end.usage is None or end.usage.max_memory is None


def _together(recorded: Usage | None, kept: Usage | None) -> Usage | None:
    """What an attempt has said itself, with what the accounting knows besides."""
    if recorded is None or kept is None:
        return recorded or kept
    return recorded.model_copy(update={"max_memory": kept.max_memory})
