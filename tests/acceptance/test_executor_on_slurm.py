"""The executor with its tasks on Slurm, by configuration alone: the DAGs know nothing of it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.evidence import DAGS, evidence
from tests.acceptance.test_executor import (  # noqa: F401 - they run here, too, on the installation of this module
    succeed,
    test_a_deferrable_sensor,
    test_a_mapped_task_of_twenty,
    test_a_task_that_is_cleared_while_it_runs_runs_again,
    test_a_task_that_is_marked_failed_while_it_runs_is_gone,
    test_a_task_that_raises_is_tried_again,
)
from tests.support import slurm_cluster
from tests.support.installation import EXECUTOR, Installation
from tests.support.slurm_cluster import SlurmCluster

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.engine,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason="Slurm is missing"),
]
RUNNING = 10
QUEUED_SECONDS = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """Two nodes, which run ten tasks together."""
    with contextlib.closing(SlurmCluster(slots=RUNNING // 2, memory=16_000)) as found:
        yield found.start()


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def airflow(cluster: SlurmCluster, marks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An Airflow whose tasks all run on Slurm: Airflow calls the queue of those that do not say ``default``."""
    dags = tmp_path_factory.mktemp("dags")
    for file in ("executor_dags.py", "cluster_dags.py"):
        (dags / file).symlink_to(DAGS / file)
    queues = {
        "default": {"runner": "slurm", "env": {"EXECUTOR_TEST_MARKS": str(marks)}},
        "here": {},
    }
    settings = {
        "AIRFLOW__CORE__EXECUTOR": EXECUTOR,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__AIR_EXECUTOR__QUEUES": json.dumps(queues),
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": str(QUEUED_SECONDS),
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
        # A scheduler that is gone is noticed after seconds, not minutes.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
        "EXECUTOR_TEST_MARKS": str(marks),
        "SLURM_CONF": cluster.environment["SLURM_CONF"],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}",
    }
    with Installation(dags, settings, postgresql=True) as installation:
        installation.tasks_path = installation.home / "air-executor-tasks-default"
        yield installation


def on_slurm(airflow: Installation) -> JobStore:
    """The job filesystem of the tasks on Slurm."""
    return JobStore(airflow.tasks_path)


def test_two_branches_of_a_dag_overlap_on_two_nodes(airflow: Installation, marks: Path) -> None:
    """Each waits for the other one: if they did not run at the same time, neither would end."""
    run_id, _ = succeed(airflow, "branches")
    nodes = {line.split()[1] for line in evidence(marks, run_id) if line.startswith("node")}
    assert nodes == set(slurm_cluster.NODES)
