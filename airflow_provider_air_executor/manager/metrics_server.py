"""Answers ``GET /metrics`` at the setting ``metrics_address``, in a thread of its own.

It shows only what the manager has published anyway. A client that does not read keeps nobody from work.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
from airflow_provider_air_executor.manager.metrics import CONTENT_TYPE, render

if TYPE_CHECKING:
    from http.server import HTTPServer

log = logging.getLogger("air_executor.manager")

_LOOPBACK = "127.0.0.1"
_CLIENT_SECONDS = 5.0  # that a client may take
_CLOSE_SECONDS = 1.0
_PAUSE_SECONDS = 0.1  # after a client that could not be accepted
_ADDRESS = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]*):)?(\d{1,5})")


def parse_address(text: str) -> tuple[str, int] | Path:
    """An address: ``PORT``, ``HOST:PORT``, ``[IPV6]:PORT``, or a path with a slash of a Unix socket.

    :return: host and port, without a host that of the loopback interface; or the path.
    :raises ValueError: if it is neither.
    """
    if "/" in text:
        return Path(text)
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[2]) < 65_536:
        raise ValueError("must be HOST:PORT, a port of this machine alone, or the path of a Unix socket, with a slash")
    return (found[1] or _LOOPBACK).strip("[]"), int(found[2])


class MetricsServer:
    """Serves the metrics of the manager.

    :param address: see :func:`parse_address`; a relative path begins in the base path. None: there is none.
    :param current: what the manager has published last; called in another thread.
    """

    def __init__(self, address: str | None, base_path: Path, current: Callable[[], ManagerInfo | None]) -> None:
        self._address = address
        self._base_path = base_path
        self._current = current
        self._server: HTTPServer | None = None
        self._thread: threading.Thread | None = None
        self._socket_path: Path | None = None

    def start(self) -> None:
        """Begin to serve. Where that is not possible the manager works without it."""
        if self._address is None:
            return
        try:
            self._server = self._listen(parse_address(self._address))
        except OSError as error:
            log.error("metrics are not served at %s: %s", self._address, error)
            return
        self._thread = threading.Thread(target=self._serve, args=(self._server,), name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics are served at %s", self._address)

    def close(self) -> None:
        """Serve no longer."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            server.socket.shutdown(socket.SHUT_RDWR)  # it wakes the thread
        self._thread.join(_CLOSE_SECONDS)
        server.server_close()
        if self._socket_path is not None:
            with contextlib.suppress(OSError):
                self._socket_path.unlink()

    def _listen(self, address: tuple[str, int] | Path) -> HTTPServer:
        from http.server import HTTPServer
        from socketserver import TCPServer

        class Server(HTTPServer):
            current = staticmethod(self._current)

            def server_bind(self) -> None:
                TCPServer.server_bind(self)  # without a look for a name of the host, which may take long
                self.server_name, self.server_port = "air-executor", 0

            def get_request(self) -> Any:
                try:
                    return super().get_request()
                except OSError:  # no descriptor is left; the client is still there, and would be accepted at once
                    time.sleep(_PAUSE_SECONDS)
                    raise

            def handle_error(self, request: Any, client_address: Any) -> None:
                log.debug("a client of the metrics was not answered: %r", sys.exception())

        target: Any = address
        if isinstance(address, Path):
            self._socket_path = self._base_path / address
            _remove_stale(self._socket_path)
            Server.address_family, target = socket.AF_UNIX, os.fspath(self._socket_path)
        elif ":" in address[0]:
            Server.address_family = socket.AF_INET6
        mask = os.umask(0o177)
        try:
            return Server(target, _handler())
        finally:
            os.umask(mask)

    def _serve(self, server: HTTPServer) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())  # they are for the manager
        while self._server is server:
            server.handle_request()


def _handler() -> Any:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_SECONDS
        server_version, sys_version = "air-executor", ""

        def do_GET(self) -> None:
            info: ManagerInfo | None = self.server.current()  # type: ignore[attr-defined]
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
            elif info is None:
                self.send_error(503)
            else:
                text = render(info).encode()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing: somebody asks every few seconds."""

    return Handler


def _remove_stale(path: Path) -> None:
    """Remove the socket of a manager that was killed.

    :raises OSError: if another process serves there.
    """
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            probe.settimeout(_CLOSE_SECONDS)
            with contextlib.suppress(ConnectionRefusedError):
                probe.connect(os.fspath(path))
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
            path.unlink()
