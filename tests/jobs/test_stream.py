"""Following the logs of a job: every line once, also when the reader is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import masking
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.logs import TaskLog
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
    assert LogStream(FileJobs(store), "j", "test").follow(tasks(store), lines.append, is_over=is_over) is bool(lines)
    return lines


def write(store: JobStore, task_id: str, data: bytes) -> None:
    with store.paths("j").log(task_id).open("ab") as log:
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


def test_only_a_newline_ends_a_line(store: JobStore) -> None:
    write(store, "a", b"one\x0b\x0c\x1c\xc2\x85\xe2\x80\xa8line\r\ntwo\n")
    assert follow(store) == ["a | one\x0b\x0c\x1c\x85\u2028line", "a | two"]
    log = TaskLog(store.paths("j"), "a")
    for found in (log.read().lines, masking.load(store.paths("j")).tail(log, 9)):
        assert found == ["one\x0b\x0c\x1c\x85\u2028line", "two"]


def test_a_log_that_is_truncated_begins_anew(store: JobStore) -> None:
    write(store, "a", b"one\ntwo\n")
    lines: list[str] = []
    stream = LogStream(FileJobs(store), "j", "test")
    stream.follow(tasks(store), lines.append)
    store.paths("j").log("a").write_bytes(b"new\n")
    stream.follow(tasks(store), lines.append)
    assert lines == ["a | one", "a | two", "a | (the log has been truncated; it begins anew)", "a | new"]


def test_who_dies_before_the_position_is_written_repeats_and_loses_nothing(store: JobStore) -> None:
    write(store, "a", b"one\ntwo\n")

    class DiesError(Exception):
        pass

    def die(line: str) -> None:
        raise DiesError

    with pytest.raises(DiesError):
        LogStream(FileJobs(store), "j", "test").follow(tasks(store), die)
    assert follow(store) == ["a | one", "a | two"]


class Clock:
    """The time as a reader sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("airflow_provider_air_executor.jobs.stream.time.monotonic", lambda: self.now)


def test_a_line_that_is_written_over_is_shown_now_and_then(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As progress bars do; its last state is shown once, whether the line ends or not."""
    clock = Clock(monkeypatch)
    lines: list[str] = []
    stream = LogStream(FileJobs(store), "j", "test")
    for number in range(100):
        write(store, "a", b"\rstep %d" % number)
        stream.follow(tasks(store), lines.append)
        clock.now += 1
    assert lines == [f"a | step {number}" for number in range(0, 100, 10)]
    stream.follow(tasks(store), lines.append)
    write(store, "a", b"\nnext\r\n50 %\r100 %")
    stream.follow(tasks(store), lines.append, is_over=True)
    assert lines[10:] == ["a | step 99", "a | next", "a | 100 %"]


def test_a_line_that_is_written_over_may_be_long(store: JobStore) -> None:
    write(store, "a", b"".join(b"step %d\r" % number for number in range(30_000)))
    assert follow(store) == ["a | step 29999"]


def test_the_position_is_written_when_the_lines_have_arrived(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is killed before has lost what was on its way, and the next one hands it on again."""
    clock = Clock(monkeypatch)
    first: list[str] = []
    stream = LogStream(FileJobs(store), "j", "test", arrival=2)
    assert stream.seconds_to_arrival() == 0
    for number in range(6):
        write(store, "a", b"%d\n" % number)
        stream.follow(tasks(store), first.append)
        assert stream.seconds_to_arrival() == 2
        clock.now += 1
    assert first == [f"a | {number}" for number in range(6)]
    # The last one was handed on at 1005, when the one of 1003 had just arrived.
    assert follow(store) == ["a | 4", "a | 5"]


def test_the_position_is_written_too_if_nothing_comes_any_more(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    stream = LogStream(FileJobs(store), "j", "test", arrival=2)
    for _ in range(3):
        write(store, "a", b"one\n")
        stream.follow(tasks(store), str)
        clock.now += 0.5
    clock.now += 2
    assert not stream.follow(tasks(store), str)
    assert stream.seconds_to_arrival() == 0
    assert follow(store) == []


@pytest.mark.parametrize("is_over", [False, True])
def test_what_is_saved_at_the_end(store: JobStore, monkeypatch: pytest.MonkeyPatch, is_over: bool) -> None:
    """All of it, when the reader says so: the last lines need their time to arrive, too."""
    Clock(monkeypatch)
    write(store, "a", b"one\n")
    stream = LogStream(FileJobs(store), "j", "test", arrival=2)
    assert stream.follow(tasks(store), str, is_over=is_over)
    assert follow(store) == ["a | one"]
    write(store, "a", b"two\n")
    assert stream.follow(tasks(store), str, is_over=is_over)
    stream.save()
    assert follow(store) == []


def test_a_reader_that_is_stopped_hands_on_nothing_more(store: JobStore) -> None:
    """Also in the middle of a long log; the next one goes on where it was."""
    write(store, "a", b"".join(b"%d\n" % number for number in range(30_000)))
    stream = LogStream(FileJobs(store), "j", "test")
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        stream.stop()

    assert stream.follow(tasks(store), say)
    assert not stream.follow(tasks(store), say)
    assert 0 < len(lines) < 30_000
    assert lines + follow(store) == [f"a | {number}" for number in range(30_000)]


def test_readers_do_not_disturb_each_other(store: JobStore) -> None:
    write(store, "a", b"one\n")
    lines: list[str] = []
    LogStream(FileJobs(store), "j", "another").follow(tasks(store), lines.append)
    assert lines == follow(store) == ["a | one"]


def test_a_position_that_is_spoiled_starts_over(store: JobStore) -> None:
    write(store, "a", b"one\n")
    (store.paths("j").logs / ".test.offsets").write_text("[1")
    assert follow(store) == ["a | one"]


def test_no_more_than_the_limit_is_handed_on(store: JobStore) -> None:
    write(store, "a", b"one\ntwo\n")
    write(store, "b", b"three\n")
    lines: list[str] = []
    stream = LogStream(FileJobs(store), "j", "test", limit=8)
    stream.follow(tasks(store), lines.append)
    assert lines == [
        "a | one",
        "a | two",
        "b | (no more output of this job is shown here, after 8 bytes; see its logs)",
    ]
    assert stream.is_cut
    write(store, "a", b"more\n")
    stream.follow(tasks(store), lines.append, is_over=True)
    assert len(lines) == 3
    again = LogStream(FileJobs(store), "j", "test", limit=8)
    again.follow(tasks(store), lines.append, is_over=True)
    assert (len(lines), again.is_cut) == (3, True)


def test_what_fits_into_the_limit_is_not_cut(store: JobStore) -> None:
    write(store, "a", b"one\ntwo\n")
    stream = LogStream(FileJobs(store), "j", "test", limit=8)
    stream.follow(tasks(store), [].append)
    stream.follow(tasks(store), [].append, is_over=True)
    assert not stream.is_cut


def test_a_log_that_has_not_grown_is_not_opened(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """With thousands of waiters that is all that is done, most of the time."""
    write(store, "a", b"one\n")
    stream = LogStream(FileJobs(store), "j", "test")
    stream.follow(tasks(store), [].append)
    monkeypatch.setattr(TaskLog, "read", None)
    monkeypatch.setattr(masking, "load", None)
    assert stream.follow(tasks(store), [].append) is False
