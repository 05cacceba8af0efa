"""Kills the processes that killed attempts have left behind, before the ends of the attempts are emitted."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from airflow_provider_air_executor.engines.protocol import Attempt, Ended, NotStarted, Running
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.processes import Kill, is_of_this_boot, kill_started_by

log = logging.getLogger("air_executor.manager")

_KILL_SECONDS = 20.0  # in which what was killed must be gone
_FEWEST_LOOKS = 100  # at it, however long they take on a busy machine
_LOOK_SECONDS = 0.03  # that looks for it may take at a time


class _Ending(NamedTuple):
    """An attempt whose process is gone; the processes that it has left are being killed."""

    kill: Kill
    result: Ended | NotStarted
    deadline: float

    def has_failed(self, now: float) -> bool:
        """Whether it has been tried long enough."""
        return now >= self.deadline and self.kill.looks >= _FEWEST_LOOKS


class Endings:
    """Attempts that are over but for the processes that they have left behind.

    :param emit: called with the end of each.
    """

    def __init__(self, store: JobStore, emit: Callable[[Ended | NotStarted], None]) -> None:
        self._store = store
        self._emit = emit
        self._ending: deque[_Ending] = deque()

    def __bool__(self) -> bool:
        """Whether :meth:`look` has something to do."""
        return bool(self._ending)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there is nothing to look at."""
        return _LOOK_SECONDS if self._ending else None

    def add(self, kill: Kill, result: Ended | NotStarted) -> None:
        """Wait until a kill is over, for a while."""
        self._ending.append(_Ending(kill, result, time.monotonic() + _KILL_SECONDS))

    def end_lost(self, ended: Ended, record: Record | None) -> Ended | Running:
        """Kill what is left of an attempt of an earlier manager that has left no result; it runs for so long."""
        if record is None:
            return ended
        kill = kill_started_by(record.token, record.pid, has_just_ended=is_of_this_boot(record.token))
        if not kill.look():
            self.add(kill, ended)
            return Running(ended.attempt, record.started_at)
        result = self.with_what_is_left(kill, ended)
        return result if isinstance(result, Ended) else ended

    def look(self) -> None:
        """Inspect which processes are left, and kill them too; the attempt that has waited longest comes first."""
        if not self._ending:
            return
        stop_at = time.monotonic() + _LOOK_SECONDS
        for _ in range(len(self._ending)):
            ending = self._ending.popleft()
            self._ending.append(ending)
            if not ending.kill.is_over:
                ending.kill.look()
            if time.monotonic() > stop_at:
                break
        self.emit_what_is_over()

    def emit_what_is_over(self) -> None:
        """Emit the ends of attempts of which nothing is left, or nothing that can be killed."""
        now = time.monotonic()
        over = [ending for ending in self._ending if ending.kill.is_over or ending.has_failed(now)]
        for ending in over:
            self._ending.remove(ending)
            self._emit(self.with_what_is_left(ending.kill, ending.result))

    def with_what_is_left(self, kill: Kill, result: Ended | NotStarted) -> Ended | NotStarted:
        """The end of an attempt, with a word on what of it lives on, beside which it must not be repeated."""
        is_over = kill.is_over or kill.is_quiet
        if not isinstance(result, Ended) or (is_over and not kill.untouchable):
            return result
        if kill.untouchable:
            numbers = ", ".join(map(str, sorted(kill.untouchable)))
            left = f"what it has started may not be killed and lives on (process {numbers})"
        else:
            left = f"what it has started could not be killed within {_KILL_SECONDS:g} s and may live on"
        say_in_log(self._store, result.attempt, left)
        return result._replace(left=left, may_repeat=False)


def say_cold(store: JobStore, attempt: Attempt, why: str) -> None:
    """Say that a task is not started warm, although it asks for that."""
    log.warning("task %s of job %s starts cold: %s", attempt.task_id, attempt.job_name, why)
    say_in_log(store, attempt, f"a cold start, without a warm runner: {why}")


def say_in_log(store: JobStore, attempt: Attempt, what: str) -> None:
    """Append a line of ours to the log of a task, if that can be written."""
    with contextlib.suppress(OSError):
        descriptor = files.open_log(store.paths(attempt.job_name).log(attempt.task_id))
        try:
            os.write(descriptor, f"air-executor: {what}\n".encode())
        finally:
            os.close(descriptor)
