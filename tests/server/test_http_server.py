"""The HTTP server: its connections, their limits, its certificates, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_air_executor.exceptions import ManagerError
from airflow_provider_air_executor.server import connections, http_server
from airflow_provider_air_executor.server.http_server import Server
from airflow_provider_air_executor.server.listener import Listener, open_listeners, parse_address
from airflow_provider_air_executor.server.tls import TlsFiles
from tests.support.certificates import Authority
from tests.support.waiting import PATIENCE, wait_until

Serving = Callable[..., list[Listener]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Says by which listener a request came, and sends events without end."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    state = scope["state"]
    if scope["path"] == "/trust":
        state["place"].trust()
    if scope["path"] == "/fault":
        raise RuntimeError("a fault")
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/body":
        length, more = 0, True
        while more:
            message = await receive()
            length, more = length + len(message.get("body", b"")), message.get("more_body", False)
        await send({"type": "http.response.body", "body": str(length).encode()})
        return
    while scope["path"] == "/events":
        await send({"type": "http.response.body", "body": b": here\n\n", "more_body": True})
        await asyncio.sleep(0.05)
    client = scope["client"][0] if scope["client"] else "nobody"
    kind = "unix" if state["listener"].is_unix else scope["scheme"]
    await send({"type": "http.response.body", "body": f"{kind} {client}".encode()})


@pytest.fixture
def serving() -> Iterator[Serving]:
    """Let the application be served at some addresses until the test is over."""
    with contextlib.ExitStack() as stack:

        def serve(*addresses: str, tls_files: TlsFiles | None = None, **more: Any) -> list[Listener]:
            listeners = open_listeners([parse_address(each) for each in addresses], tls_files=tls_files)
            server = Server(app, listeners, **more)
            thread = threading.Thread(target=server.run)
            thread.start()
            stack.callback(thread.join, PATIENCE)
            stack.callback(server.stop)
            serve.server, serve.thread = server, thread  # type: ignore[attr-defined]
            return listeners

        yield serve


def get(listener: Listener, path: str = "/", **more: Any) -> httpx.Response:
    return httpx.get(f"{listener}{path}", trust_env=False, **more)


def connected(listener: Listener) -> socket.socket:
    return socket.create_connection(listener.socket.getsockname()[:2], PATIENCE)


def received(connection: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            found += data
    return found


def test_it_answers_by_tcp_and_by_a_unix_socket(serving: Serving, tmp_path: Path):
    tcp, _ = serving("127.0.0.1:0", f"{tmp_path}/s")
    answer = get(tcp)
    assert answer.text == "http 127.0.0.1"
    assert answer.headers["server"] == "air-executor"
    assert "date" in answer.headers
    with httpx.Client(transport=httpx.HTTPTransport(uds=f"{tmp_path}/s")) as client:
        assert client.get("http://unix/").text == "unix nobody"


def test_it_answers_by_ipv6(serving: Serving):
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        [listener] = serving("[::1]:0")
    except OSError:
        pytest.skip("no IPv6 here")
    assert get(listener).text == "http ::1"


def test_it_answers_by_tls_of_1_2_or_newer(serving: Serving, tmp_path: Path):
    authority = Authority(tmp_path)
    [listener] = serving("127.0.0.1:0", tls_files=authority.issue())
    context = ssl.create_default_context(cafile=str(authority.path))
    assert get(listener, verify=context).text == "https 127.0.0.1"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        get(listener)
    old = ssl.create_default_context(cafile=str(authority.path))
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError, match="PROTOCOL_VERSION|UNEXPECTED_EOF"):
        get(listener, verify=old)
    with connected(listener) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert b"unix" not in received(connection), "plain text is not answered"


def test_clients_need_a_certificate_if_that_is_wanted(serving: Serving, tmp_path: Path):
    authority = Authority(tmp_path)
    other = Authority(tmp_path / "other") if (tmp_path / "other").mkdir() is None else authority
    [listener] = serving("127.0.0.1:0", tls_files=authority.issue()._replace(client_ca=authority.path))

    def asked(files: TlsFiles | None) -> str:
        context = ssl.create_default_context(cafile=str(authority.path))
        if files is not None:
            context.load_cert_chain(files.certificate, files.key)
        return get(listener, verify=context).text

    assert asked(authority.issue("client", is_client=True)) == "https 127.0.0.1"
    for wrong in (None, other.issue("client", is_client=True), authority.issue("old", days=-1, is_client=True)):
        with pytest.raises(httpx.TransportError):
            asked(wrong)


def test_a_new_certificate_holds_for_new_connections(serving: Serving, tmp_path: Path):
    (tmp_path / "new").mkdir()
    authority, new = Authority(tmp_path), Authority(tmp_path / "new")
    files = authority.issue()
    [listener] = serving("127.0.0.1:0", tls_files=files)
    before = ssl.create_default_context(cafile=str(authority.path))
    after = ssl.create_default_context(cafile=str(new.path))
    with httpx.Client(verify=before, trust_env=False) as client:
        assert client.get(str(listener)).text == "https 127.0.0.1"
        issued = new.issue()
        os.replace(issued.certificate, files.certificate)
        serving.server.reload()  # type: ignore[attr-defined]
        assert get(listener, verify=before).text == "https 127.0.0.1", "the key does not belong to it yet"
        os.replace(issued.key, files.key)
        serving.server.reload()  # type: ignore[attr-defined]
        assert get(listener, verify=after).text == "https 127.0.0.1"
        assert client.get(str(listener)).text == "https 127.0.0.1", "its connection has stayed"


def test_the_header_of_a_request_must_arrive_in_time(serving: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.2)
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as silent, connected(listener) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\n")
        assert received(silent) == b""
        assert received(slow) == b""
    with connected(listener) as again:
        again.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HT")
        assert received(again).count(b"200 OK") == 1, "also that of a second one"


def test_a_request_in_pieces_is_answered(serving: Serving):
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as connection:
        for byte in b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhallo":
            connection.sendall(bytes([byte]))
        assert received(connection).endswith(b"\r\n5\r\n0\r\n\r\n")


def test_an_answer_before_the_end_of_a_request_arrives(serving: Serving):
    """Most clients send all of a request before they read; a connection that breaks is an outage to them."""
    [listener] = serving("127.0.0.1:0")
    connection = http.client.HTTPConnection(*listener.socket.getsockname()[:2], timeout=PATIENCE)
    for _ in range(2):
        connection.request("POST", "/", body=b"x" * 20_000_000)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"http 127.0.0.1")
    connection.close()


def test_the_rest_of_an_answered_request_is_not_waited_for_without_end(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(connections, "REST_SECONDS", 0.2)
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nx")
        assert b"200 OK" in received(connection)


def test_tls_must_be_agreed_on_in_time(serving: Serving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(http_server, "HEADER_SECONDS", 0.2)
    [listener] = serving("127.0.0.1:0", tls_files=Authority(tmp_path).issue())
    with connected(listener) as silent:
        assert received(silent) == b""
    wait_until(lambda: serving.server._connections.count == 0, what="its place is free")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\xff\xfe\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(serving: Serving, request_: bytes, caplog: pytest.LogCaptureFixture):
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request_)
        assert received(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")
    assert get(listener).status_code == 200
    assert caplog.text == ""


def test_a_body_that_is_not_http_ends_the_connection_without_a_trace(
    serving: Serving, caplog: pytest.LogCaptureFixture
):
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as connection:
        connection.sendall(b"POST /body HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n")
        received(connection)
    assert get(listener).status_code == 200
    assert caplog.text == ""


def test_more_connections_than_there_may_be_are_told_so(serving: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(connections, "_MORE", 2)
    [listener] = serving("127.0.0.1:0")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=str(listener), trust_env=False)) for _ in range(3)]
        assert [client.get("/trust").status_code for client in clients] == [200] * 3
        answer = get(listener)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.headers["content-type"] == "application/problem+json"
        silent = [stack.enter_context(connected(listener)) for _ in range(2)]
        with connected(listener) as one_more:
            assert received(one_more) == b"", "it is closed without a word"
        assert [client.get("/").status_code for client in clients] == [200] * 3, "those that are there stay"
        for each in silent:
            each.close()
        clients[0].close()
        wait_until(lambda: get(listener).status_code == 200, what="there is room again")


def test_clients_with_a_token_are_not_driven_out(serving: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "MAX_STRANGERS", 5)
    [listener] = serving("127.0.0.1:0")
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(httpx.Client(base_url=str(listener), trust_env=False))
        assert known.get("/trust").status_code == 200
        strangers = [stack.enter_context(connected(listener)) for _ in range(30)]
        assert received(strangers[0]) == b"", "the oldest one is closed"
        assert get(listener).status_code == 200, "one more comes in"
        with connected(listener):
            assert known.get("/").status_code == 200


def test_a_client_that_reads_slowly_keeps_the_server_from_writing(serving: Serving):
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as connection:
        connection.sendall(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n")
        [protocol] = wait_until(lambda: list(serving.server._state.connections), what="it is connected")  # type: ignore[attr-defined]
        assert protocol.transport.get_write_buffer_limits()[1] == 64 * 1024


def test_the_end_does_not_wait_for_streams(serving: Serving):
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as stream, connected(listener) as idle:
        stream.sendall(b"GET /events HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n")
        idle.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert stream.recv(1)
        assert idle.recv(1)
        serving.server.stop()  # type: ignore[attr-defined]
        assert b": here" in received(stream)
        received(idle)
    serving.thread.join(PATIENCE)  # type: ignore[attr-defined]
    assert not serving.thread.is_alive()  # type: ignore[attr-defined]


def test_the_end_waits_a_moment_for_answers(serving: Serving):
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as connection:
        connection.sendall(b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na")
        assert connection.recv(4) == b"HTTP"
        serving.server.stop()  # type: ignore[attr-defined]
        connection.sendall(b"b")
        assert received(connection).endswith(b"\r\n2\r\n0\r\n\r\n")


def test_a_client_that_never_ends_its_request_does_not_keep_the_server(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(http_server, "END_SECONDS", 0.1)
    [listener] = serving("127.0.0.1:0")
    with connected(listener) as connection:
        connection.sendall(b"POST /body HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na")
        assert connection.recv(4) == b"HTTP"
        serving.server.stop()  # type: ignore[attr-defined]
        serving.thread.join(PATIENCE)  # type: ignore[attr-defined]
        assert not serving.thread.is_alive()  # type: ignore[attr-defined]


def test_a_fault_of_the_application_is_answered(serving: Serving, caplog: pytest.LogCaptureFixture):
    [listener] = serving("127.0.0.1:0")
    assert get(listener, "/fault").status_code == 500
    assert "a fault" in caplog.text


@pytest.mark.parametrize(("trusted", "client"), [((), "127.0.0.1"), (("127.0.0.1",), "192.0.2.7")])
def test_only_a_proxy_that_is_named_says_who_its_client_is(serving: Serving, trusted: Sequence[str], client: str):
    [listener] = serving("127.0.0.1:0", forwarded_allow_ips=trusted)
    assert get(listener, headers={"x-forwarded-for": "10.9.9.9, 192.0.2.7"}).text == f"http {client}"


def test_the_environment_changes_nothing(serving: Serving, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("WEB_CONCURRENCY", "many")
    [listener] = serving("127.0.0.1:0")
    assert get(listener, headers={"x-forwarded-for": "192.0.2.7"}).text == "http 127.0.0.1"


def test_an_application_that_does_not_start_is_an_error():
    async def broken(_: Any, __: Any, ___: Any) -> None:
        raise RuntimeError("it does not start")

    listeners = open_listeners([parse_address("127.0.0.1:0")])
    with pytest.raises(ManagerError, match="cannot start"):
        Server(broken, listeners).run()
    assert listeners[0].socket.fileno() < 0


_PROGRAM = """
import sys
from airflow_provider_air_executor.server.http_server import Server
from airflow_provider_air_executor.server.listener import open_listeners, parse_address
from airflow_provider_air_executor.server.tls import TlsFiles
from pathlib import Path
from tests.server.test_http_server import app

files = TlsFiles(Path(sys.argv[1]), Path(sys.argv[2]))
listeners = open_listeners([parse_address("127.0.0.1:0")], tls_files=files)
print(listeners[0], flush=True)
Server(app, listeners).run()
"""


def test_signals_end_it_and_read_certificates_again(tmp_path: Path):
    (tmp_path / "new").mkdir()
    authority, new = Authority(tmp_path), Authority(tmp_path / "new")
    files = authority.issue()
    command = [sys.executable, "-c", _PROGRAM, str(files.certificate), str(files.key)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()  # type: ignore[union-attr]
            before = ssl.create_default_context(cafile=str(authority.path))
            wait_until(lambda: httpx.get(url, verify=before, trust_env=False).status_code == 200, what="it answers")
            issued = new.issue()
            os.replace(issued.certificate, files.certificate)
            os.replace(issued.key, files.key)
            process.send_signal(signal.SIGHUP)
            after = ssl.create_default_context(cafile=str(new.path))

            def is_new() -> bool:
                with contextlib.suppress(httpx.ConnectError):
                    return httpx.get(url, verify=after, trust_env=False).status_code == 200
                return False

            wait_until(is_new, what="the new certificate is used")
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
