"""The index of jobs sees what has changed, and looks no oftener than it must."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import index as module
from airflow_provider_air_executor.jobs import masking
from airflow_provider_air_executor.jobs.index import JobIndex
from airflow_provider_air_executor.jobs.models import JobState, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job, reset_tasks
from tests.support.waiting import wait_until


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH_SECONDS", 0.0)
    monkeypatch.setattr(module, "_SHARE", 0)


def names(index: JobIndex) -> list[str]:
    return [job.name for job in index.jobs()]


@pytest.mark.usefixtures("at_once")
def test_it_sees_every_change(store: JobStore) -> None:
    index = JobIndex(store)
    assert names(index) == []
    first = store.submit("first", ["true"])
    store.submit("second", ["true", "false"])
    assert names(index) == ["second", "first"]
    publish_job(store, first.evolve(state=JobState.WORKING, updated_at=utc_now()))
    assert [job.state for job in index.jobs()] == ["waiting", "working"]
    publish_job(store, first.evolve(state=JobState.FAILED, updated_at=utc_now()))
    store.delete("first")
    assert names(index) == ["second"]
    store.paths("second").state.write_text("{half")
    assert names(index) == []


@pytest.mark.usefixtures("at_once")
def test_what_has_not_changed_is_not_read_again(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        store.submit(f"j{number}", ["true"])
    index = JobIndex(store)
    index.jobs()
    read: list[str] = []
    load = JobStore.load_job
    monkeypatch.setattr(JobStore, "load_job", lambda self, name: read.append(name) or load(self, name))
    index.jobs()
    assert read == []
    publish_job(store, store.get_job("j1").evolve(priority=1))
    read.clear()
    index.jobs()
    assert read == ["j1"]


def test_looks_of_the_same_second_are_one(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH_SECONDS", 60.0)
    index = JobIndex(store)
    looks: list[None] = []
    look = index._look
    monkeypatch.setattr(index, "_look", lambda: (looks.append(None), look()))
    threads = [threading.Thread(target=index.jobs) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index.jobs()
    assert len(looks) == 1


def test_a_thread_looks_ahead_as_long_as_somebody_asks(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_FRESH_SECONDS", 0.05), ("_SHARE", 0), ("_IDLE_SECONDS", 300)):
        monkeypatch.setattr(module, name, value)
    store.submit("first", ["true"])
    index = JobIndex(store, ahead=True)
    assert names(index) == ["first"]
    store.submit("second", ["true"])
    wait_until(lambda: names(index) == ["second", "first"], what="it has looked again")
    asked = threading.current_thread()
    looked_by: list[threading.Thread] = []
    look = index._look
    monkeypatch.setattr(index, "_look", lambda: (looked_by.append(threading.current_thread()), look()))

    def has_looked() -> bool:
        index.jobs()
        return len(looked_by) >= 3

    wait_until(has_looked, what="it looks again while somebody asks")
    assert asked not in looked_by
    monkeypatch.setattr(module, "_IDLE_SECONDS", 0.1)
    wait_until(lambda: not index._looks_ahead, what="it has ended, since nobody asks")
    store.submit("third", ["true"])
    wait_until(lambda: names(index)[0] == "third", what="the next call has it")
    assert asked in looked_by


def test_a_file_system_that_is_away(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH_SECONDS", 0.05)
    store.submit("first", ["true"])
    index = JobIndex(store, ahead=True)
    index.jobs()

    def away() -> None:
        raise OSError(5, "away")

    with monkeypatch.context() as patch:
        patch.setattr(index, "_look", away)
        wait_until(lambda: not index._looks_ahead, what="the thread has ended")
        with pytest.raises(OSError, match="away"):
            index.jobs()
    assert names(index) == ["first"]


def test_counts_of_tasks(store: JobStore) -> None:
    store.submit("j", ["true", "false", "sleep 1"])
    index = JobIndex(store)
    assert index.counts("j") == {TaskStatus.PENDING: 3}
    first, *rest = store.get_tasks("j")
    reset_tasks(store, "j", [first.evolve(status=TaskStatus.COMPLETED), *rest])
    assert index.counts("j") == {TaskStatus.PENDING: 2, TaskStatus.COMPLETED: 1}
    assert index.counts("missing") == {}
    for broken in ('{"half', '["x"]', '[{"status": "odd"}]', "3"):
        store.paths("j").tasks.write_text(broken)
        os.utime(store.paths("j").tasks, ns=(1, hash(broken) % 10**18))
        assert index.counts("j") == {}


@pytest.mark.usefixtures("at_once")
def test_labels_are_shown_without_secrets(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"team": "a", "token": "hunter2", "hunter2": "x"}
    store.submit("j", ["true"], labels=labels, attached={masking.FILE: masking.dump(["hunter2"])})
    store.submit("plain", ["true"], labels=labels)
    store.submit("bad", ["true"], labels=labels, attached={masking.FILE: b"["})
    index = JobIndex(store)
    shown = {job.name: index.shown_labels(job) for job in index.jobs()}
    assert shown == {"j": {"team": "a", "token": "***"}, "plain": labels, "bad": {}}
    loaded: list[str] = []
    load = masking.load
    monkeypatch.setattr(masking, "load", lambda paths: loaded.append(paths.name) or load(paths))
    assert {job.name: index.shown_labels(job) for job in index.jobs()} == shown
    assert loaded == []  # a list of very many jobs is filtered by labels without looking at each
    store.paths("plain").attached(masking.FILE).write_bytes(masking.dump(["hunter2"]))
    publish_job(store, store.get_job("plain").evolve(priority=1))
    (plain,) = (job for job in index.jobs() if job.name == "plain")
    assert index.shown_labels(plain) == shown["j"]
    store.paths("j").state.unlink()
    assert "j" not in {job.name for job in index.jobs()}
    assert "j" not in index._labels
