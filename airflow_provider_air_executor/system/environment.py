"""The environment of processes: as it was before Python began, and the variables that describe a task."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

RUN_VARIABLE = "AIR_EXECUTOR_RUN"  # the token of the shim that has started a process
# A variable that sh can set.
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# They describe a task to itself; a manager that a task has started must not pass them on.
TASK_VARIABLES = (
    "AIR_EXECUTOR_JOB",
    "AIR_EXECUTOR_TASK",
    "AIR_EXECUTOR_ATTEMPT",
    "AIR_EXECUTOR_JOB_DIR",
    "AIR_EXECUTOR_OUTPUT",
    RUN_VARIABLE,
)


def as_given(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process without what Python has put in at its start.

    Where the locale is C, it sets LC_CTYPE for itself and its children (PEP 538). Linux shows what was there before.
    """
    kept = dict(environment)
    with contextlib.suppress(OSError):
        if not any(item.startswith(b"LC_CTYPE=") for item in Path("/proc/self/environ").read_bytes().split(b"\0")):
            kept.pop("LC_CTYPE", None)
    return kept


def inherited(environment: Mapping[str, str], base_path: str) -> dict[str, str]:
    """The variables of the manager's environment that tasks inherit."""
    kept = {key: value for key, value in environment.items() if key not in TASK_VARIABLES}
    return {**kept, "AIR_EXECUTOR_BASE_PATH": base_path}
