"""The lock, and the lease, that make a manager the only one of its base path."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Self

from airflow_provider_air_executor.exceptions import ManagerRunningError
from airflow_provider_air_executor.jobs import files, manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.lease import ManagerLease

# Longer than anyone holds the lock just to see whether it is taken (manager_status.is_running).
_PATIENCE_SECONDS = 0.5


class ManagerLock:
    """An advisory lock on ``manager.lock``; the system releases it when the process ends, however that happens.

    Where others may not see it, they see the lease, see :mod:`.lease`. Shims do not inherit the descriptor: they
    outlive their manager.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._descriptor: int | None = None
        self.lease = ManagerLease(store)

    def acquire(self) -> bool:
        """Take the lock, and the lease. That can take half a minute if a manager elsewhere was killed.

        :return: False if another manager of this machine holds the lock.
        :raises ManagerRunningError: if one elsewhere holds the lease.
        :raises NoLocksError: if its file system has no locks.
        """
        self._store.create_directories()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._store.lock_path, flags, 0o600)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        with contextlib.ExitStack() as unless_ours:
            unless_ours.callback(os.close, descriptor)
            while not files.lock(descriptor, self._store.lock_path):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.02)
            self.lease.take()
            unless_ours.pop_all()
        self._descriptor = descriptor
        # Until its number is there, others read that of a manager that was killed, or none.
        with contextlib.suppress(OSError):  # on a full disk the manager works without publishing its number
            temporary = self._store.pid_path.with_name(f".manager.pid.{os.getpid()}")
            temporary.touch(mode=0o600)
            temporary.write_text(str(os.getpid()))
            os.replace(temporary, self._store.pid_path)
        return True

    def is_still_ours(self) -> bool:
        """Whether the file that is locked is the one that others will find.

        :raises OSError: if it cannot be seen now.
        """
        if self._descriptor is None:
            return False
        try:
            return os.stat(self._store.lock_path).st_ino == os.fstat(self._descriptor).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lease and the lock."""
        if self._descriptor is not None:
            self.lease.release()
            with contextlib.suppress(OSError):  # it is only believed while the lock is held
                self._store.pid_path.unlink()
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        """Take the lock.

        :raises ManagerRunningError: if another manager holds it.
        """
        if not self.acquire():
            raise ManagerRunningError(self._store.base_path, manager_status.pid(self._store))
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
