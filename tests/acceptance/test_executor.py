"""The executor in a real Airflow: what a user may do to tasks, and what must come of it."""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
import subprocess
import sys
import time
import urllib.error
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore
from tests.acceptance.evidence import evidence
from tests.support.installation import DEFERS, SINCE_3_3, Installation
from tests.support.processes import is_gone
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.airflow
JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")


@pytest.fixture
def marks(executor_marks: Path) -> Path:
    return executor_marks


@pytest.fixture
def airflow(with_executor: Installation) -> Installation:
    return with_executor


def succeed(airflow: Installation, dag_id: str, **more: Any) -> tuple[str, dict[str, list[str]]]:
    """Run a DAG that must succeed."""
    run_id = airflow.trigger(dag_id, more.pop("conf", None))
    state, seen = airflow.follow(dag_id, run_id, **more)
    assert state == "success", airflow.explain(dag_id, run_id)
    return run_id, seen


def test_the_classic_example_runs_its_branches_side_by_side(airflow: Installation) -> None:
    overlaps: list[bool] = []
    while not any(overlaps) and len(overlaps) < 10:  # one of them is short, and may have begun too early
        run_id, _ = succeed(airflow, "example_executor")
        times = {
            task["task_id"]: [datetime.fromisoformat(task[key]) for key in ("start_date", "end_date")]
            for task in airflow.tasks("example_executor", run_id)
        }
        assert times["print_date"][1] <= min(times["sleep"][0], times["print_hello"][0])
        begins, ends = zip(times["sleep"], times["print_hello"], strict=True)
        overlaps.append(max(begins) < min(ends))
    assert any(overlaps)
    assert "Hello from a warm runner" in airflow.log("example_executor", run_id, "print_hello")
    assert airflow.xcom("example_executor", run_id, "print_hello") == "Hello"


def test_the_fork_server_is_warm(airflow: Installation) -> None:
    log = (airflow.tasks_path / "manager.log").read_text()
    assert re.search(r"fork server \d+ is warm", log)
    assert "cold" not in log.replace("env of job", "")


def test_a_deferrable_sensor(airflow: Installation) -> None:
    run_id, seen = succeed(airflow, "deferring")
    assert DEFERS in airflow.log("deferring", run_id, "wait")
    assert "failed" not in seen["wait"]


def test_a_rescheduling_sensor_twenty_times(airflow: Installation, marks: Path) -> None:
    runs = [airflow.trigger("rescheduling") for _ in range(20)]
    for run_id in runs:
        state, _ = airflow.follow("rescheduling", run_id)
        assert state == "success", airflow.explain("rescheduling", run_id)
        assert evidence(marks, run_id) == ["poke"] * 3
        assert [task["try_number"] for task in airflow.tasks("rescheduling", run_id)] == [1]


def test_a_mapped_task_of_twenty(airflow: Installation, marks: Path) -> None:
    run_id, _ = succeed(airflow, "mapped")
    assert airflow.xcom("mapped", run_id, "total") == sum(range(20))
    begun = [line.split()[1] for line in evidence(marks, run_id) if line.startswith("begin")]
    assert sorted(begun) == sorted(f"number.{index}" for index in range(20))


def test_slots_are_respected_and_the_highest_priority_starts_first(airflow: Installation, marks: Path) -> None:
    hold = marks / "hold"
    hold.touch()
    try:
        run_id = airflow.trigger("many", {"seconds": 0.5})
        wait_until(lambda: len(evidence(marks, run_id)) == 8, what="as many as may have begun")
    finally:
        hold.unlink()
    state, _ = airflow.follow("many", run_id)
    assert state == "success", airflow.explain("many", run_id)
    lines = [line.split()[:2] for line in evidence(marks, run_id)]
    running = list(itertools.accumulate(1 if what == "begin" else -1 for what, _ in lines))
    assert max(running) == 8
    order = [int(name.removeprefix("t").partition(".")[0]) for what, name in lines if what == "begin"]
    # The first eight may not all have been queued in one loop of the scheduler; of the rest the best go first.
    assert sum(order[:10]) > sum(order[10:])


def test_a_task_that_raises_is_tried_again(airflow: Installation, marks: Path) -> None:
    run_id, seen = succeed(airflow, "raising")
    assert evidence(marks, run_id) == ["try 1", "try 2"]
    assert "failed" not in seen["raises"]
    assert "not yet" in airflow.log("raising", run_id, "raises", 1)


def running_pids(marks: Path, number: int) -> list[int]:
    """The processes that the task of DAG long has started, once there are so many."""

    def pids() -> list[int] | None:
        found = (marks / "pids").read_text().split() if (marks / "pids").exists() else []
        return [int(pid) for pid in found[-2:]] if len(found) >= number else None

    return wait_until(pids, what="the task runs") or []


def test_a_task_that_is_cleared_while_it_runs_runs_again(airflow: Installation, marks: Path) -> None:
    (marks / "pids").unlink(missing_ok=True)
    run_id = airflow.trigger("long")
    pids = running_pids(marks, 2)
    airflow.clear("long", run_id, "long")
    cleared = time.monotonic()
    state, _ = airflow.follow("long", run_id)
    assert state == "success", airflow.explain("long", run_id)
    wait_until(lambda: all(map(is_gone, pids)), what="the first try is gone")
    print(f"run again and done {time.monotonic() - cleared:.1f} s after it was cleared")
    wait_until(lambda: "again" in airflow.log("long", run_id, "long", 2), what="its log is there", interval=0.5)


def test_a_task_that_is_marked_failed_while_it_runs_is_gone(airflow: Installation, marks: Path) -> None:
    (marks / "pids").unlink(missing_ok=True)
    run_id = airflow.trigger("long")
    pids = running_pids(marks, 2)
    airflow.mark("long", run_id, "long", "failed")
    marked = time.monotonic()
    wait_until(lambda: all(map(is_gone, pids)), what="its processes are gone")
    print(f"gone {time.monotonic() - marked:.1f} s after it was marked; 10 are promised where nothing else runs")
    assert airflow.follow("long", run_id)[0] == "failed"
    assert airflow.task_states("long", run_id) == {"long": "failed"}


def test_a_missing_command(airflow: Installation) -> None:
    run_id = airflow.trigger("missing")
    assert airflow.follow("missing", run_id)[0] == "failed"
    assert "there-is-no-such-command" in airflow.log("missing", run_id, "missing")


def test_executor_config(airflow: Installation, marks: Path) -> None:
    run_id = airflow.trigger("options")
    assert airflow.follow("options", run_id)[0] == "failed"
    assert airflow.task_states("options", run_id) == {
        "env": "success",
        "times_out": "failed",
        "invalid": "failed",
        "too_long": "failed",
    }
    lines = evidence(marks, run_id)
    assert "env sweet" in lines
    assert any(line.startswith("begin times_out") for line in lines)
    assert not any("invalid" in line for line in lines)
    log = (airflow.home / "scheduler.out").read_text()
    assert "there is no option 'memory'" in log
    assert "it ran longer than its timeout of 10 s" in log
    for task_id, why in (("invalid", "there is no option 'memory'"), ("too_long", "too long for this system")):
        log = airflow.log("options", run_id, task_id)
        assert why in log
        assert "Could not read served logs" not in log
    log = (airflow.home / "scheduler.out").read_text()
    assert not [line for line in log.splitlines() if "too_long" in line and "submitting it again" in line]


def test_tasks_run_in_the_working_directory_of_the_scheduler(airflow: Installation, marks: Path) -> None:
    run_id, _ = succeed(airflow, "where")
    scheduler = airflow.pid_of("scheduler")
    assert evidence(marks, run_id) == [f"{os.readlink(f'/proc/{scheduler}/cwd')} None"]


def test_a_task_that_is_marked_failed_leaves_nothing_behind(airflow: Installation, marks: Path) -> None:
    run_id = airflow.trigger("straying")
    strays = marks / "strays"
    wait_until(lambda: strays.exists() and strays.read_text().endswith("\n"), what="it has begun")
    airflow.mark("straying", run_id, "strays", "failed")
    wait_until(lambda: is_gone(int(strays.read_text())), what="what it has started is gone")


def test_on_kill_runs_once(airflow: Installation, marks: Path) -> None:
    run_id = airflow.trigger("ending")
    wait_until(lambda: evidence(marks, run_id), what="it has begun")
    (task,) = airflow.tasks("ending", run_id)
    airflow.mark("ending", run_id, "ends", "failed")
    wait_until(lambda: is_gone(task["pid"]), what="it has been killed")
    assert evidence(marks, run_id) == ["begun", "on_kill"]


def test_a_test_of_a_dag_uses_the_manager_that_runs(airflow: Installation, marks: Path) -> None:
    """As it is: it may not bring the tester's environment into the tasks of others."""
    store = JobStore(airflow.tasks_path)
    manager = manager_status.pid(store)
    airflow.wait_for_dag("where")
    dags = airflow.environment["AIRFLOW__CORE__DAGS_FOLDER"]
    environment = {**airflow.environment, "OF_A_SHELL": "yes", "PYTHONPATH": dags}
    code = "from executor_dags import where; where.test(use_executor=True)"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=PATIENCE)
    assert manager_status.pid(store) == manager
    run_id, _ = succeed(airflow, "where")
    assert evidence(marks, run_id)[0].endswith(" None")


@pytest.mark.skipif(not SINCE_3_3, reason="before Airflow 3.3 the callback is not found in the DAGs folder")
def test_a_callback(airflow: Installation, marks: Path) -> None:
    succeed(airflow, "late")
    written = wait_until(
        lambda: (marks / "deadline").exists() and (marks / "deadline").read_text(), what="the callback has run"
    )
    assert str(written).startswith("missed ")
    assert not str(written).endswith(str(airflow.tasks_path))

    def has_been_reported() -> bool:
        return "state success for callback" in (airflow.home / "scheduler.out").read_text()

    wait_until(has_been_reported, what="its success has been reported")


@pytest.mark.skipif(not SINCE_3_3, reason="before Airflow 3.3 no executor is asked to test connections")
@pytest.mark.parametrize(
    ("base_path", "state", "says"), [("", "success", "runs the jobs"), ("/nowhere", "failed", "not a directory")]
)
def test_a_connection_test(airflow: Installation, base_path: str, state: str, says: str) -> None:
    base_path = base_path or str(airflow.tasks_path)  # there is a manager
    body = {"connection_id": "tested", "conn_type": "air_executor", "extra": json.dumps({"base_path": base_path})}
    token = airflow.api("/connections/enqueue-test", body)["token"]

    def outcome() -> Any:
        found = airflow.api("/connections/enqueue-test", headers={"Airflow-Connection-Test-Token": token})
        return found if found["state"] in ("success", "failed") else None

    found = wait_until(outcome, what="the connection has been tested")
    assert (found["state"], says in found["result_message"]) == (state, True), found


def says(airflow: Installation, run_id: str, text: str) -> bool:
    try:
        return text in airflow.log("talking", run_id, "talks")
    except urllib.error.HTTPError as error:
        if error.code != 404:  # it has not begun
            raise
        return False


def test_the_log_of_a_running_task(airflow: Installation, marks: Path) -> None:
    run_id = airflow.trigger("talking")
    wait_until(lambda: says(airflow, run_id, "line 3 of a running task"), what="it is heard")
    assert airflow.task_states("talking", run_id) == {"talks": "running"}
    log = airflow.log("talking", run_id, "talks")
    assert log.count("line 2 of a running task") == 1
    (marks / "heard").touch()
    assert airflow.follow("talking", run_id)[0] == "success"


def test_the_log_of_a_running_task_without_its_log_file(airflow: Installation, marks: Path) -> None:
    (marks / "heard").unlink(missing_ok=True)
    run_id = airflow.trigger("talking")
    log_file = airflow.home / "logs" / "dag_id=talking" / f"run_id={run_id}" / "task_id=talks" / "attempt=1.log"
    wait_until(lambda: log_file.exists() and b"line 0" in log_file.read_bytes(), what="it is open and written to")
    log_file.rename(log_file.with_suffix(".hidden"))  # as if it were on another machine
    wait_until(lambda: says(airflow, run_id, "line 3 of a running task"), what="it is heard")
    assert "Log of job" in airflow.log("talking", run_id, "talks")
    (marks / "heard").touch()
    assert airflow.follow("talking", run_id)[0] == "success"


def test_no_token_is_in_sight(airflow: Installation, marks: Path) -> None:
    """Neither in argument lists, nor in environments, nor in logs; and what holds one is only for its owner."""
    (marks / "searched").unlink(missing_ok=True)
    run_id = airflow.trigger("holding")
    wait_until(lambda: evidence(marks, run_id).count("ready") == 2, what="the tasks run")
    waiting = airflow.trigger("many", {"seconds": 0})  # more than there are slots: some workloads wait in their files
    searched = 0
    for process in Path("/proc").glob("[0-9]*"):
        for file in ("cmdline", "environ"):
            try:
                content = (process / file).read_bytes()
            except OSError:
                continue
            searched += 1
            assert not JWT.search(content), f"{file} of {content[:100]!r}"
    assert searched > 20
    base_path = airflow.tasks_path
    walked = os.walk(base_path)  # which passes over what is gone
    for path in [base_path, *(Path(folder, name) for folder, *names in walked for name in itertools.chain(*names))]:
        try:
            mode = path.lstat().st_mode
            content = path.read_bytes() if stat.S_ISREG(mode) else b""
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(mode) or "workload.json" in path.name:  # nobody else can enter; and who could, cannot read it
            assert not mode & 0o077, f"{path} has mode {mode:o}"
        if path.name != "workload.json" and not path.name.startswith(".workload.json"):
            assert not JWT.search(content), path
    (marks / "searched").touch()
    for dag_id, run in (("holding", run_id), ("many", waiting)):
        assert airflow.follow(dag_id, run)[0] == "success"
    for path in [*airflow.home.glob("*.out"), *airflow.home.glob("logs/**/*.log")]:
        assert not JWT.search(path.read_bytes()), path
    # What has been read is gone.
    assert not list(base_path.rglob("*workload.json*"))


def test_the_search_for_tokens_finds_one() -> None:
    assert JWT.search(b"x=eyJhbGciOiJIUzUxMiIs.eyJpYXQiOjE3NjM4MzQ.c2lnbmF0dXJlLXNp ")


def test_jobs_say_what_they_are(airflow: Installation) -> None:
    run_id, _ = succeed(airflow, "example_executor")
    store = JobStore(airflow.tasks_path)

    def ended() -> list[Job] | None:  # Airflow gets the success of a task before its shim ends
        jobs = [job for job in store.list_jobs() if job.submitted_by is not None and job.submitted_by.run_id == run_id]
        return jobs if all(job.state.is_terminal for job in jobs) else None

    jobs = wait_until(ended, what="the shims have ended too") or []
    assert sorted(job.submitted_by.task_id for job in jobs if job.submitted_by) == [
        "print_date",
        "print_hello",
        "sleep",
    ]
    assert all(job.labels["airflow"] == "task" and job.state == "completed" for job in jobs)
    assert all(uuid.UUID(job.name) for job in jobs)
