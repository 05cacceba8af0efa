"""The environment and the signals of processes as they were before Python began, and the variables of a task."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Mapping
from pathlib import Path

RUN_VARIABLE = "AIR_EXECUTOR_RUN"  # the token of the shim that has started a process
GPUS_VARIABLE = "AIR_EXECUTOR_GPUS"  # the ids of the graphics processors of a task, separated by commas
# A variable that sh can set.
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_NEEDED = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    "AIR_EXECUTOR_BASE_PATH",
}
# They describe a task to itself; a manager that a task has started must not pass them on.
TASK_VARIABLES = (
    "AIR_EXECUTOR_JOB",
    "AIR_EXECUTOR_TASK",
    "AIR_EXECUTOR_ATTEMPT",
    "AIR_EXECUTOR_JOB_DIR",
    "AIR_EXECUTOR_ATTACHED",
    "AIR_EXECUTOR_OUTPUT",
    GPUS_VARIABLE,
    RUN_VARIABLE,
)
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def default_signals() -> list[int]:
    """The signals that a command is not to ignore: a task ignores those that its manager was started to ignore.

    The C library would ask about each other signal, whenever it starts a process, what this process does about it.
    """
    return [
        number
        for number in signal.valid_signals()
        if number in _IGNORED_BY_PYTHON or signal.getsignal(number) != signal.SIG_IGN
    ]


def as_given(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process without what Python has put in at its start.

    Where the locale is C, it sets LC_CTYPE for itself and its children (PEP 538). Linux shows what was there before.
    """
    kept = dict(environment)
    with contextlib.suppress(OSError):
        if not any(item.startswith(b"LC_CTYPE=") for item in Path("/proc/self/environ").read_bytes().split(b"\0")):
            kept.pop("LC_CTYPE", None)
    return kept


def of_command(environment: Mapping[str, str], own: Mapping[str, str] | None, *, append: bool) -> dict[str, str]:
    """The environment of a command, without the variables that describe its task.

    :param environment: the manager's.
    :param own: the variables of the task.
    :param append: whether they are added to the manager's. If not, of that only those remain that programs need to run:
        where they are, whose they are, and the locale.
    """
    if not append:
        environment = {key: value for key, value in environment.items() if key in _NEEDED or key.startswith("LC_")}
    return {**environment, **(own or {})}


def inherited(environment: Mapping[str, str], base_path: str) -> dict[str, str]:
    """The variables of the manager's environment that tasks inherit."""
    kept = {key: value for key, value in environment.items() if key not in TASK_VARIABLES}
    return {**kept, "AIR_EXECUTOR_BASE_PATH": base_path}
