"""Which part of a log is printed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.log_times import LogTimes, Note
from airflow_provider_air_executor.jobs.logs import LogChunk, TaskLog
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.cli import log_printer
from airflow_provider_air_executor.manager.cli.log_printer import LogPrinter, Part, choose_part


@pytest.fixture
def log(store: JobStore) -> Callable[[bytes], TaskLog]:
    store.submit("j", [{"id": "a", "bash": "true"}])

    def write(data: bytes) -> TaskLog:
        store.paths("j").log("a").write_bytes(data)
        return TaskLog(store.paths("j"), "a")

    return write


def rest(log: TaskLog, **asked: object) -> bytes:
    part = choose_part(log, None, **{"attempt": None, "since": None, "tail": None, **asked})  # type: ignore[arg-type]
    assert part is not None
    return log.read(part.begin).data


@pytest.mark.parametrize("block", [1, 2, 3, 7, 65536])
def test_the_last_lines(log: Callable[[bytes], TaskLog], monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Whatever is read at a time."""
    monkeypatch.setattr(log_printer, "_BLOCK", block)
    for text in (b"", b"one", b"one\n", b"\n\n\n", b"a\nbb\n\nccc", b"a\nbb\n\nccc\n"):
        lines = text.splitlines(keepends=True)
        found = log(text)
        for count in range(6):
            assert rest(found, tail=count) == b"".join(lines[len(lines) - count :] if count < len(lines) else lines)


@given(st.lists(st.sampled_from([b"", b"x", b"long line", b"\xff"]), max_size=9), st.integers(0, 60), st.integers(1, 9))
def test_lines_since_a_time_are_whole(lines: list[bytes], noted: int, count: int) -> None:
    """None begins in the middle, and none is left out that came after it."""
    data = b"".join(line + b"\n" for line in lines)

    class InMemory:
        def read(self, offset: int, limit: int) -> LogChunk:
            piece = data[offset : offset + min(limit, count)]
            return LogChunk(piece, offset + len(piece))

        def size(self) -> int:
            return len(data)

    noted = min(noted, len(data))
    times = LogTimes([Note(100.0, noted, 1)], Note(200.0, len(data), 1))
    since = datetime.fromtimestamp(150, tz=UTC)
    part = choose_part(InMemory(), times, attempt=None, since=since, tail=None)  # type: ignore[arg-type]
    assert part is not None
    assert part.begin == 0 or data[part.begin - 1 : part.begin] == b"\n"
    assert noted <= part.begin
    assert b"\n" not in data[noted : part.begin - 1] or not noted


def test_attempts(log: Callable[[bytes], TaskLog]) -> None:
    found = log(b"one\ntwo\n")
    times = LogTimes([Note(1.0, 4, 1), Note(2.0, 4, 2)], Note(3.0, 8, 1))
    asked = {"since": None, "tail": None}
    assert choose_part(found, times, attempt=1, **asked) == Part(0, 4)  # type: ignore[arg-type]
    assert choose_part(found, times, attempt=2, **asked) == Part(4, None)  # type: ignore[arg-type]
    assert choose_part(found, times, attempt=3, **asked) is None  # type: ignore[arg-type]


def test_a_line_that_comes_after_the_times_were_read_has_its_time(
    store: JobStore, log: Callable[[bytes], TaskLog]
) -> None:
    log(b"one\n")
    printer = LogPrinter(FileJobs(store), "j", "a", prefix=True, timestamps=True)
    lines = printer.new_lines(final=False)
    assert next(lines).time is not None
    log(b"one\ntwo\nthree\n")
    assert [(line.time is not None, line.text) for line in lines] == [(True, b"two"), (True, b"three")]
