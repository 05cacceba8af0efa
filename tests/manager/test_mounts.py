"""A manager whose base path other machines change, too."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.mounts import kind_of, may_be_shared
from tests.support.jobs import ended
from tests.support.managers import Managers
from tests.support.waiting import wait_until

MOUNTS = """\
22 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
60 28 0:50 / /home/with\\040space rw - nfs4 server:/home rw,vers=4.2
61 28 0:51 /part /mnt rw master:1 - fuse.sshfs host:/part rw
"""


@pytest.mark.parametrize(
    ("device", "kind"),
    [((254, 1), "ext4"), ((0, 50), "nfs4"), ((0, 51), "fuse.sshfs"), ((0, 5), ""), ((22, 28), "")],
)
def test_the_kind_of_a_file_system(device: tuple[int, int], kind: str) -> None:
    assert kind_of(os.makedev(*device), MOUNTS) == kind


def test_of_a_directory_of_this_machine(tmp_path: Path) -> None:
    assert not may_be_shared(tmp_path)
    assert not may_be_shared(tmp_path / "nothing")


@pytest.fixture
def there(store: JobStore, tmp_path: Path) -> Iterator[JobStore]:
    """The base path as a mount shows it that does not ask for attributes again."""
    if shutil.which("bindfs") is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("bindfs or /dev/fuse is missing")
    store.create_directories()
    place = tmp_path / "there"
    place.mkdir()
    hour = "attr_timeout=3600,entry_timeout=3600"
    mounted = subprocess.run(["bindfs", "-o", hour, str(store.base_path), str(place)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"bindfs: {mounted.stderr.decode()}")
    try:
        yield JobStore(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_new_job_is_found_although_the_stamp_of_the_directory_is_old(
    store: JobStore, there: JobStore, managers: Managers
) -> None:
    assert may_be_shared(there.jobs_path)
    managers.store = there
    managers.start("--poll-interval", "0.2")
    for number in range(2):
        # A manager lists a directory again that was changed a moment ago.
        wait_until(lambda: time.time() - store.jobs_path.stat().st_mtime > 3, what="it was changed some time ago")
        store.submit(f"j{number}", ["true"])
        assert ended(store, f"j{number}").state == "completed"


def test_what_such_a_mount_shows(store: JobStore, there: JobStore) -> None:
    """What the test above needs: as NFS does it for up to a minute."""
    before = there.jobs_path.stat().st_mtime_ns
    (store.jobs_path / "x").mkdir()
    assert there.jobs_path.stat().st_mtime_ns == before
    assert [path.name for path in there.jobs_path.iterdir()] == ["x"]
