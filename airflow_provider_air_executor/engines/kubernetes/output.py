"""The output of a container: takes each byte once, however often it must be read again, for the attempt that it is of.

The API server returns the output of a container from its beginning, so the bytes that were read before are skipped. A
node begins a new file when one has become long (the kubelet's ``containerLogMaxSize``, 10 MiB by default), and returns
the newest one. We recognise that by how the file begins; the first line that a container prints is in no other file. A
stream should go on from one file to the next, but may stay at the end of the first one, or end there.

If output is known to have been thrown away before it was read, the log says so where it is missing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt, read_time, read_usage
from airflow_provider_air_executor.engines.kubernetes.manifest import beginning
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import printable
from airflow_provider_air_executor.jobs.usage import Usage

_HEAD = 4096  # bytes by which a file is recognised
_TAIL = 1024  # bytes by which a position in it is recognised
_SHORTEST = 16  # of them that must still be there
_LONG = 1 << 16  # bytes of output before which no node begins a new file
UNCERTAIN = (
    b"\n[air-executor] Output may be missing here, or be there twice: its node has begun a new file for it, and where "
    b"that goes on is not certain.\n"
)
THROWN_AWAY = b"\n[air-executor] Output is missing here: its node had thrown it away before it could be read.\n"
CUT_OFF = b"\n[air-executor] The end of the output is missing: the container runtime of its node has lost it.\n"
_FRAME = re.compile(rb"\0air-executor ([0-9a-f]{16}) (begin|spawn|end|done|left)([^\n]*)\n")
_FRAME_BEGINS = b"\0air-executor "
_LONGEST_FRAME = 8192


class OutOfStepError(Exception):
    """The output does not begin as it did before: its beginning has been thrown away."""


class Splitter:
    """Writes the output of a container into the logs of its attempts, and keeps their results.

    :param attempts: those of the container, in their order.
    :param is_batch: whether the container prints a frame where the output of an attempt begins and ends. Otherwise it
        has one attempt, and prints the output, a marker, and the result.
    """

    def __init__(self, attempts: Sequence[BatchedAttempt], *, is_batch: bool) -> None:
        self.begun: int | None = None  # how many have begun, once it is certain that no more will
        self._attempts = attempts
        self._by_token = {each.token.encode(): each for each in attempts}
        token = attempts[0].token.encode()
        self._frame = _FRAME if is_batch else re.compile(rb"\0air-executor (%s)()()\n" % token)  # the marker
        self._frame_begins = _FRAME_BEGINS if is_batch else b"\0air-executor %s\n" % token
        self._current = None if is_batch else attempts[0]
        self._pending = b""  # what has come, and is not written yet
        self._has_frames = False  # whether one has come
        self._has_dropped = False  # whether output was dropped of which it is unknown whose it is
        for each in attempts if is_batch else ():
            with contextlib.suppress(OSError):
                each.skip = max(0, each.log_path.stat().st_size - each.log_start)

    def take(self, data: bytes) -> None:
        """Give each attempt the part of the output that is its own.

        :raises OSError: if something cannot be written; it stays pending, and is written with the next data.
        """
        self._pending += data
        self._write()

    def finish(self, *, marker_is_due: bool) -> None:
        """Write what was held back.

        :param marker_is_due: whether the container is known to have printed the marker.
        """
        self._write(is_last=True)
        if marker_is_due and self._attempts[0].result is None:
            self.cut_off(self._attempts[0])

    def remark(self, text: bytes) -> None:
        """Write a sentence into the log here, if an attempt runs."""
        self._write(is_last=True)
        if self._current is not None:
            _append(self._current.log_path, text)

    def cut_off(self, attempt: BatchedAttempt) -> None:
        """Write into a log that the end of the output is missing."""
        if not attempt.is_cut_off:
            _append(attempt.log_path, CUT_OFF)
            attempt.is_cut_off = True

    def _write(self, *, is_last: bool = False) -> None:
        while match := self._frame.search(self._pending):
            attempt = self._by_token.get(match[1])
            # With another token, it is output that looks like a frame.
            self._put(self._pending[: match.end() if attempt is None else match.start()])
            self._pending = self._pending[match.end() :]
            if attempt is not None:
                self._has_frames = True
                self._turn(attempt, match[2], match[3].decode(errors="replace").split())
        kept = 0 if is_last else _unfinished(self._pending, self._frame_begins)
        self._put(self._pending[: len(self._pending) - kept])
        self._pending = self._pending[len(self._pending) - kept :]

    def _put(self, data: bytes) -> None:
        if self._current is None and data and not self._has_frames:
            self._guess_current()
        attempt = self._current
        if attempt is None:
            self._has_dropped = self._has_dropped or bool(data)
        elif attempt.result is not None:
            attempt.result += data
        else:
            _append(attempt.log_path, data[attempt.skip :])
            attempt.skip = max(0, attempt.skip - len(data))

    def _guess_current(self) -> None:
        """Take the first attempt that is not known to have ended for the one that runs.

        The beginning of the output was thrown away, so its frame is missing; but its timeout must count.
        """
        for attempt in self._attempts:
            if attempt.attempt is not None and not attempt.is_done:
                _append(attempt.log_path, THROWN_AWAY)
                attempt.begun_at, attempt.skip = attempt.begun_at or read_time(None), 0
                self._current = attempt
                return

    def _turn(self, attempt: BatchedAttempt, kind: bytes, words: list[str]) -> None:
        """Take a frame: from here on the output is another attempt's, or the result."""
        if kind == b"begin":
            attempt.begun_at = read_time(words[0] if words else None)
            attempt.used_before = read_usage(words[1:])
            self._current, self._has_dropped = attempt, False
        elif kind == b"spawn":
            what, *names = words or ["command"]
            no_directory = f"the directory {' '.join(names)} (field cwd) does not exist in its Pod"
            no_command = f"command {' '.join(names)} was not found in its Pod"
            attempt.spawn_error = printable(no_directory if what == "directory" else no_command)
        elif kind == b"end" and len(numbers := list(itertools.takewhile(str.isdigit, words))) >= 2:
            lacks_its_beginning = self._current is not attempt and self._has_dropped
            attempt.begun_at = attempt.begun_at or read_time(None)
            attempt.exit_code, attempt.size = int(words[0]), int(words[1])
            attempt.was_signalled = numbers[2:3] == ["1"]
            attempt.ended_at = read_time(numbers[3] if len(numbers) > 3 else None)
            attempt.usage = _used_since(attempt.used_before, read_usage(words[len(numbers) :]))
            attempt.result = bytearray()
            self._current, self._has_dropped = attempt, False
            if lacks_its_beginning:
                _append(attempt.log_path, THROWN_AWAY)
        elif kind == b"left":
            self.begun = self._attempts.index(attempt)
            self._current, attempt.begun_at = None, None
        elif kind == b"done" and attempt.exit_code is not None:
            attempt.is_done = True
            self._current = None
        elif not kind:
            attempt.result = bytearray()
            self._by_token.clear()  # the same line once more belongs to the result


def _used_since(before: Usage | None, after: Usage | None) -> Usage | None:
    """What an attempt has used, by what its container had before it and after it."""
    if before is None or after is None:
        return None
    seconds = max(0.0, round(after.cpu_seconds - before.cpu_seconds, 3))
    return after.model_copy(update={"cpu_seconds": seconds})


class Output:
    """The output of a container.

    :param token: that of its Pod.
    :param attempts: those of the container, in their order.
    :param is_batch: see :class:`Splitter`.
    """

    def __init__(self, token: str, attempts: Sequence[BatchedAttempt], *, is_batch: bool) -> None:
        self.splitter = Splitter(attempts, is_batch=is_batch)
        self.taken = 0  # bytes
        self.is_read_out = False  # whether the file that is read was read to its end, and gets no more output
        self.head = beginning(token)  # how the file begins that is read
        self._position = len(self.head)  # in that file
        self._tail = b""  # the bytes of output before that position
        self._has_remark = False  # whether the log says here that something may be missing
        if not is_batch:
            self._recover(attempts[0])

    def _recover(self, attempt: BatchedAttempt) -> None:
        """Find the position that an earlier manager had reached: its log is the output."""
        with contextlib.suppress(OSError), open(attempt.log_path, "rb") as file:
            written = max(0, file.seek(0, os.SEEK_END) - attempt.log_start)
            file.seek(-min(written, _TAIL), os.SEEK_END)
            self._tail = file.read(_TAIL)
            self._position += written

    @property
    def is_long(self) -> bool:
        """Whether its node may have begun a new file."""
        return self._position >= _LONG

    def reader(self) -> Reader:
        """Read the current file once more, from its beginning."""
        return Reader(self, self.head, self._position, self._tail)

    def continue_in(self, found: bytes, *, is_read_out: bool = False) -> None:
        """Find our position in another file, and take the output after it.

        :param found: all that the node has of it.
        :param is_read_out: whether the current file was read to its end, if it is not this one.
        :raises OSError: as :meth:`take`.
        """
        if not found and not (is_read_out or self.is_read_out):
            return
        if found.startswith(self.head):
            position, remark = self._find_in_same_file(found), b""
        elif is_read_out or self.is_read_out:
            position, remark = self._find_after_end(found)
        else:
            position, remark = self._find_after_cut(found)
        if remark and not self._has_remark:
            self.splitter.remark(remark)
            self._has_remark = True
        self.head, self.is_read_out = found[:_HEAD], False
        self._position, self._tail = position, found[max(0, position - _TAIL) : position]
        self.take(found[position:])

    def _find_in_same_file(self, found: bytes) -> int:
        """Our position in the file that was read. Its last bytes may have been the error message of a kubelet."""
        start = self._position - len(self._tail)
        return min(start, len(found)) + _alike(found[start : self._position], self._tail)

    def _find_after_end(self, found: bytes) -> tuple[int, bytes]:
        """Our position and a remark, after a file was read to its end: this one, or the one before it."""
        last = found[-_TAIL:]
        if found and self._tail.endswith(last):
            is_there_once = all(text.find(last) + len(last) == len(text) for text in (found, self._tail))
            return len(found), b"" if is_there_once else UNCERTAIN
        return 0, b""

    def _find_after_cut(self, found: bytes) -> tuple[int, bytes]:
        """Our position and a remark, after reading was cut. The first of several: twice is better than never."""
        tail = self._tail
        position = found.find(tail) if len(tail) >= _SHORTEST else -1
        if position >= 0:
            return position + len(tail), UNCERTAIN if found.find(tail, position + 1) >= 0 else b""
        sizes = [size for size in range(_SHORTEST, len(tail)) if found.startswith(tail[-size:])]
        if sizes:
            return sizes[0], b"" if len(sizes) == 1 else UNCERTAIN
        return 0, THROWN_AWAY

    def take(self, data: bytes) -> None:
        """Take the next bytes of the output.

        :raises OSError: if something cannot be written; it is written with the next bytes.
        """
        if self._position == len(self.head):
            self.head += data[: max(0, _HEAD - len(self.head))]
        self._position += len(data)
        self._tail = (self._tail + data)[-_TAIL:]
        if data:
            self.taken += len(data)
            self.is_read_out = self._has_remark = False
        self.splitter.take(data)


class Reader:
    """Skips the bytes that were read before, and makes sure that they are the same.

    :param head: the bytes with which the file must begin.
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
        """Whether all bytes that were read before have come again."""
        return self._left == 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the file.

        :raises OutOfStepError: if they are not the same as before.
        :raises OSError: as :meth:`Output.take`.
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
    return next((position for position in range(length) if one[position] != other[position]), length)


def _append(log_path: Path, data: bytes) -> None:
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


def _unfinished(data: bytes, frame_begins: bytes) -> int:
    """How many bytes at the end may be the beginning of a frame."""
    position = data.rfind(b"\0")
    if position < 0 or len(data) - position > _LONGEST_FRAME or b"\n" in data[position:]:
        return 0
    found = data[position:]
    return len(found) if found.startswith(frame_begins) or frame_begins.startswith(found) else 0
