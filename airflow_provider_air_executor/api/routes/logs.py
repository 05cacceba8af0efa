"""The logs of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Query, Response, status
from fastapi.responses import StreamingResponse

from airflow_provider_air_executor.api import live
from airflow_provider_air_executor.api.records import LogMatches, LogPart, LogTimes
from airflow_provider_air_executor.api.view import FoundJob, SeenLog
from airflow_provider_air_executor.jobs.interface import JobLog

MAX_LOG_BYTES = 1_048_576  # of one answer
_MAX_COUNTED = 2**30  # bytes before a piece whose lines are counted, which takes a second
_FARTHEST = 2**40  # offset; file systems refuse one that no file could have
_LOG: dict[str, Any] = {
    "description": "Text.",
    "content": {"text/plain": {"schema": {"type": "string"}}},
    "headers": {
        name: {"description": meaning, "schema": {"type": "integer"}}
        for name, meaning in {
            "X-Offset": "With a limit: where the piece begins, in bytes.",
            "X-Next-Offset": "With a limit: where the next piece begins, in bytes.",
            "X-Line-Number": "If it was asked for and is known: the number of the first line.",
        }.items()
    },
}

Offset = Annotated[
    int, Query(ge=-_FARTHEST, le=_FARTHEST, description="Where to start, in bytes; negative: so many before the end.")
]

router = APIRouter()


@router.get("/jobs/{job_name}/tasks/{task_id}/log", response_class=Response, responses={200: _LOG})
def get_log(
    found: SeenLog,
    task_id: str,
    offset: Offset = 0,
    limit: Annotated[int | None, Query(ge=0, description="At most so many bytes; default: all there is.")] = None,
    attempt: Annotated[int | None, Query(ge=1, description="Only what this attempt has printed.")] = None,
    whole_lines: Annotated[bool, Query(description="With a limit: begin with the next line that is whole.")] = False,
    numbered: Annotated[bool, Query(description="With a limit: count the lines before, for `X-Line-Number`.")] = False,
) -> Response:
    """The log of a task, byte for byte, but for secrets.

    With a limit, `X-Offset` is where the piece begins, and `X-Next-Offset` where the next one does. Offsets are those
    of the whole log, also with an attempt; a negative one counts from the attempt's end then.
    """
    log, is_over = _log_of(found, task_id), found.job.state.is_terminal
    headers = {**found.view.headers, "Content-Disposition": "inline"}
    if attempt is not None:
        begin, end = _part_of(log, attempt)
        offset = min(max(begin, end + offset if offset < 0 else offset), end)
        limit = limit if limit is None else min(limit, end - offset)
    else:
        end = None
    if limit is None:
        pieces = _pieces(log, offset, end, is_over=is_over)
        first = next(pieces, b"")  # if it cannot be read, that is said before the answer begins
        return StreamingResponse(chain([first], pieces), media_type="text/plain", headers=headers)
    limit = min(limit, MAX_LOG_BYTES)
    offset = max(0, log.size() + offset) if offset < 0 else offset
    if whole_lines:
        begin, offset = offset, log.line_from(offset, limit)
        limit -= offset - begin
    chunk = log.read(offset, limit, is_over=is_over)
    headers |= {"X-Offset": str(offset), "X-Next-Offset": str(chunk.next_offset)}
    if numbered and (before := log.lines_before(offset, _MAX_COUNTED)) is not None:
        headers["X-Line-Number"] = str(before + 1)
    return Response(chunk.data, media_type="text/plain", headers=headers)


@router.get("/jobs/{job_name}/tasks/{task_id}/log/times")
def get_log_times(found: SeenLog, task_id: str, offset: Offset = 0) -> LogTimes:
    """When the log of a task has grown, from an offset on, and which part of it each attempt has printed."""
    times = _log_of(found, task_id).times()
    parts = [LogPart(**part._asdict()) for part in times.attempts()]
    size = parts[-1].end
    begin = max(0, size + offset) if offset < 0 else offset
    return LogTimes(size=size, times=[note for note in times.notes if note[1] > begin], attempts=parts)


@router.get("/jobs/{job_name}/tasks/{task_id}/log/search")
def search_log(
    found: SeenLog,
    task_id: str,
    text: Annotated[str, Query(max_length=1000, description="In whatever case; without it, nothing is found.")] = "",
    offset: Annotated[int, Query(ge=0, le=_FARTHEST, description="Where to begin, in bytes.")] = 0,
    end: Annotated[int, Query(ge=0, le=_FARTHEST, description="Where to end, in bytes.")] = _FARTHEST,
) -> LogMatches:
    """The lines of a log that have a text. One request looks through a part; the next one goes on where that ends."""
    log = _log_of(found, task_id)
    if not text:
        return LogMatches(offsets=[], next_offset=None)
    return LogMatches(**log.search(text, offset, end)._asdict())


@router.get("/jobs/{job_name}/tasks/{task_id}/events", response_class=Response, responses={200: live.DESCRIBED})
def follow_log(
    found: SeenLog, task_id: str, offset: Offset = 0, last_event_id: Annotated[int | None, Header()] = None
) -> StreamingResponse:
    """Server-sent events of a job, and `log` with `text` and `next_offset` when this task has printed something."""
    _log_of(found, task_id)
    return live.stream(found, (task_id, offset if last_event_id is None else last_event_id))


def _log_of(found: FoundJob, task_id: str) -> JobLog:
    """The log of a task that the job has.

    :raises AirExecutorError: if its secrets are not known, so that nothing may be shown.
    """
    if not found.jobs.get_tasks(found.job.name, [task_id]):
        raise HTTPException(status.HTTP_404_NOT_FOUND, "there is no such task in this job")
    found.jobs.mask(found.job.name)
    return found.jobs.log(found.job.name, task_id)


def _part_of(log: JobLog, attempt: int) -> tuple[int, int]:
    """Where what an attempt has printed begins in the log, and where it ends."""
    for part in log.times().attempts():
        if part.number == attempt:
            return part.begin, part.end
    raise HTTPException(status.HTTP_404_NOT_FOUND, "it is not known what this attempt has printed")


def _pieces(log: JobLog, offset: int, end: int | None, *, is_over: bool) -> Iterator[bytes]:
    """A log as it is now, piece by piece, without the lines that come meanwhile."""
    end = log.size() if end is None else end
    offset = max(0, end + offset) if offset < 0 else offset
    while offset < end:
        chunk = log.read(offset, min(MAX_LOG_BYTES, end - offset), is_over=is_over)
        if chunk.next_offset == offset:
            return
        yield chunk.data
        offset = chunk.next_offset
