"""The output of the tasks of a job, line by line as it comes, for one reader that may be replaced by another one.

The position of the reader is persisted in a file beside the logs (``logs/.<reader>.offsets``), when the lines that were
handed on have had the time to arrive. A reader that is killed before repeats the last lines, and loses none.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs import files, masking
from airflow_provider_air_executor.jobs.logs import TaskLog, split_lines
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.store import JobStore

TRUNCATED = "the log has been truncated; it begins anew"
PASS_BYTES = 65_536  # of one task's log that are read at a time
_LINE_BYTES = 16_384  # of a line without an end, after which it is handed on as it is
_STATE_SECONDS = 10.0  # between two states of a line that is written over and over


class Piece(NamedTuple):
    """Which bytes of what has been read make lines, and where to go on afterwards."""

    begin: int
    end: int
    next: int


class Lines:
    """Cuts a log that grows into lines, piece by piece.

    A line that carriage returns write over, as progress bars do, may never end. Its last state is shown now and then.
    """

    def __init__(self) -> None:
        self._state: bytes | None = None  # that was shown last, of a line that has not ended
        self._show_at = 0.0

    def find(self, data: bytes, *, is_over: bool) -> Piece:
        """The next lines of the log that can be shown.

        :param data: at most :data:`PASS_BYTES`; if it is less, that is all there is now.
        :param is_over: whether nothing more will come: the last line needs no end.
        """
        end = data.rfind(b"\n") + 1
        if end:
            return Piece(0, end, end)
        begin = data.rstrip(b"\r").rfind(b"\r") + 1  # what is before has been written over
        if begin and self._state is None:
            self._state = b""
        if is_over or len(data) - begin >= _LINE_BYTES:
            return Piece(begin, len(data), len(data))
        is_due = self._state is not None and len(data) < PASS_BYTES and time.monotonic() >= self._show_at
        return Piece(begin, len(data) if is_due else begin, begin)

    def cut(self, data: bytes, piece: Piece) -> list[bytes]:
        """The lines of a piece, but for a state that has been shown."""
        lines = split_lines(data)
        shown, self._state = self._state, None
        if piece.next < piece.end:
            self._state = lines[-1] if lines else shown
            self._show_at = time.monotonic() + _STATE_SECONDS
        return lines[1:] if lines and lines[0] == shown else lines


class LogStream:
    """Follows the logs of all tasks of a job.

    :param reader: the name of the reader, of letters and digits; each reader has its own position.
    :param arrival: seconds that a line takes at most from here to where it is kept, if that is another process: one
        that is killed meanwhile has lost it. Default 0.
    """

    def __init__(self, store: JobStore, job_name: str, reader: str, *, arrival: float = 0.0) -> None:
        self._arrival = arrival
        self._job = store.paths(job_name)
        self._path = self._job.logs / f".{reader}.offsets"
        self._offsets: dict[str, int] | None = None
        self._lines: defaultdict[str, Lines] = defaultdict(Lines)
        self._on_their_way: tuple[float, dict[str, int]] | None = None  # when they will have arrived, and up to where
        self._last_arrival = 0.0  # of what was handed on, on the monotonic clock
        self._is_stopped = False

    def follow(self, tasks: Iterable[Task], say: Callable[[str], None], *, is_over: bool = False) -> bool:
        """Hand on the lines that have come since the last call.

        :param say: gets each line, with the id of its task before it.
        :param is_over: whether the job has ended: then all there is is handed on, the last line without an end too.
        :return: whether there was anything.
        """
        offsets = self._offsets = self._load() if self._offsets is None else self._offsets
        self._save_what_has_arrived()
        said = False
        try:
            for task in tasks:
                if task.attempt or task.status.is_terminal:
                    while not self._is_stopped and self._read_some(task.id, offsets, say, is_over=is_over):
                        said = True
        finally:
            if said:
                self._last_arrival = time.monotonic() + self._arrival
                self._on_their_way = self._on_their_way or (self._last_arrival, dict(offsets))
            if is_over and not self._is_stopped and not self._arrival:
                self.save()
            self._save_what_has_arrived()
        return said

    def stop(self) -> None:
        """Hand on nothing more, also in a call of :meth:`follow` that another thread is in."""
        self._is_stopped = True

    def seconds_to_arrival(self) -> float:
        """How long it takes until all that was handed on has arrived."""
        return max(0.0, self._last_arrival - time.monotonic()) if self._on_their_way else 0.0

    def save(self) -> None:
        """Persist the position: all lines that were handed on have arrived."""
        if self._on_their_way and self._offsets is not None:
            self._on_their_way = None
            self._write(self._offsets)

    def _save_what_has_arrived(self) -> None:
        if self._on_their_way is None or self._offsets is None:
            return
        now, (arrival, offsets) = time.monotonic(), self._on_their_way
        if now >= self._last_arrival:
            self.save()
        elif now >= arrival:
            self._write(offsets)
            self._on_their_way = self._last_arrival, dict(self._offsets)

    def _read_some(self, task_id: str, offsets: dict[str, int], say: Callable[[str], None], *, is_over: bool) -> bool:
        """Hand on some lines of one task; False if there is nothing more to read."""
        offset, cutter = offsets.get(task_id, 0), self._lines[task_id]
        try:
            mask = masking.load(self._job)  # tasks that are added may bring secrets of their own
            log = TaskLog(self._job, task_id)
            data = log.read(offset, PASS_BYTES).data
            if not data and log.size() < offset:
                say(f"{task_id} | ({TRUNCATED})")
                del offsets[task_id], self._lines[task_id]
                return True
            begin, end, after = piece = cutter.find(data, is_over=is_over)
            if end == begin:
                offsets[task_id] = offset + after
                return after > 0
            chunk = mask.read_log(log, offset + begin, end - begin, is_over=is_over)
        except (AirExecutorError, OSError):
            return False
        for line in cutter.cut(chunk.data, piece):
            say(f"{task_id} | {line.decode(errors='replace')}")
        offsets[task_id] = chunk.next_offset if after == end else offset + after
        return offsets[task_id] > offset

    def _load(self) -> dict[str, int]:
        try:
            found = json.loads(files.read(self._path)[0])
            return {str(key): int(value) for key, value in found.items()}
        except (OSError, ValueError, AttributeError, TypeError, RecursionError):
            return {}

    def _write(self, offsets: dict[str, int]) -> None:
        try:
            files.publish(self._path, json.dumps(offsets).encode())
        except OSError:  # the job is gone, or the disk is full: the next reader repeats some lines
            return
