"""Has the fork server replaced when packages have been upgraded under it, or somebody asks for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from airflow_provider_air_executor.engines.local.generations import Generations
from airflow_provider_air_executor.engines.local.serving import Server

log = logging.getLogger("air_executor.manager")

CHECK_SECONDS = 2.0  # between two looks, while tasks come
_IDLE_SECONDS = 30.0  # while none come
_PAUSE = 10.0  # between two that are replaced; twice as long after each one
_LONGEST_PAUSE = 600.0


class Freshness:
    """Asks the processes that serve whether what they have imported is still there, and has them replaced.

    :param replace: starts another fork server; what it returns says whether that was possible.
    """

    def __init__(self, generations: Generations, replace: Callable[[], bool]) -> None:
        self._generations = generations
        self._replace = replace
        self._checked_at = time.monotonic()
        self._is_due = False  # whether a task has come since, or what has changed may change further
        self._is_changing = False
        self._replaced_at = 0.0
        self._pause = _PAUSE

    def a_task_has_come(self) -> None:
        """Look soon."""
        self._is_due = True

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`step` must be called; None: never."""
        return max(0.0, self._checked_at + CHECK_SECONDS - time.monotonic()) if self._is_changing else None

    def step(self) -> None:
        """Ask the processes, if it is time."""
        now = time.monotonic()
        if now - self._checked_at < (CHECK_SECONDS if self._is_due else _IDLE_SECONDS):
            return
        self._checked_at, self._is_due, self._is_changing = now, False, False
        for server in (self._generations.base, self._generations.generation):
            if server is not None and server.is_ready:
                server.tell(check=True)

    def has_changed(self, server: Server, path: str, *, is_settled: bool) -> None:
        """Something has changed that a process has imported.

        :param is_settled: whether it has not changed for a while.
        """
        if server.is_retired or self._generations.next_base is not None:
            return
        if not is_settled:
            self._is_due = self._is_changing = True
            return
        now = time.monotonic()
        if now - self._replaced_at < self._pause:
            self._is_due = True
            return
        if self._replace():
            log.info("%s has changed; the fork server %s is replaced by another one", path, server.pid)
            is_new = not self._replaced_at or now - self._replaced_at > _LONGEST_PAUSE
            self._pause = _PAUSE if is_new else min(2 * self._pause, _LONGEST_PAUSE)
            self._replaced_at = now
