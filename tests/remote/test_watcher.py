"""Waiting for jobs of a server: one connection for all, which goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_air_executor import remote
from airflow_provider_air_executor.exceptions import AccessError, JobNotFoundError, JobsAwayError
from airflow_provider_air_executor.jobs import changes
from airflow_provider_air_executor.jobs.interface import CONNECTION, OUTPUT, STATE, TASKS
from airflow_provider_air_executor.jobs.models import Job, JobState
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.remote import events, watcher
from airflow_provider_air_executor.remote.connections import Timeouts
from airflow_provider_air_executor.remote.events import Event, parse
from airflow_provider_air_executor.remote.jobs import RemoteJobs
from airflow_provider_air_executor.remote.protocol import Target
from airflow_provider_air_executor.remote.transport import Transport
from airflow_provider_air_executor.remote.watcher import RemoteWatch
from airflow_provider_air_executor.server.tokens import Tokens
from tests.support.jobs import publish_job, publish_tasks, remove
from tests.support.proxy import Proxy
from tests.support.servers import ServerThread
from tests.support.waiting import PATIENCE, wait_until

INTERVAL = 5.0
WATCHES = 1_000


def become(store: JobStore, name: str, state: JobState) -> None:
    publish_job(store, store.get_job(name).evolve(state=state))


async def until(watch: RemoteWatch, state: JobState) -> set[str]:
    """Wait until a job stands so, and say what has changed on the way."""
    seen: set[str] = set()
    while True:
        with contextlib.suppress(JobsAwayError):
            if (await watch.read()).state is state:
                return seen
        assert await watch.wait(PATIENCE)
        seen |= set(watch.changed)


async def away(watch: RemoteWatch) -> None:
    """Wait until it is said that the server is away."""
    while True:
        try:
            await watch.read()
        except JobsAwayError:
            return
        assert await watch.wait(PATIENCE)


def test_events_are_read_however_they_are_cut() -> None:
    text = b': hello\n\nid: 1-2\nevent: job\ndata: {"a":\ndata: 1}\n\ndata:x\n\nretry: 3\n\n:\n\nevent: y\n\n'
    expected = [None, Event("job", "1-2", b'{"a":\n1}'), Event("message", "1-2", b"x"), None]
    for size in range(1, len(text) + 1):
        assert list(parse(text[at : at + size] for at in range(0, len(text), size))) == expected


def test_a_thousand_watches_have_one_connection(jobs: RemoteJobs, proxy: Proxy, store: JobStore) -> None:
    async def wait_for(name: str) -> None:
        async with jobs.watching(name, interval=INTERVAL) as watch:
            await watch.read()
            ready.release()
            await until(watch, JobState.COMPLETED)

    async def scenario() -> None:
        jobs.prepare()
        waiting = [asyncio.create_task(wait_for(f"j{number % 50}")) for number in range(WATCHES)]
        for _ in waiting:
            await ready.acquire()
        assert proxy.open_connections <= 2  # that of requests, and the stream
        before = len(server_requests(jobs))
        for number in range(50):
            await asyncio.to_thread(become, store, f"j{number}", JobState.COMPLETED)
        await asyncio.gather(*waiting)
        assert len(server_requests(jobs)) == before  # what they read has come by the stream
        assert proxy.open_connections <= 2

    ready = asyncio.Semaphore(0)
    for number in range(50):
        store.submit(f"j{number}", ["true"])
    asyncio.run(scenario())


def server_requests(jobs: RemoteJobs) -> list[str]:
    """The requests that this client has sent so far."""
    transport = jobs._link.transport
    found: list[str] = transport.__dict__.setdefault("seen", [])
    if not found:
        asked = transport._asked

        def record(connection: Any, address: Any, ask: Any) -> Any:
            found.append(ask.path)
            return asked(connection, address, ask)

        transport._asked = record
        found.append("begin")
    return found


def test_the_first_reads_of_many_watches_are_few_requests(jobs: RemoteJobs, store: JobStore) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            watches = [
                await stack.enter_async_context(jobs.watching(f"j{number}", interval=INTERVAL))
                for number in range(WATCHES)
            ]
            found = await asyncio.gather(*(watch.read() for watch in watches), return_exceptions=True)
            assert sum(isinstance(job, JobNotFoundError) for job in found) == WATCHES - 20
            assert [job.name for job in found[:20]] == [f"j{number}" for number in range(20)]
            assert sum("query" in path for path in requests) <= 5

    for number in range(20):
        store.submit(f"j{number}", ["true"])
    requests = server_requests(jobs)
    asyncio.run(scenario())


def test_it_is_said_what_has_changed(jobs: RemoteJobs, store: JobStore) -> None:
    async def next_change(watch: RemoteWatch) -> set[str]:
        assert await watch.wait(PATIENCE)
        return set(watch.changed)

    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch:
            assert watch.sees_output
            await watch.read()
            publish_tasks(store, "a", store.get_tasks("a"))
            assert await next_change(watch) == {TASKS}
            with (store.paths("a").logs / "task-1.log").open("a") as log:
                log.write("x\n")
            assert await next_change(watch) == {OUTPUT}
            become(store, "a", JobState.WORKING)
            assert await next_change(watch) == {STATE}
            assert not await watch.wait(0.05)
            assert set(watch.changed) == set()

    store.submit("a", ["true"])
    asyncio.run(scenario())


def test_a_connection_that_breaks_goes_on_where_it_was(
    jobs: RemoteJobs, proxy: Proxy, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what has changed meanwhile is not missed, and an outage that is short is not said."""
    monkeypatch.setattr(watcher, "_SHORT_SECONDS", 3600.0)

    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch, jobs.watching("b", interval=INTERVAL) as other:
            await watch.read()
            await other.read()
            await other.wait(0)  # it may have changed before it was watched
            before = len(requests)
            proxy.cut()
            become(store, "a", JobState.WORKING)
            become(store, "a", JobState.COMPLETED)
            await asyncio.sleep(0.3)
            proxy.restore()
            assert await until(watch, JobState.COMPLETED) == {STATE}
            assert not await other.wait(0.05)
            assert not any("query" in path for path in requests[before:])

    for name in "ab":
        store.submit(name, ["true"])
    requests = server_requests(jobs)
    asyncio.run(scenario())


def test_a_server_that_is_away_is_said_and_all_is_well_when_it_is_back(
    jobs: RemoteJobs, proxy: Proxy, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_SHORT_SECONDS", 0.0)

    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch:
            await watch.read()
            proxy.cut()
            await away(watch)
            become(store, "a", JobState.COMPLETED)
            proxy.restore()
            assert CONNECTION in await until(watch, JobState.COMPLETED)

    store.submit("a", ["true"])
    asyncio.run(scenario())


def test_a_half_open_stream_is_given_up(
    jobs: RemoteJobs, proxy: Proxy, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "TIMEOUTS", Timeouts(connect=6.0, read=6.0))  # heartbeats come every 5 s
    monkeypatch.setattr(watcher, "_SHORT_SECONDS", 0.0)

    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch:
            await watch.read()
            proxy.stand_still()
            await away(watch)
            become(store, "a", JobState.COMPLETED)
            proxy.restore()
            await until(watch, JobState.COMPLETED)

    store.submit("a", ["true"])
    asyncio.run(scenario())


def test_another_server_is_asked_once_for_all_that_is_watched(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not know where the stream was: it has just been started."""
    monkeypatch.setattr(watcher, "_SHORT_SECONDS", 0.0)

    async def scenario() -> None:
        with ServerThread(store) as server:
            jobs = remote.connect(Target(socket=server.socket, name="restarted"), patience=10.0)
            async with contextlib.AsyncExitStack() as stack:
                a, b, none = [await stack.enter_async_context(jobs.watching(name, interval=INTERVAL)) for name in "abc"]
                await a.read()
                await b.read()
                with pytest.raises(JobNotFoundError):
                    await none.read()
                await asyncio.to_thread(server.__exit__)
                await away(a)
                become(store, "a", JobState.COMPLETED)
                remove(store, "b")
                store.submit("c", ["true"])
                requests = server_requests(jobs)
                with ServerThread(store):
                    await until(a, JobState.COMPLETED)
                    await until(none, JobState.WAITING)
                    with pytest.raises(JobNotFoundError):
                        await b.read()
                    assert sum("query" in path for path in requests) == 1
        jobs.close()

    for name in "ab":
        store.submit(name, ["true"])
    asyncio.run(scenario())


def test_a_token_that_was_revoked_ends_the_stream_and_is_said(
    server: ServerThread, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_air_executor.server.events.HEARTBEAT_SECONDS", 0.2)

    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch:
            await watch.read()
            Tokens(store.base_path).revoke("short")
            with pytest.raises(AccessError):
                await until(watch, JobState.COMPLETED)

    store.submit("a", ["true"])
    jobs = remote.connect(Target(url=server.url, token=server.token("short", "read")))
    asyncio.run(scenario())
    jobs.close()


def test_several_event_loops_share_the_stream(jobs: RemoteJobs, proxy: Proxy, store: JobStore) -> None:
    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch:
            await watch.read()
            ready.release()
            await until(watch, JobState.COMPLETED)

    store.submit("a", ["true"])
    ready = threading.Semaphore(0)
    threads = [threading.Thread(target=asyncio.run, args=(scenario(),)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert ready.acquire(timeout=PATIENCE)
    become(store, "a", JobState.COMPLETED)
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    assert proxy.open_connections <= 3


def test_a_cancelled_watch_is_forgotten(jobs: RemoteJobs, store: JobStore) -> None:
    async def scenario() -> None:
        async def wait() -> None:
            async with jobs.watching("a", interval=INTERVAL) as watch:
                await watch.read()
                await watch.wait()

        task = asyncio.create_task(wait())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not jobs._watcher._watched

    store.submit("a", ["true"])
    asyncio.run(scenario())


def test_the_stream_ends_when_nobody_watches_any_more(
    jobs: RemoteJobs, proxy: Proxy, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "_LINGER_SECONDS", 0.0)
    monkeypatch.setattr("airflow_provider_air_executor.server.events.HEARTBEAT_SECONDS", 0.1)

    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch:
            await watch.read()
        assert jobs.wait("a", 0)
        async with asyncio.timeout(PATIENCE):
            while jobs._watcher._follower is not None:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.05)
        async with jobs.watching("a", interval=INTERVAL) as watch:  # and begins anew
            become(store, "a", JobState.WORKING)
            await until(watch, JobState.WORKING)

    store.submit("a", ["true"])
    asyncio.run(scenario())


def test_a_thread_may_wait_for_long(jobs: RemoteJobs, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "_LINGER_SECONDS", 0.0)
    monkeypatch.setattr("airflow_provider_air_executor.server.events.HEARTBEAT_SECONDS", 0.1)
    found: list[bool] = []

    def wait() -> None:
        while not jobs.get_job("a").state.is_terminal:
            found.append(jobs.wait("a", PATIENCE))

    store.submit("a", ["true"])
    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: jobs._watcher._watched and jobs._watcher._watched["a"].waiting, what="it waits")
    over = threading.Event()
    threading.Timer(0.5, over.set).start()
    assert over.wait(PATIENCE)
    become(store, "a", JobState.COMPLETED)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert all(found)


def test_a_slow_client_gets_the_latest_of_each_job(
    connected: Callable[..., RemoteJobs], server: ServerThread, store: JobStore
) -> None:
    """The server keeps nothing for it."""

    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch:
            await watch.read()
            cursor = jobs._watcher._cursor
            for _ in range(50):
                become(store, "a", JobState.WORKING)
            become(store, "a", JobState.COMPLETED)
            await until(watch, JobState.COMPLETED)
            feed = server.service.changes
            found = feed.changes(feed.position_of(cursor), 100)
            assert [(change.name, change.kind) for change in found] == [("a", STATE)]

    jobs = connected()
    store.submit("a", ["true"])
    asyncio.run(scenario())
    assert changes.MOST_CHANGES > WATCHES


class Answers:
    """A watcher whose stream is there, and whose questions are answered when a test says so."""

    def __init__(self, *answers: watcher.Value) -> None:
        self.watcher = watcher.Watcher(Transport(Target(url="http://127.0.0.1:1"), logging.getLogger(__name__)))
        self.watcher._follow = lambda: None  # type: ignore[method-assign]
        self.watcher._query.ask = self._ask  # type: ignore[method-assign]
        self.watcher._query.go_on()
        self.asked, self._may_answer = threading.Semaphore(0), threading.Semaphore(0)
        self._answers = list(answers)

    def _ask(self, names: list[str]) -> dict[str, watcher.Value]:
        if not names:
            return {}
        answer = self._answers.pop(0)
        self.asked.release()
        assert self._may_answer.acquire(timeout=PATIENCE)
        return dict.fromkeys(names, answer)

    async def is_asked(self) -> None:
        assert await asyncio.to_thread(self.asked.acquire, timeout=PATIENCE)

    async def answer(self) -> None:
        """Let an answer arrive."""
        self._may_answer.release()
        await asyncio.sleep(0.1)


@pytest.fixture
def working(store: JobStore) -> Job:
    return store.submit("a", ["true"]).evolve(state=JobState.WORKING)


def test_an_answer_to_one_who_watched_before_does_not_count(working: Job) -> None:
    async def scenario() -> None:
        async with answers.watcher.watching("a") as before:
            reading = asyncio.create_task(before.read())
            await answers.is_asked()
            reading.cancel()
        # It ends now, which nobody is told.
        async with answers.watcher.watching("a") as watch:
            await answers.answer()
            reading = asyncio.create_task(watch.read())
            await answers.is_asked()
            await answers.answer()
            assert (await reading).state is JobState.COMPLETED

    answers = Answers(working, working.evolve(state=JobState.COMPLETED))
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_an_answer_of_before_the_stream_was_begun_anew_does_not_count(working: Job) -> None:
    async def scenario() -> None:
        async with answers.watcher.watching("a") as watch:
            reading = asyncio.create_task(watch.read())
            await answers.is_asked()
            # It ends now, which is not said by the stream that begins then.
            await asyncio.to_thread(answers.watcher._take, Event("reset", "1-1", b"{}"))
            await answers.answer()
            await answers.is_asked()
            await answers.answer()
            assert (await reading).state is JobState.COMPLETED

    answers = Answers(working, working.evolve(state=JobState.COMPLETED))
    asyncio.run(asyncio.wait_for(scenario(), PATIENCE))


def test_an_answer_does_not_take_the_place_of_a_change(working: Job) -> None:
    """Whoever takes an answer looks whether a change has come, and then takes it: nothing comes between the two."""

    async def scenario() -> None:
        async with answers.watcher.watching("a"):
            watched = answers.watcher._watched["a"]
            data = json.dumps({"name": "a", "kind": STATE, "job": working.model_dump(mode="json")}).encode()
            change = threading.Thread(target=answers.watcher._take, args=(Event("job", "1-1", data),))
            with answers.watcher._changed:
                change.start()
                change.join(0.1)
                assert watched.value is None
            change.join(PATIENCE)
            assert watched.value == working

    answers = Answers()
    asyncio.run(scenario())
