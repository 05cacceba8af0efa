"""What a glance at a ``state.json`` says, and of what it says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import files, glance
from airflow_provider_air_executor.jobs.models import Job, JobState, utc_now
from airflow_provider_air_executor.jobs.store import dump_job

COMPLETED = Job(id="j-1", name="j", state=JobState.COMPLETED, created_at=utc_now(), labels={"a": '"quoted"\n'})


def written(directory: Path, data: bytes) -> str:
    """A directory of a job with this state."""
    (directory / "state.json").write_bytes(data)
    return str(directory)


@pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED])
def test_a_job_that_has_ended(tmp_path: Path, state: JobState) -> None:
    directory = written(tmp_path, dump_job(COMPLETED.evolve(state=state)))
    assert glance.ended(directory, "j") == files.stamp(tmp_path / "state.json") is not None


@pytest.mark.parametrize(
    "data",
    [
        dump_job(COMPLETED.evolve(state=JobState.WAITING)),
        dump_job(COMPLETED.evolve(state=JobState.WORKING)),
        dump_job(COMPLETED.evolve(name="other")),
        dump_job(COMPLETED)[:-1],
        dump_job(COMPLETED)[:-3],
        dump_job(COMPLETED.evolve(error="e" * 10_000)),
        COMPLETED.model_dump_json().encode() + b"\n}\n",
        b"",
    ],
    ids=["waiting", "working", "another", "cut by one", "cut", "long", "another form", "empty"],
)
def test_what_must_be_read_whole(tmp_path: Path, data: bytes) -> None:
    assert glance.ended(written(tmp_path, data), "j") is None


def test_what_is_no_file(tmp_path: Path) -> None:
    assert glance.ended(str(tmp_path), "j") is None
    (tmp_path / "real").write_bytes(dump_job(COMPLETED))
    (tmp_path / "state.json").symlink_to(tmp_path / "real")
    assert glance.ended(str(tmp_path), "j") is None
    (tmp_path / "state.json").unlink()
    (tmp_path / "state.json").mkdir()
    assert glance.ended(str(tmp_path), "j") is None
