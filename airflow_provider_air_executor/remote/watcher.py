"""The changes of all jobs of a server: one connection of this process for any number of waiters.

What waits costs nothing: a watch is woken by the stream, and reads what the stream has brought. A stream that broke
goes on where it was. If the server does not know any more where that was, it is asked once for all jobs that are
watched.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from typing import Any

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError, JobsAwayError
from airflow_provider_air_executor.jobs.interface import CONNECTION, OUTPUT, STATE, TASKS
from airflow_provider_air_executor.jobs.models import Job, JobState
from airflow_provider_air_executor.remote import records
from airflow_provider_air_executor.remote.events import Event, Follower
from airflow_provider_air_executor.remote.link import Link
from airflow_provider_air_executor.remote.protocol import error_of
from airflow_provider_air_executor.remote.transport import Ask, Transport, url_path

_QUERY_NAMES = 1_000  # that are asked for in one request
_GATHER_SECONDS = 0.005  # in which names are gathered for a request
_QUERY_PATIENCE = 10.0
_SHORT_SECONDS = 2.0  # an outage that is not longer is not said
_LINGER_SECONDS = 30.0  # without a watch, after which the connection ends


class _Gone:
    """There is no such job."""


_GONE = _Gone()
Value = Job | _Gone | Exception  # what is known of a job; an exception if it cannot be read


class Watched:
    """A job that is watched, as it was when it changed last.

    :param value: None if it is not known yet.
    """

    __slots__ = ("name", "seen", "seen_at", "value", "version", "waiting", "watches")

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: Value | None = None
        self.watches: set[RemoteWatch] = set()
        self.version = 0  # how often it has changed
        self.seen: dict[int, int] = {}  # the version that a thread has seen, by the identity of the thread
        self.seen_at = 0.0  # when a thread waited last
        self.waiting = 0  # threads


class RemoteWatch:
    """Waits in an event loop until one job may have changed; see :class:`.jobs.interface.JobWatch`."""

    def __init__(self, watched: Watched, watcher: Watcher) -> None:
        self.loop = asyncio.get_running_loop()
        self._watched = watched
        self._watcher = watcher
        self._woken = asyncio.Event()
        self._answered = asyncio.Event()
        self._since_wait: set[str] = set()
        self.changed: Collection[str] = frozenset()

    @property
    def sees_output(self) -> bool:
        """Whether the waiter is woken too when something was printed."""
        return True

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - it is no error
        """Wait until the job may have changed since the last call."""
        try:
            # Not wait_for, which before Python 3.12 loses a cancellation that comes with the change.
            async with asyncio.timeout(timeout):
                await self._woken.wait()
        except TimeoutError:
            self.changed = frozenset()
            return False
        self._woken.clear()
        self.changed, self._since_wait = frozenset(self._since_wait), set()
        return True

    async def read(self) -> Job:
        """The job as it was when it changed last, without a request; the first time it is asked for."""
        while True:
            self._watcher.check_reached()
            value = self._watched.value
            if isinstance(value, Job):
                return value
            if value is _GONE:
                raise JobNotFoundError(self._watched.name, self._watcher.where)
            if isinstance(value, Exception):
                self._watched.value = None  # it is asked for again the next time
                raise value.with_traceback(None)
            self._answered.clear()
            self._watcher.want(self._watched)
            await self._answered.wait()

    def wake(self, kinds: Collection[str]) -> None:
        """Something has changed; called in the event loop.

        :param kinds: what; nothing if there is an answer only.
        """
        self._answered.set()
        if kinds:
            self._since_wait.update(kinds)
            self._woken.set()


class Watcher:
    """Wakes the watches of a process, see the module. It may be used in several event loops and threads.

    :param transport: the connections to the server.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._begin()
        transport.on_fork(self._begin)

    def _begin(self) -> None:
        """Begin anew, also in a process that was forked: the watches are those of its parent."""
        self._changed = threading.Condition()
        self._watched: dict[str, Watched] = {}
        self._waited_for: set[Watched] = set()  # by threads
        self._follower: Follower | None = None
        self._query = _Queries(Link(self._transport, _QUERY_PATIENCE), self._answer)
        self._cursor: str | None = None
        self._broken_at: float | None = None
        self._error: AirExecutorError | None = None  # what the watches are told: it is away
        self._unused_since = 0.0

    @property
    def where(self) -> str:
        """The server, for people."""
        return self._transport.target.where

    @contextlib.asynccontextmanager
    async def watching(self, name: str) -> AsyncGenerator[RemoteWatch, None]:
        """Watch a job, which need not exist yet."""
        with self._changed:
            watched = self._watched_job(name)
            watch = RemoteWatch(watched, self)
            watched.watches.add(watch)
            self._follow()
        try:
            yield watch
        finally:
            with self._changed:
                watched.watches.discard(watch)
                self._forget(watched)

    def wait(self, name: str, timeout: float) -> bool:
        """Wait in this thread until a job may have changed since the last call; the first one returns at once."""
        me = threading.get_ident()
        with self._changed:
            watched = self._watched_job(name)
            self._follow()
            before = watched.seen.get(me)
            if before is not None:
                watched.waiting += 1
                try:
                    self._changed.wait_for(lambda: watched.version != before, timeout)
                finally:
                    watched.waiting -= 1
            watched.seen[me], watched.seen_at = watched.version, time.monotonic()
            self._waited_for.add(watched)
            return watched.version != before

    def _watched_job(self, name: str) -> Watched:
        """A job that is watched from now on; the lock is held."""
        watched = self._watched.get(name)
        if watched is None:
            watched = self._watched[name] = Watched(name)
            self._query.ask_again(name)  # what is on its way was asked for before
        return watched

    def want(self, watched: Watched) -> None:
        """Ask for a job that is not known yet, together with others."""
        self._query.add(watched.name)

    def check_reached(self) -> None:
        """Check that the stream is there, or was a moment ago.

        :raises AirExecutorError: if it is not.
        """
        error = self._error
        if isinstance(error, JobsAwayError):
            raise JobsAwayError(error.where, error.why, error.since)
        if error is not None:
            raise error.with_traceback(None)

    def close(self) -> None:
        """End the stream, whoever watches; the next watch begins it anew."""
        with self._changed:
            follower, self._follower = self._follower, None
        if follower is not None:
            follower.close()

    # -- the stream; all of this is called in its thread ---------------------------------------------------------

    def _follow(self) -> None:
        """Follow the stream, unless that is done already; the lock is held."""
        self._unused_since = 0.0
        if self._follower is None or not self._follower.is_alive:
            self._cursor = self._broken_at = self._error = None
            self._query.hold()
            self._follower = Follower(
                self._transport, self._ask, on_open=self._open, on_event=self._take, on_broken=self._break
            )
            self._follower.start()

    def _ask(self) -> Ask:
        params = {"cursor": self._cursor} if self._cursor else {}
        return Ask("GET", url_path("changes"), params=params, headers={"Accept": "text/event-stream"})

    def _open(self) -> None:
        if self._cursor is not None:
            self._go_on()

    def _go_on(self) -> None:
        """The stream is there: what is not known yet is asked for, and who was told that it is away is told."""
        was_away, self._error, self._broken_at = self._error is not None, None, None
        if was_away:
            self._tell_all({CONNECTION})
        self._query.go_on()

    def _break(self, error: AirExecutorError) -> bool:
        if not self._is_wanted():
            return False
        now = time.monotonic()
        self._broken_at = self._broken_at or now
        if isinstance(error, JobsAwayError) and self._cursor and now - self._broken_at < _SHORT_SECONDS:
            return True
        was_said, self._error = self._error is not None, error
        self._query.give_up(error)
        if not was_said:
            self._tell_all({CONNECTION})
        return True

    def _take(self, event: Event | None) -> bool:
        if event is None:
            return self._is_wanted()
        if event.kind == "reset":
            self._reset()
        elif event.kind == "job":
            self._change(records.parsed_json(event.data))
        self._cursor = event.id or self._cursor
        return True

    def _change(self, content: Mapping[str, Any]) -> None:
        watched = self._watched.get(content.get("name", ""))
        if watched is None:
            return
        kind = content.get("kind", STATE)
        if kind == STATE:
            value = _value_of(content)
            with self._changed:  # an answer does not take its place
                watched.value = value
                if value is None:
                    self._query.ask_again(watched.name)
        self._tell({watched: {kind}})

    def _reset(self) -> None:
        """Ask once for all that is known, since the server cannot say what has changed."""
        self._cursor = None  # if this fails, it is begun anew
        with self._changed:
            known = [name for name, watched in self._watched.items() if watched.value is not None]
        found = self._query.ask(known)
        told: dict[Watched, Collection[str]] = {}
        with self._changed:
            for name, watched in self._watched.items():
                if name in found:
                    told[watched] = _difference(watched.value, found[name])
                    watched.value = found[name]
                else:
                    self._query.ask_again(name)
                    if not self._query.has(name):  # it may have changed before it was watched
                        told[watched] = {STATE}
                watched.version += 1
            self._changed.notify_all()
        self._tell(told)
        self._go_on()

    def _answer(self, found: Mapping[str, Value]) -> None:
        """Take what was asked for, unless the stream has brought it meanwhile, or it is asked for again."""
        told: dict[Watched, Collection[str]] = {}
        with self._changed:
            for name, value in found.items():
                watched = self._watched.get(name)
                if self._query.has_arrived(name) and watched is not None:
                    watched.value = value if watched.value is None else watched.value
                    told[watched] = ()
        self._tell(told)

    def _tell_all(self, kinds: Collection[str]) -> None:
        with self._changed:
            told = dict.fromkeys(self._watched.values(), kinds)
        self._tell(told)

    def _tell(self, told: Mapping[Watched, Collection[str]]) -> None:
        """Wake the watches of jobs: one call for each event loop."""
        calls: dict[asyncio.AbstractEventLoop, list[tuple[RemoteWatch, Collection[str]]]] = {}
        with self._changed:
            for watched, kinds in told.items():
                watched.version += bool(kinds)
                for watch in watched.watches:
                    calls.setdefault(watch.loop, []).append((watch, kinds))
            self._changed.notify_all()
        for loop, woken in calls.items():
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(_wake, woken)

    def _is_wanted(self) -> bool:
        """Whether anybody watches, or has until a moment ago."""
        now = time.monotonic()
        with self._changed:
            old = [each for each in self._waited_for if not each.waiting and now - each.seen_at > _LINGER_SECONDS]
            for watched in old:
                self._waited_for.discard(watched)
                watched.seen.clear()
                self._forget(watched)
            if self._watched:
                self._unused_since = 0.0
                return True
            self._unused_since = self._unused_since or now
            if now - self._unused_since < _LINGER_SECONDS:
                return True
            self._follower = None  # the next watch begins another one
            return False

    def _forget(self, watched: Watched) -> None:
        """Forget a job that nobody watches any more; the lock is held."""
        if not watched.watches and not watched.seen:
            self._watched.pop(watched.name, None)


class _Queries:
    """Asks for jobs by their names, many in one request, while the stream is there.

    :param answer: called with what was found.
    """

    def __init__(self, link: Link, answer: Callable[[Mapping[str, Value]], None]) -> None:
        self._link = link
        self._answer = answer
        self._lock = threading.RLock()
        self._names: set[str] = set()
        self._on_their_way: set[str] = set()  # that have been asked for
        self._may_ask = False
        self._is_asking = False

    def add(self, name: str) -> None:
        """Ask for a job as soon as that may be, unless its answer is on its way."""
        with self._lock:
            if name not in self._on_their_way:
                self._names.add(name)
                self._start()

    def ask_again(self, name: str) -> None:
        """An answer that is on its way, if there is one, may be of before, and does not count."""
        with self._lock:
            if name in self._on_their_way:
                self._names.add(name)

    def has_arrived(self, name: str) -> bool:
        """Note that an answer has arrived; False if it does not count."""
        with self._lock:
            self._on_their_way.discard(name)
            return name not in self._names

    def has(self, name: str) -> bool:
        """Whether a job is still to be asked for."""
        with self._lock:
            return name in self._names

    def hold(self) -> None:
        """Ask for nothing until the stream is there."""
        with self._lock:
            self._may_ask = False

    def go_on(self) -> None:
        """The stream is there, so that what changes from now on is not missed."""
        with self._lock:
            self._may_ask = True
            self._start()

    def give_up(self, error: AirExecutorError) -> None:
        """The stream is not there: who waits for an answer gets this one."""
        with self._lock:
            self._may_ask = False
            names = self._names - self._on_their_way
            self._names -= names
        self._answer(dict.fromkeys(names, error))

    def _start(self) -> None:
        if self._names and self._may_ask and not self._is_asking:
            self._is_asking = True
            threading.Thread(target=self._run, name="air-executor-query", daemon=True).start()

    def _run(self) -> None:
        while True:
            time.sleep(_GATHER_SECONDS)
            with self._lock:
                names = sorted(self._names)[:_QUERY_NAMES]
                self._names.difference_update(names)
                self._on_their_way = set(names)
                if not names:
                    self._is_asking = False
                    return
            try:
                found = self.ask(names)
            except (AirExecutorError, OSError) as error:
                found = dict.fromkeys(names, error)
            self._answer(found)

    def ask(self, names: list[str]) -> dict[str, Value]:
        """The jobs of these names.

        :raises AirExecutorError: if they cannot be asked for now.
        """
        found: dict[str, Value] = {}
        for first in range(0, len(names), _QUERY_NAMES):
            some = names[first : first + _QUERY_NAMES]
            answers = self._link.lines_for(url_path("records", "query"), {"names": some}, _named)
            found.update(answers)
        return found


def _named(content: Mapping[str, Any]) -> tuple[str, Value]:
    return content["name"], _value_of(content) or _GONE


def _value_of(content: Mapping[str, Any]) -> Value | None:
    """The job that is in an event, or a line; None if it is to be asked for."""
    error = content.get("error")
    if error:
        return error_of(error if isinstance(error, Mapping) else {"detail": error})
    if "job" not in content:
        return None
    if content["job"] is None:
        return _GONE
    try:
        job: Job = records.parsed(Job, content["job"])
    except AirExecutorError as unreadable:
        return unreadable
    return job


def _difference(before: Any, now: Any) -> Collection[str]:
    """What may have changed of a job of which some changes were missed."""
    is_working = isinstance(now, Job) and now.state is JobState.WORKING
    kinds = {STATE} if before != now else set()
    return kinds | ({TASKS, OUTPUT} if is_working else set())


def _wake(woken: Iterable[tuple[RemoteWatch, Collection[str]]]) -> None:
    for watch, kinds in woken:
        watch.wake(kinds)
