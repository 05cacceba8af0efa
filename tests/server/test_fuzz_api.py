"""The server with input that nobody would send: no fault, nothing written outside the base path, bounded memory.

Requests are made from the server's own description by schemathesis, and by Hypothesis where a description cannot say
what is wrong: what is no JSON, or no HTTP. The number of examples is that of the profile, or EXAMPLES.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server.app import create_app
from airflow_provider_air_executor.server.service import Service
from airflow_provider_air_executor.server.tokens import Scope, Tokens
from tests.support.servers import Servers, ServerThread
from tests.support.waiting import PATIENCE, wait_until

EXAMPLES = int(os.environ.get("EXAMPLES", "0")) or settings.default.max_examples
JOB = "known"
KNOWN = {"name": JOB, "job_name": JOB, "task_id": "a"}  # what there is, as parts of paths
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_HOP_BY_HOP = ("authorization", "host", "connection", "content-length", "transfer-encoding", "expect", "upgrade")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watched:
    """Every path that a thread other than the test's writes to, as Python itself reports it."""

    _current: ClassVar[Watched | None] = None
    _is_installed: ClassVar[bool] = False

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self._own = threading.get_ident()

    def __enter__(self) -> Self:
        if not Watched._is_installed:
            sys.addaudithook(Watched._hear)  # it stays as long as the process
            Watched._is_installed = True
        Watched._current = self
        return self

    def __exit__(self, *_: object) -> None:
        Watched._current = None

    @staticmethod
    def _hear(event: str, arguments: tuple[Any, ...]) -> None:
        watched = Watched._current
        if watched is None or threading.get_ident() == watched._own:
            return
        if event == "open":
            path, mode, flags = arguments
            if flags & _WRITES if mode is None else set(mode) & set("wxa+"):
                watched._note(path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"):
            watched._note(arguments[0], arguments[-1] if event != "os.truncate" else -1)
        elif event in ("os.rename", "os.link", "os.symlink"):
            watched._note(arguments[1], arguments[-1])

    def _note(self, path: Any, directory: Any = -1) -> None:
        if isinstance(path, int):
            return  # it is open already
        text = os.fsdecode(path)
        if isinstance(directory, int) and directory >= 0 and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), text)
        self.paths.add(os.path.normpath(os.path.abspath(text)))

    def outside(self, base_path: Path) -> list[str]:
        """Those that are not below the base path."""
        return sorted(path for path in self.paths if path != str(base_path) and not path.startswith(f"{base_path}/"))


@pytest.fixture
def watched(server: ServerThread) -> Iterator[Watched]:
    """Looks at what the server writes, and where, until the test is over."""
    before = _tree(server.store.base_path.parent, server.store.base_path)
    with Watched() as found:
        yield found
    assert found.outside(server.store.base_path) == ["/dev/null"] * ("/dev/null" in found.paths)
    assert found.paths, "it has seen something"
    assert _tree(server.store.base_path.parent, server.store.base_path) == before


def _tree(directory: Path, but: Path) -> dict[str, int]:
    """Everything in a directory, but for one directory in it."""
    paths = [path for path in directory.rglob("*") if path != but and but not in path.parents]
    return {str(path): path.lstat().st_mtime_ns for path in paths}


@pytest.fixture
def admin(server: ServerThread) -> Iterator[httpx.Client]:
    """A client that may do all, by TCP; the server has a job."""
    server.store.submit(JOB, [{"id": "a", "command": "true"}, {"id": "b", "command": "true"}])
    logs = server.store.paths(JOB).logs
    logs.mkdir(exist_ok=True)
    (logs / "a.log").write_bytes(b"a line\n" * 1000)
    with server.client_with(server.token("admin", "admin"), trust_env=False) as client:
        yield client


def examples(share: int = 1) -> Any:
    """How many examples a test has: a part of those of the profile."""
    return settings(
        max_examples=max(5, EXAMPLES // share),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# -- what the description allows, and what it does not -------------------------------------------------------------


def _described() -> dict[str, Any]:
    """The description of the API, as a server gives it."""
    from airflow_provider_air_executor.jobs.file_jobs import FileJobs

    app: Any = create_app(Service(FileJobs(JobStore("/nowhere"))))
    while not hasattr(app, "openapi"):
        app = app._app
    described: dict[str, Any] = app.openapi()
    return described


def _is_stream(operation: Any) -> bool:
    """Whether the answer has no end."""
    responses = operation.definition.raw.get("responses", {})
    return "text/event-stream" in responses.get("200", {}).get("content", {})


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_requests_after_its_own_description(
    server: ServerThread, admin: httpx.Client, watched: Watched, mode: GenerationMode
):
    schema = schemathesis.openapi.from_dict(_described())
    for operation in (result.ok() for result in schema.get_all_operations()):
        try:
            _ask(operation, mode, server.url, admin.headers["authorization"])
        except BaseException as error:
            error.add_note(operation.label)
            raise
    assert admin.get("/health").is_success


def _ask(operation: Any, mode: GenerationMode, url: str, authorization: str) -> None:
    @examples(5)
    @given(case=operation.as_strategy(generation_mode=mode), is_known=st.booleans())
    def ask(case: Any, is_known: bool) -> None:
        if is_known:
            case.path_parameters = {
                name: KNOWN.get(name, value) for name, value in (case.path_parameters or {}).items()
            }
        answer = _asked(case, url, authorization, is_stream=_is_stream(operation))
        if answer is not None:
            case.validate_response(answer, checks=CHECKS)

    ask()


def _asked(case: Any, url: str, authorization: str, *, is_stream: bool) -> requests.Response | None:
    """The answer to a request; of a stream, its beginning only. None if no client can send it."""
    arguments = case.as_transport_kwargs(base_url=url)
    headers = {key: value for key, value in arguments.pop("headers").items() if key.lower() not in _HOP_BY_HOP}
    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = session.request(
                **arguments,
                headers={**headers, "Authorization": authorization},
                stream=is_stream,
                timeout=PATIENCE,
                allow_redirects=False,
            )
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
            return None
        if is_stream and answer.status_code == 200:
            answer._content = b""
        return answer


# -- what no description says ---------------------------------------------------------------------------------------

_PATHS = st.sampled_from(
    [
        "../../outside",
        "..",
        ".",
        "/etc/outside",
        "a/../../outside",
        "~/outside",
        "$HOME/outside",
        "a\\..\\outside",
        "a/b",
        "/",
        "",
        " ",
        "-rf",
        "state.json",
        "tasks.json",
        "logs",
        "runs",
        "work",
        ".waiter",
        ".hidden",
        "submission.json",
        "secrets.jsonl",
        "added.jsonl",
        "a" * 101,
        "a" * 300,
        "\x00",
        "a\x00b",
        "a\nb",
        "CON",
        "\u202e",
        "\uff0e\uff0e\uff0foutside",
        "%2e%2e%2foutside",
        "\ud800",
    ]
)
_NAMES = st.one_of(_PATHS, st.text(max_size=20), st.sampled_from([JOB, "a", "b", "c"]))
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**63) - 1, 10**400, -1, 0]),
    st.floats(),
    st.text(max_size=20),
    _PATHS,
)
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
)


def nearly(valid: st.SearchStrategy[Any], wild: st.SearchStrategy[Any] = _JSON) -> st.SearchStrategy[Any]:
    """Mostly what is valid, so that one wrong value does not hide all others."""
    return st.integers(0, 24).flatmap(lambda number: wild if number == 0 else valid)


_WORDS = st.sampled_from(["a", "b", "c-1", "X_2", "x" * 100])
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_TASKS = st.lists(
    nearly(
        st.just("true")
        | st.fixed_dictionaries(
            {"command": nearly(_TEXTS.map(lambda text: f"x{text}"))},
            optional={
                "id": nearly(st.sampled_from(["t1", "t2", "t3", "t.4", "t 5", "t\u00e9"]), _NAMES),
                "args": nearly(st.lists(_TEXTS, max_size=3)),
                "env": nearly(st.dictionaries(_WORDS.map(lambda text: text.replace("-", "_")), _TEXTS, max_size=3)),
                "cwd": nearly(st.sampled_from(["/tmp", "/", "/no/such"]), _NAMES),
                "dependencies": nearly(st.lists(st.sampled_from(["t1", "t2"]), max_size=2, unique=True)),
                "timeout": nearly(st.floats(0.1, 1e6) | st.sampled_from(["5m", "1h30m"]), _LEAVES),
                "retries": nearly(st.integers(0, 9), _LEAVES),
                "resources": nearly(
                    st.fixed_dictionaries({}, optional={"cpus": st.floats(0.1, 8), "memory": st.just("1G")})
                ),
                "runner": nearly(st.just("local"), _NAMES),
                "status": nearly(st.just("pending"), _LEAVES),
                "attempt": nearly(st.just(0), _LEAVES),
                "created_at": nearly(st.just("2026-01-01T00:00:00Z"), _LEAVES),
            },
        )
    ),
    min_size=1,
    max_size=4,
)
_SUBMISSIONS = st.fixed_dictionaries(
    {"name": nearly(_WORDS | st.from_regex(r"\A[A-Za-z0-9_-]{1,20}\Z"), _NAMES), "tasks": nearly(_TASKS)},
    optional={
        "attached": nearly(
            st.dictionaries(
                nearly(st.sampled_from(["a.txt", "b", "data.bin", "x" * 100]), _NAMES),
                nearly(st.binary(max_size=50).map(lambda data: base64.b64encode(data).decode()), _LEAVES),
                max_size=4,
            )
        ),
        "secrets": nearly(st.lists(_TEXTS, max_size=3)),
        "spec": nearly(
            st.fixed_dictionaries(
                {},
                optional={
                    "max_parallel_tasks": nearly(st.integers(1, 9), _LEAVES),
                    "timeout": nearly(st.floats(0.1, 1e6), _LEAVES),
                    "priority": nearly(st.integers(-9, 9), _LEAVES),
                    "labels": nearly(st.dictionaries(_WORDS, _TEXTS, max_size=3)),
                    "outlets": nearly(st.lists(st.just("s3://a/b"), max_size=3)),
                    "runner": nearly(st.just("local"), _NAMES),
                },
            )
        ),
        "submitted_by": nearly(
            st.fixed_dictionaries(
                {"dag_id": nearly(_TEXTS), "run_id": _TEXTS, "task_id": _TEXTS},
                optional={
                    "map_index": nearly(st.integers(-1, 9), _LEAVES),
                    "token": nearly(_WORDS, _NAMES),
                    "try_number": nearly(st.integers(0, 9), _LEAVES),
                    "other": _JSON,
                },
            )
        ),
        "key": nearly(_WORDS, _NAMES),
    },
)


def _sent(client: httpx.Client, value: Any, path: str = "/jobs") -> httpx.Response:
    """The answer to a value as JSON, also where JSON cannot have it."""
    text = json.dumps(value)
    return client.post(path, content=text.encode(), headers={"content-type": "application/json"})


def is_refused_or_done(answer: httpx.Response) -> bool:
    """Whether an answer is one of those that a request may get, however wrong it is."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", answer.text
        assert answer.json()["status"] == answer.status_code
    return True


def test_jobs_and_attached_files_of_any_kind(server: ServerThread, admin: httpx.Client, watched: Watched):
    """What is taken is a job whose records can be read; what is refused has left nothing."""
    jobs_path = server.store.jobs_path
    taken: list[str] = []

    @examples()
    @given(_SUBMISSIONS)
    def submit(submission: dict[str, Any]) -> None:
        before = set(os.listdir(jobs_path))
        answer = _sent(admin, submission)
        assert is_refused_or_done(answer)
        new = set(os.listdir(jobs_path)) - before
        if answer.status_code != 201:
            assert new == set()
            return
        assert new == {submission["name"]}
        taken.append(submission["name"])
        assert admin.get(f"/records/{submission['name']}").is_success
        assert admin.get(f"/records/{submission['name']}/tasks").is_success
        expected = {"state.json", "tasks.json", "logs", "runs", "work", "submission.json", "secrets.jsonl"}
        paths = list((jobs_path / submission["name"]).iterdir())
        assert {path.name for path in paths} <= expected | submission.get("attached", {}).keys()
        assert not any(path.is_symlink() for path in paths)
        assert all(path.stat().st_mode & 0o077 == 0 for path in paths)
        assert _sent(admin, submission).status_code == 200, "it may be sent again"
        shutil.rmtree(jobs_path / submission["name"])  # so that its name is free

    submit()
    assert len(taken) >= EXAMPLES // 25, "most examples would say nothing"


def test_changes_of_any_kind(admin: httpx.Client, watched: Watched):
    """Requests about a job that is there, with bodies that nearly fit."""
    bodies = st.fixed_dictionaries(
        {},
        optional={
            "tasks": st.lists(_NAMES, max_size=3) | _TASKS | _JSON,
            "again": _LEAVES,
            "all": _LEAVES,
            "attempt": _LEAVES,
            "key": _NAMES,
            "secrets": _JSON,
            "owner": _JSON,
            "names": _JSON,
            "positions": st.dictionaries(_NAMES, _JSON, max_size=3),
            "offsets": st.dictionaries(_NAMES, _LEAVES, max_size=3),
            "paused": _LEAVES,
            "slots": st.dictionaries(_NAMES, _LEAVES, max_size=3),
        },
    )
    paths = [
        ("POST", f"/jobs/{JOB}/cancel"),
        ("POST", f"/jobs/{JOB}/retry"),
        ("POST", f"/jobs/{JOB}/tasks"),
        ("PUT", f"/jobs/{JOB}/waiter"),
        ("POST", "/records/query"),
        ("POST", f"/records/{JOB}/new-lines"),
        ("PUT", f"/records/{JOB}/positions/r"),
        ("PUT", "/control"),
        ("POST", "/held-up"),
    ]

    @examples()
    @given(st.sampled_from(paths), st.data())
    def change(target: tuple[str, str], data: st.DataObject) -> None:
        body: dict[str, Any] = data.draw(bodies)
        if data.draw(st.booleans()):  # those that it has, and no other
            known = {"cancel": ("owner", "tasks", "again"), "retry": ("tasks", "all", "attempt")}
            known |= {"tasks": ("tasks", "secrets", "key"), "query": ("names",), "held-up": ("names",)}
            known |= {"new-lines": ("positions",), "r": ("offsets",), "control": ("paused", "slots")}
            kept = known.get(target[1].rpartition("/")[2], ())
            body = {key: value for key, value in body.items() if key in kept}
        assert is_refused_or_done(admin.request(target[0], target[1], content=json.dumps(body).encode()))

    change()
    assert admin.get("/control").is_success


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"\x00" * 100,
        b"\xef\xbb\xbf{}",
        b'{"name": "a", "name": "../b", "tasks": ["true"]}',
        b'{"name": "a", "tasks": ["true"], "tasks": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"name": "a", "tasks": [{"command": "true", "x": ' + b"[" * 150 + b"]" * 150 + b"}]}",
        b'{"name": "a", "tasks": [{"command": "true", "x": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}]}",
        b'{"name": "a", "tasks": [{"command": "true", "x": 1' + b"0" * 5_000 + b"}]}",
        b'{"name": "a", "tasks": [{"command": "true", "x": 1e999}]}',
        b'{"name": "a", "tasks": [{"command": "true", "x": NaN}]}',
        b'{"name": "a", "tasks": [{"command": "true", "x": -Infinity}]}',
        b'{"name": "a", "tasks": [{"command": "true", "x": "\\ud800"}]}',
        b'{"name": "a", "tasks": [{"command": "true\\u0000"}]}',
        b'{"name": "\\ud83d\\ude00", "tasks": ["true"]}',
        b'{"name": "a", "tasks": ["true"], "attached": {"../x": "eA=="}}',
        b'{"name": "a", "tasks": ["true"], "attached": {"x": "not base64"}}',
        b'{"name": "a", "tasks": ["true"], "attached": {"x": "e\\nA=="}}',
        b'{"name": "a", "tasks": ["true"], "attached": {"X": "eA==", "x": "eA=="}}',
        b'{"name": "a", "tasks": ' + json.dumps(["true"] * 100_001).encode() + b"}",
        b'{"name": "a", "tasks": [' + b",".join([b"[]"] * 200_000) + b"]}",
    ],
    ids=lambda body: body[:60].decode(errors="replace").encode("unicode_escape").decode(),
)
@pytest.mark.parametrize("path", ["/jobs", f"/jobs/{JOB}/tasks"])
def test_bodies_that_are_hardly_json(admin: httpx.Client, watched: Watched, path: str, body: bytes):
    for kind in (
        "application/json",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
    ):
        answer = admin.post(path, content=body, headers={"content-type": kind})
        assert is_refused_or_done(answer)
    for name in admin.get("/records").text.splitlines()[:-1]:
        job = json.loads(name)["job"]["name"]
        assert admin.get(f"/records/{job}/tasks").is_success


# -- what is no HTTP -----------------------------------------------------------------------------------------------

_METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "A" * 100])
_TARGETS = st.one_of(
    st.sampled_from(
        [
            "/v1/hello",
            "/v1/jobs",
            f"/v1/records/{JOB}",
            f"/v1/records/{JOB}/log?task=a",
            "*",
            "http://other/v1/hello",
            "/v1/records/..%2f..%2fetc%2fpasswd",
            "/v1/records/%00",
            "/v1/records/%ff",
            "/v1/records?after=%ff",
            "//",
            "/",
            f"/v1/records/{JOB}/log?task=..%2F..%2Fstate.json",
            f"/v1/records/{JOB}/log?task=a&offset=9" + "9" * 400,
            "/v1/records/" + "a" * 5_000,
            "/v1/hello?" + "a=b&" * 5_000,
        ]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=50).map(lambda text: f"/v1/{text}"),
)
_HEADERS = st.lists(
    st.sampled_from(
        [
            "Content-Length: 5",
            "Content-Length: 5",
            "Content-Length: 6",
            "Content-Length: -1",
            "Content-Length: 1e3",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Expect: 100-continue",
            "Connection: close",
            "Connection: upgrade",
            "Upgrade: websocket",
            "Upgrade: h2c",
            "Host: b",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "Air-Executor-Protocol: 0",
            "Air-Executor-Protocol: 1",
            "Air-Executor-Protocol: x",
            "Last-Event-ID: \xe4",
            "X: " + "y" * 2_000,
            ": x",
            "X : y",
            "X:\ty",
            "Range: bytes=0-1",
            "If-None-Match: *",
        ]
    ),
    max_size=5,
)
_CONTENTS = st.sampled_from(
    [
        b"",
        b"hallo",
        b'{"a": 1}',
        b"5\r\nhallo\r\n0\r\n\r\n",
        b"fffffffffff\r\nx",
        b"-1\r\n",
        b"5;x=y\r\nhallo\r\n0\r\nT: 1\r\n\r\n",
    ]
)


def test_requests_that_are_hardly_http(
    server: ServerThread, admin: httpx.Client, watched: Watched, caplog: pytest.LogCaptureFixture
):
    """Each is answered, or its connection is closed; the server answers others as before, and its log stays empty."""
    server.store.submit("written", ["true"])  # so that something is written at all
    host, port = server.url.removeprefix("http://").split(":")

    @examples()
    @given(_METHODS, _TARGETS, _HEADERS, _CONTENTS, st.booleans())
    def ask(method: str, target: str, headers: list[str], content: bytes, is_known: bool) -> None:
        lines = [f"{method} {target} HTTP/1.1", "Host: a", *headers]
        if is_known:
            lines.append(f"Authorization: {admin.headers['authorization']}")
        with socket.create_connection((host, int(port)), PATIENCE) as connection, contextlib.suppress(OSError):
            connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
            if "Accept: text/event-stream" not in headers:
                connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            assert not answer or answer.startswith(b"HTTP/1.1 ")
            assert answer[9:10] in (b"", b"1", b"2", b"3", b"4"), answer

    ask()
    assert admin.get("/hello").is_success
    assert admin.post("/jobs", json={"name": "last", "tasks": ["true"]}).is_success
    assert caplog.text == ""


# -- slow clients --------------------------------------------------------------------------------------------------

CLIENTS = 200
MOST_MORE = (
    512 * 1024
)  # KiB; the bodies of all requests together may have 128 MiB, and three long lists be there at once


def _memory(pid: int, field: str = "VmRSS") -> int:
    """How much memory a process has, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(field)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it looks into /proc")
def test_the_memory_is_bounded_with_200_slow_clients(servers: Servers, store: JobStore):
    """A third reads nothing of what it asks for, a third sends a long body slowly, a third waits for changes."""
    process = servers.start("--listen", "127.0.0.1:0")
    info = servers.info()
    assert info is not None
    [url] = info.listen
    token = Tokens(store.base_path).create("t", Scope.ADMIN)
    _fill(store)
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    before = _memory(process.pid)
    streams = [path for path in _described()["paths"] if path.endswith("/changes")]
    with contextlib.ExitStack() as stack:
        for number in range(CLIENTS):
            connection = stack.enter_context(_slow(address))
            head = f"Host: a\r\nAuthorization: Bearer {token}\r\n"
            if number % 3 == 0:
                path = ("/v1/records", f"/v1/records/{JOB}/tasks", f"/v1/records/{JOB}/log?task=a")[number % 9 // 3]
                connection.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
            elif number % 3 == 1 or not streams:
                connection.sendall(f"POST /v1/jobs HTTP/1.1\r\n{head}Content-Length: 60000000\r\n\r\n".encode())
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        connection.send(b" " * 65_536)
                connection.setblocking(True)
            else:
                connection.sendall(f"GET {streams[0]} HTTP/1.1\r\n{head}Accept: text/event-stream\r\n\r\n".encode())
        with httpx.Client(
            base_url=f"{url}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE
        ) as client:
            assert client.get("/hello").is_success, "others are answered"
            for number in range(100):  # which those that wait for changes do not read
                client.post("/jobs", json={"name": f"n{number}", "tasks": ["true"]}).raise_for_status()
        peak = _memory(process.pid, "VmHWM")
    assert peak - before < MOST_MORE, f"{before} KiB before, {peak} KiB at most"
    with httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=PATIENCE) as client:
        wait_until(lambda: client.get("/hello").is_success, what="it answers as before")


def _slow(address: tuple[str, int]) -> socket.socket:
    """A connection whose client takes little at a time."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    connection.settimeout(PATIENCE)
    connection.connect(address)
    return connection


def _fill(store: JobStore) -> None:
    """A job with much to read, and many others."""
    text = "x" * 1_000
    store.submit(JOB, [{"id": "a", "command": "true"}, *({"command": "true", "args": [text]} for _ in range(10_000))])
    (store.paths(JOB).logs / "a.log").write_bytes(b"a line\n" * 3_000_000)
    for number in range(300):
        store.submit(f"job{number}", ["true"], labels={"text": text})
