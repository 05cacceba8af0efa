"""What tasks hand over to Airflow: what it cannot keep is refused where it is read, on all ways alike."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException
from airflow.triggers.base import TaskSuccessEvent

from airflow_provider_air_executor import triggers
from airflow_provider_air_executor.event_triggers import event_of
from airflow_provider_air_executor.exceptions import InvalidJobError, JobFailedError, OutputError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.models import JobState, SubmittedBy, TaskStatus
from airflow_provider_air_executor.jobs.outputs import MAX_DEPTH, why_unfit
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.results import RESERVED, results_of
from airflow_provider_air_executor.sensors import AirExecutorJobSensor
from airflow_provider_air_executor.triggers import AirExecutorJobTrigger, AirExecutorSubmitTrigger
from tests.support.contexts import TaskInstance, context
from tests.support.jobs import publish_job, publish_tasks
from tests.support.waiting import PATIENCE

UNFIT = {
    "nan": '{"rows": [NaN]}',
    "infinity": "[1e999]",
    "nul": r'"a\u0000b"',
    "nul in a key": r'{"a\u0000b": 1}',
    "surrogate": r'"\ud800"',
    "long number": "18446744073709551616",
    "class": '{"a": [{"__classname__": "x"}]}',
    "id": '{"a": [{"__id__": "x"}]}',
    "old class": '[{"__type": "dict", "__var": {}}]',
    "depth": "[" * 200 + "]" * 200,
    "depth of a parser": "[" * 5000 + "]" * 5000,
}
OWNER = SubmittedBy.of_task(TaskInstance(), max_tries=0)


def handed_over(store: JobStore, text: str, *, state: JobState = JobState.COMPLETED, **job: Any) -> JobStore:
    """A job ``j`` of the task in :func:`context` that has ended; its task ``report`` has written this text."""
    submitted = store.submit("j", [{"id": "report", "command": "true"}], submitted_by=OWNER)
    (report,) = store.get_tasks("j")
    publish_tasks(store, "j", [report.evolve(status=TaskStatus.COMPLETED, attempt=1)])
    store.paths("j").output("report", 1).write_text(text)
    publish_job(store, submitted.evolve(state=state, attempt=1, **job))
    return store


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The triggerer's own way to connections is not here, and no manager is needed."""

    async def location(conn_id: str) -> tuple[str, bool]:
        return AirExecutorHook(conn_id).location

    monkeypatch.setattr(triggers, "location_of", location)
    monkeypatch.setattr("airflow_provider_air_executor.hooks.start_manager_if_none", lambda store: None)


def waits(_: JobStore) -> Any:
    return AirExecutorSubmitOperator(task_id="t", tasks=["true"], job_name="j").execute(context())


def is_deferred(store: JobStore) -> Any:
    event = asyncio.run(fired(AirExecutorJobTrigger("j", str(store.base_path)))).payload
    return AirExecutorSubmitOperator(task_id="t", tasks=["true"], job_name="j").execute_complete(context(), event)


def starts_from_its_trigger(_: JobStore) -> Any:
    tested = AirExecutorSubmitTrigger(tasks=["true"], job_name="j")
    tested.task_instance = TaskInstance()
    event = asyncio.run(fired(tested))
    if isinstance(event, TaskSuccessEvent):
        return (event.xcoms or {})["return_value"]
    return AirExecutorSubmitOperator(task_id="t", tasks=["true"], job_name="j").execute_complete(
        context(), event.payload
    )


def is_a_sensor(_: JobStore) -> Any:
    return AirExecutorJobSensor(task_id="t", job_name="j").execute(context())


def is_a_sensor_in_its_trigger(store: JobStore) -> Any:
    event = asyncio.run(fired(AirExecutorJobTrigger("j", str(store.base_path), end_from_trigger=True)))
    if isinstance(event, TaskSuccessEvent):
        return (event.xcoms or {})["return_value"]
    return AirExecutorJobSensor(task_id="t", job_name="j").execute_complete(context(), event.payload)


async def fired(tested: AirExecutorJobTrigger) -> Any:
    async with asyncio.timeout(PATIENCE):
        (event,) = [event async for event in tested.run()]
    return event


WAYS = [waits, is_deferred, starts_from_its_trigger, is_a_sensor, is_a_sensor_in_its_trigger]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", UNFIT)
def test_what_airflow_cannot_keep_is_refused_on_all_ways(store: JobStore, kind: str, way: Any) -> None:
    """And it is not retried: the job has completed, and would say the same again."""
    path = handed_over(store, UNFIT[kind]).paths("j").output("report", 1)
    with pytest.raises(OutputError) as refused:
        way(store)
    assert isinstance(refused.value, AirflowFailException)
    assert "task 'report' of job 'j'" in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("way", WAYS)
def test_what_it_can_keep_is_returned_on_all_ways(store: JobStore, way: Any) -> None:
    value = {"__type": "a", "__version__": 1, "n": [None, 1.5, 2**64 - 1, "ä"], "x": {"__var": 1, "__data__": 2}}
    handed_over(store, json.dumps(value))
    assert way(store) == {"report": value}


@pytest.mark.usefixtures("here")
def test_partial_results_that_cannot_be_kept_do_not_hide_why_the_job_failed(store: JobStore) -> None:
    handed_over(store, UNFIT["nan"], state=JobState.FAILED, error="task break failed")
    given = context()
    event = {"status": "failed", "job_name": "j", "message": ""}
    with pytest.raises(JobFailedError, match="task break failed"):
        AirExecutorSubmitOperator(task_id="t", tasks=["true"], job_name="j").execute_complete(given, event)
    assert "partial_results" not in given["ti"].pushed


def test_a_result_on_which_airflow_insists_is_its_own(store: JobStore) -> None:
    """What is refused is what Airflow refuses or changes, and what is taken it takes and gives back."""
    from airflow.sdk.serde import deserialize, serialize

    for name, text in UNFIT.items():
        if name in ("class", "id", "old class"):
            value = json.loads(text)
            assert why_unfit(value) is None
            assert why_unfit(value, RESERVED) is not None
            with pytest.raises((AttributeError, AssertionError)):
                assert deserialize(serialize(value)) == value
    for keys in ({"__type": 1}, {"__var": 1}, {"__version__": 1}, {"__data__": 1}, {"__cache__": 1, "__source": 1}):
        assert why_unfit(keys, RESERVED) is None
        assert deserialize(serialize(keys)) == keys


def test_airflow_keeps_what_is_nested_as_deep_as_is_allowed(store: JobStore) -> None:
    from airflow.sdk.serde import deserialize, serialize
    from pydantic import JsonValue, TypeAdapter

    text = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    results = results_of(FileJobs(handed_over(store, text)), "j")
    assert deserialize(serialize(results)) == results
    assert TypeAdapter(JsonValue).validate_json(json.dumps(results)) == results


class TestTextsOfOtherSystems:
    """PostgreSQL has no NUL, and the triggerer can do nothing with an event that it cannot store."""

    @pytest.mark.usefixtures("here")
    def test_the_event_of_a_job_says_no_more_than_airflow_can_keep(self, store: JobStore) -> None:
        handed_over(store, "1", state=JobState.FAILED, error="a\0b")
        event = asyncio.run(fired(AirExecutorJobTrigger("j", str(store.base_path))))
        assert event.payload["message"] == r"a\x00b"

    def test_the_event_of_an_end_says_no_more_than_airflow_can_keep(self, store: JobStore) -> None:
        handed_over(store, "1", state=JobState.FAILED, error="a\0b", id="j\0")
        path = store.paths("j").state
        state = json.loads(path.read_text())
        state["submitted_by"]["more"] = float("nan")
        path.write_text(json.dumps(state))
        told = event_of(store.get_job("j"))
        assert why_unfit(told) is None
        assert (told["error"], told["job_id"]) == (r"a\x00b", r"j\x00")

    @pytest.mark.usefixtures("here")
    def test_the_id_of_a_job(self, store: JobStore) -> None:
        handed_over(store, "1", id="j\0")
        given = context()
        AirExecutorSubmitOperator(task_id="t", tasks=["true"], job_name="j").execute(given)
        assert given["ti"].pushed["job_id"] == r"j\x00"

    @pytest.mark.parametrize("labels", [{"a": "b\0"}, {"a\0": "b"}])
    def test_labels_that_cannot_be_kept_are_refused(self, store: JobStore, labels: dict[str, str]) -> None:
        with pytest.raises(InvalidJobError, match="labels"):
            store.submit("j", ["true"], labels=labels)
        assert store.job_names() == []
