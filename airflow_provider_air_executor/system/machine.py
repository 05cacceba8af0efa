"""What this process may use of the machine: processors and memory, as its affinity and its control groups have it.

A control group limits what is in it, and so do those above it. Where a process sees only a part of them, as in a
container, its own group may look like the root of all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OF_PROCESS = Path("/proc/self/cgroup")


def processors() -> float:
    """How many processors this process may use; parts of one where a control group limits the time that it gets."""
    found = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in _groups("cpu"):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = _quota(group)
            if quota > 0:
                found = min(found, quota / period)
    return found


def _quota(group: Path) -> tuple[int, int]:
    """How many microseconds of processor time a group may have in how many; a negative one where there is no limit.

    :raises OSError: if it has no such limit.
    :raises ValueError: if that cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        quota, period = (group / "cpu.max").read_text().split()
        return (-1 if quota == "max" else int(quota)), int(period)
    return int((group / "cpu.cfs_quota_us").read_text()), int((group / "cpu.cfs_period_us").read_text())


def memory() -> int:
    """How many bytes of memory this process may use."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups("memory"):
        # Without a limit there is a word, or a number beyond all memory.
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):
                found = min(found, int((group / name).read_bytes()))
    return found


def _groups(controller: str) -> Iterator[Path]:
    """The directories of the control groups that this process is in, for a controller: its own, and those above."""
    try:
        lines = _OF_PROCESS.read_text().splitlines()
    except OSError:  # there are none
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in (
            [_GROUPS / part for part in (controllers, controller, "unified") if part]
            if controllers
            else [
                _GROUPS,
                _GROUPS / "unified",
            ]
        ):
            own = PurePosixPath(path.lstrip("/"))
            for relative in (own, *own.parents):
                yield root / relative
