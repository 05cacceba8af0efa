"""The operator in a real Airflow: what becomes of its job when something happens to the task that waits for it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.installation import Installation
from tests.acceptance.postgresql import PostgreSQL
from tests.acceptance.test_example_dags import EXECUTOR
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(600)
DAG_FILE = Path(__file__).parent / "dags" / "operator_dags.py"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    dags = tmp_path_factory.mktemp("dags")
    (dags / DAG_FILE.name).symlink_to(DAG_FILE)
    with PostgreSQL() as database:
        settings = {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database.url,
            "AIRFLOW__CORE__EXECUTOR": EXECUTOR,
            "AIRFLOW__CORE__PARALLELISM": "32",
            "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": "8",
            "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        }
        with Installation(dags, settings) as installation:
            yield installation


@pytest.fixture
def store(airflow: Installation) -> JobStore:
    return JobStore(airflow.home / "air-executor")


def jobs_of(store: JobStore, run_id: str) -> list[Job]:
    """The jobs of a run, in the order of their map index."""
    found = [job for job in store.list_jobs() if job.submitted_by is not None and job.submitted_by.run_id == run_id]
    return sorted(found, key=lambda job: job.submitted_by.map_index if job.submitted_by else -1)


def working(store: JobStore, run_id: str, number: int = 1) -> list[Job]:
    def jobs() -> list[Job] | None:
        found = [job for job in jobs_of(store, run_id) if job.state == "working"]
        return found if len(found) == number else None

    return wait_until(jobs, timeout=120, what=f"{number} jobs of {run_id} work", interval=0.1) or []


def start_and_defer(airflow: Installation, store: JobStore, dag_id: str, seconds: int, number: int = 1) -> str:
    """Start a run, and wait until its tasks are deferred and their jobs work."""
    run_id = airflow.trigger(dag_id, {"seconds": seconds})
    working(store, run_id, number)

    def are_deferred() -> bool:
        tasks = airflow.tasks(dag_id, run_id)
        return len(tasks) == number and all(task["state"] == "deferred" for task in tasks)

    wait_until(are_deferred, timeout=120, what="they are deferred", interval=0.2)
    time.sleep(2)  # the triggerer has begun to wait
    return run_id


def is_cancelled(store: JobStore, name: str) -> bool:
    return store.get_job(name).reason == "cancelled"


def test_what_a_job_prints_and_returns(airflow: Installation, store: JobStore) -> None:
    """Complaint: the logs are missing while the task is deferred (#28647, #58676)."""
    run_id = start_and_defer(airflow, store, "waits", 8)
    wait_until(lambda: "work | line 2" in airflow.log("waits", run_id, "submit"), timeout=30, what="it is heard")
    assert airflow.task_states("waits", run_id) == {"submit": "deferred"}
    assert airflow.follow("waits", run_id)[0] == "success"
    log = airflow.log("waits", run_id, "submit")
    assert [log.count(f"work | line {number}\n") for number in range(1, 9)] == [1] * 8
    assert airflow.xcom("waits", run_id, "submit") == {"work": "done"}


def test_a_deferred_task_is_cleared(airflow: Installation, store: JobStore) -> None:
    """Complaint: it is cleared, and the job runs on (#36090, #20580, #19929). The new run gets a new job."""
    run_id = start_and_defer(airflow, store, "waits", 5)
    (old,) = jobs_of(store, run_id)
    pid = int((store.runs_path(old.name) / "work.1").read_text().split()[0])
    airflow.clear("waits", run_id, "submit")
    state, _ = airflow.follow("waits", run_id)
    assert state == "success", airflow.explain("waits", run_id)
    (new,) = jobs_of(store, run_id)
    assert (new.name, new.state) == (old.name, "completed")
    assert new.submitted_by is not None
    assert old.submitted_by is not None
    assert new.submitted_by.max_tries != old.submitted_by.max_tries
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("state", ["failed", "success"])
def test_a_deferred_task_is_marked(airflow: Installation, store: JobStore, state: str) -> None:
    """Complaint: the same as when it is cleared."""
    run_id = start_and_defer(airflow, store, "waits", 600)
    (job,) = jobs_of(store, run_id)
    airflow.mark("waits", run_id, "submit", state)
    wait_until(lambda: is_cancelled(store, job.name), timeout=30, what="the job is cancelled")
    assert airflow.task_states("waits", run_id) == {"submit": state}


def test_one_of_the_mapped_tasks_is_marked(airflow: Installation, store: JobStore) -> None:
    run_id = start_and_defer(airflow, store, "mapped_jobs", 20, number=3)
    jobs = jobs_of(store, run_id)
    airflow.mark("mapped_jobs", run_id, "submit/1", "failed")
    wait_until(lambda: is_cancelled(store, jobs[1].name), timeout=30, what="its job is cancelled")
    assert airflow.follow("mapped_jobs", run_id, timeout=120)[0] == "failed"
    assert [store.get_job(job.name).state for job in jobs] == ["completed", "failed", "completed"]


def test_the_triggerer_is_killed(airflow: Installation, store: JobStore) -> None:
    """Complaint: jobs are killed when triggers restart or move (#41231, #39442). Fifty wait; all complete, once."""
    run_id = start_and_defer(airflow, store, "many_jobs", 25, number=50)
    airflow.kill_component("triggerer")
    airflow.start_component("triggerer")
    state, _ = airflow.follow("many_jobs", run_id, timeout=300)
    assert state == "success", airflow.explain("many_jobs", run_id)
    jobs = jobs_of(store, run_id)
    assert [(job.state, job.attempt) for job in jobs] == [("completed", 1)] * 50


def test_the_triggerer_is_stopped_and_started(airflow: Installation, store: JobStore) -> None:
    run_id = start_and_defer(airflow, store, "waits", 20)
    airflow.stop_component("triggerer")
    airflow.start_component("triggerer")
    state, _ = airflow.follow("waits", run_id, timeout=120)
    assert state == "success", airflow.explain("waits", run_id)
    assert [(job.state, job.attempt) for job in jobs_of(store, run_id)] == [("completed", 1)]
    log = airflow.log("waits", run_id, "submit")
    assert all(f"work | line {number}\n" in log for number in range(1, 21))


def test_the_worker_is_killed(airflow: Installation, store: JobStore) -> None:
    """Complaint: a lost worker means a second submit (#67118). The next try waits for the same job."""
    run_id = airflow.trigger("holds_a_worker", {"seconds": 15})
    (job,) = working(store, run_id)
    tasks = JobStore(airflow.tasks_path)
    (workload,) = working(tasks, run_id)
    os.kill(int((tasks.runs_path(workload.name) / "workload.1").read_text().split()[0]), signal.SIGKILL)
    state, _ = airflow.follow("holds_a_worker", run_id, timeout=120)
    assert state == "success", airflow.explain("holds_a_worker", run_id)
    assert [task["try_number"] for task in airflow.tasks("holds_a_worker", run_id)] == [2]
    after = store.get_job(job.name)
    assert (after.id, after.attempt, after.state) == (job.id, 1, "completed")
    assert airflow.xcom("holds_a_worker", run_id, "submit") == {"work": "done"}


def test_taskflow(airflow: Installation) -> None:
    run_id = airflow.trigger("taskflow")
    assert airflow.follow("taskflow", run_id)[0] == "success", airflow.explain("taskflow", run_id)
    assert airflow.xcom("taskflow", run_id, "total") == 5
