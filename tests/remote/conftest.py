"""A server that is reached over a network that can fail."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator

import pytest

from airflow_provider_air_executor import remote
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.remote import events, transport
from airflow_provider_air_executor.remote.connections import Timeouts
from airflow_provider_air_executor.remote.jobs import RemoteJobs
from airflow_provider_air_executor.remote.protocol import Target
from tests.support.proxy import Proxy
from tests.support.servers import ServerThread

_numbers = itertools.count()


@pytest.fixture
def server(store: JobStore) -> Iterator[ServerThread]:
    with ServerThread(store) as found:
        yield found


@pytest.fixture
def proxy(server: ServerThread) -> Iterator[Proxy]:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with Proxy(lambda: socket.create_connection((host, int(port)))) as found:
        yield found


@pytest.fixture
def connected(server: ServerThread, proxy: Proxy) -> Iterator[Callable[..., RemoteJobs]]:
    """Connects a client to the server through the proxy; each time another one, with connections of its own."""
    token = server.token("tests", "admin")

    made = []

    def connect(patience: float | None = 60.0) -> RemoteJobs:
        target = Target(url=proxy.url, token=token, name=f"client {next(_numbers)}")
        made.append(remote.connect(target, patience=patience))
        return made[-1]

    yield connect
    for jobs in made:
        jobs.close()


@pytest.fixture
def jobs(connected: Callable[..., RemoteJobs]) -> RemoteJobs:
    return connected()


@pytest.fixture
def short_silences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections over which nothing comes are given up soon."""
    monkeypatch.setattr(transport, "PATIENT", Timeouts(connect=1.0, read=1.0))
    monkeypatch.setattr(events, "TIMEOUTS", Timeouts(connect=1.0, read=1.0))
