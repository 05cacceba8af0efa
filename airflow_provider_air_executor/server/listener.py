"""Where the server listens: Unix sockets, TCP with TLS, and plain TCP where it cannot be overheard.

The sockets are opened before anything else is done, so that a mistake in the settings ends the server at once.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.server.tls import Tls, TlsFiles

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_BACKLOG = 1_024
_PROBE_SECONDS = 5.0
_PAUSE_SECONDS = 0.02
_LONGEST_PATH = 107  # bytes of the address of a Unix socket, see unix(7)
# A connection whose other end is gone without a word is noticed after a minute: idle, and with data on its way.
_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000))
_UMASK = threading.Lock()  # there is one for all threads


class Address(NamedTuple):
    """Where to listen: host and port, or a path."""

    host: str
    port: int
    path: Path | None = None


def parse_address(text: str) -> Address:
    """An address: ``HOST:PORT``, ``[IPV6]:PORT``, or the path of a Unix socket, which has a slash.

    :raises SettingsError: if it is neither.
    """
    if "/" in text:
        return Address("", 0, Path(os.path.abspath(files.expanded(text))))
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > 65_535:
        raise SettingsError(f"listen: {text!r} is neither HOST:PORT nor the path of a Unix socket, with a slash")
    return Address(found[1].strip("[]"), int(found[2]))


class Listener:
    """A socket that listens.

    :param listening: the socket.
    :param tls: None: what is sent is not encrypted.
    """

    def __init__(self, listening: socket.socket, tls: Tls | None = None) -> None:
        self.socket = listening
        self.tls = tls
        listening.setblocking(False)
        self._inode = os.lstat(self._path).st_ino if self.is_unix else None

    @property
    def is_unix(self) -> bool:
        """Whether its clients are known by their right to open it."""
        return self.socket.family == socket.AF_UNIX

    @property
    def _path(self) -> str:
        return str(self.socket.getsockname())

    def __str__(self) -> str:
        if self.is_unix:
            return self._path
        host, port = self.socket.getsockname()[:2]
        return f"{'http' if self.tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"

    def close(self) -> None:
        """Listen no longer. The file of a Unix socket goes, unless it is another server's by now."""
        if self.socket.fileno() < 0:
            return
        if self._inode is not None:
            with contextlib.suppress(OSError):
                if os.lstat(self._path).st_ino == self._inode:
                    os.unlink(self._path)
        self.socket.close()


def open_listeners(
    addresses: Sequence[Address], *, tls_files: TlsFiles | None = None, insecure_plain_text: bool = False
) -> list[Listener]:
    """Listen at some addresses; at all of them, or at none.

    :param tls_files: for TCP.
    :param insecure_plain_text: whether TCP needs no TLS, also where others can overhear it.
    :raises SettingsError: if a setting is not valid.
    :raises OSError: if an address cannot be listened at.
    """
    tls = None if tls_files is None else Tls(tls_files)
    with contextlib.ExitStack() as unless_all:
        listeners = []
        for address in addresses:
            for listener in _open(address, tls, insecure_plain_text):
                unless_all.callback(listener.close)
                listeners.append(listener)
        unless_all.pop_all()
    return listeners


def _open(address: Address, tls: Tls | None, insecure_plain_text: bool) -> Iterator[Listener]:
    if address.path is not None:
        yield Listener(_unix_socket(address.path))
        return
    for family, target in _resolved(address):
        if (
            tls is None
            and not insecure_plain_text
            and not ipaddress.ip_address(target[0].partition("%")[0]).is_loopback
        ):
            raise SettingsError(
                f"listen: {address.host}:{address.port} can be overheard, and tokens and jobs would be sent as they "
                "are; give --tls-cert and --tls-key, listen at 127.0.0.1 behind a proxy that has TLS, or, if the "
                "network itself is encrypted, --insecure-plain-text"
            )
        yield Listener(_tcp_socket(family, target), tls)


def _resolved(address: Address) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """The addresses of a host; each counts: ``localhost`` has two.

    :raises SettingsError: if the host is not known.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"listen: the host {address.host!r} is not known: {error}") from None
    targets = {(family, target) for family, _, _, _, target in found if family in (socket.AF_INET, socket.AF_INET6)}
    return sorted(targets)  # type: ignore[arg-type]


def _tcp_socket(family: socket.AddressFamily, target: tuple[str, int]) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(target)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, error.strerror, f"{target[0]}:{target[1]}") from None
    return listening


def keep_alive(connection: socket.socket) -> None:
    """Send at once what is written, and notice it when the other end of a connection is gone."""
    if connection.family == socket.AF_UNIX:
        return
    with contextlib.suppress(OSError):  # it is gone already
        # asyncio does so only for sockets that were made with the number of the protocol. Otherwise the body of each
        # answer waits for the client to say that it has the headers, which takes 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE:
            if hasattr(socket, name):  # macOS has not all of them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _unix_socket(path: Path) -> socket.socket:
    """A socket that only its owner can open. It replaces that of a server that was killed, not that of one that runs.

    :raises SettingsError: if there can be none of this name.
    :raises OSError: if another server listens there, or it cannot be made.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise SettingsError(f"listen: the path of a Unix socket has at most {_LONGEST_PATH} bytes, and {path} has more")
    with _alone(path):
        _remove_stale(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind(listening, path)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
    return listening


def _bind(listening: socket.socket, path: Path) -> None:
    """Give a socket its name, so that nobody else can open it from the first moment on."""
    with _UMASK:
        mask = os.umask(0o177)
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(mask)
    os.chmod(path, 0o600)  # a default ACL of the directory counts in place of the mask
    if os.geteuid() == 0:
        owner = os.stat(path.parent)
        os.lchown(path, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Be the only one that makes a socket of this name: of two that find a stale one, each could remove the other's."""
    lock = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + _PROBE_SECONDS
    with files.opened(lock, os.O_RDWR) as descriptor:
        while not files.lock(descriptor, lock):
            if time.monotonic() > deadline:  # who holds it means no good, since it takes a moment only
                raise OSError(errno.EAGAIN, "is locked by another process", str(lock))
            time.sleep(_PAUSE_SECONDS)
        yield


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that was killed.

    :raises OSError: if another process serves there, or it is no socket.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(errno.EEXIST, "is there, and is no socket", str(path))
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_SECONDS)
        with contextlib.suppress(ConnectionRefusedError):
            probe.connect(os.fspath(path))
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
    path.unlink()
