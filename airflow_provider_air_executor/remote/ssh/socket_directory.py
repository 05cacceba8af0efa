"""Where the forwarded socket of a process is: in a directory that is open to its user alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

_PREFIX = "air-executor-ssh-"
_LONGEST = 100  # bytes of the path of a Unix socket; some systems allow 103
_YOUNG_SECONDS = 60.0  # a directory that is younger may be about to be locked


class SocketDirectory:
    """A new directory of mode 0700. A lock in it shows that its process lives.

    A process of Airflow ends without cleaning up, so the next one removes what is left of others.
    """

    def __init__(self) -> None:
        _remove_left()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_place()))
        self.socket = str(self.path / "s")
        self.lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove it; this may be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def _place() -> str:
    """A directory whose name is short enough for a socket below it."""
    found = tempfile.gettempdir()
    return found if len(os.fsencode(f"{found}/{_PREFIX}12345678/s")) <= _LONGEST else "/tmp"  # noqa: S108 - mode 0700


def _remove_left() -> None:
    """Remove the directories of processes that have ended."""
    for path in Path(_place()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
            if is_ours and found.st_mtime < time.time() - _YOUNG_SECONDS and _is_left(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_left(path: Path) -> bool:
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
