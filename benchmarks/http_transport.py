"""What a request to the API server of Kubernetes costs, by our transport and by the one that httpx brings.

A server in a process of its own answers over TLS: a stream of short pieces, as a log that is followed, and small
requests, eight at a time. Prints the processor time of the client for each piece and for each request, the best of some
rounds in which the two take turns, and how many pieces came in a second.

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
from collections.abc import Callable
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from airflow_provider_air_executor.manager.runners.kubernetes.transport import Transport
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


async def ask(client: httpx.AsyncClient, pieces: int, requests: int) -> tuple[float, float, float]:
    """Microseconds for a piece and for a request, and pieces in a second."""
    begun, used = time.perf_counter(), time.process_time()
    async with client.stream("GET", "/") as response:
        length = sum([len(chunk) async for chunk in response.aiter_bytes()])
    assert length == pieces * len(PIECE)
    piece, took = time.process_time() - used, time.perf_counter() - begun
    at_a_time = asyncio.Semaphore(8)

    async def create() -> None:
        async with at_a_time:
            assert (await client.post("/", json=POD)).json() == POD

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

            async def once(transport: httpx.AsyncBaseTransport) -> tuple[float, float, float]:
                async with httpx.AsyncClient(base_url=address, transport=transport, timeout=30) as client:
                    return await ask(client, options.pieces, options.requests)

            makers: dict[str, Callable[[], httpx.AsyncBaseTransport]]
            makers = {"httpx": lambda: httpx.AsyncHTTPTransport(verify=tls), "ours": lambda: Transport(tls, keep=60)}
            found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in makers}
            for _ in range(options.rounds):
                for kind, make in makers.items():
                    found[kind].append(asyncio.run(once(make())))
        finally:
            server.kill()
            server.wait()
    print(f"Python {platform.python_version()}, httpx {httpx.__version__}")
    for kind, rounds in found.items():
        piece, request = (min(item[place] for item in rounds) for place in (0, 1))
        rate = max(item[2] for item in rounds)
        print(f"{kind:6} {piece:6.1f} µs for a piece, {rate:9,.0f} pieces/s; {request:6.0f} µs for a request")


if __name__ == "__main__":
    with Run():
        main()
