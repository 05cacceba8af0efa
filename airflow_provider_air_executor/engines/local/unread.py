"""Attempts whose processes have ended, and whose records cannot be read for the moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from airflow_provider_air_executor.engines.local.attempt import LocalAttempt
from airflow_provider_air_executor.engines.protocol import Ended, NotStarted
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.store import JobStore

_READ_INTERVAL = 1.0  # seconds between two tries to read a record

Result = Callable[[LocalAttempt, int | None], Ended | NotStarted | None]


class _Reaped(NamedTuple):
    """An attempt whose process has ended."""

    found: LocalAttempt
    status: int | None  # None: it was killed before anybody could say whether it has a process


class Unread:
    """Tries to read their records again.

    :param result: how one has ended, None if another process has it; it raises an OSError if that is not known yet.
    :param ended: called with the end of one.
    """

    def __init__(
        self, store: JobStore, result: Result, ended: Callable[[LocalAttempt, Ended | NotStarted], None]
    ) -> None:
        self._store = store
        self._result = result
        self._ended = ended
        self._reaped: list[_Reaped] = []
        self._next_read = 0.0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._reaped)

    def __contains__(self, found: LocalAttempt) -> bool:
        return any(reaped.found is found for reaped in self._reaped)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there are none."""
        return self._next_read - time.monotonic() if self._reaped else None

    def add(self, found: LocalAttempt, status: int | None) -> None:
        """Read the record of an attempt later."""
        self._reaped.append(_Reaped(found, status))

    def drop(self, found: LocalAttempt) -> bool:
        """The record of an attempt does not matter any more; False if it was not to be read."""
        before = len(self._reaped)
        self._reaped = [reaped for reaped in self._reaped if reaped.found is not found]
        return len(self._reaped) < before

    def look(self) -> None:
        """Read the records that could not be read, if it is time."""
        if not self._reaped or time.monotonic() < self._next_read:
            return
        unread, self._reaped = self._reaped, []
        self._next_read = time.monotonic() + _READ_INTERVAL
        for reaped in unread:
            try:
                result = self._result(*reaped)
            except OSError:  # the task may have forbidden it
                files.put_modes_back(*self._store.paths(reaped.found.attempt.job_name).directories)
                self._reaped.append(reaped)
                continue
            if result is not None:
                self._ended(reaped.found, result)
