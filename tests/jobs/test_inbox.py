"""Requests: refused where they make no sense, and whole where they are asked."""

from __future__ import annotations

from functools import partial

import pytest

from airflow_provider_air_executor.exceptions import InvalidJobError, JobNotFoundError, JobStateError
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job


def test_requests_say_no_where_they_make_no_sense(store: JobStore) -> None:
    store.submit("j", ["true"])
    with pytest.raises(JobStateError):
        inbox.retry(store, "j")
    for ask in (inbox.cancel, inbox.retry, partial(inbox.add_tasks, tasks=["true"])):
        with pytest.raises(JobNotFoundError):
            ask(store, "nope")
    publish_job(store, store.get_job("j").evolve(state=JobState.COMPLETED))
    assert inbox.cancel(store, "j") is False
    with pytest.raises(JobStateError):
        inbox.add_tasks(store, "j", ["true"])
    assert inbox.requests(store) == []


def test_tasks_to_be_added_are_checked_against_those_that_are_there(store: JobStore) -> None:
    store.submit("j", [{"id": "a", "command": "true"}])
    for bad in ([], [{"id": "a", "command": "true"}], [{"command": "true", "dependencies": ["nope"]}], "true", [7]):
        with pytest.raises(InvalidJobError):
            inbox.add_tasks(store, "j", bad)
    first, second = inbox.add_tasks(
        store, "j", [{"command": "true", "dependencies": ["a"]}, {"id": "b", "command": "x"}]
    )
    assert second == "b"
    assert first.startswith("task-2-")  # not task-2, which another one who adds at the same time would choose too
    assert inbox.add_tasks(store, "j", ["true"]) != inbox.add_tasks(store, "j", ["true"])
    request = inbox.load_request(inbox.requests(store)[0])
    assert [task.dependencies for task in request.tasks] == [("a",), ()]
