"""Connections to a server by the HTTP client of Python itself, which are kept for the next request.

It takes less than half of the processor time of httpx for a request, and is there where no other package is; see
``docs/decisions/remote-client.md``.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from io import BufferedReader
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.remote.address import is_here
from airflow_provider_air_executor.remote.protocol import Target

IDLE_SECONDS = 10.0  # that a connection is kept which nobody uses
MOST_IDLE = 16
_PIECE = 65_536

Connection = http.client.HTTPConnection


class Timeouts(NamedTuple):
    """Limits of time, in seconds."""

    connect: float
    read: float  # in which nothing comes


class Answer:
    """The answer to a request, which is read within."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status = response.status
        self.reason = response.reason
        self.headers = response.headers
        self._content: bytes | None = None

    @property
    def content(self) -> bytes:
        """All of it."""
        if self._content is None:
            self._content = self._response.read()
        return self._content

    def pieces(self) -> Iterator[bytes]:
        """What there is of it, as it comes.

        :raises http.client.IncompleteRead: if it breaks off.
        """
        while piece := self._response.read1(_PIECE):
            yield piece
        if self._response.length:
            raise http.client.IncompleteRead(b"", self._response.length)

    def close(self) -> None:
        """Read no more of it."""
        self._response.close()

    @property
    def is_whole(self) -> bool:
        """Whether all of it has been read, so that the connection can be used again."""
        return self._response.isclosed() and not self._response.will_close


class _Response(http.client.HTTPResponse):
    """An answer whose headers must be whole; Python takes those for all that have come before a connection broke."""

    def begin(self) -> None:
        """Read the headers.

        :raises http.client.RemoteDisconnected: if the connection breaks before their end.
        """
        file = self.fp
        self.fp = _WholeLines(file)  # type: ignore[assignment]
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = file


class _WholeLines:
    """Reads lines that have an end."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def readline(self, limit: int) -> bytes:
        line = self._file.readline(limit)
        if not line.endswith(b"\n"):
            raise http.client.RemoteDisconnected("the connection broke")
        return line

    def close(self) -> None:
        self._file.close()


class Address:
    """Where a server is, and how it is reached.

    :raises SettingsError: if its URL is not valid, or a file with certificates cannot be read.
    """

    def __init__(self, target: Target, path: str | None) -> None:
        self._path = path
        self._url = _parsed(target)
        self._context = tls_context(target) if self._url.scheme == "https" else None
        # No proxy of the environment can reach a Unix socket.
        self._proxy = None if path is not None else _proxy(self._url)
        self.prefix = "" if path is not None else self._url.path.rstrip("/")
        if self._proxy is not None and self._context is None:
            self.prefix = f"http://{self._url.netloc.rpartition('@')[2]}{self.prefix}"

    def connect(self, timeouts: Timeouts) -> Connection:
        """A new connection.

        :raises OSError: if there is none in time.
        """
        connection = self._new(timeouts.connect)
        connection.response_class = _Response
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def _new(self, timeout: float) -> Connection:
        if self._path is not None:
            return _UnixConnection(self._path, timeout)
        host, port = self._url.hostname or "", self._url.port
        if self._proxy is not None:
            return self._by_proxy(self._proxy, host, port, timeout)
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=timeout)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=self._context)

    def _by_proxy(self, proxy: SplitResult, host: str, port: int | None, timeout: float) -> Connection:
        where = proxy.hostname or "", proxy.port or 80
        if self._context is None:
            return http.client.HTTPConnection(*where, timeout=timeout)
        connection = http.client.HTTPSConnection(*where, timeout=timeout, context=self._context)
        connection.set_tunnel(host, port or 443, proxy_headers(proxy))
        return connection

    @property
    def headers(self) -> dict[str, str]:
        """What each request has to say to a proxy."""
        return proxy_headers(self._proxy) if self._proxy is not None and self._context is None else {}


class Pool:
    """Connections that are kept for the next request; threads may share it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._guard = threading.RLock()  # a signal handler may ask something, too
        self._idle: list[tuple[float, Connection]] = []

    def take(self, timeouts: Timeouts) -> Connection:
        """A connection that nobody uses: one that was kept, or a new one.

        :raises OSError: if there is none in time.
        """
        while (kept := self._pop()) is not None:
            since, connection = kept
            if time.monotonic() - since < IDLE_SECONDS and not _is_readable(connection):
                return _limited(connection, timeouts)
            connection.close()
        return _limited(self.address.connect(timeouts), timeouts)

    def _pop(self) -> tuple[float, Connection] | None:
        with self._guard:
            return self._idle.pop() if self._idle else None

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        with self._guard:
            self._idle.append((time.monotonic(), connection))
            old = self._idle.pop(0)[1] if len(self._idle) > MOST_IDLE else None
        if old is not None:
            old.close()

    def tidy(self) -> None:
        """Close what nobody has used for a while."""
        before = time.monotonic() - IDLE_SECONDS
        if not self._idle or self._idle[0][0] > before:  # the oldest one
            return
        with self._guard:
            old = [connection for since, connection in self._idle if since <= before]
            self._idle = [kept for kept in self._idle if kept[0] > before]
        for connection in old:
            connection.close()

    def close(self) -> None:
        """Close what is kept. In a process that was forked, the connections of its parent stay."""
        while (kept := self._pop()) is not None:
            kept[1].close()


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("air-executor", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Make the connection."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _limited(connection: Connection, timeouts: Timeouts) -> Connection:
    connection.sock.settimeout(timeouts.read)
    return connection


def _is_readable(connection: Connection) -> bool:
    """Whether the server has closed a connection that nobody uses."""
    poll = select.poll()
    try:
        poll.register(connection.sock, select.POLLIN)
    except (AttributeError, ValueError):  # it is closed
        return True
    return bool(poll.poll(0))


def shut_down(connection: Connection) -> None:
    """Break a connection that another thread reads from, so that it stops waiting."""
    found = connection.sock
    if isinstance(found, socket.socket):
        with contextlib.suppress(OSError):
            socket.socket.shutdown(found, socket.SHUT_RDWR)


def tls_context(target: Target) -> ssl.SSLContext:
    """The certificates that are trusted, and the client's own.

    :raises SettingsError: if a file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=target.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if target.client_cert:
            context.load_cert_chain(target.client_cert, target.client_key)
    except (OSError, ValueError) as error:  # of OpenSSL, too
        files = ", ".join(filter(None, (target.ca, target.client_cert, target.client_key)))
        raise SettingsError(f"{target.where}: the certificates in {files} cannot be read: {error}") from None
    return context


def _parsed(target: Target) -> SplitResult:
    if target.url is None:
        return urlsplit("")
    try:
        url = urlsplit(target.url)
        is_valid = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        is_valid = False
    if not is_valid or url.query or url.fragment:
        raise SettingsError(f"{target.url!r} is no URL of a server, such as https://host:8795")
    return url


def _proxy(url: SplitResult) -> SplitResult | None:
    """The proxy by which the environment says that a server is reached.

    There is none on the way to this machine: what is not encrypted, since it does not leave it, must not do so then.
    """
    if is_here(url.hostname or "") or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    import urllib.request

    proxies = urllib.request.getproxies()
    found = proxies.get(url.scheme) or proxies.get("all")
    if not found or urllib.request.proxy_bypass(url.hostname or ""):
        return None
    return urlsplit(found if "//" in found else f"//{found}")


def proxy_headers(proxy: SplitResult) -> dict[str, str]:
    """How a client says to a proxy who it is."""
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
