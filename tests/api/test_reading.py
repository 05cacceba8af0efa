"""The reading routes as an application of their own, without Airflow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.api.reading import reading_routes
from airflow_provider_air_executor.api.view import View, WholeView
from airflow_provider_air_executor.exceptions import AirExecutorError, InvalidJobError, JobNotFoundError, JobsAwayError
from airflow_provider_air_executor.jobs import index, masking
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.models import JobState, SubmittedBy, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job, publish_tasks

PATHS = [
    "/dags",
    "/jobs",
    "/jobs/{job_name}",
    "/jobs/{job_name}/durations",
    "/jobs/{job_name}/events",
    "/jobs/{job_name}/graph",
    "/jobs/{job_name}/results",
    "/jobs/{job_name}/tasks",
    "/jobs/{job_name}/tasks/{task_id}",
    "/jobs/{job_name}/tasks/{task_id}/events",
    "/jobs/{job_name}/tasks/{task_id}/log",
    "/jobs/{job_name}/tasks/{task_id}/log/search",
    "/jobs/{job_name}/tasks/{task_id}/log/times",
    "/manager",
]
REFUSALS = {403: {"description": "Not allowed."}, 422: {"description": "Not valid."}, 503: {"description": "Away."}}


def application(view: View) -> FastAPI:
    """The routes below ``/v1``, for those who know the word."""

    def access(word: Annotated[str, Header()] = "") -> View:
        if word != "please":
            raise HTTPException(401, "no word")
        return view

    app = FastAPI()
    app.include_router(reading_routes(access, REFUSALS), prefix="/v1")

    @app.exception_handler(AirExecutorError)
    @app.exception_handler(OSError)
    async def refuse(request: Request, error: Exception) -> Response:
        code = {JobNotFoundError: 404, InvalidJobError: 422}.get(type(error), 503)
        return JSONResponse({"error": type(error).__name__}, code)

    return app


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> JobStore:
    """A job that runs and has a secret, and one that has failed."""
    store = JobStore(tmp_path_factory.mktemp("api"))
    owner = SubmittedBy(dag_id="d", run_id="r", task_id="t")
    attached = {masking.FILE: masking.dump(["hunter2"])}
    tasks = [{"id": "a", "bash": "echo hunter2"}, {"id": "b", "command": "true", "dependencies": ["a"]}]
    job = store.submit("j", tasks, submitted_by=owner, labels={"of": "hunter2"}, attached=attached)
    done, other = store.get_tasks("j")
    publish_tasks(store, "j", [done.evolve(status=TaskStatus.COMPLETED, attempt=1), other])
    store.paths("j").log("a").write_bytes(b"first\nhunter2\n")
    store.paths("j").output("a", 1).write_text('{"x": "hunter2"}')
    publish_job(store, job.evolve(state=JobState.FAILED))
    store.submit("plain", ["true"])
    return store


@pytest.fixture(scope="module")
def client(base: JobStore) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(index, "_FRESH_SECONDS", 0.0)
        with TestClient(application(WholeView(FileJobs(base))), headers={"word": "please"}) as client:
            yield client


def test_who_may_not_ask_is_refused_everywhere(client: TestClient) -> None:
    for path in PATHS:
        answer = client.get(f"/v1{path.format(job_name='j', task_id='a')}", headers={"word": "no"})
        assert answer.status_code == 401, path


def test_each_route_is_described(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert sorted(described["paths"]) == [f"/v1{path}" for path in PATHS]
    for path, methods in described["paths"].items():
        (operation,) = methods.values()
        assert set(operation["responses"]) == {"200", "403", "422", "503"}, path
        assert operation["responses"]["422"] == REFUSALS[422]
        names = [each["name"] for each in operation["parameters"]]
        assert "word" in names, "what the access needs is described too"
        assert len(operation["description"]) > 5
        assert operation["responses"]["200"]["content"]
    assert "HTTPValidationError" not in json.dumps(described)


def test_nothing_is_cached_and_no_secret_is_shown(client: TestClient) -> None:
    for path in PATHS:
        answer = client.get(f"/v1{path.format(job_name='j', task_id='a')}")
        assert answer.status_code == 200, path
        assert answer.headers["cache-control"] == "no-store", path
        assert "hunter2" not in answer.text, path
        kind = "text/event-stream" if path.endswith("events") else "text/plain" if path.endswith("log") else "json"
        assert kind in answer.headers["content-type"], path


def test_where_airflow_is_nobody_knows(client: TestClient) -> None:
    job = client.get("/v1/jobs/j").json()
    assert (job["owner"]["dag_id"], job["owner"]["run_url"], job["owner"]["task_url"]) == ("d", None, None)
    assert (job["may_edit"], job["may_read_logs"]) == (False, True)
    assert [row["may_edit"] for row in client.get("/v1/jobs").json()["jobs"]] == [False, False]


def test_who_may_change_some_jobs(base: JobStore) -> None:
    view = WholeView(FileJobs(base), may_change=lambda job: job.name == "j")
    client = TestClient(application(view), headers={"word": "please"})
    assert {job["name"]: job["may_edit"] for job in client.get("/v1/jobs").json()["jobs"]} == {
        "j": True,
        "plain": False,
    }


def test_what_is_not_there_keeps_its_own_error(client: TestClient) -> None:
    for path in (path for path in PATHS if "job_name" in path):
        answer = client.get(f"/v1{path.format(job_name='missing', task_id='a')}")
        assert (answer.status_code, answer.json()) == (404, {"error": JobNotFoundError.__name__}), path
    for path in (path for path in PATHS if "task_id" in path):
        answer = client.get(f"/v1{path.format(job_name='j', task_id='x')}")
        assert (answer.status_code, answer.json()["detail"]) == (404, "there is no such task in this job"), path


def test_a_manager_that_is_away_is_never_an_empty_answer(base: JobStore) -> None:
    class Away(FileJobs):
        """Its files are on another machine."""

        def __getattribute__(self, name: str) -> Any:
            raise JobsAwayError("there", "no answer")

    client = TestClient(application(WholeView(Away(base))), headers={"word": "please"})
    for path in PATHS:
        answer = client.get(f"/v1{path.format(job_name='j', task_id='a')}")
        assert (answer.status_code, answer.json()) == (503, {"error": "JobsAwayError"}), path


ANYTHING = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.datetimes().map(str),
    st.sampled_from(["", "0", "-1", "1e400", "9" * 400, "\0", "../.."]),
    st.sampled_from(["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+14:00"]),
)
NAMES = ["name", "state", "label", "created_after", "created_before", "map_index", "limit", "offset", "sort", "order"]
NAMES += [
    "near",
    "text",
    "task_id",
    "status",
    "outcome",
    "attempt",
    "whole_lines",
    "numbered",
    "end",
    "dag_id",
    "run_id",
]


@given(
    path=st.sampled_from([path for path in PATHS if not path.endswith("events")]),
    query=st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4),
    job_name=st.one_of(st.just("j"), ANYTHING.filter(bool)),
    task_id=st.one_of(st.just("a"), ANYTHING.filter(bool)),
)
def test_whatever_is_asked_is_answered(
    client: TestClient, path: str, query: dict[str, str], job_name: str, task_id: str
) -> None:
    job_name, task_id = (quote(text, safe="", errors="replace") for text in (job_name, task_id))
    params = {key: value.encode(errors="replace") for key, value in query.items()}
    answer = client.get(f"/v1{path.format(job_name=job_name, task_id=task_id)}", params=params)
    assert answer.status_code < 500
