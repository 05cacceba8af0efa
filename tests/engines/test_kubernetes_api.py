"""Requests to the API server, against servers that answer in any way that HTTP allows, or do not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.kubernetes import client as clients
from airflow_provider_air_executor.engines.kubernetes.client import ApiError, KubernetesClient, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.credentials import ClusterCredentials
from airflow_provider_air_executor.exceptions import SettingsError
from tests.support.kubernetes_cluster import make_certificates
from tests.support.ports import free_port

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def answer(content: object) -> bytes:
    """A whole answer, in JSON."""
    text = json.dumps(content).encode()
    return OK + b"Content-Length: %d\r\n\r\n%s" % (len(text), text)


POD = {"metadata": {"name": "p"}}
GOOD = answer(POD)


@dataclass
class Server:
    """Answers each request with the next of what it is given, and then closes the connection if that says so."""

    answers: list[bytes]
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    left_by_client: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                text = self.answers.pop(0)
                writer.write(text.removesuffix(b"CLOSE"))
                if text.endswith(b"CLOSE"):
                    break
        self.left_by_client.set()
        writer.close()


@contextlib.asynccontextmanager
async def asking(
    *answers: bytes,
    tls: ssl.SSLContext | None = None,
    trusts: ssl.SSLContext | None = None,
    token: str = "word",
    name: str | None = None,
) -> AsyncIterator[tuple[KubernetesClient, Server]]:
    """Somebody who asks, and a server.

    :param tls: the server's.
    :param trusts: that of who asks.
    :param name: by which the server is to be known.
    """
    server = Server(list(answers))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    address = f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    api = KubernetesClient(
        ClusterCredentials(address, trusts or ssl.create_default_context(), token=token, server_name=name)
    )
    try:
        yield api, server
    finally:
        await api.close()
        listening.close()
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # until all of them have been released


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(within())


async def get(api: KubernetesClient) -> object:
    return await api.get_pod("team", "p")


def test_answers_of_all_lengths() -> None:
    """A connection is used again after an answer whose end is known, and only then."""

    async def test() -> None:
        answers = [
            CHUNKED + b"3\r\n{} \r\n0\r\n\r\n",
            GOOD,
            b"HTTP/1.1 204 No Content\r\n\r\n",
            OK + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.0 200 OK\r\n\r\n{}CLOSE",
            GOOD,
        ]
        async with asking(*answers) as (api, server):
            assert [await get(api) for _ in answers] == [{}, POD, {}, {}, {}, POD]
            assert server.connections == 3
            assert server.heads[0].startswith(b"GET /api/v1/namespaces/team/pods/p HTTP/1.1\r\nHost: 127.0.0.1:")
            assert b"\r\nAuthorization: Bearer word\r\n" in server.heads[0]
            assert b"\r\nUser-Agent: air-executor\r\n" in server.heads[0]

    run(test)


def test_a_refusal_in_its_own_words_or_without_any() -> None:
    async def test() -> None:
        text = b'{"message": "no such Pod", "reason": "NotFound"}'
        refusals = [
            b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text),
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>",
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n[]",
        ]
        async with asking(*refusals) as (api, _):
            found = []
            for _ in refusals:
                with pytest.raises(ApiError) as error:
                    await get(api)
                found.append((error.value.status, error.value.reason, str(error.value)))
            assert found == [(404, "NotFound", "no such Pod"), (502, "", "<html>"), (503, "", "HTTP status 503")]

    run(test)


def test_a_line_break_in_a_token() -> None:
    """It would make two fields, or two requests."""

    async def test() -> None:
        async with asking(GOOD, token="a\r\nX: y") as (api, server):
            with pytest.raises(UnreachableError):
                await get(api)
            assert server.heads == []

    run(test)


def test_a_connection_that_was_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that the server has closed meanwhile, or that is old, is not used again."""
    monkeypatch.setattr(clients, "_IDLE_SECONDS", 0.5)

    async def test() -> None:
        async with asking(GOOD + b"CLOSE", GOOD, GOOD) as (api, server):
            await get(api)
            await asyncio.sleep(0.1)
            await get(api)
            assert server.connections == 2
            await asyncio.sleep(1.5)
            await get(api)
            assert server.connections == 3

    run(test)


@pytest.mark.parametrize("closes", [b"", b"CLOSE"])
def test_what_nobody_asked_for(closes: bytes) -> None:
    """As what a load balancer says to one that is idle: it does not answer the next request."""

    async def test() -> None:
        unasked = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"
        async with asking(GOOD + unasked + closes, answer({"second": 2})) as (api, server):
            assert await get(api) == POD
            await asyncio.sleep(0.1)
            assert await get(api) == {"second": 2}
            assert server.connections == 2

    run(test)


@pytest.mark.parametrize("address", ["htps://127.0.0.1", "http://127.0.0.1:70000", "http://", "127.0.0.1:6443"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(SettingsError, match="cannot be asked"):
        KubernetesClient(ClusterCredentials(address, ssl.create_default_context()))


@pytest.mark.parametrize(
    "text",
    [
        OK + b"Content-Length: 10\r\n\r\nabcCLOSE",
        OK + b"Content-Length: -1\r\n\r\nabc",
        OK + b"Content-Length: 3\r\n\r\nabc",  # no JSON
        CHUNKED + b"3\r\n{} \r\nCLOSE",
        CHUNKED + b"no\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"Long: " + b"x" * 200_000,
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ],
)
def test_what_cannot_be_understood(text: bytes) -> None:
    async def test() -> None:
        async with asking(text, GOOD) as (api, _):
            with pytest.raises(UnreachableError):
                await get(api)
            assert await get(api) == POD  # what is left of the answer belongs to no other request

    run(test)


def test_a_server_that_closes_the_connection_without_an_answer() -> None:
    """What changes nothing is asked once more. A Pod may have been created: that is for who asks to find out."""

    async def test() -> None:
        async with asking(b"CLOSE", GOOD, b"CLOSE") as (api, server):
            assert await get(api) == POD
            with pytest.raises(UnreachableError):
                await api.create_pod({"metadata": {"namespace": "team"}})
            assert [head.split()[0] for head in server.heads] == [b"GET", b"GET", b"POST"]

    run(test)


@pytest.mark.parametrize("text", [b"", OK + b"Content-", OK + b"Content-Length: 10\r\n\r\n{}"])
def test_an_answer_that_does_not_go_on(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_ANSWER_SECONDS", 0.5)

    async def test() -> None:
        async with asking(text, GOOD) as (api, server):
            with pytest.raises(UnreachableError, match="imeout"):
                await get(api)
            monkeypatch.setattr(clients, "_ANSWER_SECONDS", 30)
            assert await get(api) == POD
            assert server.connections == 2

    run(test)


def test_a_stream_that_nobody_reads_any_more() -> None:
    async def test() -> None:
        async with asking(CHUNKED + b"3\r\nabc\r\n") as (api, server):
            async with api.open_log("team", "p", "task", follow=True) as chunks:
                assert await anext(chunks) == b"abc"
            await server.left_by_client.wait()

    run(test)


def test_what_the_reader_of_a_stream_meets_is_its_own() -> None:
    """A disk that is full is not a server that does not answer."""

    async def test() -> None:
        async with asking(CHUNKED + b"3\r\nabc\r\n") as (api, _):
            with pytest.raises(OSError, match="full"):
                async with api.open_log("team", "p", "task", follow=True):
                    raise OSError("full")

    run(test)


def test_a_stream_goes_on_when_a_request_beside_it_is_refused() -> None:
    """New connections are made after that; what is being read is read to its end."""

    async def test() -> None:
        refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}"
        async with asking(CHUNKED + b"3\r\nabc\r\n", refusal, GOOD) as (api, server):
            async with api.open_log("team", "p", "task", follow=True) as chunks:
                assert await anext(chunks) == b"abc"
                with pytest.raises(ApiError):
                    await get(api)
                assert await get(api) == POD
                server.writers[0].write(b"3\r\ndef\r\n0\r\n\r\n")
                assert [chunk async for chunk in chunks] == [b"def"]
            assert server.connections == 3

    run(test)


def test_nobody_listens() -> None:
    async def test() -> None:
        client = KubernetesClient(ClusterCredentials(f"http://127.0.0.1:{free_port()}", ssl.create_default_context()))
        with pytest.raises(UnreachableError, match="onnect"):
            await get(client)
        await client.close()

    run(test)


def test_whom_to_trust(tmp_path: Path) -> None:
    """Over https, with the right authority and the right name only."""
    make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))

    async def test() -> None:
        async with asking(GOOD, tls=tls) as (api, _):
            with pytest.raises(UnreachableError, match="certificate verify failed"):
                await get(api)
        for name, is_right in (("127.0.0.1", True), (None, True), ("elsewhere", False)):
            async with asking(GOOD, tls=tls, trusts=trusted, name=name) as (api, _):
                if is_right:
                    assert await get(api) == POD
                else:
                    with pytest.raises(UnreachableError, match="certificate verify failed"):
                        await get(api)

    run(test)
