"""A manager is started for a process that needs one."""

from __future__ import annotations

import pytest

from airflow_provider_air_executor.exceptions import ManagerError
from airflow_provider_air_executor.jobs import embedded_manager, manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended
from tests.support.managers import Managers, run_cli


def stop(store: JobStore, managers: Managers) -> None:
    run_cli(["stop", "--base-path", str(store.base_path)], managers.environment)


def test_one_is_started_and_found_by_the_next_process(store: JobStore, managers: Managers) -> None:
    try:
        assert embedded_manager.start_if_none(store) == ""
        pid = manager_status.pid(store)
        assert embedded_manager.start_if_none(store) == ""
        assert embedded_manager.start(store) == ""  # as if it had not been there yet when that was asked
        assert manager_status.pid(store) == pid
        store.submit("j", ["true"])
        assert ended(store, "j").state == "completed"
    finally:
        stop(store, managers)


def test_what_it_warns_of_is_handed_on(store: JobStore, managers: Managers) -> None:
    store.create_directories()
    store.config_path.write_text("pol_interval: 1\n")
    try:
        assert "there is no setting 'pol_interval'" in embedded_manager.start_if_none(store)
    finally:
        stop(store, managers)


def test_one_that_cannot_be_started_says_why(store: JobStore) -> None:
    store.create_directories()
    store.config_path.write_text("poll_interval: -1\n")
    with pytest.raises(ManagerError, match="could not be started: .*poll_interval = -1"):
        embedded_manager.start_if_none(store)
