"""The fork servers and the generations of a manager, as processes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.support.processes import command_line, parent, pids


def servers(manager: subprocess.Popen[str]) -> dict[int, int]:
    """The processes that fork shims, and their parents; the first one is the fork server."""
    base = [pid for pid in pids() if parent(pid) == manager.pid and is_fork_server(pid)]
    outputs = {_output(pid) for pid in base}  # others: those of attempts, and nowhere for trials
    others = [pid for pid in pids() if parent(pid) in base and _leads(pid) and _output(pid) in outputs]
    return dict.fromkeys(base, manager.pid) | {pid: parent(pid) for pid in others}


def has_log(pid: int) -> bool:
    """Whether it has an attempt, or had one."""
    return _output(pid).endswith(".log")


def _output(pid: int) -> str:
    """Where its output goes; empty if it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/fd/1")
    except OSError:
        return ""


def opened(names: Iterable[str]) -> list[str]:
    """What a process has opened itself, in order, by its links in ``/proc/self/fd``.

    Not what libraries have: libffi 3.5, which ctypes loads, keeps its own file open.
    """
    return sorted(name.partition(":")[0] for name in names if ".so." not in Path(name).name)


def is_fork_server(pid: int) -> bool:
    """Whether a process is one, or was forked from one."""
    return any("local.forkserver" in word for word in command_line(pid))


def _leads(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False
