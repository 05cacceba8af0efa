"""A lock that this process holds by a lease of the server, which ends by itself if the process does."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from types import TracebackType

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.remote.link import Link
from airflow_provider_air_executor.remote.outage import chance
from airflow_provider_air_executor.remote.protocol import LockedError
from airflow_provider_air_executor.remote.transport import url_path

log = logging.getLogger(__name__)

_RENEWAL_SECONDS = 3.0  # of the ten that the lease lasts
_PAUSE_SECONDS = 0.5  # between two tries, about


class Lease:
    """Holds a lock within; waits for it before. It can be entered once.

    :param what: a word for what is locked.
    """

    def __init__(self, link: Link, what: str) -> None:
        self._link = link
        self._path = url_path("locks", what)
        self._holder = os.urandom(16).hex()
        self._is_over = threading.Event()
        self._renewal = threading.Thread(target=self._renew, name="air-executor-lease", daemon=True)

    def __enter__(self) -> None:
        while not self._take():
            time.sleep(chance.uniform(0.5, 1.5) * _PAUSE_SECONDS)
        self._renewal.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._renewal.join()
        with contextlib.suppress(AirExecutorError, OSError):  # it ends by itself
            self._link.delete(self._path, holder=self._holder)

    def _take(self, link: Link | None = None) -> bool:
        """Take the lock, or hold it for longer; False if somebody else has it."""
        try:
            (link or self._link).send("PUT", self._path, {}, holder=self._holder)
        except LockedError:
            return False
        return True

    def _renew(self) -> None:
        renewing = Link(self._link.transport, _RENEWAL_SECONDS)
        while not self._is_over.wait(_RENEWAL_SECONDS):
            try:
                if not self._take(renewing):
                    log.warning("a lock of %s was lost, since its server was away for too long", self._link.where)
            except (AirExecutorError, OSError) as error:
                log.warning("a lock of %s cannot be held: %s", self._link.where, error)
