"""Which process is which, and how to end what a runner has started.

A bare process id says nothing: the number may have been given to another process meanwhile, or stem from before a
reboot. A runner is known by its token, of which there are two kinds. That of a shell stands in its command line and is
handed down in the environment. That of a forked runner is an identity, ``<pid>.<start time>.<boot>``: it has the
command line and the environment of the process that it was forked from.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

RUN_VARIABLE = "AIR_EXECUTOR_RUN"


class _Status(NamedTuple):
    """What ``/proc/<pid>/stat`` says of a process, see proc(5)."""

    state: str  # Z: it has ended, and nobody has asked how
    session: int
    started: int  # in clock ticks since the machine was started


def _status(pid: int | str) -> _Status | None:
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return _Status(fields[0].decode(), int(fields[3]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


@cache
def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return "unknown"


def identity(pid: int) -> str:
    """What tells a process of this machine from every other one, past and future (Linux only).

    :raises ProcessLookupError: if there is no such process.
    """
    status = _status(pid)
    if status is None:
        raise ProcessLookupError(f"there is no process {pid}")
    return f"{pid}.{status.started}.{_boot()}"


def is_runner(pid: int, token: str) -> bool:
    """Whether this process is the runner with this token. What cannot be told counts as yes."""
    if "." in token:
        status = _status(pid)
        return status is not None and status.state != "Z" and f"{pid}.{status.started}.{_boot()}" == token
    wanted = os.fsencode(token)
    if sys.platform.startswith("linux"):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError:
            return True
        return wanted in words
    listed = subprocess.run(["/bin/ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False)
    return wanted in listed.stdout.split()


def is_of_this_boot(token: str) -> bool:
    """Whether a runner is known to have been started since this machine was."""
    return token.endswith(f".{_boot()}")


def kill_started_by(token: str, pid: int, *, has_just_ended: bool = False) -> None:
    """Kill every process that the runner with this token has started (Linux only).

    They are known by the variable that the runner's environment hands down, whatever session they have moved to, as
    Jenkins does with ``BUILD_ID``. A process may hide its environment, though, as Airflow's do: those are known by
    their session, which has the number of its leader, the runner.

    :param pid: the process id of the runner.
    :param has_just_ended: whether, if it is not alive, it was a moment ago. After a longer time the number may be that
        of another session.
    """
    if not sys.platform.startswith("linux"):
        return
    leader = _status(pid)
    has_session = is_runner(pid, token) or (has_just_ended and (leader is None or leader.state == "Z"))
    wanted = os.fsencode(f"{RUN_VARIABLE}={token}")
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if (has_session and _is_in_session(name, pid)) or wanted in _environment(name):
                os.kill(int(name), signal.SIGKILL)


def _is_in_session(pid: str, session: int) -> bool:
    status = _status(pid)
    return status is not None and status.session == session


def _environment(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def kill_what_else_was_started_by(token: str) -> None:
    """Kill what the runner with this token has started, but for this process and the leader of its session.

    For a process of the runner's own session (Linux only).
    """
    if not sys.platform.startswith("linux"):
        return
    session = os.getsid(0)
    wanted = os.fsencode(f"{RUN_VARIABLE}={token}")
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (os.getpid(), session):
            with contextlib.suppress(OSError):
                if _is_in_session(name, session) or wanted in _environment(name):
                    os.kill(int(name), signal.SIGKILL)
