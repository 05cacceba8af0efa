"""Which jobs a command is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import JobNotFoundError
from airflow_provider_air_executor.jobs.models import JobState, Reason, SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.cli.selection import Selection
from tests.support.jobs import publish_job


@pytest.fixture
def jobs(store: JobStore) -> None:
    owner = SubmittedBy(dag_id="etl", run_id="r", task_id="t")
    store.submit("a-1", ["true"], labels={"team": "red", "day": "2026-11-29"}, submitted_by=owner)
    store.submit("a-2", ["true"], labels={"team": "blue"})
    lost = store.submit("b", ["true"], labels={"team": "red"})
    publish_job(store, lost.evolve(state=JobState.FAILED, reason=Reason.LOST))


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Selection(), ["a-1", "a-2", "b"]),
        (Selection(names=("a-1", "b")), ["a-1", "b"]),
        (Selection(names=("a-*", "b")), ["a-1", "a-2", "b"]),
        (Selection(names=("A-*",)), []),
        (Selection(states=("waiting",)), ["a-1", "a-2"]),
        (Selection(states=("lost",)), ["b"]),
        (Selection(states=("lost", "waiting")), ["a-1", "a-2", "b"]),
        (Selection(labels=("team=red",)), ["a-1", "b"]),
        (Selection(labels=("team=red", "day")), ["a-1"]),
        (Selection(labels=("day=2026-11-*",)), ["a-1"]),
        (Selection(dags=("etl",)), ["a-1"]),
        (Selection(dags=("e*", "x")), ["a-1"]),
        (Selection(names=("a-*",), labels=("team=blue",)), ["a-2"]),
    ],
)
def test_the_jobs_that_are_meant(store: JobStore, selection: Selection, names: list[str]) -> None:
    assert [job.name for job in selection.jobs(store)] == names
    assert [job.name for job in selection.among(store, store.list_jobs())] == names


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("names", [("nope",), ("a-*", "nope")])
def test_a_name_that_there_is_not_is_an_error(store: JobStore, names: tuple[str, ...]) -> None:
    for selection in (Selection(names=names), Selection(names=names, states=("waiting",))):
        with pytest.raises(JobNotFoundError):
            selection.jobs(store)


@pytest.mark.usefixtures("jobs")
def test_the_options_of_commands(run: Any, store: JobStore, tmp_path: Path) -> None:
    def shown(*arguments: str) -> list[str]:
        return [job["name"] for job in json.loads(run("status", "--json", *arguments).stdout)["jobs"]]

    assert shown("--label", "team=red", "--state", "lost") == ["b"]
    assert shown("--name", "a-*") == ["a-2", "a-1"]  # the newest first
    assert shown("--name", "a-1") == ["a-1"]
    assert shown("--dag", "etl") == ["a-1"]
    assert shown("a-1", "b") == ["b", "a-1"]
    assert shown("--limit", "1") == ["b"]
    assert "b    failed" in run("status", "--state", "lost").stdout
    assert run("status", "--state", "asleep").returncode == 2
    for command in ("cancel", "retry", "rm", "wait"):
        assert "name jobs, or say which ones" in run(command).stderr
