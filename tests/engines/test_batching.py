"""How many tasks of a job an engine submits together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.engines.batch.handles import Handles
from airflow_provider_air_executor.engines.batch.submitter import Submitter
from airflow_provider_air_executor.engines.batching import pop_tasks_per_submission
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.engines.slurm import commands
from airflow_provider_air_executor.jobs.store import JobStore


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 7),
        ({"tasks_per_submission": None, "bundle": None}, 7),
        ({"tasks_per_submission": 50}, 50),
        ({"bundle": 2}, 2),
        ({"bundle": 2, "tasks_per_submission": 3}, 3),
    ],
)
def test_the_new_name_counts_then_the_old_one(options: dict[str, Any], size: int) -> None:
    given = {"partition": "p", **options}
    assert pop_tasks_per_submission(given, "an engine", default=7) == size
    assert given == {"partition": "p"}


@pytest.mark.parametrize("name", ["tasks_per_submission", "bundle"])
@pytest.mark.parametrize("size", [0, 51, True, 1.5, "2"])
def test_a_size_that_is_not_valid(name: str, size: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: must be a whole number from 1 to 50, not "):
        pop_tasks_per_submission({name: size}, "an engine")


def test_the_old_name_is_warned_of_once_for_each_engine(caplog: pytest.LogCaptureFixture) -> None:
    for engine in ("one", "other", "one"):
        pop_tasks_per_submission({"bundle": 2}, engine)
    assert [record.getMessage() for record in caplog.records] == [
        f"the option {engine}.bundle is called tasks_per_submission now; the old name will not be read for long"
        for engine in ("one", "other")
    ]


class Noted:
    """Stands for the command lines of a system: it keeps what was to be run."""

    poll_after = None

    def __init__(self) -> None:
        self.texts: list[bytes] = []

    def run(self, _words: list[str], _answered: object, *, text: bytes) -> None:
        """Keep what the command line would read."""
        self.texts.append(text)

    def expire(self) -> None:
        """Nothing takes too long."""


def test_only_tasks_of_the_same_job_share_a_submission(tmp_path: Path) -> None:
    """So none of the executor's do: each task of Airflow's is a job of its own."""
    noted = Noted()
    submitter = Submitter(commands, noted, lambda *_: None)  # type: ignore[arg-type]
    handles = Handles(commands, JobStore(tmp_path))
    for job_name, task_id in (("one", "a"), ("one", "b"), ("two", "a"), ("three", "a")):
        submitter.gather(handles.make(Attempt.of(job_name, task_id, 1, "slurm"), "token", {}), 20, "")
    submitter.poll()
    assert [text.count(b".on-slurm") for text in noted.texts] == [2, 1, 1]
