"""The log of a task on another machine, piece by piece."""

from __future__ import annotations

from typing import Any

from airflow_provider_air_executor.exceptions import AirExecutorError, ProtocolError
from airflow_provider_air_executor.jobs.log_search import Found
from airflow_provider_air_executor.jobs.log_times import AttemptOutput, LogTimes, Note
from airflow_provider_air_executor.jobs.logs import LogChunk
from airflow_provider_air_executor.jobs.models import check_task_id
from airflow_provider_air_executor.remote.connections import Answer
from airflow_provider_air_executor.remote.link import Link
from airflow_provider_air_executor.remote.protocol import MissingError
from airflow_provider_air_executor.remote.transport import url_path

_PIECE = 1_048_576  # bytes that are asked for at a time; the server gives no more


class RemoteLog:
    """The log of one task; see :class:`~airflow_provider_air_executor.jobs.interface.JobLog`.

    :raises InvalidJobError: if no task can have this id.
    """

    def __init__(self, link: Link, job_name: str, task_id: str) -> None:
        self._link = link
        self._tail = url_path("records", job_name, "log-tail")
        self._raw = url_path("records", job_name, "log")
        self._path = url_path("jobs", job_name, "tasks", check_task_id(task_id), "log")
        self._task_id = task_id

    def size(self) -> int:
        """Its length in bytes; 0 if there is none."""
        return _number(self._piece(0, 0, is_over=True), "X-Log-Size")

    def read(self, offset: int = 0, limit: int | None = None, *, is_over: bool = True) -> LogChunk:
        """A piece of it."""
        data = bytearray()
        begin = offset
        while True:
            wanted = _PIECE if limit is None else min(_PIECE, limit - (max(offset, 0) - max(begin, 0)))
            answer = self._piece(offset, wanted, is_over=is_over)
            data += answer.content
            at, offset = _number(answer, "X-Offset"), _number(answer, "X-Next-Offset")
            begin = at if begin < 0 else begin
            is_all = offset == at or (limit is not None and offset - begin >= limit)
            if is_all or offset >= _number(answer, "X-Log-Size"):
                return LogChunk(bytes(data), offset)

    def _piece(self, offset: int, limit: int, *, is_over: bool) -> Answer:
        is_over_word = str(is_over).lower()
        return self._link.read(self._raw, task=self._task_id, offset=offset, limit=limit, is_over=is_over_word)

    def line_from(self, offset: int, limit: int) -> int:
        """Where the first line begins that is whole."""
        if offset == 0:
            return 0
        answer = self._link.read(self._path, offset=offset, limit=min(limit, _PIECE), whole_lines="true")
        return _number(answer, "X-Offset")

    def lines_before(self, offset: int, limit: int) -> int | None:
        """How many lines end before an offset."""
        if offset > limit:
            return None
        answer = self._link.read(self._path, offset=offset, limit=0, numbered="true")
        return _number(answer, "X-Line-Number") - 1 if "X-Line-Number" in answer.headers else None

    def tail(self, lines: int) -> list[str]:
        """The last lines."""
        found = self._link.get(self._tail, task=self._task_id, lines=lines)
        return [str(line) for line in _field(found, "lines")]

    def search(self, text: str, offset: int, end: int) -> Found:
        """The lines that have a text."""
        try:
            found = self._link.get(f"{self._path}/search", text=text, offset=offset, end=end)
        except MissingError:  # a task that the job does not have has printed nothing
            return Found([], None)
        return Found(_field(found, "offsets"), _field(found, "next_offset"))

    def times(self) -> LogTimes:
        """When it has grown, and which part of it each attempt has printed."""
        try:
            found = self._link.get(f"{self._path}/times")
        except MissingError:
            return LogTimes([], Note(0.0, 0, 1))
        parts = [AttemptOutput(part["number"], part["begin"], part["end"]) for part in _field(found, "attempts")]
        return LogTimes.restored([(float(time), int(at)) for time, at in _field(found, "times")], parts)


def _number(answer: Answer, header: str) -> int:
    try:
        return int(answer.headers[header])
    except (KeyError, ValueError):
        raise ProtocolError(f"the server sends no {header} with a piece of a log") from None


def _field(content: Any, name: str) -> Any:
    try:
        return content[name]
    except (KeyError, TypeError):
        raise AirExecutorError(f"the server says nothing of {name!r} of a log") from None
