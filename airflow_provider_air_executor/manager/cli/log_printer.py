"""Prints logs: as they are, or line by line with the task, the time, or both before each line."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import JobLog, Jobs
    from airflow_provider_air_executor.jobs.log_times import LogTimes
    from airflow_provider_air_executor.jobs.logs import LogChunk

_BLOCK = 65_536  # bytes that are read at a time from the end of a log
_NEVER = datetime.min.replace(tzinfo=UTC)


class Part(NamedTuple):
    """A part of a log.

    :param begin: the offset of its first byte.
    :param end: the offset after its last byte; None: it grows with the log.
    """

    begin: int = 0
    end: int | None = None


class Line(NamedTuple):
    """A line of a log, and when it was there."""

    time: datetime | None
    text: bytes


class LogPrinter:
    """Prints what has been added to a log since the last time, byte for byte, or line by line if each gets a prefix.

    Secrets of the job are masked. So what is printed may have another length than what was read: the offsets are those
    of the log itself.

    :param prefix: whether the id of the task is before each line.
    :param timestamps: whether the time is before each line.
    :param part: only this part of the log.
    """

    def __init__(
        self,
        jobs: Jobs,
        job_name: str,
        task_id: str,
        *,
        prefix: bool,
        timestamps: bool = False,
        part: Part = Part(),  # noqa: B008 - it cannot change
    ) -> None:
        from airflow_provider_air_executor.jobs.lines import Lines

        self._log = jobs.log(job_name, task_id)
        self._task_id = task_id
        self._prefix, self._timestamps = prefix, timestamps
        self._lines = Lines()
        self._part, self._offset = part, part.begin
        self._rest, self._rest_at = b"", part.begin  # that was read and is no line yet, and where it begins
        self._times: LogTimes | None = None

    def print_new(self, *, final: bool) -> None:
        """Print what is new.

        :param final: whether nothing more will come: the last line needs no end.
        """
        if self._prefix or self._timestamps:
            for line in self.new_lines(final=final):
                self.print(line)
            return
        while data := self._read(final=final).data:
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def print(self, line: Line) -> None:
        """Print a line."""
        if self._timestamps:
            sys.stdout.buffer.write(b"%s " % _stamp(line.time))
        if self._prefix:
            sys.stdout.buffer.write(b"%s | " % self._task_id.encode())
        sys.stdout.buffer.write(line.text + b"\n")

    def new_lines(self, *, final: bool, timed: bool = False) -> Iterator[Line]:
        """The lines that are new.

        :param timed: whether their times are needed, though they are not printed.
        """
        while True:
            new = self._read(final=final)
            data = self._rest + new.data
            if not data:
                return
            piece = self._lines.find(data, is_over=final or self._offset == self._part.end)
            if piece.end > piece.begin:
                shown = data[piece.begin : piece.end]
                ends = _ends(shown)
                lines = self._lines.cut(shown, piece)
                for end, text in zip(ends[len(ends) - len(lines) :], lines, strict=True):
                    last = min(self._rest_at + piece.begin + end, self._offset) - 1
                    yield Line(self._time_of(last) if self._timestamps or timed else None, text)
            self._rest, self._rest_at = data[piece.next :], self._rest_at + piece.next
            if not self._rest:
                self._rest_at = self._offset
            if not piece.next or not new.data:
                return

    def _read(self, *, final: bool) -> LogChunk:
        """The next piece; empty if there is none."""
        from airflow_provider_air_executor.jobs.lines import PASS_BYTES
        from airflow_provider_air_executor.jobs.logs import LogChunk

        end = self._part.end
        room = PASS_BYTES - len(self._rest)
        limit = room if end is None else min(room, end - self._offset)
        if limit <= 0:
            return LogChunk(b"", self._offset)
        found = self._log.read(self._offset, limit, is_over=final or end is not None)
        if not found.data and self._offset and self._log.size() < self._offset:
            self._begin_anew()
            return self._read(final=final)
        self._offset = found.next_offset
        return found

    def _time_of(self, offset: int) -> datetime | None:
        """When a byte of the log was there. Times that were read before it came do not have it."""
        found = None if self._times is None else self._times.time_of(offset)
        if found is None:
            self._times = self._log.times()
            found = self._times.time_of(offset)
        return found

    def _begin_anew(self) -> None:
        from airflow_provider_air_executor.jobs.stream import TRUNCATED

        click.echo(f"air-executor: {self._task_id}: {TRUNCATED}", err=True)
        self._part, self._offset, self._times = Part(), 0, None
        self._rest, self._rest_at = b"", 0


def print_by_time(printers: Iterable[LogPrinter], *, final: bool) -> None:
    """Print the new lines of several logs in the order of their times."""

    def lines_of(number: int, printer: LogPrinter) -> Iterator[tuple[datetime, int, LogPrinter, Line]]:
        for line in printer.new_lines(final=final, timed=True):
            yield line.time or _NEVER, number, printer, line

    streams = [lines_of(number, printer) for number, printer in enumerate(printers)]
    for _, _, printer, line in heapq.merge(*streams, key=itemgetter(0, 1)):
        printer.print(line)


def choose_part(
    log: JobLog, times: LogTimes | None, *, attempt: int | None, since: datetime | None, tail: int | None
) -> Part | None:
    """The part of a log that is asked for.

    :param times: of the log, if an attempt or a time is asked for.
    :param attempt: only what this attempt has printed.
    :param since: only lines that came after this time.
    :param tail: only so many lines at the end.
    :return: None if the attempt is none of this log.
    """
    begin, end = 0, None
    if times is not None and attempt is not None:
        parts = [part for part in times.attempts() if part.number == attempt]
        if not parts:
            return None
        is_last = parts[-1] == times.attempts()[-1]
        begin, end = parts[-1].begin, None if is_last else parts[-1].end
    if times is not None and since is not None:
        first = since.timestamp()
        earlier = max((offset for time, offset in times.notes if time < first), default=0)
        begin = max(begin, _next_line(log, earlier))
    if tail is not None:
        begin = _last_lines(log, begin, log.size() if end is None else end, tail)
    return Part(begin, end)


def _next_line(log: JobLog, offset: int) -> int:
    """Where the first line begins that has no byte before an offset."""
    if offset == 0:
        return 0
    position = offset - 1
    while (piece := log.read(position, _BLOCK)).data:
        if b"\n" in piece.data:
            return _after_newlines(log, position, piece, 1)
        position = piece.next_offset
    return position


def _last_lines(log: JobLog, begin: int, end: int, count: int) -> int:
    """Where the last lines of a part begin."""
    if not count:
        return end
    position, left = end, count
    while position > begin:
        first = max(begin, position - _BLOCK)
        piece = log.read(first, position - first)
        newlines = piece.data.count(b"\n")
        if position == end and piece.data.endswith(b"\n"):
            newlines -= 1  # the one at the very end begins no line
        if newlines >= left:
            return _after_newlines(log, first, piece, newlines - left + 1)
        left -= newlines
        position = first
    return begin


def _after_newlines(log: JobLog, begin: int, piece: LogChunk, count: int) -> int:
    """The offset in the log after so many newlines of a piece that begins there.

    Where secrets are masked, the piece has another length than what it shows: the log is asked for shorter pieces.
    """
    if len(piece.data) == piece.next_offset - begin:
        at = -1
        for _ in range(count):
            at = piece.data.index(b"\n", at + 1)
        return begin + at + 1
    low, high = begin, piece.next_offset
    while low < high:
        middle = (low + high) // 2
        if middle > begin and log.read(begin, middle - begin).data.count(b"\n") >= count:
            high = middle
        else:
            low = middle + 1
    return high


def _ends(shown: bytes) -> list[int]:
    """The offsets after the lines of a piece, each with its newline."""
    ends, at = [], 0
    while (found := shown.find(b"\n", at)) >= 0:
        ends.append(found + 1)
        at = found + 1
    return ends if at == len(shown) else [*ends, len(shown)]


def _stamp(time: datetime | None) -> bytes:
    return b"-" * 20 if time is None else time.strftime("%Y-%m-%dT%H:%M:%SZ").encode()
