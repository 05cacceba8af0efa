"""The state that the parts of a controller share, and the queue of events from its thread to the manager's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt
from airflow_provider_air_executor.engines.kubernetes.client import KubernetesClient
from airflow_provider_air_executor.engines.kubernetes.handles import Handles
from airflow_provider_air_executor.engines.kubernetes.manifest import Installation
from airflow_provider_air_executor.engines.kubernetes.options import EngineOptions
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.protocol import Event

log = logging.getLogger("air_executor.manager")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds
_CREATIONS = 8


class Left(NamedTuple):
    """The attempts of a Pod that is over which have not begun."""

    pod: Pod
    attempts: list[BatchedAttempt]


class EventQueue:
    """Hands events to another thread, which waits for a descriptor."""

    def __init__(self) -> None:
        self._events: deque[Event | Left] = deque()
        self.descriptor, self._writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # readable when there are events

    def put(self, event: Event | Left) -> None:
        """Add an event."""
        self._events.append(event)
        with contextlib.suppress(BlockingIOError):  # the pipe is readable already
            os.write(self._writable, b"\0")

    def take(self) -> Iterator[Event | Left]:
        """Remove the events, one after the other."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 65536)
        while self._events:
            yield self._events.popleft()

    def close(self) -> None:
        """Close the descriptor."""
        for descriptor in (self.descriptor, self._writable):
            os.close(descriptor)


@dataclass
class Shared:
    """The state that the parts of a controller share.

    :param client: sends the requests.
    :param options: those of the engine.
    :param installation: whose Pods these are.
    :param grace: seconds between SIGTERM and SIGKILL.
    :param handles: the files of Pods.
    :param events: the way to the manager.
    """

    client: KubernetesClient
    options: EngineOptions
    installation: Installation
    grace: float
    handles: Handles
    events: EventQueue
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    pods: dict[str, Pod] = field(default_factory=dict)  # those that are reconciled, by their tokens
    creations: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CREATIONS))  # at a time
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _warned_at: float = -math.inf

    def __post_init__(self) -> None:
        self.log_streams = asyncio.Semaphore(self.options.log_streams)  # outputs that are followed at a time

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)  # asyncio itself does not keep it
        task.add_done_callback(self._tasks.discard)
        return task

    def warn(self, about: object) -> None:
        """Log what does not work, but not all the time."""
        now = time.monotonic()
        if now - self._warned_at > LONGEST_PAUSE:
            self._warned_at = now
            log.warning("Kubernetes: %s; trying again", about)


class Pause:
    """Waits longer each time."""

    def __init__(self) -> None:
        self._seconds = FIRST_PAUSE

    def reset(self) -> None:
        """Begin anew."""
        self._seconds = FIRST_PAUSE

    async def __call__(self) -> None:
        """Wait."""
        await asyncio.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, LONGEST_PAUSE)
