"""Kills attempts that use more memory than their tasks may.

The processes of each are inspected some times a second, those that are far below their limit less often. One that grows
fast is over its limit for a moment, and may use all that the machine has before it is seen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_air_executor.engines.local.adopted import LocalAttempt, TooMuchMemory
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.system.family_memory import Families, Shim, cpu_seconds_of, memory_of

_SHORTEST, _LONGEST = 0.25, 2.0  # seconds between two looks at an attempt
_NEAR = 0.5  # of its limit, from which on it is inspected as often as it can be
_SHARE = 20.0  # looks take one part of so many of the time


@dataclass(eq=False, slots=True)
class _Watched:
    """An attempt that may use so much."""

    found: LocalAttempt
    limit: int
    due: float = 0.0  # on the monotonic clock
    pause: float = _SHORTEST

    @property
    def shim(self) -> Shim:
        """What its processes have in common."""
        return Shim(self.found.pid, self.found.token)

    def has_used(self, used: int, now: float) -> None:
        """Note how much it uses, by which it is known when to inspect it again."""
        self.pause = _SHORTEST if used > self.limit * _NEAR else min(2 * self.pause, _LONGEST)
        self.due = now + self.pause


class MemoryWatch:
    """Attempts whose memory is limited.

    :param exceeded: called when one uses too much.
    """

    def __init__(self, exceeded: Callable[[LocalAttempt, TooMuchMemory], None]) -> None:
        self._exceeded = exceeded
        self._watched: dict[Attempt, _Watched] = {}
        self._families = Families()
        self._next_look = 0.0

    def add(self, found: LocalAttempt, limit: int) -> None:
        """Watch an attempt until it is dropped.

        :param limit: bytes.
        """
        if sys.platform.startswith("linux"):
            self._watched[found.attempt] = _Watched(found, limit, time.monotonic() + _SHORTEST)

    def drop(self, attempt: Attempt) -> None:
        """Its process is gone."""
        if self._watched:
            self._watched.pop(attempt, None)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there is nothing to watch."""
        due = min((watched.due for watched in self._watched.values()), default=None)
        return None if due is None else max(due, self._next_look) - time.monotonic()

    def look(self) -> None:
        """Inspect the attempts for which it is time."""
        now = time.monotonic()
        if not self._watched or now < self._next_look:
            return
        due = [watched for watched in self._watched.values() if watched.due <= now]
        if due:
            self._inspect(due, now)
            self._next_look = time.monotonic() + _SHARE * (time.monotonic() - now)

    def _inspect(self, due: list[_Watched], now: float) -> None:
        try:
            pids = self._families.find([watched.shim for watched in self._watched.values() if watched.found.pid])
        except OSError:  # the manager is short of something
            pids = {}
        for watched in due:
            processes = pids.get(watched.shim, [])
            used = memory_of(processes, watched.limit)
            watched.has_used(used, now)
            if used > watched.limit and watched.found.too_much_memory is None:
                usage = Usage(cpu_seconds=round(cpu_seconds_of(processes), 3), max_memory=used)
                self._exceeded(watched.found, TooMuchMemory(watched.limit, usage))
