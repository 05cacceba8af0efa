"""The transport that carries requests to the API server, against servers that answer in any way that HTTP allows."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from airflow_provider_air_executor.manager.runners.kubernetes.transport import Chunks, Transport
from tests.support.kubernetes_cluster import make_certificates
from tests.support.waiting import PATIENCE

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


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
                answer = self.answers.pop(0)
                writer.write(answer.removesuffix(b"CLOSE"))
                if answer.endswith(b"CLOSE"):
                    break
        self.left_by_client.set()
        writer.close()


@contextlib.asynccontextmanager
async def client(
    *answers: bytes, tls: ssl.SSLContext | None = None, timeout: float = 10, keep: float = 60
) -> AsyncIterator[tuple[httpx.AsyncClient, Server]]:
    """A client, and a server that it may ask; ``tls``: the server's."""
    server = Server(list(answers))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    address = f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    transport = Transport(ssl.create_default_context(), keep=keep)
    try:
        async with httpx.AsyncClient(base_url=address, transport=transport, timeout=timeout) as asking:
            yield asking, server
    finally:
        listening.close()
        for writer in server.writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # until all of them have let go


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(within())


@pytest.mark.parametrize("seed", range(20))
def test_chunks_however_they_are_cut(seed: int) -> None:
    draw = random.Random(seed)
    pieces = [draw.randbytes(draw.choice([1, 2, 16, 300])) for _ in range(50)]
    stream = b"".join(b"%x%s\r\n%s\r\n" % (len(p), draw.choice([b"", b";name=value"]), p) for p in pieces)
    stream += b"0\r\n" + draw.choice([b"", b"Field: value\r\n"]) + b"\r\n"
    chunks, found, place = Chunks(), b"", 0
    while place < len(stream):
        assert not chunks.is_complete
        length = draw.choice([1, 1, 2, 3, 50, 2000])
        found += chunks.feed(stream[place : place + length])
        place += length
    assert found == b"".join(pieces)
    assert (chunks.is_complete, chunks.rest) == (True, b"")


@pytest.mark.parametrize(
    "stream",
    [
        b"x\r\nabc",
        b"-1\r\nabc",
        b"\r\n\r\n",
        b"3\r\nabcd\r\n",
        b"3\nabc\n",
        b"3" * 5000,
        b"3;" + b"x" * 5000,
        b"0" * 16 + b"10\r\nabc",
    ],
)
def test_what_is_no_chunk(stream: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        Chunks().feed(stream)


def test_answers_of_all_lengths() -> None:
    """A connection is used again after an answer whose end is known, and only then."""

    async def test() -> None:
        answers = [
            CHUNKED + b"3\r\nabc\r\n0\r\n\r\n",
            OK + b"Content-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + b"content-length:0\r\n\r\n",
            OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.0 200 OK\r\n\r\nto the endCLOSE",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno",
        ]
        async with client(*answers) as (asking, server):
            found = [await asking.get("/a?b=c") for _ in answers]
            assert [answer.status_code for answer in found] == [200, 200, 204, 200, 200, 200, 404]
            assert [answer.content for answer in found] == [b"abc", b"abc", b"", b"", b"abc", b"to the end", b"no"]
            assert server.connections == 3
            assert server.heads[0].startswith(b"GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:")

    run(test)


def test_what_is_sent() -> None:
    async def test() -> None:
        async with client(OK + b"Content-Length: 0\r\n\r\n") as (asking, server):
            await asking.post("/", json={"a": 1}, headers={"Authorization": "Bearer word"})
            assert b"\r\nAuthorization: Bearer word\r\n" in server.heads[0]
            assert b"\r\nContent-Length: 7\r\n" in server.heads[0]

    run(test)


def test_a_line_break_in_a_field() -> None:
    """A token with one would make two fields, or two requests."""

    async def test() -> None:
        async with client() as (asking, server):
            with pytest.raises(httpx.LocalProtocolError):
                await asking.get("/", headers={"Authorization": "Bearer a\r\nX: y"})
            assert server.connections == 0

    run(test)


def test_a_connection_that_was_idle() -> None:
    """One that the server has closed meanwhile, or that is old, is not used again."""

    async def test() -> None:
        once = OK + b"Content-Length: 1\r\n\r\nx"
        async with client(once + b"CLOSE", once, once, keep=0.5) as (asking, server):
            await asking.get("/")
            await asyncio.sleep(0.1)
            await asking.get("/")
            assert server.connections == 2
            await asyncio.sleep(0.6)
            await asking.get("/")
            assert server.connections == 3

    run(test)


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Content-Length: 1\r\n\r\nxHTTP/1.1 408 Request Timeout\r\n\r\n",
        CHUNKED + b"1\r\nx\r\n0\r\n\r\nHTTP/1.1 408 Request Timeout\r\n\r\n",
    ],
)
@pytest.mark.parametrize("closes", [b"", b"CLOSE"])
def test_what_nobody_asked_for(answer: bytes, closes: bytes) -> None:
    """As what a load balancer says to one that is idle: it does not answer the next request."""

    async def test() -> None:
        async with client(answer + closes, OK + b"Content-Length: 1\r\n\r\ny") as (asking, server):
            assert (await asking.get("/")).content == b"x"
            await asyncio.sleep(0.1)
            assert (await asking.get("/")).content == b"y"
            assert server.connections == 2

    run(test)


@pytest.mark.parametrize("address", ["htps://127.0.0.1", "http://127.0.0.1:70000", "http://x..y"])
def test_what_is_no_address(address: str) -> None:
    async def test() -> None:
        async with httpx.AsyncClient(transport=Transport(ssl.create_default_context(), keep=1)) as asking:
            with pytest.raises((httpx.TransportError, httpx.InvalidURL)):
                await asking.get(address)

    run(test)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.ReadTimeout),
        (b"CLOSE", httpx.RemoteProtocolError),
        (OK + b"Content-", httpx.ReadTimeout),
        (OK + b"Content-Length: 10\r\n\r\nabc", httpx.ReadTimeout),
        (OK + b"Content-Length: 10\r\n\r\nabcCLOSE", httpx.RemoteProtocolError),
        (OK + b"Content-Length: -1\r\n\r\nabc", httpx.RemoteProtocolError),
        (CHUNKED + b"3\r\nabc\r\nCLOSE", httpx.RemoteProtocolError),
        (CHUNKED + b"no\r\n", httpx.RemoteProtocolError),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", httpx.RemoteProtocolError),
        (OK + b"no colon\r\n\r\n", httpx.RemoteProtocolError),
        (OK + b"Long: " + b"x" * 200_000, httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", httpx.RemoteProtocolError),
    ],
)
def test_what_cannot_be_understood(answer: bytes, error: type[Exception]) -> None:
    async def test() -> None:
        patience = 1 if error is httpx.ReadTimeout else 10
        async with client(answer, OK + b"Content-Length: 1\r\n\r\nx", timeout=patience) as (asking, server):
            with pytest.raises(error):
                await asking.get("/")
            assert (await asking.get("/")).content == b"x"
            assert server.connections == 2  # what is left of the answer belongs to no other request

    run(test)


def test_a_stream_that_nobody_reads_any_more() -> None:
    async def test() -> None:
        async with client(CHUNKED + b"3\r\nabc\r\n") as (asking, server):
            async with asking.stream("GET", "/", timeout=None) as answer:
                assert await anext(answer.aiter_bytes()) == b"abc"
            await server.left_by_client.wait()

    run(test)


def test_nobody_listens() -> None:
    async def test() -> None:
        async with client() as (asking, _):
            pass
        transport = Transport(ssl.create_default_context(), keep=1)
        async with httpx.AsyncClient(base_url=asking.base_url, transport=transport, timeout=PATIENCE) as again:
            with pytest.raises(httpx.ConnectError):
                await again.get("/")

    run(test)


def test_whom_to_trust(tmp_path: Path) -> None:
    """Over https, with the right authority and the right name only."""
    make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))

    async def test() -> None:
        async with client(OK + b"Content-Length: 1\r\n\r\nx", tls=tls) as (asking, _):
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await asking.get("/")
            for name, is_right in (("127.0.0.1", True), ("elsewhere", False)):
                async with httpx.AsyncClient(transport=Transport(trusted, keep=1)) as trusting:
                    asked = trusting.get(str(asking.base_url), extensions={"sni_hostname": name})
                    if is_right:
                        assert (await asked).content == b"x"
                    else:
                        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                            await asked

    run(test)
