"""Which jobs a manager removes by itself, and which ones it keeps."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import completions, files, history, inbox
from airflow_provider_air_executor.jobs.completions import JobCompletions, subscriber_path
from airflow_provider_air_executor.jobs.models import JobState, SubmittedBy, utc_now
from airflow_provider_air_executor.manager.retention import EXECUTOR_LABEL
from tests.support.jobs import publish_job, task
from tests.support.stepped_manager import SteppedManager
from tests.support.system_calls import Trouble
from tests.support.waiting import until, wait_until

HOURS, DAYS = 3600, 86_400


@pytest.fixture
def stepped() -> Iterator[SteppedManager]:
    found = SteppedManager()
    found.settings = {"idle_timeout": None}
    yield found
    found.close()


def put(stepped: SteppedManager, name: str, ago: float, *, failed: bool = False, **more: Any) -> None:
    """A job that ended so many seconds ago."""
    stepped.store.submit(name, ["true"], **more)
    ended = utc_now() - timedelta(seconds=ago)
    state = JobState.FAILED if failed else JobState.COMPLETED
    publish_job(stepped.store, stepped.store.get_job(name).evolve(state=state, updated_at=ended, attempt=1))
    for path in (stepped.store.paths(name).tasks, stepped.store.paths(name).state):
        os.utime(path, (ended.timestamp(), ended.timestamp()))


def kept(stepped: SteppedManager, **settings: Any) -> list[str]:
    """The jobs that are left when a manager with these settings has run for some minutes."""
    stepped.settings |= settings
    wait_until(stepped.start_manager, what="it runs")
    sweep(stepped)
    return stepped.store.job_names()


def sweep(stepped: SteppedManager) -> None:
    for _ in range(8):
        stepped.clock.passed += 31
        for _ in range(3):
            stepped.go_round()
        while stepped.manager.shared.turns.poll_after is not None:
            stepped.go_round()


def test_by_default_nothing_is_removed(stepped: SteppedManager) -> None:
    put(stepped, "old", 5000 * DAYS)
    assert kept(stepped) == ["old"]


def test_by_age(stepped: SteppedManager) -> None:
    put(stepped, "new", 9 * DAYS)
    put(stepped, "old", 11 * DAYS)
    put(stepped, "failed-new", 19 * DAYS, failed=True)
    put(stepped, "failed-old", 21 * DAYS, failed=True)
    stepped.store.submit("waits", [until(stepped.directory / "never")])
    assert kept(stepped, keep_days=10, keep_failed_days=20) == ["failed-new", "new", "waits"]
    assert {past.name: past.state for past in history.read(stepped.store)} == {
        "old": "completed",
        "failed-old": "failed",
    }


def test_failed_jobs_are_kept_as_long_as_others_unless_something_else_is_said(stepped: SteppedManager) -> None:
    put(stepped, "new", 9 * DAYS, failed=True)
    put(stepped, "old", 11 * DAYS, failed=True)
    assert kept(stepped, keep_days=10) == ["new"]


def test_failed_jobs_alone(stepped: SteppedManager) -> None:
    put(stepped, "completed", 11 * DAYS)
    put(stepped, "failed", 11 * DAYS, failed=True)
    assert kept(stepped, keep_failed_days=10) == ["completed"]


def test_by_number_the_oldest_completed_ones_go_first(stepped: SteppedManager) -> None:
    for number in range(4):
        put(stepped, f"completed{number}", (9 - number) * DAYS)
        put(stepped, f"failed{number}", (19 - number) * DAYS, failed=True)
    assert kept(stepped, keep_jobs=5) == ["completed3", "failed0", "failed1", "failed2", "failed3"]


def test_failed_ones_go_when_there_are_too_many_of_them_alone(stepped: SteppedManager) -> None:
    for number in range(3):
        put(stepped, f"completed{number}", (9 - number) * DAYS)
        put(stepped, f"failed{number}", (19 - number) * DAYS, failed=True)
    assert kept(stepped, keep_jobs=2) == ["failed1", "failed2"]


def test_none_is_removed_a_moment_after_its_end(stepped: SteppedManager) -> None:
    put(stepped, "new", 0.5 * HOURS)
    put(stepped, "newer", 0)
    assert kept(stepped, keep_jobs=1, keep_days=0.001) == ["new", "newer"]
    stepped.clock.passed += HOURS
    sweep(stepped)
    assert stepped.store.job_names() == []


def test_an_airflow_task_has_a_day_to_read_the_end_of_its_job(stepped: SteppedManager) -> None:
    owner = SubmittedBy(dag_id="d", run_id="r", task_id="t")
    put(stepped, "of-airflow", 20 * HOURS, submitted_by=owner)
    put(stepped, "of-a-user", 20 * HOURS)
    assert kept(stepped, keep_days=0.1) == ["of-airflow"]
    stepped.clock.passed += 5 * HOURS
    sweep(stepped)
    assert stepped.store.job_names() == []


def test_a_completion_that_a_subscriber_has_not_acknowledged_is_kept_for_a_week(stepped: SteppedManager) -> None:
    store = stepped.store
    store.create_directories()
    path = subscriber_path(store, "reader")
    path.parent.mkdir()
    path.touch()
    since = utc_now().timestamp() - 6 * DAYS
    os.utime(path, (since, since))
    for name, days in (("before", 6.5), ("unseen", 5.0), ("seen", 5.0)):
        put(stepped, name, days * DAYS)
    JobCompletions(store, "reader", interval=1).ack(store.get_job("seen"))
    assert kept(stepped, keep_days=1) == ["unseen"]
    stepped.clock.passed += 3 * DAYS
    sweep(stepped)
    assert store.job_names() == []


def test_the_jobs_of_the_executor_are_left_to_it(stepped: SteppedManager) -> None:
    put(stepped, "of-the-executor", 100 * DAYS, labels={EXECUTOR_LABEL: "task"})
    put(stepped, "other", 100 * DAYS)
    assert kept(stepped, keep_days=1, keep_jobs=1) == ["of-the-executor"]


def test_a_job_that_is_retried_at_that_moment_is_kept(stepped: SteppedManager, tmp_path: Path) -> None:
    stepped.store.submit("j", [task("t", f"test -e {tmp_path / 'good'}")])
    assert kept(stepped, keep_jobs=1, keep_failed_days=1) == ["j"]
    wait_until(lambda: stepped.go_round() or stepped.store.get_job("j").state is JobState.FAILED, what="it has failed")
    stepped.clock.passed += 2 * DAYS
    (tmp_path / "good").touch()
    inbox.retry(stepped.store, "j")
    sweep(stepped)
    assert stepped.let_all_end()
    assert stepped.store.get_job("j").state is JobState.COMPLETED


def test_its_name_is_free_at_once(stepped: SteppedManager) -> None:
    put(stepped, "j", 11 * DAYS)
    assert kept(stepped, keep_days=1) == []
    stepped.submit("j", [{"id": "t", **stepped.command(waits=False)}], 1)
    assert stepped.let_all_end()
    assert stepped.store.get_job("j").state is JobState.COMPLETED


def test_many_are_removed_some_at_a_time(stepped: SteppedManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_air_executor.manager.retention._MOST", 2)
    for number in range(7):
        put(stepped, f"j{number}", (20 - number) * DAYS)
    assert kept(stepped, keep_days=1, keep_jobs=3) == []
    assert [past.name for past in history.read(stepped.store)] == [f"j{number}" for number in (6, 5, 4, 3, 2, 1, 0)]


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", ["rename", "scandir", "open"])
def test_what_cannot_be_removed_now_is_removed_later(stepped: SteppedManager, call: str, error: int) -> None:
    put(stepped, "j", 11 * DAYS)
    stepped.settings |= {"keep_days": 1}
    wait_until(stepped.start_manager, what="it runs")
    stepped.go_round()
    stepped.faults.trouble = Trouble("manager.retention" if call != "scandir" else "jobs.completions", call, error)
    sweep(stepped)
    stepped.faults.trouble = None
    sweep(stepped)
    sweep(stepped)
    assert stepped.store.job_names() == []
    assert not stepped.lines.repeated


def test_a_job_that_somebody_writes_into_is_left_alone(stepped: SteppedManager) -> None:
    put(stepped, "j", 11 * DAYS)
    stepped.settings |= {"keep_days": 1}
    wait_until(stepped.start_manager, what="it runs")
    stepped.go_round()
    path = stepped.store.paths("j").state
    path.write_bytes(path.read_bytes()[:30])
    before = files.stamp(path)
    stepped.manager._retention._sweep()
    assert files.stamp(path) == before


def test_a_job_stays_that_somebody_has_asked_to_run_again(stepped: SteppedManager) -> None:
    """The request was not noticed yet, for the file system does not notify."""
    stepped.settings = {"idle_timeout": None, "keep_days": 1, "poll_interval": 3600}
    put(stepped, "asked", 2 * DAYS, failed=True)
    put(stepped, "other", 2 * DAYS, failed=True)
    wait_until(stepped.start_manager, what="it runs")
    stepped.go_round()
    assert stepped.manager is not None
    stepped.manager.changes.is_notified = False
    inbox.retry(stepped.store, "asked")
    sweep(stepped)
    assert stepped.store.job_names() == ["asked"]
    assert not stepped.lines.lines
    stepped.manager.changes.next_pass = 0.0
    assert stepped.let_all_end()
    assert stepped.store.get_job("asked").attempt == 2


def test_other_subscribers_count_while_one_gets_another_name(
    stepped: SteppedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped.store.create_directories()
    subscriber_path(stepped.store, "").mkdir()
    for name in ("one", "two"):
        subscriber_path(stepped.store, name).touch()
    scandir = os.scandir

    def late(path: Path) -> Any:
        entries = list(scandir(path))
        subscriber_path(stepped.store, entries[0].name).unlink()
        return contextlib.nullcontext(entries)

    monkeypatch.setattr(os, "scandir", late)
    found = completions.subscribers(stepped.store)
    monkeypatch.undo()
    assert found.keys() == {path.name for path in subscriber_path(stepped.store, "").iterdir()}
    assert len(found) == 1


def test_a_job_stays_whose_files_are_written_anew_in_place(stepped: SteppedManager) -> None:
    """First the tasks, then the state, as scripts do it: at the end of the first the state is still the old one."""
    put(stepped, "j", 2 * DAYS)
    put(stepped, "other", 2 * DAYS)
    stepped.settings |= {"keep_days": 1}
    wait_until(stepped.start_manager, what="it runs")
    tasks = stepped.store.paths("j").tasks

    def some_rounds() -> None:
        stepped.clock.passed += 31
        now = stepped.clock.time_ns()
        os.utime(tasks, ns=(now, now))
        for _ in range(20):
            stepped.go_round()
            time.sleep(0.001)

    some_rounds()
    wait_until(lambda: some_rounds() or "other" not in stepped.store.job_names(), what="the other one is removed")
    assert stepped.store.job_names() == ["j"]
    sweep(stepped)
    assert stepped.store.job_names() == [], "nobody has written the state"
