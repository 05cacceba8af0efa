"""Files of a job as they are now, where what is known of them may be old."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import files, freshness
from airflow_provider_air_executor.jobs.freshness import Freshness
from airflow_provider_air_executor.jobs.index import JobIndex
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore, dump_job
from airflow_provider_air_executor.system.mounts import Mount


class OldNames:
    """A file system whose names stand for the files that they were, until their directory is listed.

    The row ``glusterfs-two-mounts`` of the matrix has a real one. Until then lstat(2) has the old file, too.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kind: str = "fuse.glusterfs") -> None:
        self.listed: list[str] = []
        self._old: dict[str, Path] = {}
        self._lstat, self._listdir, self._open = os.lstat, os.listdir, os.open
        monkeypatch.setattr(freshness.mounts, "mount_of", lambda _: Mount(kind, "/", ()))
        monkeypatch.setattr(os, "lstat", lambda path, **more: self._lstat(self._seen(path), **more))
        monkeypatch.setattr(os, "open", lambda path, *more, **most: self._open(self._seen(path), *more, **most))
        monkeypatch.setattr(os, "listdir", self._list)

    def keep(self, path: Path) -> None:
        """A name stands for the file that it stands for now."""
        old = path.with_name(f".old-{path.name}")
        os.link(path, old)
        self._old[str(path)] = old

    def _seen(self, path: object) -> object:
        return self._old.get(str(path), path)

    def _list(self, path: object) -> list[str]:
        self.listed.append(str(path))
        self._old = {name: old for name, old in self._old.items() if os.path.dirname(name) != str(path)}
        return self._listdir(path)  # type: ignore[arg-type,call-overload,no-any-return]


@pytest.fixture
def job(store: JobStore) -> JobStore:
    store.submit("j", ["true"])
    return store


@pytest.mark.parametrize("reads", ["the job", "its stamps", "all jobs"])
def test_a_file_that_another_machine_has_replaced_is_seen(
    job: JobStore, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    state = job.paths("j").state
    before = files.stamp(state)
    system = OldNames(monkeypatch)
    job = JobStore(job.base_path)
    index = JobIndex(job)
    assert [found.state for found in index.jobs()] == ["waiting"]
    index._fresh_until = 0.0
    later = dump_job(job.get_job("j").evolve(state=JobState.COMPLETED))
    system.keep(state)
    files.publish(state, later)
    assert files.stamp(state) == before
    if reads == "the job":
        assert job.get_job("j").state == "completed"
    elif reads == "its stamps":
        assert job.freshness.stamp(state) not in (before, None)
    else:
        assert [found.state for found in index.jobs()] == ["completed"]


def test_nothing_of_it_on_the_file_system_of_one_machine(job: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    system = OldNames(monkeypatch, kind="ext4")
    opened: list[object] = []
    monkeypatch.setattr(files, "current_stamp", opened.append)
    paths = job.paths("j")
    assert job.get_job("j").state == "waiting"
    assert job.freshness.stamps(paths.state, paths.tasks) == (files.stamp(paths.state), files.stamp(paths.tasks))
    assert system.listed == opened == []


def test_what_is_not_there_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file system is found out once the directory is there."""
    OldNames(monkeypatch)
    found = Freshness(tmp_path / "jobs")
    assert found.stamps(tmp_path / "jobs/j/state.json", tmp_path / "jobs/j/tasks.json") == (None, None)
    found.renew(tmp_path / "jobs/j")
