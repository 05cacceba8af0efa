"""How much memory the processes have that shims have started (Linux only).

They are found as :class:`~.processes.Kill` finds them: by the session of the shim, by the variable that they inherit
from it, and by their parent. What a process belongs to is remembered, so that a look reads little of those that were
there before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.system.environment import RUN_VARIABLE

_KIB = 1024
_INEXACT = 0.9  # the system may count the memory of a running process a little late
_LOOKS_REMEMBERED = 60  # after which all are inspected anew, since numbers are reused
_KERNEL_THREADS = 2  # the parent of these, which have no environment
# What cannot be taken from a process without a place to put it. Pages of files are read again when they are needed.
_OF_STATUS = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
_OF_ROLLUP = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")


class Shim(NamedTuple):
    """What the processes of an attempt have in common."""

    pid: int  # of the leader of their session
    token: str  # in their environment


class _Status(NamedTuple):
    """The fields of ``/proc/<pid>/stat``, see proc(5)."""

    state: str  # Z: it has ended, and has not been reaped
    parent: int
    session: int
    ticks: int  # of processor time, with that of the children that it has waited for
    started: int  # in clock ticks since the machine was started


class _Known(NamedTuple):
    """A process that was seen."""

    started: int
    owner: Shim | None


def _status(pid: int) -> _Status | None:
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        used = sum(map(int, fields[11:15]))
        return _Status(fields[0].decode(), int(fields[1]), int(fields[3]), used, int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


class Families:
    """Finds the processes of some shims, again and again."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._shims: set[Shim] = set()
        self._looks = 0

    def find(self, shims: Iterable[Shim]) -> dict[Shim, list[int]]:
        """The processes of each shim that live, with the shim itself.

        :raises OSError: if they cannot be listed now.
        """
        listed = {int(name) for name in os.listdir("/proc") if name.isdigit()}
        self._looks += 1
        if self._looks % _LOOKS_REMEMBERED == 0:
            self._known.clear()
        self._forget(set(shims))
        for pid in self._known.keys() - listed:
            del self._known[pid]
        self._inspect(listed - self._known.keys())
        found: dict[Shim, list[int]] = {shim: [] for shim in self._shims}
        for pid, known in self._known.items():
            if known.owner is not None:
                found[known.owner].append(pid)
        return found

    def _forget(self, shims: set[Shim]) -> None:
        """Forget what may belong to other shims than before.

        A process of a new shim was started after it. Only the shim may have waited for its attempt, or had another one.
        """
        new = [_status(shim.pid) for shim in shims - self._shims]
        since = min((status.started for status in new if status is not None), default=None)
        gone = self._shims - shims
        for pid, known in list(self._known.items()):
            may_be_new = since is not None and known.owner is None and known.started >= since
            if may_be_new or known.owner in gone:
                del self._known[pid]
        self._shims = shims

    def _inspect(self, pids: set[int]) -> None:
        """Find out to which shims processes belong."""
        statuses = {pid: status for pid in pids if (status := _status(pid)) is not None and status.state != "Z"}
        sessions = {shim.pid: shim for shim in self._shims}
        variables = {os.fsencode(f"{RUN_VARIABLE}={shim.token.partition('.')[0]}"): shim for shim in self._shims}
        variables |= {os.fsencode(f"{RUN_VARIABLE}={shim.token}"): shim for shim in self._shims}
        # Parents come before their children.
        for pid, status in sorted(statuses.items(), key=lambda item: (item[1].started, item[0])):
            parent = self._known.get(status.parent)
            owner = sessions.get(status.session) or (parent and parent.owner)
            if owner is None and status.parent != _KERNEL_THREADS:
                words = _environment(pid)
                if words is None:
                    continue  # it is being started, and is inspected again at the next look
                owner = next((variables[word] for word in words if word in variables), None)
            self._known[pid] = _Known(status.started, owner)


def _environment(pid: int) -> list[bytes] | None:
    """The environment of a process, as far as it may be read; None if there is none now."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")[:-1] or None
    except PermissionError:  # that of another user
        return []
    except OSError:
        return None


def memory_of(pids: Iterable[int], limit: int) -> int:
    """How many bytes of memory processes have together, without pages of files, and with what was swapped.

    What several of them have in common counts once, and a part of what they share with others. To find that out takes a
    while for a large one, so it is done only if it matters.

    :param limit: if it is far less than that, what they share is counted for each.
    """
    resident = {pid: _sum(f"/proc/{pid}/status", _OF_STATUS) or 0 for pid in pids}
    if sum(resident.values()) < limit * _INEXACT:
        return sum(resident.values())
    exact = {pid: _sum(f"/proc/{pid}/smaps_rollup", _OF_ROLLUP) for pid in resident}
    return sum(resident[pid] if found is None else found for pid, found in exact.items())


def _sum(path: str, names: tuple[bytes, ...]) -> int | None:
    """The sum of some lines of a file of the system, in bytes; None if it may not be read, or has none of them."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except PermissionError:  # the process of another user
        return None
    except OSError:  # it has ended
        return 0
    found = [int(line.split()[1]) for line in lines if line.startswith(names)]
    return sum(found) * _KIB if found else None


def cpu_seconds_of(pids: Iterable[int]) -> float:
    """How much processor time processes have used, with the children that they have waited for."""
    return sum(status.ticks for pid in pids if (status := _status(pid)) is not None) / os.sysconf("SC_CLK_TCK")
