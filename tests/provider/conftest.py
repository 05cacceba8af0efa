"""An Airflow home of its own, and what an operator meets when it runs."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.processes import pids
from tests.waiting import wait_until


class TaskInstance(SimpleNamespace):
    """What the operator and the sensor use of Airflow's."""

    def __init__(self, **changes: Any) -> None:
        values = {"dag_id": "d", "run_id": "manual__1+00:00", "task_id": "t", "map_index": -1}
        super().__init__(**{**values, "try_number": 1, "max_tries": 0, "pushed": {}, **changes})

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def context(**changes: Any) -> Any:
    return {"ti": TaskInstance(**changes)}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Airflow's home, in which the embedded manager works."""
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    """The embedded job filesystem; its manager is ended after the test."""
    found = JobStore(home / "air-executor")
    yield found
    pid = found.manager_pid()
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not found.manager_is_running(), what="the manager has ended")
    mark = os.fsencode(f"AIR_EXECUTOR_BASE_PATH={found.base_path}")
    for pid in pids():
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
