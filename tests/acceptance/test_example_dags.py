"""The example DAGs under a real scheduler, triggerer, dag-processor and API server.

With the embedded manager; with a manager that was started before Airflow, as a service; with such a manager whose
configuration says that Slurm runs the tasks, or Kubernetes; and with one on another machine, which another connection
leads to, by HTTPS or by SSH.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from airflow_provider_air_executor.engines.kubernetes.output import CUT_OFF
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance import over_network as other_machine
from tests.acceptance.over_network import OverNetwork
from tests.support import kubernetes_cluster, slurm_cluster
from tests.support.installation import EXAMPLES, EXECUTOR, Installation
from tests.support.jobs import read_log
from tests.support.managers import CLI
from tests.support.waiting import wait_until

pytestmark = pytest.mark.airflow


# One of the examples hands a file from task to task in the job's directory.
ON_KUBERNETES = f"""\
runner: kubernetes
runners:
  kubernetes:
    image: {kubernetes_cluster.IMAGE}
    pod_template: {{spec: {{hostNetwork: true}}}}
    share_job_files: true
    volumes: [{{name: jobs, hostPath: {{path: BASE_PATH}}, mountPath: BASE_PATH}}]
"""


OTHER_MACHINE = ("https", "ssh")


def on(runner: str, cluster: Any) -> Any:
    """The parameter for an engine, or a way to another machine, which may be missing."""
    marks = [pytest.mark.skipif(bool(cluster.missing()), reason=f"{runner} is missing")]
    return pytest.param(runner, marks=marks if runner in OTHER_MACHINE else [*marks, pytest.mark.engine])


@pytest.fixture(scope="session")
def with_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An Airflow that does not start a manager itself."""
    base_path = tmp_path_factory.mktemp("jobs")
    connection = json.dumps({"conn_type": "air_executor", "extra": {"base_path": str(base_path)}})
    settings = {"AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT": connection, "AIRFLOW__CORE__EXECUTOR": EXECUTOR}
    with Installation(EXAMPLES, settings) as installation:
        installation.base_path = base_path
        yield installation


@pytest.fixture(
    scope="module",
    params=[
        "embedded",
        "service",
        on("slurm", slurm_cluster),
        on("kubernetes", kubernetes_cluster),
        on("https", other_machine),
        on("ssh", other_machine),
    ],
)
def airflow(request: pytest.FixtureRequest) -> Iterator[Installation]:
    """A running Airflow with the example DAGs."""
    if request.param == "embedded":
        yield request.getfixturevalue("with_executor")
    elif request.param in OTHER_MACHINE:
        machines: OverNetwork = request.getfixturevalue("over_network")
        with machines.https() if request.param == "https" else machines.ssh():
            yield machines.airflow
    else:
        yield from with_manager(request, request.getfixturevalue("with_service"))


def with_manager(request: pytest.FixtureRequest, installation: Installation) -> Iterator[Installation]:
    """Run a manager, with the engine that is asked for, beside an Airflow."""
    store = store_of(installation)
    store.create_directories()
    environment, config = dict(os.environ), ""
    if request.param == "slurm":
        environment.update(request.getfixturevalue("slurm").environment)
        config = "runner: slurm\n"
    elif request.param == "kubernetes":
        environment.update(request.getfixturevalue("kubernetes").environment)
        config = ON_KUBERNETES.replace("BASE_PATH", str(store.base_path))
    (store.base_path / "config.yaml").write_text(config)
    command = [*CLI, "manager", "--base-path", str(store.base_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as manager:
        try:
            wait_until(lambda: manager_status.pid(store) == manager.pid, what="the manager runs")
            yield installation
            assert manager.poll() is None
        finally:
            manager.terminate()


def store_of(airflow: Installation) -> JobStore:
    """The job filesystem that this Airflow uses."""
    return JobStore(airflow.base_path)


def job_of(airflow: Installation, run_id: str) -> Job:
    """The job that was submitted in a DAG run."""
    jobs = store_of(airflow).list_jobs()
    (found,) = (job for job in jobs if job.submitted_by is not None and job.submitted_by.run_id == run_id)
    return found


def outputs(airflow: Installation, job: Job) -> dict[str, str]:
    store = store_of(airflow)
    return {task.id: read_log(store, job.name, task.id).text.strip() for task in store.get_tasks(job.name)}


def have_printed(airflow: Installation, job: Job, expected: dict[str, str]) -> None:
    """Check what the tasks of a job have printed.

    containerd 1.6 loses the end of an output now and then: then the log says so.
    """
    found = outputs(airflow, job)
    lost = {name: expected[name] for name, text in found.items() if text == CUT_OFF.decode().strip()}
    assert {**found, **lost} == expected


def deferred_run(airflow: Installation, dag_id: str, task_id: str) -> str:
    """The id of a DAG run one task of which is deferred: the job that it waits for begins only then."""
    with airflow.paused():
        run_id = airflow.trigger(dag_id)

        def is_deferred() -> bool:
            airflow.must_go_on(dag_id, run_id)
            return airflow.task_states(dag_id, run_id).get(task_id) == "deferred"

        wait_until(is_deferred, what=f"{task_id} is deferred", interval=0.5)
        says_so = lambda: "tasks done" in airflow.log(dag_id, run_id, task_id)  # noqa: E731
        wait_until(says_so, what="the trigger says in the log how far the job is", interval=0.5)
        return run_id


def test_submit_sensor_and_result(airflow: Installation) -> None:
    run_id = deferred_run(airflow, "example_submit_and_wait", "wait")
    state, _ = airflow.follow("example_submit_and_wait", run_id)
    assert state == "success", airflow.explain("example_submit_and_wait", run_id)
    expected = {
        "download": "downloaded 3 files",
        "transform": f"transformed the files of {run_id}",
        "upload": "uploaded 1 file",
    }
    job = job_of(airflow, run_id)
    have_printed(airflow, job, expected)
    assert airflow.xcom("example_submit_and_wait", run_id, "submit") == job.name
    assert airflow.xcom("example_submit_and_wait", run_id, "submit", "job_id") == job.id
    assert airflow.xcom("example_submit_and_wait", run_id, "result") == expected
    log = airflow.log("example_submit_and_wait", run_id, "wait")
    assert re.search(r"transform +completed +1 +[0-9.]+ .* 0\n", log)
    assert "upload | uploaded 1 file" in log


def test_the_operator_alone(airflow: Installation) -> None:
    run_id = deferred_run(airflow, "example_deferrable_operator", "run")
    state, _ = airflow.follow("example_deferrable_operator", run_id)
    assert state == "success", airflow.explain("example_deferrable_operator", run_id)
    job = job_of(airflow, run_id)
    assert job.name.startswith("report_manual__")
    have_printed(airflow, job, {"task-1": "one", "task-2": "two", "task-3": "three"})
    assert airflow.xcom("example_deferrable_operator", run_id, "run", "job_name") == job.name
    assert airflow.xcom("example_deferrable_operator", run_id, "run") == {}  # no task has written a result


def test_a_diamond_of_dependencies(airflow: Installation) -> None:
    run_id = airflow.trigger("example_diamond")
    assert airflow.follow("example_diamond", run_id)[0] == "success", airflow.explain("example_diamond", run_id)
    job = job_of(airflow, run_id)
    have_printed(airflow, job, {"split": "", "odd": "50", "even": "50", "join": "joined"})
    times = {task.id: task for task in store_of(airflow).get_tasks(job.name)}
    before = max(times["odd"].completed_at, times["even"].completed_at)  # type: ignore[type-var]
    if times["join"].runner or times["join"].where:  # an engine gives the time of a start in whole seconds
        before = before.replace(microsecond=0)  # type: ignore[union-attr]
    assert times["join"].started_at >= before  # type: ignore[operator]


def test_a_job_that_fails(airflow: Installation) -> None:
    run_id = airflow.trigger("example_failing_job")
    state, seen = airflow.follow("example_failing_job", run_id)
    assert state == "failed"
    assert seen["fails"][-1] == "failed"
    job = job_of(airflow, run_id)
    assert (job.state, job.reason) == ("failed", "exit")
    assert [task.reason for task in store_of(airflow).get_tasks(job.name)] == [None, "exit", "dependency"]
    log = airflow.log("example_failing_job", run_id, "fails")
    for text in ("task break: exit code 3", "break | the disk is on fire"):
        assert text in log
    assert airflow.xcom("example_failing_job", run_id, "fails", "job_name") == job.name


def test_taskflow(airflow: Installation) -> None:
    run_id = deferred_run(airflow, "example_taskflow", "square")
    state, _ = airflow.follow("example_taskflow", run_id)
    assert state == "success", airflow.explain("example_taskflow", run_id)
    assert airflow.xcom("example_taskflow", run_id, "square") == {"square-3": 9, "square-4": 16}
    assert airflow.xcom("example_taskflow", run_id, "add") == 25


def test_a_dag_that_begins_when_a_job_ends(airflow: Installation) -> None:
    for dag_id in ("example_asset_consumer", "example_asset_producer"):
        airflow.wait_for_dag(dag_id)
    readers = store_of(airflow).base_path / "readers"
    wait_until(lambda: readers.exists() and list(readers.iterdir()), what="somebody watches")

    def consumed() -> list[str]:
        runs = airflow.api("/dags/example_asset_consumer/dagRuns?limit=100")["dag_runs"]
        return [run["dag_run_id"] for run in runs if run["state"] == "success"]

    before = consumed()
    run_id = airflow.trigger("example_asset_producer")
    assert airflow.follow("example_asset_producer", run_id)[0] == "success"
    (new,) = wait_until(lambda: set(consumed()) - set(before), what="the other DAG ran", interval=0.5)
    assert airflow.xcom("example_asset_consumer", new, "consume") == [job_of(airflow, run_id).name]


def test_the_embedded_manager_survives_airflow_tasks_and_its_own_death(
    airflow: Installation, request: pytest.FixtureRequest
) -> None:
    store = store_of(airflow)
    if request.node.callspec.params["airflow"] not in ("embedded", "ssh"):
        pytest.skip("here the manager is a service; who restarts it is not Airflow")
    run_id = deferred_run(airflow, "example_submit_and_wait", "wait")
    pid = manager_status.pid(store)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert airflow.follow("example_submit_and_wait", run_id)[0] == "success"
    assert outputs(airflow, job_of(airflow, run_id))["upload"] == "uploaded 1 file"
