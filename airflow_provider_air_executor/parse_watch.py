"""Executes a DAG file once under watch, and says whether what it makes may be shared by later tasks.

A task that is forked from a process that has executed its DAG file finds it executed. That is right only if the file
makes the same in each task, and does nothing to the world outside. What is not known to be harmless is refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

_MAX_FILES = 100


class Watched(NamedTuple):
    """What was seen of a DAG file that was executed."""

    why_not: str  # '' if what the file makes may be shared; else why not, in a few plain words
    files: dict[str, list[int]]  # what it depends on: absolute path -> time of last change in ns, size, inode


def stamps(paths: Iterable[str]) -> dict[str, list[int]]:
    """What shows that a file or directory has changed; an empty list if there is none."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> list[int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return []
    return [found.st_mtime_ns, found.st_size, found.st_ino]


class _RefusedError(BaseException):
    """What the file was about to do is refused; not to be caught by it."""


_ALLOWED = ("import", "compile", "exec", "open", "os.listdir", "os.scandir", "os.walk", "glob.", "pathlib.", "sys._get",
            "object.", "marshal.", "code.", "function.", "builtins.id", "gc.", "pickle.find_class", "array.", "cpython.")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def watch(parse: Callable[[], object], bundle_path: str) -> Watched:
    """Execute a DAG file under watch, in a process that was forked for it and ends after it.

    :param parse: executes it.
    :param bundle_path: the directory of its bundle.
    """
    why_not: list[str] = []
    opened: dict[str, list[int]] = {}
    active = True

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if not active:
            return
        if not event.startswith(_ALLOWED) or (event == "open" and args[2] and args[2] & _WRITES):
            why_not.append(f"it causes {event}")
            raise _RefusedError
        if event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str) and "/lib/python" not in args[0]:
            path = os.path.abspath(args[0])
            opened.setdefault(path, _stamp(path))

    sys.addaudithook(audit)
    result: Any = None
    with contextlib.suppress(_RefusedError):
        result = parse()
    active = False
    if getattr(result, "import_errors", None):
        why_not.append("it cannot be imported")
    if len(opened) > _MAX_FILES:
        why_not.append("it depends on too many files")
    files = {importlib.util.source_from_cache(path) if path.endswith(".pyc") else path: at for path, at in opened.items()}
    return Watched(why_not[0] if why_not else "", files)
