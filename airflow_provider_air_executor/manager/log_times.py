"""Notes when the logs of running tasks grow, see :mod:`~airflow_provider_air_executor.jobs.log_times`."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from itertools import islice

from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.log_times import Note
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.manager.shared import Shared

_SECONDS = 1.0  # between two looks
_LOOKS = 500  # logs inspected in one look, ...
_LOOK_SECONDS = 0.05  # ... which takes at most so long; where more tasks run, each has its turn less often
_SLOWER_AFTER = 3600  # notes of one attempt, after which they are made a second less often; and so on


@dataclass(slots=True)
class _Log:
    """The log of an attempt."""

    paths: JobPaths
    log: str
    size: int = 0  # when it was noted last
    notes: int = 0
    next_note: float = 0.0  # on the monotonic clock, at the earliest


class LogTimes:
    """Looks once a second at the logs of all attempts that run. What cannot be read or written now is left out.

    An attempt that ends before the second look after its start costs nothing more than a place in a dictionary.
    """

    def __init__(self, shared: Shared) -> None:
        self._store, self._timers = shared.store, shared.timers
        self._watched: dict[Attempt, _Log | None] = {}  # None: it was not running at the last look
        self._will_look = False

    def begin(self, attempt: Attempt) -> None:
        """An attempt is about to start: note where its part of the log begins, if it is not the first one."""
        if attempt.number == 1:
            return
        with contextlib.suppress(OSError):
            paths = self._store.paths(attempt.job_name)
            found = os.lstat(paths.log(attempt.task_id))
            if found.st_size and stat.S_ISREG(found.st_mode):
                now = self._now()
                before = Note(min(found.st_mtime, now), found.st_size, attempt.number - 1)
                _append(paths, attempt, before, Note(now, found.st_size, attempt.number))

    def watch(self, attempt: Attempt) -> None:
        """An attempt has been started."""
        self._watched[attempt] = None
        if not self._will_look:
            self._will_look = True
            self._timers.after(_SECONDS, self._look)

    def release(self, attempt: Attempt) -> None:
        """An attempt is over, or its job is gone."""
        self._watched.pop(attempt, None)

    def _look(self) -> None:
        self._will_look = bool(self._watched)
        if self._will_look:
            self._timers.after(_SECONDS, self._look)
        until = time.perf_counter() + _LOOK_SECONDS
        for attempt in list(islice(self._watched, _LOOKS)):
            if time.perf_counter() >= until:  # a file system at the other end of a network
                break
            known = self._watched.pop(attempt)
            if known is None:
                paths = self._store.paths(attempt.job_name)
                known = _Log(paths, str(paths.log(attempt.task_id)))
            else:
                with contextlib.suppress(OSError):
                    self._note(attempt, known)
            self._watched[attempt] = known  # behind all others

    def _note(self, attempt: Attempt, known: _Log) -> None:
        found = os.lstat(known.log)
        now = self._timers.now()
        if found.st_size == known.size or now < known.next_note or not stat.S_ISREG(found.st_mode):
            return
        _append(known.paths, attempt, Note(min(found.st_mtime, self._now()), found.st_size, attempt.number))
        known.size = found.st_size
        known.notes += 1
        known.next_note = now + known.notes // _SLOWER_AFTER

    def _now(self) -> float:
        return self._timers.clock.time_ns() / 1e9


def _append(paths: JobPaths, attempt: Attempt, *notes: Note) -> None:
    descriptor = files.open_log(paths.log_times(attempt.task_id))
    try:
        os.write(descriptor, "".join(map(str, notes)).encode())
    finally:
        os.close(descriptor)
