"""Where the server listens, and where it does not."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.server.listener import (
    Address,
    Listener,
    keep_alive,
    open_listeners,
    parse_address,
)
from tests.support.certificates import Authority


def opened(*addresses: str, **more: object) -> list[Listener]:
    return open_listeners([parse_address(address) for address in addresses], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("[::1]:8080", Address("::1", 8080)),
        ("a.example:0", Address("a.example", 0)),
        ("/a/b", Address("", 0, Path("/a/b"))),
        ("./b", Address("", 0, Path.cwd() / "b")),
    ],
)
def test_an_address_is_a_host_and_a_port_or_a_path(text: str, address: Address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":", "8080", "host", "host:", "host:http", "host:65536", ":80", "::1:80", "a b:1"]
)
def test_anything_else_is_no_address(text: str):
    with pytest.raises(SettingsError, match="listen"):
        parse_address(text)


def test_plain_text_is_for_this_machine_only():
    for address in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(SettingsError, match="--tls-cert"):
            opened(address)
    [listener] = opened("127.0.0.1:0")
    assert str(listener).startswith("http://127.0.0.1:")
    listener.close()
    [listener] = opened("0.0.0.0:0", insecure_plain_text=True)
    assert str(listener).startswith("http://0.0.0.0:")
    listener.close()


def test_with_a_certificate_it_may_be_any_address(tmp_path: Path):
    [listener] = opened("0.0.0.0:0", tls_files=Authority(tmp_path).issue())
    assert str(listener).startswith("https://0.0.0.0:")
    listener.close()


def test_a_host_that_is_not_known_is_named():
    with pytest.raises(SettingsError, match=r"host\.invalid"):
        opened("host.invalid:80", insecure_plain_text=True)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            opened(f"127.0.0.1:{port}")


def test_it_listens_at_all_addresses_or_at_none(tmp_path: Path):
    with pytest.raises(SettingsError):
        opened(f"{tmp_path}/s", "0.0.0.0:0")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o777])
def test_only_the_owner_can_open_a_unix_socket(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        [listener] = opened(f"{tmp_path}/s")
    finally:
        after = os.umask(before)
    assert after == mask, "it is as it was"
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    assert listener.is_unix
    assert str(listener) == f"{tmp_path}/s"
    listener.close()
    assert not (tmp_path / "s").exists()


def test_the_socket_of_a_dead_server_is_replaced(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/s")
        dead.listen()
    [listener] = opened(f"{tmp_path}/s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/s")
    listener.close()


def test_the_socket_of_a_living_server_is_not_replaced(tmp_path: Path):
    [listener] = opened(f"{tmp_path}/s")
    inode = (tmp_path / "s").stat().st_ino
    with pytest.raises(OSError, match="in use"):
        opened(f"{tmp_path}/s")
    assert (tmp_path / "s").stat().st_ino == inode
    listener.close()


def test_what_is_no_socket_is_not_replaced(tmp_path: Path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(FileExistsError, match="no socket"):
        opened(f"{tmp_path}/s")
    assert (tmp_path / "s").read_text() == "mine"


def test_the_socket_of_another_server_is_not_removed(tmp_path: Path):
    [listener] = opened(f"{tmp_path}/s")
    (tmp_path / "s").unlink()
    [other] = opened(f"{tmp_path}/s")
    listener.close()
    assert (tmp_path / "s").exists()
    other.close()
    other.close()


def test_of_many_that_replace_a_dead_one_one_wins(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/s")
    won: list[Listener] = []
    lost: list[OSError] = []

    def open_it() -> None:
        try:
            won.extend(opened(f"{tmp_path}/s"))
        except OSError as error:
            lost.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].close()


def test_a_path_that_is_too_long_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="107 bytes"):
        opened(f"{tmp_path}/{'x' * 110}")


def test_a_connection_whose_other_end_is_gone_is_noticed():
    [listener] = opened("127.0.0.1:0")
    with socket.create_connection(listener.socket.getsockname()) as client:
        keep_alive(client)
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
    keep_alive(client)
    listener.close()
