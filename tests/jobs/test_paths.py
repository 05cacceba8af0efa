"""The names of the files of a job."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.paths import JobPaths, parse_run, paths_of

IDS = st.text(st.characters(codec="ascii", exclude_characters="/\0"), min_size=1, max_size=100)
ATTEMPTS = st.integers(0, 999_999_999)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "a\0b"])
def test_no_job_lies_elsewhere(name: str) -> None:
    with pytest.raises(InvalidJobError):
        paths_of(Path("/jobs"), name)


def test_what_a_job_consists_of() -> None:
    paths = JobPaths(Path("/jobs"), "j")
    assert [str(path) for path in (paths.directory, paths.state, paths.tasks, paths.log("t"))] == [
        "/jobs/j",
        "/jobs/j/state.json",
        "/jobs/j/tasks.json",
        "/jobs/j/logs/t.log",
    ]


@given(task_id=IDS, attempt=ATTEMPTS)
def test_a_record_is_known_by_its_name(task_id: str, attempt: int) -> None:
    assert parse_run(JobPaths(Path("/jobs"), "j").record(task_id, attempt).name) == (task_id, attempt, None)


@given(task_id=IDS, attempt=ATTEMPTS, engine=st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True))
def test_a_handle_is_known_by_its_name(task_id: str, attempt: int, engine: str) -> None:
    assert parse_run(JobPaths(Path("/jobs"), "j").handle(task_id, attempt, engine).name) == (task_id, attempt, engine)


@pytest.mark.parametrize("name", ["a", "a.", "a.01", "a.x", "a.1.output", "a.1.on-", "a.1.probe", ".1", "a.1234567890"])
def test_other_files_are_neither(name: str) -> None:
    assert parse_run(name) is None
