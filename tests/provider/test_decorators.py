"""``@task.air_executor``: what its function may return."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_air_executor.decorators import AirExecutorDecoratedOperator
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.contexts import context

START = datetime(2026, 1, 1, tzinfo=UTC)


def decorated(returned: Any, folder: Path | None = None, **kwargs: Any) -> AirExecutorDecoratedOperator:
    """The operator of a function that returns this, in a DAG."""
    with DAG("d", start_date=START, template_searchpath=[str(folder)] if folder else None):

        @task.air_executor(**kwargs)
        def make() -> Any:
            return returned

        return make().operator  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("echo one", "make() must return a list of tasks, not a text: return ['echo one']"),
        (None, "make() must return a list of tasks, and returned None; is there no return?"),
        ({"bash": "true"}, "make() must return a list of tasks, not dict; one task goes into a list too"),
        (Task(command="true"), "make() must return a list of tasks, not Task"),
        (7, "make() must return a list of tasks, not int"),
        ([7], "tasks[0]"),
        ([{"id": "load", "bash": "true", "retries": -1}], "tasks[0].retries of 'load'"),
        ([], "tasks: the list is empty; a job needs at least one task; on_empty='skip' would skip the Airflow task"),
    ],
)
def test_what_its_function_must_not_return(store: JobStore, returned: Any, says: str) -> None:
    with pytest.raises(InvalidJobError) as refused:
        decorated(returned).execute(context())
    assert str(refused.value).startswith("DAG 'd', task 'make': ")
    assert says in str(refused.value)
    assert not store.base_path.exists() or store.job_names() == []


def test_an_empty_list_that_skips_the_task(store: JobStore) -> None:
    with pytest.raises(AirflowSkipException):
        decorated([], on_empty="skip").execute(context())


@pytest.mark.parametrize(("waits", "result"), [(True, {}), (False, None)])
def test_an_empty_list_with_which_it_succeeds(store: JobStore, waits: bool, result: Any) -> None:
    assert decorated([], on_empty="succeed", wait_for_completion=waits).execute(context()) == result


def test_a_mistake_in_its_arguments_is_found_when_the_dag_is_parsed() -> None:
    with pytest.raises(InvalidJobError, match="DAG 'd', task 'make': env: 'A-B' cannot be"):
        decorated(["true"], env={"A-B": "x"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "big.sh").write_text("echo {{ word }}")
    (tmp_path / "job.yaml").write_text("tasks: [{bash: 'echo {{ word }}'}]")
    return tmp_path


@pytest.mark.embedded
@pytest.mark.parametrize(
    "returned",
    [
        ["big.sh"],
        ("echo {{ word }}",),
        "job.yaml",
        '[{"bash": "echo {{ word }}"}]',
        (line for line in ("echo {{ word }}",)),
        [Task(bash="echo {{ word }}")],
    ],
)
def test_what_it_may_return(store: JobStore, folder: Path, returned: Any) -> None:
    decorated(returned, folder, job_name="j").execute({**context(), "word": "hi"})
    (found,) = store.get_tasks("j")
    assert (found.command, found.args) == ("bash", ("-c", "echo hi"))
