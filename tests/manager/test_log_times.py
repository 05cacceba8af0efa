"""The manager notes when logs grow, and where the part of each attempt begins."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs import log_times
from airflow_provider_air_executor.jobs.models import JobState
from tests.support.jobs import task
from tests.support.stepped_manager import SteppedManager
from tests.support.system_calls import Trouble
from tests.support.waiting import until, wait_until


def go_rounds(stepped: SteppedManager, number: int = 3) -> None:
    for _ in range(number):
        stepped.clock.passed += 1.0
        stepped.go_round()


def has_printed(stepped: SteppedManager, size: int) -> bool:
    stepped.go_round()
    path = stepped.store.paths("j").log("t")
    return path.exists() and path.stat().st_size == size


def notes_of(stepped: SteppedManager) -> list[list[str]]:
    path = stepped.store.paths("j").log_times("t")
    return [line.split(" ") for line in path.read_text().splitlines()] if path.exists() else []


def printing(tmp_path: Path, *texts: str) -> str:
    """A line that prints texts, each when a file is there."""
    return "; ".join(f"{until(tmp_path / str(number))}; printf {text}" for number, text in enumerate(texts))


def test_each_growth_is_noted_once(stepped: SteppedManager, tmp_path: Path) -> None:
    stepped.start_manager()
    line = printing(tmp_path, "first", "second", "third")
    stepped.submit("j", [task("t", f"{line}; {until(tmp_path / 'end')}")], 1)
    wait_until(lambda: stepped.go_round() or stepped.something_runs(), what="it runs")
    go_rounds(stepped)
    assert notes_of(stepped) == [], "there is nothing yet"
    for number, size in enumerate((5, 11)):
        (tmp_path / str(number)).touch()
        wait_until(lambda size=size: has_printed(stepped, size), what="it has printed something")
        go_rounds(stepped)
    assert [(offset, attempt) for _, offset, attempt in notes_of(stepped)] == [("5", "1"), ("11", "1")]
    path = stepped.store.paths("j").log_times("t")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "2").touch()
    (tmp_path / "end").touch()
    assert stepped.let_all_end()
    times = log_times.read(stepped.store.paths("j"), "t")
    assert times.attempts() == [(1, 0, 16)]
    found = [times.time_of(offset) for offset in (0, 5, 15)]
    assert found == sorted(found)
    ended = stepped.store.paths("j").log("t").stat().st_mtime
    assert found[-1] is not None
    assert abs(found[-1].timestamp() - ended) < 0.001


def test_a_short_first_attempt_has_no_file(stepped: SteppedManager) -> None:
    stepped.start_manager()
    stepped.submit("j", [task("t", "echo text")], 1)
    wait_until(
        lambda: stepped.go_round() or stepped.store.get_job("j").state is JobState.COMPLETED, what="it has ended"
    )
    go_rounds(stepped)
    assert os.listdir(stepped.store.paths("j").logs) == ["t.log"]
    assert log_times.read(stepped.store.paths("j"), "t").attempts() == [(1, 0, 5)]
    assert not stepped.manager._limits.log_times._watched


def test_the_parts_of_short_attempts_are_known(stepped: SteppedManager) -> None:
    stepped.start_manager()
    stepped.submit("j", [task("t", "printf $AIR_EXECUTOR_ATTEMPT$AIR_EXECUTOR_ATTEMPT; exit 1", retries=2)], 1)
    assert stepped.let_all_end()
    paths = stepped.store.paths("j")
    times = log_times.read(paths, "t")
    assert times.attempts() == [(1, 0, 2), (2, 2, 4), (3, 4, 6)]
    assert paths.log("t").read_text() == "112233"


def test_the_next_manager_goes_on(stepped: SteppedManager, tmp_path: Path) -> None:
    stepped.start_manager()
    line = printing(tmp_path, "first", "second")
    stepped.submit("j", [task("t", f"{line}; {until(tmp_path / 'end')}")], 1)
    wait_until(lambda: stepped.go_round() or stepped.something_runs(), what="it runs")
    stepped.kill_manager()
    (tmp_path / "0").touch()
    wait_until(stepped.start_manager, what="a child of the one before has closed the lock")
    wait_until(lambda: has_printed(stepped, 5), what="it has printed something")
    go_rounds(stepped)
    (tmp_path / "1").touch()
    wait_until(lambda: has_printed(stepped, 11), what="it has printed more")
    go_rounds(stepped)
    (tmp_path / "end").touch()
    assert stepped.let_all_end()
    assert [offset for _, offset, _ in notes_of(stepped)] == ["5", "11"]


def test_notes_become_rarer_when_there_are_many(stepped: SteppedManager, tmp_path: Path) -> None:
    stepped.start_manager()
    stepped.submit("j", [task("t", until(tmp_path / "end"))], 1)
    wait_until(lambda: stepped.go_round() or stepped.something_runs(), what="it runs")
    go_rounds(stepped)
    (known,) = stepped.manager._limits.log_times._watched.values()
    known.notes = 100_000
    for number in range(60):
        with stepped.store.paths("j").log("t").open("a") as file:
            file.write(str(number))
        go_rounds(stepped, 1)
        if number == 15:
            (tmp_path / "end").touch()
    assert 1 <= len(notes_of(stepped)) <= 3


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["open", "lstat"])
def test_what_cannot_be_noted_is_left_out(stepped: SteppedManager, tmp_path: Path, call: str, error: int) -> None:
    stepped.start_manager()
    stepped.submit("j", [task("t", f"echo text; {until(tmp_path / 'end')}; exit 1", retries=1)], 1)
    wait_until(lambda: has_printed(stepped, 5), what="it has printed something")
    stepped.faults.trouble = Trouble("manager.log_times", call, error)
    go_rounds(stepped)
    assert stepped.faults.failed
    (tmp_path / "end").touch()
    assert stepped.let_all_end()
    assert [attempt.number for attempt in stepped.store.get_attempts("j")] == [1, 2]
    assert not stepped.lines.lines


def test_a_link_in_the_place_of_the_file_is_not_followed(stepped: SteppedManager, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    stepped.start_manager()
    stepped.submit("j", [task("t", f"echo text; {until(tmp_path / 'end')}")], 1)
    stepped.store.paths("j").log_times("t").symlink_to(tmp_path / "precious")
    wait_until(lambda: has_printed(stepped, 5), what="it has printed something")
    go_rounds(stepped)
    (tmp_path / "end").touch()
    assert stepped.let_all_end()
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_slow_file_system_does_not_keep_the_manager_from_its_work(
    stepped: SteppedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has not been looked at in time has its turn next."""
    looked: list[str] = []

    def slow(path: str) -> os.stat_result:
        looked.append(path)
        raise FileNotFoundError(path)

    stepped.start_manager()
    assert stepped.manager is not None
    noted = stepped.manager._limits.log_times
    module = "airflow_provider_air_executor.manager.log_times"
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=lambda: 0.02 * len(looked)))
    for number in range(20):
        noted.watch(Attempt.of("j", str(number), 1))
    noted._look()
    monkeypatch.setattr(f"{module}.os.lstat", slow)
    noted._look()
    assert 1 <= len(looked) < 10
    while len(looked) < 20:
        noted._look()
    assert len({*looked[:20]}) == 20
