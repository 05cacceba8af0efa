"""One word for how a task stands."""

from __future__ import annotations

import pytest

from airflow_provider_air_executor.jobs.index import JobIndex
from airflow_provider_air_executor.jobs.models import Reason, TaskStatus
from airflow_provider_air_executor.jobs.outcomes import Outcome, outcome_of
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_tasks


@pytest.mark.parametrize(
    ("status", "reason", "word"),
    [
        ("pending", None, "pending"),
        ("running", None, "running"),
        ("completed", None, "completed"),
        ("completed", "skipped", "skipped"),
        ("failed", None, "failed"),  # in files of the existing system
        ("failed", "exit", "failed"),
        ("failed", "signal", "failed"),
        ("failed", "spawn", "failed"),
        ("failed", "invalid", "failed"),
        ("failed", "timeout", "timed_out"),
        ("failed", "lost", "lost"),
        ("failed", "cancelled", "cancelled"),
        ("failed", "dependency", "upstream_failed"),
        ("failed", "a reason of a later version", "failed"),
    ],
)
def test_what_failed_and_what_never_ran_are_told_apart(status: str, reason: str | None, word: str) -> None:
    outcome = outcome_of(TaskStatus(status), reason)
    assert (outcome, outcome.status) == (word, status)


def test_every_reason_of_a_failure_has_a_word() -> None:
    for reason in Reason:
        assert outcome_of(TaskStatus.FAILED, reason).status is TaskStatus.FAILED


def test_the_index_counts_them(store: JobStore) -> None:
    store.submit("j", [{"id": name, "command": "true"} for name in "abcd"])
    stands = [
        {"status": TaskStatus.FAILED, "reason": Reason.EXIT},
        {"status": TaskStatus.FAILED, "reason": Reason.DEPENDENCY},
        {"status": TaskStatus.FAILED, "reason": Reason.DEPENDENCY},
        {"status": TaskStatus.COMPLETED},
    ]
    publish_tasks(store, "j", [task.evolve(**stand) for task, stand in zip(store.get_tasks("j"), stands, strict=True)])
    index = JobIndex(store)
    assert index.outcomes("j") == {Outcome.FAILED: 1, Outcome.UPSTREAM_FAILED: 2, Outcome.COMPLETED: 1}
    assert index.counts("j") == {TaskStatus.FAILED: 3, TaskStatus.COMPLETED: 1}
    assert index.outcomes("missing") == {}
