"""Waiting in an event loop: woken by changes, one watcher for all, nothing in the loop that blocks."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from airflow_provider_air_executor.jobs import inotify, watch
from airflow_provider_air_executor.jobs.completions import JobCompletions
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job
from tests.support.waiting import PATIENCE

FOREVER = 3600.0


def touch(store: JobStore, name: str) -> None:
    publish_job(store, store.get_job(name).evolve(state=JobState.WORKING))


def test_a_change_wakes_the_waiters_of_this_job_only(store: JobStore) -> None:
    async def scenario() -> None:
        async with (
            watch.watching(store, "a", interval=FOREVER) as first,
            watch.watching(store, "a", interval=FOREVER) as second,
            watch.watching(store, "b", interval=FOREVER) as other,
        ):
            touch(store, "a")
            assert await first.wait(PATIENCE)
            assert await second.wait(PATIENCE)
            assert not await other.wait(0.05)
            assert len(watch._watchers[asyncio.get_running_loop()]) == 1
        assert watch._watchers[asyncio.get_running_loop()] == {}

    for name in "ab":
        store.submit(name, ["true"])
    asyncio.run(scenario())


def test_a_job_that_is_not_there_yet_is_waited_for(store: JobStore) -> None:
    async def scenario() -> None:
        async with watch.watching(store, "late", interval=FOREVER) as waiter:
            store.submit("late", ["true"])
            assert await waiter.wait(PATIENCE)
            await asyncio.sleep(0.05)
            await waiter.wait(0)
            touch(store, "late")
            assert await waiter.wait(PATIENCE)

    store.create_directories()
    asyncio.run(scenario())


def test_the_slow_pass_finds_changes_without_a_notification(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inotify.Notifier, "add", lambda *_: False)
    passes = []

    async def scenario() -> None:
        async with watch.watching(store, "a", interval=0.05, on_pass=lambda: passes.append(1)) as waiter:
            await asyncio.sleep(0.15)
            touch(store, "a")
            assert await waiter.wait(PATIENCE)

    store.submit("a", ["true"])
    asyncio.run(scenario())
    assert passes


def test_a_thousand_waiters_share_one_watcher(store: JobStore) -> None:
    async def wait_for(name: str) -> None:
        async with watch.watching(store, name, interval=FOREVER) as waiter:
            started.release()
            assert await waiter.wait(PATIENCE)

    async def scenario() -> None:
        waiting = [asyncio.create_task(wait_for(f"j{number % 10}")) for number in range(1000)]
        for _ in waiting:
            await started.acquire()
        assert len(watch._watchers[asyncio.get_running_loop()]) == 1
        for number in range(10):
            touch(store, f"j{number}")
        await asyncio.gather(*waiting)

    for number in range(10):
        store.submit(f"j{number}", ["true"])
    started = asyncio.Semaphore(0)
    asyncio.run(scenario())


@pytest.mark.parametrize("rounds", range(4))
@pytest.mark.parametrize("who", ["a waiter", "a subscriber"])
def test_a_cancellation_that_comes_with_a_change_is_not_lost(store: JobStore, who: str, rounds: int) -> None:
    """Or a trigger that Airflow has ended would go on."""

    async def scenario() -> None:
        if who == "a waiter":
            waiter = watch.Waiter()
            change, waiting = waiter.wake, asyncio.create_task(waiter.wait(FOREVER))
        else:
            changed, completions = watch.Waiter(), JobCompletions(store, "r", interval=FOREVER)
            change, waiting = changed.wake, asyncio.create_task(completions._changes(notifier, changed))
        for _ in range(3):
            await asyncio.sleep(0)
        change()
        for _ in range(rounds):
            await asyncio.sleep(0)
        if waiting.cancel():
            with pytest.raises(asyncio.CancelledError):
                await waiting

    notifier = inotify.Notifier()
    with contextlib.closing(notifier):
        asyncio.run(scenario())
