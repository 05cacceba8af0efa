"""The queue of jobs: priority, age, and engines that have no room."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from airflow_provider_air_executor.engines.capacity import Capacity
from airflow_provider_air_executor.jobs.models import Job, Task, utc_now
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.manager.active_job import ActiveJob, Hold, OnDisk
from airflow_provider_air_executor.manager.ready_queue import ReadyQueue

NOW = utc_now()


def job(name: str, *, priority: int = 0, created_at: datetime = NOW) -> ActiveJob:
    record = Job(id=f"{name}-1", name=name, priority=priority, created_at=created_at)
    found = ActiveJob(record, OnDisk(record, None, None))
    finish(found.taking([Task(id="t", command="true")]))
    return found


@pytest.fixture
def full() -> set[str]:
    """The engines that have no room."""
    return set()


@pytest.fixture
def queue(full: set[str]) -> ReadyQueue:
    return ReadyQueue(lambda engine: engine not in full, Capacity(8, 2**30))


def names(queue: ReadyQueue) -> list[str]:
    found = []
    while (entry := queue.pop()) is not None:
        found.append(entry.name)
    return found


def test_the_highest_priority_is_first_then_the_oldest_job(queue: ReadyQueue) -> None:
    for added in (job("late"), job("old", created_at=NOW - timedelta(hours=1)), job("urgent", priority=1)):
        queue.add(added)
    assert names(queue) == ["urgent", "old", "late"]


def test_of_jobs_of_one_moment_the_first_that_was_added_is_first(queue: ReadyQueue) -> None:
    for name in "cab":
        queue.add(job(name))
    assert names(queue) == ["c", "a", "b"]


def test_a_job_without_a_task_that_can_start_is_not_queued(queue: ReadyQueue) -> None:
    held = job("held")
    held.holds.add(Hold.TROUBLE)
    queue.add(held)
    assert queue.pop() is None


def test_a_job_is_in_the_queue_once_until_it_is_released(queue: ReadyQueue) -> None:
    added = job("a")
    queue.add(added)
    entry = queue.pop()
    assert entry is not None
    queue.add(added)
    assert queue.pop() is None
    queue.put_back(entry, added)
    assert queue.pop() == entry
    queue.release(entry)
    queue.add(added)
    assert names(queue) == ["a"]


def test_a_blocked_job_keeps_its_place_and_lets_others_pass(queue: ReadyQueue, full: set[str]) -> None:
    queue.add(job("first"))
    entry = queue.pop()
    assert entry is not None
    full.add("slurm")
    queue.block(entry, "slurm")
    queue.add(job("second"))
    assert names(queue) == ["second"]
    queue.add(job("third"))
    full.clear()
    assert names(queue) == ["first", "third"]
