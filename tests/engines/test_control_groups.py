"""Which control groups a process has, and what becomes of those of attempts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.local.attempt import TooMuchMemory
from airflow_provider_air_executor.engines.local.memory_groups import MemoryGroups
from airflow_provider_air_executor.system import control_groups
from airflow_provider_air_executor.system.control_groups import Group, Groups, Measured, NoGroupsError, own_group


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


_BEFORE = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755"
_MIXED = "9:name=systemd:/a\n4:memory:/b\n0::/c/d\n"


@pytest.mark.parametrize(
    ("groups", "mount", "found"),
    [
        (
            "0::/a.slice/b.service/m\n",
            "/ /sys/fs/cgroup",
            ("/a.slice/b.service/m", "/sys/fs/cgroup/a.slice/b.service/m"),
        ),
        ("0::/\n", "/ /sys/fs/cgroup", ("/", "/sys/fs/cgroup")),
        (_MIXED, "/ /sys/fs/cgroup/unified", ("/c/d", "/sys/fs/cgroup/unified/c/d")),
        ("0::/c/d\n", "/c /mnt", ("/c/d", "/mnt/d")),
        ("0::/c\n", "/c /mnt", ("/c", "/mnt")),
        ("0::/cd\n", "/c /mnt", None),
        ("0::/\n", "/.. /sys/fs/cgroup", None),
        ("0::/a b\n", r"/ /my\040groups", ("/a b", "/my groups/a b")),
        ("0::/a:b\n", "/ /g", ("/a:b", "/g/a:b")),
        ("4:memory:/b\n", "/ /sys/fs/cgroup", None),
        ("", "/ /sys/fs/cgroup", None),
    ],
)
def test_the_directory_of_its_group(groups: str, mount: str, found: tuple[str, str] | None) -> None:
    """Also where only a part of all groups is mounted, as in a container, and with optional fields of a mount."""
    for more in ("", "shared:9 master:1 "):
        mounts = f"{_BEFORE}\n41 31 0:38 {mount} rw,relatime {more}- cgroup2 cgroup2 rw\n"
        assert own_group(groups, mounts) == (found and (found[0], Path(found[1])))
    assert own_group(groups, f"{_BEFORE}\n") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_where_none_can_be_made_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_groups, "own_group", lambda *_: None)
    with pytest.raises(NoGroupsError, match="not mounted"):
        control_groups.find()


def test_what_a_group_says(tmp_path: Path) -> None:
    group = Group(str(tmp_path), "")
    assert group.measure() == Measured(None, None, 0, is_killed=False)
    (tmp_path / "memory.max").write_text("4096\n")
    (tmp_path / "memory.peak").write_text("4000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1234567\nuser_usec 1\n")
    (tmp_path / "memory.events").write_text("low 0\nmax 7\noom 0\noom_kill 1\n")
    measured = group.measure()
    assert measured == Measured(4096, 4000, 1.235, is_killed=False), "a group above it had no memory left"
    assert TooMuchMemory.of(measured) is None
    (tmp_path / "memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 1\n")
    over = TooMuchMemory.of(group.measure())
    assert over is not None
    assert over.error == "it was killed: it used more than the 4 KiB of memory that it may use"


def left(parent: Path) -> list[str]:
    return sorted(path.name for path in parent.iterdir())


def test_a_group_in_which_something_lives_is_removed_later(tmp_path: Path) -> None:
    clock = Clock()
    groups = MemoryGroups(Path("/base"), lambda: Groups(tmp_path, tmp_path), clock)
    assert groups.look_after is None
    path = tmp_path / "group"
    (path / "process").mkdir(parents=True)
    groups.remove(Group(str(path), ""))
    for _ in range(20):
        after = groups.look_after
        assert after is not None
        assert 0 < after <= 60
        clock.now += after
        groups.look()
        assert left(tmp_path) == ["group"]
    (path / "process").rmdir()
    groups.look()
    assert left(tmp_path) == ["group"], "it is not the time"
    clock.now += 60
    groups.look()
    assert not left(tmp_path)
    assert groups.look_after is None


def test_what_an_earlier_manager_has_left_is_removed_when_there_was_time_to_adopt_it(tmp_path: Path) -> None:
    clock = Clock()
    prefix = MemoryGroups(Path("/base"), lambda: Groups(tmp_path, tmp_path), clock)._prefix
    mine, others = tmp_path / f"{prefix}1", tmp_path / "air-executor-0-1"
    for path in (mine, others):
        path.mkdir()
    groups = MemoryGroups(Path("/base"), lambda: Groups(tmp_path, tmp_path), clock)
    groups.look()
    assert mine.exists()
    clock.now += 61
    groups.look()
    assert left(tmp_path) == [others.name]


def test_where_no_group_can_be_made_there_is_none(tmp_path: Path) -> None:
    groups = MemoryGroups(Path("/base"), lambda: Groups(tmp_path, tmp_path))
    assert groups.may_be_made
    assert groups.make("record", "now", 4096) is None, "this is no place for groups"
    assert not left(tmp_path)
