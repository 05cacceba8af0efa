"""The pages on a manager of another machine: a real server with its tokens, and no API server of Airflow."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.models.log import Log
from fastapi.testclient import TestClient

from airflow_provider_air_executor.api import live
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs import history, inbox, masking
from airflow_provider_air_executor.jobs.models import JobState, SubmittedBy, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.plugin import access
from airflow_provider_air_executor.remote import ssh
from airflow_provider_air_executor.remote.jobs import RemoteJobs
from tests.provider.page_client import ALL, Client
from tests.support.jobs import publish_job, publish_tasks
from tests.support.proxy import Proxy
from tests.support.servers import Servers, ServerThread
from tests.support.sshd import Sshd, needs_sshd
from tests.support.waiting import PATIENCE, wait_until

Connect = Callable[..., None]
OWNER = SubmittedBy(dag_id="seen", run_id="r", task_id="t")


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> JobStore:
    """The job filesystem of the other machine."""
    found = JobStore(tmp_path_factory.mktemp("other"))
    found.create_directories()
    return found


@pytest.fixture
def server(store: JobStore) -> Iterator[ServerThread]:
    with ServerThread(store) as found:
        yield found


@pytest.fixture
def connect(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Let the default connection be one to this server, with a token of this scope."""

    def set_up(scope: str = "admin", *, url: str = server.url) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        token = server.token(scope, scope)
        connection = {"conn_type": "air_executor", "schema": "http", "host": host, "port": int(port), "password": token}
        monkeypatch.setenv("AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT", json.dumps(connection))

    yield set_up
    if "AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT" in os.environ:
        cast("RemoteJobs", AirExecutorHook().jobs).close()


@pytest.fixture
def some(store: JobStore) -> JobStore:
    """A job that runs and has a secret, one that has failed, one of another DAG, and one of none."""
    tasks = [{"id": "a", "bash": "echo hunter2"}, {"id": "b", "command": "true", "dependencies": ["a"]}]
    attached = {masking.FILE: masking.dump(["hunter2"])}
    job = store.submit("j", tasks, submitted_by=OWNER, labels={"of": "hunter2", "team": "x"}, attached=attached)
    a, b = store.get_tasks("j")
    publish_tasks(store, "j", [a.evolve(status=TaskStatus.COMPLETED, attempt=1), b])
    publish_job(store, job.evolve(state=JobState.WORKING))
    store.paths("j").log("a").write_bytes(b"first\nhunter2\nthird\n")
    store.paths("j").log_times("a").write_text("100 6 1\n")
    store.paths("j").output("a", 1).write_text('{"x": ["hunter2", 1]}')
    for name, dag_id in (("failed", "seen"), ("other", "hidden"), ("none", "")):
        owner = OWNER.evolve(dag_id=dag_id) if dag_id else None
        publish_job(store, store.submit(name, ["false"], submitted_by=owner).evolve(state=JobState.FAILED))
    return store


def names(api: TestClient, **query: Any) -> set[str]:
    answer = api.get("/api/jobs", params=query)
    assert answer.status_code == 200, answer.text
    return {job["name"] for job in answer.json()["jobs"]}


# -- what is shown -----------------------------------------------------------------------------------------


def test_jobs_are_listed_with_the_rights_of_the_user(some: JobStore, connect: Connect, client: Client) -> None:
    connect()
    assert names(client()) == {"j", "failed", "other", "none"}
    assert names(client(), state="failed", dag_id="hidden") == {"other"}
    assert names(client(), label="team=x") == {"j"}
    assert names(client(), label="of=hunter2") == set()  # a guess is not confirmed
    some_user = client(("seen",), (), is_admin=False)
    answer = some_user.get("/api/jobs").json()
    assert {job["name"]: job["may_edit"] for job in answer["jobs"]} == {"j": False, "failed": False}
    assert (answer["exists"], answer["is_empty"], answer["total"]) == (True, False, 2)
    assert some_user.get("/api/dags").json() == ["seen"]
    for name in ("other", "none", "missing"):
        assert some_user.get(f"/api/jobs/{name}").status_code == 403
    assert client().get("/api/jobs/missing").status_code == 404


def test_a_job_with_its_tasks_graph_and_log(some: JobStore, connect: Connect, client: Client) -> None:
    connect()
    api = client()
    job = api.get("/api/jobs/j").json()
    assert (job["state"], job["labels"], job["may_edit"]) == ("working", {"of": "***", "team": "x"}, True)
    assert job["outcome_counts"] == {"completed": 1, "pending": 1}
    assert job["owner"]["run_url"].endswith("/dags/seen/runs/r")
    assert [task["command"] for task in api.get("/api/jobs/j/tasks").json()["tasks"]] == ["echo ***", "true"]
    assert api.get("/api/jobs/j/tasks/a").json()["command"] == "echo ***"
    assert api.get("/api/jobs/j/graph").json()["dependencies"] == [[], [0]]
    assert api.get("/api/jobs/j/durations").json() == {"runs": []}
    path = "/api/jobs/j/tasks/a/log"
    assert api.get(path).text == "first\n***\nthird\n"
    piece = api.get(path, params={"offset": -9, "limit": 9, "whole_lines": True, "numbered": True})
    assert (piece.text, piece.headers["x-offset"], piece.headers["x-line-number"]) == ("third\n", "14", "3")
    assert api.get(f"{path}/times").json()["attempts"] == [{"number": 1, "begin": 0, "end": 20}]
    assert api.get(f"{path}/search", params={"text": "THIRD"}).json()["offsets"] == [14]
    assert api.get(f"{path}/search", params={"text": "hunter2"}).json()["offsets"] == []
    (result,) = api.get("/api/jobs/j/results").json()["results"]
    assert result == {"task_id": "a", "value": {"x": ["***", 1]}, "problem": None}
    assert api.get("/api/manager").json()["running"] is False
    with api.stream("GET", "/api/jobs/failed/events") as events:
        assert [line for line in events.iter_lines() if line.startswith("event")] == ["event: changed", "event: end"]


def test_a_log_is_followed(some: JobStore, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STREAM_SECONDS", PATIENCE)
    connect()
    told: list[str] = []

    async def follow() -> None:
        events = live.events(AirExecutorHook().patient(0.0), "j", ("a", 0))
        while (event := await anext(events, None)) is not None:
            told.append(event)

    follower = threading.Thread(target=lambda: asyncio.run(follow()))
    follower.start()
    wait_until(lambda: any("***" in event for event in told), what="what was printed is there, without secrets")
    with some.paths("j").log("a").open("ab") as log:
        log.write(b"fourth\n")
    wait_until(lambda: any("fourth" in event for event in told), what="what comes is there")
    publish_job(some, some.get_job("j").evolve(state=JobState.COMPLETED))
    follower.join()
    assert "event: end" in told[-1]
    assert not any("hunter2" in event for event in told)


def test_by_a_unix_socket(
    some: JobStore, server: ServerThread, monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    connection = {"conn_type": "air_executor", "host": server.socket}
    monkeypatch.setenv("AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT", json.dumps(connection))
    assert names(client()) == {"j", "failed", "other", "none"}
    assert client().get("/api/jobs/j/tasks/a/log").text == "first\n***\nthird\n"
    cast("RemoteJobs", AirExecutorHook().jobs).close()


@needs_sshd
def test_by_ssh(some: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    """The first look says that the connection is being made, if that takes longer, and a later one has the jobs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with Sshd(tmp_path / "sshd", environment={"HOME": str(tmp_path)}) as sshd:
        monkeypatch.setenv("AIRFLOW_CONN_LOGIN_NODE", sshd.connection_uri())
        extra = {"ssh_conn_id": "login_node", "base_path": str(some.base_path)}
        connection = {"conn_type": "air_executor", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT", json.dumps(connection))
        api = client()
        wait_until(lambda: api.get("/api/jobs").status_code == 200, what="the server there answers")
        assert names(api) == {"j", "failed", "other", "none"}
        assert api.get("/api/jobs/j/tasks/a/log").text == "first\n***\nthird\n"
        assert api.get("/api/jobs/j").json()["may_edit"] is True
        sshd.kill()
        wait_until(lambda: api.get("/api/jobs").status_code == 503, what="it is away")
        told = client(("seen",), is_admin=False).get("/api/jobs").json()
        assert told["away_since"] is not None
        assert "127.0.0.1" not in told["detail"]
        sshd.start()
        wait_until(lambda: api.get("/api/jobs").status_code == 200, what="it is back")
        cast("RemoteJobs", AirExecutorHook().jobs).close()
        ssh.close_all()
    Servers(some).close()


# -- what is asked for -------------------------------------------------------------------------------------


def asked(store: JobStore) -> list[tuple[str, str]]:
    found = map(inbox.load_request, inbox.requests(store))
    return [(request.request.value, request.job) for request in found]


def test_jobs_are_cancelled_retried_and_removed(
    some: JobStore, connect: Connect, client: Client, audited: list[Log]
) -> None:
    connect()
    api = client()
    assert api.post("/api/jobs/j/cancel").json() == {"requested": True}
    assert api.post("/api/jobs/j/retry").status_code == 409
    assert api.post("/api/jobs/failed/retry").status_code == 202
    assert api.post("/api/jobs/j/cancel", params={"task": "x"}).status_code == 404
    assert asked(some) == [("cancel", "j"), ("retry", "failed")]
    body = {"action": "remove", "jobs": ["other", "j", "missing"]}
    answers = api.post("/api/jobs/bulk", json=body).json()
    assert [(one["requested"], one["status"]) for one in answers] == [(True, 202), (False, 409), (False, 404)]
    assert {past.name for past in history.read(some)} == {"other"}
    words = ["cancel", "retry", "retry", "remove"]  # what is refused is there, too
    assert [entry.event for entry in audited] == [f"air_executor.{word}_job" for word in words]


def test_a_token_that_may_only_read_offers_nothing(
    some: JobStore, connect: Connect, client: Client, audited: list[Log]
) -> None:
    connect("read")
    api = client()
    assert not any(job["may_edit"] for job in api.get("/api/jobs").json()["jobs"])
    assert api.get("/api/jobs/j").json()["may_edit"] is False
    assert api.post("/api/jobs/j/cancel").status_code == 403
    (answer,) = api.post("/api/jobs/bulk", json={"action": "retry", "jobs": ["failed"]}).json()
    assert (answer["requested"], answer["status"]) == (False, 403)
    assert (asked(some), audited) == ([], [])
    assert api.get("/api/jobs/j/tasks/a/log").text == "first\n***\nthird\n"


def test_a_token_that_may_submit_offers_its_own_jobs(
    some: JobStore, server: ServerThread, connect: Connect, client: Client, audited: list[Log]
) -> None:
    connect("submit")
    body = {"name": "own", "tasks": ["true"], "spec": {}, "submitted_by": OWNER.model_dump(mode="json"), "key": "k"}
    token = server.token("submit-too", "submit")
    assert server.client_with(token).post("/jobs", json={**body, "name": "theirs"}).status_code == 201
    AirExecutorHook().create_job("own", ["true"], submitted_by=OWNER)
    api = client()
    editable = {job["name"] for job in api.get("/api/jobs").json()["jobs"] if job["may_edit"]}
    assert editable == {"own"}
    assert api.post("/api/jobs/theirs/cancel").status_code == 403
    assert api.post("/api/jobs/own/cancel").status_code == 202
    assert asked(some) == [("cancel", "own")]


@pytest.mark.parametrize(("sees", "edits", "code"), [(("seen",), (), 403), (("seen",), ("seen",), 202)])
def test_the_token_gives_nobody_more_rights(
    some: JobStore,
    connect: Connect,
    client: Client,
    audited: list[Log],
    sees: tuple[str, ...],
    edits: tuple[str, ...],
    code: int,
) -> None:
    connect("admin")
    api = client(sees, edits, is_admin=False)
    assert api.post("/api/jobs/j/cancel").status_code == code
    assert api.post("/api/jobs/other/retry").status_code == 403


# -- away --------------------------------------------------------------------------------------------------

READS = ["/api/jobs", "/api/dags", "/api/manager", "/api/jobs/j", "/api/jobs/j/tasks", "/api/jobs/j/tasks/a/log"]


@pytest.fixture
def proxy(server: ServerThread) -> Iterator[Proxy]:
    """The network between the API server and the manager."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with Proxy(lambda: socket.create_connection((host, int(port)))) as found:
        yield found


def test_a_manager_that_is_away_is_no_empty_list(
    some: JobStore, proxy: Proxy, connect: Connect, client: Client, audited: list[Log]
) -> None:
    connect(url=proxy.url)
    api = client(("seen",), ALL, is_admin=False)
    assert names(api) == {"j", "failed"}
    proxy.cut()
    for path in READS:  # what was known a second ago is shown
        wait_until(lambda path=path: api.get(path).status_code == 503, what=f"{path} is refused")
        answer = api.get(path)
        told = answer.json()
        assert told["detail"].startswith("the manager of the connection air_executor_default cannot be reached: ")
        assert "127.0.0.1" not in answer.text, "its address is nobody's business"
        assert told["away_since"].endswith("Z")
    for path, body in (("j/cancel", None), ("failed/retry", None), ("bulk", {"action": "retry", "jobs": ["j"]})):
        answer = api.post(f"/api/jobs/{path}", json=body)
        assert (answer.status_code, "away_since" in answer.json()) == (503, True)
    page = api.get("/jobs/j", headers={"Accept": "text/html"})
    assert (page.status_code, 'data-page="job"' in page.text, 'data-job="j"' in page.text) == (503, True, True)
    assert audited == []
    proxy.restore()
    wait_until(lambda: api.get("/api/jobs").status_code == 200, what="it is back")
    assert names(api) == {"j", "failed"}


def test_a_manager_that_does_not_answer_holds_few_requests(
    some: JobStore, proxy: Proxy, connect: Connect, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is refused, and nothing comes: one request waits for it, and the others are answered at once."""
    from airflow_provider_air_executor.remote import transport

    monkeypatch.setattr(transport, "IMPATIENT", transport.Timeouts(connect=1.0, read=1.0))
    connect(url=proxy.url)
    api = client()
    assert names(api)
    proxy.stand_still()
    wait_until(lambda: api.get("/api/jobs/j").status_code == 503, what="it is found out")
    answers = [api.get(path).status_code for path in READS * 3]
    assert answers == [503] * len(answers)
    proxy.restore()
    wait_until(lambda: api.get("/api/jobs").status_code == 200, what="it is back")
    assert names(api) == {"j", "failed", "other", "none"}


def test_a_manager_that_refuses_the_token_says_so(
    some: JobStore, server: ServerThread, connect: Connect, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect()
    connection = json.loads(os.environ["AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT"])
    monkeypatch.setenv("AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT", json.dumps({**connection, "password": "aex_wrong"}))
    for path in ("/api/jobs", "/api/jobs/j"):  # only few logins may fail
        answer = client().get(path)
        assert (answer.status_code, "token" in answer.json()["detail"]) == (503, True), path
        assert "aex_wrong" not in answer.text
        answer = client(("seen",), is_admin=False).get(path)
        said = "the manager of the connection air_executor_default cannot be asked: the log of the API server says why"
        assert (answer.status_code, answer.json()) == (503, {"detail": said}), path


def test_a_connection_whose_manager_is_away_is_listed(
    some: JobStore, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as full:  # it accepts, and nobody answers
        port = full.getsockname()[1]
        connection = {"conn_type": "air_executor", "schema": "http", "host": "127.0.0.1", "port": port}
        monkeypatch.setenv("AIRFLOW_CONN_SILENT", json.dumps(connection))
        monkeypatch.setattr(access, "_ANSWER_SECONDS", 0.5)
        connect()
        monkeypatch.setattr(access.Rights, "permit_any", lambda self, jobs: any(True for _ in jobs))
        assert access._with_jobs(None, ["air_executor_default", "silent", "none"]) == ["air_executor_default", "silent"]  # type: ignore[arg-type]
