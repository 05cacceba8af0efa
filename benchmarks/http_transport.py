"""What a request to the API server of Kubernetes costs by aiohttp, as we make it, and by httpx.

A server in a process of its own answers over TLS: a stream of short pieces, as a log that is followed, and small
requests, eight at a time. Prints the processor time of the client for each piece and for each request, the best of some
rounds in which all take turns, and how many pieces came in a second. httpx over aiohttp takes part where it is
installed (``pip install httpx-aiohttp``).

    python benchmarks/http_transport.py [--pieces 50000] [--requests 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import re
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.kubernetes_cluster import make_certificates
from tests.support.run import Run

PIECE = b"0123456789abcde\n"
POD = {"metadata": {"name": "x" * 20}, "spec": {"containers": [{"args": ["x" * 1000]}], "more": list(range(60))}}


async def serve(directory: Path, pieces: int) -> None:
    """Answer for ever, on the port that is printed."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(directory / "server.crt", directory / "server.key")
    content = json.dumps(POD).encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client has closed it
            while head := await reader.readuntil(b"\r\n\r\n"):
                if length := re.search(rb"content-length: (\d+)", head.lower()):
                    await reader.readexactly(int(length[1]))
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
                else:
                    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    for _ in range(pieces):
                        writer.write(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))
                        await writer.drain()
                    writer.write(b"0\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class ByHttpx:
    """What is asked, by a client of httpx."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def read(self) -> int:
        """The bytes of a stream, as many as come at a time."""
        async with self._client.stream("GET", "/") as response:
            return sum([len(chunk) async for chunk in response.aiter_bytes()])

    async def create(self) -> object:
        """What a request is answered with."""
        return (await self._client.post("/", json=POD)).json()


class ByAiohttp:
    """The same by a client of aiohttp."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def read(self) -> int:
        """The bytes of a stream, as many as come at a time."""
        async with self._session.get("/") as response:
            return sum([len(chunk) async for chunk in response.content.iter_any()])

    async def create(self) -> object:
        """What a request is answered with."""
        async with self._session.post("/", json=POD) as response:
            answer: object = await response.json(content_type=None)
            return answer


async def ask(client: ByHttpx | ByAiohttp, pieces: int, requests: int) -> tuple[float, float, float]:
    """Microseconds for a piece and for a request, and pieces in a second."""
    begun, used = time.perf_counter(), time.process_time()
    assert await client.read() == pieces * len(PIECE)
    piece, took = time.process_time() - used, time.perf_counter() - begun
    at_a_time = asyncio.Semaphore(8)

    async def create() -> None:
        async with at_a_time:
            assert await client.create() == POD

    used = time.process_time()
    await asyncio.gather(*[create() for _ in range(requests)])
    return piece / pieces * 1e6, (time.process_time() - used) / requests * 1e6, pieces / took


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=50_000)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve, options.pieces))
    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as name:
        make_certificates(Path(name))
        words = [sys.executable, __file__, "--serve", name, "--pieces", str(options.pieces)]
        server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = f"https://127.0.0.1:{int(server.stdout.readline())}"
            tls = ssl.create_default_context(cafile=f"{name}/ca.crt")

            async def by_httpx(make: Callable[[], httpx.AsyncBaseTransport]) -> tuple[float, float, float]:
                async with httpx.AsyncClient(base_url=address, transport=make(), timeout=30) as client:
                    return await ask(ByHttpx(client), options.pieces, options.requests)

            async def by_aiohttp() -> tuple[float, float, float]:
                async with aiohttp.ClientSession(address, connector=aiohttp.TCPConnector(ssl=tls)) as session:
                    return await ask(ByAiohttp(session), options.pieces, options.requests)

            def over_aiohttp() -> httpx.AsyncBaseTransport:
                import httpx_aiohttp

                session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls))
                transport: httpx.AsyncBaseTransport = httpx_aiohttp.AiohttpTransport(client=session)
                return transport

            kinds: dict[str, Callable[[], Coroutine[Any, Any, tuple[float, float, float]]]] = {
                "httpx": lambda: by_httpx(lambda: httpx.AsyncHTTPTransport(verify=tls)),
                "aiohttp": by_aiohttp,
            }
            if find_spec("httpx_aiohttp"):
                kinds["httpx-aiohttp"] = lambda: by_httpx(over_aiohttp)
            found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds}
            for _ in range(options.rounds):
                for kind, run in kinds.items():
                    found[kind].append(asyncio.run(run()))
        finally:
            server.terminate()
            server.wait()
    print(f"Python {platform.python_version()}, aiohttp {aiohttp.__version__}, httpx {httpx.__version__}")
    for kind, rounds in found.items():
        piece, request = (min(item[place] for item in rounds) for place in (0, 1))
        rate = max(item[2] for item in rounds)
        print(f"{kind:13} {piece:6.1f} µs for a piece, {rate:9,.0f} pieces/s; {request:6.0f} µs for a request")


if __name__ == "__main__":
    with Run():
        main()
