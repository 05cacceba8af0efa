"""The output of the tasks of a job, line by line as it comes, for one reader that may be replaced by another one.

The position of the reader is persisted with the job, when the lines that were handed on have had the time to arrive. A
reader that is killed before repeats the last lines, and loses none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.interface import ANSWER_BYTES, Jobs, LinePosition, NewLines
from airflow_provider_air_executor.jobs.lines import STATE_SECONDS
from airflow_provider_air_executor.jobs.models import Task

TRUNCATED = "the log has been truncated; it begins anew"
# Under which the position says that no more is handed on; no task has such an id.
_CUT = "/cut"


class _Line(NamedTuple):
    """A line that has not ended."""

    state: str | None = None  # that was shown last
    show_at: float = 0.0  # when the next one may be shown, on the monotonic clock


class LogStream:
    """Follows the logs of all tasks of a job.

    :param reader: the name of the reader, of letters and digits; each reader has its own position.
    :param limit: how many bytes of all logs together are handed on; default: all.
    :param arrival: seconds that a line takes at most from here to where it is kept, if that is another process: one
        that is killed meanwhile has lost it. Default 0.
    """

    def __init__(
        self, jobs: Jobs, job_name: str, reader: str, *, limit: int | None = None, arrival: float = 0.0
    ) -> None:
        self._jobs = jobs
        self._job_name = job_name
        self._reader = reader
        self._arrival = arrival
        self._limit = limit
        self._offsets: dict[str, int] | None = None
        self._total = 0  # bytes that have been handed on
        self._lines: dict[str, _Line] = {}
        self._on_their_way: tuple[float, dict[str, int]] | None = None  # when they will have arrived, and up to where
        self._last_arrival = 0.0  # of what was handed on, on the monotonic clock
        self._is_stopped = False

    def follow(self, tasks: Iterable[Task], say: Callable[[str], None], *, is_over: bool = False) -> bool:
        """Hand on the lines that have come since the last call.

        :param say: gets each line, with the id of its task before it.
        :param is_over: whether the job has ended: then all there is is handed on, the last line without an end too.
        :return: whether there was anything.
        :raises OSError: if they cannot be read now; the next call goes on with them.
        """
        if self._offsets is None:
            self._offsets = self._jobs.load_positions(self._job_name, self._reader)
            self._total = sum(self._offsets.values())
        offsets = self._offsets
        self._save_what_has_arrived()
        said = False
        asked = [task.id for task in tasks if task.attempt or task.status.is_terminal]
        try:
            while asked and not self._is_stopped and _CUT not in offsets:
                found = self._ask(asked, offsets, is_over=is_over)
                asked = _left_of(asked, found, offsets)
                for task_id, lines in found.items():
                    if self._is_stopped or _CUT in offsets:
                        break
                    said = self._hand_on(task_id, lines, offsets, say) or said
        finally:
            if said:
                self._last_arrival = time.monotonic() + self._arrival
                self._on_their_way = self._on_their_way or (self._last_arrival, dict(offsets))
            if is_over and not self._is_stopped and not self._arrival:
                self.save()
            self._save_what_has_arrived()
        return said

    @property
    def is_cut(self) -> bool:
        """Whether the limit is reached, and something was not handed on."""
        return _CUT in (self._offsets or {})

    @property
    def is_unsaved(self) -> bool:
        """Whether lines were handed on since the position was persisted."""
        return self._on_their_way is not None

    def move(self, jobs: Jobs) -> None:
        """Go on with the same job where it can be read now."""
        self._jobs = jobs

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

    def _ask(self, task_ids: Iterable[str], offsets: Mapping[str, int], *, is_over: bool) -> Mapping[str, NewLines]:
        now, begun = time.monotonic(), _Line()
        positions = {}
        for task_id in task_ids:
            line = self._lines.get(task_id, begun)
            positions[task_id] = LinePosition(offsets.get(task_id, 0), line.state, now >= line.show_at)
        return self._jobs.new_lines(self._job_name, positions, is_over=is_over)

    def _hand_on(self, task_id: str, found: NewLines, offsets: dict[str, int], say: Callable[[str], None]) -> bool:
        """Hand on the lines of one task; False if its position is the same afterwards."""
        offset = offsets.get(task_id, 0)
        if self._limit is not None and self._total >= self._limit:
            offsets[_CUT] = 1
            say(f"{task_id} | (no more output of this job is shown here, after {self._limit} bytes; see its logs)")
            return True
        if found.is_truncated:
            say(f"{task_id} | ({TRUNCATED})")
            offsets.pop(task_id, None)
            self._lines.pop(task_id, None)
            self._total -= offset
            return True
        for line in found.lines:
            say(f"{task_id} | {line}")
        self._keep_state(task_id, found.position)
        offsets[task_id] = found.position.offset
        self._total += offsets[task_id] - offset
        return offsets[task_id] > offset

    def _keep_state(self, task_id: str, position: LinePosition) -> None:
        before = self._lines.get(task_id, _Line())
        is_due = time.monotonic() >= before.show_at
        was_shown = is_due and position.state is not None and not position.is_due
        show_at = time.monotonic() + STATE_SECONDS if was_shown else before.show_at
        if position.state is not None or show_at:
            self._lines[task_id] = _Line(position.state, show_at)

    def _write(self, offsets: Mapping[str, int]) -> None:
        try:
            self._jobs.save_positions(self._job_name, self._reader, offsets)
        except (AirExecutorError, OSError):  # the disk is full, for instance: the next reader repeats some lines
            return


def _left_of(asked: Sequence[str], found: Mapping[str, NewLines], offsets: Mapping[str, int]) -> list[str]:
    """The tasks that are still to be asked for, after an answer that may be cut."""
    left = [task_id for task_id, lines in found.items() if lines.is_truncated]
    read = sum(max(0, lines.position.offset - offsets.get(task_id, 0)) for task_id, lines in found.items())
    if read >= ANSWER_BYTES:  # the last one of them may have more, and those after it
        left += asked[asked.index(next(reversed(list(found)))) :]
    return list(dict.fromkeys(left))
