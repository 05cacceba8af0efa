"""Says whether what a process has imported is still what is on the disk: packages are upgraded under it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

from airflow_provider_air_executor.system import installed

_ALL_SECONDS = 30.0  # between two looks at the files of all modules, if nothing else has changed
_PACKAGE_ENDS = (".dist-info", ".egg-info", ".egg-link", ".pth")
_CACHE = "__pycache__"  # Python makes it when it imports something

_Stamp = tuple[int, int, int] | None


class Stamps:
    """The stamps of files and of directories of packages; they are made before anything is imported.

    :param with_directories: whether packages that are installed or removed count, too, and not only the files of what
        was imported.
    """

    def __init__(self, *, with_directories: bool) -> None:
        self._count = len(sys.modules)
        found = installed.directories() if with_directories else ()
        self._directories = {path: _stamp(path) for path in found}
        self._packages = {path: _packages(path) for path in found}
        self._watched: dict[str, _Stamp] = {}
        self._files: dict[str, _Stamp] = {}
        self._all_at = 0.0  # when all of it was looked at last
        self._changed: tuple[str, object] | None = None  # what had changed then

    def note_imports(self, watched: Iterable[str] = ()) -> None:
        """Note the files of what has been imported since.

        :param watched: other files that count.
        """
        self._watched = {path: _stamp(path) for path in watched}
        names = list(sys.modules)[self._count if not self._directories else 0 :]
        files = filter(None, (_file(sys.modules.get(name)) for name in names))
        self._files = {path: _stamp(path) for path in files}
        self._all_at = time.monotonic()

    def what_has_changed(self) -> tuple[str, bool]:
        """The path of something that has changed; empty if nothing has.

        :return: also whether it is as it was at the last look: otherwise more may be about to change.
        """
        seen = {path: _stamp(path) for path in self._directories}
        is_due = seen != self._directories or any(_stamp(path) != was for path, was in self._watched.items())
        if not is_due and self._changed is None and time.monotonic() - self._all_at < _ALL_SECONDS:
            return "", True
        self._all_at = time.monotonic()
        before, self._changed = self._changed, self._look()
        if self._changed is None:
            self._directories = seen
            return "", True
        return self._changed[0], self._changed == before

    def _look(self) -> tuple[str, object] | None:
        for path, was in (*self._watched.items(), *self._files.items()):
            stamp = _stamp(path)
            if stamp != was:
                return path, stamp
        for path, packages in self._packages.items():
            found = _packages(path)
            if found != packages:
                return path, found
        return None


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _packages(directory: str) -> frozenset[tuple[str, _Stamp]]:
    """The names of what is in a directory of packages, and which versions of them these are."""
    try:
        names = [name for name in os.listdir(directory) if name != _CACHE]
    except OSError:
        return frozenset()
    return frozenset(
        (name, _stamp(os.path.join(directory, name)) if name.endswith(_PACKAGE_ENDS) else None) for name in names
    )


def _file(module: object) -> str:
    """The file of a module; empty if it has none."""
    spec = installed.spec_of(module)
    return str(spec.origin) if spec is not None and spec.has_location and spec.origin else ""
