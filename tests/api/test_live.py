"""The events of a job and of a log, for somebody who looks at them."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from airflow_provider_air_executor.api import live
from airflow_provider_air_executor.jobs import masking
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job


def parsed(text: str) -> tuple[str, int, dict[str, Any]]:
    fields = dict(line.split(": ", 1) for line in text.strip().splitlines())
    return fields["event"], int(fields["id"]), json.loads(fields["data"])


async def next_of(events: AsyncIterator[str]) -> tuple[str, int, dict[str, Any]]:
    return parsed(await asyncio.wait_for(anext(events), 10))


def test_a_job_and_its_log_are_followed_to_their_end(store: JobStore) -> None:
    job = store.submit("j", ["true"], attached={masking.FILE: masking.dump(["hunter2"])})
    log = store.paths("j").log("task-1")
    log.write_bytes(b"first\n")

    async def follow() -> None:
        events = live.events(FileJobs(store), "j", ("task-1", -1000))
        assert (await anext(events)).startswith("retry: ")
        assert await next_of(events) == ("changed", -1000, {})
        assert await next_of(events) == ("log", 6, {"text": "first\n", "offset": 0, "next_offset": 6})
        log.write_bytes("first\nhunter2 £".encode()[:-1])  # half a character
        assert await next_of(events) == ("log", 14, {"text": "*** ", "offset": 6, "next_offset": 14})
        publish_job(store, job.evolve(state=JobState.WORKING))
        assert (await next_of(events))[0] == "changed"
        log.write_bytes("first\nhunter2 £ end".encode())
        publish_job(store, job.evolve(state=JobState.COMPLETED))
        rest = [parsed(event) async for event in events]
        assert [kind for kind, _, _ in rest if kind != "changed"] == ["log", "end"]
        assert "".join(data.get("text", "") for _, _, data in rest) == "£ end"
        again = live.events(FileJobs(store), "j", ("task-1", 6))
        assert [parsed(event)[0] async for event in again if "event:" in event] == ["changed", "log", "end"]

    asyncio.run(follow())


def test_a_log_that_is_truncated_begins_anew(store: JobStore) -> None:
    store.submit("j", ["true"])
    log = store.paths("j").log("task-1")
    log.write_bytes(b"first\n")

    async def follow() -> None:
        events = live.events(FileJobs(store), "j", ("task-1", 0))
        await anext(events)
        assert [(await next_of(events))[:2] for _ in range(2)] == [("changed", 0), ("log", 6)]
        os.truncate(log, 0)
        assert await next_of(events) == ("log", 0, {"text": "", "offset": 0, "next_offset": 0})
        log.write_bytes(b"new\n")
        assert await next_of(events) == ("log", 4, {"text": "new\n", "offset": 0, "next_offset": 4})
        await events.aclose()

    asyncio.run(follow())


def test_a_long_log_does_not_hide_that_the_job_goes_on(store: JobStore) -> None:
    job = store.submit("j", ["true"])
    with store.paths("j").log("task-1").open("wb") as log:
        log.truncate(200_000_000)

    async def follow() -> None:
        events = live.events(FileJobs(store), "j", ("task-1", 0))
        await anext(events)
        assert [(await next_of(events))[0] for _ in range(3)] == ["changed", "log", "log"]
        publish_job(store, job.evolve(state=JobState.WORKING))
        assert "changed" in [(await next_of(events))[0] for _ in range(3)]
        await events.aclose()

    asyncio.run(follow())


def test_a_file_system_that_is_away_ends_nothing(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.submit("j", ["true"])
    monkeypatch.setattr(live, "STREAM_SECONDS", 5)

    def away(self: JobStore, name: str) -> None:
        raise OSError(5, "away")

    monkeypatch.setattr(JobStore, "get_job", away)

    async def follow() -> list[str]:
        return [event async for event in live.events(FileJobs(store), "j", ("task-1", 0))]

    assert [parsed(event)[0] for event in asyncio.run(follow())[1:]] == ["changed"]


def test_a_job_that_is_gone_ends_the_events(store: JobStore) -> None:
    async def follow() -> list[str]:
        return [event async for event in live.events(FileJobs(store), "missing", ("task-1", 0))]

    assert [parsed(event)[0] for event in asyncio.run(follow())[1:]] == ["changed", "end"]


def test_a_stream_ends_by_itself_and_a_log_costs_one_stat_a_second(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.submit("j", ["true"])
    monkeypatch.setattr(live, "STREAM_SECONDS", 5.0)
    looked: list[str] = []
    lstat, stat = os.lstat, os.stat
    monkeypatch.setattr(os, "lstat", lambda path, **how: (looked.append(str(path)), lstat(path, **how))[1])
    monkeypatch.setattr(os, "stat", lambda path, **how: (looked.append(str(path)), stat(path, **how))[1])

    async def follow() -> list[str]:
        return [event async for event in live.events(FileJobs(store), "j", ("task-1", 0))]

    began = time.monotonic()
    found = asyncio.run(follow())
    took = time.monotonic() - began
    assert took > 4.5
    assert [parsed(event)[0] for event in found[1:]] == ["changed"]
    of_log = [path for path in looked if path.endswith("task-1.log")]
    assert 1 <= len(of_log) <= took + 1
    # When it begins; two of them find out what kind of file system it is on.
    assert len([path for path in looked if str(store.base_path) in path]) - len(of_log) <= 8
