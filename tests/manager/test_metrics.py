"""The metrics of a manager as text."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from airflow_provider_air_executor.jobs.manager_info import COUNTERS, ManagerInfo, OldestWaiting, Slots
from airflow_provider_air_executor.manager.metrics import render

BEGAN = datetime(2026, 11, 29, 12, tzinfo=UTC)
INFO = ManagerInfo(
    7,
    version="1.2",
    started_at=BEGAN,
    host="here",
    paused=True,
    slots={"local": Slots(1, 4), "slurm": Slots(0, 1000)},
    queued=3,
    oldest_waiting=OldestWaiting("j", BEGAN),
    jobs={"waiting": 2, "working": 1},
    counters={name: number + 0.5 * name.endswith("seconds") for number, name in enumerate(COUNTERS)},
    idle=False,
)
_LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (\d+(?:\.\d+)?(?:e\+\d+)?)')
_HEAD = re.compile(r"# (TYPE|UNIT|HELP) ([a-z_]+) (.+)")


def parsed(text: str) -> dict[tuple[str, str], float]:
    """The samples; all of the text must be as OpenMetrics wants it."""
    *lines, end = text.removesuffix("\n").split("\n")
    assert end == "# EOF"
    found: dict[tuple[str, str], float] = {}
    families: dict[str, str] = {}
    family = ""
    for line in lines:
        head = _HEAD.fullmatch(line)
        if head is not None:
            what, name, rest = head.groups()
            if what == "TYPE":
                assert name not in families
                families[name], family = rest, name
            assert name == family
            assert what != "UNIT" or name.endswith(f"_{rest}")
            continue
        sample = _LINE.fullmatch(line)
        assert sample is not None, line
        suffix = {"counter": "_total", "info": "_info", "gauge": ""}[families[family]]
        assert sample[1] == family + suffix, line
        found[sample[1].removeprefix("air_executor_"), sample[2] or ""] = float(sample[3])
    return found


def test_all_that_is_published_is_a_metric() -> None:
    found = parsed(render(INFO))
    counters = {(f"{name}_total", ""): value for name, value in INFO.counters.items()}
    assert found == counters | {
        ("manager_info", 'version="1.2",host="here",pid="7"'): 1,
        ("start_time_seconds", ""): BEGAN.timestamp(),
        ("paused", ""): 1,
        ("slots_used", 'runner="local"'): 1,
        ("slots_used", 'runner="slurm"'): 0,
        ("slots", 'runner="local"'): 4,
        ("slots", 'runner="slurm"'): 1000,
        ("queued_tasks", ""): 3,
        ("oldest_waiting_time_seconds", ""): BEGAN.timestamp(),
        ("jobs", 'state="waiting"'): 2,
        ("jobs", 'state="working"'): 1,
    }


def test_a_manager_of_which_little_is_known() -> None:
    found = parsed(render(ManagerInfo(7)))
    assert found == {
        ("manager_info", 'version="",host="",pid="7"'): 1,
        ("paused", ""): 0,
        ("queued_tasks", ""): 0,
    }


def test_texts_are_escaped() -> None:
    text = render(ManagerInfo(7, host='a"b\\c\nd'))
    assert 'host="a\\"b\\\\c\\nd"' in text
    parsed(text)
