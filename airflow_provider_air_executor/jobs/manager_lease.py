"""The lease of a manager: how those see it who do not share its lock.

Some file systems keep locks to themselves: of two mounts, or two hosts, each locks the same file (NFS 3 with
``nolock``, sshfs, bindfs, mergerfs, gocryptfs). So a manager also has a file ``manager.leases/<term>``, which it
changes every few seconds, and says there when it ends. The terms are counted. Who wants to be the next manager creates
the file of the next term exclusively, which one of them can do, whatever the mounts know of each other. A manager that
finds a later term than its own ends.

Whether one that does not say that it has ended is alive is known by the lock if it is certain that both would meet
there: the same boot of the same kernel, and the same mounted file system. Otherwise by time: it is dead if it has not
changed its file for :data:`SECONDS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.system import clock, mounts, processes

if TYPE_CHECKING:  # the command line does not wait for what the store imports
    from airflow_provider_air_executor.jobs.store import JobStore

SECONDS = 30.0  # without a change, after which a manager counts as dead; caches are at most 20 s behind (sshfs)
_BYTES = 1000  # of a lease
_LAG_SECONDS = 60.0  # for which it is remembered how far the clock of a file system is behind

_lags: dict[Path, tuple[float, float]] = {}  # by base path: when it was found out, and how many seconds


class Place(NamedTuple):
    """Where a process has a lock: those of the same place exclude each other by it."""

    boot: str
    device: int  # the number of the mounted file system

    @classmethod
    def of(cls, base_path: Path) -> Place:
        """That of this process.

        :raises OSError: if the directory cannot be seen.
        """
        return cls(clock.boot(), os.stat(base_path).st_dev)


class Lease(NamedTuple):
    """The content of a lease, and which one it is."""

    term: int
    host: str = ""
    pid: int = 0
    place: Place = Place("", 0)
    space: str = ""  # that of the process ids of its tasks
    is_shared: bool = False  # whether the file system may be used by other machines
    beat: int = 0  # how often it was changed
    is_over: bool = False  # whether the manager has ended, as it says
    age: float = 0.0  # seconds since its last change, by the clock of the one that looks

    @classmethod
    def new(cls, term: int, base_path: Path) -> Lease:
        """The lease of a manager in this process.

        :raises OSError: if the directory cannot be seen.
        """
        host, place = os.uname().nodename, Place.of(base_path)
        return cls(term, host, os.getpid(), place, processes.space(), mounts.may_be_shared(base_path))

    @property
    def text(self) -> bytes:
        """The content of the file. It always has the same length, so that it is replaced as a whole."""
        content = {
            "host": self.host,
            "pid": self.pid,
            "boot": self.place.boot,
            "device": self.place.device,
            "space": self.space,
            "shared": self.is_shared,
            "over": int(self.is_over),
            "beat": f"{self.beat:012d}",
        }
        return (json.dumps(content) + "\n").encode()


def directory_of(store: JobStore) -> Path:
    """The directory of the leases."""
    return store.base_path / "manager.leases"


def path_of(store: JobStore, term: int) -> Path:
    """The file of a term."""
    return directory_of(store) / str(term)


def terms(store: JobStore) -> list[int]:
    """The terms that have a file, in their order.

    :raises OSError: if they cannot be listed.
    """
    try:
        return sorted(int(name) for name in os.listdir(directory_of(store)) if name.isascii() and name.isdecimal())
    except FileNotFoundError:
        return []


def latest(store: JobStore) -> Lease | None:
    """The lease of the last term; None if there was no manager yet.

    :raises OSError: if it cannot be read.
    """
    known = terms(store)
    return read(store, known[-1]) if known else None


def read(store: JobStore, term: int) -> Lease:
    """The lease of a term. If it is just being written, only its term and its age are known.

    It is opened, since a network file system may cache for a minute the attributes of a file that is not opened.

    :raises OSError: if it cannot be read.
    """
    with files.open_file(path_of(store, term)) as file:
        age = time.time() - os.fstat(file.fileno()).st_mtime
        data = file.read(_BYTES)
    try:
        content = json.loads(data)
        return Lease(
            term=term,
            host=str(content["host"]),
            pid=int(content["pid"]),
            place=Place(str(content["boot"]), int(content["device"])),
            space=str(content["space"]),
            is_shared=bool(content["shared"]),
            beat=int(content["beat"]),
            is_over=bool(content["over"]),
            age=age,
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return Lease(term, age=age)


def is_elsewhere(store: JobStore, lease: Lease) -> bool:
    """Whether a lease is that of a manager whose lock is perhaps not seen here, and that has not said that it ended.

    Of a file system that no other machine uses, on either side, the lock is seen, although it may have been mounted
    anew meanwhile: the machine was started again, or has got the volume of another one.
    """
    if lease.is_over:
        return False
    here = Place.of(store.base_path)
    if lease.place == here and here.boot != clock.UNKNOWN:
        return False
    return lease.is_shared or not lease.host or mounts.may_be_shared(store.base_path)


def running_elsewhere(store: JobStore) -> Lease | None:
    """The lease of a manager that runs, to be asked if the lock is free; None if there is none.

    The clock of the file system may not be ours, so that of a file that is made now is compared.
    """
    try:
        lease = latest(store)
        if lease is None or not is_elsewhere(store, lease):
            return None
    except OSError:
        return None
    return lease if -SECONDS <= lease.age - _lag(store) <= SECONDS else None


def _lag(store: JobStore) -> float:
    """Seconds by which the clock of the file system is behind ours; 0 if that cannot be found out."""
    known = _lags.get(store.base_path)
    if known is None or time.monotonic() - known[0] > _LAG_SECONDS:
        known = _lags[store.base_path] = time.monotonic(), _find_lag(store)
    return known[1]


def _find_lag(store: JobStore) -> float:
    path = store.base_path / files.unique_name(".clock-")
    with contextlib.suppress(OSError):
        try:
            with files.opened(path, os.O_WRONLY | os.O_EXCL) as descriptor:
                os.write(descriptor, b"\n")
                return time.time() - os.fstat(descriptor).st_mtime
        finally:
            files.remove(path)
    return 0.0
