"""The lines that the tasks of a job have printed since some positions, without secrets.

Nothing is kept between two calls: the reader has the positions, see :class:`~.stream.LogStream`.
"""

from __future__ import annotations

from collections.abc import Mapping

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs import masking
from airflow_provider_air_executor.jobs.interface import ANSWER_BYTES, LinePosition, NewLines
from airflow_provider_air_executor.jobs.lines import PASS_BYTES, Lines
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.paths import JobPaths

_NEVER = float("inf")


def new_lines(paths: JobPaths, positions: Mapping[str, LinePosition], *, is_over: bool = False) -> dict[str, NewLines]:
    """The new lines of some tasks; see :meth:`.interface.Jobs.new_lines`. What cannot be read now has none.

    :param paths: the paths of their job.
    """
    found, room = {}, ANSWER_BYTES
    for task_id, position in positions.items():
        try:
            lines = _read(TaskLog(paths, task_id), paths, position, room, is_over=is_over)
        except (AirExecutorError, OSError):
            continue
        if lines is not None:
            found[task_id] = lines
            room -= max(0, lines.position.offset - position.offset)
        if room <= 0:
            break
    return found


def _read(log: TaskLog, paths: JobPaths, first: LinePosition, room: int, *, is_over: bool) -> NewLines | None:
    """The new lines of one task, of about so many bytes; None if there are none."""
    lines: list[str] = []
    position = first
    while position.offset - first.offset < room:
        found = _read_piece(log, paths, position, is_over=is_over)
        if found is None or (found.is_truncated and position != first):
            break
        if found.is_truncated:
            return found
        lines += found.lines
        has_moved, position = found.position.offset > position.offset, found.position
        if not has_moved:
            break
    return NewLines(tuple(lines), position) if position != first else None


def _read_piece(log: TaskLog, paths: JobPaths, position: LinePosition, *, is_over: bool) -> NewLines | None:
    """The lines of the next :data:`PASS_BYTES` bytes; None if there are none."""
    offset = position.offset
    if log.size() == offset:
        return None
    mask = masking.load(paths)  # tasks that are added may bring secrets of their own
    data = log.read(offset, PASS_BYTES).data
    if not data and log.size() < offset:
        return NewLines((), LinePosition(), is_truncated=True)
    cutter = Lines(None if position.state is None else position.state.encode(), 0.0 if position.is_due else _NEVER)
    begin, end, after = piece = cutter.find(data, is_over=is_over)
    if end == begin:
        return NewLines((), _position(offset + after, cutter, position))
    chunk = mask.read_log(log, offset + begin, end - begin, is_over=is_over)
    lines = cutter.cut(chunk.text.encode(), piece)
    return NewLines(
        tuple(line.decode() for line in lines),
        _position(chunk.next_offset if after == end else offset + after, cutter, position),
    )


def _position(offset: int, cutter: Lines, before: LinePosition) -> LinePosition:
    is_due = before.is_due and cutter.show_at == 0.0
    return LinePosition(offset, None if cutter.state is None else cutter.state.decode(), is_due)
