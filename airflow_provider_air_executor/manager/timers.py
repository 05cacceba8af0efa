"""What the manager has to do later: timers that always fire, and deadlines that go when what they are for has ended."""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Hashable

_RETRY_SECONDS = 1.0

Action = Callable[[], None]


class Timers:
    """Actions that are due at a time of the monotonic clock."""

    def __init__(self) -> None:
        self._timers: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()
        # There may be many deadlines, far ahead; most are cancelled.
        self._deadlines: dict[Hashable, tuple[float, Action]] = {}
        self._next_deadline = math.inf

    def after(self, seconds: float, action: Action) -> None:
        """Do something in so many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), action))

    def by(self, key: Hashable, seconds: float, action: Action) -> None:
        """Do something in so many seconds, unless the deadline of this key is cancelled before."""
        when = time.monotonic() + seconds
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
        """Do what is due. What fails for the system's sake is done again soon.

        :raises OSError: what the action raised.
        """
        if time.monotonic() >= self._next_deadline:
            due = [key for key, (when, _) in self._deadlines.items() if when <= time.monotonic()]
            for key in due:
                self.after(0, self._deadlines.pop(key)[1])
            self._next_deadline = min((when for when, _ in self._deadlines.values()), default=math.inf)
        while self._timers and self._timers[0][0] <= time.monotonic():
            action = heapq.heappop(self._timers)[2]
            try:
                action()
            except OSError:
                self.after(_RETRY_SECONDS, action)
                raise
