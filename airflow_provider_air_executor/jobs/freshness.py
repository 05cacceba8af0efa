"""Sees files as they are now, also where another machine changes them.

On a shared file system, what is known of a file that is not opened may be a minute old: NFS asks its server when one is
opened. FUSE keeps the names themselves for a second, and GlusterFS 10.3 opens the file that a name was, or fails with
ESTALE, until the directory is listed. On the file system of one machine nothing of this is done.
"""

from __future__ import annotations

import os
from pathlib import Path

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.system import mounts
from airflow_provider_air_executor.system.mounts import Mount


class Freshness:
    """How files below a directory are seen.

    Making one touches nothing. What its file system is, is found out with the first file, once the directory is there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mount: Mount | None = None

    def stamps(self, *paths: Path | str) -> tuple[files.Stamp | None, ...]:
        """The stamps of regular files of one directory as they are now; None for each that is not there.

        :raises OSError: if they cannot be seen now.
        """
        mount = self._found()
        if mount is None or not mount.is_shared:
            return tuple([files.stamp(path) for path in paths])
        if mount.shows_old_names:
            _list(os.path.dirname(paths[0]))
        return tuple([files.current_stamp(path) for path in paths])

    def stamp(self, path: Path | str) -> files.Stamp | None:
        """The same of one file, see :meth:`stamps`."""
        return self.stamps(path)[0]

    def renew(self, directory: Path) -> None:
        """Let the files of a directory be opened that have their names now.

        :raises OSError: if they cannot be seen now.
        """
        mount = self._found()
        if mount is not None and mount.shows_old_names:
            _list(directory)

    def _found(self) -> Mount | None:
        if self._mount is None:
            self._mount = mounts.mount_of(self._directory)
        return self._mount


def _list(directory: Path | str) -> None:
    try:
        os.listdir(directory)
    except OSError as error:
        if error.errno not in files.ABSENT:
            raise
