"""When a task's log has grown, and which part of it each attempt has printed: ``logs/<task id>.times``.

Each line of the file is a note ``UNIX_TIME OFFSET ATTEMPT``: at that time the log had OFFSET bytes, and that attempt
had printed the last of them. The manager makes a note once a second while a log grows, less often when there are very
many notes, and at the start of every attempt but the first. A first attempt that ends within a second or two has no
file: the time of the log's last change says enough.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import check_task_id
from airflow_provider_air_executor.jobs.paths import JobPaths

_LIMIT = 32_000_000  # bytes of a file; the manager writes a tenth of that in a fortnight
_NOTE = re.compile(rb"^(\d{1,11}(?:\.\d{1,9})?) (\d{1,18}) (\d{1,9})\n", re.MULTILINE)


class Note(NamedTuple):
    """At this time the log had so many bytes."""

    time: float  # seconds since 1970
    offset: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.time:.3f} {self.offset} {self.attempt}\n"


class AttemptOutput(NamedTuple):
    """The part of a log that an attempt has printed."""

    number: int
    begin: int  # offset of its first byte
    end: int  # offset after its last byte


class LogTimes:
    """The times of one log. Offsets are those of the file itself, not of what is shown where secrets are masked.

    :param notes: what was noted, in its order.
    :param end: the size of the log now, and the time of its last change.
    """

    def __init__(self, notes: Sequence[Note], end: Note) -> None:
        if notes and notes[-1].offset > end.offset:  # it has been truncated since
            notes = [Note(end.time, end.offset, notes[-1].attempt)]
        self._size = end.offset
        self._begins: list[tuple[int, int]] = []  # of attempts: number, offset
        self._times: list[float] = []
        self._offsets: list[int] = []
        for note in notes:
            self._add(note)
        self._add(end._replace(attempt=self._begins[-1][0] if self._begins else 1))

    @classmethod
    def restored(cls, notes: Sequence[tuple[float, int]], attempts: Sequence[AttemptOutput]) -> LogTimes:
        """The same as another one was, by its :attr:`notes` and :meth:`attempts`."""
        found = cls([], Note(0.0, 0, 1))
        found._size = attempts[-1].end if attempts else 0
        found._begins = [(part.number, part.begin) for part in attempts] or [(1, 0)]
        found._times, found._offsets = [time for time, _ in notes], [offset for _, offset in notes]
        return found

    def _add(self, note: Note) -> None:
        if self._offsets and note.offset < self._offsets[-1]:  # it was truncated: what was noted is of another content
            self._begins, self._times, self._offsets = [], [], []
        last = self._begins[-1][0] if self._begins else None
        if last is None:
            self._begins.append((note.attempt, 0))
        elif note.attempt > last:
            self._begins.append((note.attempt, note.offset))
        elif note.attempt < last:  # the job was reset by hand, and its attempts count from 1 again
            self._begins.append((note.attempt, self._offsets[-1]))
        self._times.append(max(note.time, self._times[-1] if self._times else 0.0))  # clocks can be set back
        self._offsets.append(note.offset)

    @property
    def notes(self) -> list[tuple[float, int]]:
        """All notes as times, in seconds since 1970, and offsets; both grow. The last one is the end of the log."""
        return list(zip(self._times, self._offsets, strict=True))

    def time_of(self, offset: int) -> datetime | None:
        """When a byte of the log was there at the latest; most often it came within the second before.

        :return: None if the log has no such byte.
        """
        index = bisect_right(self._offsets, offset)
        return datetime.fromtimestamp(self._times[index], tz=UTC) if index < len(self._times) else None

    def attempts(self) -> list[AttemptOutput]:
        """Which part of the log is of which attempt, in their order.

        The parts follow each other without gaps. An attempt that was not noted belongs to the part of the one before.
        """
        ends = [begin for _, begin in self._begins[1:]] + [self._size]
        return [AttemptOutput(number, begin, end) for (number, begin), end in zip(self._begins, ends, strict=True)]


def read(paths: JobPaths, task_id: str) -> LogTimes:
    """The times of the log of a task; a task that has not started has an empty log.

    :param paths: the paths of its job.
    :raises InvalidJobError: if no task can have this id.
    :raises OSError: if they cannot be read now.
    """
    check_task_id(task_id)
    try:
        found = _NOTE.findall(files.read(paths.log_times(task_id), limit=_LIMIT)[0])
    except OSError as error:
        if error.errno not in (*files.ABSENT, files.TOO_LARGE):
            raise
        found = []
    notes = [Note(float(time), int(offset), int(attempt)) for time, offset, attempt in found]
    try:
        status = os.lstat(paths.log(task_id))  # after the notes: it can only have grown since
    except (FileNotFoundError, NotADirectoryError):
        return LogTimes([], Note(0.0, 0, 1))
    return LogTimes(notes, Note(status.st_mtime, status.st_size, 1))
