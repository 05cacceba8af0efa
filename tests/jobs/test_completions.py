"""The completions of jobs: each once for a subscriber, whichever process reads."""

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
from airflow_provider_air_executor.jobs import bell, inotify
from airflow_provider_air_executor.jobs.completions import JobCompletions
from airflow_provider_air_executor.jobs.interface import JobFilter
from airflow_provider_air_executor.jobs.models import JobState, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job
from tests.support.waiting import wait_until

FOREVER = 3600.0


def end(store: JobStore, name: str, state: JobState = JobState.COMPLETED, **more: Any) -> None:
    """A job comes and ends, or ends again."""
    if name not in store.job_names():
        store.submit(name, ["true"])
    publish_job(store, store.get_job(name).evolve(state=state, updated_at=utc_now(), **more))


def completions(
    store: JobStore,
    name: str = "r",
    *,
    interval: float = FOREVER,
    wanted: JobFilter = JobFilter(),  # noqa: B008
) -> JobCompletions:
    return JobCompletions(store, name, interval=interval, wanted=wanted)


def test_without_locks_no_subscriber_can_be_the_only_one(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))

    async def follow() -> None:
        async with contextlib.aclosing(completions(store).follow()) as following:
            await anext(following)

    with pytest.raises(NoLocksError, match=r"readers/r cannot be locked \(No locks available\)"):
        asyncio.run(follow())


async def delivered(found: JobCompletions, number: int, *, ack: bool = True, meanwhile: Any = None) -> list[str]:
    """The first completions that are delivered, and what comes within a moment after them."""
    names: list[str] = []

    async def read() -> None:
        async with contextlib.aclosing(found.follow()) as following:
            async for job in following:
                names.append(job.name)
                if ack:
                    found.ack(job)

    reading = asyncio.create_task(read())
    if meanwhile is not None:
        await asyncio.to_thread(wait_until, lambda: found._since or reading.done(), what="it reads")
        await asyncio.sleep(0.2)
        await asyncio.to_thread(meanwhile)
    await asyncio.to_thread(wait_until, lambda: len(names) >= number or reading.done(), what="they are delivered")
    await asyncio.sleep(0.2)
    reading.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reading
    return names


def test_what_ends_after_the_subscription_is_delivered_once(store: JobStore) -> None:
    end(store, "before")
    time.sleep(0.05)

    def meanwhile() -> None:
        end(store, "new")
        end(store, "failed", JobState.FAILED)

    assert asyncio.run(delivered(completions(store), 2, meanwhile=meanwhile)) == ["new", "failed"]
    assert asyncio.run(delivered(completions(store), 0)) == []  # its successor has nothing to do
    end(store, "while-away")
    assert asyncio.run(delivered(completions(store), 1)) == ["while-away"]


def test_on_another_machine_the_manager_rings(mounts: tuple[JobStore, JobStore]) -> None:
    here, there = mounts

    def meanwhile() -> None:
        end(there, "a")
        bell.ring(there.base_path, bell.JOBS)

    assert asyncio.run(delivered(completions(here), 1, meanwhile=meanwhile)) == ["a"]


def test_a_subscriber_that_gets_another_name_goes_on_where_it_was(store: JobStore) -> None:
    asyncio.run(delivered(completions(store, "old"), 0))
    end(store, "a")
    assert asyncio.run(delivered(completions(store, "old"), 1)) == ["a"]
    end(store, "b")
    renamed = lambda name: JobCompletions(store, name, interval=FOREVER, formerly="old")  # noqa: E731
    assert asyncio.run(delivered(renamed("new"), 1)) == ["b"]
    assert asyncio.run(delivered(renamed("new"), 0)) == []
    assert asyncio.run(delivered(renamed("another"), 0)) == []  # it is there for the first time


def test_what_is_not_acknowledged_is_delivered_to_the_next_one(store: JobStore) -> None:
    asyncio.run(delivered(completions(store), 0))
    end(store, "a")
    assert asyncio.run(delivered(completions(store), 1, ack=False)) == ["a"]
    assert asyncio.run(delivered(completions(store), 1)) == ["a"]
    assert asyncio.run(delivered(completions(store), 0)) == []


def test_each_subscriber_has_its_own(store: JobStore) -> None:
    for name in ("one", "two"):
        asyncio.run(delivered(completions(store, name), 0))
    end(store, "a")
    for name in ("one", "two"):
        assert asyncio.run(delivered(completions(store, name), 1)) == ["a"]


def test_a_job_that_ends_again_is_delivered_again(store: JobStore) -> None:
    asyncio.run(delivered(completions(store), 0))
    end(store, "a", JobState.FAILED, attempt=1)
    assert asyncio.run(delivered(completions(store), 1)) == ["a"]
    end(store, "a", attempt=2)
    assert asyncio.run(delivered(completions(store), 1)) == ["a"]


def test_only_what_matches_is_delivered(store: JobStore) -> None:
    asyncio.run(delivered(completions(store), 0))
    end(store, "a")
    end(store, "b")
    assert asyncio.run(delivered(completions(store, wanted=JobFilter(name="b*")), 1)) == ["b"]


def test_without_notification_a_pass_finds_it(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify.sys, "platform", "other")
    found = completions(store, interval=0.05)
    assert asyncio.run(delivered(found, 1, meanwhile=lambda: end(store, "a"))) == ["a"]


def test_while_one_reads_another_one_waits(store: JobStore) -> None:
    """Also one that only stands still: nothing is delivered twice by two triggerers."""

    async def scenario() -> list[str]:
        first = completions(store, interval=0.05)
        async with contextlib.aclosing(first.follow()) as following:
            reading = asyncio.ensure_future(anext(following))
            await asyncio.to_thread(wait_until, lambda: first._since, what="it reads")
            await asyncio.sleep(0.2)
            second = asyncio.create_task(delivered(completions(store, interval=0.05), 1))
            end(store, "a")
            job = await reading
            await asyncio.sleep(0.3)
            assert not second.done()
            first.ack(job)
        await asyncio.to_thread(end, store, "b")
        return await second

    assert asyncio.run(scenario()) == ["b"]


def test_nothing_is_written_through_a_link(store: JobStore, tmp_path: Path) -> None:
    end(store, "a")
    job = store.get_job("a")
    elsewhere = tmp_path / "elsewhere"
    os.rename(store.paths("a").directory, elsewhere)
    os.symlink(elsewhere, store.paths("a").directory)
    completions(store).ack(job)
    assert not list(elsewhere.glob(".seen*"))


def test_a_name_that_is_a_path_is_refused(store: JobStore) -> None:
    with pytest.raises(InvalidJobError, match="subscriber"):
        completions(store, "../x")
