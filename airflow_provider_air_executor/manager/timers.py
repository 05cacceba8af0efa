"""Timers, which always fire, and deadlines, which are dropped when their attempt or job has ended."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol

RETRY_SECONDS = 1.0  # after which something that has failed is tried again
_LONGEST_PAUSE = 30.0  # seconds between two tries

Action = Callable[[], None]


class Clock(Protocol):
    """The clock of the manager; the module :mod:`time` is one."""

    def monotonic(self) -> float:
        """Seconds of a clock that cannot be set."""

    def time_ns(self) -> int:
        """Nanoseconds since 1970, as files have them."""


class Timers:
    """Actions that are due at a time of the monotonic clock.

    :param clock: which is asked for the time.
    """

    def __init__(self, clock: Clock = time) -> None:
        self.clock = clock
        self.now = clock.monotonic
        self._timers: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        # There may be many deadlines, far ahead; most are cancelled.
        self._deadlines: dict[Hashable, tuple[float, Action]] = {}
        self._next_deadline = math.inf

    def after(self, seconds: float, action: Action) -> None:
        """Do something in so many seconds."""
        heapq.heappush(self._timers, (self.now() + seconds, next(self._numbers), action))

    def wake(self, seconds: float) -> None:
        """End the manager's sleep in so many seconds."""
        self.after(seconds, lambda: None)

    def by(self, key: Hashable, seconds: float, action: Action) -> None:
        """Do something in so many seconds, unless the deadline of this key is cancelled before."""
        when = self.now() + seconds
        self._deadlines[key] = when, action
        self._next_deadline = min(self._next_deadline, when)

    def cancel(self, key: Hashable) -> None:
        """Forget the deadline of this key, if there is one."""
        self._deadlines.pop(key, None)

    @property
    def next_due(self) -> float:
        """When something is due next, on the monotonic clock; at the latest."""
        return min(self._next_deadline, self._timers[0][0] if self._timers else math.inf)

    def expire(self) -> None:
        """Do what is due. An action that raises an OSError is done again soon.

        :raises OSError: what the action raised.
        """
        if self.now() >= self._next_deadline:
            due = [key for key, (when, _) in self._deadlines.items() if when <= self.now()]
            for key in due:
                self.after(0, self._deadlines.pop(key)[1])
            self._next_deadline = min((when for when, _ in self._deadlines.values()), default=math.inf)
        while self._timers and self._timers[0][0] <= self.now():
            action = heapq.heappop(self._timers)[2]
            try:
                action()
            except OSError:
                self.after(RETRY_SECONDS, action)
                raise


class Seldom:
    """Lets something be done now and then: when it is too early, the manager wakes when it may be done."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._next = 0.0  # on the monotonic clock
        self._will_wake = False  # whether a timer is set

    def is_due(self) -> bool:
        """Whether it may be done now; otherwise a timer is set."""
        now = self._timers.now()
        if now >= self._next:
            self._will_wake = False
        elif not self._will_wake:
            self._will_wake = True
            self._timers.wake(self._next - now)
        return now >= self._next

    def rest(self, seconds: float) -> None:
        """It is done, and may be done again in so many seconds."""
        self._next = self._timers.now() + seconds


class Backoff:
    """Tries something again after a pause, which doubles each time."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self._pause = RETRY_SECONDS
        self.is_waiting = False  # whether a timer is set

    def retry(self, action: Action) -> None:
        """Try again after the pause; there is one timer, however often this is called meanwhile."""
        if not self.is_waiting:
            self.is_waiting = True
            pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            self._timers.after(pause, partial(self._try, action))

    def _try(self, action: Action) -> None:
        self.is_waiting = False
        action()

    def reset(self) -> None:
        """It has succeeded: the next pause is short again."""
        self._pause = RETRY_SECONDS
