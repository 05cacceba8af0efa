"""Long answers: they are not kept in memory, and a client that reads slowly does no harm."""

from __future__ import annotations

import gc

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.server import streams
from airflow_provider_air_executor.server.problems import ProblemError
from airflow_provider_air_executor.server.streams import MOST_FILES, Lines
from tests.support.servers import ServerThread
from tests.support.waiting import wait_until

LONG = [b"x" * 1000] * 1000


def free() -> int:
    """How many more long answers there may be."""
    gc.collect()
    return streams._files._value


def test_a_long_answer_comes_whole(client, store: JobStore):
    store.submit("a", [f"echo {'x' * 1000} {number}" for number in range(5_000)])
    with client.stream("GET", "/records/a/tasks") as response:
        assert int(response.headers["content-length"]) > 5_000_000
        assert len(list(response.iter_lines())) == 5_000
    wait_until(lambda: free() == MOST_FILES, what="it is over")


def test_what_cannot_be_made_is_an_error_and_no_answer_that_breaks_off(tmp_path):
    def lines():
        yield from LONG
        raise OSError("away")

    with pytest.raises(OSError, match="away"):
        Lines(lines(), tmp_path)
    assert free() == MOST_FILES


def test_there_are_so_many_at_a_time(tmp_path):
    kept = [Lines(LONG, tmp_path) for _ in range(MOST_FILES)]
    with pytest.raises(ProblemError) as raised:
        Lines(LONG, tmp_path)
    assert (raised.value.status, raised.value.headers) == (503, {"Retry-After": "5"})
    Lines([b"short"], tmp_path)
    kept.clear()
    assert free() == MOST_FILES


def test_one_that_is_not_read_is_over_when_its_client_leaves(server: ServerThread, store: JobStore):
    store.submit("a", [f"echo {'x' * 1000} {number}" for number in range(5_000)])
    with server.client() as client, client.stream("GET", "/records/a/tasks"):
        assert free() == MOST_FILES - 1
    with server.client() as client:
        client.get("/health")
    wait_until(lambda: free() == MOST_FILES, what="it is over")
