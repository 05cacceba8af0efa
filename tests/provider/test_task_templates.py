"""Tasks with templates and outputs of other tasks in them: checked when the DAG is parsed, and taken as rendered."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task

from airflow_provider_air_executor import task_templates
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.triggers import AirExecutorSubmitTrigger

START = datetime(2026, 1, 1, tzinfo=UTC)
EVERYWHERE = {
    "command": "{{ word }}",
    "args": ["{{ word }}", "-n{{ number }}"],
    "env": {"A": "{{ word }}"},
    "cwd": "/data/{{ word }}",
    "timeout": "{{ number }}",
    "retries": "{{ number }}",
    "retry_delay": "{{ number }}",
    "runner": "{{ word }}",
    "resources": {"cpus": "{{ number }}", "memory": "{{ number }}Mi", "gpus": "{{ number }}", "time": "{{ number }}m"},
    "slurm": {"partition": "{{ word }}"},
}
CONTEXT = {"word": "local", "number": 3, "nothing": None}


def rendered(tasks: Any, *, native: bool = False, **kwargs: Any) -> tuple[Task, ...]:
    """The tasks that an operator in a DAG submits."""
    with DAG("d", start_date=START, render_template_as_native_obj=native):
        tested = AirExecutorSubmitOperator(task_id="t", tasks=tasks, **kwargs)
    tested.render_template_fields(CONTEXT)
    return tested._tasks_to_submit()


class TestRendered:
    @pytest.mark.parametrize("native", [False, True])
    def test_templates_in_every_field(self, native: bool) -> None:
        (found,) = rendered([EVERYWHERE], native=native)
        assert (found.command, found.args, found.env) == ("local", ("local", "-n3"), {"A": "local"})
        assert (found.cwd, found.timeout, found.retries, found.retry_delay) == ("/data/local", 3, 3, 3)
        assert (found.runner, found.engine_options("slurm")) == ("local", {"partition": "local"})
        assert found.resources is not None
        assert (found.resources.cpus, found.resources.memory) == (3, 3 * 1024**2)
        assert (found.resources.gpus, found.resources.time) == (3, 180)

    @pytest.mark.parametrize("given", ["{{ nothing or '' }}", "{{ nothing }}"])
    def test_a_number_that_a_template_leaves_out_has_its_default(self, given: str) -> None:
        fields = {"timeout": given, "retries": given, "retry_delay": given, "resources": {"cpus": given}}
        (found,) = rendered([{"bash": "true", **fields}])
        assert (found.timeout, found.retries, found.retry_delay) == (None, 0, 0)
        assert found.resources is not None
        assert found.resources.cpus is None

    def test_a_name_that_a_template_leaves_empty_has_its_default(self) -> None:
        (found,) = rendered([{"bash": "true", "cwd": "{{ nothing or '' }}", "runner": "{{ nothing or '' }}"}])
        assert (found.cwd, found.runner) == (None, None)

    def test_lists_and_dicts_come_as_json(self) -> None:
        tasks = [
            {"id": "a", "command": "echo", "args": "{{ ['x', 'y'] | tojson }}", "env": "{{ {'A': 'b'} | tojson }}"},
            {"command": "echo", "dependencies": "{{ ['a'] | tojson }}", "resources": "{{ {'cpus': 2} | tojson }}"},
        ]
        first, second = rendered(tasks)
        assert (first.args, first.env, second.dependencies) == (("x", "y"), {"A": "b"}, ("a",))
        assert second.resources is not None
        assert second.resources.cpus == 2

    def test_when_a_task_runs_may_be_a_template(self) -> None:
        tasks = [{"id": "a", "bash": "true"}, {"bash": "true", "dependencies": ["a"], "run_if": "{{ 'all_done' }}"}]
        assert [found.run_if for found in rendered(tasks)] == [None, "all_done"]
        task_templates.check([{"bash": "true", "dependencies": "{{ x }}", "run_if": "always"}])
        with pytest.raises(InvalidJobError, match=r"tasks\[0\].run_if"):
            task_templates.check([{"bash": "true", "run_if": "always"}])

    def test_a_list_that_is_not_json_names_the_fix(self) -> None:
        with pytest.raises(InvalidJobError, match=r"args: .* end it with '\| tojson', or set render_template_as_nat"):
            rendered([{"command": "echo", "args": "{{ ['x'] }}"}])

    def test_what_is_wrong_after_rendering_is_named(self) -> None:
        with pytest.raises(InvalidJobError) as refused:
            rendered([{"id": "load", "bash": "true", "timeout": "{{ word }}"}])
        assert str(refused.value).startswith("DAG 'd', task 't': tasks[0].timeout of 'load': ")

    def test_a_template_in_a_line_is_still_a_line(self) -> None:
        (found,) = rendered(["{{ word }}"])
        assert found.args == ("-c", "local")


class TestOutputsOfOtherTasks:
    @pytest.mark.parametrize(
        "make",
        [
            lambda output: {"tasks": output},
            lambda output: {"tasks": [output]},
            lambda output: {"tasks": ["true", output]},
            lambda output: {"tasks": [{"command": "echo", "args": [output["path"]]}]},
            lambda output: {"tasks": [{"command": "echo", "args": output["args"]}]},
            lambda output: {"tasks": [{"bash": output["line"]}]},
            lambda output: {"tasks": [{"bash": "true", "env": {"A": output["path"]}}]},
            lambda output: {"tasks": [{"bash": "true", "env": output["env"], "timeout": output["seconds"]}]},
            lambda output: {"tasks": [{"bash": "true", "resources": {"cpus": output["cpus"]}, "runner": output["r"]}]},
            lambda output: {"tasks": [{"bash": "true", "slurm": {"partition": output["partition"]}}]},
            lambda output: {"tasks": ["true"], "env": output["env"]},
            lambda output: {"tasks": ["true"], "cwd": output["path"]},
            lambda output: {"tasks": ["true"], "timeout": output["seconds"]},
            lambda output: {"tasks": ["true"], "labels": {"a": output["path"]}},
        ],
    )
    def test_they_may_be_anywhere_and_come_first(self, make: Callable[[Any], dict[str, Any]]) -> None:
        with DAG("d", start_date=START):

            @task
            def pick() -> dict[str, Any]:
                return {}

            tested = AirExecutorSubmitOperator(task_id="t", start_from_trigger=True, **make(pick()))
        assert tested.upstream_task_ids == {"pick"}
        assert not tested.start_from_trigger  # the triggerer does not have them

    def test_a_path_is_not_taken_for_one(self) -> None:
        (found,) = rendered([{"bash": "true", "cwd": Path("/tmp"), "timeout": timedelta(minutes=2)}])
        assert (found.cwd, found.timeout) == ("/tmp", 120)


class TestBeforeRendering:
    @pytest.mark.parametrize(
        ("tasks", "says"),
        [
            ([{"id": "a", "command": "echo", "cwd": "{{ x }}", "retries": -1}], "tasks[0].retries of 'a'"),
            ([{"id": "{{ x }}", "command": "echo", "timeout": 0}], "tasks[0].timeout of '{{ x }}'"),
            ([{"command": "echo", "id": "a-{{ a/b }}"}, {"bash": ""}], "tasks[1]"),
            ([{"bash": "true", "env": {"A-B": "{{ x }}"}}], "tasks[0].env"),
            ([{"command": "{{ x }}", "bash": "true"}], "either bash, or command"),
            ([{"bash": "true", "resources": {"memory": "{{ x }}", "cpu": 1}}], "tasks[0].resources.cpu"),
            ([{"bash": "true", "comand": "{{ x }}"}], "tasks[0].comand"),
            ([{"bash": "true", "kubernetes": {"image": "{{ x }}", "imag": "y"}}], "tasks[0].kubernetes.imag"),
            (["true {{ x }}", {"bash": "true", "dependencies": ["task-3"]}], "no task 'task-3'"),
            ([{"id": "{{ x }}", "bash": "a"}, {"id": "{{ x }}", "bash": "b"}], "the id of another task"),
            (
                [
                    {"id": "{{ x }}", "bash": "a", "dependencies": ["{{ y }}"]},
                    {"id": "{{ y }}", "bash": "b", "dependencies": ["{{ x }}"]},
                ],
                "cycle",
            ),
        ],
    )
    def test_what_is_known_is_checked_beside_templates(self, tasks: Any, says: str) -> None:
        with pytest.raises(InvalidJobError) as refused, DAG("d", start_date=START):
            AirExecutorSubmitOperator(task_id="t", tasks=tasks)
        assert says in str(refused.value)
        assert str(refused.value).startswith("DAG 'd', task 't': ")

    @pytest.mark.parametrize(
        "tasks",
        [
            [EVERYWHERE],
            [{"id": "{{ a/b }}", "bash": "true"}, {"bash": "true", "dependencies": ["{{ a/b }}"]}],
            [{"id": "{{ x }}", "bash": "true"}, {"bash": "true", "dependencies": ["load"]}],
            [{"bash": "true", "dependencies": ["{{ x }}"]}],
            [{"command": "echo", "dependencies": "{{ x }}", "args": "{{ y }}"}],
            ["{{ x }}", {"bash": "true", "dependencies": ["load"]}],
        ],
    )
    def test_what_a_template_decides_is_not(self, tasks: Any) -> None:
        task_templates.check(tasks)

    @pytest.mark.parametrize(
        ("argument", "says"),
        [
            ({"env": {"A-B": "x"}}, "env: 'A-B' cannot be the name"),
            ({"cwd": 7}, "cwd: "),
            ({"append_env": "maybe"}, "append_env: "),
        ],
    )
    def test_what_all_tasks_have_is_checked_too(self, argument: dict[str, Any], says: str) -> None:
        with pytest.raises(InvalidJobError) as refused:
            AirExecutorSubmitOperator(task_id="t", tasks=["true"], **argument)
        assert str(refused.value).startswith(f"task 't': {says}")


class TestForAllTasks:
    def test_environment_and_directory(self) -> None:
        tasks = ["true", {"command": "x", "env": {"A": "own", "C": "{{ word }}"}, "cwd": "/own", "append_env": True}]
        first, second = rendered(tasks, env={"A": "{{ word }}", "B": "b"}, cwd="/{{ word }}", append_env=False)
        assert (first.env, first.cwd, first.append_env) == ({"A": "local", "B": "b"}, "/local", False)
        assert (second.env, second.cwd) == ({"A": "own", "B": "b", "C": "local"}, "/own")
        assert second.append_env

    def test_an_environment_as_a_whole(self) -> None:
        (found,) = rendered([{"bash": "true", "env": "{{ {'B': 'c'} | tojson }}"}], env="{{ {'A': 'b'} | tojson }}")
        assert found.env == {"A": "b", "B": "c"}

    def test_the_triggerer_does_the_same(self) -> None:
        given = {"tasks": [EVERYWHERE, "true"], "env": {"A": "x", "B": "{{ word }}"}, "cwd": "/{{ word }}"}
        with DAG("d", start_date=START):
            tested = AirExecutorSubmitOperator(task_id="t", start_from_trigger=True, **given)
        if not tested.start_from_trigger:
            pytest.skip("before Airflow 3.3 a worker begins")
        assert tested.start_trigger_args is not None
        trigger = AirExecutorSubmitTrigger(**(tested.start_trigger_args.trigger_kwargs or {}))
        trigger.template_fields = ("tasks",)  # those that both have, as Airflow sets them
        trigger.render_template_fields(CONTEXT)
        assert task_templates.to_submit(trigger.tasks, trigger.defaults) == rendered(**given)
