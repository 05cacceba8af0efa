"""Who may do what: by the Unix socket all, by TCP what the scope of the token allows."""

from __future__ import annotations

import errno
import json
import os
from datetime import timedelta

import httpx
import pytest

from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server.tokens import Scope, Tokens
from tests.server.test_submitting import JOB, OWNER, code, ended
from tests.support.servers import ServerThread
from tests.support.waiting import wait_until

CHANGES = [
    ("POST", "/jobs/a/cancel", {}),
    ("POST", "/jobs/a/tasks", {"tasks": ["echo"], "key": "x"}),
    ("PUT", "/jobs/a/waiter", OWNER),
    ("POST", "/jobs/a/retry", {}),
    ("DELETE", "/jobs/a", None),
]


def asked(client: httpx.Client, change: tuple[str, str, object]) -> httpx.Response:
    method, path, body = change
    return client.request(method, path, json=body)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[1])
class TestChanges:
    def test_a_token_that_reads_changes_nothing(self, server: ServerThread, client, change):
        client.post("/jobs", json=JOB)
        response = asked(server.client_with(server.token("r", "read")), change)
        assert (response.status_code, code(response)) == (403, "forbidden")

    def test_a_token_changes_the_jobs_of_its_name(self, server: ServerThread, change):
        one = server.client_with(server.token("one", "submit"))
        other = server.client_with(server.token("other", "submit"))
        assert one.post("/jobs", json=JOB).status_code == 201
        response = asked(other, change)
        assert (response.status_code, code(response)) == (403, "forbidden")
        assert asked(one, change).status_code != 403

    def test_a_token_does_not_change_jobs_of_others(self, server: ServerThread, client, change):
        client.post("/jobs", json={**JOB, "submitted_by": {**OWNER, "token": "one"}})
        response = asked(server.client_with(server.token("one", "submit")), change)
        assert (response.status_code, code(response)) == (403, "forbidden")

    def test_a_token_does_not_change_jobs_that_no_client_has_submitted(self, server: ServerThread, store, change):
        store.submit("a", ["echo"])
        response = asked(server.client_with(server.token("one", "submit")), change)
        assert (response.status_code, code(response)) == (403, "forbidden")

    def test_an_administrator_changes_all(self, server: ServerThread, store, change):
        store.submit("a", ["echo"])
        assert asked(server.client_with(server.token("boss", "admin")), change).status_code != 403

    def test_a_job_that_does_not_exist_is_not_found(self, server: ServerThread, change):
        response = asked(server.client_with(server.token("one", "submit")), change)
        assert (response.status_code, code(response)) == (404, "job-not-found")

    def test_nothing_is_changed_without_a_token(self, server: ServerThread, client, change):
        client.post("/jobs", json=JOB)
        response = asked(server.client_with(), change)
        assert (response.status_code, code(response)) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"


class TestTokens:
    def test_the_state_of_the_server_is_for_everybody(self, server: ServerThread):
        assert server.client_with().get("/health").json() == {"status": "ok"}
        assert server.client_with().post("/health", content=b"x" * 1000).status_code == 401, "nothing of it is read"

    @pytest.mark.parametrize("path", ["/hello", "/records", "/openapi.json", "/nothing", "/../v1/hello", "/health/"])
    def test_all_else_needs_one(self, server: ServerThread, path):
        assert server.client_with().get(path).status_code == 401
        assert server.client_with("aex_" + "0" * 12 + "_" + "0" * 64).get(path).status_code == 401

    def test_one_that_has_expired_or_is_revoked_is_refused(self, server: ServerThread, store: JobStore):
        tokens = Tokens(store.base_path)
        short = tokens.create("short", Scope.READ, timedelta(milliseconds=1))
        revoked = tokens.create("revoked", Scope.READ)
        client = server.client_with(revoked)
        assert client.get("/hello").status_code == 200
        tokens.revoke("revoked")
        assert client.get("/hello").status_code == 401
        wait_until(lambda: server.client_with(short).get("/hello").status_code == 401, what="it has expired")

    def test_they_are_told_who_they_are(self, server: ServerThread, store: JobStore):
        token = Tokens(store.base_path).create("r", Scope.READ, timedelta(days=1))
        found = server.client_with(token).get("/hello").json()
        assert (found["token"]["name"], found["token"]["scope"]) == ("r", "read")
        assert found["token"]["expires_at"] is not None
        assert found["protocol"] == {"lowest": 1, "highest": 1}

    def test_who_fails_too_often_waits(self, server: ServerThread):
        client = server.client_with("wrong")
        codes = [client.get("/hello").status_code for _ in range(12)]
        assert codes == [401] * 10 + [429] * 2
        assert int(client.get("/hello").headers["retry-after"]) > 0
        assert server.client_with(server.token("r", "read")).get("/hello").status_code == 200

    @pytest.mark.parametrize("header", ["", "Bearer", "Basic eDp5", "bearer x", "Bearer \x7f"])
    def test_another_header_is_none(self, server: ServerThread, header):
        response = server.client_with().get("/hello", headers={"Authorization": header})
        assert (response.status_code, code(response)) == (401, "unauthorized")

    def test_a_token_that_reads_gets_results_without_secrets(self, server: ServerThread, client, store, manager):
        client.post(
            "/jobs",
            json={
                "name": "a",
                "tasks": [{"id": "x", "bash": """echo '"hunter22!"' > $AIR_EXECUTOR_OUTPUT"""}],
                "secrets": ["hunter22"],
            },
        )
        wait_until(lambda: ended(store, "a"), what="it ends")
        path = "/records/a/results"
        exact, masked = {"results": {"x": "hunter22!"}}, {"results": {"x": "***!"}}
        assert client.get(path).json() == exact
        assert client.get(path, params={"masked": True}).json() == masked
        assert server.client_with(server.token("s", "submit")).get(path).json() == exact
        assert server.client_with(server.token("r", "read")).get(path).json() == masked

    def test_the_manager_is_controlled_by_administrators(self, server: ServerThread):
        for scope, expected in (("read", 403), ("submit", 403), ("admin", 200)):
            response = server.client_with(server.token(scope, scope)).put("/control", json={"paused": False})
            assert response.status_code == expected


class TestAudit:
    def test_it_has_who_has_asked_for_what(self, server: ServerThread, store: JobStore):
        one = server.client_with(server.token("one", "submit"))
        one.post("/jobs", json=JOB)
        one.get("/records/a")
        one.put("/control", json={"paused": True})
        server.client_with("wrong").get("/hello")
        lines = [json.loads(line) for line in (store.base_path / "server-audit.jsonl").read_text().splitlines()]
        assert [(line["action"], line["token"], line["job"], line["outcome"]) for line in lines] == [
            ("submit", "one", "a", "done"),
            ("control", "one", "", "refused (403)"),
            ("login", "", "", "it is not known"),
        ]
        assert {line["address"] for line in lines} == {"127.0.0.1"}


class TestProtocol:
    @pytest.mark.parametrize("header", ["1", "2", "999999999"])
    def test_a_client_that_speaks_more_is_understood(self, client, header):
        response = client.get("/health", headers={"Air-Executor-Protocol": header})
        assert response.status_code == 200
        assert response.headers["air-executor-protocol"] == "1"

    @pytest.mark.parametrize("header", ["0", "-1", "x", "", "1.0", "²"])
    def test_a_client_that_does_not_understand_is_told_so(self, client, header):
        response = client.get("/hello", headers={"Air-Executor-Protocol": header.encode()})
        assert (response.status_code, code(response)) == (400, "protocol")
        assert (response.json()["lowest"], response.json()["highest"]) == (1, 1)
        assert "upgrade the client" in response.json()["detail"]


class TestErrors:
    def test_an_unknown_route_is_a_problem(self, client):
        response = client.get("/nothing")
        assert (response.status_code, code(response)) == (404, "not-found")

    def test_an_unknown_method_is_a_problem(self, client):
        response = client.patch("/hello")
        assert (response.status_code, code(response)) == (405, "method")
        assert response.headers["allow"] == "GET"

    def test_parameters_that_are_not_valid_are_named(self, client):
        response = client.get("/records/a/log", params={"task": "x", "offset": "y"})
        assert (response.status_code, code(response)) == (422, "invalid-request")
        assert "offset" in response.json()["detail"]

    def test_a_file_that_is_corrupt_is_named(self, client, store):
        store.submit("a", ["echo"])
        store.paths("a").state.write_text("{")
        response = client.get("/records/a")
        assert (response.status_code, code(response)) == (424, "corrupt-file")
        assert response.json()["path"].endswith("state.json")

    def test_secrets_that_are_not_known_are_not_shown(self, client, store):
        store.submit("a", ["echo hunter22"], attached={"secrets.jsonl": b"{"})
        response = client.get("/records/a/tasks")
        assert response.status_code == 424
        assert "hunter22" not in response.text

    def test_a_file_system_that_is_away_is_to_be_asked_again(self, server: ServerThread, client, monkeypatch):
        def get_job(name: str) -> Job:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)

        monkeypatch.setattr(server.service.jobs, "get_job", get_job)
        response = client.get("/records/a")
        assert (response.status_code, code(response)) == (503, "unavailable")
        assert (response.headers["retry-after"], response.json()["errno"]) == ("1", errno.EIO)
