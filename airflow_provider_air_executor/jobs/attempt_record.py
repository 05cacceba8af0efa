"""The record of an attempt, ``runs/<task id>.<attempt>``: who writes and reads one does it here.

The first line holds the runner's process id (for engines, a number of theirs), the time of the start and the runner's
token; the second one the exit code, and ``told`` if the runner has got SIGTERM meanwhile, or ``spawn`` and why the
command could not be started. Where to ask for the time would have cost a process, ``-`` stands for it: the attempt
started when its handle was written last. When it is over, and before the handle goes, the time is put there
(:func:`put_start`).

Whoever creates the file has the attempt (:func:`claim`); of two runners of the same one, the other gives up. Engines
that are a shell write the same lines themselves, see :mod:`~airflow_provider_air_executor.engines.shim`.

A record lies where the task may write, so it can hold anything. What is not a record in all its parts is none.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.jobs import files

SPAWN = "spawn "  # how the second line begins if the command could not be started

_BYTES = 8000  # of a record; a PATH may be long
_NOT_SAID = "-"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Its two lines; of what follows the last newline, which may be half a number, nothing is known.
_RECORD = re.compile(
    r"(\d{1,18}) (\S{1,64}) ([\w.-]{1,200})\n(?:(?:(-?\d{1,10})( told)?|" + SPAWN + r"([^\n]*))\n|[^\n]*\Z)", re.ASCII
)


class Record(NamedTuple):
    """What a runner has written about its attempt."""

    pid: int
    started_at: datetime | None  # aware; None: that is not known any more
    token: str
    exit_code: int | None  # None while it runs
    spawn_error: str | None = None  # why the command could not be started
    was_told: bool = False  # whether something has told the runner to end

    @property
    def is_over(self) -> bool:
        """Whether it says how the attempt has ended."""
        return self.exit_code is not None or self.spawn_error is not None

    @property
    def text(self) -> bytes:
        """What stands in the file."""
        started = _NOT_SAID if self.started_at is None else self.started_at.isoformat()
        lines = f"{self.pid} {started} {self.token}\n"
        if self.spawn_error is not None:
            lines += f"{SPAWN}{self.spawn_error}\n"
        elif self.exit_code is not None:
            lines += f"{self.exit_code}{' told' if self.was_told else ''}\n"
        return lines.encode(errors="replace")


def read_record(path: Path | str, handle_path: Path | None = None) -> Record | None:
    """What a runner has written so far; None if that is nothing, or not a record.

    :param handle_path: what was written last when the attempt started, if the record does not say when that was.
    :raises OSError: if it cannot be read now, so that nothing is known.
    """
    try:
        data = files.read_start(path, _BYTES)
    except OSError as error:
        if error.errno not in files.ABSENT:
            raise
        return None
    found = _RECORD.match(data.decode(errors="replace"))
    if found is None:
        return None
    pid, started, token, exit_code, told, spawn_error = found.groups()
    if started == _NOT_SAID:
        started_at = None if handle_path is None else _written_at(handle_path)
    else:
        try:
            started_at = datetime.fromisoformat(started)
            if started_at.tzinfo is None:
                return None
            started_at = started_at.astimezone(UTC)
        except (ValueError, OverflowError):
            return None
    return Record(
        int(pid), started_at, token, None if exit_code is None else int(exit_code), spawn_error, told is not None
    )


def claim(path: Path | str, record: Record) -> int:
    """Create a record, which makes the attempt that of whoever calls this.

    :return: a descriptor, to which the second line is to be written.
    :raises FileExistsError: if another one has the attempt.
    :raises OSError: if it cannot be written; then nobody has it.
    """
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        files.write_all(descriptor, record.text)
    except BaseException:
        os.close(descriptor)
        files.remove(path)
        raise
    return descriptor


def put_start(path: Path, record: Record) -> None:
    """Write into the record of an attempt that is over when that has started. Its own time stays: that of the end.

    :raises OSError: if it cannot be written.
    """
    if not record.is_over or record.started_at is None:
        return
    before = os.lstat(path)
    temporary, _ = files.write_beside(path, record.text, durable=False)
    try:
        os.utime(temporary, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.rename(temporary, path)
    except BaseException:
        files.remove(temporary)
        raise


def _written_at(path: Path) -> datetime | None:
    """When a handle was written last; None if it is gone.

    It is opened, since a network file system may keep for a minute what it knew of a file that nobody opens.
    """
    try:
        with files.open_file(path) as file:
            return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, tz=UTC)
    except OSError:
        return None
