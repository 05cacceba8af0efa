"""The resources of this machine, and whether a task fits."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from airflow_provider_air_executor.engines.protocol import SpawnError
from airflow_provider_air_executor.jobs.models import Resources

# Where a container sees its limit; without one there is a word, or a number beyond all memory.
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_resources(needed: Resources) -> None:
    """Refuse what this machine could never give.

    :raises SpawnError: naming it.
    """
    for what, wanted, there in (
        ("cpus", needed.cpus, _processors()),
        ("bytes of memory", needed.memory, _memory()),
        ("gpus", needed.gpus, 0),
    ):
        if wanted is not None and wanted > there:
            raise SpawnError(f"it needs {wanted:.12g} {what}; this machine has {there:.12g} for local tasks")


def _processors() -> int:
    """How many processors we may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    """How many bytes of memory we may use: those of the machine, or what a container leaves us of them."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found = min(found, int(Path(limit).read_bytes()))
    return found
