"""The streams of the server: changes of all jobs, and ends of jobs for subscribers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from airflow_provider_air_executor.jobs import completions, files
from airflow_provider_air_executor.jobs.masking import FILE
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.remote.events import Event, parse
from airflow_provider_air_executor.server import events, subscribers
from airflow_provider_air_executor.server.routes import changes
from airflow_provider_air_executor.server.tokens import UNIX
from tests.support.jobs import publish_job, remove
from tests.support.servers import ServerThread
from tests.support.waiting import wait_until


def following(client: httpx.Client, path: str) -> Iterator[Event | None]:
    """The events of a stream, and None for each heartbeat."""
    with client.stream("GET", path) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["Cache-Control"] == "no-store"
        yield from parse(response.iter_raw())


def next_event(stream: Iterator[Event | None]) -> Event:
    return next(event for event in stream if event is not None)


def content(event: Event) -> Any:
    return json.loads(event.data)


def test_changes_begin_with_a_reset_and_go_on_from_a_cursor(
    server: ServerThread, client: httpx.Client, store: JobStore
) -> None:
    store.submit("a", ["true"])
    stream = following(client, "/changes")
    assert next(stream) is None  # so that the client knows that it is connected
    reset = next_event(stream)
    assert reset.kind == "reset"
    store.submit("b", ["true"], attached={FILE: b'["secret-1234"]\n'}, labels={"k": "secret-1234"})
    event = next_event(stream)
    assert (event.kind, content(event)["name"], content(event)["kind"]) == ("job", "b", "state")
    assert content(event)["job"]["labels"] == {"k": "***"}
    remove(store, "b")
    gone = next_event(stream)
    assert content(gone) == {"name": "b", "kind": "state", "job": None}
    publish_job(store, store.get_job("a").evolve(state=JobState.WORKING))
    assert content(next_event(stream))["job"]["state"] == "working"
    stream.close()
    wait_until(lambda: not server.service.changes._followers, what="the client has gone")
    stream = following(client, f"/changes?cursor={event.id}")
    assert [content(next_event(stream))["name"] for _ in range(2)] == ["b", "a"]
    stream.close()
    stream = following(client, f"/changes?cursor={gone.id}")
    assert content(next_event(stream))["name"] == "a"
    stream.close()
    for cursor in ("x", "00000000-0", reset.id[:9] + "999999"):
        stream = following(client, f"/changes?cursor={cursor}")
        assert next_event(stream).kind == "reset"
        stream.close()


def test_a_client_that_is_far_too_slow_begins_anew(
    server: ServerThread, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_air_executor.jobs.changes.MOST_CHANGES", 3)
    feed = server.service.changes

    async def scenario() -> None:
        async with contextlib.aclosing(changes._events(server.service, UNIX, None)) as stream:
            assert await anext(stream) == events.HEARTBEAT
            assert b"reset" in await anext(stream)
            for number in range(10):  # while the client takes nothing
                store.submit(f"j{number}", ["true"])
            await asyncio.to_thread(wait_until, lambda: feed.last >= 10, what="they are seen")
            assert b"reset" in await anext(stream)
            store.submit("after", ["true"])
            assert b"after" in await anext(stream)

    asyncio.run(scenario())


def test_heartbeats_come(client: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    for path in ("/changes", "/completions/me?holder=h"):
        stream = following(client, path)
        beats = [next(stream) for _ in range(6)]
        assert beats.count(None) >= 5
        stream.close()


def test_a_job_whose_secrets_cannot_be_read_is_not_sent(client: httpx.Client, store: JobStore) -> None:
    stream = following(client, "/changes")
    next_event(stream)
    store.submit("a", ["true"], attached={FILE: b"{"})
    assert content(next_event(stream)) == {"name": "a", "kind": "state"}
    stream.close()


def test_ends_are_sent_until_they_are_acknowledged(client: httpx.Client, store: JobStore) -> None:
    def end(name: str) -> dict[str, Any]:
        store.submit(name, ["true"], labels={"a": "b=c"})
        publish_job(store, store.get_job(name).evolve(state=JobState.FAILED))
        return store.get_job(name).model_dump(mode="json", include={"name", "id", "attempt", "updated_at"})

    path = "/completions/me?holder=h&label=a%3Db%3Dc&state=failed"
    stream = following(client, path)
    next(stream)
    wait_until((store.base_path / "readers" / "me").exists, what="it has subscribed")
    first = end("a")
    assert content(next_event(stream))["name"] == "a"
    again = following(client, path)  # over another connection
    assert content(next_event(again))["name"] == "a"
    assert next(iter(stream), None) is None  # the first one has ended, or said nothing more
    assert client.post("/completions/me/ack", json={"job": first}).status_code == 204
    second = end("b")
    assert content(next_event(again))["name"] == "b"
    nack = {"json": {"job": second}}
    assert client.post("/completions/me/nack?holder=other", **nack).status_code == 204  # not its own
    assert client.post("/completions/me/nack?holder=h", **nack).status_code == 204
    end("c")
    assert sorted(content(next_event(again))["name"] for _ in range(2)) == ["b", "c"]
    again.close()
    stream.close()
    assert client.delete("/completions/me?holder=other").status_code == 204
    assert client.delete("/completions/me?holder=h").status_code == 204
    last = following(client, "/completions/me?holder=next")
    assert sorted(content(next_event(last))["name"] for _ in range(2)) == ["b", "c"]
    last.close()
    assert client.get("/completions/no%20name?holder=h").status_code == 422
    assert client.get("/completions/me").status_code == 422


def test_a_file_system_that_is_away_ends_a_stream_of_ends_and_the_next_one_goes_on(
    client: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.lock
    monkeypatch.setattr(completions.files, "lock", lambda *_: (_ for _ in ()).throw(OSError("stale")))
    assert list(following(client, "/completions/me?holder=h")) == [None]
    monkeypatch.setattr(completions.files, "lock", real)
    stream = following(client, "/completions/me?holder=h")
    next(stream)
    wait_until((store.base_path / "readers" / "me").exists, what="it has subscribed")
    store.submit("a", ["true"])
    publish_job(store, store.get_job("a").evolve(state=JobState.COMPLETED))
    assert content(next_event(stream))["name"] == "a"
    stream.close()


def test_there_are_not_any_number_of_subscribers(
    server: ServerThread, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "MOST", 1)
    stream = following(client, "/completions/one?holder=h")
    next(stream)
    wait_until(lambda: server.service.subscribers.get("one"), what="it is known")
    refused = client.get("/completions/two?holder=h")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
    again = following(client, "/completions/one?holder=h")
    assert next(again) is None
    again.close()
    stream.close()
