"""What the manager publishes of itself: rarely, cheaply, and never in the way of its work."""

from __future__ import annotations

import os
import shutil
import stat

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.jobs import files, manager_info
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo, Slots
from airflow_provider_air_executor.jobs.models import JobState
from tests.support.jobs import task
from tests.support.stepped_manager import LIMIT, SteppedManager
from tests.support.waiting import wait_until


def info(stepped: SteppedManager, seconds: float = 1.0) -> ManagerInfo:
    """What is published when some time has passed."""
    stepped.clock.passed += seconds
    stepped.go_round()
    found = manager_info.load(stepped.store)
    assert found is not None
    return found


def submit(stepped: SteppedManager, name: str, tasks: int = 1, *, waits: bool = True) -> None:
    stepped.submit(name, [{"id": f"t{n}", **stepped.command(waits=waits)} for n in range(tasks)], tasks)


def test_a_new_manager_is_idle(stepped: SteppedManager) -> None:
    stepped.start_manager()
    found = info(stepped)
    assert (found.pid, found.version, found.host) == (os.getpid(), __version__, os.uname().nodename)
    assert found.slots == {"local": Slots(0, LIMIT)}
    assert (found.idle, found.paused, found.queued, found.oldest_waiting) == (True, False, 0, None)
    assert found.jobs == {"waiting": 0, "working": 0}
    assert set(found.counters) == set(manager_info.COUNTERS)
    assert not any(found.counters.values())
    assert stat.S_IMODE(manager_info.path_of(stepped.store).stat().st_mode) == 0o600


def test_how_full_it_is_and_what_has_waited_longest(stepped: SteppedManager) -> None:
    stepped.start_manager()
    submit(stepped, "first", LIMIT + 1)
    wait_until(lambda: info(stepped).slots["local"].used == LIMIT, what="all slots are used")
    submit(stepped, "second", 3)
    submit(stepped, "third")
    wait_until(lambda: info(stepped).jobs["waiting"] == 2, what="two jobs wait")
    found = info(stepped)
    assert (found.idle, found.queued, found.jobs) == (False, 1 + 3 + 1, {"waiting": 2, "working": 1})
    assert found.oldest_waiting is not None
    assert found.oldest_waiting.job == "second"
    assert found.oldest_waiting.since == stepped.store.get_job("second").updated_at
    assert found.counters["tasks_started"] == LIMIT


def test_tasks_that_their_own_job_holds_back_do_not_wait_for_room(stepped: SteppedManager) -> None:
    stepped.start_manager()
    stepped.submit("j", [{"id": f"t{n}", **stepped.command(waits=True)} for n in range(5)], 1)
    wait_until(lambda: info(stepped).slots["local"].used == 1, what="one of its tasks runs")
    assert info(stepped).queued == 0


def test_what_has_happened_is_counted(stepped: SteppedManager) -> None:
    stepped.start_manager()
    stepped.submit("good", [task("a"), task("b", after="a")], 1)
    stepped.submit("bad", [task("a", "exit 3", retries=1), task("b", after="a")], 1)
    stepped.submit("wrong", [task("a", "exit 3")], 1)
    stepped.store.paths("wrong").tasks.write_text("[]")
    assert stepped.let_all_end()
    found = info(stepped)
    assert found.idle
    seconds = {name: found.counters[name] for name in ("job_wait_seconds", "task_seconds")}
    assert all(seconds.values()), seconds
    assert {name: number for name, number in found.counters.items() if name not in seconds} == {
        "jobs_started": 2,
        "jobs_completed": 1,
        "jobs_failed": 2,
        "tasks_started": 4,
        "tasks_completed": 2,
        "tasks_failed": 1,
        "tasks_retried": 1,
    }


def test_it_is_not_written_while_nothing_changes(stepped: SteppedManager) -> None:
    stepped.start_manager()
    info(stepped)
    before = written(stepped)
    for _ in range(10):
        info(stepped)
    assert written(stepped) == before


def test_it_is_written_once_a_second_at_most(stepped: SteppedManager) -> None:
    stepped.start_manager()
    submit(stepped, "j")
    began = stepped.clock.monotonic() + 1.0
    info(stepped)
    before = written(stepped)
    submit(stepped, "k")
    while stepped.clock.monotonic() < began + 1.0:
        stepped.go_round()
        was_early = stepped.clock.monotonic() < began + 1.0
        assert not was_early or written(stepped) == before
    wait_until(lambda: info(stepped).jobs["working"] == 2, what="it is published then")


def written(stepped: SteppedManager) -> files.Stamp | None:
    return files.stamp(manager_info.path_of(stepped.store))


def test_where_it_cannot_be_written_jobs_run_all_the_same(stepped: SteppedManager) -> None:
    stepped.store.create_directories()
    (manager_info.path_of(stepped.store) / "in the way").mkdir(parents=True)
    stepped.start_manager()
    submit(stepped, "j")
    assert stepped.let_all_end()
    assert stepped.store.get_job("j").state is JobState.COMPLETED
    assert not stepped.lines.lines
    shutil.rmtree(manager_info.path_of(stepped.store))
    assert info(stepped, 5).counters["jobs_completed"] == 1


def test_another_manager_begins_anew(stepped: SteppedManager) -> None:
    stepped.start_manager()
    submit(stepped, "j", waits=False)
    assert stepped.let_all_end()
    assert info(stepped).counters["jobs_completed"] == 1
    stepped.kill_manager()
    assert manager_info.load(stepped.store) is None
    stepped.start_manager()
    assert info(stepped).counters["jobs_completed"] == 0
