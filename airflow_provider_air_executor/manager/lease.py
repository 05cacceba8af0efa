"""The lease that a manager holds beside its lock, see :mod:`~airflow_provider_air_executor.jobs.manager_lease`."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable

from airflow_provider_air_executor.exceptions import ManagerRunningError
from airflow_provider_air_executor.jobs import files, manager_lease
from airflow_provider_air_executor.jobs.manager_lease import SECONDS, Lease
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.clock import seconds_since_boot

log = logging.getLogger("air_executor.manager")

RENEWAL_SECONDS = 5.0  # between two changes of the file
_LOOK_SECONDS = 0.5  # between two looks at that of another manager
_LONG_DEAD = 600.0  # seconds without a change, after which one is dead whatever the clocks say
# Leases that are kept: a mount that is behind must not take the number of one that was removed for a free one.
_KEPT, _KEPT_SECONDS = 20, 3600.0


class ManagerLease:
    """Holds the lease of a base path while its lock is held.

    :param clock: seconds that only grow, also while the machine sleeps.
    :param sleep: waits for so many seconds.
    """

    def __init__(
        self,
        store: JobStore,
        clock: Callable[[], float] = seconds_since_boot,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._clock = clock
        self._sleep = sleep
        self._lease: Lease | None = None
        self.due = 0.0  # when it must be renewed

    def take(self) -> None:
        """Take the lease of the next term, as soon as it is certain that nobody else holds one.

        On a full disk the manager works without one until there is room.

        :raises ManagerRunningError: if a manager elsewhere does.
        :raises OSError: if it cannot be read, or written.
        """
        files.make_directory(manager_lease.directory_of(self._store), exist_ok=True)
        self._end_of_others()
        while True:
            try:
                self._create()
            except FileExistsError:  # another one was faster; perhaps this mount does not see its file yet
                self._sleep(_LOOK_SECONDS)
                self._end_of_others()
            except OSError as error:
                if error.errno not in files.FULL:
                    raise
                log.warning("the lease of %s cannot be written now: %s", self._store.base_path, error.strerror)
                return
            else:
                self._forget_old()
                return

    def _create(self) -> None:
        """Create the file of the next term.

        :raises FileExistsError: if another manager has done so.
        :raises OSError: if it cannot be written.
        """
        self.due = self._clock() + RENEWAL_SECONDS
        before = manager_lease.terms(self._store)
        term = (before[-1] if before else 0) + 1
        lease = Lease.new(term, self._store.base_path)
        path = manager_lease.path_of(self._store, term)
        try:
            files.write_new(path, lease.text)
        except FileExistsError:
            raise
        except OSError:
            files.remove(path)
            raise
        self._lease = lease

    def _end_of_others(self) -> None:
        """Wait until the last manager is certainly dead.

        :raises ManagerRunningError: if it is not.
        """
        other = manager_lease.latest(self._store)
        if other is None or not manager_lease.is_elsewhere(self._store, other) or other.age > _LONG_DEAD:
            return
        log.warning(
            "a manager of %s%s has not said that it ended, and its lock may not be seen here: waiting up to %g s for a "
            "sign of life",
            self._store.base_path,
            f" on {other.host} (process {other.pid})" if other.host else "",
            SECONDS,
        )
        began, seen = self._clock(), other
        while self._clock() - began < SECONDS and not seen.is_over:
            self._sleep(_LOOK_SECONDS)
            seen = manager_lease.latest(self._store) or other
            if not seen.is_over and seen._replace(age=0.0) != other._replace(age=0.0):
                raise ManagerRunningError(self._store.base_path, seen.pid or None, seen.host)

    def _forget_old(self) -> None:
        """Remove files of terms that are long over."""
        for term in manager_lease.terms(self._store)[:-_KEPT]:
            if manager_lease.read(self._store, term).age > _KEPT_SECONDS:
                files.remove(manager_lease.path_of(self._store, term))

    def successor(self) -> Lease | None:
        """The lease of another manager that has taken over; None if there is none.

        :raises OSError: if that cannot be known now.
        """
        last = manager_lease.latest(self._store)
        if last is None or (self._lease is not None and last.term <= self._lease.term):
            return None
        return last if self._lease is not None or manager_lease.is_elsewhere(self._store, last) else None

    def renew(self) -> None:
        """Change the file, or create it if there was no room before. What is not possible now is tried again."""
        try:
            if self._lease is None:
                self._create()
            else:
                self._change(is_over=False)
        except OSError as error:
            log.debug("the lease of %s cannot be renewed now: %s", self._store.base_path, error)

    def release(self) -> None:
        """Say that this manager has ended."""
        with contextlib.suppress(OSError):  # then others wait for a sign of life, in vain
            self._change(is_over=True)
        self._lease = None

    def _change(self, *, is_over: bool) -> None:
        if self._lease is None:
            return
        self.due = self._clock() + RENEWAL_SECONDS
        lease = self._lease = self._lease._replace(beat=self._lease.beat + 1, is_over=is_over)
        with files.opened(manager_lease.path_of(self._store, lease.term), os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, lease.text, 0)
