"""Submitting jobs, and tasks of jobs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.commands import going_on
from tests.support.jobs import ended, publish_job, read_log
from tests.support.managers import CLI, Managers
from tests.support.waiting import wait_until

JOB = {"name": "j", "tasks": [{"command": "echo", "args": ["hello"]}, {"bash": "echo [bold]ho; exit 3", "id": "b"}]}


def test_submit_and_wait(run: Any, manager: object) -> None:
    done = run("submit", "-", "--wait", text=json.dumps(JOB))
    assert (done.returncode, done.stdout) == (1, "j: failed: task b: exit code 3\n")
    done = run("submit", "-", "--wait", "--name", "k", "--json", text=json.dumps({"tasks": ["true"]}))
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "completed"


def test_submit_says_when_nobody_will_run_it(run: Any) -> None:
    done = run("submit", "-", text=json.dumps(JOB))
    assert (done.returncode, done.stdout) == (0, "j: waiting\n")
    assert "no manager is running" in done.stderr


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("{", 2, "is not JSON"),
        ("[]", 2, "must be an object"),
        ('{"name": "j"}', 2, "tasks: the field is missing"),
        ('{"name": "j", "tasks": []}', 2, "tasks: the list is empty"),
        ('{"name": "j", "tasks": ["true"], "taks": 1}', 2, "taks: there is no such field"),
        ('{"name": "../j", "tasks": ["true"]}', 2, "job name '../j' is not valid"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run: Any, store: JobStore, text: str, code: int, says: str) -> None:
    done = run("submit", "-", text=text)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert store.job_names() == []


def test_waiting_reports_that_no_manager_runs(store: JobStore, managers: Managers) -> None:
    job = '{"name": "j", "tasks": ["true"]}'
    command = [*CLI, "submit", "-", "--wait", "--base-path", str(store.base_path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=managers.environment,
        text=True,
    ) as waiting:
        assert waiting.stdin is not None
        assert waiting.stderr is not None
        waiting.stdin.write(job)
        waiting.stdin.close()
        assert "no manager is running; start it: air-executor manager" in waiting.stderr.readline()
        managers.start()
        assert waiting.wait() == 0


@pytest.mark.parametrize(
    "command", ["submit - --wait", "status j --watch", "status j --watch --json", "logs j --follow"]
)
def test_waiting_reports_what_the_manager_cannot_do(
    store: JobStore, managers: Managers, tmp_path: Path, command: str
) -> None:
    store.create_directories()
    if not command.startswith("submit"):
        store.submit("j", ["true"])
    problem = {"problem": "cannot be written: Permission denied", "since": "now"}
    store.problems_path.write_text(json.dumps({"j": problem}))
    with going_on(store, managers, tmp_path / "out", *command.split()) as said:
        wait_until(lambda: b"cannot be written: Permission denied (since now)" in said(), what="it says so")
        managers.start()


def test_a_task_adds_tasks_to_its_own_job(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    """Also one that depends on a task which was added a moment before, and on itself, which has not ended."""
    add = f"{' '.join(map(shlex.quote, CLI))} add-task"
    line = f"""
{add} --id first -- sh -c 'echo first >> {tmp_path}/out' &&
{add} --id second --depends-on first --depends-on adds --retries 1 --bash 'echo second >> {tmp_path}/out' &&
{add} --depends-on second -- true
echo adds >> {tmp_path}/out
"""
    store.submit("j", [{"id": "adds", "bash": line}], max_parallel_tasks=1)
    assert ended(store, "j").state == "completed"
    tasks = store.get_tasks("j")
    assert [task.id for task in tasks][:3] == ["adds", "first", "second"]
    assert tasks[3].id.startswith("task-")
    assert tasks[2].retries == 1
    assert (tmp_path / "out").read_text() == "adds\nfirst\nsecond\n"


def test_adding_needs_one_task(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", ["sleep 1000"])
    assert run("add-task", "--job", "j").returncode == 2
    assert run("add-task", "--job", "j", "--bash", "true", "true").returncode == 2
    assert "no task 'nope'" in run("add-task", "--job", "j", "--depends-on", "nope", "true").stderr
    assert run("add-task", "true").returncode == 2  # whose job?
    inbox.cancel(store, "j")


def test_several_files_json_and_yaml(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "tasks": ["true"]}))
    (tmp_path / "b.yaml").write_text("name: b\ntasks:\n- bash: |\n    echo one\n    exit 3\n")
    (tmp_path / "c.yml").write_text("tasks: [echo c]\n")
    done = run("submit", *(str(tmp_path / name) for name in ("a.json", "b.yaml", "c.yml")), "--wait")
    assert done.returncode == 1
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("a: completed", "b: failed: task task-1: exit code 3")
    assert re.fullmatch("c-[0-9a-f]{8}: completed", third)
    assert read_log(store, "b", "task-1").text == "one\n"


def test_nothing_is_submitted_if_a_file_cannot_be_read(run: Any, store: JobStore, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(JOB))
    (tmp_path / "b.yaml").write_text("tasks: [\n")
    assert run("submit", str(tmp_path / "a.json"), str(tmp_path / "b.yaml")).returncode == 2
    assert run("submit", str(tmp_path / "a.json"), str(tmp_path / "a.json"), "--name", "x").returncode == 2
    assert store.job_names() == []


def test_one_of_several_that_is_taken_does_not_hinder_the_others(run: Any, store: JobStore, tmp_path: Path) -> None:
    store.submit("a", ["true"])
    (tmp_path / "jobs.yaml").write_text("name: a\ntasks: [x]\n---\nname: b\ntasks: [x]\n")
    done = run("submit", str(tmp_path / "jobs.yaml"), "--json")
    assert done.returncode == 4
    assert "a job 'a' exists already" in done.stderr
    assert [job["name"] for job in json.loads(done.stdout)] == ["b"]


def test_a_name_on_the_command_line_wins(run: Any, store: JobStore) -> None:
    assert run("submit", "-", "--name", "k", text=json.dumps(JOB)).stdout == "k: waiting\n"


def test_a_job_that_has_ended_is_replaced(run: Any, store: JobStore) -> None:
    """One that has not ended, or by one that is not valid, is not."""
    before = store.submit("j", ["true"])
    done = run("submit", "-", "--replace", text=json.dumps(JOB))
    assert (done.returncode, "cancel it before it is deleted" in done.stderr) == (4, True)
    publish_job(store, before.evolve(state=JobState.COMPLETED))
    assert run("submit", "-", "--replace", text=json.dumps({**JOB, "tasks": ["a", {}]})).returncode == 2
    assert len(store.get_tasks("j")) == 1
    assert run("submit", "-", "--replace", text=json.dumps(JOB)).stdout == "j: waiting\n"
    assert len(store.get_tasks("j")) == 2


def test_a_manager_is_started_for_it(run: Any, store: JobStore) -> None:
    try:
        done = run("submit", "-", "--wait", "--embedded", text=json.dumps({"name": "j", "tasks": ["true"]}))
        assert (done.returncode, done.stdout, done.stderr) == (0, "j: completed\n", "")
    finally:
        run("stop")
