"""The attempts of a job's tasks: the latest from tasks.json, earlier ones from their records."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import JobNotFoundError
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.models import Reason, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_tasks

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
FAILED, PENDING, RUNNING, COMPLETED = TaskStatus.FAILED, TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.COMPLETED


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """A job filesystem with a job ``j`` of one task ``a``."""
    found = JobStore(tmp_path / "base")
    found.submit("j", [{"id": "a", "bash": "true"}])
    return found


def stands(store: JobStore, **changes: Any) -> None:
    """What the manager would write of the task."""
    (task,) = store.get_tasks("j")
    publish_tasks(store, "j", [task.evolve(**changes)])


def record(store: JobStore, name: str, content: str, *, modified: datetime = NOON + timedelta(seconds=2)) -> None:
    """The record that a shim would leave."""
    path = store.paths("j").runs / name
    path.write_text(content)
    os.utime(path, (modified.timestamp(), modified.timestamp()))


def numbers(store: JobStore) -> list[tuple[int, str]]:
    return [(attempt.number, attempt.status.value) for attempt in store.get_attempts("j")]


def test_a_task_that_waits_has_its_next_attempt_only(store: JobStore) -> None:
    assert store.get_attempts("j") == (AttemptRecord("a", 1, PENDING),)


def test_a_job_that_is_not_there(store: JobStore) -> None:
    with pytest.raises(JobNotFoundError):
        store.get_attempts("another")


def test_the_latest_attempt_is_what_tasks_json_says(store: JobStore) -> None:
    """Its own record says less, and may be ahead of the manager."""
    stands(store, status=RUNNING, attempt=1, started_at=NOON)
    record(store, "a.1", f"77 {NOON.isoformat()} token\n3\n")
    assert store.get_attempts("j") == (AttemptRecord("a", 1, RUNNING, started_at=NOON),)
    ended = {"reason": Reason.EXIT, "exit_code": 3, "error": "exit code 3", "completed_at": NOON + timedelta(seconds=3)}
    stands(store, status=FAILED, **ended)
    (found,) = store.get_attempts("j")
    assert found == AttemptRecord("a", 1, FAILED, started_at=NOON, **ended)
    assert found.seconds == 3


def test_earlier_attempts_are_what_their_shims_have_recorded(store: JobStore) -> None:
    stands(store, status=COMPLETED, attempt=3, started_at=NOON, completed_at=NOON, exit_code=0)
    for number in (1, 2, 3, 4):
        record(store, f"a.{number}", f"77 {NOON.isoformat()} token\n{number}\n")
    first, second, third = store.get_attempts("j")
    later = NOON + timedelta(seconds=2)
    assert first == AttemptRecord("a", 1, FAILED, exit_code=1, started_at=NOON, completed_at=later)
    assert (second.number, second.exit_code, second.seconds) == (2, 2, 2.0)
    assert (third.number, third.status) == (3, COMPLETED)


def test_a_shim_that_was_killed_has_recorded_its_start_only(store: JobStore) -> None:
    stands(store, status=RUNNING, attempt=2, started_at=NOON)
    record(store, "a.1", f"77 {NOON.isoformat()} token\n")
    assert store.get_attempts("j")[0] == AttemptRecord("a", 1, FAILED, started_at=NOON)


def test_no_attempt_ends_before_it_has_started(store: JobStore) -> None:
    """The clock of a file system is some milliseconds late."""
    stands(store, status=RUNNING, attempt=2, started_at=NOON)
    record(store, "a.1", f"77 {NOON.isoformat()} token\n1\n", modified=NOON - timedelta(milliseconds=3))
    assert store.get_attempts("j")[0].seconds == 0


def test_a_task_that_waits_for_another_attempt(store: JobStore) -> None:
    stands(store, status=PENDING, attempt=1, started_at=None, completed_at=NOON)
    record(store, "a.1", f"77 {NOON.isoformat()} token\n1\n")
    assert numbers(store) == [(1, "failed"), (2, "pending")]
    assert store.get_attempts("j")[1].completed_at is None


def test_a_task_that_failed_without_another_attempt(store: JobStore) -> None:
    stands(store, status=FAILED, attempt=1, started_at=None, completed_at=NOON, reason=Reason.CANCELLED)
    record(store, "a.1", f"77 {NOON.isoformat()} token\n1\n")
    first, second = store.get_attempts("j")
    assert (first.reason, first.exit_code) == (None, 1)
    assert (second.number, second.reason, second.completed_at) == (2, "cancelled", NOON)


def test_a_list_of_another_system_that_counts_no_attempts(store: JobStore) -> None:
    stands(store, status=COMPLETED, started_at=NOON, completed_at=NOON)
    assert numbers(store) == [(1, "completed")]


@pytest.mark.parametrize(
    "content",
    ["", "77", "77 now token\n1\n", "77 2026-11-22T12:00:00 token\n1\n", "\udcff\n", f"77 {NOON} token\nx\n", "\n\n"],
)
def test_what_is_no_record_is_passed_over(store: JobStore, content: str) -> None:
    stands(store, status=RUNNING, attempt=2, started_at=NOON)
    (store.paths("j").runs / "a.1").write_bytes(content.encode(errors="surrogateescape"))
    assert numbers(store) == [(2, "running")]


def test_half_an_exit_code_is_none(store: JobStore) -> None:
    stands(store, status=RUNNING, attempt=2, started_at=NOON)
    record(store, "a.1", f"77 {NOON.isoformat()} token\n14")
    assert store.get_attempts("j")[0].exit_code is None


@pytest.mark.parametrize("name", ["a.01", "a.0", "a.-1", "a.1.output", "a.²", ".1", "b.1", "a.1.1"])
def test_a_file_whose_name_is_no_record_is_passed_over(store: JobStore, name: str) -> None:
    stands(store, status=RUNNING, attempt=2, started_at=NOON)
    record(store, name, f"77 {NOON.isoformat()} token\n1\n")
    assert numbers(store) == [(2, "running")]


def test_a_dot_in_the_id_of_a_task(store: JobStore) -> None:
    stands(store, id="a.1", status=RUNNING, attempt=2, started_at=NOON)
    record(store, "a.1.1", f"77 {NOON.isoformat()} token\n1\n")
    record(store, "a.1", f"77 {NOON.isoformat()} token\n1\n")
    assert [(attempt.task_id, attempt.number) for attempt in store.get_attempts("j")] == [("a.1", 1), ("a.1", 2)]


def test_nothing_outside_the_job_is_read(store: JobStore, tmp_path: Path) -> None:
    stands(store, status=RUNNING, attempt=2, started_at=NOON)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.1").write_text(f"77 {NOON.isoformat()} token\n1\n")
    (store.paths("j").runs / "a.1").symlink_to(outside / "a.1")
    assert numbers(store) == [(2, "running")]
    (store.paths("j").runs / "a.1").unlink()
    store.paths("j").runs.rmdir()
    assert numbers(store) == [(2, "running")]
    store.paths("j").runs.symlink_to(outside)
    assert numbers(store) == [(2, "running")]
