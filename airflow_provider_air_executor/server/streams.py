"""Long answers: they are made as a whole before they are sent, but are not kept in memory.

A client that reads slowly has an answer of one moment, and what cannot be read is an error, and no answer that breaks
off. Longer ones are in files without names.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from airflow_provider_air_executor.server.problems import ProblemError

MEDIA_TYPE = "application/x-ndjson"
MOST_FILES = 256  # of long answers that are being sent
_PIECE_BYTES = 65_536
_SHORT = 4 * _PIECE_BYTES  # that are kept in memory

NDJSON: dict[int | str, dict[str, Any]] = {
    200: {"description": "Lines of JSON.", "content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}
}
_files = threading.BoundedSemaphore(MOST_FILES)


class Pieces(Response):
    """An answer that is made of pieces.

    :param pieces: they are all taken at once.
    :param directory: in whose file system a long one is kept.
    :param status_code: of the answer; FastAPI looks for the parameter when it describes a route.
    :raises ProblemError: if too many long answers are being sent.
    """

    media_type = "application/json"

    def __init__(self, pieces: Iterable[bytes], directory: Path, status_code: int = 200) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._let_go: weakref.finalize[..., Pieces] | None = None
        memory, length = bytearray(), 0
        for piece in pieces:
            memory += piece
            length += len(piece)
            if len(memory) > _SHORT:
                self._store(memory)
        if self._file is not None:
            self._store(memory)
        super().__init__(bytes(memory), status_code, headers={"Content-Length": str(length)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        if self._file is None or self._let_go is None:
            await super().__call__(scope, receive, send)
            return
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await run_in_threadpool(self._file.seek, 0)
            while piece := await run_in_threadpool(self._file.read, _PIECE_BYTES):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._let_go()

    def _store(self, memory: bytearray) -> None:
        """Move what is in memory to the file."""
        if self._file is None:
            if not _files.acquire(blocking=False):
                detail = "too many long answers are being sent now"
                raise ProblemError(503, "busy", detail, headers={"Retry-After": "5"})
            stack = contextlib.ExitStack()
            stack.callback(_files.release)
            self._let_go = weakref.finalize(self, stack.close)  # also of an answer that nobody sends
            self._file = stack.enter_context(_open(self._directory))
        self._file.write(memory)
        memory.clear()


def _open(directory: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=directory)


class Lines(Pieces):
    """Lines of JSON.

    :param lines: the lines, without their ends; they are all taken at once.
    :param directory: in whose file system a long answer is kept.
    :param status_code: of the answer; FastAPI looks for the parameter when it describes a route.
    """

    media_type = MEDIA_TYPE

    def __init__(self, lines: Iterable[bytes], directory: Path, status_code: int = 200) -> None:
        super().__init__((line + b"\n" for line in lines), directory, status_code)
