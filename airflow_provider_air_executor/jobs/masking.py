"""Secrets in what the tasks of a job are called with, which nobody is to see in what they print either.

Who submits a job knows which of its texts are secrets; it leaves them beside the job in a file of mode 0600
(:data:`FILE`). The tasks have them in ``tasks.json`` anyway. Whatever shows the job's texts to people masks them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.store import JobStore, LogChunk

FILE = "secrets.json"  # attached to the job
REPLACEMENT = "***"
MIN_LENGTH = 5  # what is shorter is found in too much that is none


class Mask:
    """Replaces secrets by ``***``.

    :param secrets: those that are shorter than :data:`MIN_LENGTH` characters are passed over.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self.secrets = tuple(sorted({text for text in secrets if len(text) >= MIN_LENGTH}, key=len, reverse=True))
        self._encoded = tuple(secret.encode(errors="replace") for secret in self.secrets)
        self._text = re.compile("|".join(map(re.escape, self.secrets))) if self.secrets else None
        self._bytes = re.compile(b"|".join(map(re.escape, self._encoded))) if self.secrets else None
        self._longest = max(map(len, self._encoded), default=1)

    def text(self, text: str) -> str:
        """The text without secrets."""
        return text if self._text is None else self._text.sub(REPLACEMENT, text)

    def read_log(
        self, store: JobStore, job_name: str, task_id: str, offset: int, limit: int, *, is_over: bool
    ) -> LogChunk:
        """A piece of a log, as :meth:`JobStore.read_log` gives it, without secrets.

        A secret that lies across the beginning or the end of the piece is masked too.

        :param limit: at most so many bytes of the log; it may go on a little for a secret at its end.
        :param is_over: whether nothing more will be printed; otherwise what may be the beginning of a secret at the
            end of the log is left for the next call.
        """
        if self._bytes is None:
            return store.read_log(job_name, task_id, offset, limit)
        if offset < 0:
            offset = max(0, store.log_size(job_name, task_id) + offset)
        start = max(0, offset - self._longest + 1)
        found = store.read_log(job_name, task_id, start, offset - start + limit + self._longest - 1).data
        begin = min(offset - start, len(found))
        end = min(begin + limit, len(found))
        if not is_over and end == len(found):
            end = max(begin, end - self._begun(found))
        shown, position = bytearray(), begin
        for match in self._bytes.finditer(found):
            if match.end() <= begin:
                continue
            if match.start() >= end:
                break
            if match.start() >= begin:
                shown += found[position : match.start()] + REPLACEMENT.encode()
            position = match.end()
        shown += found[position : max(end, position)]
        return LogChunk(bytes(shown), start + max(end, position))

    def _begun(self, data: bytes) -> int:
        """How many bytes at the end may be the beginning of a secret."""
        for length in range(min(self._longest - 1, len(data)), 0, -1):
            tail = data[-length:]
            if any(len(secret) > length and secret.startswith(tail) for secret in self._encoded):
                return length
        return 0


def load(store: JobStore, job_name: str) -> Mask:
    """The secrets of a job.

    :raises AirExecutorError: if they cannot be read: then nothing of the job should be shown.
    """
    path = store.attached_path(job_name, FILE)
    try:
        return Mask(json.loads(files.read(path)[0]))
    except (FileNotFoundError, NotADirectoryError):
        return Mask()
    except (OSError, ValueError, TypeError) as error:
        raise AirExecutorError(f"{path}, which says what must not be shown, cannot be read: {error}") from None


def dump(secrets: Iterable[str]) -> bytes:
    """The bytes of the file that says which texts are secrets."""
    return json.dumps(sorted(set(secrets))).encode()


def masked_parts(text: str, masked: str, mark: str) -> set[str]:
    """Which parts of a text are secrets.

    :param masked: the text with each secret replaced by the mark, which is not part of the text.
    """
    if text == masked:
        return set()
    pattern = "(.+?)".join(re.escape(part) for part in re.split(f"(?:{re.escape(mark)})+", masked))
    match = re.fullmatch(pattern, text, re.DOTALL)
    return set(match.groups()) if match else {text}
