"""Which jobs the manager knows: those it runs, those that have ended, and those whose files are not whole yet."""

from __future__ import annotations

from airflow_provider_air_executor.jobs import manager_info
from airflow_provider_air_executor.jobs.files import Stamp
from airflow_provider_air_executor.manager.active_job import ActiveJob
from airflow_provider_air_executor.manager.timers import Timers
from airflow_provider_air_executor.manager.turns import Turns

_GONE = "/gone"  # the key of work that drops jobs; no job can be called so


class KnownJobs:
    """The jobs of one base path, by their names."""

    def __init__(self, timers: Timers, turns: Turns) -> None:
        self._timers = timers
        self._turns = turns
        self.active: dict[str, ActiveJob] = {}
        self.ended: dict[str, Stamp | None] = {}  # and the stamp of the state.json that says so
        self.unsettled: dict[str, float] = {}  # and until when their writers may take to complete their files
        self.touched: set[str] = set()  # jobs that are to be published, or may start a task
        self.counters: dict[str, float] = dict.fromkeys(manager_info.COUNTERS, 0)  # what has happened to them

    def is_active(self, job: ActiveJob) -> bool:
        """Whether the manager still runs this job, and not another one of its name."""
        return self.active.get(job.name) is job

    def activate(self, job: ActiveJob) -> None:
        """The manager runs this job from now on."""
        self.unsettled.pop(job.name, None)
        self.ended.pop(job.name, None)
        self.active[job.name] = job

    def release(self, job: ActiveJob) -> None:
        """The manager does not run this job any more."""
        self.active.pop(job.name, None)  # to drop what reattaches it has released it already
        self._timers.cancel(job.name)
        self._turns.do(_GONE, job.dropping())

    def remember(self, name: str, stamp: Stamp | None) -> None:
        """A job has ended.

        :param stamp: the stamp of the ``state.json`` that says so; None if there is no such file.
        """
        self.unsettled.pop(name, None)
        self.ended[name] = stamp

    def forget(self, name: str) -> None:
        """There is no job of this name."""
        self.unsettled.pop(name, None)
        self.ended.pop(name, None)
