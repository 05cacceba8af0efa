"""A manager whose base path other machines change, too."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import bell, inbox
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.watch import watching
from airflow_provider_air_executor.manager import changes
from airflow_provider_air_executor.system.mounts import find, may_be_shared, mount_of
from tests.support.jobs import ended, task
from tests.support.managers import Managers
from tests.support.mounts import bound
from tests.support.stepped_manager import SteppedManager
from tests.support.waiting import PATIENCE, wait_until

MOUNTS = """\
22 28 0:21 / /proc rw,nosuid shared:5 - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw
60 28 0:50 / /home/with\\040space rw - nfs4 server:/home rw,vers=4.2
61 28 0:51 /part /mnt rw master:1 - fuse.sshfs host:/part rw
"""


@pytest.mark.parametrize(
    ("device", "path", "kind"),
    [
        ((254, 1), "/srv/jobs", "ext4"),
        ((0, 50), "/home/with space/x", "nfs4"),
        ((0, 51), "/mnt", "fuse.sshfs"),
        ((0, 51), "/seen/elsewhere", "fuse.sshfs"),
        ((0, 99), "/home/with space/x", "nfs4"),  # as of btrfs, by its path
        ((0, 99), "/home/with spaces", "ext4"),
    ],
)
def test_the_kind_of_a_file_system(device: tuple[int, int], path: str, kind: str) -> None:
    found = find(os.makedev(*device), path, MOUNTS)
    assert found is not None
    assert found.kind == kind


def test_a_file_system_that_is_not_known() -> None:
    assert find(os.makedev(0, 5), "/x", "") is None
    assert find(os.makedev(0, 5), "/x", "not a line of this file\n") is None


@pytest.mark.parametrize(
    ("kind", "options", "is_shared", "has_own_locks"),
    [
        ("ext4", "rw,nolock", False, False),
        ("nfs", "rw,vers=3,nolock,local_lock=all", True, True),
        ("nfs", "rw,vers=3,local_lock=flock", True, True),
        ("nfs4", "rw,vers=4.2,local_lock=none", True, False),
        ("lustre", "rw,flock", True, False),
        ("lustre", "rw,localflock", True, True),
        ("fuse.sshfs", "rw", True, True),
        ("fuse", "rw", True, True),  # as bindfs calls itself
        ("fuse.glusterfs", "rw", True, False),
        ("fuse.fuse-overlayfs", "rw", False, False),
        ("overlay", "rw", False, False),
        ("of-tomorrow", "rw", True, False),
    ],
)
def test_whose_locks_hold_here_only(kind: str, options: str, is_shared: bool, has_own_locks: bool) -> None:
    found = find(os.makedev(0, 7), "/mnt/x", f"60 28 0:7 / /mnt rw - {kind} server:/x {options}\n")
    assert found is not None
    assert (found.is_shared, found.has_own_locks) == (is_shared, has_own_locks)


def test_of_a_directory_of_this_machine(tmp_path: Path) -> None:
    assert not may_be_shared(tmp_path)
    assert not may_be_shared(tmp_path / "nothing")
    found = mount_of(tmp_path)
    assert found is not None
    assert tmp_path.is_relative_to(found.point)


@pytest.fixture
def there(store: JobStore, tmp_path: Path) -> Iterator[JobStore]:
    """The base path as a mount shows it that does not ask for attributes again."""
    store.create_directories()
    with bound(store.base_path, tmp_path / "there", "attr_timeout=3600,entry_timeout=3600") as place:
        yield JobStore(place)


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


def test_news_travel_between_two_mounts(mounts: tuple[JobStore, JobStore], managers: Managers) -> None:
    """Long before the next pass over everything, which is an hour away."""
    one, other = mounts
    managers.store = other
    managers.start("--poll-interval", "3600")
    one.submit("j", [task("a", "sleep 1000")])
    wait_until(lambda: one.get_job("j").state == "working", what="it was heard that there is a job")

    async def wait_for_end() -> None:
        async with watching(one, "j", interval=3600) as waiter:
            inbox.cancel(one, "j")
            while not one.get_job("j").state.is_terminal:
                assert await waiter.wait(PATIENCE)

    asyncio.run(wait_for_end())
    assert one.get_job("j").reason == "cancelled"


def test_listing_many_jobs_takes_a_small_part_of_the_time(
    stepped: SteppedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of them are listed in each pass."""
    monkeypatch.setattr(bell.mounts, "may_be_shared", lambda _: True)
    assert stepped.start_manager()
    assert stepped.manager is not None
    times = iter([0.0, 2.0])
    monkeypatch.setattr(changes.time, "thread_time", lambda: next(times, 2.0))
    for pause in (300, stepped.manager.shared.settings.poll_interval):
        stepped.manager.changes.next_pass = 0.0
        stepped.manager.changes.accept()
        assert stepped.manager.changes.next_pass == pytest.approx(stepped.manager.shared.timers.now() + pause)
