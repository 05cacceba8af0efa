"""Changes of a job as server-sent events, for somebody who looks at it.

Of the job there is only the word that it has changed, by the watcher that all who look share; they then ask for what
they show. The log of one task is followed by one look a second at most, and by none as long as nothing is printed where
that is known.

A stream ends by itself after :data:`STREAM_SECONDS`, and the browser goes on where it was: so the user's rights are
asked for again, and a server that is to end does not wait for pages that are open.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from fastapi.responses import StreamingResponse

from airflow_provider_air_executor.api.view import FoundJob
from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError
from airflow_provider_air_executor.jobs.interface import OUTPUT, JobLog, Jobs, JobWatch

STREAM_SECONDS = 20.0
LOOK_SECONDS = 1.0  # between two looks at a log
_SELDOM_SECONDS = 10.0  # the same where one is told that something was printed
_READ_SECONDS = 5.0  # for which the job is waited for
DESCRIBED: dict[str, Any] = {
    "description": "Events.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}  # in the description of the API
_LOG_BYTES = 262_144  # of one event
_PASS_SECONDS = 10.0  # between two looks at the job's files, where the system does not notify
_PAUSE_SECONDS = 0.25  # between two events of a kind, at least
_RECONNECT_MS = 250
# Threads of our own: those of the event loop are few, and others wait for them, while a log may be far away.
_threads = ThreadPoolExecutor(8, thread_name_prefix="air-executor-live")

T = TypeVar("T")


def stream(found: FoundJob, log: tuple[str, int] | None = None) -> StreamingResponse:
    """The answer to a request for :func:`events`."""
    # Proxies are asked not to keep what is to be seen at once.
    headers = {**found.view.headers, "X-Accel-Buffering": "no"}
    return StreamingResponse(events(found.jobs, found.job.name, log), media_type="text/event-stream", headers=headers)


async def events(jobs: Jobs, job_name: str, log: tuple[str, int] | None) -> AsyncIterator[str]:
    """The events: ``changed``; ``log`` with ``text`` from ``offset`` to ``next_offset``; ``end`` if no more will come.

    The id of an event is the offset in the log after it, in bytes. A smaller ``offset`` than before is that of a log
    which has been truncated.

    :param log: the id of the task whose log is followed, and the offset to begin at, in bytes; None: of none.
    """
    yield f"retry: {_RECONNECT_MS}\n\n"
    until = time.monotonic() + STREAM_SECONDS
    followed = None if log is None else _FollowedLog(jobs, job_name, *log)
    async with jobs.watching(job_name, interval=_PASS_SECONDS) as watch:
        has_changed, is_over = True, False  # it may have changed before we watched
        while time.monotonic() < until:
            if has_changed:
                yield _event("changed", {}, followed.offset if followed else 0)
                is_over = await _is_over(watch)
                if followed:
                    await _in_thread(followed.open)
            if followed and (is_over or time.monotonic() >= followed.look_at(watch)):
                piece = await _in_thread(followed.read, is_over)
                if piece is not None:
                    yield _event("log", piece._asdict(), piece.next_offset)
            if is_over and not (followed and followed.has_more):
                yield _event("end", {}, followed.offset if followed else 0)
                return
            await asyncio.sleep(_PAUSE_SECONDS)
            next_look = min(followed.look_at(watch), until) if followed else until
            is_woken = await watch.wait(max(0.001, next_look - time.monotonic()))
            has_changed = is_woken and set(watch.changed) != {OUTPUT}
            if followed and is_woken and OUTPUT in watch.changed:
                followed.has_printed = True


class Piece(NamedTuple):
    """A piece of a log."""

    text: str
    offset: int  # where it begins, in bytes
    next_offset: int


class _FollowedLog:
    """The log of a task, piece by piece as it comes.

    :param offset: to begin at, in bytes.
    """

    def __init__(self, jobs: Jobs, job_name: str, task_id: str, offset: int) -> None:
        self._jobs, self._job_name, self._task_id = jobs, job_name, task_id
        self._log: JobLog | None = None
        self._looked_at = -_SELDOM_SECONDS
        self.offset = offset  # where the next piece begins
        self.has_more = False  # of a long log: the job is inspected in between
        self.has_printed = False  # as one was told

    def open(self) -> None:
        """Open it, unless the secrets of the job are not known: then nothing may be shown."""
        try:
            self._jobs.mask(self._job_name)
            self._log = self._jobs.log(self._job_name, self._task_id)
        except (AirExecutorError, OSError):
            self._log = None

    def look_at(self, watch: JobWatch) -> float:
        """When it is to be read again."""
        if self.has_more:
            return 0.0
        is_told = watch.sees_output and not self.has_printed
        return self._looked_at + (_SELDOM_SECONDS if is_told else LOOK_SECONDS)

    def read(self, is_over: bool) -> Piece | None:
        """The next piece; None if there is nothing new. A log that has been truncated begins anew."""
        self._looked_at, self.has_printed, self.has_more = time.monotonic(), False, False
        try:
            piece = None if self._log is None else _read(self._log, self.offset, is_over)
        except (AirExecutorError, OSError):
            return None
        if piece is not None:
            self.has_more, self.offset = piece.next_offset - piece.offset >= _LOG_BYTES, piece.next_offset
        return piece


def _read(log: JobLog, offset: int, is_over: bool) -> Piece | None:
    size = log.size()
    if size == offset:
        return None
    is_truncated = size < offset
    offset = 0 if is_truncated else offset
    offset = max(0, size + offset) if offset < 0 else offset
    chunk = log.read(offset, _LOG_BYTES, is_over=is_over)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(chunk.data, final=is_over)
    if not text and not is_truncated:
        return None
    # A character that is not whole yet comes with the next piece.
    return Piece(text, offset, chunk.next_offset - len(decoder.getstate()[0]))


async def _in_thread(call: Callable[..., T], *args: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(_threads, call, *args)


async def _is_over(watch: JobWatch) -> bool:
    """Whether nothing more will come; not if the job cannot be read for a moment."""
    try:
        async with asyncio.timeout(_READ_SECONDS):
            return (await watch.read()).state.is_terminal
    except JobNotFoundError:
        return True
    except (AirExecutorError, OSError):
        return False


def _event(kind: str, data: dict[str, object], offset: int) -> str:
    return f"event: {kind}\nid: {offset}\ndata: {json.dumps(data)}\n\n"
