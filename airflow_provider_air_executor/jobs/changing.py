"""Files of the base path that several processes change: one of them at a time, by a lock beside the file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from airflow_provider_air_executor.exceptions import ManagerError
from airflow_provider_air_executor.jobs import files

_PATIENCE_SECONDS = 5.0  # longer than anyone holds the lock


@contextlib.contextmanager
def alone(lock: Path, name: str) -> Iterator[None]:
    """Be the only process that changes a file.

    :param lock: the file that is locked meanwhile.
    :param name: of the file that is changed, for the error.
    :raises ManagerError: if another process changes it, and does not come to an end.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    with files.opened(lock, os.O_RDWR) as descriptor:
        while not files.lock(descriptor, lock):
            if time.monotonic() > deadline:
                raise ManagerError(f"{lock} is locked by another process that changes {name}")
            time.sleep(0.02)  # nothing tells when a lock is free
        yield
