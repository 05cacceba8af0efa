"""The executor with its tasks on Slurm, by configuration alone: the DAGs know nothing of it."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.evidence import DAGS, evidence
from tests.acceptance.test_executor import JWT, succeed
from tests.acceptance.test_executor_crashes import (
    EACH_ONCE,
    RUNNING,
    assert_each_ran_once,
    begun,
    ended,
    killing_the_manager,
    start_half,
    take_api_server_away,
)
from tests.support import slurm_cluster
from tests.support.installation import EXECUTOR, Installation
from tests.support.long import IS_WANTED, takes_long
from tests.support.slurm_cluster import SlurmCluster
from tests.support.waiting import wait_until

if IS_WANTED:  # they run here, too, on the installation of this module
    from tests.acceptance.test_executor import (  # noqa: F401
        test_a_callback,
        test_a_connection_test,
        test_a_deferrable_sensor,
        test_a_mapped_task_of_twenty,
        test_a_task_that_is_cleared_while_it_runs_runs_again,
        test_a_task_that_is_marked_failed_while_it_runs_is_gone,
        test_a_task_that_raises_is_tried_again,
        test_the_log_of_a_running_task,
        test_the_log_of_a_running_task_without_its_log_file,
    )

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.engine,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason="Slurm is missing"),
]
QUEUED_SECONDS = 60  # after which Airflow takes a task for stuck
WAIT_SECONDS = 1200  # that one waits nevertheless; the token that it has first is good for a minute
AWAY_SECONDS = 60
MISSED_SECONDS = 180  # without a heartbeat, after which Airflow takes a task for gone
# It stands for Apptainer, which cannot be had here: it does what it is told, on this machine.
APPTAINER = """\
#!/bin/sh
[ "$1 $2" = "exec --bind" ] && [ -e "$3/tasks.json" ] && [ "$4" = /images/airflow.sif ] || exit 3
shift 4
IN_IMAGE=yes exec "$@"
"""


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
    dags, commands = tmp_path_factory.mktemp("dags"), tmp_path_factory.mktemp("bin")
    for file in ("executor_dags.py", "cluster_dags.py"):
        (dags / file).symlink_to(DAGS / file)
    (commands / "apptainer").write_text(APPTAINER)
    (commands / "apptainer").chmod(0o755)
    common = {"runner": "slurm", "env": {"EXECUTOR_TEST_MARKS": str(marks)}}
    python = str(Path(sys.executable).parent)
    queues = {
        "default": {**common, "env": {**common["env"], "JOBS": str(marks.parent)}},
        "prologue": {**common, "prologue": ["FROM_PROLOGUE=yes", "export FROM_PROLOGUE"]},
        "broken": {**common, "prologue": ["echo there is no such module", "false", "echo not reached"]},
        "image": {**common, "image": "/images/airflow.sif", "python": sys.executable},
    }
    settings = {
        "AIRFLOW__CORE__EXECUTOR": EXECUTOR,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": str(QUEUED_SECONDS),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(MISSED_SECONDS),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT_CHECK_INTERVAL": "5",
        # A scheduler that is gone is noticed after seconds, not minutes.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
        "AIRFLOW__MY_SECTION__MY_OPTION": "travelled",
        "AIRFLOW_VAR_COLOUR": "blue",
        "EXECUTOR_TEST_MARKS": str(marks),
        "SLURM_CONF": cluster.environment["SLURM_CONF"],
        "PATH": os.pathsep.join([python, str(commands), cluster.environment["PATH"]]),
    }
    installation = Installation(dags, settings, postgresql=True)
    queues["default"]["env"]["JOBS"] = str(installation.home / "air-executor-tasks-default")
    installation.environment["AIRFLOW__AIR_EXECUTOR__QUEUES"] = json.dumps(queues)
    installation.tasks_path = installation.home / "air-executor-tasks-default"
    with installation:
        yield installation


def scheduler_log(airflow: Installation) -> str:
    return (airflow.home / "scheduler.out").read_text()


def test_two_branches_of_a_dag_overlap_on_two_nodes(airflow: Installation, marks: Path) -> None:
    """Each waits for the other one: if they did not run at the same time, neither would end."""
    run_id, _ = succeed(airflow, "branches")
    nodes = {line.split()[1] for line in evidence(marks, run_id) if line.startswith("node")}
    assert nodes == set(slurm_cluster.NODES)


def test_the_scheduler_says_that_nodes_do_not_reach_the_api_server_by_localhost(airflow: Installation) -> None:
    assert "tasks of queue default run on other machines, where the API server is not at" in scheduler_log(airflow)


def secrets_of(airflow: Installation) -> list[str]:
    names = ("API_AUTH__JWT_SECRET", "API__SECRET_KEY", "CORE__FERNET_KEY", "DATABASE__SQL_ALCHEMY_CONN")
    return [airflow.environment[f"AIRFLOW__{name}"] for name in names]


def seen_by_slurm(cluster: SlurmCluster) -> str:
    """All that Slurm shows of its jobs, and keeps of them."""
    numbers = cluster.call("squeue", "--noheader", "--format=%i").split()
    scripts = [cluster.call("scontrol", "write", "batch_script", number, "-") for number in numbers]
    assert all("ae_handle" in script for script in scripts)
    files = [path for path in cluster.directory.rglob("*") if path.is_file() and path.name != "munge.key"]
    kept = [path.read_bytes().decode(errors="replace") for path in files]
    shown = [cluster.call("scontrol", "show", "job"), cluster.call("squeue", "--format=%all")]
    return "\n".join([*shown, *scripts, *kept])


def test_no_secret_reaches_a_node(airflow: Installation, cluster: SlurmCluster, marks: Path) -> None:
    """Of Airflow's keys and its database none; and the token is in the file of a job that waits, and nowhere else."""
    words = secrets_of(airflow)
    (marks / "secrets").write_text("\n".join(words))
    (marks / "searched").unlink(missing_ok=True)
    run_id = airflow.trigger("searching")
    wait_until(lambda: evidence(marks, run_id) or airflow.must_go_on("searching", run_id), what="it has searched")
    cluster.call("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    try:
        waiting = airflow.trigger("single")
        is_waiting = re.compile("PENDING")
        wait_until(lambda: is_waiting.search(cluster.call("squeue", "--format=%T")), what="one job waits")
        shown = seen_by_slurm(cluster)
        for path in [path for path in airflow.tasks_path.rglob("*") if path.is_file()]:
            with contextlib.suppress(FileNotFoundError):
                text = path.read_text(errors="replace")
                assert not [word for word in words if word in text], path
                if path.name == "workload.json":
                    assert JWT.search(text.encode())
                    assert not path.stat().st_mode & 0o077
                elif not path.name.startswith(".workload.json"):
                    assert not JWT.search(text.encode()), path
    finally:
        cluster.call("scontrol", "update", "NodeName=n1,n2", "State=RESUME")
    (marks / "searched").touch()
    assert not JWT.search(shown.encode())
    assert not [word for word in words if word in shown]
    for dag_id, run in (("searching", run_id), ("single", waiting)):
        assert airflow.follow(dag_id, run)[0] == "success", airflow.explain(dag_id, run)
    found, *more = evidence(marks, run_id)
    assert not more, more
    assert re.fullmatch(r"searched \d+ 4 travelled blue", found), found
    assert not list(airflow.tasks_path.rglob("*workload.json*"))
    for path in [*airflow.home.glob("*.out"), *airflow.home.glob("logs/**/*.log"), *airflow.tasks_path.glob("*.log")]:
        assert not JWT.search(path.read_bytes()), path


@takes_long
def test_a_task_that_waits_for_longer_than_airflow_waits_succeeds(
    airflow: Installation, cluster: SlurmCluster, marks: Path
) -> None:
    cluster.call("scontrol", "update", "NodeName=n1,n2", "State=DRAIN", "Reason=test")
    try:
        run_id = airflow.trigger("single")
        wait_until(lambda: airflow.task_states("single", run_id) == {"one": "queued"}, what="it is queued")
        began = time.monotonic()
        wait_until(lambda: is_said_to_wait(airflow, run_id), what="its log says what it waits for", interval=1)
        wait_until(lambda: time.monotonic() - began > WAIT_SECONDS, what="time has passed", interval=1)
        assert airflow.task_states("single", run_id) == {"one": "queued"}
    finally:
        cluster.call("scontrol", "update", "NodeName=n1,n2", "State=RESUME")
    assert airflow.follow("single", run_id)[0] == "success", airflow.explain("single", run_id)
    assert begun(marks, run_id) == {"one.-1": 1}
    assert [task["try_number"] for task in airflow.tasks("single", run_id)] == [1]


def is_said_to_wait(airflow: Installation, run_id: str) -> bool:
    return re.search(r"Slurm job \d+, waiting \(", airflow.log("single", run_id, "one")) is not None


def test_what_cannot_be_fails_at_once_and_its_log_says_why(airflow: Installation, marks: Path) -> None:
    run_id = airflow.trigger("impossible")
    assert airflow.follow("impossible", run_id)[0] == "failed"
    reasons = {
        "partition": "Slurm refused it: ",
        "option": "slurm: array: the option array of sbatch is given by air-executor itself",
        "runner": "there is no runner 'slrum'; there are kubernetes, local, slurm",
    }
    for task_id, why in reasons.items():
        log = airflow.log("impossible", run_id, task_id)
        assert why in log
        assert "Could not read served logs" not in log
    again = [line for line in scheduler_log(airflow).splitlines() if "submitting it again" in line]
    assert not [line for line in again if "impossible" in line]
    assert evidence(marks, run_id) == []


def test_a_queue_has_a_prologue_or_an_image(airflow: Installation, marks: Path) -> None:
    run_id = airflow.trigger("prepared")
    assert airflow.follow("prepared", run_id)[0] == "failed"
    assert airflow.task_states("prepared", run_id) == {"prologue": "success", "broken": "failed", "image": "success"}
    assert sorted(evidence(marks, run_id)) == ["image yes", "prologue yes"]
    log = airflow.log("prepared", run_id, "broken")
    assert "the prologue of its queue failed" in log
    assert "there is no such module" in log
    assert "not reached" not in log


@takes_long
def test_a_rescheduling_sensor_begins_again_on_a_node(airflow: Installation, marks: Path) -> None:
    run_id, _ = succeed(airflow, "rescheduling")
    assert evidence(marks, run_id) == ["poke"] * 3
    assert [task["try_number"] for task in airflow.tasks("rescheduling", run_id)] == [1]


@takes_long
def test_a_mapped_task_of_two_hundred(airflow: Installation, marks: Path) -> None:
    run_id, _ = succeed(airflow, "wide")
    assert begun(marks, run_id) == collections.Counter(f"one.{index}" for index in range(200))
    assert ended(marks, run_id) == begun(marks, run_id)


@takes_long
def test_the_end_of_memory_and_that_of_time_are_told_apart(airflow: Installation) -> None:
    run_id = airflow.trigger("limits")
    assert airflow.follow("limits", run_id)[0] == "failed"
    # Where control groups limit memory, Slurm calls it OUT_OF_MEMORY.
    reasons = {"memory": r"ended as FAILED(.|\n)*exceeded memory limit", "time": "ended as TIMEOUT"}
    for task_id, why in reasons.items():
        says = re.compile(rf"Slurm job \d+ on n\d {why}")
        wait_until(lambda: says.search(airflow.log("limits", run_id, task_id)), what=f"its log has {why}", interval=1)  # noqa: B023


@takes_long
def test_the_scheduler_is_killed(airflow: Installation, marks: Path) -> None:
    """With ten tasks that run and ten that wait in Slurm, and the first ones end before there is another one.

    Those that have waited may find their tokens expired, which nobody has renewed: they are submitted again.
    """
    run_id = start_half(airflow, marks, 8)
    airflow.kill_component("scheduler")
    wait_until(lambda: sum(ended(marks, run_id).values()) >= RUNNING, what="the first ones have ended")
    airflow.start_component("scheduler")
    assert_each_ran_once(airflow, marks, run_id)


@takes_long
def test_the_manager_is_killed(airflow: Installation, marks: Path) -> None:
    run_id = start_half(airflow, marks, 6)
    with killing_the_manager(airflow):
        assert_each_ran_once(airflow, marks, run_id)


@takes_long
def test_the_controller_is_away_for_a_minute(airflow: Installation, marks: Path, cluster: SlurmCluster) -> None:
    """The first tasks end meanwhile."""
    run_id = start_half(airflow, marks, 8)
    cluster.stop("slurmctld")
    try:
        time.sleep(AWAY_SECONDS)
    finally:
        cluster.start_controller()
    assert_each_ran_once(airflow, marks, run_id)


@takes_long
def test_the_api_server_is_away_for_a_minute(airflow: Installation, marks: Path) -> None:
    run_id = start_half(airflow, marks, 8)
    take_api_server_away(airflow, AWAY_SECONDS)
    assert_each_ran_once(airflow, marks, run_id)


@takes_long
def test_a_node_is_lost(airflow: Installation, marks: Path, cluster: SlurmCluster) -> None:
    """With five tasks, which begin again by a retry when Airflow has missed them; nothing else is done twice."""
    run_id = start_half(airflow, marks, 2, are_held=True)
    lost = tasks_on(airflow, run_id, "n1")
    assert len(lost) == RUNNING // 2
    cluster.lose_node("n1")
    try:
        (marks / "hold").unlink()
        state, _ = airflow.follow("many", run_id)
    finally:
        cluster.start_node("n1")
        cluster.wait_for_nodes()
    assert state == "success", airflow.explain("many", run_id)
    assert begun(marks, run_id) == EACH_ONCE + collections.Counter(f"{task_id}.-1" for task_id in lost)
    assert ended(marks, run_id) == EACH_ONCE
    says = re.compile(r"Slurm job \d+ on n1 ended as NODE_FAIL")
    for task_id in lost:
        wait_until(lambda: says.search(airflow.log("many", run_id, task_id)), what="its log says why", interval=1)  # noqa: B023


@takes_long
def test_a_node_does_not_answer_any_more(airflow: Installation, marks: Path, cluster: SlurmCluster) -> None:
    """Slurm gives it up, but what it runs goes on, and is not run a second time."""
    run_id = start_half(airflow, marks, 2, are_held=True)
    cut_off = tasks_on(airflow, run_id, "n1")
    assert len(cut_off) == RUNNING // 2
    cluster.stop("slurmd-n1")
    try:
        says = re.compile(r"Slurm job \d+ on n1 ended as NODE_FAIL.*; if it still runs there it goes on")
        for task_id in cut_off:
            wait_until(lambda: says.search(airflow.log("many", run_id, task_id)), what="its log says so", interval=1)  # noqa: B023
        assert {airflow.task_states("many", run_id)[task_id] for task_id in cut_off} == {"running"}
        (marks / "hold").unlink()
        assert_each_ran_once(airflow, marks, run_id)
    finally:
        (marks / "hold").unlink(missing_ok=True)
        cluster.start_node("n1")
        cluster.wait_for_nodes()


def tasks_on(airflow: Installation, run_id: str, node: str) -> set[str]:
    """The tasks of a run that run on a node."""
    store = JobStore(airflow.tasks_path)
    jobs = [job for job in store.list_jobs() if job.submitted_by is not None and job.submitted_by.run_id == run_id]
    on_node = [job for job in jobs if (store.get_tasks(job.name)[0].where or "").endswith(f" on {node}")]
    return {job.submitted_by.task_id or "" for job in on_node if job.submitted_by is not None}
