"""The lines of a log that have a text, for readers who do not want all of it."""

from __future__ import annotations

import re
from typing import NamedTuple

from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.masking import Mask

_PIECE = 1_048_576  # bytes that are looked through at a time
_MAX_SEARCHED = 64 * _PIECE  # by one call, which takes about half a second
_MAX_FOUND = 1_000  # lines of one call, about
_COLOURS = re.compile(rb"\x1b\[[0-9;:]*m")


class Found(NamedTuple):
    """What a search has found so far."""

    offsets: list[int]  # where the lines begin, in bytes
    next_offset: int | None  # where to go on; None: all of it was searched


def search(log: TaskLog, mask: Mask, text: str, offset: int, end: int) -> Found:
    """Look for a text in a log from ``offset`` to ``end``, or in a part of it, in whatever case and without colours.

    Secrets are not found, so that nobody can guess them.

    :param text: a part of a line.
    """
    end = min(end, log.size())
    until = min(end, offset + _MAX_SEARCHED)
    wanted = text.lower()
    offsets: list[int] = []
    while offset < until and len(offsets) < _MAX_FOUND:
        raw = log.read(offset, min(_PIECE, end - offset)).data
        if not raw:
            return Found(offsets, None)  # it has been truncated
        whole = raw.rfind(b"\n") + 1
        if whole and offset + len(raw) < end:
            raw = raw[:whole]  # the line at its end is looked at with what follows
        shown = mask.read_log(log, offset, len(raw), is_over=True).data
        offsets += _lines_with(wanted, raw, shown, offset)
        offset += len(raw)
    return Found(offsets, offset if offset < end else None)


def _lines_with(wanted: str, raw: bytes, shown: bytes, begin: int) -> list[int]:
    """Where the lines begin that have a text in what is shown of them."""
    plain = _COLOURS.sub(b"", shown).decode(errors="replace").lower()
    if wanted not in plain:
        return []
    lines, offsets = raw.split(b"\n"), []
    texts = plain.split("\n")
    # A secret that goes over the end of a line would make fewer lines: then only the piece is known.
    is_alike = len(texts) == len(lines)
    for line, one in zip(lines if is_alike else [raw], texts if is_alike else [plain], strict=True):
        if wanted in one:
            offsets.append(begin)
        begin += len(line) + 1
    return offsets
