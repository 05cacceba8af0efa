"""When the bytes of a log came, and which attempt has printed them."""

from __future__ import annotations

import itertools
import os
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import log_times
from airflow_provider_air_executor.jobs.log_times import AttemptOutput, LogTimes, Note
from airflow_provider_air_executor.jobs.store import JobStore

NOTES = st.lists(st.builds(Note, st.floats(0, 2e9), st.integers(0, 50), st.integers(1, 4)), max_size=12)


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def put(store: JobStore, notes: str, size: int, changed: float) -> LogTimes:
    paths = store.paths("j")
    paths.log_times("t").write_text(notes)
    paths.log("t").write_bytes(b"x" * size)
    os.utime(paths.log("t"), (changed, changed))
    return log_times.read(paths, "t")


@pytest.fixture
def store(store: JobStore) -> JobStore:
    store.submit("j", [{"id": "t", "command": "true"}])
    return store


def test_a_log_without_notes_has_the_time_of_its_last_change(store: JobStore) -> None:
    times = put(store, "", 10, 1000.5)
    assert times.attempts() == [AttemptOutput(1, 0, 10)]
    assert (times.time_of(0), times.time_of(9), times.time_of(10)) == (at(1000.5), at(1000.5), None)


def test_a_task_that_has_not_started_has_no_times(store: JobStore) -> None:
    times = log_times.read(store.paths("j"), "t")
    assert times.attempts() == [AttemptOutput(1, 0, 0)]
    assert times.time_of(0) is None


def test_a_byte_came_before_the_first_note_that_counts_it(store: JobStore) -> None:
    times = put(store, "1000.000 10 1\n1002.000 30 1\n", 35, 1002.5)
    found = [times.time_of(offset) for offset in (0, 9, 10, 29, 30, 34, 35)]
    assert found == [at(1000), at(1000), at(1002), at(1002), at(1002.5), at(1002.5), None]
    assert times.notes == [(1000, 10), (1002, 30), (1002.5, 35)]


def test_the_parts_of_attempts_follow_each_other(store: JobStore) -> None:
    times = put(store, "1000 10 1\n1009.5 20 1\n1060 20 2\n1061 50 2\n1061 50 2\n1100 50 3\n", 60, 1101)
    assert times.attempts() == [AttemptOutput(1, 0, 20), AttemptOutput(2, 20, 50), AttemptOutput(3, 50, 60)]
    assert times.time_of(19) == at(1009.5), "not when the next attempt began"


def test_an_attempt_that_is_printed_nothing_has_an_empty_part(store: JobStore) -> None:
    times = put(store, "1 20 1\n2 20 2\n3 20 2\n4 20 3\n", 20, 1)
    assert times.attempts() == [AttemptOutput(1, 0, 20), AttemptOutput(2, 20, 20), AttemptOutput(3, 20, 20)]


def test_attempts_that_were_not_noted_belong_to_the_one_before(store: JobStore) -> None:
    times = put(store, "1 20 4\n2 20 5\n", 30, 3)
    assert times.attempts() == [AttemptOutput(4, 0, 20), AttemptOutput(5, 20, 30)]


def test_a_job_that_was_reset_by_hand_counts_its_attempts_anew(store: JobStore) -> None:
    times = put(store, "1 10 1\n2 10 2\n3 20 2\n4 30 1\n", 30, 4)
    assert times.attempts() == [AttemptOutput(1, 0, 10), AttemptOutput(2, 10, 20), AttemptOutput(1, 20, 30)]


def test_a_log_that_was_truncated_begins_anew(store: JobStore) -> None:
    times = put(store, "1 100 1\n2 100 2\n3 5 2\n", 8, 4)
    assert times.attempts() == [AttemptOutput(2, 0, 8)]
    assert (times.time_of(4), times.time_of(5)) == (at(3), at(4))
    times = put(store, "1 100 1\n2 100 2\n3 150 2\n", 8, 4)
    assert times.attempts() == [AttemptOutput(2, 0, 8)]
    assert times.time_of(4) == at(4)


def test_lines_that_are_no_notes_are_passed_over(store: JobStore) -> None:
    times = put(store, "nonsense\n1 10 1\n\xff\n-1 2 3\n1 2\n1 2 3 4\nnan 30 1\n2 20 1\n3 29 12", 30, 4)
    assert times.notes == [(1, 10), (2, 20), (4, 30)]


def test_a_clock_that_was_set_back(store: JobStore) -> None:
    assert put(store, "1000 10 1\n500 20 1\n", 30, 600).notes == [(1000, 10), (1000, 20), (1000, 30)]


def test_a_file_that_is_none_of_ours_is_not_read(store: JobStore) -> None:
    paths = store.paths("j")
    paths.log("t").write_text("text")
    paths.log_times("t").symlink_to("/dev/zero")
    assert len(log_times.read(paths, "t").notes) == 1
    paths.log_times("t").unlink()
    with open(paths.log_times("t"), "wb") as file:
        file.truncate(1 << 40)
    assert len(log_times.read(paths, "t").notes) == 1
    with pytest.raises(InvalidJobError):
        log_times.read(paths, "../../x")


@given(notes=NOTES, size=st.integers(0, 60))
def test_whatever_was_noted_parts_and_times_are_in_order(notes: list[Note], size: int) -> None:
    times = LogTimes(notes, Note(1.0, size, 1))
    parts = times.attempts()
    assert parts[0].begin == 0
    assert parts[-1].end == size
    assert all(one.end == other.begin for one, other in itertools.pairwise(parts))
    assert all(part.begin <= part.end for part in parts)
    found = [times.time_of(offset) for offset in range(size)]
    assert None not in found
    assert found == sorted(found)
    assert times.time_of(size) is None
