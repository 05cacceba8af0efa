"""The arguments of operators, sensors and notifiers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_air_executor import arguments
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.notifications import AirExecutorNotifier
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (90, 90.0),
        (1.5, 1.5),
        ("90", 90.0),
        ("15m", 900.0),
        ("1h30m", 5400.0),
        (timedelta(minutes=2), 120.0),
        ("{{ params.t }}", "{{ params.t }}"),
        ("", None),
        ("None", None),
        (None, None),
    ],
)
def test_durations(given: Any, expected: Any) -> None:
    assert arguments.seconds("timeout", given) == expected


@pytest.mark.parametrize("given", [0, -1, "soon", "-5m", timedelta(0), True, [5], float("nan"), float("inf")])
def test_what_is_no_duration(given: Any) -> None:
    with pytest.raises(InvalidJobError, match=r"timeout: must be a number of seconds .* '15m', or a timedelta, not "):
        arguments.seconds("timeout", given)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        (
            {"timeout": "5 minutes"},
            "timeout: must be a number of seconds greater than 0, a text such as '15m', or a time",
        ),
        ({"timeout": 0}, "timeout: "),
        ({"poll_interval": "{{ params.p }}"}, "poll_interval: must be a duration, and no template"),
        ({"poll_interval": None}, "poll_interval: "),
        ({"skip_on_exit_code": "99"}, "skip_on_exit_code: must be a number, or several, not '99'"),
        ({"max_parallel_tasks": 0}, "max_parallel_tasks: must be a whole number from 1, not 0"),
        ({"max_parallel_tasks": True}, "max_parallel_tasks: "),
        ({"max_parallel_tasks": "2"}, "max_parallel_tasks: "),
        ({"priority": "high"}, "priority: must be a whole number, not 'high'"),
        ({"priority": 1.5}, "priority: "),
        ({"labels": {"a": 1}}, "labels: each is a text with a text, not 'a': 1; say '1'"),
        ({"labels": ["a"]}, "labels: must be a dict of texts, not list"),
        ({"on_empty": "ignore"}, "on_empty: must be one of skip, fail, succeed, not 'ignore'"),
        ({"on_retry": "failed"}, "on_retry: must be one of failed_tasks, all, not 'failed'"),
    ],
)
def test_what_is_refused_when_the_dag_is_parsed(argument: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        AirExecutorSubmitOperator(task_id="load", tasks=["true"], **argument)
    assert str(refused.value).startswith(f"task 'load': {says}")


@pytest.mark.parametrize(
    "argument", [{"max_parallel_tasks": 0}, {"priority": "high"}, {"labels": {"a": 1}}, {"tasks": [{"bash": ""}]}]
)
def test_a_notifier_refuses_the_same(argument: dict[str, Any]) -> None:
    with pytest.raises(InvalidJobError, match=next(iter(argument))):
        AirExecutorNotifier(**{"tasks": ["true"], **argument})


def test_templates_in_arguments() -> None:
    tested = AirExecutorSubmitOperator(
        task_id="t",
        tasks=["true"],
        timeout="{{ '15m' }}",
        max_parallel_tasks="{{ 2 }}",  # type: ignore[arg-type]
        priority="{{ 5 }}",  # type: ignore[arg-type]
        runner="{{ 'slurm' }}",
        labels={"a": "{{ 1 }}"},
        job_outlets="{{ ['file:///a', 'file:///b'] | tojson }}",
    )
    tested.render_template_fields({})
    spec = tested._spec()
    assert (spec["timeout"], spec["max_parallel_tasks"], spec["priority"]) == (960, 2, 5)
    assert (spec["runner"], spec["labels"], spec["outlets"]) == ("slurm", {"a": "1"}, ["file:///a", "file:///b"])
    assert tested._limit == 900


def test_labels_as_a_whole() -> None:
    tested = AirExecutorSubmitOperator(
        task_id="t",
        tasks=["true"],
        labels="{{ {'a': 'b'} | tojson }}",  # type: ignore[arg-type]
    )
    tested.render_template_fields({})
    assert tested._spec()["labels"] == {"a": "b"}


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"timeout": "{{ 'soon' }}"}, "timeout: must be a number of seconds"),
        ({"priority": "{{ 'high' }}"}, "priority: must be a whole number, not 'high'"),
        ({"max_parallel_tasks": "{{ 0 }}"}, "max_parallel_tasks: must be a whole number from 1, not '0'"),
    ],
)
def test_what_is_wrong_after_rendering_is_named(argument: dict[str, Any], says: str) -> None:
    from tests.support.contexts import context

    tested = AirExecutorSubmitOperator(task_id="load", tasks=["true"], job_name="j", **argument)
    tested.render_template_fields({})
    with pytest.raises(InvalidJobError) as refused:
        tested.execute(context())
    assert str(refused.value).startswith(f"task 'load': {says}")
