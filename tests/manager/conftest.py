"""What several modules of the manager's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.changing import ChangingManagers, WarmStore
from tests.support.managers import Managers
from tests.support.stepped_manager import SteppedManager


@pytest.fixture
def stepped() -> Iterator[SteppedManager]:
    """A manager that goes round when the test says so."""
    found = SteppedManager()
    yield found
    found.close()


@pytest.fixture
def kind_of_tasks(request: pytest.FixtureRequest) -> str:
    """How the tasks of a test are run, see :mod:`tests.support.changing`."""
    return str(getattr(request, "param", "processes"))


@pytest.fixture
def store(tmp_path: Path, kind_of_tasks: str) -> JobStore:
    return (WarmStore if kind_of_tasks == "warm" else JobStore)(tmp_path / "base")


@pytest.fixture
def managers(store: JobStore, kind_of_tasks: str, tmp_path: Path) -> Iterator[Managers]:
    found = ChangingManagers(store, tmp_path) if kind_of_tasks == "warm" else Managers(store)
    yield found
    found.close()
