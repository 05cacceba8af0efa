"""The files that say that something has happened where the system does not notify."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import bell, inbox, manager_control
from airflow_provider_air_executor.jobs.bell import JOBS, MANAGER, Listener, Ringer
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.mounts import bound


def test_each_ring_is_heard_once(tmp_path: Path) -> None:
    listener = Listener(tmp_path, MANAGER)
    assert not listener.has_rung()
    for _ in range(3):
        bell.ring(tmp_path, MANAGER)
        assert listener.has_rung()
        assert not listener.has_rung()
    assert not Listener(tmp_path, MANAGER).has_rung()
    assert not Listener(tmp_path, JOBS).has_rung()


def test_one_that_cannot_be_rung_or_heard(tmp_path: Path) -> None:
    listener = Listener(tmp_path, MANAGER)
    (tmp_path / MANAGER).symlink_to(tmp_path / "elsewhere")
    bell.ring(tmp_path, MANAGER)
    bell.ring(tmp_path / "nothing", MANAGER)
    assert not listener.has_rung()
    assert not (tmp_path / "elsewhere").exists()
    bell.ring(tmp_path, JOBS)
    listener = Listener(tmp_path, JOBS)
    (tmp_path / JOBS).unlink()
    assert not listener.has_rung()


def test_that_of_the_jobs_is_rung_only_where_others_may_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ringer(tmp_path, JOBS).ring()
    assert not (tmp_path / JOBS).exists()
    monkeypatch.setattr(bell.mounts, "may_be_shared", lambda _: True)
    ringer, listener = Ringer(tmp_path, JOBS), Listener(tmp_path, JOBS)
    ringer.ring()
    assert listener.has_rung()
    assert (tmp_path / JOBS).stat().st_mode & 0o777 == 0o600


def test_whatever_is_asked_of_the_manager_rings(store: JobStore) -> None:
    store.create_directories()
    listener = Listener(store.base_path, MANAGER)
    store.submit("j", ["true"])
    assert listener.has_rung()
    inbox.cancel(store, "j")
    assert listener.has_rung()
    manager_control.set_paused(store, True)
    assert listener.has_rung()


def test_it_is_heard_past_what_a_mount_keeps_of_the_file(tmp_path: Path) -> None:
    """As GlusterFS keeps what its own machine has written there."""
    source = tmp_path / "source"
    source.mkdir()
    with bound(source, tmp_path / "A") as one, bound(source, tmp_path / "B", "kernel_cache") as other:
        bell.ring(other, MANAGER)
        listener = Listener(other, MANAGER)
        assert not listener.has_rung()
        for _ in range(3):
            bell.ring(one, MANAGER)
            assert listener.has_rung()
            assert not listener.has_rung()
