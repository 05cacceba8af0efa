"""A manager is paused, goes on, and gets more or fewer slots while it runs."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import inbox, manager_control, manager_info
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo, Slots
from airflow_provider_air_executor.jobs.models import JobState, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended, task
from tests.support.managers import Managers
from tests.support.stepped_manager import LIMIT, SteppedManager
from tests.support.system_calls import Trouble
from tests.support.waiting import until, wait_until


def go_rounds(stepped: SteppedManager, number: int = 3) -> None:
    for _ in range(number):
        stepped.clock.passed += 1.0
        stepped.go_round()


def submit(stepped: SteppedManager, name: str, tasks: int = 1, *, waits: bool = False) -> None:
    stepped.submit(name, [{"id": f"t{n}", **stepped.command(waits=waits)} for n in range(tasks)], tasks)


def info(stepped: SteppedManager) -> ManagerInfo:
    go_rounds(stepped, 1)
    found = manager_info.load(stepped.store)
    assert found is not None
    return found


def test_a_paused_manager_starts_nothing_and_lets_go_on_what_runs(stepped: SteppedManager) -> None:
    stepped.start_manager()
    submit(stepped, "runs", waits=True)
    wait_until(lambda: info(stepped).slots["local"].used, what="it runs")
    manager_control.set_paused(stepped.store, True)
    submit(stepped, "waits")
    go_rounds(stepped, 5)
    assert info(stepped).paused
    assert info(stepped).queued == 1

    def has_ended() -> bool:
        stepped.open_gate()
        go_rounds(stepped, 1)
        return stepped.store.get_job("runs").state is JobState.COMPLETED

    wait_until(has_ended, what="what ran has ended")
    go_rounds(stepped, 30)
    assert stepped.store.get_job("waits").state is JobState.WAITING
    manager_control.set_paused(stepped.store, False)
    assert stepped.let_all_end()
    assert stepped.store.get_job("waits").state is JobState.COMPLETED
    assert not info(stepped).paused


def test_a_pause_holds_for_the_next_manager(stepped: SteppedManager) -> None:
    manager_control.set_paused(stepped.store, True)
    manager_control.set_slots(stepped.store, 7)
    wait_until(stepped.start_manager, what="it runs")
    submit(stepped, "j")
    go_rounds(stepped, 5)
    assert stepped.store.get_job("j").state is JobState.WAITING
    assert info(stepped).slots == {"local": Slots(0, 7)}
    stepped.kill_manager()
    stepped.start_manager()
    go_rounds(stepped, 5)
    assert stepped.store.get_job("j").state is JobState.WAITING


def test_a_waiting_job_is_cancelled_during_a_pause(stepped: SteppedManager) -> None:
    manager_control.set_paused(stepped.store, True)
    stepped.start_manager()
    submit(stepped, "j")
    go_rounds(stepped)
    inbox.cancel(stepped.store, "j")
    go_rounds(stepped, 5)
    assert stepped.store.get_job("j").state is JobState.FAILED


def test_slots_are_added_and_taken_away_at_run_time(stepped: SteppedManager) -> None:
    stepped.start_manager()
    submit(stepped, "j", 12, waits=True)
    wait_until(lambda: info(stepped).slots["local"] == Slots(LIMIT, LIMIT), what="it is full")
    manager_control.set_slots(stepped.store, 5)
    wait_until(lambda: info(stepped).slots["local"] == Slots(5, 5), what="there is more room")
    manager_control.set_slots(stepped.store, 1)
    go_rounds(stepped)
    assert info(stepped).slots["local"] == Slots(5, 1), "what runs goes on"
    assert info(stepped).queued == 7

    def runs() -> int:
        stepped.open_gate()
        return info(stepped).slots["local"].used

    wait_until(lambda: runs() <= 1, what="most have ended")
    seen = {runs() for _ in range(20)}
    assert max(seen) <= 1
    manager_control.set_slots(stepped.store, None)
    assert stepped.let_all_end()
    assert info(stepped).slots["local"] == Slots(0, LIMIT)
    assert all(found.status is TaskStatus.COMPLETED for found in stepped.store.get_tasks("j"))


def test_a_file_that_is_not_valid_is_said_once_and_what_held_before_holds(stepped: SteppedManager) -> None:
    stepped.start_manager()
    manager_control.set_slots(stepped.store, 5)
    assert info(stepped).slots["local"].limit == 5
    manager_control.path_of(stepped.store).write_text('{"slots": {"local": "many"}}')
    go_rounds(stepped, 5)
    assert info(stepped).slots["local"].limit == 5
    assert len([line for line in stepped.lines.lines if "manager.control.json" in line]) == 1
    manager_control.path_of(stepped.store).unlink()
    go_rounds(stepped, 5)
    assert info(stepped).slots["local"].limit == LIMIT


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
def test_a_file_that_cannot_be_read_now_is_read_later(stepped: SteppedManager, error: int) -> None:
    stepped.start_manager()
    submit(stepped, "j", waits=True)
    wait_until(lambda: info(stepped).slots["local"].used, what="it runs")
    stepped.faults.trouble = Trouble("manager.control", "lstat", error)
    manager_control.set_slots(stepped.store, 5)
    go_rounds(stepped, 3)
    assert stepped.faults.failed
    assert info(stepped).slots["local"].limit == LIMIT
    stepped.faults.trouble = None
    go_rounds(stepped, 3)
    assert info(stepped).slots["local"].limit == 5
    assert not stepped.lines.lines


def test_a_manager_that_sleeps_hears_it_at_once(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    """It would look at everything only after a long time."""
    manager_control.set_paused(store, True)
    managers.start("--poll-interval", "3600")
    store.submit("j", [task("t", until(tmp_path / "go"))])
    wait_until(lambda: (found := manager_info.load(store)) and found.paused, what="it says that it is paused")
    manager_control.set_paused(store, False)
    (tmp_path / "go").touch()
    assert ended(store, "j").state is JobState.COMPLETED


def test_nothing_starts_until_it_is_known_whether_the_manager_is_paused(stepped: SteppedManager) -> None:
    manager_control.set_paused(stepped.store, True)
    stepped.faults.trouble = Trouble("manager.control", "lstat", errno.EIO)
    stepped.start_manager()
    submit(stepped, "j")
    go_rounds(stepped, 5)
    assert stepped.faults.failed
    assert stepped.store.get_job("j").state is JobState.WAITING
    (line,) = stepped.lines.lines
    assert line.startswith("no task is started until it is known whether manager.control.json says so")
    stepped.faults.trouble = None
    go_rounds(stepped, 5)
    assert stepped.store.get_job("j").state is JobState.WAITING, "it is paused"
    manager_control.set_paused(stepped.store, False)
    assert stepped.let_all_end()


@pytest.mark.parametrize("content", ["", '{"paused": 1}', None])
def test_tasks_start_if_there_is_nothing_valid_to_be_read_at_last(stepped: SteppedManager, content: str | None) -> None:
    stepped.store.create_directories()
    if content is not None:
        manager_control.path_of(stepped.store).write_text(content)
    stepped.faults.trouble = Trouble("manager.control", "lstat", errno.EIO)
    stepped.start_manager()
    submit(stepped, "j")
    go_rounds(stepped, 3)
    assert stepped.store.get_job("j").state is JobState.WAITING
    stepped.faults.trouble = None
    assert stepped.let_all_end()


def test_a_file_that_cannot_be_read_is_tried_once_a_second(stepped: SteppedManager) -> None:
    stepped.start_manager()
    stepped.faults.trouble = Trouble("manager.control", "lstat", errno.EIO)
    manager_control.set_slots(stepped.store, 5)
    for _ in range(100):
        stepped.go_round()
    assert stepped.faults.failed < 50
