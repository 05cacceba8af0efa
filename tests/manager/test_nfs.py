"""A base path on NFS, with the client and the server of a real kernel, and two mounts that know nothing of each other.

These tests change the server of the whole machine, so one of them runs all others in a virtual machine.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import ManagerRunningError
from airflow_provider_air_executor.jobs import files, manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.mounts import may_be_shared
from tests.support import nfs, virtual_machine
from tests.support.jobs import ended
from tests.support.managers import Managers
from tests.support.waiting import PATIENCE, wait_until

inside = pytest.mark.skipif(not virtual_machine.IS_INSIDE, reason="they run in the virtual machine, if there is one")


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
    nfs.serve(path)
    return path


@pytest.fixture(params=nfs.KINDS)
def mounts(request: pytest.FixtureRequest, exported: Path, tmp_path: Path) -> Iterator[tuple[JobStore, JobStore]]:
    """The base path as two clients have it."""
    base = f"base-{time.time_ns()}"
    with nfs.mounted(exported, request.param, tmp_path) as places:
        one, other = places
        yield JobStore(one / base), JobStore(other / base)


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
