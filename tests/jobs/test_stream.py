"""Following the logs of a job: every line once, also when the reader is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.models import Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.stream import LogStream


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    store = JobStore(tmp_path)
    store.submit("j", [{"id": "a", "command": "true"}, {"id": "b", "command": "true"}])
    return store


def tasks(store: JobStore) -> list[Task]:
    return [task.evolve(status=TaskStatus.RUNNING, attempt=1) for task in store.get_tasks("j")]


def follow(store: JobStore, *, is_over: bool = False) -> list[str]:
    """What a reader hands on that has just been started."""
    lines: list[str] = []
    assert LogStream(store, "j", "test").follow(tasks(store), lines.append, is_over=is_over) is bool(lines)
    return lines


def write(store: JobStore, task_id: str, data: bytes) -> None:
    with store.log_path("j", task_id).open("ab") as log:
        log.write(data)


def test_each_line_once_with_the_id_of_its_task(store: JobStore) -> None:
    assert follow(store) == []
    write(store, "a", b"one\ntw")
    write(store, "b", b"other\n")
    assert follow(store) == ["a | one", "b | other"]
    write(store, "a", b"o\n")
    assert follow(store) == ["a | two"]
    assert follow(store) == []


def test_the_last_line_without_an_end_comes_when_the_job_is_over(store: JobStore) -> None:
    write(store, "a", b"no end")
    assert follow(store) == []
    assert follow(store, is_over=True) == ["a | no end"]


def test_much_at_once_and_bytes_that_are_no_text(store: JobStore) -> None:
    write(store, "a", b"".join(b"%d\n" % number for number in range(30_000)))
    write(store, "b", b"\xff\n" + b"x" * 100_000)
    lines = follow(store, is_over=True)
    assert lines[:30_000] == [f"a | {number}" for number in range(30_000)]
    assert lines[30_000] == "b | \ufffd"
    assert sum(line.count("x") for line in lines) == 100_000


def test_who_dies_before_the_position_is_written_repeats_and_loses_nothing(store: JobStore) -> None:
    write(store, "a", b"one\ntwo\n")

    class DiesError(Exception):
        pass

    def die(line: str) -> None:
        raise DiesError

    with pytest.raises(DiesError):
        LogStream(store, "j", "test").follow(tasks(store), die)
    assert follow(store) == ["a | one", "a | two"]


def test_readers_do_not_disturb_each_other(store: JobStore) -> None:
    write(store, "a", b"one\n")
    lines: list[str] = []
    LogStream(store, "j", "another").follow(tasks(store), lines.append)
    assert lines == follow(store) == ["a | one"]


def test_a_position_that_is_spoiled_starts_over(store: JobStore) -> None:
    write(store, "a", b"one\n")
    (store.logs_path("j") / ".test.offsets").write_text("[1")
    assert follow(store) == ["a | one"]
