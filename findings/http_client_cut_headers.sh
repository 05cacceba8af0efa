#!/usr/bin/env bash
# Python's http.client takes an answer that breaks off within its headers for a whole one with fewer headers.
#
# Expected: http.client.RemoteDisconnected or IncompleteRead, as for an answer that breaks off in its first line or body.
# Seen with Python 3.11: headers end at an empty line, and at the end of the connection just the same. If Content-Length
# was not among those that had come, the body is "until the connection ends", which is now: an answer 200 without a
# body, and no error. A header of which half has come counts too, with half of its value. urllib and whatever is built on
# http.client (urllib3, so requests) behave alike.
# Here: a request whose answer was lost would have counted as answered; the client of a server reads headers line by line
# and takes no line without its end (remote/connections.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check urllib3==2.5.0
cat >"$work/cut.py" <<'PYTHON'
import http.client
import socket
import threading

import urllib3

WHOLE = b"HTTP/1.1 200 OK\r\nX-Cursor: 12345\r\nContent-Length: 5\r\n\r\nhello"


def served(answer: bytes) -> int:
    """The port of a server that sends this, and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as client:
            client.recv(10_000)
            client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


def by_http_client(answer: bytes) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", served(answer))
    try:
        connection.request("GET", "/")
        found = connection.getresponse()
        return f"{found.status} {dict(found.headers)} {found.read()!r}"
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def by_urllib3(answer: bytes) -> str:
    try:
        found = urllib3.PoolManager(retries=False).request("GET", f"http://127.0.0.1:{served(answer)}/")
        return f"{found.status} {dict(found.headers)} {found.data!r}"
    except urllib3.exceptions.HTTPError as error:
        return type(error).__name__


CUTS = {
    "in the first line": 10,
    "in the first header": WHOLE.index(b"345"),
    "after the first header": WHOLE.index(b"Content-Length"),
    "in the body": len(WHOLE) - 2,
}
found = {where: (by_http_client(WHOLE[:length]), by_urllib3(WHOLE[:length])) for where, length in CUTS.items()}
for where, (one, other) in found.items():
    print(f"cut {where}: http.client {one}; urllib3 {other}")
assert found["in the first header"] == ("200 {'X-Cursor': '12'} b''",) * 2
assert found["after the first header"] == ("200 {'X-Cursor': '12345'} b''",) * 2
assert found["in the body"] == ("IncompleteRead", "ProtocolError")
assert found["in the first line"][0] in ("BadStatusLine", "RemoteDisconnected")
PYTHON
"$work/venv/bin/python" "$work/cut.py"
