"""Which DAG files may be executed ahead of their tasks: what a process is told, as time goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.local.learning.executing import Executing
from airflow_provider_air_executor.engines.local.learning.report import Report, WatchReport
from airflow_provider_air_executor.system.stamps import are_same, stamps

KEY, SLOW = "dags/a.py", 0.04
WATCH = {"watch": True}
MANY: dict[str, list[int]] = {f"/{number}": [] for number in range(101)}


class Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tested(clock: Clock) -> Executing:
    return Executing(clock)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "a.py"
    found.write_text("")
    return found


def test_a_file_is_watched_when_two_tasks_of_it_come_soon_one_after_the_other(tested: Executing, clock: Clock) -> None:
    assert tested.hint(KEY, SLOW, 1) == {}
    clock.now += 60
    assert tested.hint(KEY, SLOW, 1) == {}
    clock.now += 1
    assert tested.hint(KEY, SLOW, 1) == WATCH
    assert tested.hint(KEY, SLOW, 1) == {}  # the report is waited for
    clock.now += 55
    tested.hint(KEY, SLOW, 1)
    clock.now += 6
    assert tested.hint(KEY, SLOW, 1) == WATCH  # it has not come


def test_a_file_that_takes_no_time_is_not_executed_ahead(tested: Executing) -> None:
    assert [tested.hint(KEY, 0.004, 1) for _ in range(3)] == [{}] * 3


def test_a_file_that_may_be_shared_is_executed_ahead_as_long_as_it_is_used_often(
    tested: Executing, clock: Clock, path: Path
) -> None:
    tested.hint(KEY, SLOW, 1), tested.hint(KEY, SLOW, 1)
    files = stamps([str(path)])
    tested.take(WatchReport(KEY, "", files))
    assert tested.describe(KEY) == "yes"
    assert tested.hint(KEY, SLOW, 1) == {"files": files, "seconds": SLOW, "after": 0}
    assert tested.hint(KEY, SLOW, 30) == {"files": files, "seconds": SLOW, "after": 3}
    clock.now += 11
    assert tested.hint(KEY, SLOW, 1) == {}
    assert tested.hint(KEY, SLOW, 1) == {"files": files, "seconds": SLOW, "after": 0}


def test_a_file_that_has_changed_is_watched_at_once(tested: Executing, path: Path) -> None:
    tested.hint(KEY, SLOW, 1), tested.hint(KEY, SLOW, 1)
    tested.take(WatchReport(KEY, "", stamps([str(path)])))
    tested.take(WatchReport(KEY, "", {}))  # a process that has executed it says so
    assert tested.describe(KEY) == ""
    assert tested.hint(KEY, SLOW, 1) == WATCH


def test_a_file_that_may_not_be_shared_is_watched_again_when_it_has_changed(
    tested: Executing, clock: Clock, path: Path
) -> None:
    tested.hint(KEY, SLOW, 1), tested.hint(KEY, SLOW, 1)
    tested.take(WatchReport(KEY, "it prints", stamps([str(path)])))
    assert tested.describe(KEY) == "no: it prints"
    assert tested.hint(KEY, SLOW, 1) == {}
    path.write_text("# another one")
    assert tested.hint(KEY, SLOW, 1) == {}  # it is not looked at with each task
    clock.now += 61
    tested.hint(KEY, SLOW, 1)
    assert tested.hint(KEY, SLOW, 1) == WATCH


def test_a_file_is_watched_again_after_a_day(tested: Executing, clock: Clock, path: Path) -> None:
    tested.hint(KEY, SLOW, 1), tested.hint(KEY, SLOW, 1)
    tested.take(WatchReport(KEY, "", stamps([str(path)])))
    clock.now += 86401
    tested.hint(KEY, SLOW, 1)
    assert tested.hint(KEY, SLOW, 1) == WATCH


def test_a_report_about_a_file_without_tasks_is_ignored(tested: Executing, path: Path) -> None:
    tested.take(WatchReport(KEY, "", stamps([str(path)])))
    assert tested.describe(KEY) == ""


def test_as_many_files_are_kept_as_there_is_room_for(tested: Executing, path: Path) -> None:
    tested.hint(KEY, SLOW, 1), tested.hint(KEY, SLOW, 1)
    tested.take(WatchReport(KEY, "", stamps([str(path)])))
    for number in range(1000):
        tested.hint(f"dags/{number}.py", SLOW, 1)
    assert tested.describe(KEY) == ""


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {"/a": None},
        {"/a": [1, 2]},
        {"/a": [1, 2, "3"]},
        {"/a": [True, 1, 1]},
        MANY,
    ],
)
def test_a_report_with_other_stamps_says_that_the_file_is_to_be_watched_anew(files: object) -> None:
    found = WatchReport.parse(json.dumps({"file": KEY, "why_not": "", "files": files}).encode())
    assert found == WatchReport(KEY, "", {})


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"file": "", "why_not": ""}', b'{"file": "a", "why_not": 1}'])
def test_what_is_no_report_is_none(data: bytes) -> None:
    assert WatchReport.parse(data) is None


def test_the_two_kinds_of_reports_are_told_apart() -> None:
    watched = json.dumps(
        {"file": KEY, "why_not": "it\nprints" + 1000 * "x", "files": {"/a": [1, 2, 3], "/b": []}}
    ).encode()
    found = WatchReport.parse(watched)
    assert found is not None
    assert (found.why_not[:9], len(found.why_not)) == ("it prints", 300)
    assert found.files == {"/a": [1, 2, 3], "/b": []}
    assert WatchReport.parse(json.dumps({"file": KEY, "roots": {}}).encode()) is None
    assert Report.parse(json.dumps({"file": KEY, "roots": {}}).encode()) is not None


def test_a_file_that_is_gone_or_replaced_is_not_the_same(path: Path) -> None:
    before = stamps([str(path), str(path.parent / "none")])
    assert are_same(before)
    path.with_name("b.py").write_text("")
    path.with_name("b.py").rename(path)
    assert not are_same(before)
    path.unlink()
    assert not are_same(before)
    assert are_same(stamps([str(path)]))
