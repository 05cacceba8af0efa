"""Changes of a job as server-sent events, for a page that shows it.

Of the job there is only the word that it has changed, by the watcher that all pages of this process share; the page
then asks for what it shows. The log of one task is followed by one ``stat`` a second.

A stream ends by itself after :data:`STREAM_SECONDS`, and the browser goes on where it was: so the user's rights are
asked for again, and a server that is to end does not wait for pages that are open.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError
from airflow_provider_air_executor.jobs import masking
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.watch import watching

STREAM_SECONDS = 20.0
LOOK_SECONDS = 1.0  # between two looks at a log
_LOG_BYTES = 262_144  # of one event
_PASS_SECONDS = 10.0  # between two looks at the job's files, where the system does not notify
_PAUSE_SECONDS = 0.25  # between two events of a kind, at least
_RECONNECT_MS = 250


async def events(store: JobStore, job_name: str, log: tuple[str, int] | None) -> AsyncIterator[str]:
    """The events: ``changed``; ``log`` with ``text`` from ``offset`` to ``next_offset``; ``end`` if no more will come.

    The id of an event is the offset in the log after it, in bytes. A smaller ``offset`` than before is that of a log
    which has been truncated.

    :param log: the id of the task whose log is followed, and the offset to begin at, in bytes; None: of none.
    """
    yield f"retry: {_RECONNECT_MS}\n\n"
    task_id, offset = log or ("", 0)
    until = time.monotonic() + STREAM_SECONDS
    read_at = 0.0
    is_over, mask = False, None
    async with watching(store, job_name, interval=_PASS_SECONDS) as waiter:
        changed = True  # it may have changed before we watched
        while time.monotonic() < until:
            if changed:
                yield _event("changed", {}, offset)
                is_over = await asyncio.to_thread(_is_over, store, job_name)
                # Tasks that have been added may have brought secrets of their own.
                mask = await asyncio.to_thread(_mask, store.paths(job_name)) if log is not None else None
            has_more = False
            if mask is not None and (is_over or time.monotonic() >= read_at):
                piece = await asyncio.to_thread(_read, store.paths(job_name), task_id, offset, mask, is_over)
                if piece is not None:
                    yield _event("log", piece._asdict(), piece.next_offset)
                    # More of it at once, but not all of a long one: the job is inspected in between.
                    has_more, offset = piece.next_offset - piece.offset >= _LOG_BYTES, piece.next_offset
                read_at = time.monotonic() + (0.0 if has_more else LOOK_SECONDS)
            if is_over and not has_more:
                yield _event("end", {}, offset)
                return
            await asyncio.sleep(_PAUSE_SECONDS)
            changed = await waiter.wait(max(0.001, min(read_at if log else until, until) - time.monotonic()))


class Piece(NamedTuple):
    """A piece of a log."""

    text: str
    offset: int  # where it begins, in bytes
    next_offset: int


def _read(paths: JobPaths, task_id: str, offset: int, mask: Mask, is_over: bool) -> Piece | None:
    """The next piece of a log; None if there is nothing new. One that has been truncated begins anew."""
    try:
        log = TaskLog(paths, task_id)
        size = log.size()
        if size == offset:
            return None
        is_truncated = size < offset
        offset = 0 if is_truncated else offset
        offset = max(0, size + offset) if offset < 0 else offset
        chunk = mask.read_log(log, offset, _LOG_BYTES, is_over=is_over)
    except (AirExecutorError, OSError):
        return None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(chunk.data, final=is_over)
    if not text and not is_truncated:
        return None
    # A character that is not whole yet comes with the next piece.
    return Piece(text, offset, chunk.next_offset - len(decoder.getstate()[0]))


def _mask(paths: JobPaths) -> Mask | None:
    """The secrets of a job; None if they are not known, so that nothing may be shown."""
    try:
        return masking.load(paths)
    except AirExecutorError:
        return None


def _is_over(store: JobStore, job_name: str) -> bool:
    """Whether nothing more will come; not if the file system is away for a moment."""
    try:
        return store.get_job(job_name).state.is_terminal
    except JobNotFoundError:
        return True
    except (AirExecutorError, OSError):
        return False


def _event(kind: str, data: dict[str, object], offset: int) -> str:
    return f"event: {kind}\nid: {offset}\ndata: {json.dumps(data)}\n\n"
