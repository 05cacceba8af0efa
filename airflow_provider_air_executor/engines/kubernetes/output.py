"""What a container prints, into the log of its task: each byte once, however often it must be read again.

The API server gives the output of a container from its beginning, so what was read before is skipped. A node begins a
new file when one has become long (the kubelet's ``containerLogMaxSize``, 10 MiB by default), and gives the newest. That
is seen by how that one begins; what a container prints first of all is there nowhere else. A stream should go on from
one file to the next, but may stay at the end of the one, or end there.

If it is known that output was thrown away before it was read, the log says so at that place.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

from airflow_provider_air_executor.jobs import files

_HEAD = 4096  # bytes by which a file is known again
_TAIL = 1024  # and a place in it
_SHORTEST = 16  # of them that must be there still
_LONG = 1 << 16  # bytes of output before which no node begins a new file
THROWN_AWAY = b"\n[air-executor] Output is missing here: its node had thrown it away before it could be read.\n"
UNCERTAIN = (
    b"\n[air-executor] Output may be missing here, or be there twice: its node has begun a new file for it, and where "
    b"that goes on is not certain.\n"
)
CUT_OFF = b"\n[air-executor] The end of the output is missing: the container runtime of its node has lost it.\n"


class OutOfStepError(Exception):
    """What is read is not what was read before: its beginning has been thrown away."""


class Output(ABC):
    """The output of a container.

    :param beginning: what the container prints first, and which belongs to nobody.
    """

    def __init__(self, beginning: bytes) -> None:
        self.taken = 0  # bytes
        self.is_read_out = False  # whether all was read of the file that was being read, and it gets no more
        self.head = beginning  # how the file begins in which we are
        self._position = len(beginning)  # in it
        self._tail = b""  # what was before that, and belongs to the output
        self._is_noted = False  # whether it was said at this place that something may be missing

    @property
    def is_long(self) -> bool:
        """Whether its node may have begun a new file."""
        return self._position >= _LONG

    def reader(self) -> Reader:
        """Read the file in which we are once more, from its beginning."""
        return Reader(self, self.head, self._position, self._tail)

    def go_on_in(self, found: bytes, *, is_read_out: bool = False) -> None:
        """Find our place in what the node has, and take what comes after it.

        :param found: all that it has.
        :param is_read_out: whether all was read of the file in which we are, if it is not this one.
        :raises OSError: if something cannot be written; what is not must be read again.
        """
        if not found and not (is_read_out or self.is_read_out):
            return
        if found.startswith(self.head):
            place, note = self._place_in_the_same(found), b""
        elif is_read_out or self.is_read_out:
            place, note = self._place_of_what_ended(found)
        else:
            place, note = self._place_of_what_was_cut(found)
        if note and not self._is_noted:
            self.note(note)
            self._is_noted = True
        self.head, self.is_read_out = found[:_HEAD], False
        self._position, self._tail = place, found[max(0, place - _TAIL) : place]
        self.take(found[place:])

    def _place_in_the_same(self, found: bytes) -> int:
        """Our place. What was read last may have been none of it, but the words of a kubelet that can read no more."""
        start = self._position - len(self._tail)
        return min(start, len(found)) + _alike(found[start : self._position], self._tail)

    def _place_of_what_ended(self, found: bytes) -> tuple[int, bytes]:
        """Our place, and what to say there, after all was read of a file: of this one, or of the one before it."""
        last = found[-_TAIL:]
        if found and self._tail.endswith(last):
            is_there_once = all(text.find(last) + len(last) == len(text) for text in (found, self._tail))
            return len(found), b"" if is_there_once else UNCERTAIN
        return 0, b""

    def _place_of_what_was_cut(self, found: bytes) -> tuple[int, bytes]:
        """Our place, and what to say there. If there are several, what is there twice is better than what is not."""
        tail = self._tail
        place = found.find(tail) if len(tail) >= _SHORTEST else -1
        if place >= 0:
            return place + len(tail), UNCERTAIN if found.find(tail, place + 1) >= 0 else b""
        sizes = [size for size in range(_SHORTEST, len(tail)) if found.startswith(tail[-size:])]
        if sizes:
            return sizes[0], b"" if len(sizes) == 1 else UNCERTAIN
        return 0, THROWN_AWAY

    def _count(self, data: bytes) -> None:
        if self._position == len(self.head):
            self.head += data[: max(0, _HEAD - len(self.head))]
        self._position += len(data)
        self._tail = (self._tail + data)[-_TAIL:]
        if data:
            self.taken += len(data)
            self.is_read_out = self._is_noted = False

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
    def note(self, text: bytes) -> None:
        """Say something at this place.

        :raises OSError: if it cannot be written.
        """


class TaskOutput(Output):
    """The output of a container that runs one attempt.

    :param beginning: what the container prints first.
    :param log_path: the log of its task.
    :param start: how long that was when the attempt was started.
    :param marker: what comes after the output, and before a long result.
    """

    def __init__(self, beginning: bytes, log_path: Path, start: int, marker: bytes) -> None:
        super().__init__(beginning)
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
            self._position += position
            self._tail = file.read(length)

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

    def note(self, text: bytes) -> None:
        """Say something at this place."""
        append(self._log_path, self._held + text)
        self._held = b""


def append(log_path: Path, data: bytes) -> None:
    """Write all of it to a log, or nothing."""
    if not data:
        return
    log = files.open_log(log_path, create=False)
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
    """Skips what was read before, and makes sure that it is the same.

    :param head: how the file must begin.
    :param skip: how many bytes of it were read before.
    :param tail: the last of them.
    """

    def __init__(self, output: Output, head: bytes, skip: int, tail: bytes) -> None:
        self._output = output
        self._head = head
        self._left = skip
        self._tail = tail
        self._seen = 0
        self._last = b""

    @property
    def is_in_step(self) -> bool:
        """Whether all that was read before has come again."""
        return self._left == 0

    def feed(self, data: bytes) -> None:
        """The next bytes.

        :raises OutOfStepError: if they are not what they were before.
        :raises OSError: if they cannot be written.
        """
        if self._seen < len(self._head) and not data.startswith(self._head[self._seen : self._seen + len(data)]):
            raise OutOfStepError
        self._seen += len(data)
        if self._left:
            skipped = data[: self._left]
            self._left -= len(skipped)
            self._last = (self._last + skipped)[-_TAIL:]
            data = data[len(skipped) :]
            if not self._left and not self._last.endswith(self._tail):
                raise OutOfStepError
        if data:
            self._output.take(data)


def _alike(one: bytes, other: bytes) -> int:
    """How many bytes at the beginning are the same."""
    length = min(len(one), len(other))
    return next((place for place in range(length) if one[place] != other[place]), length)


def _overlap(data: bytes, marker: bytes) -> int:
    """How many bytes at the end may be the beginning of the marker."""
    for length in range(min(len(data), len(marker) - 1), 0, -1):
        if marker.startswith(data[-length:]):
            return length
    return 0
