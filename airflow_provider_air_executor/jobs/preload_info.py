"""What the manager of a base path has imported ahead of warm tasks: it publishes ``preload.info.json``.

The file is for ``air-executor info --preload``. It stays when the manager ends, and is passed over then.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_air_executor.jobs import files, manager_status

if TYPE_CHECKING:  # the command line does not wait for what the store imports
    from airflow_provider_air_executor.jobs.store import JobStore

_LIMIT = 4_000_000  # bytes of the file
_NAMED = 6  # packages that are named; there may be hundreds


def path_of(base_path: Path) -> Path:
    """The file."""
    return base_path / "preload.info.json"


def load(store: JobStore) -> dict[str, Any] | None:
    """What the manager that runs has published; None if none runs, or if it has no fork server."""
    pid = manager_status.pid(store)
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(files.read(path_of(store.base_path), limit=_LIMIT)[0])
        if pid is not None and isinstance(found, dict) and found.get("pid") == pid:
            return found
    return None


def in_words(modules: Sequence[str]) -> str:
    """Modules by their packages, the first of them by name."""
    all_of_them = set(modules)
    packages = [name for name in modules if not _parents(name) & all_of_them]
    named, others = packages[:_NAMED], packages[_NAMED:]
    return ", ".join([*named, *([f"{len(others)} more"] if others else [])]) or "nothing"


def _parents(name: str) -> set[str]:
    """The packages that a module is in."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}
