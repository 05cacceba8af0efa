"""The sensor: poke, reschedule and deferrable, and what soft_fail means."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSensorTimeout, AirflowSkipException, TaskDeferred
from structlog.testing import capture_logs

from airflow_provider_air_executor import triggers
from airflow_provider_air_executor.exceptions import InvalidJobError, JobFailedError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.sensors import AirExecutorJobSensor
from tests.support.contexts import context
from tests.support.waiting import until


def sensor(name: str = "j", **kwargs: Any) -> AirExecutorJobSensor:
    return AirExecutorJobSensor(task_id="wait", job_name=name, **{"poke_interval": 0.1, "timeout": 20, **kwargs})


@pytest.mark.embedded
def test_poke_waits_for_the_end(store: JobStore) -> None:
    AirExecutorHook().create_job("j", [{"id": "a", "bash": "sleep 0.5; echo 7 > $AIR_EXECUTOR_OUTPUT"}])
    assert sensor().execute(context()) == {"a": 7}
    assert store.get_job("j").state == "completed"
    assert sensor(deferrable=True).execute(context()) == {"a": 7}
    event = {"status": "completed", "job_name": "j", "message": ""}
    assert sensor().execute_complete(context(), event) == {"a": 7}


@pytest.mark.embedded
def test_poke_says_true_only_when_it_has_completed(store: JobStore, tmp_path: Path) -> None:
    assert not sensor().poke(context())
    AirExecutorHook().create_job("j", [until(tmp_path / "go")])
    assert not sensor().poke(context())
    (tmp_path / "go").touch()
    AirExecutorHook().wait_for_job("j")
    assert sensor().poke(context())


@pytest.mark.embedded
def test_a_job_that_was_removed_is_waited_for_and_the_log_says_how_it_had_ended(store: JobStore) -> None:
    AirExecutorHook().create_job("j", ["true"])
    AirExecutorHook().wait_for_job("j")
    store.delete("j")
    trigger = triggers.AirExecutorJobTrigger("j", str(store.base_path), must_exist=False, deadline=0)

    async def fired() -> list[Any]:
        return [event.payload["status"] async for event in trigger.run()]

    with capture_logs() as captured:
        assert not sensor().poke(context())
        assert asyncio.run(fired()) == ["timeout"]
    lines = [str(line["event"] % line.get("positional_args", ())) for line in captured]
    assert len([line for line in lines if "j was removed" in line or "'j' was removed" in line]) == 2


def test_durations(home: Path) -> None:
    tested = sensor(timeout="15m", poke_interval="1m")
    assert (tested.timeout, tested.poke_interval) == (900, 60)
    with pytest.raises(InvalidJobError, match="task 'wait': timeout: must be a number of seconds"):
        sensor(timeout="soon")


@pytest.mark.embedded
def test_a_run_id_names_the_same_job_as_for_the_operator(store: JobStore) -> None:
    from airflow_provider_air_executor.operators import AirExecutorSubmitOperator

    name = "x_manual__2026-11-22T10:00:00+00:00"
    AirExecutorSubmitOperator(task_id="t", tasks=["true"], job_name=name).execute(context())
    assert sensor(name).poke(context())


@pytest.mark.embedded
@pytest.mark.parametrize("soft_fail", [False, True])
def test_a_failed_job_fails_the_sensor_also_with_soft_fail(store: JobStore, soft_fail: bool) -> None:
    AirExecutorHook().create_job("j", [{"id": "break", "bash": "echo boom; exit 3"}])
    AirExecutorHook().wait_for_job("j")
    tested = sensor(soft_fail=soft_fail)
    event = {"status": "failed", "job_name": "j", "message": ""}
    for wait in (lambda: tested.execute(context()), lambda: resume(tested, event)):
        with pytest.raises(JobFailedError, match="(?s)task break: exit code 3.*break | boom"):
            wait()


@pytest.mark.embedded
@pytest.mark.parametrize(("soft_fail", "error"), [(False, AirflowSensorTimeout), (True, AirflowSkipException)])
def test_a_timeout_fails_it_or_skips_it(store: JobStore, soft_fail: bool, error: type[Exception]) -> None:
    tested = sensor(soft_fail=soft_fail, timeout=0.2)
    with pytest.raises(error):
        tested.execute(context())
    with pytest.raises(error):
        resume(tested, {"status": "timeout", "job_name": "j", "message": "the job is working"})


def resume(tested: AirExecutorJobSensor, event: dict[str, str]) -> None:
    """As Airflow does after a deferral."""
    tested.resume_execution("execute_complete", {"event": event}, context())


@pytest.mark.embedded
def test_it_defers_and_waits_for_a_job_that_is_not_there_yet(store: JobStore) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        sensor(deferrable=True, timeout=30).execute(context())
    arguments = deferred.value.trigger.serialize()[1]
    assert arguments["must_exist"] is False
    assert deferred.value.timeout == timedelta(seconds=90)
    assert deferred.value.method_name == "execute_complete"


@pytest.mark.embedded
def test_it_does_not_defer_for_a_job_that_has_completed(store: JobStore) -> None:
    AirExecutorHook().create_job("j", ["true"])
    AirExecutorHook().wait_for_job("j")
    sensor(deferrable=True).execute(context())


def test_it_can_start_in_the_triggerer(store: JobStore) -> None:
    tested = sensor(start_from_trigger=True, timeout=30)
    if not tested.start_from_trigger:
        pytest.skip("before Airflow 3.3 a worker begins")
    assert tested.start_trigger_args is not None
    assert tested.start_trigger_args.timeout == timedelta(seconds=30)
    arguments = tested.start_trigger_args.trigger_kwargs or {}
    assert (arguments["job_name"], arguments["base_path"], arguments["end_from_trigger"]) == ("j", None, True)


def test_it_starts_in_a_worker_where_the_scheduler_knows_no_other_start(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "_STARTS", False)
    tested = sensor("{{ run_id }}", start_from_trigger=True)
    assert (tested.start_from_trigger, tested.deferrable) == (False, True)
    assert tested.start_trigger_args is None
