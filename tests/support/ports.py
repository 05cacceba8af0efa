"""Ports for the servers that the tests start, without a clash between test runs on one machine."""

from __future__ import annotations

import errno
import socket

# Below what Linux gives to outgoing connections, so that none of those takes a port between its choice and its use.
_FIRST, _LAST, _BLOCK = 20_000, 32_000, 100

_owner: socket.socket | None = None  # holds the first port of this process's block as long as the process lives
_next = 0


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, and that no other process of the tests is given.

    A process takes a block of ports for itself. Each one is given out once, until the whole block has been.

    :raises OSError: if all blocks are taken.
    """
    global _owner, _next  # noqa: PLW0603 - of the process, as its ports are
    if _owner is None:
        _owner = _take_block()
    first = _owner.getsockname()[1]
    for _ in range(_BLOCK):
        _next = _next % (_BLOCK - 1) + 1
        if (probe := _bind(first + _next)) is not None:
            probe.close()
            return int(first + _next)
    raise OSError(errno.EADDRINUSE, f"all ports from {first} to {first + _BLOCK - 1} are in use")


def _take_block() -> socket.socket:
    for port in range(_FIRST, _LAST, _BLOCK):
        if (bound := _bind(port)) is not None:
            return bound
    raise OSError(errno.EADDRINUSE, f"all blocks of ports from {_FIRST} to {_LAST} are taken")


def _bind(port: int) -> socket.socket | None:
    """A socket that listens on a port; None if another one does."""
    bound = socket.socket()
    try:
        bound.bind(("127.0.0.1", port))
        bound.listen(1)
    except OSError:
        bound.close()
        return None
    return bound
