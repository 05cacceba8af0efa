"""The server that belongs to a manager: a process of its own, which ends with it and is started again if it dies.

The manager does not wait for those who ask, and imports nothing of what answers them.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.python import module_command

if TYPE_CHECKING:
    from airflow_provider_air_executor.manager.settings import Settings
    from airflow_provider_air_executor.server.tls import TlsFiles

log = logging.getLogger("air_executor.manager")

_END_SECONDS = 5.0  # that the server has to end
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # before it is started again
_HEALTHY_SECONDS = 60.0  # after which the next pause is the shortest one


@contextlib.contextmanager
def serving(store: JobStore, settings: Settings) -> Iterator[None]:
    """Have a server as long as the manager runs, if it is to listen anywhere."""
    if not settings.listen:
        yield
        return
    _check(settings)
    child = ServerChild(command(store, settings))
    before = signal.signal(signal.SIGHUP, lambda *_: child.reload())
    child.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
        child.stop()


def _check(settings: Settings) -> None:
    """Refuse settings with which the server would end at once.

    :raises SettingsError: if there are any.
    """
    from airflow_provider_air_executor.server.listener import open_listeners, parse_address

    addresses = [parse_address(text) for text in settings.listen]
    with contextlib.suppress(OSError):  # the server of the manager before may still be there
        tls, is_plain = tls_files(settings), settings.insecure_plain_text
        for listener in open_listeners(addresses, tls_files=tls, insecure_plain_text=is_plain):
            listener.close()


def tls_files(settings: Settings) -> TlsFiles | None:
    """The files of TLS; None if there is to be none.

    :raises SettingsError: if one is missing.
    """
    from airflow_provider_air_executor.server.tls import TlsFiles

    certificate, key, authorities = settings.tls_cert, settings.tls_key, settings.client_ca
    if certificate is None and key is None and authorities is None:
        return None
    if certificate is None or key is None:
        raise SettingsError("TLS needs both a certificate and its key: tls_cert and tls_key")
    return TlsFiles(Path(certificate), Path(key), None if authorities is None else Path(authorities))


def command(store: JobStore, settings: Settings) -> list[str]:
    """The command line of a server with these settings."""
    words = module_command("airflow_provider_air_executor.manager.cli", "serve", "--ends-with-input")
    words += ["--base-path", str(store.base_path), "--log-level", settings.log_level]
    words += ["--log-format", settings.log_format]
    for flag, values in (("--listen", settings.listen), ("--trusted-proxy", settings.trusted_proxies)):
        for value in values:
            words += [flag, value]
    for name in ("tls_cert", "tls_key", "client_ca"):
        if getattr(settings, name) is not None:
            words += [f"--{name.replace('_', '-')}", getattr(settings, name)]
    return [*words, "--insecure-plain-text"] if settings.insecure_plain_text else words


class ServerChild:
    """Runs the server, again and again.

    Its standard input is a pipe that nobody writes to: it ends when the manager does, however that ends.

    :param words: its command line.
    """

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the server."""
        self._ends.set()
        self._close_input()
        self._thread.join(_END_SECONDS)
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()

    @property
    def pid(self) -> int | None:
        """That of the server; None before it is started."""
        process = self._process
        return None if process is None else process.pid

    def reload(self) -> None:
        """Let it read its certificates again."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGHUP)

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())  # they are for the manager
        pause = _SHORTEST_PAUSE
        while not self._ends.is_set():
            began = time.monotonic()
            try:
                self._run_once()
            except OSError as error:
                log.error("the server could not be started: %s", error)
            if self._ends.is_set():
                return
            pause = _SHORTEST_PAUSE if time.monotonic() - began > _HEALTHY_SECONDS else min(2 * pause, _LONGEST_PAUSE)
            log.warning("the server has ended, and is started again in %g s", pause)
            self._ends.wait(pause)

    def _run_once(self) -> None:
        self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, start_new_session=True)
        if self._ends.is_set():
            self._close_input()
        self._process.wait()
        self._close_input()

    def _close_input(self) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
