"""CPU time and memory of the processes of an installation, and a way to stop them while another one is measured.

Everything that descends from this process counts. Orphans become children of this process (``own_orphans``), so that
none is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import command_line

MANAGER, FORK_SERVER = "manager", "fork server"
_MANAGER_MODULE = "airflow_provider_air_executor.manager.cli"
_FORK_SERVER_MODULE = "airflow_provider_air_executor.engines.local.forkserver"
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36


class Process(NamedTuple):
    """What ``/proc/<pid>/stat`` says, see proc(5)."""

    state: str
    parent: int
    session: int
    used: int  # clock ticks, user and system
    reaped: int  # the same of all that it has waited for


def own_orphans() -> None:
    """Be the parent of the orphans among our descendants."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "orphans cannot be had")


def descendants() -> dict[int, Process]:
    """This process, and all that come from it."""
    everything: dict[int, Process] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            used, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
            everything[int(path.name)] = Process(fields[0], int(fields[1]), int(fields[3]), used, reaped)
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return {pid: everything[pid] for pid in found}


def reap(spared: Collection[int]) -> None:
    """Wait for orphans that have ended.

    :param spared: processes that somebody else in this process waits for.
    """
    for pid, process in descendants().items():
        if process.state == "Z" and process.parent == os.getpid() and pid not in spared:
            os.waitpid(pid, 0)


def end_the_rest(seconds: float) -> None:
    """Make sure that nothing is left: an executor of ours lets tasks go on when it ends.

    :param seconds: after which what is left is killed.
    """
    deadline = time.monotonic() + seconds
    while len(found := descendants()) > 1:
        reap(())
        if time.monotonic() > deadline:
            for pid in found.keys() - {os.getpid()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


# -- standing still ----------------------------------------------------------------------------------------


def stop_all() -> set[int]:
    """Stop all of our descendants that are not stopped, so that they use nothing until :func:`resume`."""
    stopped: set[int] = set()
    while True:
        found = descendants()
        running = {pid for pid, process in found.items() if process.state not in "TtZ"} - {os.getpid()} - stopped
        if not running:
            return stopped
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.add(pid)


def resume(stopped: Iterable[int]) -> None:
    """Let processes go on."""
    for pid in stopped:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


# -- CPU time ----------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """What our descendants have used so far, the dead included: somebody among them, or we, have waited for each."""
    found = descendants()
    return (sum(process.used + process.reaped for process in found.values()) - found[os.getpid()].used) / _TICKS


def shares(components: dict[str, int]) -> dict[str, float]:
    """Seconds of CPU that the parts of an installation have used so far. Tasks, and what runs them, are the rest.

    :param components: of Airflow, with their process ids.
    """
    processes = descendants()
    found = {}
    for part, first in components.items():
        pids = of_components({part: first}, processes)
        # What the scheduler has waited for are the tasks, or what runs them.
        found[part] = (
            sum(processes[pid].used + processes[pid].reaped * (pid != components["scheduler"]) for pid in pids) / _TICKS
        )
    ours = running_parts(processes)
    for part in (MANAGER, FORK_SERVER):
        found[part] = sum(processes[pid].used for pid, its in ours.items() if its == part) / _TICKS
    return found


def of_components(components: dict[str, int], processes: dict[int, Process]) -> set[int]:
    """The components and what they have started; what the scheduler has are the tasks, or what runs them."""
    found = set(components.values())
    while True:
        more = {
            pid
            for pid, process in processes.items()
            if process.parent in found and process.parent != components.get("scheduler") and pid not in found
        }
        if not more:
            return found
        found |= more


def running_parts(processes: dict[int, Process]) -> dict[int, str]:
    """The processes that are the executor's manager or its fork servers, of an installation that is not stopped."""
    alive = {pid: process for pid, process in processes.items() if process.state not in "TtZ"}
    words = {pid: command_line(pid) for pid in alive}
    found = {pid: MANAGER for pid in alive if _MANAGER_MODULE in words[pid] and "manager" in words[pid]}
    # Each attempt has a session of its own. A fork server has one, too, and shares it with its later generations.
    servers = {pid for pid, process in alive.items() if found.get(process.parent) and _FORK_SERVER_MODULE in words[pid]}
    return found | {pid: FORK_SERVER for pid, process in alive.items() if process.session in servers}


# -- memory ------------------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """In MB: with a process's share of what it has in common with others, and without."""

    pss: float
    uss: float


def memory(pid: int) -> Memory:
    """Nothing if the process has ended meanwhile."""
    with contextlib.suppress(OSError, KeyError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        mb = {words[0]: int(words[1]) / 1024 for words in map(str.split, lines)}
        return Memory(mb["Pss:"], mb["Private_Clean:"] + mb["Private_Dirty:"])
    return Memory(0, 0)
