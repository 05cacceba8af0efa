"""Descriptors that one process hands over to another, by a Unix socket."""

from __future__ import annotations

import array
import socket

_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def send(channel: socket.socket, data: bytes, descriptors: list[int], flags: int = 0) -> None:
    """Send a message with descriptors; ``socket.send_fds`` takes no notice of its flags (Python 3.11).

    :raises OSError: if it cannot be sent.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([data], rights, flags)


def receive(channel: socket.socket, size: int, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive a message, and the descriptors that came with it; no program that is started later inherits them.

    ``socket.recv_fds`` takes no notice of its flags (Python 3.11), so such programs would inherit them.

    :param size: the bytes that it may have.
    :param most: how many descriptors it may have.
    :raises OSError: if it cannot be received; BlockingIOError: if there is none now, and the flags say not to wait.
    """
    numbers = array.array("i")
    space = socket.CMSG_LEN(most * numbers.itemsize)
    data, ancillary, *_ = channel.recvmsg(size, space, flags | _CLOSE_ON_EXEC)
    for _, kind, given in ancillary:
        if kind == socket.SCM_RIGHTS:
            numbers.frombytes(given[: len(given) - len(given) % numbers.itemsize])
    return data, list(numbers)
