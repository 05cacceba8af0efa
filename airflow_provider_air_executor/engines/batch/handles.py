"""The handle of an attempt: the script that the batch system runs, with the token by which the system knows it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_provider_air_executor.engines.batch.attempt import BatchedAttempt
from airflow_provider_air_executor.engines.batch.dialect import Dialect, Submission
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.engines.shim import script_elsewhere
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record, put_start, read_record
from airflow_provider_air_executor.jobs.models import printable
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.environment import RUN_VARIABLE, VARIABLE

_FIRST_LINE = "# air-executor "
_HANDLE_BYTES = 100_000


class Handles:
    """The handles in a job filesystem, from before an attempt is submitted until its end was emitted."""

    def __init__(self, dialect: Dialect, store: JobStore) -> None:
        self._dialect = dialect
        self._store = store
        self._old: dict[Path, tuple[str, Record | None]] = {}  # of what has ended; the record and its path

    @property
    def has_old(self) -> bool:
        """Whether :meth:`remove_old` has something to do."""
        return bool(self._old)

    def make(
        self, attempt: Attempt, token: str, options: Mapping[str, str], seconds: float | None = None
    ) -> BatchedAttempt:
        """An attempt that is to be submitted, or was.

        :param seconds: that it may take.
        """
        job_name, task_id, number = attempt[:3]
        paths = self._store.paths(job_name)
        record_path, handle_path = paths.record(task_id, number), paths.handle(task_id, number, self._dialect.NAME)
        name = printable(f"{job_name}/{task_id}")
        submission = Submission(token, name, str(handle_path), str(paths.log(task_id)), options, seconds)
        return BatchedAttempt(attempt, self._dialect.TITLE, token, str(record_path), handle_path, submission)

    def write(self, found: BatchedAttempt, script: bytes) -> None:
        """Write a handle.

        :raises OSError: if it cannot be written.
        """
        files.publish(found.handle_path, script)
        self._old.pop(found.handle_path, None)  # of a removed job of the same name

    def read(self, attempt: Attempt) -> tuple[BatchedAttempt | None, Record | None]:
        """The handle and the record of an attempt of an earlier manager.

        :raises OSError: if they cannot be read now.
        """
        empty = self.make(attempt, "", {})
        token, options = read_handle(self._dialect, empty.handle_path)
        record = read_record(empty.record_path, empty.handle_path)
        return None if token is None else self.make(attempt, token, options), record

    def leave(self, found: BatchedAttempt, record: Record | None) -> None:
        """The attempt is over, and its handle may go."""
        if not found.is_detached:
            self._old[found.handle_path] = found.record_path, record

    def remove_old(self) -> None:
        """Remove the handles of attempts that have ended, since they contain their environments.

        The time of the start, which is that of the handle, is written into the record first.
        """
        while self._old:
            handle_path, (record_path, record) = self._old.popitem()
            with contextlib.suppress(OSError):
                if record is not None:
                    put_start(Path(record_path), record)
            with contextlib.suppress(OSError):
                handle_path.unlink(missing_ok=True)


def make_script(
    dialect: Dialect,
    token: str,
    options: Mapping[str, str],
    environment: Mapping[str, str],
    record_path: str,
    words: Sequence[str],
) -> bytes:
    """The script that a node runs. :func:`read_handle` reads its first line.

    :param words: the log, the directory to run in, and the command with its arguments.
    """
    # The system writes what a shell says into the task's log, also that the node has not the locale that is set below.
    lines = [f"{_FIRST_LINE}{token} {json.dumps(options)}", "exec 2>/dev/null"]
    for name, value in {**environment, RUN_VARIABLE: token}.items():
        if VARIABLE.fullmatch(name) and dialect.is_exported(name):
            lines.append(f"export {name}={shlex.quote(value)}")
    # The time of the handle becomes that of the start. To ask `date` would double what the script costs, and the clock
    # of a node may differ from that of the file system, by which the end is known.
    begin = f'echo >> "$1.on-{dialect.NAME}"'
    lines.append(script_elsewhere(dialect.IDENTITY, begin, dialect.GROUP, environment))
    lines.append(f"run {shlex.quote(record_path)} - {shlex.join(words)}")
    return os.fsencode("\n".join(lines) + "\n")


def read_handle(dialect: Dialect, path: Path) -> tuple[str | None, dict[str, str]]:
    """The token of an attempt that was handed over, and the options; no token if there is no such handle.

    :raises OSError: if it cannot be read now.
    """
    try:
        with files.open_file(path) as file:
            line = (file.read(_HANDLE_BYTES) or b"").partition(b"\n")[0].decode()
        token, options = line.removeprefix(_FIRST_LINE).split(" ", 1)
        return token, dialect.check_options(json.loads(options))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in files.ABSENT:
            raise
        return None, {}
