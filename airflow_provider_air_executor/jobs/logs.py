"""The logs of tasks: how one is read, piece by piece, and what counts as a line of it."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import check_task_id
from airflow_provider_air_executor.jobs.paths import JobPaths

_PIECE = 4_194_304  # bytes that are read at a time


class LogChunk(NamedTuple):
    """A piece of a task's log."""

    data: bytes
    next_offset: int  # where to go on reading, in bytes

    @property
    def text(self) -> str:
        """The piece as text; bytes that are not UTF-8 are shown as a replacement character."""
        return self.data.decode(errors="replace")

    @property
    def lines(self) -> list[str]:
        """The lines of the piece, as :func:`split_lines` has them, as text."""
        return [line.decode(errors="replace") for line in split_lines(self.data)]


class TaskLog:
    """The log of one task: what all its attempts have printed, in order.

    :param paths: the paths of its job.
    :raises InvalidJobError: if no task can have this id.
    """

    def __init__(self, paths: JobPaths, task_id: str) -> None:
        self._job = paths
        self._path = paths.log(check_task_id(task_id))

    def read(self, offset: int = 0, limit: int | None = None) -> LogChunk:
        """Read the log from ``offset`` on. A task that has not started has an empty log.

        :param offset: where to start, in bytes; negative: that many bytes before the end.
        :param limit: at most so many bytes; default: all there is.
        :raises JobNotFoundError: if there is no such job.
        """
        if not files.is_real_directory(self._job.directory):
            raise self._job.not_found()
        if files.is_real_directory(self._job.logs):
            with contextlib.suppress(FileNotFoundError), files.open_file(self._path) as file:
                if offset < 0:
                    offset = max(0, os.fstat(file.fileno()).st_size + offset)
                file.seek(offset)
                data = file.readall() if limit is None else file.read(limit)
                return LogChunk(data or b"", offset + len(data or b""))
        return LogChunk(b"", max(offset, 0))

    def line_from(self, offset: int, limit: int) -> int:
        """Where the first line begins that is whole, at ``offset`` or after it.

        :param limit: if there is none in so many bytes, ``offset``.
        """
        if offset == 0:
            return 0
        data = self.read(offset - 1, limit + 1).data
        position = data.find(b"\n")
        return offset + position if 0 <= position < len(data) - 1 else offset

    def lines_before(self, offset: int, limit: int) -> int | None:
        """How many lines end before ``offset``; None if there are more bytes than ``limit`` to count them in."""
        if offset > limit:
            return None
        lines, position = 0, 0
        while position < offset:
            data = self.read(position, min(_PIECE, offset - position)).data
            if not data:
                break
            lines += data.count(b"\n")
            position += len(data)
        return lines

    def size(self) -> int:
        """The length of the log in bytes; 0 if there is none."""
        stamp = files.stamp(self._path)
        return stamp.size if stamp is not None else 0


def split_lines(data: bytes) -> list[bytes]:
    """The lines of what a task has printed.

    A newline ends a line, and nothing else does. Of a line that carriage returns write over, as progress bars do, only
    the last state counts.
    """
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return [line.rstrip(b"\r").rpartition(b"\r")[2] for line in lines]
