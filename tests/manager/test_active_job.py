"""A job in memory: what its tasks come to when one of them ends, without files and processes."""

from __future__ import annotations

import pytest

from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, RunIf, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.manager.active_job import ActiveJob, Cause, Hold, OnDisk

EXIT = Cause(Reason.EXIT, "exit code 1")


CANCELLED = Cause(Reason.CANCELLED, "cancelled", spares_always=True)


def task(task_id: str, *after: str, run_if: RunIf | None = None) -> Task:
    return Task(id=task_id, command="true", dependencies=after, run_if=run_if)


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


def test_the_first_cause_is_named_however_far_away_it_is() -> None:
    found = job(task("a"), task("b", "a"), task("c", "b"))
    finish(found.fail("a", EXIT))
    assert found.tasks["c"].error == "not started, because task 'a' failed"
    finish(found.adding([task("d", "c")]))
    assert found.tasks["d"].error == "not started, because task 'a' failed"


def test_a_task_runs_although_another_one_failed_and_what_depends_on_it_goes_on() -> None:
    found = job(task("a"), task("b", "a"), task("clean", "b", run_if=RunIf.ALL_DONE), task("after", "clean"))
    start(found)
    found.running.clear()
    finish(found.fail("a", EXIT))
    assert how(found)["clean"] == ("pending", None)
    assert start(found).task_id == "clean"
    found.running.clear()
    finish(found.complete("clean", utc_now()))
    assert start(found).task_id == "after"


def test_tasks_that_are_not_needed_are_skipped_one_after_the_other() -> None:
    found = job(
        task("a"),
        task("tell", "a", run_if=RunIf.ANY_FAILED),
        task("tell-more", "tell", run_if=RunIf.ANY_FAILED),
        task("after", "tell-more"),
        task("clean", "tell-more", run_if=RunIf.ALL_DONE),
    )
    start(found)
    found.running.clear()
    finish(found.complete("a", utc_now()))
    skipped = ("completed", "skipped")
    assert how(found) == {
        "a": ("completed", None),
        "tell": skipped,
        "tell-more": skipped,
        "after": ("pending", None),
        "clean": ("pending", None),
    }
    assert found.tasks["tell"].attempt == 0
    assert start(found).task_id == "after"


def test_what_is_to_be_skipped_is_when_the_job_is_read_or_a_task_is_added() -> None:
    done = task("a").evolve(status=TaskStatus.COMPLETED)
    found = job(task("tell", "a", run_if=RunIf.ANY_FAILED), done)
    assert how(found)["tell"] == ("completed", "skipped")
    assert found.is_over
    finish(found.adding([task("more", "b", run_if=RunIf.ANY_FAILED), task("b", "a")]))
    assert how(found)["more"] == ("pending", None)
    finish(found.fail("b", EXIT))
    assert start(found).task_id == "more"


def test_a_stopped_job_starts_what_always_runs_once_the_rest_has_ended() -> None:
    always = RunIf.ALWAYS
    found = job(
        task("a"),
        task("b", "a"),
        task("clean", "b", run_if=always),
        task("after", "clean"),
        task("tell", "a", run_if=RunIf.ALL_DONE),
        task("free", "z", run_if=always),
        task("z"),
        at_a_time=3,
    )
    first, z = start(found), start(found)
    del found.running[z]
    finish(found.complete("z", utc_now()))
    found.running[first] = CANCELLED
    finish(found.stop(CANCELLED))
    pending, cancelled = ("pending", None), ("failed", "cancelled")
    assert how(found) == {
        "a": ("running", None),
        "b": cancelled,
        "clean": pending,
        "after": cancelled,
        "tell": cancelled,
        "free": pending,
        "z": ("completed", None),
    }
    assert not found.can_start  # what is being killed is still there
    del found.running[first]
    finish(found.fail("a", CANCELLED))
    assert found.can_start
    assert [start(found).task_id for _ in range(2)] == ["clean", "free"]
    assert not found.can_start
    finish(found.adding([task("late"), task("late-clean", "late", run_if=always)]))
    assert how(found)["late"] == cancelled
    assert start(found).task_id == "late-clean"


def test_a_job_that_is_stopped_again_starts_nothing_at_all() -> None:
    found = job(task("a"), task("clean", "a", run_if=RunIf.ALWAYS))
    finish(found.stop(CANCELLED))
    assert found.can_start
    finish(found.stop(Cause(Reason.CANCELLED, "cancelled")))
    assert how(found)["clean"] == ("failed", "cancelled")
    assert found.is_over


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
