"""What is lost or done twice when a process is killed: nothing. Counted by what the tasks themselves write down.

On a real PostgreSQL, as an installation has it that is to survive anything.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.evidence import DAGS, evidence
from tests.support.installation import EXECUTOR, Installation
from tests.support.long import IS_WANTED
from tests.support.ports import free_port
from tests.support.processes import is_gone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.airflow
TASKS = 20
RUNNING = 10
REPETITIONS = [1, 2] if IS_WANTED else [1]


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def airflow(marks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    dags = tmp_path_factory.mktemp("dags")
    (dags / "executor_dags.py").symlink_to(DAGS / "executor_dags.py")
    settings = {
        "AIRFLOW__CORE__EXECUTOR": EXECUTOR,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": str(RUNNING),
        # A scheduler that is gone is noticed after seconds, not minutes.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
        "EXECUTOR_TEST_MARKS": str(marks),
    }
    with Installation(dags, settings, postgresql=True) as installation:
        yield installation


def begun(marks: Path, run_id: str) -> collections.Counter[str]:
    """How often each task has begun."""
    return collections.Counter(line.split()[1] for line in evidence(marks, run_id) if line.startswith("begin"))


def ended(marks: Path, run_id: str) -> collections.Counter[str]:
    """How often each task has come to its end."""
    return collections.Counter(line.split()[1] for line in evidence(marks, run_id) if line.startswith("end"))


EACH_ONCE = collections.Counter(f"t{index}.-1" for index in range(TASKS))


def start_half(airflow: Installation, marks: Path, seconds: float, *, are_held: bool = False) -> str:
    """Start twenty tasks, and wait until ten of them run and ten are queued.

    :param are_held: whether none goes on until the caller removes the file ``hold``.
    """
    hold = marks / "hold"  # so that none ends before all ten have begun

    def is_half_way() -> bool:
        states = collections.Counter(airflow.task_states("many", run_id).values())
        return len(begun(marks, run_id)) == RUNNING and states["queued"] == TASKS - RUNNING

    hold.touch()
    try:
        run_id = airflow.trigger("many", {"seconds": seconds})
        wait_until(is_half_way, what="ten run, ten are queued")
    except BaseException:
        hold.unlink()
        raise
    if not are_held:
        hold.unlink()
    return run_id


def assert_each_ran_once(airflow: Installation, marks: Path, run_id: str) -> None:
    state, _ = airflow.follow("many", run_id)
    assert state == "success", airflow.explain("many", run_id)
    assert begun(marks, run_id) == EACH_ONCE
    assert ended(marks, run_id) == EACH_ONCE
    assert {task["try_number"] for task in airflow.tasks("many", run_id)} == {1}


@contextlib.contextmanager
def killing_the_manager(airflow: Installation) -> Iterator[None]:
    """Kill it at first; at last another one runs."""
    store = JobStore(airflow.tasks_path)
    pid = manager_status.pid(store)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    yield
    wait_until(lambda: manager_status.pid(store) not in (None, pid), what="another one runs and has told its number")


def take_api_server_away(airflow: Installation, seconds: float) -> None:
    """Kill Airflow's API server, and start it again after some time."""
    airflow.kill_component("api-server")
    time.sleep(seconds)
    airflow.start_component("api-server")
    airflow.wait_until_healthy()


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_the_scheduler_is_killed(airflow: Installation, marks: Path, repetition: int) -> None:
    run_id = start_half(airflow, marks, 8)
    airflow.kill_component("scheduler")
    wait_until(lambda: len(begun(marks, run_id)) == TASKS, what="the tasks go on without a scheduler")
    airflow.start_component("scheduler")
    assert_each_ran_once(airflow, marks, run_id)


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_the_scheduler_is_killed_and_is_back_at_once(airflow: Installation, marks: Path, repetition: int) -> None:
    run_id = start_half(airflow, marks, 8)
    airflow.kill_component("scheduler")
    airflow.start_component("scheduler")
    assert_each_ran_once(airflow, marks, run_id)


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_the_manager_is_killed(airflow: Installation, marks: Path, repetition: int) -> None:
    run_id = start_half(airflow, marks, 6)
    with killing_the_manager(airflow):
        assert_each_ran_once(airflow, marks, run_id)


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_a_shim_is_killed(airflow: Installation, marks: Path, repetition: int) -> None:
    store = JobStore(airflow.tasks_path)
    run_id = start_half(airflow, marks, 8)
    jobs = {
        job.submitted_by.task_id: job.name
        for job in store.list_jobs()
        if job.submitted_by is not None and job.submitted_by.run_id == run_id
    }
    victim = evidence(marks, run_id)[0].split()[1].partition(".")[0]
    shim = int((store.paths(jobs[victim]).runs / "workload.1").read_text().split()[0])
    task = int(evidence(marks, run_id)[0].split()[3])
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: is_gone(task), what="its task is gone too")
    state, _ = airflow.follow("many", run_id)
    assert state == "success", airflow.explain("many", run_id)
    # The victim has begun twice and ended once; it has one retry.
    assert begun(marks, run_id) == EACH_ONCE + collections.Counter({f"{victim}.-1": 1})
    assert ended(marks, run_id) == EACH_ONCE


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_the_api_server_is_away_for_half_a_minute(airflow: Installation, marks: Path, repetition: int) -> None:
    run_id = start_half(airflow, marks, 8)
    take_api_server_away(airflow, 30)
    assert_each_ran_once(airflow, marks, run_id)


@pytest.mark.parametrize("repetition", REPETITIONS)
def test_two_schedulers(airflow: Installation, marks: Path, repetition: int) -> None:
    """They share the work and a manager; when one is killed, the other one takes over what it has begun."""
    second = {
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_SERVER_PORT": str(free_port()),
    }
    airflow.start_component("scheduler", name="scheduler-2", settings=second)
    log = airflow.home / "scheduler-2.out"
    offset = log.stat().st_size
    wait_until(lambda: b"Adopting or resetting" in log.read_bytes()[offset:], what="the second one works")
    runs = [airflow.trigger("many", {"seconds": 1}) for _ in range(4)]
    wait_until(lambda: all(begun(marks, run_id) for run_id in runs), what="all runs have begun")
    airflow.kill_component("scheduler-2")
    for run_id in runs:
        assert_each_ran_once(airflow, marks, run_id)
