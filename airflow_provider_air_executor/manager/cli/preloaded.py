"""Shows what is imported ahead of warm tasks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_NAMED = 6  # modules that are named; there may be hundreds


def show(found: dict[str, Any]) -> None:
    """Print what a manager has published, see :mod:`~airflow_provider_air_executor.jobs.preload_info`."""
    console = Console(highlight=False)
    for heading, text in _rows(found):
        console.print(Text(f"{heading:18}{text}"), soft_wrap=True)
    learned = found["learned"]
    if learned is None:
        return
    for heading, names, table in _tables(learned):
        console.print()
        console.print(Text(heading))
        if names:
            console.print(table)


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("fork_server", "next_fork_server", "generation", "next_generation"):
        if found[name]:
            yield name.replace("_", " "), _server(found[name])
    for server in found["earlier"]:
        yield "earlier", f"process {server['pid']} has {server['attempts']} tasks, and ends with the last of them"
    if found["learned"] is None:
        yield "learning", "off; the setting preload = auto has what tasks import learned"


def _server(server: dict[str, Any]) -> str:
    first, others = server["modules"][:_NAMED], server["modules"][_NAMED:]
    modules = ", ".join([*first, *([f"{len(others)} more modules"] if others else [])]) or "nothing"
    if "pid" not in server:
        return f"imports {modules}"
    return f"{server['pid']} since {_clock(server['since'])}: {modules} ({server['ms']} ms, {server['mb']} MB)"


def _tables(learned: dict[str, Any]) -> Iterator[tuple[str, int, Table]]:
    ahead = learned["modules"]
    table = Table("PACKAGE", "MS", "MB", "TASKS A DAY", "SINCE", box=None, pad_edge=False)
    for one in ahead:
        table.add_row(one["name"], f"{one['ms']}", f"{one['mb']}", f"{one['tasks_per_day']}", _clock(one["since"]))
    memory = f" (at most {learned['memory_cap_mb']} MB)"
    yield f"imported ahead{memory}" if ahead else f"nothing is imported ahead yet{memory}", len(ahead), table
    if learned["refused"]:
        table = Table("PACKAGE", "WHY NOT", box=None, pad_edge=False)
        for one in learned["refused"]:
            table.add_row(one["name"], one["why"])
        yield "not imported ahead", len(learned["refused"]), table
    if learned["waiting"]:
        yield f"waiting for a trial: {', '.join(learned['waiting'])}", 0, Table()
    if learned["files"]:
        table = Table("FILE", "TASKS A DAY", "PARSE MS", "STARTS FROM", box=None, pad_edge=False)
        for one in learned["files"]:
            where = "the generation" if one["where"] == "generation" else "the fork server"
            why = f": it changes {', '.join(one['changes'])}" if one["changes"] else ""
            table.add_row(one["name"], f"{one['tasks_per_day']}", f"{one['parse_ms']}", f"{where}{why}")
        yield "DAG files", len(learned["files"]), table


def _clock(at: str | float) -> str:
    """A time on this machine's clock."""
    moment = datetime.fromtimestamp(at, UTC) if isinstance(at, int | float) else datetime.fromisoformat(at)
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"
