"""What a manager says of itself: only while it runs, and whatever is in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.jobs import manager_info
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo, OldestWaiting, Slots
from airflow_provider_air_executor.jobs.models import utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.lock import ManagerLock

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def info(pid: int) -> ManagerInfo:
    return ManagerInfo(
        pid,
        version="1.2",
        started_at=utc_now(),
        host="here",
        paused=True,
        slots={"local": Slots(1, 4)},
        queued=3,
        oldest_waiting=OldestWaiting("j", utc_now()),
        jobs={"waiting": 2, "working": 1},
        counters={"tasks_started": 7, "task_seconds": 1.5},
        idle=False,
    )


def test_nothing_is_known_while_no_manager_runs(store: JobStore) -> None:
    store.create_directories()
    manager_info.path_of(store).write_text(json.dumps(info(1).as_json()))
    assert manager_info.load(store) is None


def test_what_a_manager_has_published_is_read_as_it_was(store: JobStore) -> None:
    with ManagerLock(store):
        known = info(int(store.pid_path.read_text()))
        manager_info.path_of(store).write_text(json.dumps(known.as_json()))
        assert manager_info.load(store) == known


def test_the_file_of_an_earlier_manager_is_passed_over(store: JobStore) -> None:
    with ManagerLock(store):
        pid = int(store.pid_path.read_text())
        manager_info.path_of(store).write_text(json.dumps(info(pid + 1).as_json()))
        assert manager_info.load(store) == ManagerInfo(pid)


def test_without_a_file_the_number_is_known(store: JobStore) -> None:
    with ManagerLock(store):
        assert manager_info.load(store) == ManagerInfo(int(store.pid_path.read_text()))


@given(field=st.sampled_from([*vars(info(1)), ""]), value=JSON)
def test_any_content_of_the_file_is_borne(tmp_path_factory: pytest.TempPathFactory, field: str, value: Any) -> None:
    store = JobStore(tmp_path_factory.mktemp("info"))
    with ManagerLock(store):
        content: Any = {**info(int(store.pid_path.read_text())).as_json(), field: value} if field else value
        manager_info.path_of(store).write_text(json.dumps(content))
        found = manager_info.load(store)
        assert found is not None
        json.dumps(found.as_json())


def test_a_link_to_elsewhere_is_not_read(store: JobStore, tmp_path: Path) -> None:
    with ManagerLock(store):
        known = info(int(store.pid_path.read_text()))
        (tmp_path / "secret").write_text(json.dumps(known.as_json()))
        manager_info.path_of(store).symlink_to(tmp_path / "secret")
        assert manager_info.load(store) == ManagerInfo(known.pid)
