"""Server-sent events over one connection, which is made again when it breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError, JobsAwayError
from airflow_provider_air_executor.remote.connections import Connection, Timeouts, shut_down
from airflow_provider_air_executor.remote.outage import FIRST_PAUSE, chance
from airflow_provider_air_executor.remote.transport import Ask, AwayError, Transport

SILENCE_SECONDS = 15.0  # without even a heartbeat, after which a connection is dead; they come every 5 s
_REFUSED_SECONDS = 20.0  # after an answer that is an error, until the stream is asked for again
_LASTING_SECONDS = 3.0  # after which a connection is one that works
_TURN_SECONDS = 1.0  # between two looks at whether it is still wanted, while the server is away


TIMEOUTS = Timeouts(connect=10.0, read=SILENCE_SECONDS)


class Event(NamedTuple):
    """Something that a server has said."""

    kind: str
    id: str
    data: bytes


def parse(pieces: Iterable[bytes]) -> Iterator[Event | None]:
    """The events of a stream, and None for each heartbeat, which is a comment."""
    kind, word = "message", ""
    data: list[bytes] = []
    for line in _lines(pieces):
        if not line:
            if data:
                yield Event(kind, word, b"\n".join(data))
            kind, data = "message", []
        elif line.startswith(b":"):
            yield None
        else:
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value.decode(errors="replace")
            elif name == b"id":
                word = value.decode(errors="replace")


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines


class Follower:
    """Follows a stream of events in a thread of its own, as long as it is wanted.

    :param ask: what is asked for, each time the connection is made.
    :param on_open: called when the stream is there.
    :param on_event: called with each event, and with None at each heartbeat; False: it is not wanted any more.
    :param on_broken: called with the error when a connection broke, and when it could not be made again; False: as
        with ``on_event``.
    """

    def __init__(
        self,
        transport: Transport,
        ask: Callable[[], Ask],
        *,
        on_open: Callable[[], None],
        on_event: Callable[[Event | None], bool],
        on_broken: Callable[[AirExecutorError], bool],
    ) -> None:
        self._transport = transport
        self._ask = ask
        self._on_open = on_open
        self._on_event = on_event
        self._on_broken = on_broken
        self._is_closed = threading.Event()
        self._connection: Connection | None = None
        self._began = 0.0  # when it tried to connect last, on the monotonic clock
        self._may_try_at_once = True  # once, after a connection that has lasted
        self._thread = threading.Thread(target=self._run, name="air-executor-events", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it goes on; not in a process that was forked."""
        return self._thread.is_alive()

    def close(self) -> None:
        """End soon; it may be called from any thread."""
        self._is_closed.set()
        connection = self._connection
        if connection is not None:
            shut_down(connection)

    def _run(self) -> None:
        outage = self._transport.outage
        while not self._is_closed.is_set():
            error: AirExecutorError | None = None
            try:
                self._began = outage.await_turn(time.monotonic() + _TURN_SECONDS)
                self._follow()
            except JobsAwayError as away:
                error = away
            except AwayError as broken:
                error = self._break(broken)
            except AirExecutorError as refusal:
                outage.gave_up()
                error = refusal
            else:
                return  # it is not wanted any more
            if error is not None and not self._on_broken(error):
                return
            if error is not None and not isinstance(error, JobsAwayError):
                self._is_closed.wait(chance.uniform(0.5, 1.5) * _REFUSED_SECONDS)

    def _break(self, broken: AwayError) -> AirExecutorError | None:
        """The error to be told, if a connection broke that is not made again at once."""
        if not self._is_closed.is_set() and not (broken.is_lost and self._may_try_at_once):
            self._transport.failed(broken, self._began)
            return self._transport.outage.error
        self._may_try_at_once = False  # perhaps it was this connection only, or one that had been kept for too long
        self._transport.outage.gave_up()
        self._is_closed.wait(chance.uniform(0.0, FIRST_PAUSE))
        return None

    def _follow(self) -> None:
        """Follow one connection, until the stream is not wanted any more.

        :raises AwayError: if it breaks.
        """
        with self._transport.opened(self._ask(), TIMEOUTS, self._began, use=self._use) as answer:
            self._transport.outage.worked(began=self._began)
            self._on_open()
            lasts_at = time.monotonic() + _LASTING_SECONDS
            for event in parse(answer.pieces()):
                self._transport.tidy()
                self._may_try_at_once = self._may_try_at_once or time.monotonic() > lasts_at
                if not self._on_event(event) or self._is_closed.is_set():
                    return
        raise AwayError("the stream of events has ended", is_lost=True)

    def _use(self, connection: Connection) -> None:
        self._connection = connection
        if self._is_closed.is_set():
            shut_down(connection)
