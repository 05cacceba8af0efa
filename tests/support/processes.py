"""Processes of this machine, as the tests find and end them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.support.waiting import wait_until


def pids() -> list[int]:
    """All but this one."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _status(pid: int) -> list[str]:
    """What the kernel says of a process after its name: state, parent, group, session, ...; empty if it is not there.

    See proc_pid_stat(5).
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has waited for it yet."""
    return _status(pid)[:1] in ([], ["Z"])


def parent(pid: int) -> int:
    """The parent of a process; 0 if there is none."""
    return int((_status(pid)[1:2] or ["0"])[0])


def session(pid: int) -> int:
    """The session of a process; 0 if there is none."""
    return int((_status(pid)[3:4] or ["0"])[0])


def has_terminal(pid: int) -> bool:
    """Whether somebody may be typing there."""
    return (_status(pid)[4:5] or ["0"])[0] != "0"


def command_line(pid: int) -> list[str]:
    """The words that a process was started with; none if it has ended or is the kernel's."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except OSError:
        return []


def program(pid: int) -> str:
    """The first 15 characters of the name of the program that a process runs; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def environment(pid: int) -> list[str]:
    """The environment that a process was started with, each as ``NAME=VALUE``; empty if it may not be read."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes()).split("\0")
    except OSError:
        return []


def with_environment(*variables: str) -> list[int]:
    """The processes that were started with one of these ``NAME=VALUE``, wherever they have moved to."""
    return [pid for pid in pids() if not set(variables).isdisjoint(environment(pid))]


def descendants(roots: Iterable[int]) -> set[int]:
    """The processes that others have started, and those that these have started."""
    parents = {pid: parent(pid) for pid in pids()}
    found, added = set[int](), set(roots)
    while added:
        added = {pid for pid, of in parents.items() if of in added} - found
        found |= added
    return found


def kill(found: Iterable[int]) -> None:
    """``kill -9``."""
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_all_with_environment(*variables: str) -> None:
    """Kill the processes that were started with one of these ``NAME=VALUE``, and wait until they are gone.

    :raises TimeoutError: if some do not end.
    """

    def none_is_left() -> bool:
        left = [pid for pid in with_environment(*variables) if not is_gone(pid)]
        kill(left)
        return not left

    wait_until(none_is_left, what=f"all processes of {', '.join(variables)} have ended")


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, with all that it has begun. A second one is ignored."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
