"""What a container prints, into the log of its task: each byte once, however often it must be read again.

The API server gives the output of a container from its beginning, so what was read before is skipped. A node keeps only
so much of it (the kubelet's ``containerLogMaxSize``, 10 MiB by default). If it has thrown away what was not read yet,
the log says so at that place.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

from airflow_provider_air_executor.manager.runners.records import LOG_FLAGS

_TAIL = 1024  # bytes by which a place in the output is known again
_SHORTEST = 16  # of them that must be there still
THROWN_AWAY = b"\n[air-executor] Output is missing here: its node had thrown it away before it could be read.\n"
CUT_OFF = b"\n[air-executor] The end of the output is missing: the container runtime of its node has lost it.\n"


class OutOfStepError(Exception):
    """What is read is not what was read before: its beginning has been thrown away."""


class Output(ABC):
    """The output of a container."""

    def __init__(self) -> None:
        self._position = 0  # in the output, as the API server gives it
        self._tail = b""  # what was before that

    @property
    def tail(self) -> bytes:
        """What was read last."""
        return self._tail

    def reader(self) -> Reader:
        """Read the output once more, from its beginning."""
        return Reader(self, self._position, self._tail)

    def move(self, position: int, tail: bytes) -> None:
        """The place where we are has another number now.

        :param tail: what is still there of what was before it.
        """
        self._position, self._tail = position, tail

    def _count(self, data: bytes) -> None:
        self.move(self._position + len(data), (self._tail + data)[-_TAIL:])

    @abstractmethod
    def take(self, data: bytes) -> None:
        """What comes next in the output.

        :raises OSError: if it cannot be written; the output must then be read again.
        """

    @abstractmethod
    def finish(self, *, marker_is_due: bool) -> None:
        """There is no more.

        :param marker_is_due: whether the container is known to have printed the marker.
        """

    @abstractmethod
    def begin_anew(self) -> None:
        """What was thrown away cannot be had any more: go on with the first that is there."""


class TaskOutput(Output):
    """The output of a container that runs one attempt.

    :param log_path: the log of its task.
    :param start: how long that was when the attempt was started.
    :param marker: what comes after the output, and before a long result.
    """

    def __init__(self, log_path: Path, start: int, marker: bytes) -> None:
        super().__init__()
        self._log_path = log_path
        self._marker = marker
        self._held = b""  # what may be the beginning of the marker
        self._result: bytearray | None = None
        self._recover(start)

    @property
    def result(self) -> bytes | None:
        """What came after the marker; None if that has not come."""
        return None if self._result is None else bytes(self._result)

    def _recover(self, start: int) -> None:
        """Find out what an earlier manager has written."""
        with contextlib.suppress(OSError), open(self._log_path, "rb") as file:
            position = max(0, file.seek(0, os.SEEK_END) - start)
            length = min(position, _TAIL)
            file.seek(-length, os.SEEK_END)
            self.move(position, file.read(length))

    def take(self, data: bytes) -> None:
        """Write it, but for what is the marker or comes after it."""
        if self._result is None:
            found = self._held + data
            end = found.find(self._marker)
            if end < 0:
                kept = _overlap(found, self._marker)
                append(self._log_path, found[: len(found) - kept])
                self._held = found[len(found) - kept :]
            else:
                append(self._log_path, found[:end])
                self._held, self._result = b"", bytearray(found[end + len(self._marker) :])
        else:
            self._result += data
        self._count(data)

    def finish(self, *, marker_is_due: bool) -> None:
        """Write what was held back, and say so if the marker has not come."""
        is_cut_off = marker_is_due and self._result is None
        append(self._log_path, self._held + (CUT_OFF if is_cut_off else b""))
        self._held = b""

    def begin_anew(self) -> None:
        """Say at this place that something is missing."""
        append(self._log_path, self._held + THROWN_AWAY)
        self._held = b""
        self.move(0, b"")


def append(log_path: Path, data: bytes) -> None:
    """Write all of it to a log, or nothing."""
    if not data:
        return
    log = os.open(log_path, LOG_FLAGS & ~os.O_CREAT)
    try:
        before = os.fstat(log).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(log, data[written:])
        except OSError:
            os.ftruncate(log, before)
            raise
    finally:
        os.close(log)


class Reader:
    """Skips what was read before, and makes sure that it is the same."""

    def __init__(self, output: Output, skip: int, tail: bytes) -> None:
        self._output = output
        self._left = skip
        self._tail = tail
        self._last = b""

    @property
    def is_in_step(self) -> bool:
        """Whether all that was read before has been skipped."""
        return self._left == 0

    def feed(self, data: bytes) -> None:
        """The next bytes.

        :raises OutOfStepError: if they are not what they were before.
        :raises OSError: if they cannot be written.
        """
        if self._left:
            skipped = data[: self._left]
            self._left -= len(skipped)
            self._last = (self._last + skipped)[-_TAIL:]
            data = data[len(skipped) :]
            if not self._left and not self._last.endswith(self._tail):
                raise OutOfStepError
        if data:
            self._output.take(data)


def find_again(output: Output, found: bytes) -> None:
    """Go on after the beginning of the output was thrown away.

    :param found: all that is still there.
    """
    tail = output.tail
    place = found.rfind(tail) if tail else -1
    overlap = next((size for size in range(len(tail) - 1, _SHORTEST - 1, -1) if found.startswith(tail[-size:])), 0)
    if place >= 0:
        output.move(place + len(tail), tail)
    elif overlap:
        output.move(overlap, tail[-overlap:])
    elif found:
        output.begin_anew()


def _overlap(data: bytes, marker: bytes) -> int:
    """How many bytes at the end may be the beginning of the marker."""
    for length in range(min(len(data), len(marker) - 1), 0, -1):
        if marker.startswith(data[-length:]):
            return length
    return 0
