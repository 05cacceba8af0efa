"""Airflow installations that several modules share, since no test ends a part of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.evidence import DAGS
from tests.acceptance.with_users import WithUsers
from tests.support.installation import EXAMPLES, EXECUTOR, Installation
from tests.support.scheduling import close_after_group


@pytest.fixture(scope="session")
def executor_marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tasks of :func:`with_executor` write down what they have done."""
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="session")
def with_executor(executor_marks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An Airflow on PostgreSQL whose executor is ours, with the example DAGs and those of the executor's tests."""
    dags = tmp_path_factory.mktemp("dags")
    for file in (DAGS / "executor_dags.py", *EXAMPLES.glob("*.py")):
        (dags / file.name).symlink_to(file)
    settings = {
        "AIRFLOW__CORE__EXECUTOR": EXECUTOR,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": "8",
        "EXECUTOR_TEST_MARKS": str(executor_marks),
    }
    with Installation(dags, settings, postgresql=True) as installation:
        close_after_group(installation.close)
        yield installation


@pytest.fixture(scope="session")
def airflow_with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithUsers]:
    """An Airflow for the tests of the pages, with the DAGs of all of them."""
    dags = tmp_path_factory.mktemp("dags")
    for name in ("browser_dags.py", "plugin_dags.py"):
        (dags / name).symlink_to(DAGS / name)
    with WithUsers(dags) as installation:
        close_after_group(installation.close)
        for dag_id in ("hidden", "seen", "waiting", "watched"):
            installation.wait_for_dag(dag_id)
        yield installation
