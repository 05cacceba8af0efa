"""A manager whose tasks an engine runs, and jobs of a single task."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.store import JobStore
from tests.manager.conftest import Managers, ended
from tests.manager.runners.contract import Engine


@pytest.fixture
def manager(managers: Managers, engine: Engine) -> subprocess.Popen[str]:
    """A manager whose tasks run on the engine."""
    engine.prepare(managers)
    return managers.start()


def bash(line: str, **more: Any) -> dict[str, Any]:
    """A task called ``a`` that runs a line of bash."""
    return {"id": "a", "bash": line, **more}


def result(store: JobStore, name: str = "j", timeout: float = 60) -> Task:
    """The only task of a job, when it has ended."""
    ended(store, name, timeout)
    return store.get_tasks(name)[0]
