"""The attempts of this machine whose processes are not children of the manager."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable

from airflow_provider_air_executor.engines.local.attempt import LocalAttempt, ended_by
from airflow_provider_air_executor.engines.local.elsewhere import Elsewhere
from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.engines.shim import modified_at
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record, forbid, read_record
from airflow_provider_air_executor.jobs.models import utc_now
from airflow_provider_air_executor.system.processes import is_claimed_token, is_launcher, is_shim

_LOOK_SECONDS = 0.2  # between two looks
_UNWRITTEN_SECONDS = 2.0  # that a shim may take, after it has created its record, to write it


class Adopted:
    """Attempts whose processes are not children of the manager, so that it must look whether they are there.

    :param elsewhere: those whose processes cannot be seen from here.
    :param released: called when the process of one is gone, with its end.
    """

    def __init__(self, elsewhere: Elsewhere, released: Callable[[LocalAttempt, Ended], None]) -> None:
        self.elsewhere = elsewhere
        self._released = released
        self._attempts: dict[Attempt, LocalAttempt] = {}
        self._next_look = 0.0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._attempts or self.elsewhere)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there are none."""
        due = [self._next_look - time.monotonic()] if self._attempts else []
        return min([*due, *([] if (after := self.elsewhere.look_after) is None else [after])], default=None)

    def add(self, found: LocalAttempt, token: str = "") -> LocalAttempt:
        """Look after an attempt, which is returned.

        :param token: that of its record, if it has one.
        """
        if not self.elsewhere.add(found, token):
            self._attempts[found.attempt] = found
        return found

    def look(self) -> None:
        """Inspect which processes are gone, if it is time."""
        self.elsewhere.look()
        if not self._attempts or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        for attempt, found in list(self._attempts.items()):
            if is_shim(found.pid, found.token):
                continue
            # Read after it was gone: now it is final.
            try:
                record = None if found.is_detached else read_record(found.record_path)
                if record is not None and not record.is_over and is_claimed_token(found.token):
                    refuse_unwritten(found.record_path, record)
            except OSError:
                continue
            if record is not None and found.token != record.token and is_claimed_token(found.token):
                found.pid, found.token = record.pid, record.token  # it has begun
                continue
            del self._attempts[attempt]
            if record is None or not record.is_over:
                found.is_killed = True
                self._released(found, Ended(attempt, None, utc_now()))
            else:
                self._released(found, ended_by(attempt, record, modified_at(found.record_path)))


def record_of_killed(found: LocalAttempt) -> Record | None:
    """The record of an attempt that was killed before anybody had said whether it has a process.

    The fork server may have died between the fork and its word on it. If there is no record, there will be none.

    :raises OSError: if nothing is known now, or a process may have begun a moment ago.
    """
    record = None if found.is_detached else read_record(found.record_path)
    if record is None and not found.is_detached:
        try:
            forbid(found.record_path)
        except FileExistsError:
            refuse_unwritten(found.record_path, None)
        except OSError as error:
            if error.errno not in files.ABSENT:  # where none can be made, no process can make one either
                raise
    return record


def refuse_unwritten(path: str, record: Record | None) -> None:
    """Conclude nothing from a record that was made a moment ago and is not whole: it may be about to be written.

    :raises BlockingIOError: if it was.
    """
    if record is not None and not is_claimed_token(record.token):
        return
    if record is not None and is_launcher(record.pid):
        raise BlockingIOError(errno.EAGAIN, "a command of this attempt is being started", path)
    status = os.lstat(path)  # a shim makes a file, nothing else
    if stat.S_ISREG(status.st_mode) and abs(time.time() - status.st_mtime) < _UNWRITTEN_SECONDS:
        raise BlockingIOError(
            errno.EAGAIN, "the record of an attempt has just been created, and is not written yet", path
        )
