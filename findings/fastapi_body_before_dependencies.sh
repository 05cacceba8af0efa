#!/usr/bin/env bash
# FastAPI reads the body of a request, all of it, before it calls the dependency that would refuse the request.
#
# Expected: a dependency that looks at a header only (a token) refuses a request as soon as its headers are there, so that
# a client without a token cannot make the server take in a long body.
# Seen with FastAPI 0.136.3, Starlette 1.3.1 and uvicorn 0.49.0, Python 3.11: where a route has a model as its body, the
# body is read first, whole and into memory; then the dependencies are called, and the answer is 401. While the body does
# not come, no answer comes. Without a body in the route, the same dependency refuses at once.
# Here: the server of a manager looks at tokens, and at the length of a body, in a layer of its own around FastAPI
# (server/gate.py), so that it takes in nothing of those whom it does not know.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check fastapi==0.136.3 starlette==1.3.1 uvicorn==0.49.0
cat >"$work/server.py" <<'PYTHON'
import socket
import threading
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from pydantic import BaseModel

app = FastAPI()
QUIET = 2.0  # seconds in which a server of this machine answers what it can answer


def known(authorization: Annotated[str, Header()] = "") -> None:
    if not authorization:
        raise HTTPException(401)


class Body(BaseModel):
    text: str


@app.post("/with-body", dependencies=[Depends(known)])
def with_body(body: Body) -> None: ...


@app.post("/without-body", dependencies=[Depends(known)])
def without_body() -> None: ...


def first_line(client: socket.socket) -> str:
    try:
        return client.recv(1000).decode().split("\r\n")[0]
    except TimeoutError:
        return "nothing"


def asked(port: int, path: str) -> tuple[str, str]:
    """What comes after the headers and half of the body, and what after the other half."""
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=QUIET) as client:
        client.sendall(head.encode() + b'{"text"')
        half = first_line(client)
        if half != "nothing":
            return half, "not asked"
        client.settimeout(60)
        client.sendall(b': ""}')
        return half, first_line(client)


listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
thread.start()
found = {path: asked(listener.getsockname()[1], path) for path in ("/without-body", "/with-body")}
for path, (half, whole) in found.items():
    print(f"{path}: after half of the body: {half}; after the other half: {whole}")
server.should_exit = True
thread.join()
assert found["/without-body"][0] == "HTTP/1.1 401 Unauthorized"
assert found["/with-body"] == ("nothing", "HTTP/1.1 401 Unauthorized")
PYTHON
"$work/venv/bin/python" "$work/server.py"
