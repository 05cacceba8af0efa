"""A base path, and managers that run there as real processes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import Managers


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "base")


@pytest.fixture
def managers(store: JobStore) -> Iterator[Managers]:
    found = Managers(store)
    yield found
    found.close()


@pytest.fixture
def manager(managers: Managers) -> subprocess.Popen[str]:
    """A running manager."""
    return managers.start()
