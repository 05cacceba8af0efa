"""How this package starts a Python of its own, from wherever it is: installed, or in ``air-executor.pyz``."""

from __future__ import annotations

import os
import sys

# air-executor.pyz puts it beside the package. It finds the package for one process; a variable would reach tasks, too.
_START = os.path.join(os.path.dirname(__file__), os.pardir, os.pardir, "air_executor_start.py")


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package, as ``python -m`` does, in the same Python.

    Modules of the working directory, which is one that tasks may write to, are not found (``-P``).

    :param module: with all its dots.
    """
    start = os.path.abspath(_START)
    words = [start] if os.path.exists(start) else ["-m"]
    return [sys.executable, "-P", *words, module, *arguments]
