"""Attempts whose processes are on another machine, or in another container: they cannot be seen or ended from here.

Their manager was killed, or has lost its lease. As soon as they end, their records say how. Until then they count as
alive as long as something is seen of them: their log grows, or the time is not over after which a machine of which
nothing is seen counts as lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from airflow_provider_air_executor.engines.local.attempt import LocalAttempt, ended_by
from airflow_provider_air_executor.engines.protocol import Attempt, Ended, Located
from airflow_provider_air_executor.engines.shim import modified_at
from airflow_provider_air_executor.jobs import files, manager_lease
from airflow_provider_air_executor.jobs.attempt_record import Record, read_record
from airflow_provider_air_executor.jobs.manager_lease import Lease
from airflow_provider_air_executor.jobs.models import Reason, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system import clock, mounts
from airflow_provider_air_executor.system.processes import space, space_of

log = logging.getLogger("air_executor.manager")

HOST_SECONDS = 300.0  # without a sign of life, after which the machine of an attempt counts as lost
_LOOK_SECONDS = 1.0  # between two looks


@dataclass(eq=False, slots=True)
class _Followed:
    """An attempt, and what was seen of it last."""

    found: LocalAttempt
    host: str
    log: files.Stamp | None
    seen: float  # when that was, on the monotonic clock


class Elsewhere:
    """Follows such attempts by what they write.

    :param emit: called when it is known where one is.
    :param released: called with the end of one.
    :param seconds: without a sign of life, after which one counts as lost.
    """

    def __init__(
        self,
        store: JobStore,
        emit: Callable[[Located], None],
        released: Callable[[LocalAttempt, Ended], None],
        seconds: float,
    ) -> None:
        self._store = store
        self._emit = emit
        self._released = released
        self._seconds = seconds
        self._followed: dict[Attempt, _Followed] = {}
        self._next_look = 0.0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._followed)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there are none."""
        return self._next_look - time.monotonic() if self._followed else None

    def host_of(self, token: str) -> str:
        """The host where the process with a token may be alive; empty if it would be seen here, or is certainly gone.

        It is gone if its host has been started anew since, or if nobody else can have the file system.
        """
        its_space = space_of(token)
        if its_space in ("", space()):
            return ""
        try:
            leases = [manager_lease.read(self._store, term) for term in manager_lease.terms(self._store)]
        except OSError:
            leases = []
        return _host(its_space, leases, is_shared=mounts.may_be_shared(self._store.base_path))

    def add(self, found: LocalAttempt, token: str) -> str:
        """Follow an attempt if its process is elsewhere: its host then, otherwise nothing."""
        host = self.host_of(token)
        if host:
            self._followed[found.attempt] = _Followed(found, host, self._log_of(found), time.monotonic())
            self._emit(Located(found.attempt, f"{host}, where this manager cannot see it"))
            log.warning(
                "task %s of job %s runs on %s, where this manager cannot see it: its end is awaited",
                found.attempt.task_id,
                found.attempt.job_name,
                host,
            )
        return host

    def drop(self, found: LocalAttempt) -> bool:
        """Follow an attempt no longer; False if it was not followed."""
        return self._followed.pop(found.attempt, None) is not None

    def look(self) -> None:
        """Inspect what they have written, if it is time."""
        now = time.monotonic()
        if not self._followed or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        for attempt, followed in list(self._followed.items()):
            with contextlib.suppress(OSError):
                end = self._end_of(followed, now)
                if end is not None:
                    del self._followed[attempt]
                    self._released(followed.found, end)

    def _end_of(self, followed: _Followed, now: float) -> Ended | None:
        """How one has ended; None if it may be alive.

        :raises OSError: if that cannot be known now.
        """
        found = followed.found
        record: Record | None = None if found.is_detached else read_record(found.record_path)
        if record is not None and record.is_over:
            return ended_by(found.attempt, record, modified_at(found.record_path))
        stamp = self._log_of(found)
        if stamp != followed.log:
            followed.log, followed.seen = stamp, now
        if now - followed.seen < self._seconds:
            return None
        error = f"it ran on {followed.host}, of which nothing was seen for {self._seconds:g} s"
        return Ended(found.attempt, None, utc_now(), reason=Reason.LOST, error=error)

    def _log_of(self, found: LocalAttempt) -> files.Stamp | None:
        """The stamp of its log; None if it has none."""
        return files.current_stamp(self._store.paths(found.attempt.job_name).log(found.attempt.task_id))


def _host(its_space: str, leases: list[Lease], *, is_shared: bool) -> str:
    """The host where processes of a space may be alive; empty if there is none."""
    of_space = [lease for lease in leases if lease.space == its_space]
    if not of_space or not (is_shared or of_space[-1].is_shared):
        return ""
    last = of_space[-1]
    boots = {lease.place.boot for lease in leases if lease.host == last.host and lease.term >= last.term}
    if last.host == os.uname().nodename:
        boots.add(clock.boot())
    return "" if boots - {last.place.boot} else last.host
