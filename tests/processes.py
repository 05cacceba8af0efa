"""Processes of this machine, as the tests start, find and end them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterable
from pathlib import Path


def pids() -> list[int]:
    """All but this one."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def parent(pid: int) -> int:
    """The parent of a process; 0 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has waited for it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def kill(found: Iterable[int]) -> None:
    """``kill -9``."""
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


_GIVEN: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that this process has not given to anybody else."""
    while True:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            port: int = bound.getsockname()[1]
        if port not in _GIVEN:
            _GIVEN.add(port)
            return port
