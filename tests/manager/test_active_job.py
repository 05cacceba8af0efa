"""A job in memory: what its tasks come to when one of them ends, without files and processes."""

from __future__ import annotations

import pytest

from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.manager.active_job import ActiveJob, Cause, Hold, OnDisk

EXIT = Cause(Reason.EXIT, "exit code 1")


def task(task_id: str, *after: str) -> Task:
    return Task(id=task_id, command="true", dependencies=after)


def job(*tasks: Task, at_a_time: int = 1) -> ActiveJob:
    record = Job(id="j-1", name="j", created_at=utc_now(), max_parallel_tasks=at_a_time)
    found = ActiveJob(record, OnDisk(record, None, None))
    finish(found.taking(tasks))
    return found


def start(found: ActiveJob) -> Attempt:
    """Start the next task."""
    task_id = found.graph.take_ready()
    attempt = Attempt.of("j", task_id, found.tasks[task_id].attempt + 1)
    found.running[attempt] = None
    found.begin(attempt, utc_now())
    return attempt


def how(found: ActiveJob) -> dict[str, tuple[str, str | None]]:
    return {item.id: (item.status.value, item.reason and item.reason.value) for item in found.tasks.values()}


def test_a_task_that_completes_lets_those_start_that_depend_on_it() -> None:
    found = job(task("a"), task("b", "a"))
    attempt = start(found)
    assert not found.can_start
    del found.running[attempt]
    finish(found.complete("a", utc_now()))
    assert start(found).task_id == "b"


def test_a_task_that_fails_takes_all_that_depend_on_it_along() -> None:
    found = job(task("a"), task("b", "a"), task("c", "b"), task("d"))
    attempt = start(found)
    del found.running[attempt]
    finish(found.fail("a", EXIT, Ended(attempt, 1, utc_now())))
    failed = ("failed", "dependency")
    assert how(found) == {"a": ("failed", "exit"), "b": failed, "c": failed, "d": ("pending", None)}
    assert (found.tasks["a"].exit_code, found.tasks["b"].exit_code) == (1, None)
    assert not found.is_over


def test_a_stopped_job_is_over_when_what_runs_has_ended() -> None:
    found = job(task("a"), task("b"), at_a_time=2)
    attempt = start(found)
    finish(found.stop(Cause(Reason.CANCELLED, "cancelled")))
    assert how(found) == {"a": ("running", None), "b": ("failed", "cancelled")}
    assert not found.is_over
    assert not found.can_start
    del found.running[attempt]
    finish(found.fail("a", EXIT))
    assert found.is_over


def test_an_attempt_that_never_began_does_not_count() -> None:
    found = job(task("a"))
    attempt = start(found)
    found.put_back(attempt)
    assert (found.tasks["a"].status, found.tasks["a"].attempt) == (TaskStatus.PENDING, 0)
    attempt = Attempt.of("j", "a", 1)
    found.put_back(attempt, failed_at=utc_now())
    assert found.tasks["a"].attempt == 1


@pytest.mark.parametrize("hold", Hold)
def test_nothing_starts_while_a_job_is_held(hold: Hold) -> None:
    found = job(task("a"))
    found.holds.add(hold)
    assert not found.can_start
    found.holds.discard(hold)
    assert found.can_start


def test_a_task_that_is_added_after_a_failed_one_fails_and_can_be_withdrawn() -> None:
    found = job(task("a"))
    finish(found.fail("a", EXIT))
    added = [task("b", "a"), task("c")]
    finish(found.adding(added))
    assert how(found) == {"a": ("failed", "exit"), "b": ("failed", "dependency"), "c": ("pending", None)}
    assert not found.is_over
    found.withdraw(added)
    assert list(found.tasks) == ["a"]
    assert found.is_over


def test_the_state_is_to_be_published_once_it_has_changed() -> None:
    found = job(task("a"))
    assert not found.state_is_changed
    found.begin_to_work()
    assert found.job.state is JobState.WORKING
    assert found.state_is_changed
    found.on_disk.job = found.job
    assert not found.state_is_changed
    found.change_state(state=JobState.COMPLETED)
    with pytest.raises(AssertionError, match="cannot go from"):
        found.change_state(state=JobState.WORKING)
