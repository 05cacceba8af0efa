"""What a user may say of a job."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.models import ALL_AT_ONCE, Job, JobState, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.spec import FIELDS, JobSpec
from airflow_provider_air_executor.jobs.store import JobStore

ALL: JobSpec = {
    "max_parallel_tasks": 3,
    "timeout": 60.0,
    "priority": -2,
    "labels": {"team": "blue"},
    "outlets": ("file:///report",),
    "runner": "slurm",
}


def test_each_field_reaches_the_job(store: JobStore) -> None:
    assert set(ALL) == set(FIELDS)
    store.submit("j", ["true"], **ALL)
    job = store.get_job("j")
    assert {name: getattr(job, name) for name in FIELDS} == ALL


@pytest.mark.parametrize("given", [{}, dict.fromkeys(FIELDS)])
def test_what_is_left_out_has_its_default(store: JobStore, given: dict[str, Any]) -> None:
    store.submit("j", ["true"], **given)
    job = store.get_job("j")
    plain = Job(id="j-0", name="j", state=JobState.WAITING)
    assert job.max_parallel_tasks == ALL_AT_ONCE
    names = [name for name in FIELDS if name != "max_parallel_tasks"]
    assert [getattr(job, name) for name in names] == [getattr(plain, name) for name in names]


def test_a_field_that_there_is_not_is_refused(store: JobStore) -> None:
    with pytest.raises(TypeError, match="no field 'prioriti'"):
        store.submit("j", ["true"], prioriti=1)  # type: ignore[call-arg]
    assert not store.jobs_path.exists()


@pytest.mark.parametrize("given", [5400, "1h30m", "5400", timedelta(minutes=90)])
def test_the_timeout_of_a_job_is_a_number_a_text_or_a_timedelta(store: JobStore, given: float | timedelta) -> None:
    store.submit("j", ["true"], timeout=given)
    assert store.get_job("j").timeout == 5400


def test_a_fresh_task_is_as_it_was_described() -> None:
    now = utc_now()
    described = Task(id="t", command="true", env={"A": "b"}, retries=2, resources={"cpus": 1}, other={"x": 1})
    used = described.evolve(
        status=TaskStatus.FAILED,
        started_at=now,
        completed_at=now,
        error="e",
        attempt=3,
        attempts_before=1,
        exit_code=4,
        reason="exit",
        where="node",
        job_name="old",
        created_at=now,
    )
    assert used.fresh("new", now).model_dump() == {**described.model_dump(), "job_name": "new", "created_at": now}
    again = {**used.fresh("old", now).model_dump(), "attempt": 3, "attempts_before": 3}
    assert used.reset().model_dump() == again
