"""Durations by a clock that cannot be set: it counts from the start of the machine."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

UNKNOWN = "unknown"  # the identity of a boot that cannot be read

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@cache
def boot() -> str:
    """The identity of this boot of this machine."""
    with contextlib.suppress(FileNotFoundError, PermissionError):  # otherwise it can be read later
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return UNKNOWN


def seconds_since_boot() -> float:
    """How long this machine has been running."""
    return time.clock_gettime(_CLOCK)


def mark(ago: float = 0.0) -> str:
    """A point of time, as text: the boot, and seconds since it.

    :param ago: how many seconds it lies back.
    """
    return f"{boot()} {seconds_since_boot() - ago:.3f}"


def is_of_this_boot(marked: str | None) -> bool:
    """Whether a mark was made since this machine was started."""
    return marked is not None and boot() != UNKNOWN and marked.partition(" ")[0] == boot()


def elapsed(marked: str | None, since: datetime) -> float:
    """Seconds since a point of time, at least 0.

    :param marked: its mark, if there is one.
    :param since: the same by the clock that people set, for a mark of another boot.
    """
    if marked is not None and is_of_this_boot(marked):
        with contextlib.suppress(ValueError):
            return max(0.0, seconds_since_boot() - float(marked.partition(" ")[2]))
    return max(0.0, (datetime.now(tz=UTC) - since).total_seconds())
