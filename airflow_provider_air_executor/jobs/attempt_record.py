"""The record of an attempt, ``runs/<task id>.<attempt>``: this module reads and writes it.

The first line holds the process id of the shim (or a number of the engine), the time of the start and the token of the
shim; the second one the exit code, and ``told`` if the shim has got SIGTERM meanwhile, or ``spawn`` and why the
command could not be started. Where to ask for the time would have cost a process, ``-`` stands for it: the attempt
started when its handle was written last. When it is over, and before the handle goes, the time is put there
(:func:`put_start`).

What the attempt has used may follow: a line ``memory`` and how many bytes at most, and lines of processor time as the
command ``times`` of a shell prints them, those of the shell and those of its children. Readers may pass it over.

The shim that creates the file runs the attempt (:func:`claim`); another one of the same attempt ends. A shell writes
the same lines itself, see :mod:`~airflow_provider_air_executor.engines.shim`.

The task may write to the directory of records, so the file can hold anything. It counts as a record only if all of it
is valid.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
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
    r"(0{0,80}\d{1,18}) (\S{1,64}) ([\w.-]{1,200})\n"
    r"(?:(?:(-?\d{1,10})( told)?|" + SPAWN + r"([^\n]*))\n|[^\n]*\Z)",
    re.ASCII,
)
_USED = re.compile(
    r"(?:memory (\d{1,18})\n)?((?:\d{1,9}m\d{1,9}[.,]\d{1,9}s \d{1,9}m\d{1,9}[.,]\d{1,9}s\n){1,2})", re.ASCII
)


class Used(NamedTuple):
    """What an attempt has used, as its record says it."""

    cpu_seconds: float
    max_memory: int | None = None  # bytes; None: that is not known

    @property
    def text(self) -> str:
        """The lines of the record."""
        memory = "" if self.max_memory is None else f"memory {self.max_memory}\n"
        return f"{memory}0m{max(0.0, self.cpu_seconds):.3f}s 0m0.000s\n"


class Record(NamedTuple):
    """The content of a record."""

    pid: int
    started_at: datetime | None  # aware; None: that is not known any more
    token: str
    exit_code: int | None  # None while it runs
    spawn_error: str | None = None  # why the command could not be started
    got_sigterm: bool = False  # whether the shim has got SIGTERM meanwhile
    used: Used | None = None

    @property
    def is_over(self) -> bool:
        """Whether it says how the attempt has ended."""
        return self.exit_code is not None or self.spawn_error is not None

    @property
    def text(self) -> bytes:
        """The content of the file."""
        started = _NOT_SAID if self.started_at is None else self.started_at.isoformat()
        lines = f"{self.pid} {started} {self.token}\n"
        if self.spawn_error is not None:
            lines += f"{SPAWN}{self.spawn_error}\n"
        elif self.exit_code is not None:
            lines += f"{self.exit_code}{' told' if self.got_sigterm else ''}\n{self.used.text if self.used else ''}"
        return lines.encode(errors="replace")


def read_record(path: Path | str, handle_path: Path | None = None) -> Record | None:
    """Read a record; None if there is none, or it is not valid.

    :param handle_path: the handle, whose time of modification is that of the start if the record has none.
    :raises OSError: if it cannot be read now, so that nothing is known.
    """
    try:
        data = files.read_start(path, _BYTES)
    except OSError as error:
        if error.errno not in files.ABSENT:
            raise
        return None
    text = data.decode(errors="replace")
    found = _RECORD.match(text)
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
        pid=int(pid),
        started_at=started_at,
        token=token,
        exit_code=None if exit_code is None else int(exit_code),
        spawn_error=spawn_error,
        got_sigterm=told is not None,
        used=None if exit_code is None else _used(text[found.end() :]),
    )


def _used(text: str) -> Used | None:
    """What the lines after the end of an attempt say that it has used."""
    found = _USED.match(text)
    return None if found is None else used_of_times(found[2].split(), found[1])


def used_of_times(times: Iterable[str], memory: str | None = None) -> Used:
    """What a shell says that it and its children have used.

    :param times: as its command ``times`` prints them: ``0m1.250s``, in some languages ``0m1,250s``.
    :param memory: the most bytes of memory, if that is known.
    :raises ValueError: if they are no such words.
    """
    seconds = 0.0
    for word in times:
        minutes, _, rest = word.partition("m")
        seconds += 60 * int(minutes) + float(rest.removesuffix("s").replace(",", "."))
    return Used(round(seconds, 3), None if memory is None else int(memory))


def claim(path: Path | str, record: Record) -> int:
    """Create a record: the attempt belongs to the caller then; see :func:`claim_with`."""
    return claim_with(path, record.text)


def claim_with(path: Path | str | bytes, line: bytes) -> int:
    """Create a record.

    :param line: its first one, which may begin with zeros.
    :return: a descriptor, to which the second line is to be written.
    :raises FileExistsError: if another one has the attempt.
    :raises OSError: if it cannot be written; then the attempt is not claimed.
    """
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        files.write_all(descriptor, line)
    except BaseException:
        os.close(descriptor)
        files.remove(path)
        raise
    return descriptor


def forbid(path: Path | str) -> None:
    """Create an empty record: nobody can claim the attempt any more.

    :raises FileExistsError: if one has done so.
    :raises OSError: if it cannot be created.
    """
    os.close(os.open(path, _FLAGS, 0o600))


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

    It is opened, since a network file system may cache for a minute the attributes of a file that is not opened.
    """
    try:
        with files.open_file(path) as file:
            return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, tz=UTC)
    except OSError:
        return None
