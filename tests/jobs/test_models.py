"""Records: what is accepted, what is refused and how, and what a name becomes."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.models import (
    TASK_LIST,
    Job,
    JobState,
    Task,
    check_stored_name,
    check_submitted_name,
    nearest_tasks,
    parse_tasks,
    valid_job_name,
)


def test_a_bash_line_is_as_easy_as_a_command_with_arguments() -> None:
    forms = parse_tasks(["echo hi | wc", {"bash": "echo hi | wc"}, Task(bash="echo hi | wc")])
    assert {(task.command, task.args) for task in forms} == {("bash", ("-c", "echo hi | wc"))}
    assert [task.id for task in forms] == ["task-1", "task-2", "task-3"]


@pytest.mark.parametrize(
    ("tasks", "says"),
    [
        ([], "tasks: the list is empty"),
        ("echo hi", "tasks: must be a list of tasks, not str"),
        ({"command": "echo"}, "tasks: must be a list of tasks, not dict"),
        (7, "tasks: must be a list of tasks, not int"),
        ([7], "tasks[0]: "),
        ([{"command": 7}], "tasks[0].command: "),
        ([{}], "tasks[0].command: is missing"),
        ([{"command": ""}], "tasks[0].command: "),
        ([{"command": "a\0b"}], "tasks[0].command: must not contain a NUL"),
        ([{"command": "a", "args": ["x", ["y"]]}], "tasks[0].args[1]: must be a text"),
        ([{"command": "a", "args": ["x", None]}], "tasks[0].args[1]: must be a text"),
        ([{"command": "a", "args": [True]}], "tasks[0].args[0]: must be a text; write the one that is meant, such as "),
        ([{"command": "a", "args": "x"}], 'tasks[0].args: must be a list: ["..."]'),
        ([{"command": "a", "args": 7}], "tasks[0].args: must be a list"),
        ([{"command": "a", "dependencies": "load"}], 'tasks[0].dependencies: must be a list: ["load"]'),
        ([{"command": "a", "dependencies": [1]}], "tasks[0].dependencies[0]: must be a text"),
        ([{"command": "a", "dependancies": []}], "did you mean 'dependencies'"),
        ([{"command": "a", "bash": "b"}], "give either bash, or command and args"),
        ([{"bash": " "}], "bash must be a line"),
        ([{"command": "a", "timeout": 0}], "tasks[0].timeout: must be greater than 0"),
        (
            [{"command": "a", "timeout": "soon"}],
            "tasks[0].timeout: must be a number of seconds, a timedelta, or a text",
        ),
        ([{"command": "a", "timeout": True}], "tasks[0].timeout: must be a number of seconds, a timedelta, or a text"),
        ([{"command": "a", "retry_delay": [1]}], "tasks[0].retry_delay: must be a number of seconds"),
        ([{"command": "a", "retry_delay": timedelta(seconds=-1)}], "tasks[0].retry_delay: must be greater than or"),
        ([{"command": "a", "timeout": float("nan")}], "tasks[0].timeout: "),
        ([{"command": "a", "retries": -1}], "tasks[0].retries: "),
        ([{"command": "a", "cwd": ""}], "tasks[0].cwd: "),
        ([{"command": "a", "env": {"A=B": "c"}}], "tasks[0].env: "),
        (
            [{"command": "a", "env": {"A": False}}],
            "tasks[0].env.A: must be a text; write the one that is meant, such a",
        ),
        ([{"command": "a", "env": {"A": None}}], "tasks[0].env.A: must be a text"),
        ([{"command": "a", "env": "A=1"}], "tasks[0].env: must be a mapping"),
        ([{"command": "a", "retries": "many"}], "tasks[0].retries: must be a whole number"),
        (
            [{"command": "a", "run_if": "one_failed"}],
            "tasks[0].run_if: must be 'all_done', 'any_failed'",
        ),
        (
            [{"command": "a"}, {"command": "a", "run_if": "always"}],
            "tasks[1].run_if: needs dependencies, the tasks whose end it waits for",
        ),
        ([{"command": "a", "id": "../x"}], "tasks[0].id: "),
        ([{"command": "a", "id": ".x"}], "tasks[0].id: "),
        ([{"command": "a", "id": "x" * 201}], "tasks[0].id: "),
        ([{"command": "a", "id": "x"}, {"command": "a", "id": "x"}], "tasks[1].id: 'x' is the id of another task"),
        (
            [{"command": "a"}, {"command": "b", "dependencies": ["nope"]}],
            "tasks[1].dependencies: there is no task 'nope'",
        ),
        ([{"command": "a", "id": "x", "dependencies": ["x"]}], "cycle: x -> x"),
        (
            [{"command": "a", "id": "x", "dependencies": ["y"]}, {"command": "a", "id": "y", "dependencies": ["x"]}],
            "tasks: the dependencies form a cycle",
        ),
    ],
)
def test_bad_tasks_are_refused_with_the_name_of_the_field(tasks: object, says: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        parse_tasks(tasks)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("cmd", "command"),
        ("shell", "bash"),
        ("bash_command", "bash"),
        ("script", "bash"),
        ("name", "id"),
        ("task_id", "id"),
        ("depends_on", "dependencies"),
        ("trigger_rule", "run_if"),
        ("environment", "env"),
        ("working_directory", "cwd"),
        ("comand", "command"),
        ("Timeout", "timeout"),
    ],
)
def test_a_field_that_there_is_not_leads_to_the_one_that_is_meant(field: str, meant: str) -> None:
    """Whatever else is missing because of that."""
    for more in ({}, {"command": "true"}):
        with pytest.raises(InvalidJobError) as refused:
            parse_tasks([{"command": "true"}, {field: "echo", **more}])
        assert str(refused.value) == f"tasks[1].{field}: there is no such field; did you mean {meant!r}?"


def test_a_field_of_nothing_known_is_refused_without_a_guess() -> None:
    for field in ("colour_of_it", 7):
        with pytest.raises(InvalidJobError) as refused:
            parse_tasks([{"command": "true", field: "x"}])
        assert str(refused.value) == f"tasks[0].{field}: there is no such field"
    with pytest.raises(InvalidJobError) as refused:
        parse_tasks([{"command": "true", "resources": {"mem": "1G"}}])
    assert str(refused.value) == "tasks[0].resources.mem: there is no such field; did you mean 'memory'?"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (90, 90),
        (1.5, 1.5),
        ("90", 90),
        ("90s", 90),
        (" 15m ", 900),
        ("1h30m", 5400),
        ("2d", 172_800),
        (timedelta(minutes=5), 300),
    ],
)
def test_seconds_are_given_as_a_number_a_text_or_a_timedelta(given: Any, seconds: float) -> None:
    """Wherever there are seconds."""
    (task,) = parse_tasks([{"command": "x", "timeout": given, "retry_delay": given, "resources": {"time": given}}])
    assert task.resources is not None
    assert (task.timeout, task.retry_delay, task.resources.time) == (seconds, seconds, seconds)
    assert Task(command="x", timeout=given).timeout == seconds
    assert Job(id="j-1", name="j", timeout=given).timeout == seconds
    assert TASK_LIST.validate_json(TASK_LIST.dump_json((task,))) == (task,)


def test_numbers_and_paths_become_the_text_that_is_meant() -> None:
    given = [1, -2.5, Decimal("0.10"), Path("/data"), "x"]
    (task,) = parse_tasks(
        [
            {
                "command": Path("/bin/echo"),
                "args": given,
                "env": {"N": 3, "SHARE": 0.5, "HOME": Path("/home/me")},
                "cwd": Path("/data"),
            }
        ]
    )
    assert task.args == ("1", "-2.5", "0.10", "/data", "x")
    assert task.env == {"N": "3", "SHARE": "0.5", "HOME": "/home/me"}
    assert (task.command, task.cwd) == ("/bin/echo", "/data")


def test_an_error_does_not_show_a_secret() -> None:
    with pytest.raises(InvalidJobError) as refused:
        parse_tasks([{"command": "a", "env": {"TOKEN": ["s3cret"]}}])
    assert "s3cret" not in str(refused.value)
    with pytest.raises(InvalidJobError) as refused:
        parse_tasks([{"command": "a", "args": "--token=s3cret"}])
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T10:16:33.789Z",
        "2026-11-22T10:16:33.789000Z",
        "2026-11-22 10:16:33.789000+00:00",
        "2026-11-22T11:16:33.789+01:00",
        "2026-11-22T10:16:33.789",
        1795342593.789,
    ],
)
def test_times_of_all_writers_mean_the_same(text: object) -> None:
    job = Job.model_validate({"id": "j-1", "name": "j", "created_at": text})
    assert job.created_at is not None
    assert job.created_at.isoformat() == "2026-11-22T10:16:33.789000+00:00"


def test_times_without_a_fraction_are_read() -> None:
    for text in ("2026-11-22T10:16:33Z", "2026-11-22 10:16:33+00:00"):
        assert Job.model_validate({"id": "j-1", "name": "j", "created_at": text}).created_at is not None


def test_fields_that_are_not_known_are_kept() -> None:
    (task,) = TASK_LIST.validate_json(b'[{"id": "a", "job_name": "j", "command": "x", "colour": "blue"}]')
    assert b'"colour": "blue"' in TASK_LIST.dump_json((task.evolve(attempt=2),), indent=2)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", ".", "..", ".hidden", "a b", "a:b", "x" * 101, "a\n"])
def test_names_that_no_job_can_have(name: str) -> None:
    for check in (check_stored_name, check_submitted_name):
        with pytest.raises(InvalidJobError):
            check(name)


def test_letters_of_other_scripts_are_read_but_not_written() -> None:
    assert check_stored_name("größe") == "größe"
    with pytest.raises(InvalidJobError):
        check_submitted_name("größe")


@given(st.text(min_size=1, max_size=300).filter(str.strip))
def test_any_text_becomes_a_valid_name_always_the_same(text: str) -> None:
    name = valid_job_name(text)
    assert check_submitted_name(name) == name == valid_job_name(text) == valid_job_name(name)


@given(
    st.lists(st.text(alphabet="ab:+_ ", min_size=1, max_size=6).filter(str.strip), min_size=2, max_size=2, unique=True)
)
def test_different_texts_become_different_names(texts: list[str]) -> None:
    assert valid_job_name(texts[0]) != valid_job_name(texts[1])


def test_a_run_id_becomes_a_readable_name() -> None:
    assert valid_job_name("manual__2026-11-22T10:11:12+00:00").startswith("manual__2026-11-22T10_11_12_00_00-")


def test_transitions_that_the_format_knows() -> None:
    legal = {(old, new) for old in JobState for new in JobState if old.may_become(new)}
    assert ("waiting", "working") in legal
    assert ("failed", "waiting") in legal
    assert ("waiting", "completed") not in legal
    assert ("failed", "completed") not in legal
    assert ("completed", "failed") not in legal


def test_the_tasks_nearest_to_one() -> None:
    chain = parse_tasks([{"id": f"t{n}", "bash": "true", "dependencies": [f"t{n - 1}"] if n else []} for n in range(9)])
    near = [task.id for task in nearest_tasks(chain, "t4", 5)]
    assert near == ["t2", "t3", "t4", "t5", "t6"]
    assert [task.id for task in nearest_tasks(chain, "t0", 3)] == ["t0", "t1", "t2"]
    assert nearest_tasks(chain, "t4", 100) == list(chain)
    assert nearest_tasks(chain, "missing", 5) == []


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"memory": 5}, {"memory": 5}),
        ({"memory": "512Mi"}, {"memory": 512 * 2**20}),
        ({"memory": "1.5 GiB"}, {"memory": 3 * 2**29}),
        ({"memory": "4G"}, {"memory": 4_000_000_000}),
        ({"memory": "7"}, {"memory": 7}),
        ({"time": 90}, {"time": 90.0}),
        ({"time": "90s"}, {"time": 90.0}),
        ({"time": "1h30m"}, {"time": 5400.0}),
        ({"time": "1.5d"}, {"time": 129_600.0}),
        ({"cpus": 0.5, "gpus": 2}, {"cpus": 0.5, "gpus": 2}),
        ({"cpus": "500m"}, {"cpus": 0.5}),
        ({"cpus": "2"}, {"cpus": 2.0}),
        ({"time": timedelta(hours=1)}, {"time": 3600.0}),
    ],
)
def test_resources(given: dict[str, Any], stored: dict[str, Any]) -> None:
    (task,) = parse_tasks([{"command": "x", "resources": given}])
    assert task.resources is not None
    assert task.resources.model_dump(exclude_none=True) == stored


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"resources": {"memory": "4X"}}, "tasks[0].resources.memory: must be a number of bytes"),
        ({"resources": {"memory": 0}}, "tasks[0].resources.memory"),
        ({"resources": {"time": "soon"}}, "tasks[0].resources.time: must be a number of seconds"),
        ({"resources": {"time": ""}}, "tasks[0].resources.time"),
        ({"resources": {"cpus": -1}}, "tasks[0].resources.cpus: must be greater than 0"),
        (
            {"resources": {"cpus": "many"}},
            "tasks[0].resources.cpus: must be a number of processors, such as 2, 0.5 or ",
        ),
        ({"resources": {"cpus": "m"}}, "tasks[0].resources.cpus: must be a number of processors"),
        ({"resources": {"cpus": True}}, "tasks[0].resources.cpus: must be a number of processors"),
        ({"resources": {"cpu": 1}}, "tasks[0].resources.cpu: there is no such field; did you mean 'cpus'?"),
        ({"resources": 3}, "tasks[0].resources: must be a mapping"),
        ({"runner": "../x"}, "tasks[0].runner"),
        ({"slurm": {"-x": 1}}, "tasks[0].slurm: '-x' cannot be the name of an option"),
        ({"slurm": {"partition": ["a"]}}, "tasks[0].slurm: option 'partition' must be a text"),
        ({"slurm": {"comment": "a\nb"}}, "tasks[0].slurm: option 'comment' must be printable"),
        ({"mine": {"a": 1}}, "tasks[0].mine: there is no such field"),
    ],
)
def test_what_is_no_resource_or_option(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidJobError, match=re.escape(message)):
        parse_tasks([{"command": "x", **more}])


def test_the_options_of_a_runner_that_is_installed_elsewhere() -> None:
    (task,) = parse_tasks([{"command": "x", "runner": "mine", "mine": {"a": [1]}}])
    assert task.model_extra == {"mine": {"a": [1]}}
