"""How jobs are shown."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import inbox, masking
from airflow_provider_air_executor.jobs.models import SubmittedBy, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.commands import on_terminal
from tests.support.jobs import ended, publish_job, reset_tasks, task
from tests.support.managers import CLI, Managers, run_cli
from tests.support.waiting import until

JOB = {"name": "j", "tasks": [{"command": "echo", "args": ["hello"]}, {"bash": "echo [bold]ho; exit 3", "id": "b"}]}


def test_status(run: Any, store: JobStore, manager: object) -> None:
    run("submit", "-", "--wait", text=json.dumps(JOB))
    table = run("status").stdout
    assert re.search(r"j    failed  [━╸╺ ]+  1/2 ", table)
    assert "1 job in" in table
    details = run("status", "j").stdout
    assert "1 of 2 tasks done, failed: b" in details
    assert "exit code 3" in details
    found = json.loads(run("status", "j", "--json").stdout)
    assert [item["status"] for item in found["tasks"]] == ["completed", "failed"]
    assert [job["name"] for job in json.loads(run("status", "--json").stdout)["jobs"]] == ["j"]


def test_watching_a_job_ends_with_it(store: JobStore, managers: Managers, manager: object, tmp_path: Path) -> None:
    store.submit("j", [until(tmp_path / "go"), "exit 1"], max_parallel_tasks=1)
    environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path), "COLUMNS": "80"}
    command = [*CLI, "status", "j", "--watch"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        (tmp_path / "go").touch()
        rest = watching.stdout.read()
    assert watching.returncode == 1
    assert first.startswith("j: 0 of 2 tasks done")
    assert re.search("\ntask-2 +failed .* exit code 1 ", rest)


def test_watching_all_jobs_on_a_terminal(store: JobStore, managers: Managers, manager: object, tmp_path: Path) -> None:
    names = [f"nightly_report_of_a_long_name_{number}" + "-x" * 30 for number in range(20)]
    for name in names:
        store.submit(name, ["true"])
        ended(store, name)
    store.submit("the-last", [until(tmp_path / "go"), "true", "exit 3"], max_parallel_tasks=1)
    environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path)}
    shown = on_terminal(
        ["status", "--watch"],
        environment,
        first="the-last[^\n]+working[^\n]+0/3",
        then=(tmp_path / "go").touch,
        last="the-last[^\n]+failed[^\n]+2/3[^\n]+exit",
    )
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.fullmatch("the-last +working +[━╸╺]+ +0/3 .*", line) for line in lines)
    assert any(re.fullmatch("nightly_report.*…[x-]+x +completed +━+ +1/1 .*", line) for line in lines)
    screen = shown.split("JOB  ")[1].splitlines()  # the first one, whole
    assert len([line for line in screen if line.startswith(("the-last", "nightly"))]) == 9
    assert "21 jobs in" in "\n".join(screen)


def test_watching_a_job_on_a_terminal(store: JobStore, managers: Managers, manager: object, tmp_path: Path) -> None:
    store.submit("j", [until(tmp_path / "go"), {"id": "x" * 20, "bash": "exit 3"}], max_parallel_tasks=1)
    environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path)}
    shown = on_terminal(
        ["status", "j", "--watch"],
        environment,
        first="0 of 2 tasks done, running: task-1",
        then=(tmp_path / "go").touch,
        last="exit code 3",
    )
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search("working ━* *.*0 of 2 tasks done, running: task-1", shown)
    assert re.search("failed .*1 of 2 tasks done, failed: x", shown)


def test_nothing_is_folded_into_a_pipe(store: JobStore, managers: Managers) -> None:
    """So that it can be searched, and copied."""
    name, task_id = "n" * 100, "t" * 150
    store.submit(name, [task(task_id)])
    plain = {key: value for key, value in managers.environment.items() if key not in ("COLUMNS", "LINES")}
    of_readline = {**plain, "COLUMNS": "80", "LINES": "24"}  # as children of a Python find it that has loaded that
    for environment in (plain, of_readline):
        for arguments, word in (([], name), ([name], task_id)):
            done = run_cli(["status", *arguments, "--base-path", str(store.base_path)], environment)
            assert any(line.startswith(word) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        (80, "JOB STATE TASKS AGE TOOK REASON"),
        (60, "JOB STATE TASKS AGE TOOK REASON"),  # and no bar
        (40, "JOB STATE TASKS AGE"),
        (25, "JOB STATE"),
    ],
)
def test_a_narrow_terminal_shows_names_before_all_else(
    store: JobStore, managers: Managers, columns: int, headings: str
) -> None:
    for name in ("bulk-04999", "n" * 100):
        publish_job(store, store.submit(name, ["true"]).evolve(started_at=utc_now()))
        reset_tasks(store, name, [found.evolve(status=TaskStatus.COMPLETED) for found in store.get_tasks(name)])
    problem = {"problem": "cannot be written " + "x" * 99, "since": "now"}
    store.problems_path.write_text(json.dumps({"bulk-04999": problem}))
    environment = {**managers.environment, "COLUMNS": str(columns)}
    done = run_cli(["status", "--base-path", str(store.base_path)], environment)
    heading, second, first, *_ = lines = done.stdout.splitlines()
    assert " ".join(heading.split()) == headings
    assert max(map(len, lines)) <= columns
    assert first.startswith("bulk-04999  ")
    assert re.match("nn+…nn+  waiting", second)
    assert ("━" in first) is ("━" in second) is (columns == 80)


def details(store: JobStore, managers: Managers, columns: int | None = None) -> list[str]:
    environment = {key: value for key, value in managers.environment.items() if key != "COLUMNS"}
    environment |= {} if columns is None else {"COLUMNS": str(columns)}
    return run_cli(["status", "j", "--base-path", str(store.base_path)], environment).stdout.splitlines()


def test_each_task_is_shown_with_its_command(store: JobStore, managers: Managers) -> None:
    """In a line of its own, also if it has many, and what is secret is masked."""
    owner = SubmittedBy(dag_id="etl", run_id="r", task_id="load")
    tasks = [
        {"id": "a", "command": "echo", "args": ["two words", "s3cr3t"]},
        {"id": "b", "bash": "echo one\n  echo two\n", "resources": {"cpus": 2, "memory": "4Gi"}, "runner": "slurm"},
    ]
    attached = {masking.FILE: masking.dump({"s3cr3t"})}
    store.submit("j", tasks, labels={"team": "red"}, submitted_by=owner, attached=attached)
    lines = details(store, managers)
    assert lines[2:4] == ["submitted by task load of DAG etl, run r", "labels team=red"]
    assert lines[4].split() == ["TASK", "STATUS", "TRY", "STARTED", "TOOK", "EXIT", "NEEDS", "RUNNER", "COMMAND"]
    assert re.fullmatch(r"a +pending +echo 'two words' \*\*\* *", lines[5])
    assert re.fullmatch(r"b +pending +2 cpu 4.0Gi +slurm +echo one⏎echo two *", lines[6])


def test_the_error_of_a_job_is_said_once(store: JobStore, managers: Managers, manager: object) -> None:
    store.submit("j", ["exit 3", "true", "exit 4"])
    ended(store, "j")
    assert "\n".join(details(store, managers)).count("exit code 3") == 1
    store.submit("k", ["sleep 1000"])
    inbox.cancel(store, "k")
    ended(store, "k")
    environment = {**managers.environment, "COLUMNS": "200"}
    assert "cancelled" in run_cli(["status", "k", "--base-path", str(store.base_path)], environment).stdout


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_no_name_of_a_task_is_wrapped(store: JobStore, managers: Managers, columns: int) -> None:
    error = "one of " + ", ".join(f"n{number}" for number in range(99))
    store.submit("j", [task("t" * 100), task("short", "echo " + "x" * 300)])
    reset_tasks(store, "j", [found.evolve(status=TaskStatus.FAILED, error=error) for found in store.get_tasks("j")])
    lines = details(store, managers, columns)
    assert max(map(len, lines)) <= columns
    rows = lines[lines.index(next(line for line in lines if line.startswith("TASK"))) + 1 :][:2]
    assert re.match("tt+…tt+ +failed( |$)", rows[0])
    assert re.match("short +failed( |$)", rows[1])
    assert ("…" in rows[1]) is (columns > 30)
    publish_job(store, store.get_job("j").evolve(error=f"task short: {error}"))
    assert "n98" in "".join(details(store, managers, columns))  # below the table, where that cuts it
    whole = "\n".join(details(store, managers))
    assert whole.count("n98") == 2  # one for each task
    assert error in whole
    assert "x" * 300 in whole


def test_the_use_of_a_task(store: JobStore, managers: Managers) -> None:
    store.submit("j", ["true"])
    used = {"cpu_seconds": 90.0, "max_memory": 3 * 2**29}
    reset_tasks(
        store, "j", [Task.model_validate({**found.model_dump(), "usage": used}) for found in store.get_tasks("j")]
    )
    heading, row = details(store, managers)[2:4]
    assert "CPU" in heading
    assert re.search(r" 90\.0 s +1\.5Gi ", row)
    shown = run_cli(["status", "j", "--json", "--base-path", str(store.base_path)], managers.environment)
    assert json.loads(shown.stdout)["tasks"][0]["usage"] == used


def test_results(run: Any, store: JobStore, manager: object) -> None:
    tasks = [task("a", "echo '{\"rows\": 3}' > $AIR_EXECUTOR_OUTPUT"), task("b"), task("c", "exit 1")]
    store.submit("j", tasks)
    ended(store, "j")
    assert json.loads(run("results", "j").stdout) == {"a": {"rows": 3}}
    assert json.loads(run("results", "j", "a").stdout) == {"rows": 3}
    done = run("results", "j", "c")
    assert (done.returncode, done.stdout) == (1, "")
    assert "task 'c' of job 'j' has no result: it is failed" in done.stderr
    assert run("results", "j", "d").returncode == 2
    assert run("results", "k").returncode == 3
