"""The operator in a real Airflow: what becomes of its job when something happens to the task that waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.installation import EXECUTOR, SINCE_3_3, Installation
from tests.support.jobs import read_log
from tests.support.remote_manager import RemoteManager
from tests.support.waiting import wait_until

pytestmark = pytest.mark.airflow
DAG_FILE = Path(__file__).parent / "dags" / "operator_dags.py"


@pytest.fixture(scope="module", params=["files", "https"])
def airflow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An Airflow whose jobs are in files of its own, or with a manager that it reaches by HTTPS alone."""
    dags = tmp_path_factory.mktemp("dags")
    (dags / DAG_FILE.name).symlink_to(DAG_FILE)
    settings = {
        "AIRFLOW__CORE__EXECUTOR": EXECUTOR,
        "AIRFLOW__CORE__PARALLELISM": "32",
        "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": "8",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
    }
    with contextlib.ExitStack() as stack:
        if request.param == "https":
            base_path = prepared_base_path(tmp_path_factory.mktemp("far") / "jobs")
            manager = stack.enter_context(RemoteManager(base_path, tmp_path_factory.mktemp("server")))
            settings["AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT"] = json.dumps(manager.connection())
            installation = Installation(dags, settings, postgresql=True)
            installation.base_path = base_path
        else:
            installation = Installation(dags, settings, postgresql=True)
            prepared_base_path(installation.base_path)
        yield stack.enter_context(installation)


def prepared_base_path(path: Path) -> Path:
    """A base path where all of fifty jobs run at the same time."""
    path.mkdir(mode=0o700)
    (path / "config.yaml").write_text("max_concurrent_runners: 60\n")
    return path


@pytest.fixture
def store(airflow: Installation) -> JobStore:
    return JobStore(airflow.base_path)


def jobs_of(store: JobStore, run_id: str) -> list[Job]:
    """The jobs of a run, in the order of their map index."""
    found = [job for job in store.list_jobs() if job.submitted_by is not None and job.submitted_by.run_id == run_id]
    return sorted(found, key=lambda job: job.submitted_by.map_index if job.submitted_by else -1)


def working(store: JobStore, run_id: str, number: int = 1) -> list[Job]:
    def jobs() -> list[Job] | None:
        found = [job for job in jobs_of(store, run_id) if job.state == "working"]
        return found if len(found) == number else None

    return wait_until(jobs, what=f"{number} jobs of {run_id} work") or []


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """The file that the jobs of a run wait for."""
    return tmp_path / "go"


def start_and_defer(airflow: Installation, store: JobStore, dag_id: str, go: Path, number: int = 1) -> str:
    """Start a run, and wait until its tasks are deferred and their jobs work, which they do until a file is there."""
    run_id = airflow.trigger(dag_id, {"go": str(go)})
    working(store, run_id, number)

    def are_deferred() -> bool:
        return list(airflow.task_states(dag_id, run_id).values()) == ["deferred"] * number

    wait_until(are_deferred, what="they are deferred")
    logs = airflow.home / "logs" / f"dag_id={dag_id}" / f"run_id={run_id}"

    def are_watched() -> bool:  # each trigger logs the progress when it looks for the first time
        return (
            sum(re.search("tasks? done", log.read_text()) is not None for log in logs.rglob("*.trigger.*.log"))
            >= number
        )

    wait_until(are_watched, what="the triggerer waits")
    return run_id


def assert_all_lines_are_in_the_log(airflow: Installation, run_id: str, dag_id: str, store: JobStore, job: Job) -> None:
    """Whether Airflow's log of a task that has succeeded has each line of its job once.

    A task succeeds a moment before the last lines of its log are written.
    """
    lines = read_log(store, job.name, "work").text.splitlines()
    assert lines == ["started", *(f"line {number}" for number in range(1, len(lines)))]
    has_the_end = lambda: f"work | {lines[-1]}\n" in airflow.log(dag_id, run_id, "submit")  # noqa: E731
    wait_until(has_the_end, what="the end of the log is there")
    log = airflow.log(dag_id, run_id, "submit")
    assert [log.count(f"work | {line}\n") for line in lines] == [1] * len(lines)


def assert_it_says_which_airflow_it_is(airflow: Installation, job: Job) -> None:
    """Whether a job's owner has the word that the database has, whichever process has asked for it."""
    assert job.submitted_by is not None
    assert job.submitted_by.installation == airflow.api("/variables/air_executor_installation")["value"]


def is_cancelled(store: JobStore, name: str) -> bool:
    return store.get_job(name).reason == "cancelled"


def test_complaint_6_the_logs_are_missing_while_the_task_is_deferred(
    airflow: Installation, store: JobStore, go: Path
) -> None:
    """#28647, #58676. And what a task hands over is returned."""
    run_id = start_and_defer(airflow, store, "waits", go)
    wait_until(lambda: "work | line 2" in airflow.log("waits", run_id, "submit"), what="it is heard")
    assert airflow.task_states("waits", run_id) == {"submit": "deferred"}
    go.touch()
    assert airflow.follow("waits", run_id)[0] == "success"
    assert_all_lines_are_in_the_log(airflow, run_id, "waits", store, *jobs_of(store, run_id))
    assert airflow.xcom("waits", run_id, "submit") == {"work": "done"}
    assert_it_says_which_airflow_it_is(airflow, *jobs_of(store, run_id))


def test_complaint_1_a_deferred_task_is_cleared_and_the_job_runs_on(
    airflow: Installation, store: JobStore, go: Path
) -> None:
    """#36090, #20580, #19929. The new run gets a new job."""
    run_id = start_and_defer(airflow, store, "waits", go)
    (old,) = jobs_of(store, run_id)
    pid = int((store.paths(old.name).runs / "work.1").read_text().split()[0])
    airflow.clear("waits", run_id, "submit")
    is_replaced = lambda: [job.id for job in jobs_of(store, run_id)] not in ([], [old.id])  # noqa: E731
    wait_until(is_replaced, what="the new run has a job of its own")
    go.touch()
    state, _ = airflow.follow("waits", run_id)
    assert state == "success", airflow.explain("waits", run_id)
    (new,) = jobs_of(store, run_id)
    assert (new.name, new.state) == (old.name, "completed")
    assert new.submitted_by is not None
    assert old.submitted_by is not None
    assert new.submitted_by.max_tries != old.submitted_by.max_tries
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("state", ["failed", "success"])
def test_complaint_1_a_deferred_task_is_marked_and_the_job_runs_on(
    airflow: Installation, store: JobStore, go: Path, state: str
) -> None:
    run_id = start_and_defer(airflow, store, "waits", go)
    (job,) = jobs_of(store, run_id)
    airflow.mark("waits", run_id, "submit", state)
    wait_until(lambda: is_cancelled(store, job.name), what="the job is cancelled")
    assert airflow.task_states("waits", run_id) == {"submit": state}


def test_complaint_1_one_of_the_mapped_tasks_is_marked(airflow: Installation, store: JobStore, go: Path) -> None:
    run_id = start_and_defer(airflow, store, "mapped_jobs", go, number=3)
    jobs = jobs_of(store, run_id)
    airflow.mark("mapped_jobs", run_id, "submit/1", "failed")
    wait_until(lambda: is_cancelled(store, jobs[1].name), what="its job is cancelled")
    go.touch()
    assert airflow.follow("mapped_jobs", run_id)[0] == "failed"
    assert [store.get_job(job.name).state for job in jobs] == ["completed", "failed", "completed"]


def test_complaint_1_one_of_the_mapped_tasks_is_cleared(airflow: Installation, store: JobStore, go: Path) -> None:
    """Its job is replaced, the others go on."""
    run_id = start_and_defer(airflow, store, "mapped_jobs", go, number=3)
    before = jobs_of(store, run_id)
    airflow.clear("mapped_jobs", run_id, ("submit", 1))

    def is_replaced() -> bool:
        jobs = jobs_of(store, run_id)
        return len(jobs) == 3 and jobs[1].id != before[1].id

    wait_until(is_replaced, what="the new run has a job of its own")
    go.touch()
    state, _ = airflow.follow("mapped_jobs", run_id)
    assert state == "success", airflow.explain("mapped_jobs", run_id)
    after = jobs_of(store, run_id)
    assert [job.state for job in after] == ["completed"] * 3
    assert [old.started_at == new.started_at for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_complaint_2_jobs_are_killed_when_the_triggerer_is_killed(
    airflow: Installation, store: JobStore, go: Path
) -> None:
    """#41231, #39442. Fifty wait; all complete, once."""
    run_id = start_and_defer(airflow, store, "many_jobs", go, number=50)
    airflow.kill_component("triggerer")
    airflow.start_component("triggerer")
    go.touch()
    state, _ = airflow.follow("many_jobs", run_id)
    assert state == "success", airflow.explain("many_jobs", run_id)
    jobs = jobs_of(store, run_id)
    assert [(job.state, job.attempt) for job in jobs] == [("completed", 1)] * 50


def test_complaint_2_jobs_are_killed_when_the_triggerer_is_restarted(
    airflow: Installation, store: JobStore, go: Path
) -> None:
    """And each line of a job that prints all the time is in the log once."""
    run_id = start_and_defer(airflow, store, "talks", go)
    (job,) = jobs_of(store, run_id)
    airflow.stop_component("triggerer")
    airflow.start_component("triggerer")
    printed = len(read_log(store, job.name, "work").text.splitlines())
    wait_until(
        lambda: f"work | line {printed}\n" in airflow.log("talks", run_id, "submit"), what="the next one goes on"
    )
    go.touch()
    state, _ = airflow.follow("talks", run_id)
    assert state == "success", airflow.explain("talks", run_id)
    job = store.get_job(job.name)
    assert (job.state, job.attempt) == ("completed", 1)
    assert_all_lines_are_in_the_log(airflow, run_id, "talks", store, job)


def test_complaint_3_a_lost_worker_means_a_second_submit(airflow: Installation, store: JobStore, go: Path) -> None:
    """#67118. The next try waits for the same job."""
    run_id = airflow.trigger("holds_a_worker", {"go": str(go)})
    (job,) = working(store, run_id)
    tasks = JobStore(airflow.tasks_path)
    (workload,) = working(tasks, run_id)
    os.kill(int((tasks.paths(workload.name).runs / "workload.1").read_text().split()[0]), signal.SIGKILL)
    has_a_second = lambda: [task["try_number"] for task in airflow.tasks("holds_a_worker", run_id)] == [2]  # noqa: E731
    wait_until(has_a_second, what="the next try has begun", interval=1)
    go.touch()
    state, _ = airflow.follow("holds_a_worker", run_id)
    assert state == "success", airflow.explain("holds_a_worker", run_id)
    assert [task["try_number"] for task in airflow.tasks("holds_a_worker", run_id)] == [2]
    after = store.get_job(job.name)
    assert (after.id, after.attempt, after.state) == (job.id, 1, "completed")
    assert airflow.xcom("holds_a_worker", run_id, "submit") == {"work": "done"}


def test_complaint_3_the_worker_is_lost_between_submission_and_deferral(
    airflow: Installation, store: JobStore, go: Path
) -> None:
    """#67118, in the deferred path: the next try finds the job that nobody has told Airflow of."""
    run_id = airflow.trigger("dies_before_deferral", {"go": str(go)})
    (job,) = working(store, run_id)
    is_deferred = lambda: airflow.task_states("dies_before_deferral", run_id) == {"submit": "deferred"}  # noqa: E731
    wait_until(is_deferred, what="the next try is deferred")
    go.touch()
    state, _ = airflow.follow("dies_before_deferral", run_id)
    assert state == "success", airflow.explain("dies_before_deferral", run_id)
    assert [task["try_number"] for task in airflow.tasks("dies_before_deferral", run_id)] == [2]
    after = store.get_job(job.name)
    assert (after.id, after.attempt, after.state) == (job.id, 1, "completed")
    assert airflow.xcom("dies_before_deferral", run_id, "submit") == {"work": "done"}


@pytest.mark.parametrize("dag_id", ["times_out", "times_out_in_the_worker"])
def test_complaint_4_a_timeout_leaks_the_job(airflow: Installation, store: JobStore, dag_id: str) -> None:
    """#61467, #64048: ``execution_timeout`` and the operator's own, deferred and in a worker."""
    run_id = airflow.trigger(dag_id)
    assert airflow.follow(dag_id, run_id)[0] == "failed"
    jobs = jobs_of(store, run_id)
    assert len(jobs) == 2
    wait_until(lambda: all(is_cancelled(store, job.name) for job in jobs), what="both are cancelled")
    for task_id in ("by_execution_timeout", "by_timeout"):
        assert "it is cancelled" in airflow.log(dag_id, run_id, task_id)


def test_complaint_4_the_triggerer_is_away_when_the_time_is_over(airflow: Installation, store: JobStore) -> None:
    """Airflow then ends the deferral itself, and calls neither trigger nor operator to cancel."""
    run_id = airflow.trigger("times_out")
    jobs = working(store, run_id, 2)

    def are_deferred() -> bool:
        return set(airflow.task_states("times_out", run_id).values()) == {"deferred"}

    wait_until(are_deferred, what="they are deferred")
    airflow.kill_component("triggerer")
    try:
        assert airflow.follow("times_out", run_id)[0] == "failed"
    finally:
        airflow.start_component("triggerer")
    # Of one with a timeout of its own the manager knows, too, and it may be earlier.
    wait_until(lambda: all(store.get_job(job.name).state == "failed" for job in jobs), what="both have ended")
    assert {store.get_job(job.name).reason for job in jobs} <= {"cancelled", "timeout"}


def test_complaint_5_one_failed_poll_fails_the_task(airflow: Installation, store: JobStore, go: Path) -> None:
    """#67219, #46908: the state is half-written for a while, as external writers leave it."""
    run_id = start_and_defer(airflow, store, "waits", go)
    (job,) = jobs_of(store, run_id)
    path = store.paths(job.name).state
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    time.sleep(3)
    assert airflow.task_states("waits", run_id) == {"submit": "deferred"}
    path.write_bytes(whole)
    go.touch()
    state, _ = airflow.follow("waits", run_id)
    assert state == "success", airflow.explain("waits", run_id)
    assert store.get_job(job.name).attempt == 1


def test_complaint_7_soft_fail_and_timeouts_disagree(airflow: Installation, store: JobStore) -> None:
    """#61130, #71255: a timeout is skipped, a job that failed is a failure."""
    run_id = airflow.trigger("sensors")
    assert airflow.follow("sensors", run_id)[0] == "failed"
    states = airflow.task_states("sensors", run_id)
    assert (states["too_long"], states["broken"]) == ("skipped", "failed")
    for job in jobs_of(store, run_id):
        inbox.cancel(store, job.name)


def test_complaint_9_ids_and_links_are_missing_on_failure(airflow: Installation, store: JobStore) -> None:
    """#58227."""
    run_id = airflow.trigger("no_worker_fails")
    wait_until(lambda: len(jobs_of(store, run_id)) == 2, what="both jobs are there")
    assert airflow.follow("no_worker_fails", run_id)[0] == "failed"
    for job in jobs_of(store, run_id):
        assert job.submitted_by is not None
        task_id = job.submitted_by.task_id
        assert airflow.xcom("no_worker_fails", run_id, task_id, "job_name") == job.name
        assert airflow.xcom("no_worker_fails", run_id, task_id, "job_id") == job.id
        (link,) = airflow.links("no_worker_fails", run_id, task_id).values()
        assert job.name in link


def test_complaint_10_completed_tasks_run_again(airflow: Installation, store: JobStore) -> None:
    """#29250."""
    run_id = airflow.trigger("fails_once")
    state, _ = airflow.follow("fails_once", run_id)
    assert state == "success", airflow.explain("fails_once", run_id)
    assert [task["try_number"] for task in airflow.tasks("fails_once", run_id)] == [2]
    (job,) = jobs_of(store, run_id)
    attempts = {task.id: task.attempt for task in store.get_tasks(job.name)}
    assert attempts == {"download": 1, "report": 2, "send": 1}


def test_results_that_airflow_cannot_keep(airflow: Installation, store: JobStore) -> None:
    """On each way the task fails at its first try, and says which file it is."""
    run_id = airflow.trigger("unfit_results")
    assert airflow.follow("unfit_results", run_id)[0] == "failed"
    found = airflow.tasks("unfit_results", run_id)
    assert len(found) == 12
    names = {job.submitted_by.task_id: job.name for job in jobs_of(store, run_id) if job.submitted_by is not None}
    for task in found:
        name = names[task["task_id"]]
        assert (task["state"], task["try_number"]) == ("failed", 1), task["task_id"]
        assert store.get_job(name).state == "completed"
        log = airflow.log("unfit_results", run_id, task["task_id"])
        assert f"{store.paths(name).output('report', 1)} cannot be kept" in log, task["task_id"]


@pytest.mark.skipif(not SINCE_3_3, reason="before Airflow 3.3 a worker begins")
def test_a_task_without_a_worker(airflow: Installation, store: JobStore) -> None:
    """Submitted, waited for and ended in the triggerer, with what it returns, prints, and links to."""
    run_id = airflow.trigger("no_worker")
    state, seen = airflow.follow("no_worker", run_id)
    assert state == "success", airflow.explain("no_worker", run_id)
    assert seen["submit"][-1] == "success"
    assert jobs_of(JobStore(airflow.tasks_path), run_id) == []  # no worker was asked for
    (job,) = jobs_of(store, run_id)
    assert (job.state, job.attempt) == ("completed", 1)
    assert_it_says_which_airflow_it_is(airflow, job)
    assert airflow.xcom("no_worker", run_id, "submit") == {"work": "done"}
    assert airflow.xcom("no_worker", run_id, "submit", "job_name") == job.name
    log = airflow.log("no_worker", run_id, "submit")
    assert f"submitted job {job.name} with 1 tasks" in log
    assert f"job {job.name}: completed" in log


def test_a_task_without_a_worker_that_fails_is_tried_again_by_one(airflow: Installation, store: JobStore) -> None:
    run_id = airflow.trigger("no_worker_fails")
    assert airflow.follow("no_worker_fails", run_id)[0] == "failed"
    jobs = {job.submitted_by.task_id: job for job in jobs_of(store, run_id) if job.submitted_by is not None}
    assert (jobs["submit"].attempt, jobs["submit"].state) == (2, "failed")  # the retry let it run again
    assert "work | broken" in airflow.log("no_worker_fails", run_id, "submit", 2)
    wait_until(lambda: is_cancelled(store, jobs["waits"].name), what="its execution_timeout has cancelled it")
    assert airflow.task_states("no_worker_fails", run_id) == {"submit": "failed", "waits": "failed"}


@pytest.mark.skipif(not SINCE_3_3, reason="before Airflow 3.3 a worker begins")
def test_a_task_without_a_worker_is_marked(airflow: Installation, store: JobStore) -> None:
    run_id = airflow.trigger("no_worker_fails")
    wait_until(lambda: len(jobs_of(store, run_id)) == 2, what="both jobs are there")
    airflow.mark("no_worker_fails", run_id, "waits", "success")
    (job,) = [job for job in jobs_of(store, run_id) if job.submitted_by and job.submitted_by.task_id == "waits"]
    wait_until(lambda: is_cancelled(store, job.name), what="its job is cancelled")


def told(airflow: Installation, asset: str) -> list[str]:
    """The ends of jobs that Airflow has been told of, as events of an asset."""

    def ask() -> Any:
        try:
            return airflow.api("/assets/events?limit=1000")
        except urllib.error.HTTPError as error:
            # Airflow's answer as long as a DAG run that an event has made waits to be started: its schema of the
            # answer wants the start of each such run (seen with 3.3.2).
            if error.code != 500:
                raise
            return None

    events = wait_until(ask, what="Airflow lists the events of its assets", interval=0.2)["asset_events"]
    events = [event for event in events if event["name"] == asset]
    return sorted(f"{event['extra']['payload']['job_name']} {event['extra']['payload']['state']}" for event in events)


def received(airflow: Installation, dag_id: str) -> list[str]:
    """What the runs of a DAG that is scheduled by such events have got, all together."""
    found: list[str] = []
    for run in airflow.api(f"/dags/{dag_id}/dagRuns?limit=1000")["dag_runs"]:
        if run["state"] == "success":
            found += airflow.xcom(dag_id, run["dag_run_id"], "receive")
    return sorted(found)


def test_the_end_of_a_job_schedules_a_dag_once(airflow: Installation, store: JobStore, tmp_path: Path) -> None:
    """Whoever has submitted the job, and also across a restart of the triggerer in which some of them end."""
    for dag_id in ("reacts_to_ends", "reacts_to_reports"):
        airflow.wait_for_dag(dag_id)
    wait_until(lambda: len(list((store.base_path / "readers").glob("*"))) == 2, what="both triggers run")
    airflow.air_executor("manager", "--detach", check=False)  # if none runs
    expected: list[str] = []

    def submit(name: str, line: str, **more: object) -> None:
        file = tmp_path / "job.json"
        file.write_text(json.dumps({"name": name, "tasks": [line], **more}))
        airflow.air_executor("submit", str(file))
        if name.startswith("watched-"):
            expected.append(f"{name} {'failed' if 'exit' in line else 'completed'}")

    def all_have_fired() -> bool:
        return told(airflow, "ends") == sorted(expected)

    submit("watched-1", "true", outlets=["file:///report"])
    submit("watched-2", "exit 1", outlets=["file:///report"])
    submit("unwatched", "true", outlets=["file:///report"])
    wait_until(all_have_fired, what="the first ones are emitted", interval=0.5)

    def are_marked() -> bool:
        marks = [
            len(list(store.paths(name).directory.glob(".seen-*"))) for name in ("watched-1", "watched-2", "unwatched")
        ]
        return marks == [2, 1, 1]

    wait_until(are_marked, what="they are acknowledged")  # a triggerer that ends before emits them again
    submit("watched-later", "sleep 12")
    airflow.stop_component("triggerer")
    submit("watched-meanwhile", "true")
    wait_until(lambda: store.get_job("watched-later").state == "completed", what="it has ended")
    airflow.start_component("triggerer")
    submit("watched-after", "true")
    wait_until(all_have_fired, what="those of the restart are emitted", interval=0.5)
    # Nothing comes twice, also if it is killed.
    names = ("watched-later", "watched-meanwhile", "watched-after")
    wait_until(lambda: all(list(store.paths(name).directory.glob(".seen-*")) for name in names), what="they are marked")
    time.sleep(8)
    airflow.kill_component("triggerer")
    airflow.start_component("triggerer")
    submit("watched-last", "true")
    wait_until(all_have_fired, what="the last one is emitted", interval=0.5)
    assert told(airflow, "reports") == ["unwatched completed", "watched-1 completed"]
    # Airflow gives several events to one run, and may leave one of a moment for the next run.
    for dag_id, possible in (("reacts_to_ends", expected), ("reacts_to_reports", told(airflow, "reports"))):
        taken = wait_until(lambda dag_id=dag_id: received(airflow, dag_id), what="the DAG ran", interval=0.5)
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(possible)


@pytest.mark.skipif(not SINCE_3_3, reason="before Airflow 3.3 there are no retry policies")
def test_a_retry_policy_tells_the_kinds_of_failure_apart(airflow: Installation) -> None:
    run_id = airflow.trigger("policy")
    assert airflow.follow("policy", run_id)[0] == "failed"
    assert [task["try_number"] for task in airflow.tasks("policy", run_id)] == [1]


def test_taskflow(airflow: Installation) -> None:
    run_id = airflow.trigger("taskflow")
    assert airflow.follow("taskflow", run_id)[0] == "success", airflow.explain("taskflow", run_id)
    assert airflow.xcom("taskflow", run_id, "total") == 5


def test_templates_and_outputs_of_other_tasks_and_files(airflow: Installation, store: JobStore) -> None:
    run_id = airflow.trigger("templates")
    assert airflow.follow("templates", run_id)[0] == "success", airflow.explain("templates", run_id)
    for task_id in ("waits", "defers"):
        assert airflow.xcom("templates", run_id, task_id) == {
            "args": "picked {{ ds }}",  # what another task returns is not rendered
            "env": "whole templates  /tmp",  # append_env=False: there is no AIRFLOW_HOME
            "whole": "a whole task",
            "task-4": "task-4 of templates",
        }
    by_task = {job.submitted_by.task_id: job for job in jobs_of(store, run_id) if job.submitted_by is not None}
    assert (by_task["waits"].priority, by_task["waits"].timeout) == (3, 660)
    (task, *_) = store.get_tasks(by_task["waits"].name)
    assert (task.timeout, task.retries, task.runner) == (600, 1, "local")
    assert airflow.xcom("templates", run_id, "no_worker") == {"script": "script of templates", "line": "templates"}
    assert (by_task["no_worker"].max_parallel_tasks, by_task["no_worker"].labels) == (1, {"run": run_id})
    assert airflow.xcom("templates", run_id, "decorated") == {"script": "script of templates", "line": ""}
    states = {(task["task_id"], task["map_index"]): task["state"] for task in airflow.tasks("templates", run_id)}
    assert states["nothing", -1] == "skipped"
    assert [states["mapped", index] for index in (0, 1)] == ["success", "success"]
