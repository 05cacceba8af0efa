"""The log of a task: read from any place, and never through a symlink."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import read_log


def test_reading_a_log_by_offset(store: JobStore) -> None:
    store.submit("j", ["true"])
    assert read_log(store, "j", "task-1") == (b"", 0)
    store.paths("j").log("task-1").write_bytes(b"0123456789\xff")
    assert read_log(store, "j", "task-1", 3, 4) == (b"3456", 7)
    assert read_log(store, "j", "task-1", 7) == (b"789\xff", 11)
    assert read_log(store, "j", "task-1", 11) == (b"", 11)
    assert read_log(store, "j", "task-1", -2).text == "9\ufffd"


def test_a_log_that_leads_outside_is_not_read(store: JobStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    store.submit("j", ["true"])
    store.paths("j").log("task-1").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        read_log(store, "j", "task-1")
