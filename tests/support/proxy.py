"""A network that can fail: a TCP proxy in a thread that cuts, stands still, and loses answers."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

_PIECE = 65_536


class Proxy:
    """Forwards connections to a server.

    :param connect: makes a connection to it.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._guard = threading.Condition()
        self._open: set[socket.socket] = set()
        self._is_cut = self._is_still = self._is_closed = False
        self._answers: list[int] = []  # after how many bytes of the next answers the connection breaks
        self.accepted = 0  # connections
        self.lost = 0  # answers that were not, or not all, handed on
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._is_closed = True
            self._guard.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end_connections()
        for thread in self._threads:
            thread.join()

    @property
    def open_connections(self) -> int:
        """How many clients are connected."""
        with self._guard:
            return len(self._open) // 2

    def cut(self) -> None:
        """Break all connections, and refuse new ones."""
        with self._guard:
            self._is_cut = True
        self._end_connections()

    def stand_still(self) -> None:
        """Let nothing through any more, while nothing is refused either: half-open connections."""
        with self._guard:
            self._is_still = True

    def restore(self) -> None:
        """Work again. Connections that stood still are lost."""
        with self._guard:
            was_still, self._is_cut, self._is_still = self._is_still, False, False
            self._guard.notify_all()
        if was_still:
            self._end_connections()

    def break_once(self) -> None:
        """Break all connections there are; new ones work."""
        self._end_connections()

    def lose_next_answer(self, after: int = 0) -> None:
        """Carry out the next request, and break the connection when its answer comes.

        :param after: how many bytes of the answer come through.
        """
        with self._guard:
            self._answers.append(after)

    def _end_connections(self) -> None:
        with self._guard:
            ended = list(self._open)
        for each in ended:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with self._guard:
                is_refused = self._is_cut or self._is_closed
                self.accepted += 1
            if is_refused:
                client.close()
                continue
            self._forward(client)

    def _forward(self, client: socket.socket) -> None:
        try:
            server = self._connect()
        except OSError:
            client.close()
            return
        for each in (client, server):
            if each.family != socket.AF_UNIX:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._guard:
            self._open |= {client, server}
        ways = [
            threading.Thread(target=self._carry, args=(client, server, False), daemon=True),
            threading.Thread(target=self._carry, args=(server, client, True), daemon=True),
        ]
        self._threads += ways
        for way in ways:
            way.start()
        closing = threading.Thread(target=self._close, args=(ways, client, server), daemon=True)
        self._threads.append(closing)
        closing.start()

    def _close(self, ways: list[threading.Thread], client: socket.socket, server: socket.socket) -> None:
        for way in ways:
            way.join()
        with self._guard:
            self._open -= {client, server}
        client.close()
        server.close()

    def _carry(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                with self._guard:
                    self._guard.wait_for(lambda: not self._is_still or self._is_closed)
                    loses = is_answer and bool(self._answers)
                    after = self._answers.pop(0) if loses else 0
                    self.lost += loses
                if loses:
                    target.sendall(data[:after])
                    break
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
