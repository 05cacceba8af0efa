#!/usr/bin/env bash
# Each try of httpx to reach a Unix socket at which nobody listens leaves a socket that nobody closes.
#
# Expected: httpx.ConnectError, and nothing else; over TCP a failed try closes its socket.
# Seen with httpx 0.28.1 and httpcore 1.0.9, Python 3.11: the synchronous backend makes the socket, and closes it on no
# way out but the good one. Python closes it when it is collected, with a ResourceWarning, one a try. Over TCP there is
# none, since socket.create_connection closes what it has made. Who treats warnings as errors, or counts descriptors where
# nothing is collected at once, sees it; a client that tries again and again while its server is away does so most.
# Here: tests of a manager that is away failed by their filter of warnings. The client of a server uses Python's own
# http.client (remote/connections.py), which leaves the connecting to us.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check httpx==0.28.1 httpcore==1.0.9
cat >"$work/tries.py" <<'PYTHON'
import gc
import socket
import sys
import warnings

import httpx

TRIES = 5


def warned(client: httpx.Client, url: str) -> int:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(TRIES):
            try:
                client.get(url)
            except httpx.ConnectError:
                pass
        gc.collect()
    return sum(issubclass(one.category, ResourceWarning) for one in found)


path = sys.argv[1]
with socket.socket(socket.AF_UNIX) as nobody:  # the file stays, and nobody listens
    nobody.bind(path)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as unix, httpx.Client(trust_env=False) as tcp:
    by_unix, by_tcp = warned(unix, "http://here/"), warned(tcp, f"http://127.0.0.1:{port}/")
print(f"sockets left open in {TRIES} tries: {by_unix} by Unix socket, {by_tcp} by TCP")
assert (by_unix, by_tcp) == (TRIES, 0)
PYTHON
"$work/venv/bin/python" "$work/tries.py" "$work/socket"
