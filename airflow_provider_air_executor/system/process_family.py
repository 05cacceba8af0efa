"""What a process that runs one attempt after the other has beside them: helpers, and what was used elsewhere.

The process is a shim that stays (:mod:`~airflow_provider_air_executor.engines.local.forked`). What its module starts
for itself, and not for an attempt, it names here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Used(NamedTuple):
    """What processes have used."""

    cpu_seconds: float
    max_rss: int  # of the largest, in the unit of getrusage(2)


hint: dict[str, Any] = {}  # what the manager knows of what the present attempt executes
may_stay = False  # whether this process may run another attempt after the present one
renewals: list[Callable[[], None]] = []  # give a process what a fresh one has for itself, and forked ones would share
helpers: set[int] = set()  # children that belong to no attempt
private: set[int] = set()  # descriptors that no process of a task may have
_used: list[Used] = []


def begin_anew() -> None:
    """Renew in this process what forked processes must not share."""
    for renewal in renewals:
        renewal()


def add_usage(used: Used) -> None:
    """Charge the present attempt with what a process has used for which another one has waited."""
    _used.append(used)


def take_usage() -> Used:
    """What others have used for the present attempt; for the next one that begins anew."""
    used = Used(sum(one.cpu_seconds for one in _used), max((one.max_rss for one in _used), default=0))
    _used.clear()
    return used


def can_list_children() -> bool:
    """Whether the system lists the children of a process (Linux with CONFIG_PROC_CHILDREN)."""
    return _children().exists()


def has_other_children() -> bool:
    """Whether this process has children that are no helpers; also True where that cannot be found out."""
    try:
        listed = _children().read_text()
    except OSError:
        return True
    return not helpers.issuperset(map(int, listed.split()))


def _children() -> Path:
    return Path(f"/proc/self/task/{os.getpid()}/children")
