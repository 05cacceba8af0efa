"""What has been learned from the tasks, in one file of the base path: by DAG file, and by package."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.engines.local.learning import report
from airflow_provider_air_executor.engines.local.learning.report import Report, in_a_line, number
from airflow_provider_air_executor.engines.local.learning.trial import FORK_UNSAFE
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.system import installed

log = logging.getLogger("air_executor.manager")

FILE = "preload.json"
VERSION = 1
MAX_BYTES = 2_000_000
MAX_FILES, MAX_PACKAGES, MAX_NAMES = 1000, 500, 20_000
_MAX_ROOTS = 200  # of one DAG file
_HALF_LIFE = 86400.0  # seconds after which a task counts half
_OBSERVATIONS = 50  # of a DAG file, after which older ones count half
_FORGOTTEN_AFTER = 86400.0  # seconds without the change of a variable that was seen before
_MOST = 1e12
_LEFT_OUT = -1  # in place of a number of tasks: the module has not passed its trial


@dataclass
class SeenFile:
    """A DAG file whose tasks have reported.

    :param tasks: how many there were lately: each counts half a day later, and so on.
    :param at: the time at which that number was true.
    :param observed_at: when a process last reported that had imported nothing of what was learned; 0: never.
    :param observations: how many of these there were.
    :param roots: in how many of them a package was imported.
    :param changed: the environment variables that the file, or a task of it, has changed.
    """

    tasks: float = 0.0
    at: float = 0.0
    parse_seconds: float = 0.0
    observed_at: float = 0.0
    observations: int = 0
    roots: dict[str, int] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    changed_at: float = 0.0

    def tasks_at(self, now: float) -> float:
        """How many tasks there were lately, at another time."""
        return float(self.tasks * 0.5 ** (max(0.0, now - self.at) / _HALF_LIFE))

    def share(self, root: str) -> float:
        """The share of its tasks that import a package."""
        return min(1.0, self.roots.get(root, 0) / max(1, self.observations))

    def add(self, found: Report, roots: list[str], now: float) -> None:
        """Count one more report."""
        self.tasks, self.at = min(self.tasks_at(now) + 1, _MOST), now
        self.parse_seconds = found.parse_seconds
        if found.is_base:
            self._observe(now)
        for root in roots:
            if root in self.roots or len(self.roots) < _MAX_ROOTS:
                self.roots[root] = self.roots.get(root, 0) + 1
        if found.changed:
            self.changed, self.changed_at = found.changed, now
        elif now - self.changed_at > _FORGOTTEN_AFTER:
            self.changed = ()

    def _observe(self, now: float) -> None:
        self.observed_at = now
        self.observations += 1
        if self.observations > _OBSERVATIONS:
            self.observations //= 2
            self.roots = {root: hits // 2 for root, hits in self.roots.items() if hits > 1}


@dataclass
class Verdict:
    """How a package has stood its trials.

    :param stamp: of its files at that time.
    :param names: the modules that have to be imported; the others come with them.
    :param changed: the environment variables that it changes.
    """

    at: float
    stamp: str
    why_not: str = ""
    cpu_seconds: float = 0.0
    memory: int = 0
    names: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    tries: int = 1


@dataclass
class Package:
    """A package that tasks have imported.

    :param seen: how many tasks have reported that.
    :param names: its modules, and how many tasks have reported each; of one left out for a failed trial, less than 0.
    :param tried: how many of the modules, from the first one on, were part of the trial that it has passed.
    """

    seen: int = 0
    names: dict[str, int] = field(default_factory=dict)
    verdict: Verdict | None = None
    tried: set[str] = field(default_factory=set)

    @property
    def has_passed(self) -> bool:
        """Whether it may be imported ahead."""
        return self.verdict is not None and not self.verdict.why_not

    def untried(self, least: int) -> list[str]:
        """The modules that enough tasks have imported, and that have not been part of a trial."""
        return [
            name
            for name, seen in self.names.items()
            if seen >= least and name not in self.tried and name not in FORK_UNSAFE
        ]

    def leave_out(self, names: list[str]) -> None:
        """Never try some modules again, until the package is another one."""
        for name in names:
            self.names[name] = _LEFT_OUT

    def forget(self) -> None:
        """Try it again: it is not the package any more that was tried."""
        self.verdict = None
        self.tried.clear()
        self.names = {name: max(seen, 0) for name, seen in self.names.items()}


class Ledger:
    """The files and packages, and their file in the base path.

    :param base_path: of the manager.
    :param is_installed: whether there is a package of this name; default: whether it has a file.
    """

    def __init__(self, base_path: Path, is_installed: Callable[[str], bool] | None = None) -> None:
        self.path = base_path / FILE
        self._is_installed = is_installed or partial(_has_file, within=installed.directories())
        self.files: dict[str, SeenFile] = {}
        self.packages: dict[str, Package] = {}
        self._names = 0  # of the modules of all packages
        self._read()

    def add(self, found: Report, now: float) -> None:
        """Count a report."""
        roots = []
        for reported, names in found.roots.items():
            root = self.root_of(reported)
            if root not in self.packages and not (len(self.packages) < MAX_PACKAGES and self._is_installed(root)):
                continue
            package = self.packages.setdefault(root, Package())
            package.seen = min(package.seen + 1, int(_MOST))
            self._add_names(package, names)
            roots.append(root)
        file = self.files.pop(found.key, None) or SeenFile()
        self.files[found.key] = file  # the last ones are those that were used last
        file.add(found, list(dict.fromkeys(roots)), now)
        if len(self.files) > MAX_FILES:
            del self.files[next(iter(self.files))]

    def root_of(self, reported: str) -> str:
        """The package that modules belong to: where it has been imported ahead, they were reported without it."""
        parent = reported
        while parent:
            if parent in self.packages:
                return parent
            parent = parent.rpartition(".")[0]
        return reported

    def _add_names(self, package: Package, names: tuple[str, ...]) -> None:
        for name in names:
            seen = package.names.get(name)
            if seen is None:
                if self._names >= MAX_NAMES or len(package.names) >= report.MAX_NAMES:
                    continue
                self._names += 1
                package.names[name] = 1
            elif seen >= 0:
                package.names[name] = min(seen + 1, int(_MOST))

    def tasks_of(self, now: float) -> dict[str, float]:
        """How many tasks have imported each package lately, in the measure of a day."""
        found: dict[str, float] = {}
        for file in self.files.values():
            tasks = file.tasks_at(now)
            for root in file.roots:
                found[root] = found.get(root, 0.0) + tasks * file.share(root)
        return found

    def write(self) -> None:
        """Write the file, whole or not at all.

        :raises OSError: if that cannot be done.
        """
        data = self._data()
        while len(data) > MAX_BYTES and self.files:
            for key in list(self.files)[: len(self.files) // 2 + 1]:
                del self.files[key]
            data = self._data()
        files.publish(self.path, data)

    def _data(self) -> bytes:
        content = {
            "version": VERSION,
            "python": _python(),
            "files": {key: vars(file) for key, file in self.files.items()},
            "packages": {
                root: {
                    "seen": package.seen,
                    "names": package.names,
                    "verdict": None if package.verdict is None else vars(package.verdict),
                    "tried": sorted(package.tried),
                }
                for root, package in self.packages.items()
            },
        }
        return json.dumps(content, separators=(",", ":")).encode()

    def _read(self) -> None:
        try:
            content = json.loads(files.read(self.path, limit=2 * MAX_BYTES)[0])
            if content["version"] == VERSION:
                self._take(content)
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            log.warning("%s cannot be used (%s); what tasks import is learned anew", self.path, type(error).__name__)
            self.files, self.packages = {}, {}
        self._names = sum(len(package.names) for package in self.packages.values())

    def _take(self, content: Any) -> None:
        for key, value in list(content["files"].items())[-MAX_FILES:]:
            if report.is_key(key):
                self.files[key] = _file(value)
        is_this_python = content["python"] == _python()
        for root, value in list(content["packages"].items())[:MAX_PACKAGES]:
            if installed.is_name(root):
                self.packages[root] = _package(root, value, with_verdict=is_this_python)


def _has_file(root: str, within: tuple[str, ...]) -> bool:
    return installed.origin(root, within) is not None


def _python() -> str:
    """The Python whose packages were tried."""
    return f"{sys.prefix} {sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"


def _count(value: Any) -> int:
    return int(number(value, _MOST))


def _file(value: Any) -> SeenFile:
    roots = {root: _count(hits) for root, hits in list(value["roots"].items())[:_MAX_ROOTS] if installed.is_name(root)}
    return SeenFile(
        number(value["tasks"], _MOST),
        number(value["at"], _MOST),
        number(value["parse_seconds"], _MOST),
        number(value["observed_at"], _MOST),
        _count(value["observations"]),
        roots,
        report.names_of_variables(value["changed"]),
        number(value["changed_at"], _MOST),
    )


def _package(root: str, value: Any, *, with_verdict: bool) -> Package:
    counts = {name: value["names"][name] for name in report.names_of_modules(list(value["names"]), root)}
    names = {name: _LEFT_OUT if seen == _LEFT_OUT else _count(seen) for name, seen in counts.items()}
    package = Package(_count(value["seen"]), names)
    if not with_verdict:
        package.forget()
    elif value["verdict"] is not None:
        package.verdict = _verdict(root, value["verdict"])
        package.tried = set(report.names_of_modules(value["tried"], root)) & names.keys()
    return package


def _verdict(root: str, value: Any) -> Verdict:
    return Verdict(
        number(value["at"], _MOST),
        in_a_line(value["stamp"]),
        in_a_line(value["why_not"]),
        number(value["cpu_seconds"], _MOST),
        _count(value["memory"]),
        report.names_of_modules(value["names"], root),
        tuple(name for name in value["needs"] if installed.is_name(name)),
        report.names_of_variables(value["changed"]),
        _count(value["tries"]),
    )


def stamp(root: str, within: tuple[str, ...]) -> str:
    """What changes when another version of a package is installed; empty if there is no such package.

    :param within: the directories of installed modules.
    """
    path = installed.origin(root, within)
    if path is None:
        return ""
    try:
        found = files.Stamp.of(os.stat(path))
    except OSError:
        return ""
    return f"{found.inode} {found.mtime_ns} {found.size} {' '.join(_versions(root, path))}"[:300]


def _versions(root: str, path: str) -> Iterator[str]:
    """The names of the metadata of a package's distribution, which have its version, if they are called alike."""
    directory = path
    for _ in range(root.count(".") + 1 + path.rpartition("/")[2].startswith("__init__.")):
        directory = os.path.dirname(directory)
    start = root.partition(".")[0].lower()
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            if name.endswith(".dist-info") and name.lower().startswith(f"{start}-"):
                yield name
