"""What users say to a manager is kept, one thing beside the other, and is checked first."""

from __future__ import annotations

import stat
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import CorruptFileError, SettingsError
from airflow_provider_air_executor.jobs import inbox, manager_control, summary
from airflow_provider_air_executor.jobs.manager_control import Control
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.lock import ManagerLock
from tests.support.jobs import publish_job


def test_without_a_file_nothing_is_paused(store: JobStore) -> None:
    assert manager_control.load(store) == Control()
    assert not store.base_path.exists()


def test_each_setting_leaves_the_others(store: JobStore) -> None:
    manager_control.set_slots(store, 4)
    manager_control.set_paused(store, True)
    manager_control.set_slots(store, 9, "slurm")
    assert manager_control.load(store) == Control(True, {"local": 4, "slurm": 9})
    manager_control.set_paused(store, False)
    manager_control.set_slots(store, None)
    assert manager_control.load(store) == Control(False, {"slurm": 9})
    assert stat.S_IMODE(manager_control.path_of(store).stat().st_mode) == 0o600
    assert inbox.requests(store) == []


def test_warm_tasks_use_the_slots_of_local_ones(store: JobStore) -> None:
    manager_control.set_slots(store, 4, "warm")
    assert manager_control.load(store).slots == {"local": 4}


@pytest.mark.parametrize("slots", [0, -1, 10_001, 2.5, True, "3"])
def test_a_wrong_number_of_slots_is_refused(store: JobStore, slots: Any) -> None:
    with pytest.raises(SettingsError, match="whole number from 1 to 10000"):
        manager_control.set_slots(store, slots)
    assert not manager_control.path_of(store).exists()


@pytest.mark.parametrize("runner", ["", "Local", "../x", "a b"])
def test_a_name_that_no_runner_can_have_is_refused(store: JobStore, runner: str) -> None:
    with pytest.raises(SettingsError, match="cannot be the name of a runner"):
        manager_control.set_slots(store, 1, runner)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{", "null", '{"paused": 1}', '{"slots": 3}', '{"slots": {"local": 0}}', '{"slots": {"local": "4"}}',
        '{"slots": {"local": true}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_file_that_is_not_valid_changes_nothing(store: JobStore, content: str) -> None:
    store.create_directories()
    manager_control.path_of(store).write_text(content)
    assert manager_control.load(store) == Control()
    with pytest.raises(CorruptFileError):
        manager_control.read(store)


@given(content=st.binary(max_size=60))
def test_any_content_is_borne(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    store = JobStore(tmp_path_factory.mktemp("control"))
    manager_control.path_of(store).write_bytes(content)
    manager_control.load(store)


def test_several_at_the_same_time_lose_nothing(store: JobStore) -> None:
    names = [f"runner{number}" for number in range(8)]
    threads = [threading.Thread(target=manager_control.set_slots, args=(store, 3, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manager_control.load(store).slots == dict.fromkeys(names, 3)


def test_a_job_says_that_it_waits_since_the_manager_is_paused(store: JobStore) -> None:
    waiting, working = store.submit("waiting", ["true"]), store.submit("working", ["true"])
    working = working.evolve(state=JobState.WORKING)
    publish_job(store, working)
    manager_control.set_paused(store, True)
    assert summary.why_blocked(store, waiting, store.list_jobs()) == "no manager is running"
    with ManagerLock(store):
        for job in (waiting, working):
            assert summary.why_blocked(store, job, store.list_jobs()) == manager_control.PAUSED
            assert manager_control.PAUSED in summary.trouble(store, job.name, embedded=True)
        assert summary.why_blocked(store, waiting.evolve(state=JobState.COMPLETED), store.list_jobs()) is None
        manager_control.set_paused(store, False)
        assert summary.why_blocked(store, waiting, store.list_jobs()) == "waits for room: it is next"
        assert summary.why_blocked(store, working, store.list_jobs()) is None
        assert summary.trouble(store, "waiting", embedded=True) == ""
