"""An Airflow home of its own, with an embedded job filesystem."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from airflow_provider_air_executor.jobs import file_jobs, index, manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import end_tasks_of
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from airflow.models.log import Log

    from tests.provider.page_client import Client


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


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    """The job filesystem of the default connection; the pages see each change of it at once."""
    found = JobStore(tmp_path / "base")
    found.create_directories()
    connection = {"conn_type": "air_executor", "extra": {"base_path": str(found.base_path)}}
    monkeypatch.setenv("AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT", json.dumps(connection))
    monkeypatch.setattr(index, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(index, "_SHARE", 0)
    monkeypatch.setattr(index.JobIndex, "keep_ahead", lambda self: None)
    monkeypatch.setitem(file_jobs._indexes, str(found.base_path), index.JobIndex(found))
    return found


@pytest.fixture
def client() -> Iterator[Client]:
    """The API of the pages, see :func:`.page_client.client_with`."""
    from tests.provider.page_client import client_with, forget_users  # late: few tests need the web application

    yield client_with
    forget_users()


@pytest.fixture
def audited(monkeypatch: pytest.MonkeyPatch) -> list[Log]:
    """The entries of Airflow's audit log, which need no database here."""
    from airflow_provider_air_executor.plugin import audit  # late: it needs Airflow's database models

    found: list[Log] = []

    class Session:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def add_all(self, entries: list[Log]) -> None:
            found.extend(entries)

    monkeypatch.setattr(audit, "create_session", Session)
    return found
