"""The page of the documentation that says where it runs, made from the results of the rows."""

from __future__ import annotations

import dataclasses
import json
from itertools import groupby
from pathlib import Path

from tests.matrix.rows import ROWS, Row
from tests.matrix.running import Outcome

RESULTS = Path(__file__).with_name("results.json")
PAGE = Path(__file__).resolve().parents[2] / "docs/where-it-runs.md"
_HEAD = """\
<!-- Made by `make matrix` from what it has seen. Do not edit it. -->

# Where it runs

Each row is a system on which tests ran, with the version and the day. `make matrix ROW=sh-bash` runs one again, `make
matrix` all; it needs root and Debian 12. Systems are made of Debian's packages, in a cache outside the checkout.

* **supported**: all its tests pass. They run before each release, those that take seconds with each change.
* **works**: the same, with the limit that is named.
* **known not to**: some tests fail, for the reason that is named.
* **not run yet** and **not available**: nothing is known, or the row cannot be set up.
"""


def load() -> dict[str, Outcome]:
    """What was seen last, by the rows' names."""
    if not RESULTS.exists():
        return {}
    return {name: Outcome(**values) for name, values in json.loads(RESULTS.read_text()).items()}


def save(outcomes: dict[str, Outcome]) -> None:
    """Keep what was seen, and write the page."""
    values = {
        row.name: dataclasses.asdict(outcomes[row.name]) for row in ROWS if row.name in outcomes and not row.reason
    }
    RESULTS.write_text(json.dumps(values, indent=2) + "\n")
    PAGE.write_text(text(load()))


def verdict(row: Row, outcome: Outcome | None) -> str:
    """What is promised of a row."""
    if row.reason:
        return "not available"
    if outcome is None:
        return "not run yet"
    if outcome.unavailable:
        return "not available"
    if not outcome.is_good:
        return "known not to"
    return "works" if row.note else "supported"


def text(outcomes: dict[str, Outcome]) -> str:
    """The page."""
    lines = [_HEAD]
    for group, rows in groupby(ROWS, key=lambda row: row.group):
        lines += [f"## {group}\n", "| row | what | found | tests | day | result |", "|---|---|---|---|---|---|"]
        lines += [_line(row, outcomes.get(row.name)) for row in rows]
        lines.append("")
    return "\n".join(lines)


def _line(row: Row, outcome: Outcome | None) -> str:
    found = tests = day = ""
    remark = row.reason
    if outcome is not None and not row.reason:
        found, day = outcome.version.replace("\n", ", "), outcome.date
        counts = {"passed": outcome.passed, "failed": outcome.failed, "skipped": outcome.skipped}
        tests = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        remark = outcome.unavailable or row.note
    result = f"**{verdict(row, outcome)}**" + (f": {remark}" if remark else "")
    return f"| `{row.name}` | {row.what} | {found} | {tests} | {day} | {result} |"
