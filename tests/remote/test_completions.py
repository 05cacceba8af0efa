"""The ends of jobs of a server: each one once, also over a connection that breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor import remote
from airflow_provider_air_executor.exceptions import AccessError, AirExecutorError
from airflow_provider_air_executor.jobs.completions import subscriber_path
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.interface import Completions, JobFilter
from airflow_provider_air_executor.jobs.models import Job, JobState
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.remote import events
from airflow_provider_air_executor.remote.connections import Timeouts
from airflow_provider_air_executor.remote.jobs import RemoteJobs
from airflow_provider_air_executor.remote.protocol import Target
from airflow_provider_air_executor.server import subscribers
from tests.support.jobs import publish_job, remove
from tests.support.proxy import Proxy
from tests.support.servers import ServerThread
from tests.support.waiting import PATIENCE

ALL = JobFilter()


@contextlib.asynccontextmanager
async def followed(completions: Completions) -> AsyncIterator[list[str]]:
    """The names of the jobs whose ends were delivered so far."""
    found: list[str] = []

    async def follow() -> None:
        async with contextlib.aclosing(completions.follow()) as ends:
            async for job in ends:
                kept[job.name] = job
                found.append(job.name)

    kept: dict[str, Job] = {}
    completions.kept = kept  # type: ignore[attr-defined]
    task = asyncio.create_task(follow())
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def when(check: Callable[[], Any]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not check():  # noqa: ASYNC110 - files and lists have no events
            await asyncio.sleep(0.01)


def end(store: JobStore, *names: str) -> None:
    """Let jobs be there that have ended."""
    for name in names:
        store.submit(name, ["true"])
        publish_job(store, store.get_job(name).evolve(state=JobState.COMPLETED))


async def subscribed(store: JobStore) -> None:
    await when(subscriber_path(store, "me").exists)


async def ack(completions: Completions, name: str) -> None:
    await asyncio.to_thread(completions.ack, completions.kept[name])  # type: ignore[attr-defined]


def test_a_connection_that_breaks_loses_and_repeats_nothing(jobs: RemoteJobs, proxy: Proxy, store: JobStore) -> None:
    async def scenario() -> None:
        completions = jobs.completions("me", ALL, interval=5.0)
        async with followed(completions) as found:
            await subscribed(store)
            for number in range(5):
                await asyncio.to_thread(end, store, f"a{number}", f"b{number}")
                proxy.break_once()
                await when(lambda: len(found) == 2 * (number + 1))  # noqa: B023
                await ack(completions, f"a{number}")
            proxy.cut()
            await asyncio.to_thread(end, store, "c")
            await asyncio.sleep(0.3)
            proxy.restore()
            await when(lambda: "c" in found)
            assert len(found) == len(set(found)) == 11
        async with followed(jobs.completions("me", ALL, interval=5.0)) as found:
            await when(lambda: len(found) == 6)
            assert set(found) == {*(f"b{number}" for number in range(5)), "c"}

    asyncio.run(scenario())


def test_an_event_that_was_lost_on_its_way_is_sent_again(jobs: RemoteJobs, proxy: Proxy, store: JobStore) -> None:
    async def scenario() -> None:
        completions = jobs.completions("me", ALL, interval=5.0)
        async with followed(completions) as found:
            await subscribed(store)
            await asyncio.sleep(0.2)
            proxy.lose_next_answer(30)
            await asyncio.to_thread(end, store, "a")
            await when(lambda: found)
            assert proxy.lost == 1
            await ack(completions, "a")
            await asyncio.to_thread(end, store, "b")
            await when(lambda: found == ["a", "b"])

    asyncio.run(scenario())


def test_an_acknowledgement_whose_answer_is_lost_counts(jobs: RemoteJobs, proxy: Proxy, store: JobStore) -> None:
    async def scenario() -> None:
        completions = jobs.completions("me", ALL, interval=5.0)
        async with followed(completions) as found:
            await subscribed(store)
            await asyncio.to_thread(end, store, "a", "gone")
            await when(lambda: len(found) == 2)
            proxy.lose_next_answer()
            await ack(completions, "a")
            remove(store, "gone")
            await ack(completions, "gone")
        end(store, "b")
        async with followed(jobs.completions("me", ALL, interval=5.0)) as found:
            await when(lambda: found)
            assert found == ["b"]

    asyncio.run(scenario())


def test_an_end_that_is_sent_again_while_it_is_acknowledged_is_not_delivered_again(
    jobs: RemoteJobs, store: JobStore
) -> None:
    completions: Any = jobs.completions("me", ALL, interval=5.0)
    end(store, "a")
    job = store.get_job("a")
    assert completions._is_new(job)
    completions.ack(job)  # when the connection was just made again, and the server has sent it once more
    assert not completions._is_new(job)
    completions.nack(job)
    assert completions._is_new(job)


def test_a_server_that_is_started_again_goes_on(store: JobStore, tmp_path: Path) -> None:
    async def scenario() -> None:
        with ServerThread(store) as server:
            jobs = remote.connect(Target(socket=server.socket, name="again"), patience=30.0)
            completions = jobs.completions("me", ALL, interval=5.0)
            async with followed(completions) as found:
                await subscribed(store)
                await asyncio.to_thread(end, store, "a", "b")
                await when(lambda: len(found) == 2)
                await asyncio.to_thread(server.__exit__)
                with ServerThread(store):
                    await ack(completions, "a")
                    await asyncio.to_thread(end, store, "c")
                    await when(lambda: len(found) == 3)
                    await ack(completions, "b")
                    assert found[2] == "c"
            seen = {path.parent.name for path in store.jobs_path.glob("*/.seen-me")}
            assert seen == {"a", "b"}

    asyncio.run(scenario())


def test_another_holder_gets_the_lock_when_the_first_is_not_heard_of(
    connected: Callable[..., RemoteJobs],
    proxy: Proxy,
    server: ServerThread,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribers, "ABSENCE_SECONDS", 0.5)

    async def scenario() -> None:
        first = connected().completions("me", ALL, interval=5.0)
        second = remote.connect(Target(socket=server.socket)).completions("me", ALL, interval=5.0)
        async with followed(first) as found:
            await subscribed(store)
            await asyncio.to_thread(end, store, "a")
            await when(lambda: found)
            async with followed(second) as others:
                await asyncio.sleep(0.7)
                assert not others
                proxy.cut()
                await when(lambda: others == ["a"])  # it was not acknowledged
                await asyncio.to_thread(second.ack, second.kept["a"])  # type: ignore[attr-defined]
                proxy.restore()
                await asyncio.to_thread(end, store, "b")
                await when(lambda: others == ["a", "b"])
                assert found == ["a"]
        remote.connect(Target(socket=server.socket)).close()

    asyncio.run(scenario())


def test_a_holder_over_a_half_open_connection_takes_its_lock_over(
    jobs: RemoteJobs, proxy: Proxy, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does not know that the first connection is dead."""
    monkeypatch.setattr(events, "TIMEOUTS", Timeouts(connect=6.0, read=6.0))  # heartbeats come every 5 s

    async def scenario() -> None:
        completions = jobs.completions("me", ALL, interval=5.0)
        async with followed(completions) as found:
            await subscribed(store)
            proxy.stand_still()
            await asyncio.to_thread(end, store, "a")
            await asyncio.sleep(7.0)
            proxy.restore()
            await asyncio.to_thread(end, store, "b")
            await when(lambda: len(found) == 2)
            assert found == ["a", "b"]

    asyncio.run(scenario())


def test_files_and_servers_have_the_same_lock(jobs: RemoteJobs, store: JobStore) -> None:
    async def scenario() -> None:
        here = FileJobs(store).completions("me", ALL, interval=0.05)
        async with followed(here) as found:
            await subscribed(store)
            async with followed(jobs.completions("me", ALL, interval=0.05)) as others:
                await asyncio.to_thread(end, store, "a")
                await when(lambda: found == ["a"])
                await asyncio.sleep(0.2)
                assert not others
        async with followed(jobs.completions("me", ALL, interval=0.05)) as found:
            await when(lambda: found == ["a"])
        async with followed(FileJobs(store).completions("me", ALL, interval=0.05)) as found:
            await when(lambda: found == ["a"])  # the server has given the lock back

    asyncio.run(scenario())


def test_a_former_name_goes_on(jobs: RemoteJobs, store: JobStore) -> None:
    async def scenario() -> None:
        async with followed(jobs.completions("old", ALL, interval=5.0)):
            await when(subscriber_path(store, "old").exists)
        end(store, "a")
        async with followed(jobs.completions("new", ALL, interval=5.0, formerly="old")) as found:
            await when(lambda: found == ["a"])
        assert not subscriber_path(store, "old").exists()

    asyncio.run(scenario())


def test_what_is_refused_is_said(server: ServerThread, connected: Callable[..., RemoteJobs]) -> None:
    async def first(jobs: RemoteJobs, name: str) -> Job:
        async with contextlib.aclosing(jobs.completions(name, ALL, interval=5.0).follow()) as ends:
            return await anext(ends)

    reader = remote.connect(Target(url=server.url, token=server.token("reader", "read")))
    with pytest.raises(AccessError, match="this needs submit"):
        asyncio.run(first(reader, "me"))
    with pytest.raises(AirExecutorError, match="subscriber"):
        asyncio.run(first(connected(), "no name"))


def test_who_is_slow_is_waited_for(jobs: RemoteJobs, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps the rest, and not the client."""
    monkeypatch.setattr("airflow_provider_air_executor.remote.completions._AHEAD", 2)

    async def scenario() -> None:
        completions = jobs.completions("me", ALL, interval=5.0)
        ends = completions.follow()
        first = asyncio.ensure_future(anext(ends))
        await subscribed(store)
        await asyncio.to_thread(end, store, *(f"a{number}" for number in range(20)))
        found = [(await first).name]
        await asyncio.sleep(0.3)
        assert len(completions._delivered) <= 5
        while len(found) < 20:
            found.append((await anext(ends)).name)
        assert len(set(found)) == 20
        await ends.aclose()

    asyncio.run(scenario())
