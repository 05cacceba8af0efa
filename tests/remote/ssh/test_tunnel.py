"""The tunnel by SSH: it reaches the server, one connection does for all, and it survives what dies."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from asyncio import selector_events
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_provider_air_executor import remote
from airflow_provider_air_executor.exceptions import JobsAwayError, ProtocolError, SshError
from airflow_provider_air_executor.remote import ssh
from airflow_provider_air_executor.remote.protocol import Target
from airflow_provider_air_executor.remote.ssh import Tunnel, connecting
from tests.remote.ssh.conftest import OtherMachine, get
from tests.support.sshd import needs_sshd
from tests.support.waiting import wait_until

pytestmark = needs_sshd


def reaches(tunnel: Tunnel) -> str:
    """What the server answers, once it does again."""

    def attempt() -> str | None:
        try:
            return get(tunnel)
        except (OSError, httpx.TransportError):
            return None

    return wait_until(attempt, what="the server answers")


def why_away(tunnel: Tunnel) -> str:
    """Why the server is away; empty if it is not known to be."""
    try:
        tunnel.socket()
    except ConnectionError as error:
        return str(error)
    return ""


def test_it_reaches_the_server(machine: OtherMachine) -> None:
    tunnel = machine.tunnel()
    pid = get(tunnel)
    assert pid.isdecimal()
    assert get(tunnel) == pid
    assert len(get(tunnel, "/3000000")) == 3_000_000
    with httpx.Client(transport=httpx.HTTPTransport(uds=tunnel.socket())) as client:
        assert client.post("http://server/", content=b"y" * 5_000_000).text == "5000000"


def test_nothing_is_lost_that_comes_before_the_other_end_is_open(
    machine: OtherMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python before 3.11.4 begins to read a new connection although it was told to pause."""

    def read(self: Any, descriptor: int, *callback: Any) -> None:
        if not self._closing:
            self._loop._add_reader(descriptor, *callback)

    monkeypatch.setattr(selector_events._SelectorTransport, "_add_reader", read)  # type: ignore[attr-defined]
    assert get(machine.tunnel()).isdecimal()


def test_only_this_user_may_use_the_socket(machine: OtherMachine) -> None:
    directory = Path(machine.tunnel().socket()).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_one_connection_does_for_many_at_once(machine: OtherMachine) -> None:
    tunnel = machine.tunnel()
    with ThreadPoolExecutor(50) as pool:
        answers = set(pool.map(lambda _: get(machine.tunnel()), range(50)))
    assert len(answers) == 1
    assert machine.tunnel() is tunnel
    assert machine.sshd.logins() == 1


def test_it_survives_the_end_of_the_ssh_server(machine: OtherMachine) -> None:
    tunnel = machine.tunnel()
    path, pid = tunnel.socket(), get(tunnel)
    machine.sshd.kill()
    assert "127.0.0.1 by SSH" in wait_until(lambda: why_away(tunnel), what="the end of the connection has been seen")
    machine.sshd.start()
    assert reaches(tunnel) == pid
    assert tunnel.socket() == path


def test_who_waits_for_an_answer_hears_of_the_end(machine: OtherMachine) -> None:
    tunnel = machine.tunnel()
    pid = get(tunnel)
    with socket.socket(socket.AF_UNIX) as waits:
        waits.connect(tunnel.socket())
        waits.sendall(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
        assert waits.recv(1000)
        machine.sshd.end_sessions()
        while waits.recv(1000):
            pass
    assert reaches(tunnel) == pid


def test_it_starts_the_server_again(machine: OtherMachine) -> None:
    tunnel = machine.tunnel()
    pid = get(tunnel)
    machine.kill_server()
    assert reaches(tunnel) not in ("", pid)
    assert machine.sshd.logins() == 1


def test_a_peer_that_does_not_answer_is_given_up(machine: OtherMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing arrives, and nothing is refused, as when a cable is cut."""
    assert connecting.ALIVE_SECONDS * (connecting.ALIVE_COUNT + 1) < 30
    monkeypatch.setattr(connecting, "ALIVE_SECONDS", 0.3)
    tunnel = machine.tunnel()
    pid = get(tunnel)
    frozen = machine.sshd.sessions()
    assert frozen
    try:
        for process in frozen:
            os.kill(process, signal.SIGSTOP)
        assert reaches(tunnel) == pid
        assert machine.sshd.logins() == 2
    finally:
        for process in frozen:
            os.kill(process, signal.SIGCONT)


def test_a_server_that_forwards_no_sockets(machine: OtherMachine) -> None:
    sshd = machine.sshd
    sshd.kill()
    (sshd.directory / "sshd_config").write_text(
        "AllowStreamLocalForwarding no\n" + (sshd.directory / "sshd_config").read_text()
    )
    sshd.start()
    tunnel = machine.tunnel()
    with ThreadPoolExecutor(5) as pool:
        answers = set(pool.map(lambda _: get(tunnel), range(5)))
    assert len(answers) == 1
    assert len(get(tunnel, "/3000000")) == 3_000_000
    assert sshd.logins() == 1
    machine.kill_server()
    assert reaches(tunnel) not in answers


def test_a_child_has_a_connection_of_its_own(machine: OtherMachine) -> None:
    tunnel = machine.tunnel()
    pid = get(tunnel)
    child = os.fork()
    if not child:
        code = 1
        try:
            code = 0 if get(tunnel) == pid and tunnel.socket() == machine.tunnel().socket() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert get(tunnel) == pid
    assert machine.sshd.logins() == 2
    wait_until(lambda: len(_connections(machine)) == 1, what="that of the child is gone")


def _connections(machine: OtherMachine) -> list[str]:
    """The established connections to the port of sshd, at its side."""
    port = f"{machine.sshd.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [line[2] for line in lines if line[1].endswith(f":{port}") and line[3] == "01"]


def test_a_child_does_not_keep_the_connection(machine: OtherMachine) -> None:
    """The other machine sees the end of the parent's, though a child lives on."""
    tunnel = machine.tunnel()
    get(tunnel)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        wait_until(lambda: len(_connections(machine)) == 1, what="there is one")
        ssh.close_all()
        wait_until(lambda: not _connections(machine), what="it has ended")
    finally:
        os.close(writing)
        os.waitpid(child, 0)


PROGRAM = """
import os, sys
from airflow_provider_air_executor.remote.protocol import SshTarget
from airflow_provider_air_executor.remote.ssh import tunnel_to
tunnel = tunnel_to(SshTarget(**eval(sys.argv[1])), command=sys.argv[2])
print(tunnel.socket(), flush=True)
if sys.argv[3] == "exit":
    os._exit(0)
"""


def _in_a_process(machine: OtherMachine, how: str) -> Path:
    target = repr(machine.target()._asdict())
    environment = {**os.environ, "TMPDIR": str(machine.sshd.directory)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, target, f"'{machine.command}'", how],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return Path(done.stdout.strip())


def test_nothing_is_left_at_the_end(machine: OtherMachine) -> None:
    path = _in_a_process(machine, "return")
    assert not path.parent.exists()
    wait_until(lambda: not machine.sshd.sessions(), what="the session has ended")


def test_what_a_process_leaves_is_removed_by_the_next(machine: OtherMachine) -> None:
    """Processes of Airflow's tasks end without cleaning up."""
    path = _in_a_process(machine, "exit")
    assert path.exists()
    os.utime(path.parent, (0, 0))
    alive = Path(machine.tunnel().socket()).parent
    os.utime(alive, (0, 0))
    _in_a_process(machine, "return")
    assert not path.parent.exists()
    assert alive.exists()


def test_no_thread_is_left(machine: OtherMachine) -> None:
    get(machine.tunnel())
    assert "air-executor-ssh" in {thread.name for thread in threading.enumerate()}
    ssh.close_all()
    assert "air-executor-ssh" not in {thread.name for thread in threading.enumerate()}
    wait_until(lambda: not machine.sshd.sessions(), what="the session has ended")


def test_errors_do_not_hold_up(machine: OtherMachine) -> None:
    """All that ask at once get the error of one attempt."""
    tunnel = machine.tunnel(command="/nope/air-executor")

    def why(_: int) -> str:
        with pytest.raises(SshError) as error:
            tunnel.socket()
        return str(error.value)

    with ThreadPoolExecutor(20) as pool:
        said = set(pool.map(why, range(20)))
    assert len(said) == 1
    assert machine.sshd.logins() == 1


def test_a_first_login_that_takes_longer_than_some_wait_is_no_outage(
    machine: OtherMachine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They learn that it is not there yet, and nothing is said in the log of an Airflow task; others wait."""
    go = tmp_path / "go"
    slow = machine.script(f"until test -e {go}; do sleep 0.1; done; exec '{machine.command}' \"$@\"")
    target = Target(ssh=machine.target(), command=slow, base_path="/data", name="slow")
    jobs = remote.connect(target, patience=0)
    caplog.set_level(logging.INFO, remote.__name__)
    with pytest.raises(JobsAwayError, match=r"127\.0\.0\.1 by SSH is not there after 2 s"):
        jobs.get_job("x")
    jobs.ensure_manager()
    go.touch()
    with pytest.raises(ProtocolError):  # it is reached; what answers here is no server of Air-Executor
        jobs.with_patience(None).get_job("x")
    assert caplog.records == []
