"""Requests: refused where they make no sense, and whole where they are asked."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import InvalidJobError, JobNotFoundError, JobStateError
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import JobState, SubmittedBy, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job, publish_tasks, task

OWNER = SubmittedBy(dag_id="d", run_id="r", task_id="t", try_number=1)


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


def test_the_same_tasks_can_be_asked_for_again(store: JobStore) -> None:
    """By somebody who has written down the word and the position, but not whether he has asked."""
    store.submit("j", ["true"])
    asked = [{"command": "a"}, {"command": "b", "dependencies": ["task-2"]}]
    present = inbox.present_tasks(store, "j")
    first = inbox.new_tasks("j", asked, present, word="w")
    assert [(task.id, task.dependencies) for task in first] == [("task-2-w", ()), ("task-3-w", ("task-2-w",))]
    inbox.ask_for_tasks(store, "j", first)
    assert [task.id for task in inbox.present_tasks(store, "j")] == ["task-1", "task-2-w", "task-3-w"]
    inbox.add_tasks(store, "j", ["true"])
    others = [task for task in inbox.present_tasks(store, "j") if not task.id.endswith("-w")]
    again = inbox.new_tasks("j", asked, others, word="w", first=2)
    assert [task.id for task in again] == [task.id for task in first]


def test_a_retry_by_the_attempt_that_was_seen_is_asked_for_once(store: JobStore) -> None:
    store.submit("j", ["true"])
    failed = store.get_job("j").evolve(state=JobState.FAILED, attempt=2)
    publish_job(store, failed)
    inbox.retry(store, "j", attempt=1)
    assert inbox.requests(store) == []
    inbox.retry(store, "j", attempt=2)
    assert [inbox.load_request(path).attempt for path in inbox.requests(store)] == [2]
    publish_job(store, failed.evolve(state=JobState.WAITING))  # the manager has carried it out
    inbox.retry(store, "j", attempt=2)
    assert len(inbox.requests(store)) == 1
    publish_job(store, failed.evolve(state=JobState.WORKING))
    with pytest.raises(JobStateError):
        inbox.retry(store, "j", attempt=2)


@pytest.mark.parametrize(
    ("requested", "more", "again"),
    [
        (False, {}, False),
        (True, {}, True),
        (True, {"owner": OWNER}, False),
        (True, {"again": False}, False),
        (False, {"again": True}, False),
        (True, {"owner": OWNER, "again": True}, True),
    ],
)
def test_a_second_request_of_a_user_is_meant_for_all_of_the_job(
    store: JobStore, requested: bool, more: dict[str, Any], again: bool
) -> None:
    """An Airflow task may ask more than once without meaning more: its trigger does so every second."""
    store.submit("j", ["true"], submitted_by=OWNER)
    if requested:
        publish_job(store, store.get_job("j").evolve(cancel_requested_at=utc_now()))
    assert inbox.cancel(store, "j", **more)
    (path,) = inbox.requests(store)
    assert inbox.load_request(path).again is again


def test_single_tasks_are_known_by_their_ids_and_by_what_became_of_them(store: JobStore) -> None:
    store.submit("j", [task("a"), task("b")])
    publish_tasks(store, "j", [item.evolve(status=TaskStatus.COMPLETED) for item in store.get_tasks("j")])
    assert inbox.cancel(store, "j", tasks=["a", "b"]) is False
    for ask in (inbox.cancel, inbox.retry):
        with pytest.raises(InvalidJobError, match="there is no task 'c' in job 'j'"):
            ask(store, "j", tasks=["a", "c"])
    assert inbox.requests(store) == []
    publish_job(store, store.get_job("j").evolve(state=JobState.COMPLETED, attempt=3))
    inbox.retry(store, "j", ["b", "b"])
    (path,) = inbox.requests(store)
    request = inbox.load_request(path)
    assert (request.task_ids, request.all, request.attempt) == (("b",), False, 3)
