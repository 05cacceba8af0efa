"""What people write at first: it is taken where it is clear, or refused when the DAG is parsed, with what is meant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator


def operator(tasks: Any, **kwargs: Any) -> AirExecutorSubmitOperator:
    with DAG("nightly", start_date=datetime(2026, 1, 1, tzinfo=UTC)):
        return AirExecutorSubmitOperator(task_id="report", tasks=tasks, **kwargs)


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"cmd": "echo"}, "tasks[1].cmd of 'load': there is no such field; did you mean 'command'?"),
        ({"shell": "echo"}, "tasks[1].shell of 'load': there is no such field; did you mean 'bash'?"),
        ({"bash_command": "echo"}, "tasks[1].bash_command of 'load': there is no such field; did you mean 'bash'?"),
        ({"bash": "true", "name": "a"}, "tasks[1].name of 'load': there is no such field; did you mean 'id'?"),
        ({"bash": "true", "depends_on": ["a"]}, "did you mean 'dependencies'?"),
        ({"bash": "true", "trigger_rule": "all_done"}, "did you mean 'run_if'?"),
        ({"bash": "true", "environment": {}}, "did you mean 'env'?"),
        ({"bash": "true", "execution_timeout": 5}, "did you mean 'timeout'?"),
        ({"command": "echo", "args": "hi"}, "tasks[1].args of 'load': must be a list"),
        ({"bash": "true", "dependencies": "a"}, """tasks[1].dependencies of 'load': must be a list: ["a"]"""),
        ({"bash": "true", "timeout": "5 minutes"}, "tasks[1].timeout of 'load': must be a number of seconds"),
        ({"bash": "true", "retries": "many"}, "tasks[1].retries of 'load': must be a whole number"),
        (
            {"bash": "true", "resources": {"cpus": "half"}},
            "tasks[1].resources.cpus of 'load': must be a number of proc",
        ),
        ({"bash": "true", "resources": {"mem": "1G"}}, "there is no such field; did you mean 'memory'?"),
        ({"bash": ["echo"]}, "tasks[1] of 'load': bash must be a line of shell code"),
        ({"command": ["echo", "hi"]}, "tasks[1].command of 'load': must be a text"),
        ({"bash": "true", "env": {"A": None}}, "tasks[1].env.A of 'load': must be a text"),
        ({"bash": "true", "job_name": "j"}, "tasks[1].job_name of 'load': is written by the manager; leave it out"),
        ({"bash": "true", "status": "running"}, "tasks[1].status of 'load': is written by the manager; leave it out"),
        ({"bash": "true", "exit_code": 0}, "tasks[1].exit_code of 'load': is written by the manager; leave it out"),
        ({}, "tasks[1].command of 'load': is missing"),
    ],
)
def test_a_mistake_in_a_task_is_named_with_what_is_meant(task: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        operator(["true", {"id": "load", **task}])
    assert str(refused.value).startswith("DAG 'nightly', task 'report': tasks[1]")
    assert says in str(refused.value)
    assert "Input should" not in str(refused.value)  # the words of a library
    assert "valid" not in str(refused.value)


def test_what_is_clear_is_taken() -> None:
    tasks = [
        {"command": "echo", "args": [1, 2.5, Path("/a"), "b"], "env": {"N": 3, "P": Path("/p")}, "cwd": Path("/tmp")},
        {"bash": "true", "timeout": "5m", "retry_delay": timedelta(seconds=30), "resources": {"cpus": "500m"}},
        {"bash": "true", "timeout": timedelta(hours=1), "retries": "2", "resources": {"time": timedelta(minutes=1)}},
    ]
    first, second, third = operator(tasks)._tasks_to_submit()
    assert (first.args, first.env, first.cwd) == (("1", "2.5", "/a", "b"), {"N": "3", "P": "/p"}, "/tmp")
    assert (second.timeout, second.retry_delay, third.timeout, third.retries) == (300, 30, 3600, 2)
    assert second.resources is not None
    assert second.resources.cpus == 0.5
    assert third.resources is not None
    assert third.resources.time == 60


def test_a_record_takes_the_same() -> None:
    (found,) = operator(
        [Task(command="echo", args=[1], timeout=timedelta(minutes=1), cwd=Path("/x"))]
    )._tasks_to_submit()
    assert (found.args, found.timeout, found.cwd) == (("1",), 60, "/x")


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ("echo one", "tasks: must be a list of tasks; a single bash line goes into a list too"),
        ({"bash": "true"}, "tasks: must be a list of tasks, not dict"),
        (None, "tasks: must be a list of tasks, not NoneType"),
        ([["true"]], "tasks[0]: "),
        ([], "the list is empty"),
        (["true", {"id": "task-1", "bash": "true"}], "'task-1' is the id of another task"),
    ],
)
def test_a_mistake_in_the_list(tasks: Any, says: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        operator(tasks)
    assert str(refused.value).startswith("DAG 'nightly', task 'report': ")
    assert says in str(refused.value)


def test_tasks_of_an_earlier_job_are_taken_as_they_were_described() -> None:
    earlier = Task(id="a", bash="true", job_name="j", status="failed", exit_code=3, attempt=2)
    (found,) = operator([earlier])._tasks_to_submit()
    assert (found.id, found.status, found.exit_code, found.attempt) == ("a", "pending", None, 0)


def test_the_line_of_the_dags_file_is_named(tmp_path: Path) -> None:
    """Also if the operator is made by a function of another file, or by a loop: the line that is carried out."""
    file = tmp_path / "nightly.py"
    file.write_text(
        "from datetime import datetime, UTC\n"
        "from airflow.sdk import DAG\n"
        "from airflow_provider_air_executor.operators import AirExecutorSubmitOperator\n"
        'with DAG("nightly", start_date=datetime(2026, 1, 1, tzinfo=UTC)):\n'
        "    for number in range(3):\n"
        "        AirExecutorSubmitOperator(\n"
        '            task_id=f"t{number}", tasks=["true"] if number < 2 else [{"id": "load", "cmd": "echo"}]\n'
        "        )\n"
    )
    with pytest.raises(InvalidJobError, match=r"did you mean 'command'\? \(nightly\.py, line 6\)") as refused:
        exec(compile(file.read_text(), str(file), "exec"), {"__file__": str(file)})
    assert str(refused.value).startswith("DAG 'nightly', task 't2': tasks[0].cmd of 'load'")
