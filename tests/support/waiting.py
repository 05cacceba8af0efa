"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Seconds. What takes longer hangs; it says nothing of how fast something is, since a machine may have much else to do.
PATIENCE = 900
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5
_USUAL_LOAD = 3  # processes that want to run, for each processor


def wait_until(check: Callable[[], T | None], *, timeout: float = PATIENCE, what: str, interval: float = 0) -> T:
    """Call ``check`` until it gives something true, and return that.

    :param timeout: seconds until it fails; longer on a machine that has too much else to do, see :func:`_share`.
    :param what: what is waited for, for the error.
    :param interval: seconds between two calls; default: more and more, up to half a second, so that who waits
        does not take the time of those that are waited for.
    :raises TimeoutError: if ``check`` gives nothing true in time.
    """
    before, waited = time.monotonic(), 0.0
    pause = interval or _SHORTEST_PAUSE
    while True:
        is_late = waited > timeout  # a last look is taken when the time is over, however late that is
        result = check()
        if result:
            return result
        if is_late:
            raise TimeoutError(f"after {timeout:g} s still not: {what}")
        time.sleep(pause)
        pause = interval or min(1.25 * pause, _LONGEST_PAUSE)
        now = time.monotonic()
        before, waited = now, waited + (now - before) * _share()


def _share() -> float:
    """The part of its usual time that a process gets which is waited for, of a machine that has too much to do."""
    return min(1.0, _USUAL_LOAD * (os.cpu_count() or 1) / max(os.getloadavg()[0], 0.01))


def nothing_until(event: Callable[[], object], *, unless: Callable[[], object], what: str) -> None:
    """Show that something does not happen before an event that comes after it.

    :param event: gives something true when that has come which would come later.
    :param unless: gives something true if it has happened all the same.
    :param what: the event, for the error.
    :raises AssertionError: if it has happened.
    :raises TimeoutError: if the event does not come.
    """

    def has_come() -> bool:
        came = bool(event())
        happened = unless()
        assert not happened, f"before {what}: {happened!r}"
        return came

    wait_until(has_come, what=what)


def until(path: Path) -> str:
    """A line of bash that waits until a file is there."""
    return f"until test -e {path}; do sleep 0.1; done"
