"""Notes when a Python process begins, and which of its time goes into imports.

``clusters.py`` copies this file to where the Python of a node finds it as ``sitecustomize``, which Python imports by
itself. It does nothing unless ``BENCHMARK_STAMPS`` names a file. To that a line is added for each thing that has taken
time: what it is (``process``, ``import``), the process id, when it began in seconds since 1970, and how long it took in
seconds. Imports within another import are part of that. A forked process goes on to note its own.
"""

from __future__ import annotations

import os
import time
from typing import Any

_STAMPS = "BENCHMARK_STAMPS"


def note(kind: str, began: float, seconds: float) -> None:
    """Add a line."""
    file = os.open(os.environ[_STAMPS], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(file, f"{kind} {os.getpid()} {began:.6f} {seconds:.6f}\n".encode())
    os.close(file)


def _began() -> float:
    """When this process was started, to a hundredth of a second."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - ago


def _follow() -> None:
    """Note each import from now on. Python calls the function that is replaced only for what is not imported yet."""
    import importlib

    bootstrap: Any = importlib._bootstrap  # noqa: SLF001
    find = bootstrap._find_and_load  # noqa: SLF001
    is_within = False

    def find_and_note(*args: Any) -> Any:
        nonlocal is_within
        if is_within:
            return find(*args)
        is_within, began = True, time.time()
        try:
            return find(*args)
        finally:
            is_within = False
            note("import", began, time.time() - began)

    bootstrap._find_and_load = find_and_note  # noqa: SLF001


if _STAMPS in os.environ and __name__ == "sitecustomize":
    note("process", _began(), 0.0)
    _follow()
