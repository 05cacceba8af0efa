"""Standard input and output as a connection to a server of this machine, for SSH servers that forward no sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

_BLOCK = 65_536


def bridge(path: str) -> None:
    """Send what comes in to the server, and what it answers out, until it ends the connection.

    :param path: of its Unix socket.
    :raises OSError: if it cannot be reached.
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        threading.Thread(target=_send, args=(server,), daemon=True).start()
        while data := server.recv(_BLOCK):
            _write(data)


def _send(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended the connection
        while data := os.read(0, _BLOCK):
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)


def _write(data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(1, left) :]
