"""Servers of a base path: in a thread of this process, or as processes of their own."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import httpx

from airflow_provider_air_executor.jobs import embedded_manager
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server import presence
from airflow_provider_air_executor.server.app import create_app
from airflow_provider_air_executor.server.http_server import Server
from airflow_provider_air_executor.server.listener import open_listeners, parse_address
from airflow_provider_air_executor.server.presence import ServerInfo
from airflow_provider_air_executor.server.service import Service
from airflow_provider_air_executor.server.tokens import Scope, Tokens
from tests.support.managers import CLI
from tests.support.waiting import PATIENCE, wait_until


def client_at(socket: str, **more: Any) -> httpx.Client:
    """A client that comes by a Unix socket."""
    return httpx.Client(
        transport=httpx.HTTPTransport(uds=socket), base_url="http://server/v1", timeout=PATIENCE, **more
    )


def client_with(url: str, token: str = "", **more: Any) -> httpx.Client:
    """A client that comes by TCP, with a token if there is one."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=PATIENCE, **more)


def _start_manager(store: JobStore) -> None:
    embedded_manager.start_if_none(store)


class ServerThread:
    """A server in a thread, at a Unix socket and at a port of its own.

    :param embedded: whether it starts managers.
    """

    def __init__(self, store: JobStore, *, embedded: bool = False) -> None:
        store.create_directories()
        self.store = store
        self.socket = str(presence.socket_path(store))
        self._listeners = open_listeners([parse_address(self.socket), parse_address("127.0.0.1:0")])
        self.url = str(self._listeners[1])
        start_manager = partial(_start_manager, store) if embedded else None
        self.service = Service(FileJobs(store, start_manager=start_manager), embedded=embedded)
        self._server = Server(create_app(self.service), self._listeners)
        self._thread = threading.Thread(target=self._server.run, name="server")
        self._clients: list[httpx.Client] = []

    def __enter__(self) -> Self:
        self._thread.start()
        with self.client() as client:
            wait_until(lambda: client.get("/health").is_success, what="the server answers")
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        self.stop()

    def stop(self) -> None:
        """End it as an administrator does."""
        self._server.stop()
        self._thread.join()

    def client(self, **more: Any) -> httpx.Client:
        """A client that comes by the Unix socket."""
        return client_at(self.socket, **more)

    def client_with(self, token: str = "", **more: Any) -> httpx.Client:
        """A client that comes by TCP."""
        self._clients.append(client_with(self.url, token, **more))
        return self._clients[-1]

    def token(self, name: str, scope: str) -> str:
        """A new token."""
        return Tokens(self.store.base_path).create(name, Scope(scope))


class Servers:
    """Starts and kills servers of one base path, as processes."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.environment: Mapping[str, str] = {
            key: value for key, value in os.environ.items() if not key.startswith("AIR_EXECUTOR")
        }
        self._processes: list[subprocess.Popen[str]] = []

    def launch(self, *flags: str, **kwargs: Any) -> subprocess.Popen[str]:
        """Start a server, without waiting for it."""
        process = subprocess.Popen(
            [*CLI, "serve", "--base-path", str(self.store.base_path), *flags],
            env=dict(self.environment),
            **{"stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, **kwargs},
        )
        self._processes.append(process)
        return process

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """Start a server, and wait until it answers."""
        process = self.launch(*flags)
        wait_until(
            lambda: process.poll() is not None or ((info := self.info()) is not None and info.pid == process.pid),
            what="it answers",
        )
        assert process.poll() is None, process.communicate()[1]
        return process

    def info(self) -> ServerInfo | None:
        """The server that runs."""
        return presence.running(self.store) if self.store.base_path.is_dir() else None

    def client(self) -> httpx.Client:
        """A client that comes by the Unix socket."""
        return client_at(str(presence.socket_path(self.store)))

    def close(self) -> None:
        """End all servers, also one that was started in the background."""
        info = self.info()
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
        if info is not None and Path(f"/proc/{info.pid}").exists():
            os.kill(info.pid, 9)
