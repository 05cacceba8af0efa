"""Files are published whole, and no descriptor is left open."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.waiting import wait_until


def test_a_read_that_fails_leaves_no_file_open(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where a file that was replaced can be opened, and is stale."""
    store.submit("j", ["true"])
    before = len(os.listdir("/proc/self/fd"))

    def fstat(descriptor: int) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        for _ in range(5):
            with pytest.raises(OSError, match="Stale"):
                files.open_regular(store.paths("j").state)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_another_host_has_replaced_is_read(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GlusterFS and NFS: it is stale until its directory has been listed, however often it is opened.

    The row ``glusterfs-two-mounts`` of the matrix has the real one.
    """
    store.submit("j", ["true"])
    fstat, listdir, listed = os.fstat, os.listdir, []

    def list_directory(path: str) -> list[str]:
        listed.append(Path(path))
        return listdir(path)

    def stat_or_fail(descriptor: int) -> os.stat_result:
        if store.paths("j").directory not in listed:
            raise OSError(errno.ESTALE, "Stale file handle")
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", stat_or_fail)
    monkeypatch.setattr(os, "listdir", list_directory)
    assert store.get_job("j").state == "waiting"


class TestPublishing:
    def test_a_reader_sees_the_old_file_or_the_new_one(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        versions = [json.dumps([number] * 5000).encode() for number in range(200)]
        files.publish(path, versions[0])
        done = threading.Event()
        seen: list[object] = []

        def read() -> None:
            while not done.is_set():
                seen.append(json.loads(path.read_bytes())[-1])

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: seen, what="it reads")
        for data in versions:
            files.publish(path, data)
        done.set()
        reader.join()
        assert seen
        assert [item.name for item in tmp_path.iterdir()] == ["file"]

    def test_what_was_put_there_meanwhile_is_kept(self, tmp_path: Path) -> None:
        path, previous = tmp_path / "file", tmp_path / "previous"
        files.publish(path, b"1")
        before = files.stamp(path)
        with path.open("wb") as late:
            stamp, existed = finish(files.publishing_with_backup(path, [b"2"], previous))
            late.write(b"late")
        assert existed
        assert files.stamp(path) == stamp
        assert path.read_bytes() == b"2"
        assert previous.read_bytes() == b"late"
        assert files.stamp(previous) != before

    @pytest.mark.parametrize("exchange", [True, False])
    def test_the_same_where_the_system_cannot_exchange(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
    ) -> None:
        if not exchange:
            monkeypatch.setattr(files, "_renameat2", lambda *_: False)
        path, previous = tmp_path / "file", tmp_path / "previous"
        assert finish(files.publishing_with_backup(path, [b"1"], previous))[1] is False
        for number in range(3):
            before = files.stamp(path)
            assert finish(files.publishing_with_backup(path, [b"%d" % number], previous))[1] is True
            assert files.stamp(previous) == before
        assert sorted(item.name for item in tmp_path.iterdir()) == ["file", "previous"]

    def test_a_directory_gets_its_name_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for attempt in ("exchange", "plain"):
            if attempt == "plain":
                monkeypatch.setattr(files, "_renameat2", lambda *_: False)
            target = tmp_path / attempt
            (tmp_path / "one").mkdir()
            files.publish_directory(tmp_path / "one", target)
            (tmp_path / "two").mkdir()
            with pytest.raises(FileExistsError):
                files.publish_directory(tmp_path / "two", target)
            (tmp_path / "two").rmdir()
