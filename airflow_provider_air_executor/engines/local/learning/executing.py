"""Which DAG files may be executed ahead of their tasks: a process watches each one that is used often, and reports."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_provider_air_executor.engines.local.learning.report import WatchReport
from airflow_provider_air_executor.system.stamps import Stamped, are_same

_LEAST_SECONDS = 0.005  # of CPU for executing a file, from which on it is worth it
_OFTEN_SECONDS = 10.0  # between two tasks of a file, at most
_FEW = 8  # tasks at a time; with more of them
_TASKS_BEFORE = 3  # that a process has of a file come first, and it executes it ahead of the next ones
_ASK_SECONDS = 60.0  # for the report on a file
_LOOK_SECONDS = 60.0  # between two looks at whether a file that may not be shared has changed
_HOLD_SECONDS = 86400.0  # after which a file is watched anew
_MOST = 1000  # files


@dataclass
class _Seen:
    """What is known of a DAG file.

    :param task_at: when its last task came, by the clock.
    :param asked_at: when it was last to be watched.
    :param watched_at: when it was; 0: not yet, or not since it has changed.
    :param looked_at: when its files were last looked at.
    """

    task_at: float = 0.0
    asked_at: float = 0.0
    watched_at: float = 0.0
    looked_at: float = 0.0
    why_not: str = ""
    files: Stamped | None = None


class Executing:
    """What was seen when DAG files were executed under watch.

    :param clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()  # the one that was used last comes last

    def take(self, report: WatchReport) -> None:
        """Note what was seen."""
        seen = self._seen.get(report.key)
        if seen is None:
            return
        now = self._clock()
        seen.why_not, seen.files = report.why_not, report.files
        seen.watched_at = seen.looked_at = now
        if not report.why_not and not report.files:  # it has changed
            seen.watched_at = seen.asked_at = 0.0

    def hint(self, key: str, seconds: float, beside: int) -> dict[str, Any]:
        """What a process is told of the file of its next task; empty if it is not to be executed ahead.

        :param seconds: of CPU that executing it takes.
        :param beside: how many tasks there are beside it. Where there are many, each process gets few of them.
        """
        now = self._clock()
        seen = self._seen.setdefault(key, _Seen())
        self._seen.move_to_end(key)
        while len(self._seen) > _MOST:
            self._seen.popitem(last=False)
        is_often = seen.task_at > 0 and now - seen.task_at < _OFTEN_SECONDS
        seen.task_at = now
        if not is_often or seconds < _LEAST_SECONDS:
            return {}
        if self._is_outdated(seen, now):
            if seen.asked_at > 0 and now - seen.asked_at < _ASK_SECONDS:
                return {}
            seen.asked_at = now
            return {"watch": True}
        after = _TASKS_BEFORE if beside > _FEW else 0
        return {} if seen.why_not else {"files": seen.files, "seconds": round(seconds, 3), "after": after}

    def _is_outdated(self, seen: _Seen, now: float) -> bool:
        """Whether a file is to be watched, or to be watched again."""
        if not seen.watched_at or now - seen.watched_at > _HOLD_SECONDS:
            return True
        if seen.why_not and now - seen.looked_at > _LOOK_SECONDS:
            seen.looked_at = now
            return not are_same(seen.files or {})
        return False

    def describe(self, key: str) -> str:
        """Whether a file is executed ahead of its tasks, in words; empty if that is not known."""
        seen = self._seen.get(key)
        if seen is None or not seen.watched_at:
            return ""
        return f"no: {seen.why_not}" if seen.why_not else "yes"
