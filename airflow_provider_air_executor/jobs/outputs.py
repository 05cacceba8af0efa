"""What a task may hand over as its result: JSON that every reader of results can keep.

Python reads more than JSON is (``NaN``, a lone surrogate), and JSON holds more than a database keeps (a NUL character)
or another process is handed (a number of any length, lists in lists without end).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 100  # of nested lists and objects; Airflow 3.3.2 takes 249
_NUMBERS = range(-(2**63), 2**64)
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def why_unfit(value: Any, reserved: Iterable[frozenset[str]] = ()) -> str | None:
    """Why a value that was read from JSON cannot be a result; None if it can.

    :param reserved: keys that mean something to who keeps the result: no object may have all of one of these sets.
    """
    reserved = tuple(reserved)
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            return f"lists and objects are nested more than {MAX_DEPTH} deep"
        if isinstance(item, dict):
            for keys in reserved:
                if keys <= item.keys():
                    return f"an object has {' and '.join(sorted(keys))} among its keys, which is reserved"
            waiting += ((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            waiting += ((part, depth + 1) for part in item)
        elif (why := _why_unfit_alone(item)) is not None:
            return why
    return None


def _why_unfit_alone(item: Any) -> str | None:
    if isinstance(item, str) and (found := _UNWRITABLE.search(item)):
        return "a text has a NUL character in it" if found[0] == "\0" else "a text has a lone surrogate in it"
    if isinstance(item, float) and not math.isfinite(item):
        return f"{item} is no number of JSON"
    if isinstance(item, int) and item not in _NUMBERS:
        return "a number has more than 64 bits"
    return None
