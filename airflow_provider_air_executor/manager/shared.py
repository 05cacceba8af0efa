"""The state that the parts of a manager share."""

from __future__ import annotations

from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.job_files import JobFiles
from airflow_provider_air_executor.manager.job_writer import JobWriter
from airflow_provider_air_executor.manager.known_jobs import KnownJobs
from airflow_provider_air_executor.manager.ready_queue import ReadyQueue
from airflow_provider_air_executor.manager.settings import Settings
from airflow_provider_air_executor.manager.timers import Clock, Timers
from airflow_provider_air_executor.manager.troubles import FailJob, Guard, Troubles
from airflow_provider_air_executor.manager.turns import Turns


class Shared:
    """The objects that the parts of one manager share; each part takes those that it needs.

    :param fail_job: ends a job, by its name, on which a step has raised an unexpected error.
    """

    def __init__(self, store: JobStore, settings: Settings, engines: Engines, clock: Clock, fail_job: FailJob) -> None:
        self.store, self.settings, self.engines = store, settings, engines
        self.notifier = Notifier()
        self.timers = Timers(clock)
        self.troubles = Troubles(store, self.timers)
        self.guard = Guard(self.timers, self.troubles, fail_job)
        self.turns = Turns(fail_job)
        self.writer = JobWriter(store)
        self.files = JobFiles(store, self.writer, self.timers)
        self.jobs = KnownJobs(self.timers, self.turns)
        self.queue = ReadyQueue(engines.has_room, engines.holdings.capacity)
