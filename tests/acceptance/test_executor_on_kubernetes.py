"""The executor with its tasks in Pods, by configuration alone: the DAGs know nothing of it."""

from __future__ import annotations

import collections
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.evidence import DAGS, evidence
from tests.acceptance.test_executor import JWT, succeed
from tests.acceptance.test_executor_crashes import killing_the_manager, take_api_server_away
from tests.support.installation import EXECUTOR, ROOT, Installation
from tests.support.kubernetes_cluster import IMAGE, NODES, KubernetesCluster, missing
from tests.support.long import IS_WANTED, takes_long
from tests.support.waiting import wait_until

if IS_WANTED:  # they run here, too, on the installation of this module
    from tests.acceptance.test_executor import (  # noqa: F401
        test_a_deferrable_sensor,
        test_a_mapped_task_of_twenty,
        test_a_task_that_is_cleared_while_it_runs_runs_again,
        test_a_task_that_is_marked_failed_while_it_runs_is_gone,
        test_a_task_that_raises_is_tried_again,
        test_the_log_of_a_running_task,
    )

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.engine,
    pytest.mark.skipif(bool(missing()), reason=f"not there: {', '.join(missing())}; see make kubernetes-build"),
]
RUNNING = 4
TASKS = 6
AWAY_SECONDS = 60
MISSED_SECONDS = 180  # without a heartbeat, after which Airflow takes a task for gone
EACH_ONCE = collections.Counter(f"t{index}.-1" for index in range(TASKS))


@pytest.fixture(scope="module")
def cluster(kubernetes: KubernetesCluster) -> KubernetesCluster:
    return kubernetes


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


def volumes(*paths: str) -> list[dict[str, Any]]:
    """Directories of this machine in a Pod, at the same places: the image of the tests has no Python."""
    outer = [path for path in sorted(set(paths)) if not any(path.startswith(f"{other}/") for other in paths)]
    return [{"name": f"v{number}", "hostPath": {"path": path}, "mountPath": path} for number, path in enumerate(outer)]


@pytest.fixture(scope="module")
def airflow(
    cluster: KubernetesCluster, marks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An Airflow whose tasks all run in Pods: Airflow calls the queue of those that do not say ``default``.

    The Pods have its DAGs, but neither its home with its log folder, nor the job filesystem.
    """
    dags = tmp_path_factory.mktemp("dags")
    for file in ("executor_dags.py", "pod_dags.py"):
        (dags / file).symlink_to(DAGS / file)
    variables = [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    container = {"name": "task", "env": variables}
    options = {
        "image": IMAGE,
        "pod_template": {"spec": {"hostNetwork": True, "hostPID": True, "containers": [container]}},
        "volumes": volumes("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, str(ROOT), str(dags), str(marks)),
    }
    queue = {
        "runner": "kubernetes",
        "kubernetes": options,
        "python": sys.executable,
        # Those who ask for no processor get what nobody else wants.
        "resources": {"cpus": 0.3},
        "max_running_tasks": RUNNING,
        "env": {"EXECUTOR_TEST_MARKS": str(marks)},
    }
    settings = {
        "AIRFLOW__CORE__EXECUTOR": EXECUTOR,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__AIR_EXECUTOR__QUEUES": json.dumps({"default": queue, "here": {}}),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(MISSED_SECONDS),
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        # A scheduler that is gone is noticed after seconds, not minutes.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEARTBEAT_SEC": "2",
        "EXECUTOR_TEST_MARKS": str(marks),
        **cluster.environment,
    }
    installation = Installation(dags, settings, postgresql=True)
    installation.tasks_path = installation.home / "air-executor-tasks-default"
    installation.tasks_path.mkdir()
    runner = {"autoscaled": True, "ttl": 5, "lost_after": 20, "stuck_after": 2}
    (installation.tasks_path / "config.yaml").write_text(yaml.safe_dump({"runners": {"kubernetes": runner}}))
    with installation:
        yield installation
    cluster.cancel_all()


def begun(marks: Path, run_id: str) -> collections.Counter[str]:
    """How often each task has begun."""
    return collections.Counter(line.split()[1] for line in evidence(marks, run_id) if line.startswith("begin"))


def assert_each_ran_once(airflow: Installation, marks: Path, run_id: str) -> None:
    state, _ = airflow.follow("several", run_id)
    assert state == "success", airflow.explain("several", run_id)
    assert begun(marks, run_id) == EACH_ONCE
    assert {task["try_number"] for task in airflow.tasks("several", run_id)} == {1}


def test_two_branches_of_a_dag_overlap_on_two_nodes(airflow: Installation, marks: Path) -> None:
    """Each waits for the other one: if they did not run at the same time, neither would end."""
    run_id, _ = succeed(airflow, "branches")
    nodes = {line.split()[1] for line in evidence(marks, run_id) if line.startswith("node")}
    assert nodes == set(NODES)
    # The log folder is another one in the Pod.
    wait_until(lambda: "met on n1" in airflow.log("branches", run_id, "left"), what="the log is here", interval=0.5)
    assert airflow.log("branches", run_id, "left").count("met on n1") == 1


def pods(cluster: KubernetesCluster, what: str = "pods") -> list[dict[str, Any]]:
    """The Pods of the cluster, or other objects."""
    found: list[dict[str, Any]] = json.loads(cluster.kubectl("get", what, "-o", "json"))["items"]
    return found


@takes_long
def test_a_rescheduling_sensor_begins_again_on_a_node(airflow: Installation, marks: Path) -> None:
    run_id, _ = succeed(airflow, "rescheduling")
    assert evidence(marks, run_id) == ["poke"] * 3
    assert [task["try_number"] for task in airflow.tasks("rescheduling", run_id)] == [1]


@takes_long
def test_ends_are_told_apart(airflow: Installation, marks: Path, cluster: KubernetesCluster) -> None:
    """Each in the log of its task; and a task that waits for a node starts when there is one."""
    run_id = airflow.trigger("ends")
    over = lambda: list(airflow.task_states("ends", run_id).values()).count("failed") == 3  # noqa: E731
    wait_until(over, what="all but one have failed", interval=0.5)
    for task_id, why in (
        ("hungry", "ended by signal 9 (Killed); it may have used more memory"),
        ("image", "ErrImageNeverPull"),
        ("option", "kubernetes.imagee"),
    ):
        wait_until(lambda: why in airflow.log("ends", run_id, task_id), what=f"the log says {why}", interval=0.5)  # noqa: B023
        assert "Could not read served logs" not in airflow.log("ends", run_id, task_id)
    assert airflow.task_states("ends", run_id)["waits"] == "queued"
    wait_until(
        lambda: "waiting (0/2 nodes are available" in airflow.log("ends", run_id, "waits"),
        what="its log says why it waits",
    )
    cluster.kubectl("label", "node", "n2", "air-executor/test=later")
    try:
        assert airflow.follow("ends", run_id)[0] == "failed"
    finally:
        cluster.kubectl("label", "node", "n2", "air-executor/test-")
    assert evidence(marks, run_id) == ["waits"]


def test_no_secret_is_in_sight(airflow: Installation, marks: Path, cluster: KubernetesCluster) -> None:
    """Neither the token of a task nor a key of Airflow's, in the cluster, in the Pods or in any log."""
    (marks / "searched").unlink(missing_ok=True)
    run_id = airflow.trigger("holding")
    wait_until(lambda: evidence(marks, run_id).count("ready") == 2, what="the tasks run")
    keys = ("API_AUTH__JWT_SECRET", "API__SECRET_KEY", "CORE__FERNET_KEY", "DATABASE__SQL_ALCHEMY_CONN")
    secret = [airflow.environment[f"AIRFLOW__{key}"].encode() for key in keys]

    def is_clean(content: bytes) -> bool:
        return JWT.search(content) is None and not any(value in content for value in secret)

    found = [item for item in pods(cluster) if item["status"]["phase"] == "Running"]
    names = {item["metadata"]["name"] for item in found}
    assert len(names) >= 2

    def contents() -> list[str]:
        ours = [item for item in pods(cluster, "secrets") if item["metadata"]["name"] in names]
        return [value for item in ours for value in item["data"].values()]

    wait_until(lambda: not any(contents()), what="the Secrets of the Pods are empty", interval=0.5)
    for what in ("pods", "events", "configmaps"):
        assert is_clean(json.dumps(pods(cluster, what)).encode()), what
    for name in names:
        assert is_clean(cluster.kubectl("logs", name).encode())
    searched = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, words = ((process / file).read_bytes() for file in ("environ", "cmdline"))
        except OSError:
            continue
        if b"AIR_EXECUTOR_ATTACHED=" in environment or b"NODE=n" in environment:
            searched += 1
            assert is_clean(environment), environment
            assert is_clean(words)
    assert searched >= 2
    (marks / "searched").touch()
    assert airflow.follow("holding", run_id)[0] == "success"
    for path in [*airflow.home.glob("*.out"), *airflow.home.glob("logs/**/*.log"), *airflow.tasks_path.rglob("*")]:
        if path.is_file():
            assert is_clean(path.read_bytes()), path


@takes_long
def test_the_scheduler_is_killed(airflow: Installation, marks: Path) -> None:
    run_id = start_some(airflow, marks)
    airflow.kill_component("scheduler")
    airflow.start_component("scheduler")
    assert_each_ran_once(airflow, marks, run_id)


@takes_long
def test_the_manager_is_killed(airflow: Installation, marks: Path) -> None:
    run_id = start_some(airflow, marks)
    with killing_the_manager(airflow):
        assert_each_ran_once(airflow, marks, run_id)


@takes_long
def test_the_api_server_of_kubernetes_is_away_for_a_minute(
    airflow: Installation, marks: Path, cluster: KubernetesCluster
) -> None:
    """The first tasks end meanwhile."""
    run_id = start_some(airflow, marks)
    cluster.stop("kube-apiserver")
    try:
        time.sleep(AWAY_SECONDS)
    finally:
        cluster.start_api_server()
        cluster.wait_for_nodes()
    assert_each_ran_once(airflow, marks, run_id)


@takes_long
def test_the_api_server_of_airflow_is_away_for_a_minute(airflow: Installation, marks: Path) -> None:
    run_id = start_some(airflow, marks)
    take_api_server_away(airflow, AWAY_SECONDS)
    assert_each_ran_once(airflow, marks, run_id)


@takes_long
def test_a_node_is_lost(airflow: Installation, marks: Path, cluster: KubernetesCluster) -> None:
    """Its tasks begin again by a retry when Airflow has missed them; nothing else is done twice."""
    run_id = start_some(airflow, marks, are_held=True)
    nodes = tasks_by_node(airflow, run_id)
    node = max(NODES, key=lambda name: len(nodes[name]))
    cluster.lose_node(node)
    try:
        (marks / "hold").unlink()
        state, _ = airflow.follow("several", run_id)
    finally:
        cluster.start_node(node)
        cluster.wait_for_nodes()
    assert state == "success", airflow.explain("several", run_id)
    assert begun(marks, run_id) == EACH_ONCE + collections.Counter(f"{task_id}.-1" for task_id in nodes[node])
    for task_id in nodes[node]:
        wait_until(
            lambda: f"node {node} does not answer" in airflow.log("several", run_id, task_id),  # noqa: B023
            what="its log says why",
            interval=0.5,
        )


def tasks_by_node(airflow: Installation, run_id: str) -> dict[str, set[str]]:
    """The tasks of a run that run on each node."""
    store, found = JobStore(airflow.tasks_path), collections.defaultdict(set)
    for job in store.list_jobs():
        if job.submitted_by is not None and job.submitted_by.run_id == run_id:
            where = store.get_tasks(job.name)[0].where or ""
            found[where.rpartition(" on ")[2]].add(job.submitted_by.task_id or "")
    return found


def start_some(airflow: Installation, marks: Path, *, are_held: bool = False) -> str:
    """Start six tasks, and wait until some of them run and the others are queued.

    :param are_held: whether none goes on until the caller removes the file ``hold``.
    """
    hold = marks / "hold"

    def is_under_way() -> bool:
        states = collections.Counter(airflow.task_states("several", run_id).values())
        return len(begun(marks, run_id)) == RUNNING and states["queued"] == TASKS - RUNNING

    hold.touch()
    try:
        run_id = airflow.trigger("several", {"seconds": 2})
        wait_until(is_under_way, what="some run, the others are queued")
    except BaseException:
        hold.unlink()
        raise
    if not are_held:
        hold.unlink()
    return run_id
