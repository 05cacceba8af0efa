"""The command line on the base path of a test."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import Managers, run_cli


@pytest.fixture
def run(store: JobStore, managers: Managers) -> Any:
    """Runs ``air-executor`` on the base path of the test."""

    def call(*arguments: str, text: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
        environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path), "COLUMNS": "80"}
        return run_cli(arguments, environment, text=text, patch=managers.patch, **more)

    return call
