"""A job in words."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from airflow_provider_air_executor.jobs import summary
from airflow_provider_air_executor.jobs.models import JobState, Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.manager.lock import ManagerLock
from tests.support.jobs import publish_job

BEGAN = datetime(2026, 11, 29, tzinfo=UTC)
DONE = Task(
    id="load",
    command="true",
    status=TaskStatus.COMPLETED,
    attempt=1,
    exit_code=0,
    started_at=BEGAN,
    completed_at=BEGAN + timedelta(seconds=1.5),
)
FAILED = Task(id="send", command="false", status=TaskStatus.FAILED, attempt=2, exit_code=3, reason=Reason.EXIT)


def test_the_summary_has_a_row_for_each_task() -> None:
    assert [line.split() for line in summary.table([DONE, FAILED])] == [
        ["task", "status", "attempts", "seconds", "exit", "code", "reason"],
        ["load", "completed", "1", "1.5", "0"],
        ["send", "failed", "2", "3", "exit"],
    ]


def test_what_was_used_is_in_it_as_far_as_it_is_known() -> None:
    used = DONE.evolve(usage=Usage(cpu_seconds=12.34, max_memory=300 << 20))
    assert [line.split() for line in summary.table([used, FAILED])] == [
        ["task", "status", "attempts", "seconds", "cpu", "memory", "exit", "code", "reason"],
        ["load", "completed", "1", "1.5", "12.3", "300", "MiB", "0"],
        ["send", "failed", "2", "3", "exit"],
    ]
    assert "memory" not in summary.table([DONE.evolve(usage=Usage(cpu_seconds=1))])[0]


def test_of_a_long_list_what_failed_comes_first() -> None:
    lines = summary.table([*[DONE] * 100, FAILED])
    assert "send" in lines[1]
    assert lines[-1] == "and 51 more"


def test_each_of_many_jobs_says_what_it_waits_for(store: JobStore) -> None:
    for name, priority in (("first", 0), ("second", 0), ("urgent", 5), ("working", 0), ("done", 0), ("stuck", 0)):
        job = store.submit(name, ["true"], priority=priority)
        states = {"working": JobState.WORKING, "done": JobState.COMPLETED}
        if name in states:
            publish_job(store, job.evolve(state=states[name]))
    store.problems_path.write_text(json.dumps({"stuck": {"problem": "it cannot be read", "since": "noon"}}))
    jobs = list(store.list_jobs())
    with ManagerLock(store):
        found = summary.why_each_blocked(store, jobs, jobs)
    assert found == {
        "urgent": "waits for room: it is next",
        "first": "waits for room: 1 job before it",
        "second": "waits for room: 2 jobs before it",
        "stuck": "it cannot be read (since noon)",
    }
    assert summary.why_each_blocked(store, jobs[:0], jobs) == {}
    without = summary.why_each_blocked(store, jobs, jobs)
    assert without.keys() == found.keys()
    assert without["first"] == "no manager is running"
