"""Standard input and output as a connection to a server."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

CODE = "import sys; from airflow_provider_air_executor.manager.cli.bridge import bridge; bridge(sys.argv[1])"


def bridged(path: Path, serve: Callable[[socket.socket], None], given: bytes) -> bytes:
    """What comes out when something goes in."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            with listening.accept()[0] as connection:
                serve(connection)

        server = threading.Thread(target=answer)
        server.start()
        done = subprocess.run([sys.executable, "-c", CODE, str(path)], input=given, capture_output=True, check=True)
        server.join()
        return done.stdout


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_all_that_comes_in_is_answered(tmp_path: Path) -> None:
    """Also more than fits into pipes and sockets, and after the end of the input."""
    data = bytes(range(256)) * 20_000
    assert (
        bridged(tmp_path / "s", lambda connection: connection.sendall(everything(connection)[::-1]), data) == data[::-1]
    )


def test_it_ends_with_the_server(tmp_path: Path) -> None:
    """Though its input goes on."""
    with (
        subprocess.Popen(["sleep", "1000"], stdout=subprocess.PIPE) as sleeping,
        socket.socket(socket.AF_UNIX) as server,
    ):
        server.bind(str(tmp_path / "s"))
        server.listen()
        words = [sys.executable, "-c", CODE, str(tmp_path / "s")]
        with subprocess.Popen(words, stdin=sleeping.stdout, stdout=subprocess.PIPE) as bridge:
            connection, _ = server.accept()
            connection.sendall(b"bye")
            connection.close()
            assert bridge.communicate()[0] == b"bye"
            assert bridge.returncode == 0
        sleeping.kill()


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr
