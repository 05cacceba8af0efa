"""A base path on NFS, with the client and the server of a real kernel, and two mounts that know nothing of each other.

These tests change the server of the whole machine, so one of them runs all others in a virtual machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import ManagerRunningError
from airflow_provider_air_executor.jobs import files, manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.mounts import may_be_shared
from tests.support import virtual_machine
from tests.support.jobs import ended
from tests.support.managers import Managers
from tests.support.waiting import PATIENCE, wait_until

inside = pytest.mark.skipif(not virtual_machine.IS_INSIDE, reason="they run in the virtual machine, if there is one")
# Both clients are this kernel, which would show one mount twice.
KINDS = {"4.2": "vers=4.2,nosharecache", "3-nolock": "vers=3,nolock,nosharecache"}


@pytest.mark.engine
@pytest.mark.skipif(virtual_machine.IS_INSIDE, reason="this is it")
def test_in_a_virtual_machine() -> None:
    if shutil.which("rpc.nfsd") is None:
        pytest.skip("there is no server of NFS; see make virtual-machine")
    virtual_machine.run_tests("tests/manager/test_nfs.py")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that this machine serves to itself."""
    path = tmp_path_factory.mktemp("exported")
    for place in ("/run/rpcbind", "/var/lib/nfs/rpc_pipefs"):
        Path(place).mkdir(parents=True, exist_ok=True)
    # No delegations: a kernel that is the server and the client waits for itself to give one back.
    Path("/proc/sys/fs/leases-enable").write_text("0\n")
    _run("mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
    for name, seconds in {"nfsv4gracetime": 10, "nfsv4leasetime": 10}.items():
        Path("/proc/fs/nfsd", name).write_text(f"{seconds}\n")
    _run("rpcbind", "-w")
    _run("exportfs", "-i", "-o", "rw,no_root_squash,insecure,no_subtree_check,fsid=0", f"127.0.0.1:{path}")
    _run("rpc.mountd")
    _run("rpc.nfsd", "4")
    Path("/proc/fs/nfsd/v4_end_grace").write_text("Y\n")  # nobody has a lock from before
    warm_up = tmp_path_factory.mktemp("warm-up")
    _run("mount", "-t", "nfs", "-o", KINDS["4.2"], "127.0.0.1:/", str(warm_up))
    _run("flock", str(warm_up / "x"), "true")  # the first lock takes a minute
    _run("umount", str(warm_up))
    return path


def _run(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert not done.returncode, (words, done.stderr)


@pytest.fixture(params=KINDS)
def mounts(request: pytest.FixtureRequest, exported: Path, tmp_path: Path) -> Iterator[tuple[JobStore, JobStore]]:
    """The base path as two clients have it."""
    places = [tmp_path / name for name in ("A", "B")]
    source = "/" if request.param.startswith("4") else str(exported)  # that of fsid=0
    base = f"base-{time.time_ns()}"
    for place in places:
        place.mkdir()
        _run("mount", "-t", "nfs", "-o", KINDS[request.param], f"127.0.0.1:{source}", str(place))
    yield JobStore(places[0] / base), JobStore(places[1] / base)
    for place in places:
        _run("umount", "--lazy", str(place))


@inside
def test_there_is_one_manager(mounts: tuple[JobStore, JobStore], managers: Managers) -> None:
    one, other = mounts
    assert may_be_shared(one.base_path.parent)
    managers.store = one
    managers.start()
    assert manager_status.is_running(other)
    managers.store = other
    second = managers.launch()
    assert second.wait(PATIENCE) == ManagerRunningError.exit_code
    one.submit("j", ["true"])
    assert ended(other, "j").state == "completed"


@inside
def test_news_travel_before_the_next_pass(mounts: tuple[JobStore, JobStore], managers: Managers) -> None:
    """What is known of a directory is older than that, and nothing is notified."""
    one, other = mounts
    managers.store = other
    managers.start("--poll-interval", "3600")
    for number in range(3):
        one.submit(f"j{number}", ["true"])
        assert ended(one, f"j{number}").state == "completed"


@inside
def test_a_reader_sees_what_another_client_has_replaced(mounts: tuple[JobStore, JobStore]) -> None:
    """Hundreds of times, without an error and without a descriptor that stays open."""
    one, other = mounts
    one.create_directories()
    path, its_path = one.base_path / "x", other.base_path / "x"
    files.publish(path, b"0")
    wait_until(lambda: files.current_stamp(its_path), what="it is seen")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 300):
        stamp = files.publish(path, str(number).encode())
        assert files.current_stamp(its_path) == stamp
        assert files.read(its_path)[0] == str(number).encode()
    assert len(os.listdir("/proc/self/fd")) == before
