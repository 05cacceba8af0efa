"""Ends attempts that a batch system has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from airflow_provider_air_executor.engines.batch.attempt import BatchedAttempt
from airflow_provider_air_executor.engines.batch.dialect import Dialect
from airflow_provider_air_executor.engines.children import Commands


class Canceller:
    """Ends attempts, and batch jobs as a whole. If a command fails, the caller tries again.

    :param read: reads the record of an attempt.
    """

    def __init__(self, dialect: Dialect, commands: Commands, read: Callable[[BatchedAttempt], None]) -> None:
        self._dialect = dialect
        self._commands = commands
        self._read = read
        self._ended: set[str] = set()

    def has_ended(self, numbers: Iterable[str]) -> bool:
        """Whether one of these batch jobs was ended from here."""
        return not self._ended.isdisjoint(numbers)

    def end_jobs(self, numbers: Iterable[str]) -> None:
        """Have the system end batch jobs. Other attempts that they were to run are still wanted."""
        self._ended.update(numbers)
        self.signal(numbers)

    def signal(self, numbers: Iterable[str], name: str | None = None) -> None:
        """Send a signal to all processes of batch jobs, or let the system end them."""
        self._commands.run(self._dialect.cancel(list(numbers), name), lambda _: None)

    def cancel(self, found: BatchedAttempt) -> None:
        """End an attempt, as its field ``cancelling`` says."""
        found.cancelled_at = time.monotonic()
        is_shared = found.is_shared or any(state.is_shared for state in found.states.values())
        if not found.has_started:
            # An attempt that can be claimed has not begun. A plain cancel signals the script alone, not its command.
            is_claimed = found.claim()
            if is_claimed and is_shared:  # the one that runs in its batch job has its grace
                return
            if not is_claimed:
                self._read(found)
        numbers = found.numbers
        if not numbers:
            return
        if not found.has_started:
            self.signal(numbers)
        elif not found.cancelling:
            self.signal(numbers, "TERM")
            self.signal(numbers, "CONT")  # one may be stopped
        else:  # the signal goes to what runs at once, the end of the job takes the system's own time
            self._commands.run(self._dialect.cancel(numbers, "KILL"), lambda _: self.end_jobs(numbers))
