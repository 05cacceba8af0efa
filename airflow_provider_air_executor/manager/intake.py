"""How jobs come in: their files are read when something about them has changed, and they are activated or rejected."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

from airflow_provider_air_executor.exceptions import CorruptFileError, InvalidJobError, JobNotFoundError
from airflow_provider_air_executor.jobs import files, glance
from airflow_provider_air_executor.jobs.models import Job, JobState
from airflow_provider_air_executor.jobs.pieces import Pieces
from airflow_provider_air_executor.manager.recovery import Recovery
from airflow_provider_air_executor.manager.rejection import Rejection
from airflow_provider_air_executor.manager.shared import Shared
from airflow_provider_air_executor.manager.troubles import Step

log = logging.getLogger("air_executor.manager")


class Intake:
    """Inspects jobs, and loads those that are to be run."""

    def __init__(self, shared: Shared, recovery: Recovery, rejection: Rejection) -> None:
        self._store, self._writer, self._files = shared.store, shared.writer, shared.files
        self._jobs, self._notifier = shared.jobs, shared.notifier
        self._timers, self._troubles, self._turns = shared.timers, shared.troubles, shared.turns
        self._poll_interval = shared.settings.poll_interval
        self._recovery, self._rejection = recovery, rejection
        self._inspect_again: set[str] = set()  # jobs that have changed while they were inspected

    def inspect(self, name: str) -> None:
        """Read a job again if it has changed; one that is active is compared with its files when it is published."""
        if name in self._jobs.active:
            self._jobs.active[name].on_disk.may_have_changed = True
            self._jobs.touched.add(name)
            return
        if self._turns.is_busy(name):
            self._inspect_again.add(name)
            return
        if self._troubles.is_waiting(name, Step.LOAD) or self._troubles.is_waiting(name, Step.END):
            return
        try:
            path = self._store.paths(name).state
        except InvalidJobError:
            if not name.startswith("."):
                log.warning("jobs/%s is passed over: no job can be called so", ascii(name))
            return
        self._turns.do(name, self.inspecting(name, path))

    def glance_at(self, name: str) -> bool:
        """Whether a job that is not known has plainly ended: all else that is said of it can be read later.

        :param name: that of a directory, which is no symbolic link.
        """
        if name in self._jobs.active or name in self._jobs.unsettled or self._turns.is_busy(name):
            return False
        directory = f"{self._store.jobs_path}/{name}"  # as text: to join paths takes ten times as long
        self._notifier.add(name, directory)  # before it is read, so that no change is missed
        stamp = glance.ended(directory, name)
        if stamp is None:
            return False
        self._jobs.remember(name, stamp, is_read=False)
        return True

    def inspecting(self, name: str, path: Path, *, is_settled: bool = False) -> Pieces[None]:
        """The same in pieces, for a job that is not active.

        :param path: of its ``state.json``.
        :param is_settled: whether its files are known to belong together.
        """
        try:
            if name in self._jobs.ended:
                if self._jobs.has_ended(name, files.stamp(path)):
                    return
            elif path.parent.is_symlink():
                log.warning("jobs/%s is passed over: it is a symbolic link", name)
                return
            self._notifier.add(name, path.parent)  # before it is read, so that no change is missed
            yield from self._loading(name, is_settled=is_settled)
            self._troubles.over(name, Step.LOAD)
        except OSError as error:
            self._jobs.unsettled.setdefault(name, 0.0)  # there is something to do
            self._troubles.met(name, Step.LOAD, error, partial(self.inspect, name))
        finally:
            if name in self._inspect_again:
                self._inspect_again.discard(name)
                self._timers.after(0, partial(self.inspect, name))

    def _loading(self, name: str, *, is_settled: bool) -> Pieces[None]:
        try:
            job, stamp = self._store.load_job(name)
            if job.name != name:
                error = f"state.json names the job {job.name!r}, its directory {name!r}"
                self._rejection.reject(job.evolve(name=name), error)
            elif job.state.is_terminal:
                self._jobs.remember(name, stamp)
            else:
                yield from self._activating(job, is_settled=is_settled)
        except JobNotFoundError:
            self.forget(name)
        except CorruptFileError as error:
            self._wait_until_whole(name, error)
        except InvalidJobError as error:
            self._rejection.reject(job, str(error))

    def _activating(self, job: Job, *, is_settled: bool) -> Pieces[None]:
        loaded = yield from self._files.loading(job)
        if job.state is JobState.WAITING and not loaded.on_disk.all_pending and not job.keep_failed:
            # Set to waiting by hand. The list may be that of an earlier run, and a new one still to be written.
            if not is_settled and not self._has_settled(job.name):
                return
            loaded = yield from self._files.resetting(loaded)  # what has not completed is meant to run again
        yield from self._recovery.reattaching(loaded)

    def forget(self, name: str) -> None:
        """There is no job of this name."""
        self._jobs.forget(name)
        self._notifier.remove(name)
        self._troubles.over(name)

    def _has_settled(self, name: str) -> bool:
        """Whether a job whose files are not whole has been given the time that its writer may take."""
        until = self._jobs.unsettled.get(name)
        if not until:
            until = self._jobs.unsettled[name] = self._timers.now() + self._poll_interval
            self._timers.after(self._poll_interval, partial(self.inspect, name))
        return self._timers.now() >= until

    def _wait_until_whole(self, name: str, error: CorruptFileError) -> None:
        """A file of a job is missing or half-written: give its writer some time, then reject the job."""
        if not self._has_settled(name):
            return
        if error.path != self._store.paths(name).state:
            self._rejection.reject(self._store.load_job(name)[0], str(error))
        elif files.stamp(error.path) is None:  # it is no job yet
            self._jobs.remember(name, None)
        else:
            self._writer.quarantine(error.path)
            self._rejection.reject_unreadable(name, str(error))
