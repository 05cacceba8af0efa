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
        self.glanced_at: set[str] = set()  # those of them of whose state.json nothing else is known yet
        self.unsettled: dict[str, float] = {}  # and until when their writers may take to complete their files
        self.touched: set[str] = set()  # jobs that are to be published, or may start a task
        self.counters: dict[str, float] = dict.fromkeys(manager_info.COUNTERS, 0)  # what has happened to them

    def is_active(self, job: ActiveJob) -> bool:
        """Whether the manager still runs this job, and not another one of its name."""
        return self.active.get(job.name) is job

    def activate(self, job: ActiveJob) -> None:
        """The manager runs this job from now on."""
        self.forget(job.name)
        self.active[job.name] = job

    def release(self, job: ActiveJob) -> None:
        """The manager does not run this job any more."""
        self.active.pop(job.name, None)  # to drop what reattaches it has released it already
        self._timers.cancel(job.name)
        self._turns.do(_GONE, job.dropping())

    def remember(self, name: str, stamp: Stamp | None, *, is_read: bool = True) -> None:
        """A job has ended.

        :param stamp: the stamp of the ``state.json`` that says so; None if there is no such file.
        :param is_read: whether all of that file is known to be valid.
        """
        self.forget(name)
        self.ended[name] = stamp
        if not is_read:
            self.glanced_at.add(name)

    def has_ended(self, name: str, stamp: Stamp | None) -> bool:
        """Whether a job is known to have ended, with this ``state.json``, of which nothing remains to be read."""
        return name in self.ended and name not in self.glanced_at and stamp == self.ended[name]

    def forget(self, name: str) -> None:
        """There is no job of this name, as far as is known."""
        self.unsettled.pop(name, None)
        self.glanced_at.discard(name)
        self.ended.pop(name, None)
