"""Secrets in the commands of a job's tasks: they must not be visible in the output of the tasks either.

The process that submits a job knows which of its texts are secrets. It attaches them to the job (:data:`FILE`, of mode
0600), a JSON list on each line. ``tasks.json`` holds them anyway. All code that shows the job's texts to people masks
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.exceptions import AirExecutorError, why_unreadable
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.logs import LogChunk, TaskLog
from airflow_provider_air_executor.jobs.paths import JobPaths

FILE = "secrets.jsonl"  # attached to the job
REPLACEMENT = "***"
MIN_LENGTH = 5  # a shorter text occurs too often where it is no secret
_TAIL_BYTES = 65_536


class Mask:
    """Replaces secrets by ``***``.

    :param secrets: those that are shorter than :data:`MIN_LENGTH` characters are passed over.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.secrets = frozenset(text for text in secrets if len(text) >= MIN_LENGTH)
        self._encoded = tuple(secret.encode(errors="replace") for secret in self.secrets)
        self._longest = max(map(len, self._encoded), default=1)

    def text(self, text: str) -> str:
        """The text without secrets."""
        if not self._encoded:
            return text
        data = text.encode(errors="surrogatepass")
        return self._masked(data, 0, len(data))[0].decode(errors="surrogatepass")

    def read_log(self, log: TaskLog, offset: int, limit: int | None, *, is_over: bool) -> LogChunk:
        """A piece of a log, as :meth:`TaskLog.read` gives it, without secrets.

        A secret that lies across the beginning or the end of the piece is masked too.

        :param limit: at most so many bytes of the log; it may go on a little for a secret at its end. None: all.
        :param is_over: whether nothing more will be printed; otherwise what may be the beginning of a secret at the
            end of the log is left for the next call.
        """
        if not self._encoded:
            return log.read(offset, limit)
        if offset < 0:
            offset = max(0, log.size() + offset)
        start = max(0, offset - self._longest + 1)
        found = log.read(start, None if limit is None else offset - start + limit + self._longest - 1).data
        begin = min(offset - start, len(found))
        end = len(found) if limit is None else min(begin + limit, len(found))
        if not is_over:
            end = max(begin, min(end, len(found) - self._begun(found)))
        shown, next_position = self._masked(found, begin, end)
        return LogChunk(shown, start + next_position)

    def tail(self, log: TaskLog, lines: int) -> list[str]:
        """The last lines of a log, of at most 64 KiB, without secrets."""
        chunk = self.read_log(log, -_TAIL_BYTES, 2 * _TAIL_BYTES, is_over=True)
        return chunk.lines[-lines:]

    def _masked(self, data: bytes, begin: int, end: int) -> tuple[bytes, int]:
        """The bytes from ``begin`` to ``end`` without secrets, and the end: that of a secret that crosses it."""
        shown, position = bytearray(), begin
        for first, last in self._spans(data):
            if last <= begin:
                continue
            if first >= end:
                break
            if first >= begin:
                shown += data[position:first] + REPLACEMENT.encode()
            position = last
        shown += data[position : max(end, position)]
        return bytes(shown), max(end, position)

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        """The spans of secrets; those that overlap are one."""
        found = []
        for secret in self._encoded:
            first = data.find(secret)
            while first >= 0:
                found.append((first, first + len(secret)))
                first = data.find(secret, first + 1)
        spans: list[tuple[int, int]] = []
        for first, last in sorted(found):
            if spans and first < spans[-1][1]:
                spans[-1] = spans[-1][0], max(spans[-1][1], last)
            else:
                spans.append((first, last))
        return spans

    def _begun(self, data: bytes) -> int:
        """How many bytes at the end may be the beginning of a secret."""
        for length in range(min(self._longest - 1, len(data)), 0, -1):
            tail = data[-length:]
            if any(len(secret) > length and secret.startswith(tail) for secret in self._encoded):
                return length
        return 0


def masked(value: Any, mask: Mask) -> Any:
    """A value of JSON without secrets, neither in its texts nor in its keys or numbers."""
    if isinstance(value, str):
        return mask.text(value)
    if isinstance(value, dict):
        return {mask.text(key): masked(item, mask) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, mask) for item in value]
    if value is None or isinstance(value, bool) or mask.text(str(value)) == str(value):
        return value
    return REPLACEMENT


def load(paths: JobPaths) -> Mask:
    """The secrets of the job with these paths.

    :raises AirExecutorError: if they cannot be read: then nothing of the job should be shown.
    """
    path = paths.attached(FILE)
    try:
        stamp = files.stamp(path)
        return Mask() if stamp is None else _load(path, stamp)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise AirExecutorError(
            f"{path}, which says what must not be shown, cannot be read: {why_unreadable(error)}"
        ) from None


@lru_cache(maxsize=1_000)
def _load(path: Path, _stamp: files.Stamp) -> Mask:
    return Mask(secret for line in files.read(path)[0].splitlines() for secret in json.loads(line))


def dump(secrets: Iterable[str]) -> bytes:
    """A line of the file that says which texts are secrets."""
    return json.dumps(sorted(set(secrets))).encode() + b"\n"
