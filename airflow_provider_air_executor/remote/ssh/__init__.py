"""A way by SSH to the Unix socket of a server on another machine.

A process has one SSH connection for each target, in a thread with an event loop of its own, and a Unix socket that is
forwarded: whoever speaks to that socket speaks to the server. sshd and the command ``air-executor`` are all that the
other machine needs.

Nothing here needs asyncssh before a tunnel is opened.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_air_executor.exceptions import SettingsError, SshError
from airflow_provider_air_executor.remote.protocol import SshTarget

if TYPE_CHECKING:
    from airflow_provider_air_executor.remote.ssh.forwarding import Forwarder

T = TypeVar("T")

CONNECT_SECONDS = 90.0  # for a connection, a login, and a manager that has to be started
_CLOSE_SECONDS = 2.0


class NotYetError(ConnectionError):
    """A connection is still being made; who had to wait for longer may have it."""


class Tunnel:
    """A Unix socket on this machine that leads to a server on another one.

    All methods can be called from any thread, but from that of an event loop only if it may wait.

    :param target: the other machine.
    :param command: ``air-executor`` there: a command and its first arguments, as one line of a shell.
    :param base_path: the job filesystem there; None: the one that the command finds there.
    :param embedded: whether a manager is started there if none runs.
    """

    def __init__(self, target: SshTarget, *, command: str, base_path: str | None, embedded: bool) -> None:
        self._about = (target, command, base_path, embedded)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._forwarder: Forwarder | None = None

    def socket(self, seconds: float = CONNECT_SECONDS) -> str:
        """The path of the socket; it costs nothing while the connection is well.

        :param seconds: for at most so long it is waited for; what has begun goes on.
        :raises SshError: if the other machine cannot be reached like this, however often it is tried: its key is not
            known, it does not let this user in, or has no such command.
        :raises ConnectionError: if it cannot be reached now; also for such a reason, if it was reached before by this
            process. It is a :class:`NotYetError` if the time is over.
        :raises SettingsError: if asyncssh is not installed.
        """
        if os.getpid() != self._pid:  # this is a child of the process that has the connection
            target, command, base_path, embedded = self._about
            return tunnel_to(target, command=command, base_path=base_path, embedded=embedded).socket(seconds)
        forwarder = self._forwarder or self._start()
        if not forwarder.is_ready:
            _wait_for(forwarder.make_ready(), seconds, f"{self._about[0].host} by SSH")
        return forwarder.path

    def _start(self) -> Forwarder:
        try:
            from airflow_provider_air_executor.remote.ssh.forwarding import Forwarder
            from airflow_provider_air_executor.remote.ssh.link import Link
        except ImportError as error:
            raise SettingsError(
                f"SSH needs a package that is not installed ({error.name}): "
                "pip install 'airflow-provider-air-executor[ssh]'"
            ) from error
        with self._lock:
            if self._forwarder is None:
                target, command, base_path, embedded = self._about
                forwarder = Forwarder(Link(target, command=command, base_path=base_path, embedded=embedded))
                _wait_for(forwarder.listen(), CONNECT_SECONDS, "a Unix socket")
                self._forwarder = forwarder
            return self._forwarder

    def close(self) -> None:
        """End the connection; :meth:`socket` makes another one."""
        with self._lock:
            forwarder, self._forwarder = self._forwarder, None
        if forwarder is not None and os.getpid() == self._pid:
            with contextlib.suppress(ConnectionError):
                _wait_for(forwarder.close(), _CLOSE_SECONDS, "the end of a connection by SSH")
            forwarder.remove_socket()

    def remove_socket(self) -> None:
        """Remove the socket from the file system, when this process ends: connections end with it."""
        if self._forwarder is not None:
            self._forwarder.remove_socket()

    def leave(self) -> None:
        """In a child process: let go of what belongs to the parent, without a word to the other machine."""
        if self._forwarder is not None:
            self._forwarder.leave()
            _of_parents.append(self._forwarder)
            self._forwarder = None


class _Loop:
    """The event loop of all tunnels of this process, in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="air-executor-ssh", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def stop(self) -> None:
        with contextlib.suppress(TimeoutError):
            self.submit(self.loop.shutdown_default_executor()).result(_CLOSE_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()


_tunnels: dict[tuple[SshTarget, str, str | None, bool], Tunnel] = {}
_loop: _Loop | None = None
_lock = threading.Lock()
_of_parents: list[Any] = []  # what must not be finalized here: that would end the connection of the parent process


def tunnel_to(
    target: SshTarget, *, command: str = "air-executor", base_path: str | None = None, embedded: bool = False
) -> Tunnel:
    """The tunnel of this process to a job filesystem; see :class:`Tunnel`."""
    key = (target, command, base_path, embedded)
    with _lock:
        if key not in _tunnels:
            _tunnels[key] = Tunnel(target, command=command, base_path=base_path, embedded=embedded)
        return _tunnels[key]


def close_all() -> None:
    """End all connections of this process."""
    global _loop  # noqa: PLW0603 - one in a process
    with _lock:
        tunnels, loop = list(_tunnels.values()), _loop
        _tunnels.clear()
    for tunnel in tunnels:
        tunnel.close()
    if loop is not None:
        loop.stop()
        _loop = None


def _wait_for(work: Coroutine[Any, Any, T], seconds: float, what: str) -> T:
    future = _running_loop().submit(work)
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        future.cancel()
        raise NotYetError(f"{what} is not there after {seconds:g} s") from None


def _running_loop() -> _Loop:
    global _loop  # noqa: PLW0603 - one in a process
    with _lock:
        if _loop is None:
            _loop = _Loop()
        return _loop


def _begin_anew() -> None:
    """In a child process: it has none of its parent's threads."""
    global _loop, _lock  # noqa: PLW0603 - one in a process
    _lock = threading.Lock()
    for tunnel in _tunnels.values():
        tunnel.leave()
    _of_parents.append((_loop, dict(_tunnels)))
    _tunnels.clear()
    _loop = None


def _end() -> None:
    """At the end of this process; other threads may still be in the middle of something, so nothing is closed."""
    for tunnel in list(_tunnels.values()):
        tunnel.remove_socket()


os.register_at_fork(after_in_child=_begin_anew)
atexit.register(_end)

__all__ = ["SshError", "SshTarget", "Tunnel", "close_all", "tunnel_to"]
