"""What a task has reported, see :mod:`airflow_provider_air_executor.system.import_report`: checked, and bounded."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from airflow_provider_air_executor.system import installed
from airflow_provider_air_executor.system.import_report import MAX_REPORT
from airflow_provider_air_executor.system.stamps import Stamped

MAX_KEY = 500  # characters
MAX_NAMES = 3000
MAX_CHANGED = 20
MAX_FILES = 100  # on which a DAG file may depend that is executed ahead
_MAX_WHY = 300  # characters
_MAX_SECONDS = 3600.0
_VARIABLE = re.compile(r"[A-Za-z_]\w{0,99}", re.ASCII)


@dataclass(frozen=True)
class Report:
    """What a task has imported that its fork server had not.

    :param key: of the file that has had it imported.
    :param is_base: whether its fork server had imported nothing that was learned.
    :param roots: packages, each with its modules, in the order in which they were imported.
    """

    key: str
    parse_seconds: float
    changed: tuple[str, ...]
    is_base: bool
    roots: dict[str, tuple[str, ...]]

    @classmethod
    def parse(cls, data: bytes) -> Report | None:
        """Read a report. A task may have sent anything: it is None if it is not a report."""
        if len(data) > MAX_REPORT:
            return None
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or not is_key(found.get("file")):
            return None
        return cls(
            found["file"],
            number(found.get("parse"), _MAX_SECONDS),
            names_of_variables(found.get("changed")),
            found.get("base") is True,
            _roots(found.get("roots")),
        )


@dataclass(frozen=True)
class WatchReport:
    """Whether what a DAG file gives may be shared by its tasks, so that it is executed ahead of them.

    :param why_not: why it may not; empty if it may.
    :param files: on which it depends; none if that is to be found out anew.
    """

    key: str
    why_not: str
    files: Stamped

    @classmethod
    def parse(cls, data: bytes) -> WatchReport | None:
        """Read a report. A task may have sent anything: it is None if it is not a report."""
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or not is_key(found.get("file")) or not isinstance(found.get("why_not"), str):
            return None
        return cls(found["file"], in_a_line(found["why_not"]), stamped(found.get("files")))


def stamped(value: Any) -> Stamped:
    """Paths with their stamps; nothing if it is anything else."""
    if not isinstance(value, dict) or len(value) > MAX_FILES or len(json.dumps(value)) > MAX_REPORT:
        return {}
    is_right = all(
        isinstance(numbers, list) and len(numbers) in (0, 3) and all(type(number) is int for number in numbers)
        for numbers in value.values()
    )
    return value if is_right else {}


def in_a_line(text: Any) -> str:
    """A reason as one line that is not too long."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text or ""))[:_MAX_WHY]


def is_key(value: Any) -> bool:
    """Whether something can name a DAG file."""
    return isinstance(value, str) and 0 < len(value) <= MAX_KEY and value.isprintable()


def number(value: Any, most: float) -> float:
    """A number between nothing and ``most``; nothing if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return float(min(max(value, 0), most))


def names_of_variables(value: Any) -> tuple[str, ...]:
    """The names of environment variables in a list."""
    if not isinstance(value, list):
        return ()
    return tuple(name for name in value[:MAX_CHANGED] if isinstance(name, str) and _VARIABLE.fullmatch(name))


def names_of_modules(value: Any, root: str) -> tuple[str, ...]:
    """The names of modules of a package in a list."""
    if not isinstance(value, list):
        return ()
    return tuple(
        name
        for name in dict.fromkeys(item for item in value[:MAX_NAMES] if installed.is_name(item))
        if name == root or name.startswith(f"{root}.")
    )


def _roots(value: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        return {}
    roots = {root: names_of_modules(names, root) for root, names in value.items() if installed.is_name(root)}
    return {root: names for root, names in roots.items() if names}
