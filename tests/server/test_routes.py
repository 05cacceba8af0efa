"""Every route of the server with no token, a wrong one, an expired one, a revoked one, and one of each scope."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.routing import BaseRoute, Mount

from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server import events
from airflow_provider_air_executor.server.app import create_app
from airflow_provider_air_executor.server.audit import FILE as AUDIT
from airflow_provider_air_executor.server.limits import FAILED_LOGINS, FailedLogins
from airflow_provider_air_executor.server.service import Service
from airflow_provider_air_executor.server.tokens import Scope, Tokens
from tests.support.servers import ServerThread
from tests.support.waiting import PATIENCE

THEIRS = "theirs"  # a job that was submitted with the token `other`
MINE = "mine"  # with the token `submit`
FILES = "files"  # by a user of the machine


class Route(NamedTuple):
    """What a request at a route needs."""

    scope: str  # open: no token
    body: Any = None
    query: str = ""
    is_change: bool = False  # of a job, which must be its own for a token of the scope submit


ANYBODY, READ, SUBMIT, ADMIN = "open", "read", "submit", "admin"
_OWNER = {"dag_id": "d", "run_id": "r", "task_id": "t"}

ROUTES = {
    "GET /v1/health": Route(ANYBODY),
    "GET /v1/hello": Route(READ),
    "GET /v1/openapi.json": Route(READ),
    "GET /v1/records": Route(READ),
    "POST /v1/records/query": Route(READ, {"names": [THEIRS]}),
    "GET /v1/records/{name}": Route(READ),
    "GET /v1/records/{name}/tasks": Route(READ),
    "GET /v1/records/{name}/attempts": Route(READ),
    "GET /v1/records/{name}/results": Route(READ),
    "POST /v1/records/{name}/new-lines": Route(READ, {"positions": {"task-1": {}}}),
    "GET /v1/records/{name}/positions/{reader}": Route(READ),
    "PUT /v1/records/{name}/positions/{reader}": Route(SUBMIT, {"offsets": {"task-1": 1}}),
    "GET /v1/records/{name}/log": Route(READ, query="?task=task-1"),
    "GET /v1/records/{name}/log-tail": Route(READ, query="?task=task-1"),
    "GET /v1/records/{name}/log-location": Route(READ),
    "GET /v1/past-jobs": Route(READ),
    "GET /v1/durations": Route(READ, query="?series=s"),
    "POST /v1/held-up": Route(READ, {"names": [THEIRS]}),
    "GET /v1/trouble/{name}": Route(READ),
    "GET /v1/control": Route(READ),
    "PUT /v1/control": Route(ADMIN, {}),
    "POST /v1/manager/keep-alive": Route(SUBMIT),
    "PUT /v1/locks/{what}": Route(SUBMIT, query="?holder=h"),
    "DELETE /v1/locks/{what}": Route(SUBMIT, query="?holder=h"),
    "POST /v1/jobs": Route(SUBMIT, {"name": "new", "tasks": ["true"]}),
    "POST /v1/jobs/{job_name}/cancel": Route(SUBMIT, {}, is_change=True),
    "POST /v1/jobs/{job_name}/retry": Route(SUBMIT, {}, is_change=True),
    "POST /v1/jobs/{job_name}/tasks": Route(SUBMIT, {"tasks": ["true"], "key": "k"}, is_change=True),
    "PUT /v1/jobs/{job_name}/waiter": Route(SUBMIT, _OWNER, is_change=True),
    "DELETE /v1/jobs/{job_name}": Route(SUBMIT, is_change=True),
    "GET /v1/jobs": Route(READ),
    "GET /v1/jobs/{job_name}": Route(READ),
    "GET /v1/jobs/{job_name}/tasks": Route(READ),
    "GET /v1/jobs/{job_name}/tasks/{task_id}": Route(READ),
    "GET /v1/jobs/{job_name}/tasks/{task_id}/log": Route(READ),
    "GET /v1/jobs/{job_name}/tasks/{task_id}/log/times": Route(READ),
    "GET /v1/jobs/{job_name}/tasks/{task_id}/log/search": Route(READ, query="?text=x"),
    "GET /v1/jobs/{job_name}/tasks/{task_id}/events": Route(READ),
    "GET /v1/jobs/{job_name}/graph": Route(READ),
    "GET /v1/jobs/{job_name}/durations": Route(READ),
    "GET /v1/jobs/{job_name}/results": Route(READ),
    "GET /v1/jobs/{job_name}/events": Route(READ),
    "GET /v1/dags": Route(READ),
    "GET /v1/changes": Route(READ),
    "GET /v1/completions/{subscriber}": Route(SUBMIT, query="?holder=h"),
    "POST /v1/completions/{subscriber}/ack": Route(SUBMIT, {"job": {"name": THEIRS, "id": "1"}}),
    "POST /v1/completions/{subscriber}/nack": Route(SUBMIT, {"job": {"name": THEIRS, "id": "1"}}, query="?holder=h"),
    "DELETE /v1/completions/{subscriber}": Route(SUBMIT, query="?holder=h"),
    "GET /v1/manager": Route(READ),
}
_SCOPES = [ANYBODY, READ, SUBMIT, ADMIN]
_VALUES = {"{reader}": "r", "{what}": "w", "{task_id}": "task-1", "{subscriber}": "s"}


def _routes(routes: list[BaseRoute], prefix: str = "") -> Iterator[str]:
    """All routes, also those that the description of the API does not have."""
    for route in routes:
        if isinstance(route, Mount):
            yield from _routes(route.routes, prefix + route.path)
        else:
            for method in getattr(route, "methods", None) or {"ANY"}:
                yield f"{method} {prefix}{getattr(route, 'path', route)}"


def test_every_route_is_covered(tmp_path: Path):
    app = create_app(Service(FileJobs(JobStore(tmp_path))))
    while not hasattr(app, "routes"):
        app = app._app
    assert set(_routes(app.routes)) == set(ROUTES), "list a new route above, with the scope that it needs"
    described = {f"{method.upper()} {path}" for path, methods in app.openapi()["paths"].items() for method in methods}
    assert described <= set(ROUTES)


class Site:
    """A server with jobs of several tokens."""

    def __init__(self, server: ServerThread) -> None:
        self.server = server
        self.tokens = {name: server.token(name, name) for name in (READ, SUBMIT, ADMIN)}
        self.tokens["other"] = server.token("other", SUBMIT)
        known = Tokens(server.store.base_path)
        self.tokens["revoked"] = known.create("revoked", Scope.ADMIN)
        known.revoke("revoked")
        self.tokens["expired"] = known.create("expired", Scope.ADMIN, timedelta(days=1))
        self.expire("expired")
        self.tokens["wrong"] = "aex_0123456789ab_" + "0" * 64
        self.tokens["no token"] = ""
        for name, token in ((THEIRS, "other"), (MINE, SUBMIT)):
            self.submit(name, token)
        server.store.submit(FILES, ["true"])

    def submit(self, name: str, token: str) -> str:
        """Submit a job; its name."""
        self.ask("POST /v1/jobs", token, body={"name": name, "tasks": ["true"]}).raise_for_status()
        return name

    def expire(self, name: str) -> None:
        """Let the time of a token be over."""
        path = self.server.store.base_path / "tokens.json"
        content = json.loads(path.read_text())
        for each in content["tokens"]:
            if each["name"] == name:
                each["expires_at"] = "2020-01-01T00:00:00Z"
        path.write_text(json.dumps(content))

    def ask(self, route: str, token: str, *, job: str = THEIRS, body: Any = None) -> httpx.Response:
        """The answer to a request; of a stream, its beginning only."""
        self.server.service.failed_logins = FailedLogins()
        method, _, path = route.partition(" ")
        for name, value in {**_VALUES, "{name}": job, "{job_name}": job}.items():
            path = path.replace(name, value)
        query = ROUTES[route].query
        body = ROUTES[route].body if body is None else body
        content = b"" if body is None else json.dumps(body).encode()
        text = self.tokens[token]
        headers = {"Authorization": f"Bearer {text}"} if text else {}
        with (
            httpx.Client(trust_env=False) as client,
            client.stream(method, f"{self.server.url}{path}{query}", content=content, headers=headers) as answer,
        ):
            if (
                answer.headers["content-type" if "content-type" in answer.headers else "date"]
                == "application/problem+json"
            ):
                answer.read()
            return answer


@pytest.fixture
def site(server: ServerThread) -> Site:
    return Site(server)


def is_allowed(route: str, scope: str) -> bool:
    return _SCOPES.index(scope) >= _SCOPES.index(ROUTES[route].scope)


@pytest.mark.parametrize("token", ["no token", "wrong", "expired", "revoked"])
def test_without_a_valid_token_there_is_nothing(site: Site, token: str):
    before = contents(site.server.store)
    for route, needed in ROUTES.items():
        answer = site.ask(route, token)
        if needed.scope == ANYBODY:
            assert answer.status_code == 200, route
        else:
            assert answer.status_code == 401, route
            assert answer.json()["type"] == "urn:air-executor:unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert contents(site.server.store) == before


@pytest.mark.parametrize("scope", [READ, SUBMIT, ADMIN])
def test_each_scope_does_what_it_allows(site: Site, scope: str):
    for number, route in enumerate(ROUTES):
        job = MINE if not ROUTES[route].is_change else site.submit(f"mine{number}", SUBMIT)
        answer = site.ask(route, scope, job=job)
        if is_allowed(route, scope):
            assert answer.status_code in (200, 201, 204, 409), route
        else:
            assert answer.status_code == 403, route
            assert answer.json()["type"] == "urn:air-executor:forbidden"


def test_a_token_that_submits_does_not_change_the_jobs_of_others(site: Site):
    changes = [route for route, needed in ROUTES.items() if needed.is_change]
    before = contents(site.server.store)
    for route in changes:
        for job in (THEIRS, FILES):
            assert site.ask(route, SUBMIT, job=job).status_code == 403, route
    assert contents(site.server.store) == before
    for number, route in enumerate(changes):
        job = site.submit(f"theirs{number}", "other")
        assert site.ask(route, ADMIN, job=job).status_code in (200, 204, 409), route


def test_a_job_that_is_not_there_is_not_found(site: Site):
    for route in [route for route in ROUTES if "name}" in route and route not in _SILENT]:
        for token in (SUBMIT, ADMIN):
            assert site.ask(route, token, job="absent").status_code == 404, route


# What is asked of a job that may be gone by now, and nothing is lost if so.
_SILENT = (
    "GET /v1/records/{name}/positions/{reader}",
    "PUT /v1/records/{name}/positions/{reader}",
    "POST /v1/records/{name}/new-lines",
    "GET /v1/records/{name}/log-location",
    "GET /v1/trouble/{name}",
)


def contents(store: JobStore) -> dict[str, bytes]:
    """What all jobs and requests to the manager consist of."""
    roots = (store.jobs_path, store.inbox_path)
    return {str(path): path.read_bytes() for root in roots for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_token_of_a_stream_is_looked_at(site: Site):
    """Routes that have been answered already do not make up for a token that is revoked now."""
    with httpx.Client(base_url=site.server.url, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {site.tokens[READ]}"}
        assert client.get("/v1/hello", headers=headers).status_code == 200
        Tokens(site.server.store.base_path).revoke(READ)
        assert client.get("/v1/hello", headers=headers).status_code == 401, "by the same connection"


@pytest.mark.parametrize("path", ["/v1/changes", "/v1/completions/s?holder=h"])
def test_a_stream_ends_when_its_token_is_revoked(site: Site, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.1)
    headers = {"Authorization": f"Bearer {site.tokens[SUBMIT]}", "Accept": "text/event-stream"}
    with (
        httpx.Client(base_url=site.server.url, trust_env=False, timeout=PATIENCE) as client,
        client.stream("GET", path, headers=headers) as stream,
    ):
        pieces = stream.iter_raw()
        assert next(pieces) == b":\n\n"
        Tokens(site.server.store.base_path).revoke(SUBMIT)
        assert all(piece.startswith((b":", b"event: reset")) for piece in pieces), "and it ends"


def test_a_token_that_is_not_sent_as_it_should_be_is_refused(site: Site):
    text = site.tokens[ADMIN]
    for value in (text, f"Basic {text}", f"Bearer {text} x", f"Bearer {text},{text}", "Bearer", "Bearer \xe4"):
        site.server.service.failed_logins = FailedLogins()
        headers = {"Authorization": value.encode("latin-1")}
        assert httpx.get(f"{site.server.url}/v1/hello", headers=headers).status_code == 401, value
    both = [("Authorization", "Bearer x"), ("Authorization", f"Bearer {text}")]
    assert httpx.get(f"{site.server.url}/v1/hello", headers=both).status_code == 401
    assert httpx.get(f"{site.server.url}/v1/hello?access_token={text}").status_code == 401, "it would be in logs"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/health/../hello",
        "/v1//hello",
        "//v1/health",
        "/v1/health/",
        "/v1/health%2f..%2fhello",
        "/V1/hello",
        "/",
        "*",
    ],
)
def test_no_path_leads_past_the_token(site: Site, path: str):
    with httpx.Client(base_url=site.server.url, trust_env=False) as client:
        request = client.build_request("GET", "/")
        request.extensions["target"] = path.encode()
        assert client.send(request).status_code in (400, 401)


def test_a_header_of_a_proxy_makes_nobody_a_user_of_the_machine(site: Site):
    for headers in ({"x-forwarded-for": ""}, {"x-forwarded-for": "unix"}, {"forwarded": "for=unix"}):
        site.server.service.failed_logins = FailedLogins()
        assert httpx.get(f"{site.server.url}/v1/hello", headers=headers).status_code == 401


def test_failed_logins_are_limited_and_valid_ones_are_not(site: Site):
    def hello(token: str) -> httpx.Response:
        return httpx.get(f"{site.server.url}/v1/hello", headers={"Authorization": f"Bearer {token}"})

    site.server.service.failed_logins = FailedLogins()
    assert [hello("x").status_code for _ in range(FAILED_LOGINS)] == [401] * FAILED_LOGINS
    refused = hello("x")
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert hello(site.tokens[READ]).status_code == 200, "many clients may have one address"
    lines = [json.loads(line) for line in (site.server.store.base_path / AUDIT).read_text().splitlines()]
    assert len([line for line in lines if line["action"] == "login"]) == FAILED_LOGINS, "the log does not grow"


def test_the_audit_log_has_each_change_and_each_refusal(site: Site):
    path = site.server.store.base_path / AUDIT
    path.unlink()
    for route, token in (
        ("POST /v1/jobs", SUBMIT),
        ("POST /v1/jobs/{job_name}/cancel", SUBMIT),
        ("POST /v1/jobs/{job_name}/cancel", ADMIN),
        ("PUT /v1/control", READ),
        ("GET /v1/hello", "expired"),
        ("GET /v1/hello", "wrong"),
        ("GET /v1/records", READ),
    ):
        site.ask(route, token)
    with site.server.client() as client:
        client.put("/control", json={})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    shown = [tuple(line[key] for key in ("action", "token", "scope", "job", "address")) for line in lines]
    assert shown == [
        ("submit", "submit", "submit", "new", "127.0.0.1"),
        ("cancel", "submit", "submit", THEIRS, "127.0.0.1"),
        ("cancel", "admin", "admin", THEIRS, "127.0.0.1"),
        ("control", "read", "read", "", "127.0.0.1"),
        ("login", "expired", "", "", "127.0.0.1"),
        ("login", "", "", "", "127.0.0.1"),
        ("control", "unix", "admin", "", ""),
    ]
    assert [line["outcome"] for line in lines] == [
        "done",
        "refused (403)",
        "done",
        "refused (403)",
        "it has expired",
        "it is not known",
        "done",
    ]
    text = path.read_text()
    assert not any(token.rpartition("_")[2] in text for token in site.tokens.values() if token)


def test_a_job_has_the_name_of_the_token_that_has_submitted_it(site: Site):
    body = {"name": "owned", "tasks": ["true"], "submitted_by": {**_OWNER, "token": "another"}}
    site.ask("POST /v1/jobs", SUBMIT, body=body).raise_for_status()
    owner = site.server.store.get_job("owned").submitted_by
    assert owner is not None
    assert owner.token == SUBMIT, "whatever the request says"
    assert site.ask("POST /v1/jobs/{job_name}/cancel", "other", job="owned", body={}).status_code == 403


def test_a_rotated_token_keeps_its_jobs(site: Site):
    site.tokens["new"] = Tokens(site.server.store.base_path).create(SUBMIT, Scope.SUBMIT, rotate=True)
    assert site.ask("POST /v1/jobs/{job_name}/cancel", SUBMIT, job=MINE).status_code == 401
    assert site.ask("POST /v1/jobs/{job_name}/cancel", "new", job=MINE).status_code == 200


@pytest.mark.parametrize(
    "what", ["manager", "Manager", "server", "serverstart", "tokens", "manager.control", "..", "%2e%2e", "a%2fb", "a\n"]
)
def test_no_lock_of_the_manager_or_the_server_can_be_taken(site: Site, what: str):
    headers = {"Authorization": f"Bearer {site.tokens[ADMIN]}"}
    path = what.replace("\n", "%0a")
    answer = httpx.put(f"{site.server.url}/v1/locks/{path}?holder=h", headers=headers)
    assert answer.status_code in (401, 404, 405, 422), answer.text


def test_many_clients_at_once_are_known_each_by_its_own_token(site: Site):
    found: list[tuple[str, str]] = []

    def ask(name: str) -> None:
        headers = {"Authorization": f"Bearer {site.tokens[name]}"}
        with httpx.Client(base_url=site.server.url, headers=headers, trust_env=False) as client:
            found.extend((name, client.get("/v1/hello").json()["token"]["name"]) for _ in range(20))

    threads = [threading.Thread(target=ask, args=(name,)) for name in (READ, SUBMIT, ADMIN) for _ in range(3)]
    run_all(threads)
    assert len(found) == 180
    assert all(name == known for name, known in found)


def run_all(threads: list[threading.Thread], between: Callable[[], None] = lambda: None) -> None:
    for thread in threads:
        thread.start()
    between()
    for thread in threads:
        thread.join()
