"""Long work on single jobs, a piece at a time and in turns, so that no job blocks the manager's only thread."""

from __future__ import annotations

import contextlib
import gc
import time
from collections import deque
from collections.abc import Callable

from airflow_provider_air_executor.jobs.pieces import Pieces

_SECONDS = 0.01  # that work may take at a time
_PAUSE = 0.005  # before work goes on that waits for the disk


class Turns:
    """Work that has been begun, by the jobs that it is for. What is for the same job is done in its order.

    :param failed: is called with the name of a job and the error that its work has raised.
    """

    def __init__(self, failed: Callable[[str, Exception], None]) -> None:
        self._failed = failed
        self._begun: dict[str, deque[Pieces[None]]] = {}  # in the order in which they have begun
        self._is_waiting = False  # whether none of it has used its time

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`advance` must be called; None: there is nothing to do."""
        if not self._begun:
            return None
        return _PAUSE if self._is_waiting else 0.0

    @property
    def busy(self) -> set[str]:
        """The jobs for which something has been begun."""
        return set(self._begun)

    def is_busy(self, name: str) -> bool:
        """Whether something has been begun for this job."""
        return name in self._begun

    def do(self, name: str, work: Pieces[None]) -> None:
        """Begin with some work, and finish it at once if it is short."""
        if name in self._begun:
            self._begun[name].append(work)
            return
        self._begun[name] = deque((work,))
        self._advance(name)

    def drop(self, name: str) -> None:
        """Leave what has been begun for a job."""
        works = self._begun.get(name)
        if works is None:
            return
        self._end(name, works)
        for work in works:
            with contextlib.suppress(ValueError):  # this work itself may be the caller
                work.close()
        works.clear()

    def advance(self) -> None:
        """Do the next pieces, of each job some."""
        if not self._begun:
            return
        began = time.perf_counter()
        for name in list(self._begun):
            if name in self._begun:
                self._advance(name)
        self._is_waiting = time.perf_counter() - began < _SECONDS / 2

    def _advance(self, name: str) -> None:
        until = time.perf_counter() + _SECONDS
        works = self._begun[name]
        while works:
            error = None
            try:
                for waits in works[0]:
                    if waits or time.perf_counter() >= until:
                        gc.freeze()  # or the collector would look at all the tasks of a long list again and again
                        return
            except Exception as problem:  # noqa: BLE001 - the contents of a job's files may lead to any error
                error = problem
            if works:  # it has not been dropped
                works.popleft()
            if not works:
                self._end(name, works)
            if error is not None:
                self._failed(name, error)

    def _end(self, name: str, works: deque[Pieces[None]]) -> None:
        if self._begun.get(name) is works:  # there may be others by now
            del self._begun[name]
