"""The manager: runs the jobs of one base path on this machine."""

from __future__ import annotations

import contextlib
import logging
import os
import time

from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.active_job import Hold
from airflow_provider_air_executor.manager.attempts import Attempts
from airflow_provider_air_executor.manager.changes import Changes
from airflow_provider_air_executor.manager.control import ControlReader
from airflow_provider_air_executor.manager.info import InfoPublisher
from airflow_provider_air_executor.manager.intake import Intake
from airflow_provider_air_executor.manager.limits import Limits
from airflow_provider_air_executor.manager.metrics_server import MetricsServer
from airflow_provider_air_executor.manager.publishing import Publishing
from airflow_provider_air_executor.manager.recovery import Recovery
from airflow_provider_air_executor.manager.rejection import Rejection
from airflow_provider_air_executor.manager.requests import RequestHandler, Requests
from airflow_provider_air_executor.manager.retention import Retention
from airflow_provider_air_executor.manager.settings import Settings
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.telemetry import Telemetry
from airflow_provider_air_executor.manager.timers import Clock
from airflow_provider_air_executor.system import clock as system_clock

log = logging.getLogger("air_executor.manager")


class Manager:
    """Runs the jobs of one base path. There is one manager per base path, see :class:`ManagerLock`.

    :meth:`tick` is the table of contents; :class:`~.loop.Loop` calls it whenever something has happened.

    :param store: the job filesystem.
    :param settings: limits and intervals.
    :param engines: how tasks run.
    :param clock: which is asked for the time.
    """

    def __init__(self, store: JobStore, settings: Settings, engines: Engines, clock: Clock = time) -> None:
        shared = self.shared = Shared(store, settings, engines, clock, self._fail_job)
        limits = Limits(shared)
        self._limits = limits
        self._rejection = Rejection(shared, limits)
        self._attempts = Attempts(shared, limits, self._rejection)
        recovery = Recovery(shared, limits, self._attempts)
        intake = Intake(shared, recovery, self._rejection)
        handler = RequestHandler(shared, limits, recovery, intake, self._rejection)
        self._requests = Requests(shared, intake, handler)
        self._publishing = Publishing(shared, limits, intake)
        self._info = InfoPublisher(shared)
        self._control = ControlReader(shared)
        self._retention = Retention(shared, intake)
        self._exporters = self._make_exporters()
        self._unloaded: set[str] = set()  # jobs that were there when this manager began
        self.changes = Changes(shared, intake, self._requests, self._publishing, self._control)

    def _make_exporters(self) -> tuple[MetricsServer, Telemetry]:
        settings, base_path = self.shared.settings, self.shared.store.base_path

        def current() -> ManagerInfo | None:
            return self._info.latest

        server = MetricsServer(settings.metrics_address, base_path, current)
        return server, Telemetry(settings.metrics_otel, base_path, current)

    def _fail_job(self, name: str, error: Exception) -> None:
        self._rejection.fail(name, error)

    def recover(self) -> None:
        """Adopt the jobs of an earlier manager, and begin to watch.

        :raises OSError: if the base path cannot be used now.
        """
        store = self.shared.store
        system_clock.boot()  # read once, before it is needed in the midst of something
        store.create_directories()
        with contextlib.suppress(OSError):
            files.remove(store.problems_path)
            files.remove(store.not_replaced_path)
        with contextlib.suppress(OSError):
            for error in store.remove_abandoned():
                log.warning("%s", error)
        self.shared.guard.run(self.changes.accept)
        self._unloaded = self.shared.turns.busy
        self.shared.guard.run(self._requests.answer)
        self._retention.begin()
        for exporter in self._exporters:
            self.shared.guard.run(exporter.start)

    def tick(self) -> None:
        """Take all steps once."""
        for step in (
            self._attempts.reap,
            self.changes.accept,
            self._control.obey,
            self._requests.answer,
            self.shared.timers.expire,
            self.shared.turns.advance,
            self._launch,
            self._publishing.publish,
            self._info.publish_info,
            self.shared.engines.prepare,
        ):
            self.shared.guard.run(step)

    def _launch(self) -> None:
        """Start what can start, once it is known what an earlier manager's attempts leave of the room."""
        self._unloaded = {name for name in self._unloaded if self._is_being_loaded(name)}
        if not self._unloaded:
            self._attempts.launch()

    def _is_being_loaded(self, name: str) -> bool:
        job = self.shared.jobs.active.get(name)
        return self.shared.turns.is_busy(name) and (job is None or Hold.REATTACH in job.holds)

    def close(self, *, is_ours: bool = True) -> None:
        """Write the states of all jobs, unless another manager has taken over. Attempts go on."""
        shared, job_files = self.shared, self.shared.files
        if is_ours:
            self._attempts.settle()
        for job in list(shared.jobs.active.values()):
            shared.turns.drop(job.name)
            with contextlib.suppress(Exception):
                if is_ours and shared.jobs.is_active(job) and finish(job_files.merging_external_edits(job)):
                    finish(job_files.snapshotting(job))
        if is_ours:
            with contextlib.suppress(OSError):
                files.remove(shared.store.problems_path)
        for exporter in self._exporters:
            exporter.close()
        shared.engines.close()
        shared.notifier.close()
        running = sum(len(job.running) for job in shared.jobs.active.values()) + len(self._limits.strays)
        if running:
            log.info("manager %d leaves %d tasks running; the next one adopts them", os.getpid(), running)
