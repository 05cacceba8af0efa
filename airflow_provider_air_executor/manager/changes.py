"""Changes in the job filesystem: notifications of the system, and a slow pass over everything."""

from __future__ import annotations

import time

from airflow_provider_air_executor.jobs import bell, files
from airflow_provider_air_executor.jobs.paths import STATE, TASKS
from airflow_provider_air_executor.manager.control import ControlReader
from airflow_provider_air_executor.manager.intake import Intake
from airflow_provider_air_executor.manager.publishing import Publishing
from airflow_provider_air_executor.manager.requests import Requests
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.timers import RETRY_SECONDS

_JOBS, _INBOX = "/jobs", "/inbox"  # keys of the notifier; no job can be called so
_CHECKED_A_PASS = 200  # ended jobs inspected in one slow pass, so that it does not grow with the history
_PASS_SHARE = 150  # a pass that lists all jobs each time may take one part of so many of the time
_SETTLED_NS = 2_000_000_000  # after which another change of a directory gives it another time stamp


class Changes:
    """Has jobs inspected that were submitted or changed, and requests answered."""

    def __init__(
        self, shared: Shared, intake: Intake, requests: Requests, publishing: Publishing, control: ControlReader
    ) -> None:
        self._store, self._notifier, self._jobs = shared.store, shared.notifier, shared.jobs
        self._timers, self._guard = shared.timers, shared.guard
        self._poll_interval = shared.settings.poll_interval
        self._intake, self._publishing = intake, publishing
        self._inbox_readers = requests, control
        self._slow_pass = SlowPass(shared, intake)
        self.next_pass = 0.0  # when everything is inspected next, on the monotonic clock
        self.is_notified = True  # whether there may be notifications to read

    def accept(self) -> None:
        """Inspect the jobs that have changed, and all of them if it is time or notifications were lost."""
        changes, lost = self._notifier.read() if self.is_notified else (set(), False)
        for key, _ in (change for change in changes if not change.name and change.key in self._jobs.active):
            self._publishing.abandon(self._jobs.active[key])
        for key, name in changes:
            if key == _INBOX:
                self._inbox_has_changed()
            elif key == _JOBS:
                self._intake.inspect(name)
            elif name in (STATE, TASKS):
                self._intake.inspect(key)
        self._slow_pass.has_missed_some |= lost
        if lost or self._timers.now() >= self.next_pass or self._slow_pass.is_called_for():
            # Again and again, since it may not have worked.
            self._notifier.add(_JOBS, self._store.jobs_path)
            self._notifier.add(_INBOX, self._store.inbox_path)
            began = time.thread_time()
            is_done = self._guard.run(self._slow_pass.inspect_everything)
            pause = self._poll_interval if is_done else min(RETRY_SECONDS, self._poll_interval)
            if self._slow_pass.listens:  # so that it hears of what is new meanwhile
                pause = max(pause, _PASS_SHARE * (time.thread_time() - began))
            self.next_pass = self._timers.now() + pause
            self._inbox_has_changed()
        elif not self._notifier.works:
            self._inbox_has_changed()

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`accept` must be called although nothing is due; None: never."""
        return bell.SECONDS if self._slow_pass.listens else None

    def _inbox_has_changed(self) -> None:
        for reader in self._inbox_readers:
            reader.may_be_there = True


class SlowPass:
    """Finds changes without a notification: new jobs, changes of jobs that run, and of some that have ended."""

    def __init__(self, shared: Shared, intake: Intake) -> None:
        self._store, self._jobs, self._clock = shared.store, shared.jobs, shared.timers.clock
        self._intake = intake
        self._listed: files.Stamp | None = None  # the jobs/ directory when it was listed last
        self._has_begun = False
        self._rotation: list[str] = []  # ended jobs that are still to be inspected
        self.has_missed_some = False  # whether notifications were lost, since there were too many
        self._bell: bell.Listener | None = None

    @property
    def listens(self) -> bool:
        """Whether other machines say by a bell that there is something new."""
        return self._bell is not None

    def is_called_for(self) -> bool:
        """Whether another machine has said that there is something new."""
        return self._bell is not None and self._bell.has_rung()

    def inspect_everything(self) -> None:
        """Inspect new jobs, those that run, and some that have ended; all of these if notifications were lost.

        A manager that begins finds many that have ended, and glances at each. They are read when it is their turn.
        """
        if not self._has_begun:
            self._bell = bell.listener(self._store.base_path, bell.MANAGER)
        self._has_begun = True
        listed = files.stamp(self._store.jobs_path)
        if listed != self._listed or listed is None or self._may_change_unseen(listed):
            names = self._store.job_names()
            for name in self._jobs.ended.keys() - set(names):
                self._intake.forget(name)
            for name in names:
                if name not in self._jobs.ended and not self._intake.glance_at(name):
                    self._intake.inspect(name)
            self._listed = listed
        for name in list(self._jobs.active):
            self._intake.inspect(name)
        if self.has_missed_some or not self._rotation:
            self._rotation = list(self._jobs.ended)
        number = len(self._rotation) if self.has_missed_some else _CHECKED_A_PASS
        for _ in range(min(number, len(self._rotation))):
            self._intake.inspect(self._rotation.pop())
        self.has_missed_some = False

    def _may_change_unseen(self, listed: files.Stamp) -> bool:
        """Whether the directory may have another job although its stamp is the same.

        One that was changed a moment ago may change again without a new time stamp. A network file system shows the
        stamp that it had some time ago.
        """
        return self.listens or self._clock.time_ns() - listed.mtime_ns < _SETTLED_NS
