"""What ``air-executor info --preload`` prints of what a manager has published."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_air_executor.jobs.preload_info import in_words
from airflow_provider_air_executor.manager.cli import preloaded

LONG = "bundle/a_directory_with_a_long_name/and_another_one_below_it/a_file_that_has_a_long_name_too.py"


@pytest.fixture(autouse=True)
def nothing_is_said_of_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


def dag_file(name: str, tasks: float, milliseconds: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "tasks_per_day": tasks,
        "parse_ms": milliseconds,
        "changes": [],
        "ahead": "",
        "where": "base",
        **more,
    }


def published(**more: Any) -> dict[str, Any]:
    """What a manager publishes."""
    server = {"number": 1, "since": "2026-11-22T10:16:33.789000+00:00", "ms": 12, "mb": 0.5}
    generation = {**server, "pid": 22, "modules": ["yaml", "pandas", "pandas.io", "pandas.io.sql"], "mb": 104.0}
    packages = [("yaml", 9, 1.6, 7.0), ("pandas", 1250, 61.4, 1204.5), ("rich", 40, 3.0, 3.2)]
    learned = {
        "modules": [
            {"name": name, "ms": ms, "mb": mb, "tasks_per_day": tasks, "since": "2026-11-22T10:16:30+00:00"}
            for name, ms, mb, tasks in packages
        ],
        "refused": [{"name": "joblib", "why": "it changes [the] environment", "since": "2026-11-22T10:16:30+00:00"}],
        "waiting": ["httpx", "numpy"],
        "files": [
            dag_file(LONG, 1204.5, 5, ahead="yes", where="generation"),
            dag_file("a.py", 7.0, 1300, changes=["OMP_NUM_THREADS"]),
            dag_file("b.py", 1.0, 1, ahead="no: it prints"),
        ],
        "memory_cap_mb": 512,
    }
    return {
        "pid": 1,
        "fork_server": {**server, "pid": 21, "modules": ["work"]},
        "next_fork_server": None,
        "generation": generation,
        "next_generation": None,
        "earlier": [],
        "learned": learned,
        **more,
    }


def shown(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[str]:
    preloaded.show(found)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_it_is_a_few_aligned_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe no line is folded and nothing is cut; and packages have to wait that the generation does not have."""
    monkeypatch.setattr(preloaded, "_clock", lambda at: at[:19].replace("T", " "))
    assert shown(published(), capsys) == [
        "fork server       21 since 2026-11-22 10:16:33: work (12 ms, 0.5 MB)",
        "generation        22 since 2026-11-22 10:16:33: yaml, pandas (12 ms, 104.0 MB)",
        "",
        "imported ahead (at most 512 MB)",
        "PACKAGE    MS    MB  TASKS A DAY  CHOSEN",
        "yaml        9   1.6          7.0  2026-11-22 10:16:30",
        "pandas   1250  61.4       1204.5  2026-11-22 10:16:30",
        "rich       40   3.0          3.2  2026-11-22 10:16:30, for the next generation",
        "",
        "not imported ahead",
        "PACKAGE  WHY NOT",
        "joblib   it changes [the] environment",
        "",
        "waiting for a trial: httpx, numpy",
        "",
        "DAG files",
        f"{'FILE':{len(LONG)}}  TASKS A DAY  PARSE MS  STARTS FROM                                  EXECUTED AHEAD",
        f"{LONG}       1204.5         5  the generation                               yes",
        f"{'a.py':{len(LONG)}}          7.0      1300  the fork server: it changes OMP_NUM_THREADS  not yet",
        f"{'b.py':{len(LONG)}}          1.0         1  the fork server                              no: it prints",
    ]


def test_on_a_narrow_screen_nothing_is_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = shown(published(), capsys)
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "…" in line]


def test_at_first_there_is_little_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"modules": [], "refused": [], "waiting": [], "files": [], "memory_cap_mb": 512}
    server = {"number": 1, "modules": ["work"]}
    found = published(
        fork_server=server, generation=None, next_generation={"number": 1, "modules": []}, learned=nothing
    )
    assert shown(found, capsys) == [
        "fork server       imports work",
        "next generation   imports nothing",
        "",
        "nothing is imported ahead yet (at most 512 MB)",
    ]


def test_while_there_is_no_generation_no_task_starts_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(published(generation=None), capsys)
    (first,) = [line for line in lines if line.startswith(LONG)]
    assert first.endswith("  the fork server, until there is a generation  yes")
    assert len([line for line in lines if line.endswith(", for the next generation")]) == 3


@pytest.mark.parametrize(("attempts", "tasks"), [(1, "1 task"), (2, "2 tasks")])
def test_those_that_serve_no_more_say_how_long_they_stay(
    capsys: pytest.CaptureFixture[str], attempts: int, tasks: str
) -> None:
    found = published(earlier=[{"pid": 20, "attempts": attempts, "modules": []}], learned=None)
    assert f"earlier           process 20 has {tasks}, and ends with the last of them" in shown(found, capsys)


def test_modules_are_named_by_their_packages() -> None:
    assert in_words(["a", "a.b", "a.b.c", "c.d", "c.d.e"]) == "a, c.d"
    assert in_words(["a.b", "a"]) == "a"
    assert in_words([]) == "nothing"
    assert in_words([f"p{number}" for number in range(6)]) == "p0, p1, p2, p3, p4, p5"
    assert in_words([f"p{number}" for number in range(9)]) == "p0, p1, p2, p3, p4, p5, 3 more"
