"""Bells: files that are changed to say that something has happened, where the system does not notify.

On a shared file system no machine is notified of what another one writes there, and what it knows of a directory may be
a minute old. The content of a small file that is opened again is not; on FUSE it is read past what is kept of it. So
whoever asks something of the manager rings its bell, and the manager rings that of the jobs when one of them begins or
ends. Who misses a ring finds the change in the next pass over everything.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.system import mounts

MANAGER, JOBS = "manager.bell", "jobs.bell"  # the names of the files, in the base path
SECONDS = 0.2  # between two looks at one
_BYTES = 16


def ring(base_path: Path, bell: str) -> None:
    """Change the file, if that is possible."""
    with contextlib.suppress(OSError), files.opened(base_path / bell, os.O_WRONLY) as descriptor:
        os.pwrite(descriptor, os.urandom(_BYTES // 2).hex().encode(), 0)  # in place: its inode stays known


class Ringer:
    """Rings a bell where others may have no other way to know.

    :param bell: :data:`MANAGER` or :data:`JOBS`.
    """

    def __init__(self, base_path: Path, bell: str) -> None:
        self._base_path, self._bell = base_path, bell
        self._is_needed: bool | None = None  # None: that is not known yet

    def ring(self) -> None:
        """Ring it, if the file system may be shared."""
        if self._is_needed is None:
            self._is_needed = mounts.may_be_shared(self._base_path)
        if self._is_needed:
            ring(self._base_path, self._bell)


def listener(base_path: Path, bell: str) -> Listener | None:
    """Who listens to a bell, if the file system may be shared; otherwise there is no need.

    :param bell: :data:`MANAGER` or :data:`JOBS`.
    """
    return Listener(base_path, bell) if mounts.may_be_shared(base_path) else None


class Listener:
    """Hears whether a bell was rung.

    :param bell: :data:`MANAGER` or :data:`JOBS`.
    """

    def __init__(self, base_path: Path, bell: str) -> None:
        self._path = base_path / bell
        mount = mounts.mount_of(base_path)
        # GlusterFS 10.3 goes on showing what its own machine has written there, if another one changes it afterwards.
        is_direct = mount is not None and mount.shows_old_names
        self._read = files.read_start_directly if is_direct else files.read_start
        self._heard = self._content()

    def has_rung(self) -> bool:
        """Whether it was rung since the last call, or since this was made."""
        before, self._heard = self._heard, self._content()
        return self._heard != before and bool(self._heard)

    def _content(self) -> bytes:
        """What is in the file; nothing if it cannot be read."""
        with contextlib.suppress(OSError):
            return self._read(self._path, _BYTES)
        return b""
