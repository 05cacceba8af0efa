"""The changes of all jobs, numbered: nothing is missed, and of each job only the latest of each kind is kept."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import CorruptFileError
from airflow_provider_air_executor.jobs import bell, changes, inotify
from airflow_provider_air_executor.jobs.changes import Change, ChangeFeed
from airflow_provider_air_executor.jobs.interface import OUTPUT, STATE, TASKS
from airflow_provider_air_executor.jobs.models import Job, JobState
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job, publish_tasks, remove, write_job
from tests.support.waiting import nothing_until, wait_until


class Follower:
    """Somebody who follows a feed, as a client of a server does."""

    def __init__(self, feed: ChangeFeed) -> None:
        self.feed = feed
        self.woken = 0
        feed.follow(self._wake)
        wait_until(lambda: feed.is_ready, what="all jobs have been seen")
        self.position = feed.last

    def _wake(self) -> None:
        self.woken += 1

    def seen(self) -> set[tuple[str, str]]:
        """What has changed since the last call."""
        found = self.feed.changes(self.position, 1_000)
        if found:
            self.position = found[-1].number
        return {(change.name, change.kind) for change in found}

    def sees(self, *expected: tuple[str, str], may_see: Collection[str] = ()) -> None:
        """Wait until just this has changed.

        :param may_see: kinds of changes that may come with it.
        """
        seen: set[tuple[str, str]] = set()

        def is_all() -> bool:
            seen.update(self.seen())
            return seen >= set(expected)

        wait_until(is_all, what=f"{expected} is seen")
        assert {change for change in seen if change[1] not in may_see} | set(expected) == set(expected)

    def leave(self) -> None:
        """Follow it no more."""
        self.feed.leave(self._wake)


def dump(job: Job) -> bytes:
    return json.dumps([job.name, job.state]).encode()


@pytest.fixture
def feed(store: JobStore) -> Iterator[ChangeFeed]:
    store.create_directories()
    found = ChangeFeed(store, dump)
    yield found
    found.close()


@pytest.fixture
def unnotified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that does not notify, and passes that follow each other."""
    monkeypatch.setattr(inotify.Notifier, "add", lambda *_, **__: None)
    monkeypatch.setattr(changes, "PASS_SECONDS", 0.05)


@pytest.fixture
def follower(feed: ChangeFeed, store: JobStore) -> Follower:
    store.submit("a", ["true"])
    return Follower(feed)


def become(store: JobStore, name: str, state: JobState) -> None:
    publish_job(store, store.get_job(name).evolve(state=state))


def write_log(store: JobStore, name: str, file: str = "task-1.log") -> None:
    with (store.paths(name).logs / file).open("a") as log:
        log.write("x\n")


def test_each_kind_of_change_is_seen(follower: Follower, store: JobStore) -> None:
    become(store, "a", JobState.WORKING)
    follower.sees(("a", STATE))
    publish_tasks(store, "a", store.get_tasks("a"))
    follower.sees(("a", TASKS))
    write_log(store, "a")
    follower.sees(("a", OUTPUT))
    write_log(store, "a", "task-1.times")
    follower.sees(("a", OUTPUT))
    store.submit("b", ["true"])
    follower.sees(("b", STATE))
    become(store, "b", JobState.COMPLETED)
    follower.sees(("b", STATE))
    become(store, "b", JobState.WAITING)  # by a retry
    follower.sees(("b", STATE))
    write_log(store, "b")
    follower.sees(("b", OUTPUT))
    remove(store, "a")
    follower.sees(("a", STATE))
    assert follower.feed.kept("a") is None
    assert follower.feed.load("a") == b""
    assert follower.feed.kept("b") == b'["b", "waiting"]' == follower.feed.load("b")
    assert follower.woken


@pytest.mark.usefixtures("unnotified")
def test_a_file_system_that_does_not_notify_is_looked_at(follower: Follower, store: JobStore) -> None:
    become(store, "a", JobState.WORKING)
    follower.sees(("a", STATE), may_see=(TASKS, OUTPUT))  # a look that begins while it becomes so sees all of it
    publish_tasks(store, "a", store.get_tasks("a"))
    follower.sees(("a", TASKS))
    write_log(store, "a")
    follower.sees(("a", OUTPUT))
    write_log(store, "a")
    follower.sees(("a", OUTPUT))
    store.submit("b", ["true"])
    follower.sees(("b", STATE))
    become(store, "a", JobState.COMPLETED)
    follower.sees(("a", STATE))
    become(store, "a", JobState.WAITING)
    follower.sees(("a", STATE))
    remove(store, "a")
    follower.sees(("a", STATE), may_see=(TASKS, OUTPUT))  # a look at its state may have been before


def test_on_another_machine_the_manager_rings(
    mounts: tuple[JobStore, JobStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the next pass over all jobs, which nothing is told of there."""
    monkeypatch.setattr(changes, "PASS_SECONDS", 3600.0)
    here, there = mounts
    there.submit("old", ["true"])
    become(there, "old", JobState.COMPLETED)
    with contextlib.closing(ChangeFeed(here, dump)) as feed:
        follower = Follower(feed)
        for state in (JobState.WORKING, JobState.COMPLETED):
            if state is JobState.WORKING:
                there.submit("a", ["true"])
            become(there, "a", state)
            bell.ring(there.base_path, bell.JOBS)
            follower.sees(("a", STATE), may_see=(TASKS,))
        assert feed.load("a") == b'["a", "completed"]'


def test_a_log_that_is_open_or_hidden_is_no_change(follower: Follower, store: JobStore) -> None:
    with (store.paths("a").logs / "task-1.log").open("w") as log:
        log.write("x\n")
        log.flush()
        write_log(store, "a", ".airflow.offsets")
        write_log(store, "a", "other")
        store.submit("b", ["true"])
        follower.sees(("b", STATE))
    follower.sees(("a", OUTPUT))


def test_a_job_that_a_script_fills_in_place_is_seen(follower: Follower, store: JobStore) -> None:
    write_job(store, "script", [{"id": "x", "command": "true"}])
    wait_until(lambda: ("script", STATE) in follower.seen(), what="it is seen")
    wait_until(lambda: follower.feed.kept("script"), what="it can be read")
    write_log(store, "script")
    wait_until(lambda: ("script", OUTPUT) in follower.seen(), what="its logs are watched")


def test_a_job_that_takes_the_place_of_another_one_is_watched(follower: Follower, store: JobStore) -> None:
    for number in range(5):
        (store.jobs_path / "a").rename(store.base_path / f"old{number}")
        store.submit("a", ["true"])
        wait_until(lambda: ("a", STATE) in follower.seen(), what="it is seen")
        wait_until(lambda: follower.feed.kept("a") == b'["a", "waiting"]', what="it is read")
        become(store, "a", JobState.WORKING)
        wait_until(lambda: follower.feed.kept("a") == b'["a", "working"]', what="it is watched")


def test_a_state_that_is_not_there_for_a_moment_is_not_a_job_that_is_gone(follower: Follower, store: JobStore) -> None:
    path = store.paths("a").state
    path.rename(path.with_name("x"))
    (store.paths("a").tasks).write_bytes(store.paths("a").tasks.read_bytes())
    with pytest.raises(CorruptFileError):
        follower.feed.load("a")
    path.with_name("x").rename(path)
    assert follower.feed.load("a") == b'["a", "waiting"]'


def test_of_each_job_only_the_latest_is_kept(follower: Follower, store: JobStore) -> None:
    begin = follower.position
    for _ in range(20):
        become(store, "a", JobState.WORKING)
        publish_tasks(store, "a", store.get_tasks("a"))
    store.submit("b", ["true"])
    wait_until(
        lambda: ("b", STATE) in {(each.name, each.kind) for each in follower.feed.changes(begin, 99)}, what="all"
    )
    found = follower.feed.changes(begin, 1_000)
    assert sorted((each.name, each.kind) for each in found) == [("a", STATE), ("a", TASKS), ("b", STATE)]
    assert [each.number for each in found] == sorted(each.number for each in found)
    assert follower.feed.changes(begin, 2) == found[:2]
    assert follower.feed.changes(found[1].number, 2) == found[2:]
    assert follower.feed.changes(follower.feed.last, 2) == []


def test_a_cursor_says_something_to_its_own_feed_only(
    follower: Follower, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST_CHANGES", 3)
    feed = follower.feed
    cursor = feed.cursor_of(feed.last)
    assert feed.position_of(cursor) == feed.last
    other = ChangeFeed(store, dump)
    assert other.position_of(cursor) is None
    for bad in (None, "", "x", cursor + "0" * 30, feed.cursor_of(feed.last + 1), "-1", cursor.partition("-")[0] + "-"):
        assert feed.position_of(bad) is None
    for number in range(5):
        store.submit(f"b{number}", ["true"])
    wait_until(lambda: feed.last >= follower.position + 5, what="they are seen")
    assert feed.position_of(cursor) is None  # too much has come since then
    assert feed.position_of(feed.cursor_of(feed.last - 3)) == feed.last - 3


def test_changes_that_the_system_has_lost_are_looked_for(
    follower: Follower, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inotify.Notifier.read
    monkeypatch.setattr(inotify.Notifier, "read", lambda self: (real(self), (set(), True))[1])
    become(store, "a", JobState.WORKING)
    follower.sees(("a", STATE))


def test_jobs_that_ended_long_ago_are_watched_no_more(
    store: JobStore, feed: ChangeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST_WATCHED", 2)
    for name in "abcd":
        store.submit(name, ["true"])
        become(store, name, JobState.FAILED)
    follower = Follower(feed)
    become(store, "a", JobState.WAITING)
    become(store, "d", JobState.WAITING)
    follower.sees(("d", STATE))
    monkeypatch.setattr(changes, "PASS_SECONDS", 0.05)
    feed._watch.next_look = 0.0
    become(store, "d", JobState.WORKING)
    follower.sees(("a", STATE), ("d", STATE))


def test_a_job_that_is_retried_long_after_its_end_is_watched_again(
    store: JobStore, feed: ChangeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MOST_WATCHED", 1)
    monkeypatch.setattr(changes, "PASS_SECONDS", 3600.0)
    for name in "abc":
        store.submit(name, ["true"])
        become(store, name, JobState.FAILED)
    follower = Follower(feed)
    become(store, "a", JobState.WAITING)
    become(store, "b", JobState.WAITING)
    feed._watch.next_look = 0.0
    store.submit("d", ["true"])  # with which a pass begins
    follower.sees(("a", STATE), ("b", STATE), ("d", STATE))
    become(store, "a", JobState.WORKING)
    become(store, "b", JobState.WORKING)
    follower.sees(("a", STATE), ("b", STATE))


def test_a_pass_takes_a_hundredth_of_the_time(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_directories()
    for number in range(5):
        store.submit(f"j{number}", ["true"])
    monkeypatch.setattr(changes, "_SLICE", 2)
    jobs = changes._Jobs(store, lambda *_: None)
    jobs.scan()
    clock = iter([0.0, 0.25, 1.0, 1.1, 2.0, 2.1])
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    jobs.next_look = before = time.monotonic()
    jobs.look_on()
    assert jobs.next_look >= before + 25.0  # after the first two of five
    jobs.next_look = before
    jobs.look_on()
    jobs.next_look = before
    jobs.look_on()
    assert not jobs._to_look
    assert jobs.next_look >= before + 10.0
    jobs.notifier.close()


def test_a_job_whose_secrets_are_not_known_is_not_kept(store: JobStore) -> None:
    def refuse(job: Job) -> bytes:
        raise CorruptFileError("secrets", "no")

    store.create_directories()
    feed = ChangeFeed(store, refuse)
    follower = Follower(feed)
    store.submit("a", ["true"])
    follower.sees(("a", STATE))
    assert feed.kept("a") is None
    with pytest.raises(CorruptFileError):
        feed.load("a")
    feed.close()


def test_an_end_leaves_nothing_behind(store: JobStore) -> None:
    store.create_directories()
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    feed = ChangeFeed(store, dump)
    follower = Follower(feed)
    follower.leave()
    feed.close()
    feed.close()
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before
    ChangeFeed(store, dump).close()


def test_many_followers_cost_what_one_does(follower: Follower, store: JobStore) -> None:
    others = [Follower(follower.feed) for _ in range(50)]
    become(store, "a", JobState.WORKING)
    expected: Any = {("a", STATE)}
    for other in others:
        wait_until(lambda: other.feed.changes(other.position, 9), what="it is seen")  # noqa: B023
        assert other.seen() == expected
    nothing_until(lambda: True, unless=others[0].seen, what="now")
    assert Change(1, "a", STATE).name == "a"


def test_a_file_system_that_is_away_is_waited_for(
    follower: Follower, store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has changed meanwhile is not known: the cursors of before say nothing any more."""
    monkeypatch.setattr(changes, "_AWAY_SECONDS", 0.05)
    feed, cursor = follower.feed, follower.feed.cursor_of(follower.position)
    real, away = inotify.Notifier.read, threading.Event()

    def read(self: inotify.Notifier) -> Any:
        if away.is_set():
            raise OSError("stale file handle")
        return real(self)

    monkeypatch.setattr(inotify.Notifier, "read", read)
    away.set()
    store.submit("b", ["true"])
    wait_until(lambda: caplog.text, what="it is said")
    assert not feed.is_ready or feed.position_of(cursor) is None
    away.clear()
    wait_until(lambda: feed.is_ready and feed.kept("b") is None, what="it is back")
    assert feed.position_of(cursor) is None
    follower.position = feed.last
    become(store, "b", JobState.WORKING)
    wait_until(lambda: ("b", STATE) in follower.seen(), what="it is seen")
    assert caplog.text.count("cannot be watched now: stale file handle") == 1
