"""The lines in which tasks wait for resources: whose turn it is, and for whom something is kept."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_air_executor.engines.capacity import Amounts, Capacity, Holding
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.models import Job, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.manager.active_job import ActiveJob, Hold, OnDisk
from airflow_provider_air_executor.manager.lines import MOST_OVERTAKEN, Entry, Line, Lines

NOW = utc_now()


def job(name: str, *resources: dict[str, Any], parallel: int = 9) -> ActiveJob:
    record = Job(id=f"{name}-1", name=name, created_at=NOW, max_parallel_tasks=parallel)
    found = ActiveJob(record, OnDisk(record, None, None))
    tasks = [
        Task.model_validate({"id": f"t{at}", "command": "x", "resources": one}) for at, one in enumerate(resources)
    ]
    finish(found.taking(tasks))
    return found


def entry(number: int, waits: ActiveJob, needs: Amounts, priority: int = 0) -> Entry:
    return Entry(-priority, 0.0, number, waits.graph.first_ready(needs) or 0, waits.name, needs)


@pytest.fixture
def capacity() -> Capacity:
    """Of four graphics processors three are held."""
    found = Capacity(4, 2**30, "abcd")
    found.hold(Attempt.of("other", "t", 1), Holding(Amounts(gpus=3), ("a", "b", "c")))
    return found


@pytest.fixture
def lines(capacity: Capacity) -> Lines:
    return Lines(capacity)


def wait(lines: Lines, number: int, waits: ActiveJob, priority: int = 0) -> Entry:
    """Let the tasks of a job wait, which all need the same."""
    (needs,) = waits.graph.needs
    assert needs is not None
    found = entry(number, waits, needs, priority)
    lines.add(found, waits, needs)
    return found


def next_job(lines: Lines) -> str | None:
    line = lines.next()
    return None if line is None else line.first.entry.name


def overtake(lines: Lines, times: int, needs: Amounts) -> None:
    for number in range(times):
        lines.has_started(Entry(0, 1.0, number, 0, "late", needs), needs)


def line_of(lines: Lines, name: str) -> Line:
    return next(line for line in lines if line.first.entry.name == name)


def test_the_first_for_which_there_is_enough_is_next(lines: Lines) -> None:
    wait(lines, 1, job("large", {"gpus": 2}))
    wait(lines, 3, job("second", {"gpus": 1}))
    wait(lines, 2, job("first", {"gpus": 1, "cpus": 1}))
    assert next_job(lines) == "first"
    wait(lines, 4, job("urgent", {"gpus": 1}), priority=1)
    assert next_job(lines) == "urgent"


def test_what_was_overtaken_often_enough_has_what_it_needs_kept(lines: Lines, capacity: Capacity) -> None:
    wait(lines, 1, job("large", {"gpus": 2, "cpus": 3}))
    small = wait(lines, 2, job("small", {"gpus": 1}))
    overtake(lines, MOST_OVERTAKEN - 1, Amounts(gpus=1))
    assert next_job(lines) == "small"
    overtake(lines, 1, Amounts(gpus=1))
    assert next_job(lines) is None
    assert not lines.allows(small, Amounts(gpus=1))
    assert lines.allows(small, Amounts(cpus=1000)), "of this there is enough for both"
    assert not lines.allows(small, Amounts(cpus=1001))
    assert lines.allows(small._replace(priority=-1), Amounts(gpus=1)), "one that comes before it may have it"
    capacity.release(next(iter(capacity._held)))
    assert next_job(lines) == "large"


def test_only_those_count_that_take_what_there_is_too_little_of(lines: Lines) -> None:
    wait(lines, 1, job("large", {"gpus": 2, "cpus": 1}))
    overtake(lines, 99, Amounts(cpus=100))
    assert line_of(lines, "large").overtaken == 0


def test_the_next_one_of_a_line_is_counted_anew(lines: Lines) -> None:
    first, second = job("first", {"gpus": 2}), job("second", {"gpus": 2})
    wait(lines, 1, first)
    wait(lines, 2, second)
    overtake(lines, MOST_OVERTAKEN, Amounts(gpus=1))
    started = lines.pop(line_of(lines, "first"))
    lines.has_started(started, Amounts(gpus=2))
    assert line_of(lines, "second").overtaken == 0


def test_a_job_that_has_as_many_tasks_as_it_may_keeps_its_place(lines: Lines) -> None:
    full = job("full", {"gpus": 1}, {"gpus": 1}, parallel=2)
    full.running = {Attempt.of("full", "x", 1): None, Attempt.of("full", "y", 1): None}
    wait(lines, 1, full)
    wait(lines, 2, job("other", {"gpus": 1, "cpus": 1}))
    assert next_job(lines) == "other"
    full.running.clear()
    assert next_job(lines) == "full"


def test_nothing_is_kept_for_a_job_whose_files_cannot_be_written(lines: Lines) -> None:
    held = job("held", {"gpus": 2})
    wait(lines, 1, held)
    wait(lines, 2, job("small", {"gpus": 1}))
    overtake(lines, MOST_OVERTAKEN, Amounts(gpus=1))
    assert next_job(lines) is None
    held.holds.add(Hold.TROUBLE)
    assert next_job(lines) == "small"


def test_who_does_not_wait_any_more_leaves_the_line(lines: Lines) -> None:
    cancelled, other = job("cancelled", {"gpus": 2}), job("other", {"gpus": 2})
    out = wait(lines, 1, cancelled)
    wait(lines, 2, other)
    cancelled.tasks["t0"] = cancelled.tasks["t0"].evolve(status=TaskStatus.FAILED)
    assert list(lines.dropping_outdated()) == [out]
    assert [line.first.entry.name for line in lines] == ["other"]
    other.graph.drop_ready()
    assert len(list(lines.dropping_outdated())) == 1
    assert not lines


def test_what_never_is_there_goes_to_hear_that(lines: Lines) -> None:
    wait(lines, 1, job("too_large", {"gpus": 5}))
    assert next_job(lines) == "too_large"
