"""Locks that clients hold for a while: :meth:`~airflow_provider_air_executor.jobs.interface.Jobs.only_one`.

A lease ends when it is given back, or by itself if its holder is not heard of. As long as it holds, the server holds
the lock of its file, so that processes of this machine respect it, too.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import InvalidJobError, NoLocksError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server.problems import ProblemError

SECONDS = 10.0  # that a lease holds
MOST = 100  # leases at a time
# Files that say who runs the jobs, or serves them: whoever held them would keep everybody else from that.
_NOT_FOR_CLIENTS = frozenset({"manager", "server", "serverstart", "tokens"})


class _Lease(NamedTuple):
    holder: str
    until: float
    descriptor: int
    timer: threading.Timer


class Leases:
    """The leases of all clients.

    :param store: the job filesystem with the files that are locked: ``<what>.lock``.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._guard = threading.Lock()
        self._held: dict[str, _Lease] = {}

    def take(self, what: str, holder: str) -> None:
        """Take a lock, or hold it for longer.

        :raises ProblemError: if somebody else holds it.
        :raises InvalidJobError: if it is not one that clients may hold.
        """
        if what.lower() in _NOT_FOR_CLIENTS:
            raise InvalidJobError(f"lock: {what!r} is a lock of the manager or the server")
        with self._guard:
            held = self._held.get(what)
            if held is not None and held.holder != holder and held.until > time.monotonic():
                raise _locked(what)
            if held is None and len(self._held) >= MOST:
                raise ProblemError(429, "too-many", "there are too many locks", headers={"Retry-After": "5"})
            descriptor = self._lock(what) if held is None else held.descriptor
            if held is not None:
                held.timer.cancel()
            timer = threading.Timer(SECONDS, self._expire, (what, holder))
            timer.daemon = True
            self._held[what] = _Lease(holder, time.monotonic() + SECONDS, descriptor, timer)
            timer.start()

    def give_back(self, what: str, holder: str) -> None:
        """Give a lock back; nothing happens if it is not held."""
        with self._guard:
            held = self._held.get(what)
            if held is not None and held.holder == holder:
                held.timer.cancel()
                self._drop(what)

    def _expire(self, what: str, holder: str) -> None:
        with self._guard:
            held = self._held.get(what)
            if held is not None and held.holder == holder and held.until <= time.monotonic():
                self._drop(what)

    def _drop(self, what: str) -> None:
        os.close(self._held.pop(what).descriptor)

    def _lock(self, what: str) -> int:
        """Lock the file.

        :return: its descriptor.
        """
        self._store.create_directories()
        path = self._store.base_path / f"{what}.lock"
        with contextlib.ExitStack() as unless_locked:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
            unless_locked.callback(os.close, descriptor)
            with contextlib.suppress(NoLocksError):  # then only clients keep each other out
                if not files.lock(descriptor, path):
                    raise _locked(what)
            unless_locked.pop_all()
        return descriptor


def _locked(what: str) -> ProblemError:
    return ProblemError(423, "locked", f"another one holds the lock {what!r}", headers={"Retry-After": "1"})
