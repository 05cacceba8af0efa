"""Shows what is imported ahead of warm tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from airflow_provider_air_executor.jobs.preload_info import in_words
from airflow_provider_air_executor.manager.cli.display import make_console

_NUMBERS = ("MS", "MB", "TASKS A DAY", "PARSE MS")  # columns of numbers


def show(found: dict[str, Any]) -> None:
    """Print what a manager has published, see :mod:`~airflow_provider_air_executor.jobs.preload_info`."""
    console = make_console()
    for heading, text in _rows(found):
        console.print(Text(f"{heading:18}{text}"), soft_wrap=True)
    learned = found["learned"]
    if learned is None:
        return
    for heading, table in _tables(learned, found["generation"]):
        console.print()
        console.print(Text(heading))
        if table is not None:
            console.print(table)


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("fork_server", "next_fork_server", "generation", "next_generation"):
        if found[name]:
            yield name.replace("_", " "), _server(found[name])
    for server in found["earlier"]:
        tasks = "1 task" if server["attempts"] == 1 else f"{server['attempts']} tasks"
        yield "earlier", f"process {server['pid']} has {tasks}, and ends with the last of them"
    if found["learned"] is None:
        yield "learning", "off; the setting preload = auto has what tasks import learned"


def _server(server: dict[str, Any]) -> str:
    modules = in_words(server["modules"])
    if "pid" not in server:
        return f"imports {modules}"
    return f"{server['pid']} since {_clock(server['since'])}: {modules} ({server['ms']} ms, {server['mb']} MB)"


def _tables(learned: dict[str, Any], generation: dict[str, Any] | None) -> Iterator[tuple[str, Table | None]]:
    memory = f"at most {learned['memory_cap_mb']} MB"
    if learned["modules"]:
        ahead = [
            (one["name"], one["ms"], one["mb"], one["tasks_per_day"], _chosen(one, generation))
            for one in learned["modules"]
        ]
        yield f"imported ahead ({memory})", _table(("PACKAGE", "MS", "MB", "TASKS A DAY", "CHOSEN"), ahead)
    else:
        yield f"nothing is imported ahead yet ({memory})", None
    if learned["refused"]:
        refused = [(one["name"], one["why"]) for one in learned["refused"]]
        yield "not imported ahead", _table(("PACKAGE", "WHY NOT"), refused)
    if learned["waiting"]:
        yield f"waiting for a trial: {in_words(learned['waiting'])}", None
    if learned["files"]:
        files = [
            (one["name"], one["tasks_per_day"], one["parse_ms"], _where(one, generation), one["ahead"] or "not yet")
            for one in learned["files"]
        ]
        yield "DAG files", _table(("FILE", "TASKS A DAY", "PARSE MS", "STARTS FROM", "EXECUTED AHEAD"), files)


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table whose cells are never cut."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _chosen(package: dict[str, Any], generation: dict[str, Any] | None) -> str:
    """When a package was chosen, and whether tasks have to wait for it."""
    is_there = generation is not None and package["name"] in generation["modules"]
    return _clock(package["since"]) + ("" if is_there else ", for the next generation")


def _where(file: dict[str, Any], generation: dict[str, Any] | None) -> str:
    """What the tasks of a DAG file start from."""
    if file["changes"]:
        return f"the fork server: it changes {', '.join(file['changes'])}"
    if file["where"] != "generation":
        return "the fork server"
    return "the fork server, until there is a generation" if generation is None else "the generation"


def _clock(at: str) -> str:
    """A time on this machine's clock."""
    return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M:%S}"
