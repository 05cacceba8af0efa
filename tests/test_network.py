"""The two machines of the tests: what one sees of the other, and what is left of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import network
from tests.support.network import FAR, Network
from tests.support.processes import is_gone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(bool(network.missing()), reason=f"no {', '.join(network.missing())}")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def machines() -> Iterator[Network]:
    with Network() as found:
        yield found


def ping(machines: Network) -> bool:
    """Whether the far machine answers the near one."""
    program = f"import socket; s = socket.create_connection(('{FAR}', 7), 1)"
    done = subprocess.run(
        machines.near.command(sys.executable, "-c", program), check=False, capture_output=True, text=True
    )
    return "ConnectionRefusedError" in done.stderr


def test_the_cable_joins_them_and_nothing_else(machines: Network) -> None:
    assert ping(machines)
    assert not Path("/sys/class/net/cable").exists()


def test_a_cable_that_is_out_is_in_again(machines: Network) -> None:
    with machines.cut():
        assert not ping(machines)
    wait_until(lambda: ping(machines), what="it answers again")


@pytest.mark.parametrize("lost", [(), ("requests",), ("answers",)])
def test_nothing_arrives_and_nothing_is_refused(machines: Network, lost: tuple[network.Direction, ...]) -> None:
    """A connection that was there before is there afterwards, with what was sent meanwhile."""
    with machines.far.entered(), socket.create_server((FAR, 0)) as server:
        pass_on = server.accept
        with machines.near.entered():
            client = socket.create_connection(server.getsockname())
        with client, pass_on()[0] as other:
            client.settimeout(0.3)
            with machines.silent(*lost):
                client.sendall(b"request")
                other.sendall(b"answer")
                if lost == ("answers",):
                    assert other.recv(100) == b"request"
                if lost == ("requests",):
                    assert client.recv(100) == b"answer"
                else:
                    with pytest.raises(TimeoutError):
                        client.recv(100)
            client.settimeout(None)
            if lost != ("answers",):
                assert other.recv(100) == b"request"
            if lost != ("requests",):
                assert client.recv(100) == b"answer"


def test_a_thread_that_begins_within_is_within(machines: Network) -> None:
    found: list[str] = []

    def look() -> None:
        found.append(os.readlink("/proc/thread-self/ns/net"))

    with machines.near.entered():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert found == [os.readlink(f"/proc/{machines.near.pid}/ns/net"), os.readlink("/proc/self/ns/net")]


def test_files_of_the_far_machine_are_its_own(machines: Network) -> None:
    """Its user runs what is installed here; this process reads the files by another path."""
    far = machines.far
    program = f"""
import os, pwd, airflow_provider_air_executor.jobs.store
os.umask(0o77)
print("told", file=open("{far.home}/file", "w"))
print(pwd.getpwuid(os.getuid()).pw_name, os.uname().nodename)
"""
    done = subprocess.run(far.as_user(sys.executable, "-c", program), check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["air", "far"]
    assert (far.seen_from_here / "file").read_text() == "told\n"
    assert not far.home.exists()
    assert os.stat(far.seen_from_here).st_uid == far.uid


def test_nothing_is_left_of_them() -> None:
    """Not of what runs there, and not of a run whose process is killed."""
    program = """
import subprocess, sys, time
from tests.support.network import Network
from tests.support.waiting import wait_until
with Network() as machines:
    print(machines.near.pid, machines.far.pid, flush=True)
    if "killed" in sys.argv:
        time.sleep(1000)
    started = subprocess.Popen(machines.far.command("sleep", "1000"), start_new_session=True).pid
    wait_until(lambda: started in machines.far.processes(), what="it has entered that machine")
    print(started)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3
    assert all(is_gone(pid) for pid in pids)
    command = [sys.executable, "-c", program, "killed"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        holders = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: all(is_gone(pid) for pid in holders), what="they have ended")
