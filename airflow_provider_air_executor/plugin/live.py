"""What changes of a job, as server-sent events, for a page that shows it.

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

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.watch import watching

STREAM_SECONDS = 20.0
LOOK_SECONDS = 1.0  # between two looks at a log
_LOG_BYTES = 262_144  # of one event
_PASS_SECONDS = 30.0  # between two looks at the job, where the system does not tell of changes
_PAUSE_SECONDS = 0.25  # between two events, at least
_RECONNECT_MS = 250


async def events(store: JobStore, job_name: str, mask: Mask, log: tuple[str, int] | None) -> AsyncIterator[str]:
    """The events: ``changed``; ``log`` with ``text`` and ``next_offset``; and ``end`` if nothing more will come.

    The id of an event is how far the log has been told, in bytes.

    :param log: the id of the task whose log is followed, and the offset to begin at, in bytes; None: of none.
    """
    yield f"retry: {_RECONNECT_MS}\n\n"
    task_id, offset = log or ("", 0)
    until = time.monotonic() + STREAM_SECONDS
    look_at = 0.0
    async with watching(store, job_name, interval=_PASS_SECONDS) as waiter:
        changed = True  # it may have changed before we watched
        while time.monotonic() < until:
            if changed:
                yield _event("changed", {}, offset)
            is_over = (await asyncio.to_thread(_is_over, store, job_name)) if changed else False
            if log is not None and (is_over or time.monotonic() >= look_at):
                while time.monotonic() < until:
                    chunk = await asyncio.to_thread(_read, store, job_name, task_id, offset, mask, is_over)
                    if chunk is None:
                        break
                    text, offset = chunk
                    yield _event("log", {"text": text, "next_offset": offset}, offset)
                look_at = time.monotonic() + LOOK_SECONDS
            if is_over and time.monotonic() < until:
                yield _event("end", {}, offset)
                return
            await asyncio.sleep(_PAUSE_SECONDS)
            changed = await waiter.wait(max(0.01, min(look_at if log else until, until) - time.monotonic()))


def _read(
    store: JobStore, job_name: str, task_id: str, offset: int, mask: Mask, is_over: bool
) -> tuple[str, int] | None:
    """The next piece of the log as text, and where it ends; None if there is nothing new."""
    try:
        if offset >= 0 and store.log_size(job_name, task_id) <= offset:
            return None
        chunk = mask.read_log(store, job_name, task_id, offset, _LOG_BYTES, is_over=is_over)
    except (AirExecutorError, OSError):
        return None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(chunk.data, final=is_over)
    if not text:
        return None
    # A character that is not whole yet comes with the next piece.
    return text, chunk.next_offset - len(decoder.getstate()[0])


def _is_over(store: JobStore, job_name: str) -> bool:
    try:
        return store.get_job(job_name).state.is_terminal
    except (AirExecutorError, OSError):
        return True


def _event(kind: str, data: dict[str, object], offset: int) -> str:
    return f"event: {kind}\nid: {offset}\ndata: {json.dumps(data)}\n\n"
