"""What tasks report, as the tests make it up."""

from __future__ import annotations

import json
from typing import Any


def report(key: str = "dags/a.py", *, base: bool = True, changed: tuple[str, ...] = (), **roots: list[str]) -> bytes:
    """A report of packages, each with its modules; a double underscore is a dot."""
    found: dict[str, Any] = {name.replace("__", "."): names for name, names in roots.items()}
    return json.dumps({"file": key, "parse": 0.5, "changed": changed, "base": base, "roots": found}).encode()
