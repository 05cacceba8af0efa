"""Cutting a log that grows into lines, piece by piece."""

from __future__ import annotations

import time
from typing import NamedTuple

from airflow_provider_air_executor.jobs.logs import split_lines

PASS_BYTES = 65_536  # of one task's log that are read at a time
STATE_SECONDS = 10.0  # between two states of a line that is written over and over
_LINE_BYTES = 16_384  # of a line without an end, after which it is handed on as it is


class Piece(NamedTuple):
    """Which bytes of what has been read make lines, and where to go on afterwards."""

    begin: int
    end: int
    next: int


class Lines:
    """Cuts a log that grows into lines.

    A line that carriage returns write over, as progress bars do, may never end. Its last state is shown now and then.

    :param state: the one that was shown last, of a line that has not ended.
    :param show_at: when the next one is shown, on the monotonic clock.
    """

    def __init__(self, state: bytes | None = None, show_at: float = 0.0) -> None:
        self.state = state
        self.show_at = show_at

    def find(self, data: bytes, *, is_over: bool) -> Piece:
        """The next lines of the log that can be shown.

        :param data: at most :data:`PASS_BYTES`; if it is less, that is all there is now.
        :param is_over: whether nothing more will come: the last line needs no end.
        """
        end = data.rfind(b"\n") + 1
        if end:
            return Piece(0, end, end)
        begin = data.rstrip(b"\r").rfind(b"\r") + 1  # what is before has been written over
        if begin and self.state is None:
            self.state = b""
        if is_over or len(data) - begin >= _LINE_BYTES:
            return Piece(begin, len(data), len(data))
        is_due = self.state is not None and len(data) < PASS_BYTES and time.monotonic() >= self.show_at
        return Piece(begin, len(data) if is_due else begin, begin)

    def cut(self, data: bytes, piece: Piece) -> list[bytes]:
        """The lines of a piece, but for a state that has been shown."""
        lines = split_lines(data)
        shown, self.state = self.state, None
        if piece.next < piece.end:
            self.state = lines[-1] if lines else shown
            self.show_at = time.monotonic() + STATE_SECONDS
        return lines[1:] if lines and lines[0] == shown else lines
