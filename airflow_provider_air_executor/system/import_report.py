"""How a task that was forked says which modules it has imported itself: in one datagram, at its end.

The fork server calls :func:`begin` when it has imported all that it is to import. The processes that are forked from it
inherit the socket. A report has names only: of installed modules, of Python's own, and of environment variables that
were changed. It never has a value, nor a module of the user's own.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import socket
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from airflow_provider_air_executor.system import installed
from airflow_provider_air_executor.system.stamps import Stamped

MAX_REPORT = 60_000  # bytes
_MAX_CHANGED = 20  # names of variables


@dataclass
class _Reporting:
    """What this process has to report with."""

    sender: socket.socket | None = None
    last: str = ""  # the module that the fork server has imported last
    directories: tuple[str, ...] = ()
    is_base: bool = True
    executed_seconds: float = 0.0  # for what was executed ahead of this process


_reporting = _Reporting()


def begin(sender: socket.socket | None, *, is_base: bool = True) -> None:
    """Count as imported what is imported now; the processes that are forked from this one report the rest.

    :param sender: a datagram socket; None: there will be no reports.
    :param is_base: whether this process has imported nothing that was learned.
    """
    _reporting.sender, _reporting.is_base = sender, is_base
    _reporting.directories = installed.directories()
    _reporting.last = next(reversed(sys.modules))


def is_wanted() -> bool:
    """Whether there is anybody to report to."""
    return _reporting.sender is not None


def send(key: str, *, parse_seconds: float, changed: Collection[str]) -> None:
    """Report to the manager what this process has imported; if that cannot be done at once, it is not done.

    :param key: names the file that has had it imported.
    :param parse_seconds: the CPU time for executing that file.
    :param changed: the environment variables that it has changed.
    """
    if _reporting.sender is None:
        return
    collects = gc.isenabled()
    gc.disable()  # a collection of all that was imported would take longer than the report
    try:
        with contextlib.suppress(OSError):
            _reporting.sender.send(_report(key, parse_seconds, changed), socket.MSG_DONTWAIT)
    finally:
        if collects:
            gc.enable()


def executed_ahead(seconds: float) -> None:
    """Note that another process has executed the file of this one.

    :param seconds: of CPU that it took.
    """
    _reporting.executed_seconds = seconds


def send_watched(key: str, why_not: str, files: Stamped) -> None:
    """Report whether what a file gives may be shared by its tasks; if that cannot be done at once, it is not done.

    :param why_not: why it may not; empty if it may.
    :param files: on which it depends; none if it is to be found out anew.
    """
    if _reporting.sender is None:
        return
    report = {"file": key, "why_not": why_not, "files": files}
    with contextlib.suppress(OSError):
        _reporting.sender.send(json.dumps(report, separators=(",", ":")).encode(), socket.MSG_DONTWAIT)


def _report(key: str, parse_seconds: float, changed: Collection[str]) -> bytes:
    roots: dict[str, list[str]] = {}
    report: dict[str, Any] = {
        "file": key,
        "parse": round(parse_seconds + _reporting.executed_seconds, 4),
        "changed": sorted(changed)[:_MAX_CHANGED],
        "base": _reporting.is_base,
        "roots": roots,
    }
    left = MAX_REPORT - len(json.dumps(report))
    found = list(imported_since(_reporting.last, _reporting.directories))
    found.sort(key=lambda one: one[0] != one[1])  # the packages first, in case that there is no room for all
    for root, name in found:
        length = len(name) + 4 if root in roots else len(root) + len(name) + 14
        if length > left:
            break
        left -= length
        roots.setdefault(root, []).append(name)
    return json.dumps(report, separators=(",", ":")).encode()


def imported_since(last: str, within: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The installed modules that were imported after another one, each with the outermost package imported with it.

    Python lists a module when its import is complete, so each comes after those that it imports. A namespace package,
    which has no file, is none. The modules before are not looked at: a process that was forked would have to copy the
    memory that they are in.

    :param last: the name of the one that was imported last before them.
    :param within: the directories of installed modules.
    """
    found: dict[str, None] = {}
    for name in reversed(sys.modules):
        if name == last:
            break
        spec = installed.spec_of(sys.modules.get(name))
        if spec is not None and spec.name == name and installed.has(spec.origin, name, within):
            found[name] = None
    for name in reversed(found):
        yield _outermost(name, found), name


def _outermost(name: str, among: Collection[str]) -> str:
    """The outermost package of a module, itself if there is none."""
    end = name.find(".")
    while end > 0:
        if name[:end] in among:
            return name[:end]
        end = name.find(".", end + 1)
    return name


def environment() -> dict[str, str]:
    """The present environment, to be compared with a later one by :func:`changes`."""
    return dict(os.environ)


def changes(before: dict[str, str]) -> set[str]:
    """The names of the variables that are not as they were, but for those that Airflow sets for each task."""
    now = dict(os.environ)
    if now == before:
        return set()
    return {
        name
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name) and not name.lstrip("_").startswith("AIRFLOW_")
    }
