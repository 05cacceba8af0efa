"""What a container prints, into the log of its task: each byte once, however often it must be read again.

The API server gives the output of a container from its beginning, so what was read before is skipped. A node keeps only
so much of it (the kubelet's ``containerLogMaxSize``, 10 MiB by default). If it has thrown away what was not read yet,
the log says so at that place.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from airflow_provider_air_executor.manager.runners.records import LOG_FLAGS

_TAIL = 1024  # bytes by which a place in the output is known again
_SHORTEST = 16  # of them that must be there still
_THROWN_AWAY = b"\n[air-executor] Output is missing here: its node had thrown it away before it could be read.\n"
_CUT_OFF = b"\n[air-executor] The end of the output is missing: the container runtime of its node has lost it.\n"


class OutOfStepError(Exception):
    """What is read is not what was read before: its beginning has been thrown away."""


class Output:
    """The output of one attempt.

    :param log_path: the log of its task.
    :param start: how long that was when the attempt was started.
    :param marker: what comes after the output, and before a long result.
    """

    def __init__(self, log_path: Path, start: int, marker: bytes) -> None:
        self._log_path = log_path
        self._marker = marker
        self._held = b""  # what may be the beginning of the marker
        self._result: bytearray | None = None
        self._position = 0  # in the output, as the API server gives it
        self._tail = b""  # what was before that
        self._recover(start)

    @property
    def result(self) -> bytes | None:
        """What came after the marker; None if that has not come."""
        return None if self._result is None else bytes(self._result)

    def _recover(self, start: int) -> None:
        """Find out what an earlier manager has written."""
        with contextlib.suppress(OSError), open(self._log_path, "rb") as file:
            self._position = max(0, file.seek(0, os.SEEK_END) - start)
            length = min(self._position, _TAIL)
            file.seek(-length, os.SEEK_END)
            self._tail = file.read(length)

    def reader(self) -> Reader:
        """Read the output once more, from its beginning."""
        return Reader(self, self._position, self._tail)

    def take(self, data: bytes) -> None:
        """What comes next in the output.

        :raises OSError: if it cannot be written; the same must then be read again.
        """
        if self._result is None:
            found = self._held + data
            end = found.find(self._marker)
            if end < 0:
                kept = _overlap(found, self._marker)
                self._write(found[: len(found) - kept])
                self._held = found[len(found) - kept :]
            else:
                self._write(found[:end])
                self._held, self._result = b"", bytearray(found[end + len(self._marker) :])
        else:
            self._result += data
        self._position += len(data)
        self._tail = (self._tail + data)[-_TAIL:]

    def finish(self, *, marker_is_due: bool) -> None:
        """There is no more.

        :param marker_is_due: whether the container is known to have printed the marker.
        """
        is_cut_off = marker_is_due and self._result is None
        self._write(self._held + (_CUT_OFF if is_cut_off else b""))
        self._held = b""

    def begin_anew(self) -> None:
        """What was thrown away cannot be had any more: go on with the first that is there."""
        self._write(self._held + _THROWN_AWAY)
        self._held, self._position, self._tail = b"", 0, b""

    def move(self, position: int, tail: bytes) -> None:
        """The place where we are has another number now.

        :param tail: what is still there of what was before it.
        """
        self._position, self._tail = position, tail

    @property
    def tail(self) -> bytes:
        """What was read last."""
        return self._tail

    def _write(self, data: bytes) -> None:
        """Write all of it or nothing."""
        if not data:
            return
        log = os.open(self._log_path, LOG_FLAGS & ~os.O_CREAT)
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
