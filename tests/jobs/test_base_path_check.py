"""What the file system of a base path can do is found out by trying it."""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import NoLocksError, UnfitBasePathError
from airflow_provider_air_executor.jobs import base_path_check, files
from airflow_provider_air_executor.jobs.base_path_check import Finding, Verdict
from airflow_provider_air_executor.system.mounts import Mount
from tests.support.mounts import bound, object_store
from tests.support.system_calls import Faults, Trouble
from tests.support.waiting import PATIENCE, wait_until

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere there is no inotify")


def not_working(findings: tuple[Finding, ...]) -> dict[str, Verdict]:
    return {found.subject: found.verdict for found in findings if found.verdict is not Verdict.WORKS}


@ON_LINUX
def test_on_a_local_disk_all_works_and_nothing_is_left(tmp_path: Path) -> None:
    findings = base_path_check.check(tmp_path)
    assert not_working(findings) == {}
    assert len({found.subject for found in findings}) == len(findings) > 15
    assert base_path_check.what_is_otherwise(findings) == ""
    assert os.listdir(tmp_path) == []
    base_path_check.refuse(tmp_path, tmp_path / "manager.lock", findings)


def test_notification_is_left_out_where_it_is_known(tmp_path: Path) -> None:
    subjects = {found.subject for found in base_path_check.check(tmp_path, notification=False)}
    assert {found.subject for found in base_path_check.check(tmp_path)} - subjects == {
        "notification of changes (inotify)"
    }


@ON_LINUX
@pytest.mark.parametrize(
    ("call", "error", "subject", "verdict"),
    [
        ("fsync", errno.EINVAL, "flushing directories to disk (fsync)", Verdict.OTHERWISE),
        ("link", errno.EPERM, "keeping the old file when it is replaced", Verdict.OTHERWISE),
        ("inotify_add_watch", errno.ENOSPC, "notification of changes (inotify)", Verdict.OTHERWISE),
        ("inotify_init1", errno.EMFILE, "notification of changes (inotify)", Verdict.OTHERWISE),
        ("flock", errno.ENOLCK, "locks (flock)", Verdict.REFUSED),
    ],
)
def test_what_fails_is_done_otherwise_or_refused(
    tmp_path: Path, call: str, error: int, subject: str, verdict: Verdict
) -> None:
    faults = Faults()
    with faults.installed(), faults.on():
        faults.trouble = Trouble("jobs.base_path_check", call, error)
        findings = base_path_check.check(tmp_path)
    assert not_working(findings) == {subject: verdict}
    (found,) = (found for found in findings if found.subject == subject)
    assert found.seen
    assert found.means
    assert found.change


def test_a_directory_that_is_there_is_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mergerfs says."""
    rename = os.rename

    def renamed(source: str, target: str) -> None:
        if os.path.isdir(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)
    assert not_working(base_path_check.check(tmp_path)) == {}


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.ESTALE])
def test_what_may_pass_is_not_refused(tmp_path: Path, error: int) -> None:
    """A manager starts while its disk is full, and goes on when there is room."""
    faults = Faults()
    with faults.installed(), faults.on():
        faults.trouble = Trouble("jobs.base_path_check", "write", error)
        findings = base_path_check.check(tmp_path)
    assert set(not_working(findings).values()) == {Verdict.UNKNOWN}
    said = base_path_check.what_is_otherwise(findings)
    assert said.startswith(f"it could not be tried: replacing a file by a rename ({os.strerror(error)}), ")
    base_path_check.refuse(tmp_path, tmp_path / "manager.lock", findings)


def test_where_nothing_works_it_is_not_known_what_does(tmp_path: Path) -> None:
    faults = Faults()
    with faults.installed(), faults.on():
        faults.trouble = Trouble("jobs.base_path_check", "open", errno.EIO)
        findings = base_path_check.check(tmp_path)
    assert {found.verdict for found in findings} == {Verdict.UNKNOWN}


def test_where_nothing_may_be_written_nothing_is_refused(tmp_path: Path) -> None:
    """A manager says itself what it cannot do there."""
    (tmp_path / "file").touch()
    (found,) = base_path_check.check(tmp_path / "file")
    assert found.verdict is Verdict.UNKNOWN
    assert "Not a directory" in found.sentence


def test_a_refusal_is_a_sentence_with_what_helps(tmp_path: Path) -> None:
    works = Finding("a")
    broken = Finding("reading what was just written", Verdict.REFUSED, "0 of 16 bytes are read", "it ends", "mount it")
    with pytest.raises(UnfitBasePathError) as refused:
        base_path_check.refuse(tmp_path, tmp_path / "manager.lock", [works, broken])
    message = re.fullmatch(r"no manager can run on (.*): its file system( \(\w+\))? fails at (.*)", str(refused.value))
    assert message is not None
    assert message[1] == str(tmp_path)
    assert message[3] == "reading what was just written (0 of 16 bytes are read): it ends; mount it"
    locks = Finding(base_path_check.LOCKS, Verdict.REFUSED, "not supported", "", "")
    with pytest.raises(NoLocksError, match=r"manager\.lock cannot be locked \(not supported\)"):
        base_path_check.refuse(tmp_path, tmp_path / "manager.lock", [locks])


def test_a_file_system_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    make_directory = files.make_directory

    def hanging(*args: Path) -> None:
        go.wait(PATIENCE)
        make_directory(*args)

    monkeypatch.setattr(files, "make_directory", hanging)
    try:
        findings = base_path_check.check_in_time(tmp_path, 0.1)
        assert base_path_check.is_away(findings)
        assert not_working(findings) == {"an answer": Verdict.REFUSED}
    finally:
        go.set()
    assert not base_path_check.is_away(base_path_check.check_in_time(tmp_path, PATIENCE))
    wait_until(lambda: not os.listdir(tmp_path), what="the one that was late has tidied up")


def test_what_a_killed_process_has_left_is_removed_after_a_while(tmp_path: Path) -> None:
    old, new, other = tmp_path / ".check-1", tmp_path / ".check-2", tmp_path / ".other-1"
    for path in (old, new, other):
        (path / "directory").mkdir(parents=True)
        (path / "directory" / "file").touch()
    hours_ago = time.time() - 7200
    for path in (old, other):
        os.utime(path, (hours_ago, hours_ago))
    base_path_check.check(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".check-2", ".other-1"]


@pytest.mark.parametrize(
    ("mount", "subjects"),
    [
        (None, []),
        (Mount("ext4", "/", ("rw",)), []),
        (Mount("nfs4", "/mnt", ("rw", "local_lock=none")), ["notification of changes by other machines"]),
        (
            Mount("nfs", "/mnt", ("rw", "nolock")),
            ["notification of changes by other machines", "locks that hold for other machines"],
        ),
    ],
)
def test_what_is_known_by_the_kind_of_a_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount: Mount | None, subjects: list[str]
) -> None:
    monkeypatch.setattr(base_path_check.mounts, "mount_of", lambda _: mount)
    findings = base_path_check.check(tmp_path)
    assert [found.subject for found in findings[len(findings) - len(subjects) :]] == subjects
    assert not any(found.verdict is Verdict.REFUSED for found in findings)


def test_on_bindfs(tmp_path: Path) -> None:
    """Its locks are those of the mount, and nobody is notified of what is done beside it."""
    (tmp_path / "source").mkdir()
    with bound(tmp_path / "source", tmp_path / "mounted") as place:
        findings = base_path_check.check(place)
        assert os.listdir(place) == []
    found = not_working(findings)
    assert found["notification of changes by other machines"] is Verdict.OTHERWISE
    assert found["locks that hold for other machines"] is Verdict.OTHERWISE
    assert Verdict.REFUSED not in found.values()
    assert "whether its bell was rung" in base_path_check.what_is_otherwise(findings)


def test_modes_that_a_mount_makes_up(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with bound(tmp_path / "source", tmp_path / "mounted", "perms=a+rX") as place:
        findings = base_path_check.check(place)
    assert not_working(findings)["modes of files"] is Verdict.OTHERWISE
    assert "other users may read jobs" in base_path_check.what_is_otherwise(findings)


@pytest.mark.parametrize(
    ("cache", "fails_at"),
    [("off", "appending to files"), ("writes", "renaming directories"), ("full", "renaming directories")],
)
def test_on_the_mount_of_an_object_store(tmp_path: Path, cache: str, fails_at: str) -> None:
    """What is in a directory that was renamed is not there at once: each job ended as invalid."""
    (tmp_path / "source").mkdir()
    with object_store(tmp_path / "source", tmp_path / "mounted", cache) as place:
        findings = base_path_check.check(place)
        assert not_working(findings)[fails_at] is Verdict.REFUSED
        with pytest.raises(UnfitBasePathError, match=r"its file system \(fuse\.rclone\) fails at .* are not fit"):
            base_path_check.refuse(place, place / "manager.lock", findings)
