"""Tries a package in a process of its own: what importing it takes, and why it must not be imported ahead.

What is imported ahead is in each process that is forked later. So it must leave nothing behind that a fork loses or
that all would share, and nothing by which a task could tell that it has been imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from typing import Any, Self

from airflow_provider_air_executor.engines.local.learning import report
from airflow_provider_air_executor.engines.local.learning.report import in_a_line
from airflow_provider_air_executor.engines.local.learning.traces import Traces, watch_seeds
from airflow_provider_air_executor.system import import_report, installed

SECONDS = 30.0  # that a trial may take
TOO_LONG = f"importing it takes longer than {SECONDS:g} s"
MAX_OUTCOME = 200_000  # bytes
_MAX_NEEDS = 200
_MAX_BYTES = 1 << 50
_FORK_SECONDS = 5.0
_PR_SET_CHILD_SUBREAPER = 36


# Modules that do not work in a process forked after their import, though nothing shows it.
FORK_UNSAFE = {
    "polars": "its pool of threads does not survive a fork",  # https://github.com/pola-rs/polars/pull/19149
    "pyarrow.flight": "its connections do not work in a forked process",  # https://github.com/apache/arrow/issues/38617
}


@dataclass(frozen=True)
class Trial:
    """What is to be tried.

    :param root: a package.
    :param names: its modules that are to be imported, itself among them, in this order.
    :param after: modules of other packages that are imported before, and have passed their trials.
    """

    root: str
    names: tuple[str, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a trial has ended.

    :param cpu_seconds: what the import takes.
    :param memory_bytes: how much memory of its own it needs.
    :param why_not: why the package must not be imported ahead; empty if it may be.
    :param names: the modules that have to be imported; the others are imported by these.
    :param needs: the packages that were imported with it.
    :param changed: the environment variables that it changes.
    """

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    why_not: str = ""
    names: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The outcome as text, for the process that wants to know it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes | str) -> Outcome:
        """Read an outcome. What was tried may have written anything: then it has not passed."""
        try:
            found = json.loads(data) if len(data) <= MAX_OUTCOME else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            return cls(why_not="its trial gave no answer that can be read")
        return cls(
            report.number(found.get("cpu_seconds"), SECONDS * (os.cpu_count() or 1)),
            int(report.number(found.get("memory_bytes"), _MAX_BYTES)),
            in_a_line(found.get("why_not")),
            _names(found.get("names"), report.MAX_NAMES),
            _names(found.get("needs"), _MAX_NEEDS),
            report.names_of_variables(found.get("changed")),
        )


def _names(value: Any, most: int) -> tuple[str, ...]:
    return tuple(name for name in value[:most] if installed.is_name(name)) if isinstance(value, list) else ()


def died(status: int) -> str:
    """Why a package must not be imported ahead whose trial has ended without an outcome.

    :param status: as waitpid(2) gives it.
    """
    code = os.waitstatus_to_exitcode(status)
    return f"importing it ends the process (signal {-code})" if code < 0 else "importing it ends the process"


def run(names: Sequence[str], after: Sequence[str] = ()) -> Outcome:
    """Import the modules of a package in this process, which has been forked for that and does nothing else after it.

    :param names: the package itself, and modules of it.
    :param after: what is imported before.
    """
    process = os.getpid()
    why_not = _why_not_installed(names[0])
    if why_not:
        return Outcome(why_not=why_not)
    _adopt_orphans()
    watch_seeds()
    with _Output() as output:
        failed = _import_all(after)[1]
        before, cpu_before, memory_before = Traces.take(), time.process_time(), _private_bytes()
        last = next(reversed(sys.modules))
        imported, failed = ([], failed) if failed else _import_all(names)
        if os.getpid() != process:  # it has forked, and this is its child
            os._exit(0)
        cpu_seconds = time.process_time() - cpu_before
        changes = before.changes(Traces.take(), names[0])
        has_written = output.has_any()
    gc.collect()
    needs = {root for root, _ in import_report.imported_since(last, installed.directories())}
    return Outcome(
        round(cpu_seconds, 4),
        max(0, _private_bytes() - memory_before),
        failed or _why_unsafe() or changes.why_not or _why_not_after(has_written=has_written),
        tuple(imported),
        tuple(sorted(needs - {names[0]}))[:_MAX_NEEDS],
        tuple(sorted(changes.variables))[: report.MAX_CHANGED],
    )


def _why_not_installed(root: str) -> str:
    """Why a package cannot be imported without the code of anybody else; nothing is imported to find that out."""
    within = installed.directories()
    path: Sequence[str] | None = None
    parts = root.split(".")
    for length in range(1, len(parts) + 1):
        name = ".".join(parts[:length])
        known = getattr(sys.modules.get(name), "__path__", None)
        if known is not None and length < len(parts):
            path = list(known)
            continue
        try:
            spec = PathFinder.find_spec(name, path)
        except (ImportError, AttributeError, OSError, ValueError):
            spec = None
        if spec is None:
            return "it is not installed for the manager's Python"
        if installed.has(spec.origin, name, within):
            return ""
        if spec.origin is not None or spec.submodule_search_locations is None:
            break
        path = list(spec.submodule_search_locations)
    return "it is not imported from the installed packages"


def _import_all(names: Sequence[str]) -> tuple[list[str], str]:
    """Import modules in their order.

    :return: those that were not there yet, and why one could not be imported.
    """
    imported = []
    for name in names:
        if name in sys.modules:
            continue
        imported.append(name)
        try:
            importlib.import_module(name)
        except BaseException as error:
            return imported, f"importing {name} raises {type(error).__name__}"
    return imported, ""


def _why_unsafe() -> str:
    return next((f"{name}: {why}" for name, why in FORK_UNSAFE.items() if name in sys.modules), "")


def _why_not_after(*, has_written: bool) -> str:
    if has_written:
        return "it writes text when it is imported, which belongs into the logs of tasks"
    return "" if _can_fork() else "a process that is forked after importing it does not begin to work"


def _can_fork() -> bool:
    """Whether a process that is forked now comes to life: what modules have registered for a fork may fail or hang."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    end = time.monotonic() + _FORK_SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status == 0
        time.sleep(0.001)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


def _adopt_orphans() -> None:
    """Be the parent of all processes that the package starts (Linux), however it may hide them."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _private_bytes() -> int:
    """The memory that only this process has."""
    found = 0
    with contextlib.suppress(OSError), open("/proc/self/smaps_rollup", "rb") as file:
        for line in file:
            if line.startswith((b"Private_Clean:", b"Private_Dirty:")):
                found += 1024 * int(line.split()[1])
    return found


class _Output:
    """Catches what is written to the standard streams, as a context manager."""

    def __enter__(self) -> Self:
        self._file = os.memfd_create("output")
        self._kept = [(number, os.dup(number)) for number in (1, 2)]
        _flush()
        for number, _ in self._kept:
            os.dup2(self._file, number)
        return self

    def has_any(self) -> bool:
        """Whether something was written."""
        _flush()
        return os.fstat(self._file).st_size > 0

    def __exit__(self, *error: object) -> None:
        for number, kept in self._kept:
            os.dup2(kept, number)
            os.close(kept)
        os.close(self._file)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
