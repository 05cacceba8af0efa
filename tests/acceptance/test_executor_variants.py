"""Other ways to configure the executor: beside another one, with queues, and in ``airflow standalone``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import manager_info, manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.evidence import DAGS
from tests.support.installation import DEFERS, EXAMPLES, EXECUTOR, Installation
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.airflow


@pytest.fixture
def side_by_side(tmp_path: Path) -> Iterator[Installation]:
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "executor_dags.py").symlink_to(DAGS / "executor_dags.py")
    settings = {
        "AIRFLOW__CORE__EXECUTOR": f"LocalExecutor,{EXECUTOR}",
        "AIRFLOW__AIR_EXECUTOR__QUEUES": '{"heavy": {"max_running_tasks": 1}}',
        "AIRFLOW__AIR_EXECUTOR__CAPACITY": '{"cpus": 3, "memory": "1Gi", "gpus": ["7"]}',
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "EXECUTOR_TEST_MARKS": str(tmp_path),
    }
    with Installation(dags, settings) as installation:
        yield installation


def test_beside_another_executor_and_with_a_queue_of_its_own(side_by_side: Installation) -> None:
    airflow = side_by_side
    run_id = airflow.trigger("side_by_side")
    state, _ = airflow.follow("side_by_side", run_id)
    assert state == "success", airflow.explain("side_by_side", run_id)
    assert DEFERS in airflow.log("side_by_side", run_id, "deferred")
    ours = {}
    for name in ("air-executor-tasks", "air-executor-tasks-heavy"):
        store = JobStore(airflow.home / name)
        jobs, info = store.list_jobs(), manager_info.load(store)
        assert info is not None
        assert {name: share.limit for name, share in info.capacity.items()} == {"cpus": 3, "memory": 1 << 30, "gpus": 1}
        ours[name] = sorted(job.submitted_by.task_id for job in jobs if job.submitted_by is not None)
    # Airflow gives no id to a task that names its executor by its class: each leg of the deferred one has its own job.
    assert ours == {"air-executor-tasks": ["chosen", "deferred", "deferred"], "air-executor-tasks-heavy": ["queued"]}


class Standalone(Installation):
    """Airflow as ``airflow standalone`` runs it."""

    def start(self) -> None:
        with (self.home / "standalone.out").open("wb") as output:
            self._processes["standalone"] = subprocess.Popen(
                [sys.executable, "-m", "airflow", "standalone"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.wait_until_healthy()


def test_standalone(tmp_path: Path) -> None:
    (tmp_path / "example.py").symlink_to(EXAMPLES / "example_executor.py")
    with Standalone(tmp_path, {"AIRFLOW__CORE__EXECUTOR": EXECUTOR}) as airflow:
        run_id = airflow.trigger("example_executor")
        assert airflow.follow("example_executor", run_id)[0] == "success"
        store = JobStore(airflow.tasks_path)
        assert len(store.job_names()) == 3
        assert "Forcing executor" not in (airflow.home / "standalone.out").read_text()
        # What it leaves: tasks that run, and a manager that ends by itself.
        os.kill(airflow._processes["standalone"].pid, signal.SIGINT)
        airflow._processes["standalone"].wait(PATIENCE)
        assert manager_status.is_running(store)

        def is_down() -> bool:
            try:
                airflow.api("/version")
            except (urllib.error.URLError, ConnectionError):
                return True
            return False

        wait_until(is_down, what="Airflow is down")
