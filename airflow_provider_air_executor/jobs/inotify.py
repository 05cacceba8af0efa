"""Which files of some directories have changed: inotify on Linux, nothing elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Change(NamedTuple):
    """Something was put at, or written to, ``name`` in the directory that is watched as ``key``.

    Without a name, the directory itself is gone.
    """

    key: str
    name: str


class Notifier:
    """Watches directories for files that are written or moved there.

    The system may not notify: on another platform than Linux, on a network file system, or when its watches are
    used up. So each user of this class makes a slow pass of its own too.
    """

    def __init__(self) -> None:
        self._inotify: Any = None
        self._mask = self._closed = self._removed = self._overflow = self._ignored = 0
        self._keys: dict[int, str] = {}
        self._watches: dict[str, int] = {}
        if sys.platform.startswith("linux"):
            # Where it is missing, or no inotify instance is left, the slow pass does it alone.
            with contextlib.suppress(ImportError, OSError):
                self._start()

    def _start(self) -> None:
        from inotify_simple import INotify, flags

        self._mask = flags.MOVED_TO | flags.CLOSE_WRITE | flags.CREATE | flags.ONLYDIR | flags.DONT_FOLLOW
        self._closed = flags.CLOSE_WRITE | flags.ONLYDIR | flags.DONT_FOLLOW
        self._removed = flags.MOVED_FROM | flags.DELETE
        self._overflow, self._ignored = int(flags.Q_OVERFLOW), int(flags.IGNORED)
        self._inotify = INotify(nonblocking=True)

    @property
    def works(self) -> bool:
        """Whether there is anything to wait for at all."""
        return self._inotify is not None

    def fileno(self) -> int:
        """The descriptor that becomes readable when there are changes; -1 if none ever does."""
        return self._inotify.fileno() if self._inotify is not None else -1

    def add(self, key: str, path: Path | str, *, only_closed: bool = False, removals: bool = False) -> None:
        """Watch a directory, if that is possible; its changes are reported under ``key``.

        :param only_closed: whether only the closing of files that were written counts.
        :param removals: whether what is moved or removed from there counts, too.
        """
        if self._inotify is None:
            return
        mask = self._closed if only_closed else self._mask | (self._removed if removals else 0)
        try:
            watch = self._inotify.add_watch(path, mask)
        except OSError:  # whatever it is: the slow pass sees what happens there
            return
        self._keys[watch] = key
        self._watches[key] = watch

    def has(self, key: str) -> bool:
        """Whether a directory is watched under this key."""
        return key in self._watches

    def remove(self, key: str) -> None:
        """Watch a directory no longer."""
        watch = self._watches.pop(key, None)
        if watch is not None and self._keys.pop(watch, None) is not None:
            with contextlib.suppress(OSError):  # the directory is gone, and the watch with it
                self._inotify.rm_watch(watch)

    def read(self) -> tuple[set[Change], bool]:
        """The changes since the last call, without waiting.

        :return: the changes, and whether some were lost, so that everything must be looked at.
        """
        if self._inotify is None:
            return set(), False
        changes: set[Change] = set()
        lost = False
        try:
            events = self._inotify.read(timeout=0)
        except OSError:
            return changes, True
        for event in events:
            if event.mask & self._overflow:
                lost = True
            elif event.mask & self._ignored:
                key = self._keys.pop(event.wd, None)
                if key is not None and self._watches.get(key) == event.wd:
                    del self._watches[key]
                    changes.add(Change(key, ""))
            elif (key := self._keys.get(event.wd)) is not None:
                changes.add(Change(key, os.fsdecode(event.name)))
        return changes, lost

    def close(self) -> None:
        """Stop watching."""
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
