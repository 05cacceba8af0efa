"""An Airflow home of its own, with an embedded job filesystem."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import end_tasks_of
from tests.support.waiting import wait_until


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Airflow's home, in which the embedded manager works."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(home: Path, request: pytest.FixtureRequest) -> Iterator[JobStore]:
    """The embedded job filesystem; its manager is ended after the test, which must have the marker ``embedded``."""
    found = JobStore(home / "air-executor")
    yield found
    pid = manager_status.pid(found)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not manager_status.is_running(found), what="the manager has ended")
    end_tasks_of(found)
    if found.manager_log_path.exists():
        assert request.node.get_closest_marker("embedded"), "it starts the embedded manager, but is not marked so"
