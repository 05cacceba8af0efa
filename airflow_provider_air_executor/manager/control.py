"""Obeys what users say to the manager itself, see :mod:`~airflow_provider_air_executor.jobs.manager_control`."""

from __future__ import annotations

import logging

from airflow_provider_air_executor.exceptions import CorruptFileError
from airflow_provider_air_executor.jobs import files, manager_control
from airflow_provider_air_executor.jobs.manager_control import Control
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.timers import RETRY_SECONDS

log = logging.getLogger("air_executor.manager")


class ControlReader:
    """Reads ``manager.control.json`` when it has changed."""

    def __init__(self, shared: Shared) -> None:
        self._store, self._engines = shared.store, shared.engines
        self._queue, self._timers = shared.queue, shared.timers
        self._is_known = False  # whether the file has been read, or is known not to be there
        self._next_try = 0.0  # on the monotonic clock
        self._stamp: files.Stamp | None = None
        self._control = Control()
        self.may_be_there = True  # whether the file may have changed

    def obey(self) -> None:
        """Pause, go on, or give runners other limits. A file that cannot be read now is read later.

        A manager that has not read it yet starts nothing: it may be paused.
        """
        if not self.may_be_there or self._timers.now() < self._next_try:
            return
        path = manager_control.path_of(self._store)
        try:
            stamp = files.stamp(path)
            if stamp != self._stamp or not self._is_known:
                self._apply(manager_control.read(self._store))
        except CorruptFileError as error:
            log.warning("%s; what was said before holds", error)
            self._queue.is_paused = self._control.paused
        except OSError as error:
            self._next_try = self._timers.now() + RETRY_SECONDS
            self._timers.wake(RETRY_SECONDS)
            if not self._is_known and not self._queue.is_paused:
                self._queue.is_paused = True
                log.warning("no task is started until it is known whether %s says so: %s", path.name, error)
            return
        self._stamp, self._is_known, self.may_be_there = stamp, True, False

    def _apply(self, control: Control) -> None:
        if self._is_known and control.refreshed != self._control.refreshed:
            self._engines.refresh()
        before, self._control = self._control, control
        self._queue.is_paused = control.paused
        self._engines.set_slots(control.slots)
        if control.paused != before.paused:
            log.info("the manager is paused" if control.paused else "the manager starts tasks again")
        if control.slots != before.slots:
            limits = ", ".join(f"{name}: {limit}" for name, (_, limit) in self._engines.slots.items())
            log.info("tasks at a time: %s", limits)
