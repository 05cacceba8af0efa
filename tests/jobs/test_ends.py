"""The ends of jobs: each once for a reader, whoever reads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from airflow_provider_air_executor.exceptions import InvalidJobError, NoLocksError
from airflow_provider_air_executor.jobs import notify
from airflow_provider_air_executor.jobs.ends import JobEnds
from airflow_provider_air_executor.jobs.models import Job, JobState, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job
from tests.support.waiting import wait_until

FOREVER = 3600.0


def end(store: JobStore, name: str, state: JobState = JobState.COMPLETED, **more: Any) -> None:
    """A job comes and ends, or ends again."""
    if name not in store.job_names():
        store.submit(name, ["true"])
    publish_job(store, store.get_job(name).evolve(state=state, updated_at=utc_now(), **more))


def ends(store: JobStore, reader: str = "r", *, interval: float = FOREVER, matches: Any = None) -> JobEnds:
    return JobEnds(store, reader, interval=interval, matches=matches or (lambda _: True))


def test_without_locks_nobody_can_be_the_only_reader(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))

    async def follow() -> None:
        async with contextlib.aclosing(ends(store).follow()) as following:
            await anext(following)

    with pytest.raises(NoLocksError, match=r"readers/r cannot be locked \(No locks available\)"):
        asyncio.run(follow())


async def told(found: JobEnds, number: int, *, confirm: bool = True, meanwhile: Any = None) -> list[str]:
    """The first ends that are told, and what comes within a moment after them."""
    names: list[str] = []

    async def read() -> None:
        async with contextlib.aclosing(found.follow()) as following:
            async for job in following:
                names.append(job.name)
                if confirm:
                    found.confirm(job)

    reading = asyncio.create_task(read())
    if meanwhile is not None:
        await asyncio.to_thread(wait_until, lambda: found._since or reading.done(), what="it reads")
        await asyncio.sleep(0.2)
        await asyncio.to_thread(meanwhile)
    await asyncio.to_thread(wait_until, lambda: len(names) >= number or reading.done(), what="they are told")
    await asyncio.sleep(0.2)
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    return names


def test_what_ends_after_the_reader_came_is_told_once(store: JobStore) -> None:
    end(store, "before")
    time.sleep(0.05)

    def meanwhile() -> None:
        end(store, "new")
        end(store, "failed", JobState.FAILED)

    assert asyncio.run(told(ends(store), 2, meanwhile=meanwhile)) == ["new", "failed"]
    assert asyncio.run(told(ends(store), 0)) == []  # its successor has nothing to do
    end(store, "while-away")
    assert asyncio.run(told(ends(store), 1)) == ["while-away"]


def test_a_reader_that_gets_another_name_goes_on_where_it_was(store: JobStore) -> None:
    asyncio.run(told(ends(store, "old"), 0))
    end(store, "a")
    assert asyncio.run(told(ends(store, "old"), 1)) == ["a"]
    end(store, "b")
    renamed = lambda reader: JobEnds(store, reader, interval=FOREVER, matches=lambda _: True, formerly="old")  # noqa: E731
    assert asyncio.run(told(renamed("new"), 1)) == ["b"]
    assert asyncio.run(told(renamed("new"), 0)) == []
    assert asyncio.run(told(renamed("another"), 0)) == []  # it is there for the first time


def test_what_is_not_confirmed_is_told_to_the_next_one(store: JobStore) -> None:
    asyncio.run(told(ends(store), 0))
    end(store, "a")
    assert asyncio.run(told(ends(store), 1, confirm=False)) == ["a"]
    assert asyncio.run(told(ends(store), 1)) == ["a"]
    assert asyncio.run(told(ends(store), 0)) == []


def test_each_reader_has_its_own(store: JobStore) -> None:
    for reader in ("one", "two"):
        asyncio.run(told(ends(store, reader), 0))
    end(store, "a")
    for reader in ("one", "two"):
        assert asyncio.run(told(ends(store, reader), 1)) == ["a"]


def test_a_job_that_ends_again_is_told_again(store: JobStore) -> None:
    asyncio.run(told(ends(store), 0))
    end(store, "a", JobState.FAILED, attempt=1)
    assert asyncio.run(told(ends(store), 1)) == ["a"]
    end(store, "a", attempt=2)
    assert asyncio.run(told(ends(store), 1)) == ["a"]


def test_only_what_matches_is_told(store: JobStore) -> None:
    def is_wanted(job: Job) -> bool:
        return job.name == "b"

    asyncio.run(told(ends(store), 0))
    end(store, "a")
    end(store, "b")
    assert asyncio.run(told(ends(store, matches=is_wanted), 1)) == ["b"]


def test_without_notification_a_pass_finds_it(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify.sys, "platform", "other")
    found = ends(store, interval=0.05)
    assert asyncio.run(told(found, 1, meanwhile=lambda: end(store, "a"))) == ["a"]


def test_while_one_reads_another_one_waits(store: JobStore) -> None:
    """Also one that only stands still: nothing is told twice by two triggerers."""

    async def scenario() -> list[str]:
        first = ends(store, interval=0.05)
        async with contextlib.aclosing(first.follow()) as following:
            reading = asyncio.ensure_future(anext(following))
            await asyncio.to_thread(wait_until, lambda: first._since, what="it reads")
            await asyncio.sleep(0.2)
            second = asyncio.create_task(told(ends(store, interval=0.05), 1))
            end(store, "a")
            job = await reading
            await asyncio.sleep(0.3)
            assert not second.done()
            first.confirm(job)
        await asyncio.to_thread(end, store, "b")
        return await second

    assert asyncio.run(scenario()) == ["b"]


def test_nothing_is_written_through_a_link(store: JobStore, tmp_path: Path) -> None:
    end(store, "a")
    job = store.get_job("a")
    elsewhere = tmp_path / "elsewhere"
    os.rename(store.paths("a").directory, elsewhere)
    os.symlink(elsewhere, store.paths("a").directory)
    ends(store).confirm(job)
    assert not list(elsewhere.glob(".seen*"))


def test_a_name_that_is_a_path_is_refused(store: JobStore) -> None:
    with pytest.raises(InvalidJobError, match="reader"):
        ends(store, "../x")
