"""The audit log of the server: ``<base_path>/server-audit.jsonl``, a line for each change and each refused login."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

from airflow_provider_air_executor.jobs import files

log = logging.getLogger("air_executor.server")

FILE = "server-audit.jsonl"
MAX_BYTES = 10_000_000  # of a file; then it gets the name ``server-audit.jsonl.1``, and so on
KEPT = 4  # files with a number

_TOKEN = re.compile(r"aex_[0-9a-f]{1,12}_?\w*", re.ASCII | re.IGNORECASE)
_LONGEST = 500  # characters of a text that a client has chosen


class Audit:
    """Writes the audit log. Where that is not possible the line goes to the log of the server.

    :param base_path: the directory that holds ``jobs/``.
    """

    def __init__(self, base_path: Path) -> None:
        self._path = base_path / FILE
        self._lock = threading.Lock()  # routes run in threads

    def record(
        self, action: str, *, token: str, scope: str, address: str, job: str = "", outcome: str = "done"
    ) -> None:
        """Write a line.

        :param action: what was asked for, in a word or two.
        :param token: the name of the token, never the token; empty if it is not known.
        :param scope: of the token.
        :param address: of the client; empty: it came by the Unix socket.
        :param job: the name of the job that it was about, if it was about one.
        :param outcome: ``done``, or why it was refused.
        """
        line = {
            "time": datetime.now(tz=UTC).isoformat(timespec="milliseconds"),
            "token": token,
            "scope": scope,
            "address": address,
            "action": action,
            "job": job,
            "outcome": outcome,
        }
        text = json.dumps({key: _harmless(value) for key, value in line.items()})
        try:
            with self._lock:
                self._append(text.encode() + b"\n")
        except OSError as error:
            log.error("%s cannot be written (%s): %s", self._path, error.strerror, text)

    def _append(self, line: bytes) -> None:
        descriptor = files.open_log(self._path)
        try:
            is_full = os.fstat(descriptor).st_size + len(line) > MAX_BYTES
            if not is_full:
                self._write(descriptor, line)
        finally:
            os.close(descriptor)
        if is_full:
            self._rotate()
            self._append(line)

    def _write(self, descriptor: int, line: bytes) -> None:
        files.give(descriptor, self._path.parent)
        files.write_all(descriptor, line)

    def _rotate(self) -> None:
        """Give each file the next number; the last one goes."""
        names = [self._path, *(self._path.with_name(f"{FILE}.{number}") for number in range(1, KEPT + 1))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if files.stamp(newer) is not None:
                os.replace(newer, older)


def _harmless(text: str) -> str:
    """A text of a client: not too long, and without what may be a token."""
    return _TOKEN.sub("aex_***", text[:_LONGEST])
