"""What tells whether files are still the same: when each was changed, its size, and its inode."""

from __future__ import annotations

import os
from collections.abc import Iterable

_stat = os.stat  # others may watch that of the module
Stamped = dict[str, list[int]]  # by path; a file or directory that is gone has an empty list


def stamps(paths: Iterable[str]) -> Stamped:
    """The stamps of files and directories."""
    return {path: stamp(path) for path in paths}


def stamp(path: str) -> list[int]:
    """The stamp of a file or directory: nanoseconds of its last change, bytes, inode; empty if it cannot be seen."""
    try:
        status = _stat(path)
    except (OSError, ValueError):
        return []
    return [status.st_mtime_ns, status.st_size, status.st_ino]


def are_same(before: Stamped) -> bool:
    """Whether all files are as they were."""
    return all(stamp(path) == was for path, was in before.items())
