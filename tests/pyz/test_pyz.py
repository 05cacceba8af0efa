"""air-executor.pyz does what the installed command does, in Pythons that have no Airflow and no other package."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import httpx

from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.workload import ExitCode
from tests.pyz.conftest import Pyz
from tests.support.jobs import ended, only_task, read_log, task
from tests.support.processes import command_line, environment, with_environment
from tests.support.servers import client_at
from tests.support.waiting import until, wait_until


def submitted(pyz: Pyz, name: str, *tasks: dict[str, object]) -> JobStore:
    pyz.run("submit", "-", text=json.dumps({"name": name, "tasks": tasks}))
    return pyz.store


def manager_log(pyz: Pyz) -> str:
    path = pyz.base_path / "manager.log"
    return path.read_text() if path.exists() else ""


def test_there_is_no_airflow(pyz: Pyz) -> None:
    said = subprocess.run([pyz.python, "-c", "import airflow"], check=False, capture_output=True, text=True)
    assert "No module named 'airflow'" in said.stderr
    assert "Run multi-step shell jobs" in pyz.run("--help")


def test_a_job_runs_from_submit_to_its_end(pyz: Pyz) -> None:
    job = {"name": "j", "tasks": [{"id": "a", "bash": "echo hello; env"}, {"id": "b", "bash": "exit 3"}]}
    pyz.run("submit", "--wait", "--embedded", "-", text=json.dumps(job), code=1)
    printed = pyz.run("logs", "j", "a")
    assert "hello" in printed
    assert "PYTHON" not in printed  # what the archive needs is not in the environment of its tasks
    assert "failed" in pyz.run("status", "j")
    assert "manager" in pyz.run("stop")


def test_a_command_runs_as_a_job(pyz: Pyz) -> None:
    assert pyz.run("run", "--embedded", "--", "sh", "-c", "echo out; exit 5", code=5) == "out\n"


def test_a_task_may_have_a_manager_of_its_own(pyz: Pyz, archive: Path, tmp_path: Path) -> None:
    inner = [
        pyz.python,
        str(archive),
        "--base-path",
        str(tmp_path / "inner"),
        "run",
        "--embedded",
        "--",
        "echo",
        "inner",
    ]
    assert "inner\n" in pyz.run("run", "--embedded", "--", *inner)


def test_a_manager_that_is_killed_loses_nothing(pyz: Pyz, tmp_path: Path) -> None:
    manager = pyz.start_manager()
    go, ran = tmp_path / "go", tmp_path / "ran"
    store = submitted(pyz, "j", task("a", f"echo a >> {ran}; {until(go)}"), task("b", f"echo b >> {ran}", after="a"))
    wait_until(ran.exists, what="the first task runs")
    manager.kill()
    manager.wait()
    pyz.start_manager()
    go.touch()
    assert ended(store, "j").state == "completed"
    assert ran.read_text() == "a\nb\n"


def test_it_serves_other_machines(pyz: Pyz) -> None:
    said = json.loads(pyz.run("serve", "--ensure", "--embedded"))
    with client_at(said["socket"]) as client:
        hello = client.get("/hello").json()
        assert (hello["base_path"], hello["version"]) == (str(pyz.base_path), said["version"])
        body = {"name": "j", "tasks": [task("a", "echo served")], "spec": {}, "submitted_by": None, "secrets": []}
        assert client.post("/jobs", json=body).status_code == httpx.codes.CREATED
        ended(pyz.store, "j")
        assert client.get("/records/j").json()["job"]["state"] == "completed"


def test_the_server_of_a_manager_is_its_child(pyz: Pyz) -> None:
    token = pyz.run("token", "create", "airflow", "--scope", "submit").split()[-1]
    pyz.start_manager("--listen", "127.0.0.1:0")
    path = pyz.base_path / "server.json"
    wait_until(lambda: path.exists() and json.loads(path.read_text())["listen"], what="it listens")
    (address,) = json.loads(path.read_text())["listen"]
    pyz.environment["AIR_EXECUTOR_TOKEN"] = token
    assert pyz.run("run", "--url", address, "--", "echo", "by HTTP") == "by HTTP\n"
    (job,) = pyz.store.list_jobs()
    assert json.loads((pyz.base_path / "jobs" / job.name / "submission.json").read_text())["token"] == "airflow"


def test_a_warm_task_is_forked(pyz: Pyz) -> None:
    warm = {
        "id": "a",
        "command": pyz.python,
        "args": ["-m", "json.tool", "--help"],
        "runner": "warm",
        "preload": ["json.tool"],
    }
    store = submitted(pyz, "j", warm)
    pyz.run("manager", "--detach")
    assert ended(store, "j").state == "completed"
    assert "usage:" in read_log(store, "j", "a").text
    assert "is warm" in manager_log(pyz)


def test_a_task_of_airflow_says_that_there_is_none(pyz: Pyz) -> None:
    workload = "airflow_provider_air_executor.workload"
    warm = {"id": "a", "command": pyz.python, "args": ["-P", "-m", workload], "runner": "warm", "preload": [workload]}
    store = submitted(pyz, "j", warm)
    pyz.run("manager", "--detach")
    assert ended(store, "j").state == "failed"
    assert only_task(store).exit_code == ExitCode.NO_AIRFLOW
    where = f"{pyz.python} on {os.uname().nodename}"
    assert f"{where} has no Airflow, which Airflow's own tasks need" in read_log(store, "j", "a").text


def test_what_it_starts_runs_from_what_was_unpacked(pyz: Pyz, archive: Path, cache: Path) -> None:
    store = submitted(pyz, "j", task("a", "sleep 1000"))
    pyz.run("manager", "--detach", "--preload", "json")
    wait_until(lambda: store.get_job("j").state == "working", what="the task runs")
    found = [
        pid
        for pid in with_environment(f"AIR_EXECUTOR_BASE_PATH={pyz.base_path}")
        if str(cache) in " ".join(command_line(pid))
    ]
    assert found  # the fork server
    for pid in with_environment(f"AIR_EXECUTOR_BASE_PATH={pyz.base_path}"):
        assert not [word for word in environment(pid) if word.startswith("PYTHON")]
