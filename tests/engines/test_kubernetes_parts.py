"""The parts of the Kubernetes engine that need no cluster: credentials, output, Pods as they are described."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_provider_air_executor.engines.kubernetes import controller as controllers
from airflow_provider_air_executor.engines.kubernetes import credentials, log_reader, pod_status, start_checks
from airflow_provider_air_executor.engines.kubernetes import manifest as manifests
from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt, Message, read_message
from airflow_provider_air_executor.engines.kubernetes.client import ApiError, KubernetesClient, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.controller import Controller
from airflow_provider_air_executor.engines.kubernetes.credentials import ClusterCredentials, find_credentials
from airflow_provider_air_executor.engines.kubernetes.endings import has_all, last_end, read_result
from airflow_provider_air_executor.engines.kubernetes.handles import Handles
from airflow_provider_air_executor.engines.kubernetes.log_reader import LogReader
from airflow_provider_air_executor.engines.kubernetes.manifest import Installation, make_manifest
from airflow_provider_air_executor.engines.kubernetes.options import EngineOptions
from airflow_provider_air_executor.engines.kubernetes.output import (
    THROWN_AWAY,
    UNCERTAIN,
    OutOfStepError,
    Output,
    Reader,
)
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.progress import Progress
from airflow_provider_air_executor.engines.kubernetes.shared import Left, Shared
from airflow_provider_air_executor.engines.kubernetes.task_options import KubernetesOptions
from airflow_provider_air_executor.engines.protocol import Attempt, Ended, Event, SpawnError
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.manager.job_writer import JobWriter
from tests.support.kubernetes_cluster import make_certificates
from tests.support.waiting import PATIENCE, wait_until

TOKEN = "c0ffee00c0ffee00"  # it is part of the names of tests; nobody kills what has it
BEGINNING = manifests.beginning(TOKEN)
POD: dict[str, Any] = {"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [{"name": "task"}]}}
MARKER = f"\0air-executor {TOKEN}\n".encode()


# -- credentials -----------------------------------------------------------------------------------------------


def write_kubeconfig(path: Path, user: dict[str, Any], *, current: str = "one", **cluster: Any) -> str:
    content = {
        "current-context": current,
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "u", "namespace": "team"}},
            {"name": "two", "context": {"cluster": "c"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://10.0.0.1:6443/"} | cluster}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_token(tmp_path: Path) -> None:
    found = find_credentials({}, kubeconfig=write_kubeconfig(tmp_path / "config", {"token": "t"}))
    assert (found.server, found.namespace, found.authorization) == ("https://10.0.0.1:6443", "team", "Bearer t")
    assert not found.must_renew


def test_what_python_calls_not_strict_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.13 refuses certificates by default that kubectl takes."""
    real = ssl.create_default_context

    def as_since_3_13(*args: Any, **kwargs: Any) -> ssl.SSLContext:
        found = real(*args, **kwargs)
        found.verify_flags |= ssl.VERIFY_X509_STRICT
        return found

    monkeypatch.setattr(ssl, "create_default_context", as_since_3_13)
    found = find_credentials({}, kubeconfig=write_kubeconfig(tmp_path / "config", {"token": "t"}))
    assert not found.tls.verify_flags & ssl.VERIFY_X509_STRICT
    assert found.tls.verify_mode is ssl.CERT_REQUIRED


def test_another_context(tmp_path: Path) -> None:
    path = write_kubeconfig(tmp_path / "config", {"token": "t"}, **{"tls-server-name": "api", "proxy-url": "http://p"})
    found = find_credentials({"KUBECONFIG": path}, context="two")
    assert (found.namespace, found.authorization, found.server_name, found.proxy) == (
        "default",
        None,
        "api",
        "http://p",
    )


def test_a_token_in_a_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("first\n")
    found = find_credentials({}, kubeconfig=write_kubeconfig(tmp_path / "config", {"tokenFile": "token"}))
    assert found.must_renew
    found.renew()
    assert (found.authorization, found.must_renew) == ("Bearer first", False)
    (tmp_path / "token").write_text("second\n")
    found.forget()
    found.renew()
    assert found.authorization == "Bearer second"
    later = credentials.time.time() + 61
    monkeypatch.setattr(credentials.time, "time", lambda: later)
    assert found.must_renew


def test_a_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    status = '{"token": "\'$WHO-$1\'", "expirationTimestamp": "2001-01-01T00:00:00Z"}'
    program.write_text(f'#!/bin/sh\necho \'{{"kind": "ExecCredential", "status": {status}}}\'\n')
    program.chmod(0o755)
    run = {"apiVersion": "v1", "command": "./program", "args": ["x"], "env": [{"name": "WHO", "value": "me"}]}
    found = find_credentials({"PATH": "/bin"}, kubeconfig=write_kubeconfig(tmp_path / "config", {"exec": run}))
    found.renew()
    assert found.authorization == "Bearer me-x"
    assert found.must_renew  # it has expired
    program.write_text("#!/bin/sh\necho nonsense\n")
    with pytest.raises(OSError, match="did not print the credentials"):
        found.renew()


def test_user_and_password(tmp_path: Path) -> None:
    user = {"username": "me", "password": "secret"}
    found = find_credentials({}, kubeconfig=write_kubeconfig(tmp_path / "config", user))
    assert found.authorization == "Basic " + base64.b64encode(b"me:secret").decode()


@pytest.mark.parametrize(
    ("user", "cluster", "why"),
    [
        ({"auth-provider": {"name": "gcp"}}, {}, "auth-provider is not supported"),
        ({}, {"certificate-authority-data": "no base64!"}, "certificate-authority-data"),
        ({}, {"certificate-authority": "none.crt"}, "none.crt"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, user: dict[str, Any], cluster: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        find_credentials({}, kubeconfig=write_kubeconfig(tmp_path / "config", user, **cluster))


def test_a_proxy_that_is_none(tmp_path: Path) -> None:
    found = find_credentials({}, kubeconfig=write_kubeconfig(tmp_path / "config", {}, **{"proxy-url": "odd://p"}))
    with pytest.raises(SettingsError, match=r"https://10\.0\.0\.1:6443 cannot be asked by the proxy odd://p: "):
        KubernetesClient(found)


def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\.kube/config"):
        find_credentials({"HOME": str(tmp_path)})
    (tmp_path / "odd").write_text("- a list\n")
    with pytest.raises(SettingsError, match="odd"):
        find_credentials({}, kubeconfig=str(tmp_path / "odd"))


def test_as_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", tmp_path)
    (tmp_path / "token").write_text("pod")
    (tmp_path / "namespace").write_text("jobs")
    make_certificates(tmp_path)
    found = find_credentials(
        {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443", "HOME": "/nowhere"}
    )
    found.renew()
    assert (found.server, found.namespace, found.authorization) == ("https://[fd00::1]:443", "jobs", "Bearer pod")
    assert not found.is_outdated
    make_certificates(tmp_path)  # another authority
    assert found.is_outdated
    assert found.read_again().tls is not found.tls


@dataclass
class ApiServer:
    """Says that there are no Pods.

    :param accepts: the header of those whom it knows; empty: all of them.
    :param asked_by: the headers of those who have asked.
    """

    address: str = ""
    accepts: str = ""
    asked_by: list[str] = field(default_factory=list)
    serving: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving[writer] = asyncio.current_task()
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                found = re.search("^Authorization: ([^\r]*)", head, re.MULTILINE)
                self.asked_by.append(found[1] if found else "")
                is_known = self.accepts in ("", self.asked_by[-1])
                body = (
                    b'{"items": [], "metadata": {"resourceVersion": "1"}}'
                    if is_known
                    else b'{"message": "Unauthorized"}'
                )
                status = b"200 OK" if is_known else b"401 Unauthorized"
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()


@contextlib.asynccontextmanager
async def api_server(certificates: Path | None = None) -> AsyncIterator[ApiServer]:
    """An API server, which knows clients by the certificates of its authority if there are some."""
    server, tls = ApiServer(), None
    if certificates is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.crt"))
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    scheme, port = "https" if tls else "http", listening.sockets[0].getsockname()[1]
    server.address = f"{scheme}://127.0.0.1:{port}"
    try:
        yield server
    finally:
        listening.close()
        for writer, serving in server.serving.items():
            writer.transport.abort()
            await asyncio.wait([serving] if serving is not None else [])


BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


@pytest.mark.parametrize(
    ("user", "header"), [({"token": "b"}, "Bearer b"), ({"username": "me", "password": "secret"}, BASIC)]
)
def test_the_foundin_a_kubeconfig_are_read_again(tmp_path: Path, user: dict[str, Any], header: str) -> None:
    async def test() -> None:
        async with api_server() as server:
            path = write_kubeconfig(tmp_path / "config", {"token": "a"}, server=server.address)
            api = KubernetesClient(find_credentials({}, kubeconfig=path))
            await api.list_pods("team", "x=y")
            server.accepts = header
            with pytest.raises(ApiError, match="Unauthorized"):
                await api.list_pods("team", "x=y")
            write_kubeconfig(tmp_path / "config", user, server=server.address)
            await api.list_pods("team", "x=y")
            assert server.asked_by == ["Bearer a", "Bearer a", header]
            await api.close()

    asyncio.run(test())


def test_what_the_api_server_refuses_is_read_again(tmp_path: Path) -> None:
    """Also if no notification says that the file has changed."""

    async def test() -> None:
        async with api_server() as server:
            path = write_kubeconfig(tmp_path / "config", {"token": "a"}, server=server.address)
            before = os.stat(path)
            found = find_credentials({}, kubeconfig=path)
            api = KubernetesClient(found)
            server.accepts = "Bearer b"
            write_kubeconfig(tmp_path / "config", {"token": "b"}, server=server.address)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert not found.is_outdated
            with pytest.raises(ApiError, match="Unauthorized"):
                await api.list_pods("team", "x=y")
            await api.list_pods("team", "x=y")
            await api.close()

    asyncio.run(test())


def test_another_address_in_a_kubeconfig(tmp_path: Path) -> None:
    """What is current in it then does not count: the Pods are in the cluster of the context that was."""

    async def test() -> None:
        async with api_server() as one, api_server() as two:
            path = write_kubeconfig(tmp_path / "config", {"token": "a"}, server=one.address)
            api = KubernetesClient(find_credentials({}, kubeconfig=path))
            await api.list_pods("team", "x=y")
            write_kubeconfig(tmp_path / "config", {"token": "a"}, current="two", server=two.address)
            await api.list_pods("team", "x=y")
            assert (one.asked_by, two.asked_by) == (["Bearer a"], ["Bearer a"])
            await api.close()

    asyncio.run(test())


def test_certificates_are_read_again(tmp_path: Path) -> None:
    """That of the authority, which the kubeconfig names, and that of the client with its key."""
    names = {"ca.crt": "ca.crt", "server.crt": "client.crt", "server.key": "client.key"}
    for authority in ("old", "new"):
        (tmp_path / authority).mkdir()
        make_certificates(tmp_path / authority)

    def use(authority: str, *files: str) -> None:
        for name in files:
            shutil.copy(tmp_path / authority / name, tmp_path / names[name])

    async def test() -> None:
        async with api_server(tmp_path / "new") as server:
            use("old", *names)
            user = {"client-certificate": "client.crt", "client-key": "client.key"}
            cluster = {"server": server.address, "certificate-authority": "ca.crt"}
            api = KubernetesClient(
                find_credentials({}, kubeconfig=write_kubeconfig(tmp_path / "config", user, **cluster))
            )
            with pytest.raises(UnreachableError, match="certificate verify failed"):
                await api.list_pods("team", "x=y")
            use("new", "ca.crt")
            with pytest.raises(UnreachableError):  # it does not know us
                await api.list_pods("team", "x=y")
            use("new", "server.crt")  # and not yet its key
            with pytest.raises(UnreachableError):
                await api.list_pods("team", "x=y")
            use("new", "server.key")
            await api.list_pods("team", "x=y")
            await api.close()

    asyncio.run(test())


@pytest.mark.parametrize("text", [None, "- a list\n", "clusters: ["])
def test_a_kubeconfig_that_cannot_be_read_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    """What was read before goes on to be used, and it is said once."""
    path = tmp_path / "config"

    def spoil() -> None:
        path.unlink() if text is None else path.write_text(text)

    async def test() -> None:
        async with api_server() as server:
            api = KubernetesClient(
                find_credentials({}, kubeconfig=write_kubeconfig(path, {"token": "a"}, server=server.address))
            )
            spoil()
            for _ in range(2):
                await api.list_pods("team", "x=y")
            assert server.asked_by == ["Bearer a", "Bearer a"]
            assert caplog.text.count("going on with what was read before") == 1
            write_kubeconfig(path, {"token": "b"}, server=server.address)
            await api.list_pods("team", "x=y")
            assert server.asked_by[2:] == ["Bearer b"]
            await api.close()

    asyncio.run(test())


def test_a_kubeconfig_that_is_a_pipe(tmp_path: Path) -> None:
    """It is read once: as what a shell makes of <(...)."""
    os.mkfifo(tmp_path / "pipe")
    content = Path(write_kubeconfig(tmp_path / "config", {"token": "a"})).read_text()
    writing = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(content))
    writing.start()
    found = find_credentials({}, kubeconfig=str(tmp_path / "pipe"))
    writing.join()
    found.forget()
    assert not found.is_outdated


# -- output ----------------------------------------------------------------------------------------------------


def one(log: Path, start: int = 0) -> tuple[BatchedAttempt, Output]:
    """An attempt that has its container alone, and the output of that."""
    attempt = BatchedAttempt(None, TOKEN, log_path=log, log_start=start)
    return attempt, Output(TOKEN, [attempt], is_batch=False)


def feed_some(reader: Reader, stream: bytes, draw: random.Random) -> None:
    """Read in pieces, up to any place."""
    place, end = 0, draw.randrange(len(stream))
    while place < end:
        length = draw.randrange(1, 400)
        reader.feed(stream[place : min(place + length, end)])
        place += length


@pytest.mark.parametrize("seed", range(20))
def test_each_byte_once(tmp_path: Path, seed: int) -> None:
    """Read in pieces, cut off and begun anew at any place, by one manager or the next."""
    draw = random.Random(seed)
    log = tmp_path / "log"
    log.write_bytes(b"of an earlier attempt\n")
    start = log.stat().st_size
    output = bytes(draw.choice(b"ab\n") for _ in range(3000)) + MARKER[:10]
    result = bytes(draw.choice(b"cd") for _ in range(2000))
    stream = BEGINNING + output + MARKER + result
    attempt, reading = one(log, start)
    for _ in range(8):
        if draw.random() < 0.5 and attempt.result is None:
            attempt, reading = one(log, start)
        feed_some(reading.reader(), stream, draw)
    reading.reader().feed(stream)
    reading.splitter.finish(marker_is_due=True)
    assert log.read_bytes() == b"of an earlier attempt\n" + output
    assert attempt.result == result


def test_the_beginning_was_thrown_away(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    lines = [f"line {number}\n".encode() for number in range(1000)]
    _, output = one(log)
    output.reader().feed(BEGINNING + b"".join(lines[:500]))
    there = b"".join(lines[450:600])
    with pytest.raises(OutOfStepError):
        output.reader().feed(4 * there)
    output.continue_in(there)
    output.reader().feed(there)
    assert log.read_bytes() == b"".join(lines[:600])
    there = b"".join(lines[800:])
    output.continue_in(there)
    output.reader().feed(there)
    output.splitter.finish(marker_is_due=False)
    text = log.read_text()
    assert "line 599\n\n[air-executor] Output is missing here" in text
    assert text.endswith("line 998\nline 999\n")
    assert text.count("line ") == 800


LINES = b"".join(f"line {number:05}\n".encode() for number in range(1000))
SAME = b"the same\n" * 1000


@pytest.mark.parametrize(
    ("read", "is_read_out", "there", "taken", "says"),
    [
        pytest.param(LINES[:6000], False, LINES[3000:9000], LINES[6000:9000], b"", id="cut off, goes on in it"),
        pytest.param(LINES[:6000], False, LINES[5940:9000], LINES[6000:9000], b"", id="cut off, begins just before"),
        pytest.param(LINES[:6000], False, LINES[6600:9000], LINES[6600:9000], THROWN_AWAY, id="cut off, some is gone"),
        pytest.param(SAME[:4500], False, SAME[:3600], SAME[1026:3600], UNCERTAIN, id="cut off, always the same"),
        pytest.param(SAME[:4500], False, SAME[:90], SAME[:72], UNCERTAIN, id="cut off, always the same, and short"),
        pytest.param(LINES[:6000], True, LINES[6000:9000], LINES[6000:9000], b"", id="at its end, goes on in the next"),
        pytest.param(LINES[:6000], True, LINES[3000:6000], b"", b"", id="at the end of the next"),
        pytest.param(LINES[:6000], True, LINES[5976:6000], b"", b"", id="at the end of the next, that is short"),
        pytest.param(
            LINES[:6000], True, LINES[3000:9000], LINES[3000:9000], b"", id="at its end, the next has the same"
        ),
        pytest.param(SAME, True, SAME + MARKER, SAME, b"", id="at its end, always the same"),
        pytest.param(SAME, True, SAME[:3600], b"", UNCERTAIN, id="at some end, always the same"),
        pytest.param(LINES[:6000], True, b"", b"", b"", id="at its end, nothing yet in the next"),
        pytest.param(LINES[:9], False, LINES[6000:9000], LINES[6000:9000], THROWN_AWAY, id="cut off, hardly begun"),
        pytest.param(b"", False, LINES[6000:9000], LINES[6000:9000], THROWN_AWAY, id="nothing read"),
    ],
)
def test_its_node_has_begun_a_new_file(
    tmp_path: Path, read: bytes, is_read_out: bool, there: bytes, taken: bytes, says: bytes
) -> None:
    log = tmp_path / "log"
    log.touch()
    _, output = one(log)
    output.reader().feed(BEGINNING + read)
    output.is_read_out = is_read_out
    if there:
        with pytest.raises(OutOfStepError):
            output.reader().feed(there)
    output.continue_in(there)
    output.reader().feed(there)
    assert log.read_bytes() == read + says + taken


def test_the_words_of_a_kubelet(tmp_path: Path) -> None:
    """What comes at the end of a stream because its node can read no more is not in the way of what comes then."""
    log = tmp_path / "log"
    log.touch()
    _, output = one(log)
    output.reader().feed(BEGINNING + LINES[:6000] + b"rpc error")
    with pytest.raises(OutOfStepError):
        output.reader().feed(BEGINNING + LINES)
    output.continue_in(BEGINNING + LINES[:9000])
    output.reader().feed(BEGINNING + LINES)
    assert log.read_bytes() == LINES[:6000] + b"rpc error" + LINES[6000:]


class Manager:
    """The manager's side of a controller: what it emits, and what is persisted before that."""

    def __init__(self) -> None:
        self.ends: dict[str, object] = {}  # exit code and reason by task, or "left" to another Pod
        self.events: list[tuple[str, str]] = []
        self.persisted: dict[str, bytes | None] = {}
        self.full_for: tuple[str, float] = ("", 0.0)  # a task whose end cannot be persisted until then

    def put(self, event: Event | Left) -> None:
        if isinstance(event, Left):
            self.ends |= {each.task_id: "left" for each in event.attempts}
        elif isinstance(event, Ended):
            self.ends[event.attempt.task_id] = (event.exit_code, event.reason)
        for name in [each.task_id for each in event.attempts] if isinstance(event, Left) else [event.attempt.task_id]:
            self.events.append((type(event).__name__, name))

    def persist(self, attempt: BatchedAttempt, ended: Ended, result: bytes | None) -> None:
        assert attempt.attempt is not None
        name = attempt.attempt.task_id
        if name == self.full_for[0] and time.monotonic() < self.full_for[1]:
            raise OSError(28, "the disk is full")
        self.persisted[name] = result

    def write_creation(self, pod: Pod) -> None:
        """It is not needed."""

    def is_expected(self, annotations: Mapping[str, str], token: str) -> bool:
        return False


@contextlib.contextmanager
def controlling(manager: Manager) -> Iterator[Controller]:
    """A controller that cannot reach its API server."""
    client = KubernetesClient(ClusterCredentials("http://127.0.0.1:1", ssl.create_default_context()))
    options = EngineOptions(lost_after=1, stuck_after=1, start_within=1, log_streams=1)
    controller = Controller(Shared(client, options, Installation("me", "n"), 1, manager, manager))
    try:
        yield controller
    finally:
        controller.close()


class Node:
    """What a node says of the output of a container: streams, one after the other, and its newest file.

    :param streams: what comes in each, and how often its node is asked how the newest file begins until it ends.
    """

    def __init__(self, newest: bytes, *streams: tuple[bytes, float]) -> None:
        self.newest = newest
        self._streams = list(streams)
        self.asked: list[str] = []

    @contextlib.asynccontextmanager
    async def open_log(
        self, namespace: str, name: str, container: str, *, follow: bool, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append("follow" if follow else "begins" if limit else "all")
        data, questions = self._streams.pop(0) if follow else (self.newest[:limit], 0)

        async def chunks() -> AsyncIterator[bytes]:
            yield data
            while self.asked.count("begins") < questions:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        yield chunks()

    def read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
        """What is in the log after the last stream."""
        log = tmp_path / "log"
        log.touch()
        for name in ("FIRST_SILENCE", "ARRIVAL_SECONDS"):
            monkeypatch.setattr(log_reader, name, 0.1)
        pod = Pod("j", TOKEN, POD, tmp_path / "handle", [BatchedAttempt(None, TOKEN, log_path=log)])

        async def read() -> None:
            manager = Manager()
            ours, loop = Installation("me", "n"), asyncio.get_running_loop()
            shared = Shared(self, EngineOptions(), ours, 1, manager, manager, loop)
            async with asyncio.timeout(10):
                assert await LogReader(pod, shared, lambda: None).read(follow=True)

        asyncio.run(read())
        assert not self._streams
        return log.read_bytes()


@pytest.mark.parametrize("lines", [LINES, SAME])
def test_a_stream_that_stays_at_the_end_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: bytes
) -> None:
    """After some silence its node is asked whether the output goes on elsewhere."""
    node = Node(lines + MARKER, (BEGINNING + 8 * lines, math.inf), (lines + MARKER, 0))
    assert node.read(tmp_path, monkeypatch) == 9 * lines
    assert node.asked == ["follow", "begins", "all", "follow"]


def test_there_is_nothing_in_the_next_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(b"", (BEGINNING + 8 * LINES, math.inf), (LINES + MARKER, 0))
    assert node.read(tmp_path, monkeypatch) == 9 * LINES


def test_a_stream_that_has_gone_on_to_the_next_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The silence is that of the task: nothing comes twice, and its node is not asked for all of it again."""
    more = b"".join(f"more {number:05}\n".encode() for number in range(9000))
    node = Node(more, (BEGINNING + 8 * LINES + more, math.inf), (more + b"the end" + MARKER, 4))
    assert node.read(tmp_path, monkeypatch) == 8 * LINES + more + b"the end"
    assert node.asked == ["follow", "begins", "all", "follow", "begins", "begins", "begins"]


def test_the_end_was_lost(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    _, output = one(log)
    output.reader().feed(BEGINNING + b"begun" + MARKER[:5])
    output.splitter.finish(marker_is_due=True)
    assert log.read_bytes().startswith(b"begun" + MARKER[:5] + b"\n[air-executor] The end of the output is missing")


def test_a_marker_in_a_result(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    attempt, output = one(tmp_path / "log")
    output.reader().feed(BEGINNING + b"text" + MARKER + b"result" + MARKER)
    assert ((tmp_path / "log").read_bytes(), attempt.result) == (b"text", b"result" + MARKER)


def test_a_full_disk(tmp_path: Path) -> None:
    """What could not be written is written with what comes next, and stands there once."""
    _, output = one(tmp_path / "log")
    with pytest.raises(OSError, match="No such file"):
        output.reader().feed(BEGINNING + b"text")
    (tmp_path / "log").touch()
    output.reader().feed(BEGINNING + b"text and more")
    assert (tmp_path / "log").read_bytes() == b"text and more"


def test_output_that_could_not_be_written_is_let_go_of_with_its_job(tmp_path: Path) -> None:
    """The job was removed: nothing of it holds its attempt up, or comes into the log of another job of its name."""
    log = tmp_path / "log"
    log.touch()
    pod = Pod("j", TOKEN, POD, tmp_path / "handle", [BatchedAttempt(None, TOKEN, log_path=log)])
    reader = pod.output.reader()
    reader.feed(BEGINNING + b"begun\n")
    log.unlink()
    with pytest.raises(OSError, match="No such file"):
        reader.feed(BEGINNING + b"begun\nended\n")
    manager = Manager()

    async def make() -> Progress:
        ours, loop = Installation("me", "n"), asyncio.get_running_loop()
        return Progress(pod, Shared(Node(b""), EngineOptions(), ours, 1, manager, manager, loop), lambda _: None)

    progress = asyncio.run(make())
    with pytest.raises(OSError, match="No such file"):
        progress.advance()
    pod.is_detached = True
    progress.advance()
    log.touch()  # of another job of that name
    progress.advance()
    assert log.read_bytes() == b""


# -- the output of a batch -------------------------------------------------------------------------------------


def batched(directory: Path, count: int = 3) -> list[BatchedAttempt]:
    """Attempts, each with a log that an earlier one has begun."""
    found = []
    for number in range(count):
        log = directory / f"t{number}.log"
        if not log.exists():
            log.write_bytes(b"earlier\n")
        found.append(BatchedAttempt(None, f"{number:016x}", task_id=f"t{number}", log_path=log, log_start=8))
    return found


def frame(number: int, text: str) -> bytes:
    return f"\0air-executor {number:016x} {text}\n".encode()


@pytest.mark.parametrize("seed", range(20))
def test_each_byte_where_it_belongs(tmp_path: Path, seed: int) -> None:
    """Read in pieces, cut off and begun anew at any place, by one manager or the next."""
    draw = random.Random(seed)
    pieces, results = [], []
    for _ in range(3):
        pieces.append(bytes(draw.choice(b"ab\n\0") for _ in range(1000)) + b"\0air-executor 1" * draw.randrange(2))
        results.append(bytes(draw.choice(b"cd\n") for _ in range(draw.choice([0, 500]))))
    pieces[0] += b"\0air-executor ffffffffffffffff begin\n"  # nobody's
    stream = BEGINNING + b"".join(
        frame(number, "begin 1700000000")
        + pieces[number]
        + frame(number, f"end {number} {len(results[number])} 0 1700000001")
        + results[number]
        + frame(number, "done")
        for number in range(3)
    )
    found = batched(tmp_path)
    reading = Output(TOKEN, found, is_batch=True)
    for _ in range(8):
        if draw.random() < 0.5:
            found = batched(tmp_path)
            reading = Output(TOKEN, found, is_batch=True)
        feed_some(reading.reader(), stream, draw)
    reading.reader().feed(stream)
    reading.splitter.finish(marker_is_due=True)
    for number, each in enumerate(found):
        assert each.log_path.read_bytes() == b"earlier\n" + pieces[number]
        assert (each.result, each.exit_code, each.is_done) == (results[number], number, True)
        assert each.has_whole_result
        assert each.begun_at is not None
        assert each.begun_at.timestamp() == 1700000000


def test_what_an_attempt_of_a_batch_has_used(tmp_path: Path) -> None:
    """It is the difference of what the container has used; the most memory is its own if it was more than before."""
    used = ["0m0.010s 0m0.000s 0m0.000s 0m0.000s", "0m0.010s 0m0.010s 1m0.500s 0m0.250s", "of another shell"]
    stream = BEGINNING
    for number, (before, after) in enumerate([(used[0], f"{used[1]} 4096"), (used[1], used[1]), (used[1], used[2])]):
        stream += frame(number, f"begin 1 {before}") + frame(number, f"end 0 0 0 2 {after}") + frame(number, "done")
    found = batched(tmp_path)
    Output(TOKEN, found, is_batch=True).reader().feed(stream)
    assert all(each.is_done for each in found)
    assert [each.usage for each in found] == [Usage(cpu_seconds=60.76, max_memory=4096), Usage(cpu_seconds=0), None]


def test_the_beginning_of_a_batch_was_thrown_away(tmp_path: Path) -> None:
    """What has ended unseen has no end; the log of the one that is read on says that something is missing."""
    found = batched(tmp_path)
    output = Output(TOKEN, found, is_batch=True)
    there = [frame(1, "end 0 0 0 1"), frame(1, "done"), frame(2, "begin 1"), b"two\n"]
    output.continue_in(b"the last of it\n" + b"".join(there))
    output.reader().feed(b"the last of it\n" + b"".join(there))
    output.splitter.finish(marker_is_due=False)
    first, second, third = found
    assert (first.exit_code, second.exit_code, second.is_done, third.is_done) == (None, 0, True, False)
    assert first.log_path.read_bytes() == b"earlier\n"
    assert b"Output is missing here" in second.log_path.read_bytes()
    assert third.log_path.read_bytes() == b"earlier\ntwo\n"


def test_a_batch_and_a_full_disk(tmp_path: Path) -> None:
    """What could not be written is written with what comes next, and stands there once."""
    found = batched(tmp_path)
    found[0].log_path.rename(tmp_path / "aside")
    output = Output(TOKEN, found, is_batch=True)
    stream = BEGINNING + frame(0, "begin 1") + b"text\n" + frame(0, "end 0 0 0 2") + frame(0, "done") + frame(1, "left")
    with pytest.raises(OSError, match="No such file"):
        output.reader().feed(stream[:100])
    (tmp_path / "aside").rename(found[0].log_path)
    output.reader().feed(stream)
    assert found[0].log_path.read_bytes() == b"earlier\ntext\n"
    assert (found[0].is_done, output.splitter.begun) == (True, 1)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0\n", Message(0)),
        ("3\n", Message(3)),
        ("2 143 0 1700000000\n", Message(2, 143, 0, datetime.fromtimestamp(1700000000, UTC))),
        ('1 0 2 1700000000\n"x', Message(1, 0, 2, datetime.fromtimestamp(1700000000, UTC), b'"x')),
        ("", None),
        ("OCI runtime create failed", None),
        ("2 0 0 1700000000 1\n", Message(2, 0, 0, datetime.fromtimestamp(1700000000, UTC), was_signalled=True)),
        ("1 2 3 4 5 6", None),
    ],
)
def test_how_far_a_container_has_come(text: str, found: Message | None) -> None:
    assert read_message(text) == found


def done(number: int, code: int = 0, got_sigterm: int = 0) -> bytes:
    return frame(number, "begin 1") + frame(number, f"end {code} 0 {got_sigterm} 2") + frame(number, "done")


ENDED, LOST, LEFT = (0, None), (None, "lost"), "left"  # as Manager.ends has them


def batch(attempts: list[BatchedAttempt], directory: Path) -> Pod:
    """A Pod that runs several attempts, all of which the manager knows."""
    for number, each in enumerate(attempts):
        each.attempt = Attempt("j", each.task_id, 1, number, "kubernetes")
    return Pod("j", TOKEN, POD, directory / "handle", attempts, bare_manifest=POD)


@pytest.mark.parametrize(
    ("output", "exit_code", "message", "found"),
    [
        (done(0) + done(1, 3) + done(2), 0, "3 0 0 2\n", [ENDED, (3, None), ENDED]),
        (done(0), 0, "", [ENDED, LOST, LOST]),  # that the container ended well says nothing of them
        (done(0), 0, "3 0 0 2\n", [ENDED, LOST, ENDED]),
        (done(0), 0, '3 0 5 2\n"abc"', [ENDED, LOST, ENDED]),
        (done(0), 0, "3 0 9999 2\n", [ENDED, LOST, LOST]),  # its result was long, and is lost
        (done(0), 137, "2\n", [ENDED, (137, None), LEFT]),
        (done(0) + frame(1, "begin 1"), 143, "1 0 0 2", [ENDED, LEFT, LEFT]),
        (done(0) + frame(1, "left"), None, "", [ENDED, LEFT, LEFT]),
        (done(0) + frame(1, "begin 1") + frame(1, "left"), None, "", [ENDED, LEFT, LEFT]),
        (done(0) + done(1, 143, 1) + frame(2, "left"), 143, "", [ENDED, (143, "lost"), LEFT]),
        (done(0) + done(1, 143, 1) + frame(2, "left"), 143, "DeadlineExceeded", [ENDED, (143, "timeout"), LEFT]),
        # A task that gets SIGTERM may save what it has, and end with 0.
        (done(0) + done(1, 0, 1) + frame(2, "left"), 143, "", [ENDED, (0, "lost"), LEFT]),
        (done(0) + done(1) + done(2, 0, 1), 0, "DeadlineExceeded", [ENDED, ENDED, (0, "timeout")]),
        (done(0), 143, "2 0 0 2 1\n", [ENDED, (0, "lost"), LEFT]),
        (done(0), 143, "2 0 0 2 0\n", [ENDED, ENDED, LEFT]),
        (done(0), None, "", [ENDED, LOST, LOST]),
        (b"", 143, "0", [(143, None)] * 3),
        (b"", 0, "0", [LOST] * 3),
    ],
)
def test_how_a_batch_has_ended(
    tmp_path: Path, output: bytes, exit_code: int | None, message: str, found: list[object]
) -> None:
    """What is not known to have ended well is not said to, and what may have begun is not begun again."""
    manager = Manager()
    pod = batch(batched(tmp_path), tmp_path)
    pod.output.take(output)
    ending = (
        pod_status.Ending(exit_code, "Completed" if exit_code == 0 else "Error", message, None)
        if exit_code is not None
        else None
    )
    reason = message if message == "DeadlineExceeded" else ""
    pod.status = pod_status.Status("u", "n1", "Running", ending=ending, reason=reason)
    pod.is_created = pod.is_gone = True
    with controlling(manager) as controller:
        controller.reconcile(pod)
        wait_until(lambda: len(manager.ends) == 3, what="all ends are emitted")
    assert [manager.ends[f"t{number}"] for number in range(3)] == found
    assert manager.persisted.get("t2") == (b'"abc"' if '"abc"' in message else None)
    assert "Started" not in {name for name, _ in manager.events}, "a limit of time would be over at once"


def test_a_task_of_a_batch_that_signals_its_own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container has been told to end, but nothing has ended its Pod: its exit code counts, and the rest is run."""

    async def is_read(reader: LogReader) -> None:
        """All of the output has come."""

    monkeypatch.setattr(controllers, "END_SEEN_SECONDS", 0.1)
    monkeypatch.setattr(LogReader, "read_to_the_end", is_read)
    pod = batch(batched(tmp_path), tmp_path)
    pod.output.take(done(0, 143, 1) + frame(1, "left"))
    pod.status = pod_status.Status("u", "n1", "Failed", ending=pod_status.Ending(143, "Error", "", None))
    assert ends_of(pod, lambda: None) == {"t0": (143, None), "t1": "left", "t2": "left"}


def test_what_has_ended_is_not_said_to_begin_however_long_it_takes_to_emit(tmp_path: Path) -> None:
    """Its limit of time would be over at once, and what has completed be killed."""
    manager = Manager()
    manager.full_for = "t1", time.monotonic() + 1.5
    pod = batch(batched(tmp_path), tmp_path)
    pod.output.take(done(0) + frame(1, "begin 1"))
    pod.status = pod_status.Status("u", "n1", "Failed", ending=pod_status.Ending(137, "Error", "2\n", None))
    pod.is_created = pod.is_gone = True
    with controlling(manager) as controller:
        controller.reconcile(pod)
        wait_until(lambda: ("Left", "t2") in manager.events, what="all is emitted")
    found = [event for event in manager.events if event[0] != "Located"]
    assert found == [("Ended", "t0"), ("Ended", "t1"), ("Left", "t2")]


@pytest.mark.parametrize(
    ("output", "message", "found"),
    [
        (b"", "end 0\n", False),
        (b"all of it", "end 0\n", False),
        (b"all of it" + MARKER, "end 0\n", True),
        (b"all of it" + MARKER, 'end 3\n"a"', True),
        (b"all of it" + MARKER, 'end 3 0\n"a"', True),
        (b"all of it" + MARKER, 'end 3 0\n"', False),  # its node has cut the message
        (b"all of it" + MARKER + b'"a"', 'end 3 0\n"', True),
        (b"all of it" + MARKER + b"1" * 5_000, "end 6000\n", False),
        (b"all of it" + MARKER + b"1" * 6_000, "end 6000\n", True),
        (b"", "spawn command x was not found in its Pod\n", False),
    ],
)
def test_whether_there_is_more_to_read(tmp_path: Path, output: bytes, message: str, found: bool) -> None:
    assert has_all(pod_of_one(tmp_path, message, output=output)) is found


@pytest.mark.parametrize(
    ("output", "message", "found"),
    [
        (MARKER, 'end 3 0\n"a"', (b'"a"', True)),
        (MARKER + b'"a"', 'end 3 0\n"', (b'"a"', True)),
        (MARKER + b'"\xff"', 'end 3 0\n"\N{REPLACEMENT CHARACTER}"', (b'"\xff"', True)),
        (MARKER, 'end 3 0\n"', (b"", False)),  # as long as the output has not come
    ],
)
def test_a_result_that_its_node_has_cut(
    tmp_path: Path, output: bytes, message: str, found: tuple[bytes | None, bool]
) -> None:
    """A kubelet keeps 12,288 bytes of the messages of a Pod, divided by its containers."""
    assert read_result(pod_of_one(tmp_path, message, output=output))[1:] == found


# -- how an attempt has ended ----------------------------------------------------------------------------------

BY_ITSELF, TOLD, UNKNOWN = "end 0 0\n", "end 0 1\n", "end 0\n"  # what a container says; the last as it did once


def pod_of_one(
    directory: Path, message: str, *, code: int = 0, output: bytes = MARKER, pod: dict[str, Any] | None = None
) -> Pod:
    """A Pod whose container has ended."""
    (directory / "log").touch()
    attempt = BatchedAttempt(Attempt("j", "a", 1, 0, "kubernetes"), TOKEN, "a", log_path=directory / "log")
    found = Pod("j", TOKEN, pod or POD, directory / "handle", [attempt], is_created=True)
    started_at = datetime.now(UTC)
    ending = pod_status.Ending(code, "Completed" if code == 0 else "Error", message, None)
    found.status = pod_status.Status("u", "n1", "Failed", started_at=started_at, ending=ending)
    found.output.take(output)
    return found


def ends_of(pod: Pod, meanwhile: Callable[[], None]) -> dict[str, object]:
    """How its attempts end: exit code and reason of each, or that it is left to another Pod.

    :param meanwhile: called in the controller's thread when the end of the Pod is known.
    """
    manager = Manager()
    pod.is_created = True
    with controlling(manager) as controller:
        controller.reconcile(pod)
        if not pod.is_batch:
            wait_until(lambda: pod.has_started, what="its end is known")
        controller.call(meanwhile)
        wait_until(lambda: len(manager.ends) == len(pod.attempts), what="all ends are emitted")
    return manager.ends


DISRUPTED = {"is_disrupted": "DeletionByTaintManager: node.kubernetes.io/unreachable"}
DEADLINE, EVICTED, SHUTDOWN = ({"reason": word} for word in ("DeadlineExceeded", "Evicted", "Terminated"))
BEING_DELETED = {"is_being_deleted": True}


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("message", [TOLD, UNKNOWN])
@pytest.mark.parametrize(
    ("status", "reason"),
    [(DEADLINE, "timeout"), (EVICTED, "lost"), (SHUTDOWN, "lost"), (DISRUPTED, "lost"), (BEING_DELETED, "lost")],
)
def test_what_kubernetes_has_ended_has_not_completed(
    tmp_path: Path, code: int, message: str, status: dict[str, Any], reason: str
) -> None:
    """Whatever its exit code: a task that gets SIGTERM may save what it has, and end with 0."""
    pod = pod_of_one(tmp_path, message, code=code)
    assert pod.status is not None
    ended = last_end(pod, pod.status._replace(**status), was_gone=False)
    assert (ended.exit_code, ended.reason) == (code, reason)


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("status", [DEADLINE, EVICTED, DISRUPTED, BEING_DELETED, {}])
def test_what_had_ended_by_itself_before_its_pod_was_ended(tmp_path: Path, code: int, status: dict[str, Any]) -> None:
    pod = pod_of_one(tmp_path, BY_ITSELF, code=code)
    assert pod.status is not None
    ended = last_end(pod, pod.status._replace(**status), was_gone=True)
    assert (ended.exit_code, ended.reason) == (code, None)


def test_a_hook_may_have_ended_it(tmp_path: Path) -> None:
    """Before its container gets SIGTERM, which is too late then."""
    hook = {"preStop": {"exec": {"command": ["touch", "/stop"]}}}
    pod = pod_of_one(tmp_path, BY_ITSELF, pod={**POD, "spec": {"containers": [{"name": "task", "lifecycle": hook}]}})
    assert pod.status is not None
    assert last_end(pod, pod.status._replace(is_being_deleted=True), was_gone=False).reason == "lost"
    assert last_end(pod, pod.status, was_gone=False).reason is None


def test_a_probe_that_has_failed(tmp_path: Path) -> None:
    """A kubelet ends a container then, and its Pod has ended well if that ends with 0."""
    spec = {"containers": [{"name": "task", "livenessProbe": {"exec": {"command": ["false"]}}}]}
    pod = pod_of_one(tmp_path, TOLD, pod={**POD, "spec": spec})
    assert last_end(pod, pod.status, was_gone=False).reason == "lost"
    pod = pod_of_one(tmp_path, BY_ITSELF, pod={**POD, "spec": spec})
    assert last_end(pod, pod.status, was_gone=False).reason is None


def test_memory_that_a_child_of_a_task_that_completed_did_not_get(tmp_path: Path) -> None:
    pod = pod_of_one(tmp_path, BY_ITSELF)
    assert pod.status is not None
    assert pod.status.ending is not None
    status = pod.status._replace(ending=pod.status.ending._replace(reason="OOMKilled"))
    for message in (BY_ITSELF, UNKNOWN):
        status = status._replace(ending=status.ending and status.ending._replace(message=message))
        assert last_end(pod, status, was_gone=False).reason is None


@pytest.mark.parametrize(("code", "message"), [(0, TOLD), (143, TOLD), (137, "")])
def test_its_node_reports_the_reason_of_its_end_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    monkeypatch.setattr(controllers, "END_SEEN_SECONDS", PATIENCE)
    pod = pod_of_one(tmp_path, message, code=code)

    def report_reason() -> None:
        assert pod.status is not None
        pod.status = pod.status._replace(reason="Evicted", message="The node was low on resource: memory.")
        pod.changed.set()

    assert ends_of(pod, report_reason) == {"a": (code, "lost")}


@pytest.mark.parametrize("code", [0, 143])
def test_a_task_that_signals_its_own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The container has been told to end, but nothing has ended its Pod: the exit code counts."""
    monkeypatch.setattr(controllers, "END_SEEN_SECONDS", 0.1)
    assert ends_of(pod_of_one(tmp_path, TOLD, code=code), lambda: None) == {"a": (code, None)}


def test_the_beginning_was_thrown_away_while_there_was_no_manager(tmp_path: Path) -> None:
    """What runs is taken to be the first that is not known to have ended, so that its limits of time count."""
    found = batched(tmp_path)
    for number in (1, 2):
        found[number].attempt = Attempt("j", f"t{number}", 1, number, "kubernetes")
    output = Output(TOKEN, found, is_batch=True)
    there = b"more of it\n" + frame(1, "end 0 0 0 1") + frame(1, "done")
    with pytest.raises(OutOfStepError):
        output.reader().feed(there)
    output.continue_in(there)
    output.reader().feed(there)
    assert found[1].log_path.read_bytes().endswith(b"could be read.\nmore of it\n")
    assert (found[1].is_done, found[2].begun_at) == (True, None)


# -- handles ---------------------------------------------------------------------------------------------------


def written(store: JobStore) -> tuple[Handles, list[Attempt], Pod]:
    """Two attempts that share a Pod."""
    store.submit("j", [{"command": "true", "id": "t0"}, {"command": "true", "id": "t1"}])
    JobWriter(store).prepare_job_directory(store.get_job("j"))
    handles = Handles(store, 1)
    found = [
        BatchedAttempt(
            None,
            f"{number:016x}",
            task_id=f"t{number}",
            log_path=store.paths("j").log(f"t{number}"),
            text="start '' true",
        )
        for number in range(2)
    ]
    attempts = [Attempt("j", each.task_id, 1, number, "kubernetes") for number, each in enumerate(found)]
    for each in found:
        handles.write_attempt("j", each, found[0])
    return handles, attempts, handles.write_batch("j", manifest({"image": "i"}), found)


def test_a_pod_that_was_without_a_handle_was_never_created(store: JobStore) -> None:
    handles, attempts, pod = written(store)
    found = handles.read(attempts[1], {})
    assert found is not None
    assert found[0].manifest == pod.manifest
    assert (found[0].is_created, found[1].token) == (False, pod.attempts[1].token)
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.paths("j").runs.iterdir()} == {0o600}
    pod.handle_path.unlink()
    assert handles.read(attempts[1], {}) is None
    assert not handles.path(attempts[1]).exists()


def test_a_pod_with_a_record_was_created(store: JobStore) -> None:
    handles, attempts, pod = written(store)
    store.paths("j").record("t0", 1).touch()
    found = handles.read(attempts[1], {})
    assert found is not None
    assert found[0].is_created
    handles.forget(attempts[0])
    assert pod.handle_path.exists()
    store.paths("j").record("t1", 1).touch()
    handles.forget(attempts[1])
    assert [path.name for path in store.paths("j").runs.iterdir() if ".on-" in path.name] == []


def test_a_handle_that_cannot_be_read(store: JobStore) -> None:
    """It does not mean that nothing runs."""
    handles, attempts, pod = written(store)
    pod.handle_path.unlink()
    pod.handle_path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        handles.read(attempts[0], {})
    assert handles.path(attempts[0]).exists()


def test_handles_of_the_version_before(store: JobStore) -> None:
    """Its words are in them, and its Pods go on."""
    store.submit("j", [{"command": "true", "id": name} for name in ("alone", "t0", "t1")])
    JobWriter(store).prepare_job_directory(store.get_job("j"))
    paths = store.paths("j")
    token = "0" * 16
    pod = manifest({"image": "i"})
    tasks = [
        {"task_id": f"t{number}", "number": 1, "token": f"{number:016x}", "log_start": 0, "text": "start '' true"}
        for number in range(2)
    ]
    written = {
        ("alone", "kubernetes"): {"token": token, "log_start": 3, "created": True, "pod": pod},
        ("t0", "kubernetes"): {"token": tasks[0]["token"], "bundle": ["t0", 1]},
        ("t1", "kubernetes"): {"token": tasks[1]["token"], "bundle": ["t0", 1]},
        ("t0", "kubernetes-bundle"): {"created": True, "pod": pod, "parts": tasks},
    }
    for (name, engine), content in written.items():
        paths.handle(name, 1, engine).write_text(json.dumps(content))
    handles = Handles(store, 1)
    for name, is_batch in (("alone", False), ("t1", True)):
        found = handles.read(Attempt("j", name, 1, 0, "kubernetes"), {})
        assert found is not None
        assert (found[0].is_created, found[0].is_adopted, found[0].is_batch) == (True, True, is_batch)
        assert found[1].token == written[name, "kubernetes"]["token"]
        assert found[1].log_path == paths.log(name)


# -- the first process of a container --------------------------------------------------------------------------

SHELLS = [
    shell for shell in ("dash", "bash --posix", "busybox sh", "ksh93", "mksh", "yash") if shutil.which(shell.split()[0])
]


def run_container(
    directory: Path, shell: str, line: str, number: int | None = None, *, cwd: str = "", before_wait: str = ":"
) -> tuple[int, str, bytes]:
    """What the first process of a container makes of a line of bash: its exit code, message, and output.

    :param number: a signal that it gets when the line has printed `ready`.
    :param cwd: that of the task.
    :param before_wait: what else it does when it is about to wait for the first time.
    """
    message = directory / "message"
    message.touch()
    environment = {
        "PATH": os.environ["PATH"],
        "AIR_EXECUTOR_RUN": TOKEN,
        "AIR_EXECUTOR_OUTPUT": f"{directory}/result",
        "CDPATH": f"{directory}/elsewhere",
    }
    script = manifests.SCRIPT.replace(manifests.MESSAGE_PATH, str(message))
    assert "\nwait $ae_child\n" in script
    script = script.replace("\nwait $ae_child\n", "\nbefore_wait\nwait $ae_child\n")
    script = f"before_wait() {{ before_wait() {{ :; }}\n{before_wait}\n}}\n{script}"
    words = [*shlex.split(shell), "-c", script, "air-executor", cwd, "bash", "-c", line]
    with subprocess.Popen(
        words, cwd=directory, env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as first:
        assert first.stdout is not None
        try:
            if number is not None:
                while first.stdout.readline() != b"ready\n":
                    pass
                os.kill(first.pid, number)
            output, _ = first.communicate(timeout=PATIENCE)
        except BaseException:
            os.killpg(first.pid, signal.SIGKILL)
            raise
    return first.returncode, message.read_text(), output


def without_usage(message: str) -> str:
    """What a container says, but for the numbers."""
    return re.sub(r"(?m)^(end \d+ \d+)( \d+m[\d.]+s){4}( \d+)?$", r"\1", message)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, 37])
@pytest.mark.parametrize("shell", SHELLS)
def test_an_exit_code_after_sigterm(tmp_path: Path, shell: str, number: int) -> None:
    """It is that of the task, which gets SIGTERM also if its image has another STOPSIGNAL; 37 is SIGRTMIN+3."""
    line = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1 & wait; done"
    for _ in range(10):
        code, message, output = run_container(tmp_path, shell, line, number)
        assert (code, without_usage(message)) == (3, "end 0 1\n")
        assert output == b"told\n" + MARKER


@pytest.mark.parametrize("number", ["TERM", "QUIT", "HUP"])
@pytest.mark.parametrize("code", [3, 127, 143])
@pytest.mark.parametrize("shell", SHELLS)
def test_a_signal_in_the_moment_before_it_waits(tmp_path: Path, shell: str, code: int, number: str) -> None:
    """The task ends before sh waits, and sh knows how only once."""
    line = f"trap 'exit {code}' TERM; touch trapped; while [ ! -e go ]; do sleep 0.1 & wait; done; exit {code}"
    signalled = f"while [ ! -e trapped ]; do sleep 0.1; done; kill -{number} $$; touch go; sleep 0.5"
    told = int(number != "HUP")
    found, message, _ = run_container(tmp_path, shell, line, before_wait=signalled)
    assert (found, without_usage(message)) == (code, f"end 0 {told}\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_signal_that_ends_the_task_is_128_and_its_number(tmp_path: Path, shell: str) -> None:
    code, message, _ = run_container(tmp_path, shell, "kill -9 $$")
    assert (code, without_usage(message)) == (137, "end 0 0\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_task_that_ends_by_127_after_a_signal_has_interrupted_the_wait(tmp_path: Path, shell: str) -> None:
    line = "trap 'sleep 0.5; exit 127' TERM; echo ready; while :; do sleep 0.1 & wait; done"
    code, message, _ = run_container(tmp_path, shell, line, signal.SIGTERM)
    assert (code, without_usage(message)) == (127, "end 0 1\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_it_does_without_read(tmp_path: Path, shell: str) -> None:
    """Once a trap has run, that of busybox 1.38.0 does not return."""
    code, message, _ = run_container(tmp_path, shell, "exit 3", before_wait="read() { kill -9 $$; }")
    assert (code, without_usage(message)) == (3, "end 0 0\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_result_that_nothing_can_cut(tmp_path: Path, shell: str) -> None:
    """A short one is in the message, and after the output too."""
    code, message, output = run_container(tmp_path, shell, "echo text; echo '[1]' > $AIR_EXECUTOR_OUTPUT; exit 4")
    assert (code, without_usage(message)) == (4, "end 4 0\n[1]\n")
    assert output == BEGINNING + b"text\n" + MARKER + b"[1]\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_what_was_used_is_in_the_message(tmp_path: Path, shell: str) -> None:
    """The processor time of the command; the memory only where the control group is that of the container."""
    busy = shlex.join([sys.executable, "-c", "import time\nwhile time.process_time() < 0.4: pass"])
    code, message, _ = run_container(tmp_path, shell, f"{busy}; exit 3")
    pod = pod_of_one(tmp_path, message, code=code)
    used = last_end(pod, pod.status, was_gone=False).usage
    assert used is not None
    assert 0.3 <= used.cpu_seconds < 60


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("end 0 0 0m0.010s 0m0.000s 1m0.500s 0m0.250s 4096\n", Usage(cpu_seconds=60.76, max_memory=4096)),
        ("end 2 0 0m0.000s 0m0.000s 0m1.000s 0m0.000s\n[]", Usage(cpu_seconds=1)),
        ("end 0 0 0m0,010s 0m0,000s 0m0,500s 0m0,000s\n", Usage(cpu_seconds=0.51)),
        ("end 0 0\n", None),  # as it was before
        ("end 0 0 a b c d e\n", None),
        ("spawn 1 2 3 4 5 6 7\n", None),
    ],
)
def test_what_it_has_used(tmp_path: Path, message: str, found: Usage | None) -> None:
    pod = pod_of_one(tmp_path, message)
    assert last_end(pod, pod.status, was_gone=False).usage == found


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["-", "-x", "a"])
def test_a_relative_directory_is_the_one_of_that_name(tmp_path: Path, name: str, shell: str) -> None:
    """To cd, a dash is where it was before or begins an option; other names are looked for in CDPATH."""
    for place in (tmp_path / name, tmp_path / "elsewhere" / name):
        place.mkdir(parents=True)
    code, _, output = run_container(tmp_path, shell, "pwd", cwd=name)
    assert code == 0
    assert output == BEGINNING + f"{tmp_path}/{name}\n".encode() + MARKER


# -- Pods ------------------------------------------------------------------------------------------------------


def manifest(options: dict[str, Any], **task: Any) -> dict[str, Any]:
    attempt = Attempt("Jöb_1" * 10, "task with spaces/" * 3, 2, 0, "kubernetes")
    installation = Installation("o", "team")
    return make_manifest(attempt, Task(command="echo", **task), KubernetesOptions(**options), installation, TOKEN)


def test_a_template_is_kept() -> None:
    template = {
        "metadata": {"labels": {"a": "1"}, "namespace": "other", "generateName": "x"},
        "spec": {
            "restartPolicy": "Always",
            "containers": [
                {"name": "sidecar", "image": "s"},
                {"name": "task", "image": "t", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]},
            ],
            "volumes": [{"name": "v"}],
        },
    }
    before = json.dumps(template)
    pod = manifest({"pod_template": template, "labels": {"b": "2"}}, env={"B": "$(A) costs 5$"}, args=["$(B)"])
    assert json.dumps(template) == before
    sidecar, task = pod["spec"]["containers"]
    assert sidecar == {"name": "sidecar", "image": "s"}
    env = {item["name"]: item["value"] for item in task["env"]}
    assert (env["A"], env["B"]) == ("1", "$$(A) costs 5$$")
    assert task["args"] == ["", "echo", "$$(B)"]
    assert pod["spec"]["restartPolicy"] == "Never"
    assert {"a": "1", "b": "2", "air-executor/owner": "o"}.items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["namespace"] == "other"
    assert "generateName" not in pod["metadata"]
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["v"]


def test_names_and_labels_are_valid_whatever_the_job_is_called() -> None:
    metadata = manifest({"image": "x"})["metadata"]
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", metadata["name"]), metadata["name"]
    for value in metadata["labels"].values():
        assert re.fullmatch(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?", value), value
    assert metadata["annotations"]["air-executor/job"].startswith("Jöb")


def test_there_is_no_image() -> None:
    with pytest.raises(SpawnError, match=r"runners\.kubernetes\.image"):
        manifest({})


def test_options_of_a_task_over_those_of_the_settings() -> None:
    own = KubernetesOptions(image="mine", labels={"a": "2"}, volumes=[{"name": "v", "mountPath": "/own"}])
    given = {"a": "1", "b": "1"}
    volumes = [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w"}]
    both = own.over(KubernetesOptions(image="theirs", namespace="n", labels=given, volumes=volumes))
    assert (both.image, both.namespace, both.labels) == ("mine", "n", {"a": "2", "b": "1"})
    assert [volume["mountPath"] for volume in both.volumes or ()] == ["/w", "/own"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("2", 2), (3, 3), ("64Mi", 64 << 20), ("1k", 1000), ("1e3", 1000), ("1.5Gi", 1.5 * (1 << 30))],
)
def test_quantities(text: Any, value: float) -> None:
    assert pod_status.quantity(text) == pytest.approx(value)
    assert pod_status.quantity("a lot") == math.inf


@pytest.mark.parametrize(
    ("requested", "used", "limited", "may_pass"),
    [
        ("cpu=2", "cpu=0", "cpu=1", False),
        ("cpu=500m", "cpu=600m", "cpu=1", True),
        ("cpu=1", "cpu=1", "cpu=1", True),
        ("pods=1", "pods=0", "pods=0", False),
        (
            "requests.cpu=1,requests.memory=4Gi",
            "requests.cpu=4,requests.memory=0",
            "requests.cpu=4,requests.memory=1Gi",
            False,
        ),
        (
            "requests.cpu=1,requests.memory=1Gi",
            "requests.cpu=4,requests.memory=1Gi",
            "requests.cpu=4,requests.memory=1Gi",
            True,
        ),
        ("requests.nvidia.com/gpu=2", "requests.nvidia.com/gpu=0", "requests.nvidia.com/gpu=1", False),
        ("cpu=a lot", "cpu=0", "cpu=1", True),
        ("cpu=1", "cpu=0", "cpu=none", True),
    ],
)
def test_a_quota_that_others_use_up_is_waited_for_and_one_that_is_too_small_is_not(
    requested: str, used: str, limited: str, may_pass: bool
) -> None:
    said = f'pods "p" is forbidden: exceeded quota: q, requested: {requested}, used: {used}, limited: {limited}'
    assert ApiError(403, said, "Forbidden").may_pass is may_pass


def test_whether_a_node_could() -> None:
    pod = manifest({"image": "x", "node_selector": {"disk": "ssd"}}, resources={"cpus": 2, "memory": "1Gi"})
    small = {
        "metadata": {"name": "small", "labels": {"disk": "ssd"}},
        "status": {"allocatable": {"cpu": "1500m", "memory": "4Gi"}},
    }
    other = {"metadata": {"name": "other"}, "status": {"allocatable": {"cpu": "8", "memory": "8Gi"}}}
    assert start_checks.no_node_could(pod, [small, other]) == "small lacks cpu (2); other lacks disk=ssd"
    other["metadata"]["labels"] = {"disk": "ssd"}  # type: ignore[index]
    assert start_checks.no_node_could(pod, [small, other]) == ""


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        (
            {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "m"},
            ("", "SchedulingGated: m"),
        ),
        ({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "m"}, ("m", "m")),
    ],
)
def test_what_it_waits_for(condition: dict[str, str], found: tuple[str, str]) -> None:
    """A Pod that is held by scheduling gates is not one that finds no node."""
    status = pod_status.read_status({"status": {"phase": "Pending", "conditions": [condition]}}, "task")
    assert (status.unschedulable, status.waits_for) == found


def test_a_disruption_without_a_message() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    assert (
        pod_status.read_status({"status": {"conditions": [condition]}}, "task").is_disrupted == "PreemptionByScheduler"
    )


def test_a_node_that_does_not_answer() -> None:
    """Its Pods go on running, as far as anybody knows: only their condition Ready says so."""
    container = {"name": "task", "ready": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    pod: dict[str, Any] = {
        "metadata": {"uid": "u"},
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
            "containerStatuses": [container],
        },
    }
    assert not pod_status.read_status(pod, "task").is_cut_off
    pod["status"]["conditions"][0]["status"] = "False"
    status = pod_status.read_status(pod, "task")
    assert (status.is_cut_off, status.is_over, status.node) == (True, False, "n1")
    pod["status"]["conditions"][1]["status"] = "False"  # a sidecar is not ready
    assert not pod_status.read_status(pod, "task").is_cut_off
