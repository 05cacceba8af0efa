"""The notifier: one job for each event, whoever calls it and however often, as Airflow's own processes call it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from airflow.api_fastapi.execution_api.datamodels import taskinstance as datamodels
from airflow.callbacks.callback_requests import DagCallbackRequest, DagRunContext, TaskCallbackRequest
from airflow.dag_processing.processor import _execute_callbacks
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, BaseNotifier
from airflow.triggers.callback import CallbackTrigger
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunType

from airflow_provider_air_executor.exceptions import InvalidJobError, JobExistsError
from airflow_provider_air_executor.jobs.models import ALL_AT_ONCE, Job, Task
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.notifications import AirExecutorNotifier
from tests.support.contexts import TaskInstance
from tests.support.waiting import wait_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def event(state: str | None = "failed", **changes: Any) -> Any:
    """The context that a worker gives a callback of a task."""
    return {"ti": TaskInstance(state=state, **changes)}


def jobs(store: JobStore) -> list[Job]:
    return list(store.list_jobs())


def commands(store: JobStore) -> list[str]:
    return sorted(" ".join(store.get_tasks(name)[0].args[1:]) for name in store.job_names())


class TestParsing:
    @pytest.mark.parametrize(
        ("tasks", "says"),
        [
            ([], "the list is empty"),
            ("echo hi", "must be a list of tasks"),
            ([{"cmd": "a"}], "command"),
            ([{"command": "a", "dependencies": ["nope"]}], "no task 'nope'"),
        ],
    )
    def test_bad_tasks_are_refused_when_the_dag_is_parsed(self, tasks: Any, says: str) -> None:
        with pytest.raises(InvalidJobError) as refused:
            AirExecutorNotifier(tasks=tasks)
        assert says in str(refused.value)

    @pytest.mark.parametrize("arguments", [{"max_parallel_tasks": 0}, {"priority": "high"}, {"labels": {"a": 1}}])
    def test_other_arguments_are_refused_too(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(InvalidJobError, match=next(iter(arguments))):
            AirExecutorNotifier(tasks=["true"], **arguments)

    def test_it_is_one_of_airflows(self) -> None:
        assert isinstance(AirExecutorNotifier(tasks=["true"]), BaseNotifier)


class TestOneJobForEachEvent:
    @pytest.mark.embedded
    def test_it_submits_and_does_not_wait(self, store: JobStore) -> None:
        AirExecutorNotifier(
            tasks=[{"bash": "sleep 1000", "id": "a"}, Task(command="echo", args=["hi"])],
            labels={"team": "a"},
            priority=3,
        )(event())
        (job,) = jobs(store)
        assert not job.state.is_terminal
        assert (job.labels, job.priority, job.max_parallel_tasks) == ({"team": "a"}, 3, ALL_AT_ONCE)
        assert str(job.submitted_by) == "task t of DAG d, run manual__1+00:00"

    @pytest.mark.embedded
    def test_a_callback_that_is_called_again_submits_nothing_more(self, store: JobStore) -> None:
        AirExecutorNotifier(tasks=["echo {{ ti.task_id }}"])(event())
        AirExecutorNotifier(tasks=["echo {{ ti.task_id }}"])(event())
        # The DAG processor, after the worker was lost on the way, does not know the state.
        AirExecutorNotifier(tasks=["echo {{ ti.task_id }}"])(event(None))
        assert commands(store) == ["echo t"]

    @pytest.mark.embedded
    @pytest.mark.parametrize(
        "other",
        [
            event("success"),
            event("skipped"),
            event("running"),
            event(try_number=2),
            event(map_index=0),
            event(task_id="u"),
            event(run_id="r2"),
            event(dag_id="e"),
        ],
    )
    def test_another_event_is_another_job(self, store: JobStore, other: Any) -> None:
        notifier = AirExecutorNotifier(tasks=["true"])
        notifier(event())
        notifier(other)
        assert len(jobs(store)) == 2

    @pytest.mark.embedded
    def test_two_notifiers_of_one_event_are_two_jobs(self, store: JobStore) -> None:
        for notifier in (AirExecutorNotifier(tasks=["echo one"]), AirExecutorNotifier(tasks=["echo two"])):
            notifier(event())
        assert commands(store) == ["echo one", "echo two"]

    @pytest.mark.embedded
    def test_one_notifier_of_many_tasks_is_rendered_for_each(self, store: JobStore) -> None:
        """Airflow renders a notifier in place, and its DAG processor calls it again for the next task."""
        notifier = AirExecutorNotifier(tasks=["echo {{ ti.task_id }}"], job_name="alert-{{ ti.task_id }}")
        for task_id in ("a", "b"):
            notifier(event(task_id=task_id))
        assert commands(store) == ["echo a", "echo b"]
        assert store.job_names() == ["alert-a", "alert-b"]

    @pytest.mark.embedded
    def test_a_name_that_something_else_has_is_an_error(self, store: JobStore) -> None:
        notifier = AirExecutorNotifier(tasks=["true"], job_name="alert")
        notifier(event())
        notifier(event())
        for other in (event(try_number=2), event("success")):
            with pytest.raises(JobExistsError):
                notifier(other)

    @pytest.mark.embedded
    def test_tasks_that_a_template_makes_are_checked_when_it_is_called(self, store: JobStore) -> None:
        with pytest.raises(InvalidJobError, match="is empty"):
            AirExecutorNotifier(tasks="{{ [] }}")(event())
        AirExecutorNotifier(tasks="{{ ['true'] | tojson }}")(event())
        assert len(jobs(store)) == 1

    def test_a_context_that_says_nothing(self, store: JobStore) -> None:
        with pytest.raises(InvalidJobError, match="neither a task nor a DAG run"):
            AirExecutorNotifier(tasks=["true"])({})


# -- the DAG processor -------------------------------------------------------------------------------------


def dag(**callbacks: Any) -> DAG:
    with DAG("d", start_date=NOW, schedule=None, **callbacks) as made:
        for task_id in ("a", "b"):
            EmptyOperator(
                task_id=task_id, on_failure_callback=AirExecutorNotifier(tasks=["echo task {{ ti.task_id }}"])
            )
    return made


def run(**changes: Any) -> datamodels.DagRun:
    times = dict.fromkeys(("logical_date", "data_interval_start", "data_interval_end", "start_date", "end_date"), NOW)
    return datamodels.DagRun(
        **{"dag_id": "d", "run_id": "r", "run_after": NOW, "run_type": DagRunType.MANUAL, **times},
        **{"state": DagRunState.FAILED, "consumed_asset_events": [], "partition_key": None, **changes},
    )


def instance(task_id: str) -> datamodels.TaskInstance:
    return datamodels.TaskInstance(
        id=uuid.uuid4(), task_id=task_id, dag_id="d", run_id="r", try_number=1, dag_version_id=uuid.uuid4()
    )


def of_dag(msg: str, **changes: Any) -> DagCallbackRequest:
    return DagCallbackRequest(
        filepath="d.py",
        bundle_name="b",
        bundle_version=None,
        dag_id="d",
        run_id="r",
        msg=msg,
        is_failure_callback=msg != "success",
        **{"context_from_server": DagRunContext(dag_run=run(), last_ti=instance("a")), **changes},
    )


def of_task(task_id: str) -> TaskCallbackRequest:
    return TaskCallbackRequest(
        filepath="d.py",
        bundle_name="b",
        bundle_version=None,
        msg="heartbeat timeout",
        ti=instance(task_id),
        task_callback_type=TaskInstanceState.FAILED,
        context_from_server=datamodels.TIRunContext(dag_run=run(), max_tries=0),
    )


def call(made: DAG, *requests: Any) -> None:
    """As the DAG processor does."""
    _execute_callbacks(SimpleNamespace(dags={made.dag_id: made}), list(requests), structlog.get_logger())  # type: ignore[arg-type]


@pytest.mark.embedded
class TestInTheDagProcessor:
    def test_tasks_whose_worker_was_lost(self, store: JobStore) -> None:
        call(dag(), of_task("a"), of_task("b"), of_task("b"))
        assert commands(store) == ["echo task a", "echo task b"]

    def test_a_dag_that_failed_and_one_that_succeeded(self, store: JobStore) -> None:
        notifier = AirExecutorNotifier(tasks=["echo {{ dag.dag_id }} {{ run_id }} {{ reason }}"])
        made = dag(on_failure_callback=notifier, on_success_callback=notifier)
        call(made, of_dag("task_failure"), of_dag("task_failure"), of_dag("success"))
        assert commands(store) == ["echo d r success", "echo d r task_failure"]
        assert {job.submitted_by.task_id for job in jobs(store) if job.submitted_by} == {""}

    def test_a_dag_run_that_was_cleared_and_failed_again(self, store: JobStore) -> None:
        made = dag(on_failure_callback=AirExecutorNotifier(tasks=["true"]))
        again = DagRunContext(dag_run=run(clear_number=1), last_ti=instance("a"))
        call(made, of_dag("task_failure"), of_dag("task_failure", context_from_server=again))
        assert len(jobs(store)) == 2

    def test_a_dag_run_without_tasks_to_tell_of(self, store: JobStore) -> None:
        call(dag(on_failure_callback=AirExecutorNotifier(tasks=["true"])), of_dag("t", context_from_server=None))
        (job,) = jobs(store)
        assert job.name.startswith("dag_failure__d__r-")


# -- deadlines ---------------------------------------------------------------------------------------------

DEADLINE = {"dag_run": {"dag_id": "d", "dag_run_id": "r"}, "deadline": {"id": "1-2", "deadline_time": str(NOW)}}
ARGUMENTS = {"tasks": ["echo {{ dag_run.dag_id }} is late"], "context": DEADLINE}
PATH = f"{AirExecutorNotifier.__module__}.{AirExecutorNotifier.__qualname__}"


def in_the_triggerer() -> None:
    async def states() -> list[Any]:
        return [found.payload["state"] async for found in CallbackTrigger(PATH, dict(ARGUMENTS)).run()]

    assert asyncio.run(states()) == ["running", "success"]


def in_an_executor() -> None:
    try:
        from airflow.sdk.execution_time.callback_supervisor import execute_callback
    except ImportError:  # Airflow 3.2
        AirExecutorNotifier(**ARGUMENTS)(DEADLINE)
    else:
        assert execute_callback(PATH, dict(ARGUMENTS), "d.py", None, structlog.get_logger())[0]  # type: ignore[arg-type]


@pytest.mark.embedded
@pytest.mark.parametrize("calls", [(in_the_triggerer,), (in_an_executor,), (in_the_triggerer, in_an_executor)])
def test_a_deadline_that_was_missed(store: JobStore, calls: tuple[Callable[[], None], ...]) -> None:
    for one in calls:
        one()
    assert commands(store) == ["echo d is late"]
    (job,) = jobs(store)
    assert job.submitted_by is not None
    assert (job.submitted_by.dag_id, job.submitted_by.run_id) == ("d", "r")
    wait_until(lambda: store.get_job(job.name).state == "completed", what="it has run")
