"""Which modules belong to Python or to an installed package, and not to a user's own files."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, all_suffixes
from types import ModuleType

NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)  # of a module
MAX_NAME = 200  # characters of such a name
_SITE = ("site-packages", "dist-packages")


def directories(path: Iterable[str] | None = None) -> tuple[str, ...]:
    """The directories of installed packages, and of Python's own modules.

    :param path: those that modules are looked for in; default: ``sys.path``.
    """
    standard = os.path.dirname(os.__file__)
    found = dict.fromkeys(
        entry.rstrip("/")
        for entry in (sys.path if path is None else path)
        if os.path.basename(entry.rstrip("/")) in _SITE or f"{entry}/".startswith(f"{standard}/")
    )
    return tuple(found)


def is_name(name: object) -> bool:
    """Whether something can be the name of a module."""
    return isinstance(name, str) and len(name) <= MAX_NAME and NAME.fullmatch(name) is not None


def has(origin: object, name: str, within: Iterable[str]) -> bool:
    """Whether a file is where a module of this name must be if it is an installed one.

    :param origin: the path of the file, as its module has it.
    :param within: the directories of installed modules.
    """
    if not isinstance(origin, str):
        return False
    start = "/" + name.replace(".", "/")
    for directory in within:
        if origin.startswith(start, len(directory)) and origin.startswith(directory):
            return origin.startswith((".", "/__init__."), len(directory) + len(start))
    return False


def origin(name: str, within: Iterable[str]) -> str | None:
    """The file of an installed module, found without importing anything; None if there is none."""
    relative = name.replace(".", "/")
    for directory in within:
        for start in (f"{directory}/{relative}/__init__", f"{directory}/{relative}"):
            for suffix in all_suffixes():
                try:
                    if stat.S_ISREG(os.stat(start + suffix).st_mode):
                        return start + suffix
                except OSError:
                    continue
    return None


def spec_of(module: object) -> ModuleSpec | None:
    """The spec of a module, without the code of a module that answers for its attributes itself.

    :param module: what ``sys.modules`` has under some name: it may be anything. A library of cffi says that it is a
        module, and has no ``__dict__`` (cffi 2.1.1).
    """
    if not isinstance(module, ModuleType):
        return None
    try:
        found = object.__getattribute__(module, "__dict__").get("__spec__")
    except AttributeError:
        return None
    return found if isinstance(found, ModuleSpec) else None
