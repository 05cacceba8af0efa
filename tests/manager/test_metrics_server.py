"""Metrics are served where the setting says so, and nowhere else; whoever asks cannot disturb the manager."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import TCPServer

import pytest

from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.metrics import CONTENT_TYPE
from airflow_provider_air_executor.manager.metrics_server import MetricsServer, parse_address
from tests.manager.test_metrics import INFO, parsed
from tests.support.jobs import ended
from tests.support.managers import Managers
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, wait_until

Serve = Callable[..., MetricsServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    servers: list[MetricsServer] = []

    def make(address: str | None, info: ManagerInfo | None = INFO) -> MetricsServer:
        server = MetricsServer(address, tmp_path, lambda: info)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.close()


class Connection(http.client.HTTPConnection):
    """Through a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self.path))


def ask(where: int | Path, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    """Status, type and text of an answer."""
    connection = Connection(where) if isinstance(where, Path) else http.client.HTTPConnection("127.0.0.1", where)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def test_at_a_port_of_this_machine(serve: Serve) -> None:
    port = free_port()
    server = serve(str(port))
    status, kind, text = ask(port)
    assert (status, kind) == (200, CONTENT_TYPE)
    assert parsed(text)["queued_tasks", ""] == 3
    assert server._server is not None
    assert server._server.socket.getsockname() == ("127.0.0.1", port)


def test_at_a_socket_for_its_owner_only(serve: Serve, tmp_path: Path) -> None:
    server = serve("./metrics.sock")
    path = tmp_path / "metrics.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert parsed(ask(path)[2])["queued_tasks", ""] == 3
    server.close()
    assert not path.exists()


def test_the_socket_of_a_manager_that_was_killed_is_replaced(serve: Serve, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "metrics.sock"))
    serve("./metrics.sock")
    assert ask(tmp_path / "metrics.sock")[0] == 200


def test_the_socket_of_another_manager_stays(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    serve("./metrics.sock")
    serve("./metrics.sock", None)
    assert "metrics are not served at ./metrics.sock" in caplog.text
    assert ask(tmp_path / "metrics.sock")[0] == 200


def test_a_file_in_its_place_stays(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.sock").write_text("precious")
    serve("./metrics.sock").close()
    assert (tmp_path / "metrics.sock").read_text() == "precious"
    assert "metrics are not served" in caplog.text


def test_a_port_that_is_taken_is_said(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    serve(str(port))
    serve(f"127.0.0.1:{port}", None)
    assert f"metrics are not served at 127.0.0.1:{port}: " in caplog.text
    assert ask(port)[0] == 200


def test_by_default_there_is_none(serve: Serve) -> None:
    assert serve(None)._thread is None


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/", "GET", 404), ("/x/metrics", "GET", 404), ("/metrics", "POST", 501), ("/metrics?x=1", "GET", 200)],
)
def test_only_metrics_are_given(serve: Serve, path: str, method: str, status: int) -> None:
    port = free_port()
    serve(str(port))
    assert ask(port, path, method)[0] == status


def test_before_anything_is_known(serve: Serve) -> None:
    port = free_port()
    serve(str(port), None)
    assert ask(port)[0] == 503


def test_whoever_says_nothing_does_not_keep_others_from_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_air_executor.manager.metrics_server._CLIENT_SECONDS", 0.1)
    port = free_port()
    serve(str(port))
    with socket.create_connection(("127.0.0.1", port)):
        assert ask(port)[0] == 200


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("host-1.example:80", ("host-1.example", 80)),
        ("[::1]:9464", ("::1", 9464)),
        ("./metrics.sock", Path("metrics.sock")),
        ("/run/metrics.sock", Path("/run/metrics.sock")),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "x", "host", "host:", "0", "65536", "::1:9464", "a b:1", "1:2:3"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        parse_address(text)


def test_a_manager_serves_its_own(store: JobStore, managers: Managers) -> None:
    process = managers.start("--metrics-address", "./metrics.sock")
    path = store.base_path / "metrics.sock"
    store.submit("j", ["true"])
    assert ended(store, "j").state is JobState.COMPLETED

    def found() -> dict[tuple[str, str], float]:
        return parsed(text) if (answer := ask(path))[0] == 200 and (text := answer[2]) else {}

    wait_until(path.exists, what="the socket is there")
    wait_until(lambda: found().get(("jobs_completed_total", "")) == 1, what="the end of the job is counted")
    assert found()["manager_info", f'version="{_version()}",host="{os.uname().nodename}",pid="{process.pid}"'] == 1
    process.terminate()
    process.communicate()
    assert process.returncode == 0
    assert not path.exists()


def _version() -> str:
    from airflow_provider_air_executor import __version__

    return __version__


def test_a_client_that_cannot_be_accepted_is_not_tried_without_a_pause(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread would take the processor from the manager."""
    tries = []

    def no_descriptors(_server: TCPServer) -> None:
        tries.append(time.monotonic())
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    serve("./m.sock")
    with monkeypatch.context() as patch, socket.socket(socket.AF_UNIX) as client:
        patch.setattr(TCPServer, "get_request", no_descriptors)
        client.connect(str(tmp_path / "m.sock"))
        wait_until(lambda: len(tries) >= 3, what="it has been tried again")
        assert tries[2] - tries[0] >= 0.2
    assert ask(tmp_path / "m.sock")[0] == 200
