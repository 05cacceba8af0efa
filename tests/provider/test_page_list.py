"""The list of jobs by its route, for users with these and those rights; without a server."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from airflow_provider_air_executor.jobs import masking
from airflow_provider_air_executor.jobs.models import JobState, Reason, SubmittedBy, default_job_name, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.provider.page_client import ALL, Client
from tests.support.jobs import publish_job

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def owner(dag_id: str = "seen", **more: Any) -> SubmittedBy:
    return SubmittedBy(**{"dag_id": dag_id, "run_id": "run", "task_id": "t", **more})


def submit(base: JobStore, name: str, *, after: float = 0, took: float | None = None, **fields: Any) -> None:
    """Submit a job that was created so many minutes after noon, and ran for so many minutes from then on."""
    given = {key: fields.pop(key) for key in ("labels", "submitted_by", "priority") if key in fields}
    job = base.submit(name, ["true"], **given)
    created = NOON + timedelta(minutes=after)
    ended = created + timedelta(minutes=took) if took is not None else utc_now()
    started = created if took is not None else None
    publish_job(base, job.evolve(created_at=created, started_at=started, updated_at=ended, **fields))


def listed(api: TestClient, **query: Any) -> list[str]:
    answer = api.get("/api/jobs", params=query)
    assert answer.status_code == 200, answer.text
    return [job["name"] for job in answer.json()["jobs"]]


FAILED = {"state": JobState.FAILED}


@pytest.fixture
def five(base: JobStore) -> JobStore:
    """Five jobs, each of which ended in another way, or not at all."""
    submit(base, "b-done", after=0, took=9, state=JobState.COMPLETED, submitted_by=owner())
    submit(base, "D-exit", after=10, took=3, **FAILED, reason=Reason.EXIT, labels={"team": "a"})
    submit(base, "a-lost", after=20, took=20, **FAILED, reason=Reason.LOST, submitted_by=owner("hidden"))
    submit(base, "c-cancelled", after=30, took=1, **FAILED, reason=Reason.CANCELLED, labels={"team": "b"})
    submit(base, "e-waits", after=40)
    return base


NEWEST = ["e-waits", "c-cancelled", "a-lost", "D-exit", "b-done"]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, NEWEST),
        ({"sort": "created", "order": "asc"}, NEWEST[::-1]),
        ({"sort": "name", "order": "asc"}, ["a-lost", "b-done", "c-cancelled", "D-exit", "e-waits"]),
        ({"sort": "name"}, ["e-waits", "D-exit", "c-cancelled", "b-done", "a-lost"]),
        ({"sort": "duration"}, ["a-lost", "b-done", "D-exit", "c-cancelled", "e-waits"]),
        ({"sort": "duration", "order": "asc"}, ["c-cancelled", "D-exit", "b-done", "a-lost", "e-waits"]),
        ({"sort": "ended", "order": "asc"}, ["b-done", "D-exit", "c-cancelled", "a-lost", "e-waits"]),
        ({"sort": "state", "order": "asc"}, ["e-waits", "b-done", "D-exit", "c-cancelled", "a-lost"]),
        ({"sort": "state", "limit": 2, "offset": 1}, ["c-cancelled", "D-exit"]),
        ({"reason": "lost"}, ["a-lost"]),
        ({"reason": ["lost", "exit"]}, ["a-lost", "D-exit"]),
        ({"outcome": "failed"}, ["D-exit"]),
        ({"outcome": ["cancelled", "waiting"]}, ["e-waits", "c-cancelled"]),
        ({"outcome": "lost", "state": "failed", "reason": "exit"}, []),
        ({"state": "failed"}, ["c-cancelled", "a-lost", "D-exit"]),
        ({"created_after": "2026-11-01T12:20:00Z"}, ["e-waits", "c-cancelled", "a-lost"]),
        ({"created_after": "2026-11-01T12:20:00"}, ["e-waits", "c-cancelled", "a-lost"]),  # it is in UTC
        ({"created_after": "2026-11-01T14:21:00+02:00"}, ["e-waits", "c-cancelled"]),
        ({"created_before": "2026-11-01T12:10:00Z"}, ["b-done"]),
        ({"created_after": "2026-11-01T12:10:00Z", "created_before": "2026-11-01T12:30:00Z"}, ["a-lost", "D-exit"]),
        ({"label": "team"}, ["c-cancelled", "D-exit"]),
        ({"label": "team=b"}, ["c-cancelled"]),
        ({"dag_id": "hidden"}, ["a-lost"]),
        ({"name": "-D"}, ["b-done"]),
    ],
)
def test_filters_and_orders(five: JobStore, client: Client, query: dict[str, Any], names: list[str]) -> None:
    assert listed(client(), **query) == names


@pytest.mark.parametrize(
    "query",
    [
        {"sort": "odd"},
        {"order": "up"},
        {"reason": "odd"},
        {"outcome": "skipped"},
        {"created_after": "noon"},
        {"created_before": "2026-13-01T00:00:00Z"},
    ],
)
def test_filters_that_are_none(base: JobStore, client: Client, query: dict[str, str]) -> None:
    assert client().get("/api/jobs", params=query).status_code == 422


def test_counts_are_those_of_all_outcomes(five: JobStore, client: Client) -> None:
    answer = client().get("/api/jobs", params={"outcome": "lost", "limit": 0}).json()
    assert answer["total"] == 1
    ends = {"waiting": 1, "working": 0, "completed": 1, "failed": 1, "cancelled": 1, "timed_out": 0, "lost": 1}
    assert answer["outcome_counts"] == ends
    assert answer["state_counts"] == {"waiting": 1, "working": 0, "completed": 1, "failed": 3}
    only_seen = client(("seen",), is_admin=False).get("/api/jobs", params={"sort": "name"}).json()
    assert ([job["name"] for job in only_seen["jobs"]], only_seen["total"]) == (["b-done"], 1)
    assert sum(only_seen["outcome_counts"].values()) == 1


def test_the_dags_that_can_be_asked_for(five: JobStore, client: Client) -> None:
    assert client().get("/api/dags").json() == ["hidden", "seen"]
    some = client(("seen",), is_admin=False)
    assert some.get("/api/dags").json() == ["seen"]
    assert some.get("/api/jobs", params={"dag_id": "hidden"}).status_code == 403


def test_what_a_job_waits_for(base: JobStore, client: Client) -> None:
    submit(base, "first", labels={"x": "y"})
    submit(base, "second", after=1)
    submit(base, "done", after=2, took=1, state=JobState.COMPLETED)
    rows = client().get("/api/jobs").json()["jobs"]
    none_runs = "no manager is running"
    assert {row["name"]: row["held_up"] for row in rows} == {"first": none_runs, "second": none_runs, "done": None}
    base.problems_path.write_text(json.dumps({"second": {"problem": "no room for hunter2", "since": "now"}}))
    base.paths("second").attached(masking.FILE).write_bytes(masking.dump(["hunter2"]))
    rows = client().get("/api/jobs", params={"name": "second"}).json()["jobs"]
    assert rows[0]["held_up"] == "no room for *** (since now)"


def test_who_may_edit_which_row(five: JobStore, client: Client) -> None:
    def editable(api: TestClient) -> set[str]:
        return {row["name"] for row in api.get("/api/jobs").json()["jobs"] if row["may_edit"]}

    assert editable(client()) == set(NEWEST)
    assert editable(client(ALL, ("hidden",), is_admin=False)) == {"a-lost"}
    assert editable(client(ALL, (), is_admin=False)) == set()


def test_generated_names_have_a_title(base: JobStore, client: Client) -> None:
    owners = {
        "load [3]": owner(task_id="load", map_index=3),
        "load": owner(task_id="load", installation="one"),
        "failure": owner(task_id="", callback="failure"),
        "load: failure": owner(task_id="load", callback="failure"),
    }
    for title, by in owners.items():
        name = default_job_name(by)
        if by.callback is not None:
            name = f"{by.callback}__{by.dag_id}__{by.task_id}__run-0123456789abcdef"
        submit(base, name, submitted_by=by)
        row = client().get("/api/jobs", params={"name": name}).json()["jobs"][0]
        assert row["title"] == title
    submit(base, "nightly", submitted_by=owner())
    submit(base, "nightly-0123456789abcdef", submitted_by=owner())
    submit(base, "nightly-of-nobody-0123456789abcdef")
    rows = client().get("/api/jobs", params={"name": "nightly"}).json()["jobs"]
    assert [row["title"] for row in rows] == [None] * 3


def test_a_list_without_jobs_says_why(base: JobStore, client: Client) -> None:
    def told(api: TestClient, **query: str) -> tuple[bool, bool, int]:
        answer = api.get("/api/jobs", params=query).json()
        assert answer["jobs"] == []
        return answer["is_empty"], answer["exists"], answer["unreadable"]

    assert told(client()) == (True, True, 0)
    submit(base, "hidden-one", submitted_by=owner("hidden"))
    assert told(client(), name="odd") == (False, True, 0)
    assert told(client(("seen",), is_admin=False)) == (True, True, 0)
    assert told(client(("seen",), is_admin=False), name="odd") == (True, True, 0)
    base.paths("hidden-one").state.unlink()
    base.delete("hidden-one")
    shutil.rmtree(base.base_path)
    assert told(client()) == (True, False, 0)


def test_a_job_filesystem_that_cannot_be_read(base: JobStore, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(base, "a")
    submit(base, "b")

    def load(self: JobStore, name: str) -> Any:
        if name == "a":
            raise PermissionError(13, "Permission denied")
        return original(self, name)

    original = JobStore.load_job
    monkeypatch.setattr(JobStore, "load_job", load)
    answer = client().get("/api/jobs").json()
    assert ([job["name"] for job in answer["jobs"]], answer["unreadable"]) == (["b"], 1)
    assert client(is_admin=False).get("/api/jobs").json()["unreadable"] == 0
    base.inbox_path.rmdir()
    base.jobs_path.rename(base.base_path / "elsewhere")
    base.jobs_path.write_text("no directory")
    answer = client().get("/api/jobs")
    assert answer.status_code == 404
    assert answer.json() == {
        "detail": "the job filesystem of this connection cannot be read by the API server: Not a directory"
    }


def test_the_page_of_a_job_that_is_not_there_leads_to_the_list(base: JobStore, client: Client) -> None:
    people = {"Accept": "text/html"}
    page = client().get("/jobs/a<b>", headers=people)
    assert page.status_code == 404
    assert "There is no job <strong>a&lt;b&gt;</strong>" in page.text
    assert '<a href="/air-executor/jobs">All jobs</a>' in page.text
    page = client().get("/jobs/missing", params={"conn_id": 'x"&y'}, headers=people)
    assert '<a href="/air-executor/jobs?conn_id=x%22%26y">All jobs</a>' in page.text
    hidden = client((), is_admin=False).get("/jobs/missing", headers=people)
    assert (hidden.status_code, "There is no job" in hidden.text, "All jobs" in hidden.text) == (403, False, True)
