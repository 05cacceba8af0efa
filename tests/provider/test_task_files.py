"""Scripts and job files beside a DAG."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG

from airflow_provider_air_executor import task_files
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator

START = datetime(2026, 1, 1, tzinfo=UTC)
CONTEXT = {"word": "hi", "number": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a DAG."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "big.sh").write_text("# of many lines\necho {{ word }}\n")
    (tmp_path / "job.yaml").write_text(
        """\
name: by-hand
timeout: 15m
max_parallel_tasks: 2
labels: {team: "{{ word }}"}
tasks:
  - id: a
    bash: scripts/big.sh
    timeout: "{{ number }}"
  - id: b
    command: echo
    args: [2026-01-01, "{{ word }}"]
    dependencies: [a]
"""
    )
    (tmp_path / "loop.yml").write_text(
        """\
{% for n in range(number) %}
- id: part-{{ n }}
  bash: echo {{ n }} {{ "{{ word }}" }}
{% endfor %}
"""
    )
    return tmp_path


def in_dag(folder: Path, *, parsed: bool = True, **kwargs: Any) -> AirExecutorSubmitOperator:
    """An operator of a DAG that was parsed by Airflow, or run by ``dag.test()``, which does not resolve files."""
    with DAG("d", start_date=START, template_searchpath=str(folder)) as dag:
        made = AirExecutorSubmitOperator(task_id="t", **kwargs)
    if parsed:
        dag.resolve_template_files()
    return made


def submitted(operator: AirExecutorSubmitOperator) -> tuple[Task, ...]:
    operator.render_template_fields(CONTEXT)
    return operator._tasks_to_submit()


@pytest.mark.parametrize("parsed", [True, False])
def test_a_script_is_read_and_rendered(folder: Path, parsed: bool) -> None:
    tasks = ["scripts/big.sh", {"id": "b", "bash": "scripts/big.sh"}]
    found = submitted(in_dag(folder, parsed=parsed, tasks=tasks))
    assert [task.args for task in found] == [("-c", "# of many lines\necho hi")] * 2


@pytest.mark.parametrize(
    "line",
    [
        "./big.sh",
        "/opt/big.sh",
        "~/big.sh",
        "../big.sh",
        "$HOME/big.sh",
        "big.sh ",
        "bash big.sh",
        "cd x;./big.sh",
        "{{ word }}.sh",
        "a&&big.sh",
    ],
)
def test_what_is_a_command_stays_one(folder: Path, line: str) -> None:
    (found,) = submitted(in_dag(folder, tasks=[line]))
    assert found.args == ("-c", line.replace("{{ word }}", "hi"))


def test_no_argument_is_read(folder: Path) -> None:
    task = {"command": "scripts/big.sh", "args": ["scripts/big.sh", "job.yaml"], "env": {"A": "scripts/big.sh"}}
    (found,) = submitted(in_dag(folder, tasks=[task], job_name="job.yaml"))
    assert (found.command, found.args) == ("scripts/big.sh", ("scripts/big.sh", "job.yaml"))
    assert found.env == {"A": "scripts/big.sh"}


def test_a_script_that_is_not_there_fails_when_the_dag_is_parsed(folder: Path) -> None:
    with pytest.raises(InvalidJobError) as refused:
        in_dag(folder, tasks=["true", {"bash": "no.sh"}])
    said = str(refused.value)
    assert said.startswith(
        "DAG 'd', task 't': tasks[1].bash: there is no file 'no.sh' in the DAG's folder or its templ"
    )
    assert str(folder) in said
    assert "'./no.sh' would run it where the task runs" in said


def test_a_script_that_is_too_long(folder: Path) -> None:
    (folder / "long.sh").write_text("#" * 140_000)
    with pytest.raises(InvalidJobError, match=r"tasks\[0\]: long.sh is longer than 131000 bytes"):
        in_dag(folder, tasks=["long.sh"])


@pytest.mark.parametrize("parsed", [True, False])
def test_a_whole_job(folder: Path, parsed: bool) -> None:
    tested = in_dag(folder, parsed=parsed, tasks="job.yaml")
    first, second = submitted(tested)
    assert (first.args, first.timeout) == (("-c", "# of many lines\necho hi"), 3)
    assert (second.args, second.dependencies) == (("2026-01-01", "hi"), ("a",))
    spec = tested._spec()
    assert (spec["timeout"], spec["max_parallel_tasks"], spec["labels"]) == (900, 2, {"team": "hi"})


def test_what_the_operator_says_wins_over_the_file(folder: Path) -> None:
    tested = in_dag(folder, tasks="job.yaml", timeout=60, max_parallel_tasks=1, labels={"x": "y"}, priority=7)
    tested.render_template_fields(CONTEXT)
    spec = tested._spec()
    assert (spec["timeout"], spec["max_parallel_tasks"]) == (120, 1)
    assert (spec["labels"], spec["priority"]) == ({"x": "y"}, 7)


@pytest.mark.parametrize("parsed", [True, False])
def test_a_file_that_becomes_yaml_by_its_templates(folder: Path, parsed: bool) -> None:
    found = submitted(in_dag(folder, parsed=parsed, tasks="loop.yml"))
    assert [task.id for task in found] == ["part-0", "part-1", "part-2"]
    assert found[2].args == ("-c", "echo 2 {{ word }}")  # what a template has given is not rendered again


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks: [", "tasks: bad.yaml is not YAML: "),
        ("tasks: {}", "must hold a list of tasks, or a mapping with a list named 'tasks'"),
        ("just text", "must hold a list of tasks"),
        (
            "{tasks: [true], time_out: 3}",
            "time_out: bad.yaml must not have a field of this name; did you mean 'timeout'?",
        ),
        ("{tasks: [{bash: x, timeout: soon}]}", "tasks[0].timeout: "),
        ("{tasks: ['true'], priority: high}", "priority: must be a whole number"),
        ("{tasks: []}", "the list is empty"),
    ],
)
def test_a_bad_file_fails_when_the_dag_is_parsed(folder: Path, text: str, says: str) -> None:
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(InvalidJobError) as refused:
        in_dag(folder, tasks="bad.yaml")
    assert str(refused.value).startswith("DAG 'd', task 't': ")
    assert says in str(refused.value)


def test_airflow_shows_what_is_wrong_with_a_file_among_its_import_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.dag_processing.dagbag import DagBag

    monkeypatch.setenv("AIRFLOW__CORE__LOAD_EXAMPLES", "False")
    (folder / "dag.py").write_text(
        """\
from airflow.sdk import DAG
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
with DAG("from_files"):
    AirExecutorSubmitOperator(task_id="good", tasks="job.yaml")
with DAG("with_a_mistake"):
    AirExecutorSubmitOperator(task_id="load", tasks=["no.sh"])
"""
    )
    bag = DagBag(str(folder / "dag.py"))
    (error,) = bag.import_errors.values()
    assert "DAG 'with_a_mistake', task 'load': tasks[0]: there is no file 'no.sh'" in error
    assert bag.dags["from_files"].get_task("good")._listed[0]["bash"].startswith("# of many lines")


def test_the_triggerer_gets_what_is_in_the_files(folder: Path) -> None:
    tested = in_dag(folder, tasks="job.yaml", start_from_trigger=True, parsed=False)
    assert not tested.start_from_trigger  # the triggerer has no folder of the DAG
    tested.resolve_template_files()
    if not tested.start_from_trigger:
        pytest.skip("before Airflow 3.3 a worker begins")
    assert tested.start_trigger_args is not None
    arguments = tested.start_trigger_args.trigger_kwargs or {}
    assert arguments["tasks"][0]["bash"] == "# of many lines\necho {{ word }}\n"
    assert (arguments["spec"]["timeout"], arguments["spec"]["labels"]) == (900, {"team": "{{ word }}"})


def test_names_of_files() -> None:
    assert task_files.is_job("jobs/nightly.yml")
    assert not task_files.is_job(["job.yaml"])
    assert not task_files.is_job("{{ params.job }}.yaml")
