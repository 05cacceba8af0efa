#!/usr/bin/env bash
# asyncio sends at once (TCP_NODELAY) or waits for acknowledgements (Nagle), by how Python made the listening socket.
#
# Expected: asyncio sets TCP_NODELAY on every TCP connection, as its documentation says since Python 3.6.
# Seen with Python 3.11: it does so only where the socket object says proto=IPPROTO_TCP. A connection that was accepted
# has the number of its listener's object, and socket.create_server() and socket.socket(AF_INET, SOCK_STREAM) leave it 0,
# which the kernel takes for TCP all the same. So the same server has it when it is given host and port, and has it not
# when it is given a socket, as uvicorn 0.49.0 is by Config.bind_socket() (its way with --reload and several workers).
# An answer of two writes then waits 40 ms for a delayed acknowledgement.
# Here: each request by HTTPS took 47 ms on loopback, and takes 1.4 ms since the server sets it (server/listener.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.49.0
cat >"$work/servers.py" <<'PYTHON'
import asyncio
import socket

import uvicorn

found: dict[str, int] = {}


def nodelay(transport: asyncio.BaseTransport) -> int:
    return int(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)


async def accepted(name: str, **where: object) -> None:
    """Which option a connection has that this server accepts."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found[name] = nodelay(writer.transport)
        writer.close()

    server = await asyncio.start_server(serve, **where)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        await reader.read()
        writer.close()


class Config(uvicorn.Config):
    def load(self) -> None:
        super().load()

        class Protocol(self.http_protocol_class):  # type: ignore[name-defined]
            def connection_made(self, transport: asyncio.Transport) -> None:
                super().connection_made(transport)
                found[current] = nodelay(transport)
                transport.close()

        self.http_protocol_class = Protocol


current = ""


async def by_uvicorn(name: str, sockets: list[socket.socket] | None, config: Config) -> None:
    global current
    current = name
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=sockets))
    while not server.started:
        await asyncio.sleep(0.01)
    address = server.servers[0].sockets[0].getsockname()
    reader, writer = await asyncio.open_connection(*address)
    await reader.read()
    writer.close()
    server.should_exit = True
    await serving


async def main() -> None:
    await accepted("asyncio, host and port", host="127.0.0.1", port=0)
    await accepted("asyncio, socket.create_server()", sock=socket.create_server(("127.0.0.1", 0)))
    config = Config("uvicorn:Config", host="127.0.0.1", port=0, log_level="critical", lifespan="off", loop="asyncio")
    await by_uvicorn("uvicorn, host and port", None, config)
    config = Config("uvicorn:Config", host="127.0.0.1", port=0, log_level="critical", lifespan="off", loop="asyncio")
    await by_uvicorn("uvicorn, Config.bind_socket()", [config.bind_socket()], config)


asyncio.run(main())
for name, value in found.items():
    print(f"{name}: TCP_NODELAY {value}")
assert list(found.values()) == [1, 0, 1, 0]
PYTHON
"$work/venv/bin/python" "$work/servers.py"
