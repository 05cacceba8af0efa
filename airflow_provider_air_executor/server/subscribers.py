"""Those who are told the ends of jobs, each of them once, over connections that may break.

A subscriber's lock is held for the one who came first, its holder. If the connection breaks, it is held for some
seconds more: the same holder goes on where it was, and what it has not acknowledged is sent again, since nobody knows
whether it has arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from functools import partial

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.interface import Completions
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.server.problems import ProblemError

log = logging.getLogger("air_executor.server")

ABSENCE_SECONDS = 10.0  # after which another holder may have the lock
MOST = 1_000  # subscribers at a time
_LOOK_SECONDS = 0.5  # between two looks at whether a lock is free


class SessionOverError(Exception):
    """The ends of jobs cannot be read any more by this session."""


class Session:
    """A subscriber whose lock is held.

    :param completions: what it is told.
    :param holder: a word that only the holder knows.
    """

    def __init__(self, completions: Completions, holder: str) -> None:
        self.completions = completions
        self.holder = holder
        self.unacknowledged: dict[str, Job] = {}
        self._ends: AsyncGenerator[Job, None] = completions.follow()
        self._next: asyncio.Future[Job] | None = None
        self._connections = 0  # how many there have been
        self._is_connected = False
        self._expiry: asyncio.TimerHandle | None = None

    def connect(self) -> int:
        """A connection of the holder takes the place of the one before.

        :return: its number.
        """
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._is_connected = True
        self._connections += 1
        return self._connections

    def disconnect(self, number: int, expire: Callable[[], None]) -> None:
        """A connection has broken.

        :param expire: called if no other one comes in time.
        """
        if number == self._connections:
            self._is_connected = False
            self._expiry = asyncio.get_running_loop().call_later(ABSENCE_SECONDS, expire)

    def is_current(self, number: int) -> bool:
        """Whether no other connection has taken the place of this one."""
        return number == self._connections

    async def next(self, number: int, seconds: float) -> Job | None:
        """The next end for a connection; None if none comes in so many seconds, or another connection gets it.

        :raises SessionOverError: if the file system is away, for instance.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._ends))
        waiting = self._next
        # A connection that breaks does not break this off: what follows is for the next one.
        await asyncio.wait({waiting}, timeout=seconds)
        if not waiting.done() or not self.is_current(number) or self._next is not waiting:
            return None
        self._next = None
        try:
            job = waiting.result()
        except (OSError, AirExecutorError, StopAsyncIteration) as error:
            log.warning("the ends of jobs cannot be read now: %s", error or "they have ended")
            raise SessionOverError from None
        self.unacknowledged[job.name] = job
        return job

    def settle(self, job: Job) -> None:
        """An end is acknowledged, or refused."""
        known = self.unacknowledged.get(job.name)
        if known is not None and (known.id, known.attempt) == (job.id, job.attempt):
            del self.unacknowledged[job.name]

    async def close(self) -> None:
        """Release the lock."""
        self._connections += 1  # no connection is the current one
        if self._expiry is not None:
            self._expiry.cancel()
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            if not self._next.cancelled():
                self._next.exception()  # it is of no use any more
        with contextlib.suppress(Exception):  # the file system is away, for instance
            await self._ends.aclose()


class Subscribers:
    """The subscribers of all clients of a server; used in its event loop."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, subscriber: str) -> Session | None:
        """The session of a subscriber, if there is one."""
        return self._sessions.get(subscriber)

    def check_room(self, subscriber: str) -> None:
        """Check that there is room for a subscriber.

        :raises ProblemError: if there are too many others.
        """
        if subscriber not in self._sessions and len(self._sessions) >= MOST:
            raise ProblemError(429, "too-many", "there are too many subscribers", headers={"Retry-After": "5"})

    def enter(self, subscriber: str, holder: str, make: Callable[[], Completions]) -> Session | None:
        """The session of a holder; None while another one has the lock.

        :param make: makes the completions of a new session.
        """
        session = self._sessions.get(subscriber)
        if session is None:
            session = self._sessions[subscriber] = Session(make(), holder)
        return session if session.holder == holder else None

    def leave(self, subscriber: str, holder: str) -> None:
        """Let another holder have the lock; nothing happens if this one does not have it."""
        session = self._sessions.get(subscriber)
        if session is not None and session.holder == holder:
            self._end(subscriber, session)

    def _end(self, subscriber: str, session: Session) -> None:
        """End a session, unless another one has taken its place."""
        if self._sessions.get(subscriber) is session:
            del self._sessions[subscriber]
            task = asyncio.ensure_future(session.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Release all locks."""
        for subscriber, session in list(self._sessions.items()):
            self.leave(subscriber, session.holder)
        if self._closing:
            await asyncio.wait(set(self._closing))

    async def events(
        self, subscriber: str, holder: str, make: Callable[[], Completions], seconds: Callable[[], float]
    ) -> AsyncGenerator[Job | None, None]:
        """The ends for a connection of a holder, as long as it is the current one; None when a heartbeat may be due.

        :param seconds: until the next heartbeat.
        """
        session = self.enter(subscriber, holder, make)
        while session is None:
            await asyncio.sleep(min(_LOOK_SECONDS, seconds()))
            yield None
            session = self.enter(subscriber, holder, make)
        number = session.connect()
        try:
            for job in list(session.unacknowledged.values()):
                yield job
            while session.is_current(number):
                yield await session.next(number, seconds())
        except SessionOverError:  # the client comes again, and begins another one
            self._end(subscriber, session)
        finally:
            session.disconnect(number, partial(self._end, subscriber, session))
