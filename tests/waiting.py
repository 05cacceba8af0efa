"""Waiting for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_until(check: Callable[[], T], *, timeout: float = 60, what: str, interval: float = 0.01) -> T:
    """Call ``check`` until it gives something true, and return that."""
    give_up = time.monotonic() + timeout
    while True:
        is_late = time.monotonic() > give_up  # a last look is taken when the time is over, however late that is
        result = check()
        if result:
            return result
        if is_late:
            raise TimeoutError(f"after {timeout:g} s still not: {what}")
        time.sleep(interval)


def until(path: Path) -> str:
    """A line of bash that waits until a file is there."""
    return f"until test -e {path}; do sleep 0.1; done"
