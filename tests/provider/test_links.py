"""The link from an Airflow task to its job's page: where it leads, and when it is there."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSensorTimeout, TaskDeferred
from airflow.serialization.serialized_objects import DagSerialization

from airflow_provider_air_executor import links
from airflow_provider_air_executor.decorators import AirExecutorDecoratedOperator
from airflow_provider_air_executor.exceptions import JobFailedError
from airflow_provider_air_executor.jobs.models import SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.sensors import AirExecutorJobSensor
from airflow_provider_air_executor.transfers import SqlToAirExecutorOperator
from airflow_provider_air_executor.triggers import AirExecutorJobTrigger
from tests.support.contexts import context
from tests.support.waiting import until, wait_until

KEY = "_link_AirExecutorJobLink"
OWNER = SubmittedBy(dag_id="d", run_id="manual__2026-01-01T00:00:00+00:00", task_id="group.t", map_index=0)


def operator(tasks: list[Any], **kwargs: Any) -> AirExecutorSubmitOperator:
    return AirExecutorSubmitOperator(task_id="t", tasks=tasks, job_name="j", poll_interval=0.1, **kwargs)


@pytest.mark.parametrize(
    ("base_url", "path"),
    [("", ""), ("http://host:8080", ""), ("http://host/", ""), ("https://host/a/flow/", "/a/flow")],
)
def test_addresses_are_below_that_of_airflow(monkeypatch: pytest.MonkeyPatch, base_url: str, path: str) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    monkeypatch.setattr(links, "root_path", links.root_path.__wrapped__)  # it is remembered otherwise
    assert links.job_url("j") == f"{path}/air-executor/jobs/j"
    assert links.job_url("j", "a/b&c") == f"{path}/air-executor/jobs/j?conn_id=a%2Fb%26c"
    assert links.run_url(OWNER) == f"{path}/dags/d/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
    assert links.task_url(OWNER) == f"{links.run_url(OWNER)}/tasks/group.t/mapped/0"


@pytest.mark.parametrize(
    "kind", [AirExecutorSubmitOperator, AirExecutorDecoratedOperator, SqlToAirExecutorOperator, AirExecutorJobSensor]
)
def test_who_has_the_link(kind: type[Any]) -> None:
    assert [(link.name, link.xcom_key) for link in kind.operator_extra_links] == [("Job", KEY)]


def test_the_api_server_finds_it_without_our_code() -> None:
    with DAG("d", start_date=datetime(2026, 1, 1, tzinfo=UTC), schedule=None) as dag:
        operator(["true"])
        AirExecutorSubmitOperator.partial(task_id="mapped").expand(tasks=[["true"]])
    found = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    for task_id in ("t", "mapped"):
        (link,) = found.get_task(task_id).operator_extra_links
        assert (link.name, link.xcom_key, type(link).__name__) == ("Job", KEY, "XComOperatorLink")


@pytest.mark.embedded
class TestWhenItIsThere:
    def test_while_the_task_waits_in_its_worker(self, store: JobStore, tmp_path: Path) -> None:
        given = context()
        worker = threading.Thread(target=operator([until(tmp_path / "go")]).execute, args=(given,))
        worker.start()
        try:
            wait_until(lambda: KEY in given["ti"].pushed, what="the link is there")
            assert not store.get_job("j").state.is_terminal
        finally:
            (tmp_path / "go").touch()
            worker.join()
        assert given["ti"].pushed[KEY] == links.job_url("j")

    def test_before_a_deferral(self, store: JobStore) -> None:
        given = context()
        with pytest.raises(TaskDeferred):
            operator(["sleep 1000"], deferrable=True).execute(given)
        assert given["ti"].pushed[KEY] == links.job_url("j")

    def test_when_the_job_fails(self, store: JobStore) -> None:
        """Complaint: ids and links are missing on failure (#58227)."""
        given = context()
        with pytest.raises(JobFailedError):
            operator(["false"]).execute(given)
        assert given["ti"].pushed[KEY] == links.job_url("j")

    @pytest.mark.parametrize("deferrable", [True, False])
    def test_while_a_sensor_waits_for_a_job_that_is_not_there(self, store: JobStore, deferrable: bool) -> None:
        given = context()
        tested = AirExecutorJobSensor(
            task_id="wait", job_name="j", deferrable=deferrable, poke_interval=0.1, timeout=timedelta(seconds=0.2)
        )
        with pytest.raises((TaskDeferred, AirflowSensorTimeout)):
            tested.execute(given)
        assert given["ti"].pushed == {"job_name": "j", KEY: links.job_url("j")}

    def test_when_a_task_ends_in_the_triggerer(self, store: JobStore) -> None:
        operator(["true"]).execute(context())
        trigger = AirExecutorJobTrigger("j", str(store.base_path), end_from_trigger=True)
        assert trigger._results()[KEY] == links.job_url("j")
