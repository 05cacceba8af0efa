"""The files of the jobs that the manager runs: they are read once, published, and merged with what others write."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path

from airflow_provider_air_executor.exceptions import CorruptFileError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, checking_task_list, printable
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces, dropping
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.active_job import ActiveJob, OnDisk
from airflow_provider_air_executor.manager.job_writer import JobWriter
from airflow_provider_air_executor.manager.schedule import outcome, resetting
from airflow_provider_air_executor.manager.timers import Timers


class JobFiles:
    """Reads and publishes active jobs.

    ``tasks.json`` is a snapshot of the tasks in memory, to which a running task may append; see
    :meth:`merging_external_edits`.
    """

    def __init__(self, store: JobStore, writer: JobWriter, timers: Timers) -> None:
        self._store, self._writer, self._timers = store, writer, timers

    def loading(self, job: Job) -> Pieces[ActiveJob]:
        """Read the tasks of a job that is to be run, and make its directories where they are missing.

        :raises CorruptFileError: if ``tasks.json`` cannot be read; it may be half-written.
        :raises InvalidJobError: if the tasks cannot be run.
        """
        self._writer.prepare_job_directory(job)
        paths = self._store.paths(job.name)
        directory = files.stamp(paths.directory)
        tasks, stamp = yield from self._store.loading_task_list(job.name, paths.tasks)
        yield from checking_task_list(tasks)
        loaded = ActiveJob(job, OnDisk(job, directory, stamp))
        yield from loaded.taking(tasks)
        return loaded

    def resetting(self, job: ActiveJob) -> Pieces[ActiveJob]:
        """Publish the job with all tasks pending again that have not completed, and drop the given one."""
        tasks = yield from resetting(tuple(job.tasks.values()))
        stamp = yield from self._writer.resetting_tasks(job.name, tasks)
        found = ActiveJob(job.job, OnDisk(job.job, job.on_disk.directory, stamp))
        yield from found.taking(tasks)
        yield from job.dropping()
        return found

    def is_in_place(self, job: ActiveJob) -> bool:
        """Whether the directory of the job is still there, and not that of another job of its name."""
        found, known = files.stamp(self._store.paths(job.name).directory), job.on_disk.directory
        return found is not None and known is not None and found.inode == known.inode

    def publish_state(self, job: ActiveJob) -> None:
        """Publish ``state.json`` while the job has not ended; :meth:`finalizing` publishes its end."""
        job.on_disk.state, job.on_disk.job = self._writer.write_job(job.job), job.job

    def snapshotting(self, job: ActiveJob) -> Pieces[None]:
        """Publish ``tasks.json``, after the state of the job: while it waits, no task can have been started."""
        began = time.perf_counter()
        if job.state_is_changed:
            self.publish_state(job)
        # A task that changes meanwhile may be in it or not, and is in the next one. A copy would take as long as a
        # whole piece of work, and longer to drop. Nothing can be added: work on one job is done one after the other.
        job.is_dirty = False
        try:
            _replaced(job, *(yield from self._writer.writing_tasks(job.name, job.tasks.values())))
        except BaseException:
            job.is_dirty = True
            raise
        job.on_disk.may_have_changed = True  # what it has replaced is to be read before the next one
        job.on_disk.snapshot_seconds = time.perf_counter() - began

    def merging_external_edits(self, job: ActiveJob) -> Pieces[bool]:
        """Add the tasks that another process has appended to ``tasks.json``, be it the present one or the one before.

        :return: False if the file is half-written, so that it must be read again.
        :raises InvalidJobError: if the tasks do not fit.
        """
        disk = job.on_disk
        for path, known in self._known(job):
            found = files.stamp(path)
            if found == known:
                continue
            if found is None:  # it was removed; ours is written again
                self._has_read(job, path, None)
                continue
            try:
                tasks, stamp = yield from self._store.loading_task_list(job.name, path)
            except CorruptFileError:
                disk.unreadable_since = disk.unreadable_since or self._timers.now()
                return False
            self._has_read(job, path, stamp)
            added = []
            for number, task in enumerate(tasks, 1):
                if task.id not in job.tasks:
                    added.append(task)
                if not number % ITEMS:
                    yield False
            if added:
                yield from job.adding(added)
            yield from dropping(added)
            yield from dropping(tasks)
        disk.unreadable_since = None
        return True

    def discarding_external_edits(self, job: ActiveJob) -> Pieces[None]:
        """Quarantine a ``tasks.json`` that is corrupt, and publish our own."""
        for path, known in self._known(job):
            if files.stamp(path) != known:
                self._writer.quarantine(path)
        disk = job.on_disk
        disk.tasks = disk.previous_tasks = disk.unreadable_since = None
        job.is_dirty = True
        yield from self.snapshotting(job)

    def _known(self, job: ActiveJob) -> tuple[tuple[Path, files.Stamp | None], ...]:
        """The lists of the job's tasks, and the stamp of each when it was read or written last."""
        paths, disk = self._store.paths(job.name), job.on_disk
        return (paths.previous_tasks, disk.previous_tasks), (paths.tasks, disk.tasks)

    def _has_read(self, job: ActiveJob, path: Path, stamp: files.Stamp | None) -> None:
        """One of the lists has been read; the manager's own list is to be written over it."""
        if path == self._store.paths(job.name).tasks:
            job.on_disk.tasks = stamp
            job.is_dirty = True  # external writers drop fields that they do not know
        else:
            job.on_disk.previous_tasks = stamp

    def finalizing(self, job: ActiveJob) -> Pieces[bool]:
        """Publish how the job has ended, first its tasks, then its state.

        The records of its attempts stay where they are: on ext4 every file that is removed makes the next ones to be
        created slower for minutes, since the numbers of those removed are passed over one by one.

        :return: False if tasks were added at the last moment, and the job is not over.
        """
        job.begin_to_work()
        state, reason, error = yield from outcome(job.tasks.values())
        if job.stopping is not None and (state is JobState.FAILED or job.stopping.reason is Reason.INVALID):
            # Of a list that was spoiled we do not know which tasks were meant to be in it.
            state, reason, error = JobState.FAILED, job.stopping.reason, job.stopping.error
        ended = job.changed(state=state, reason=reason, error=error and printable(error))
        if job.state_is_changed and state is JobState.FAILED:
            self.publish_state(job)  # what failed would start again if its list were found beside a state of waiting
        job.is_dirty = False
        stamp = yield from self._writer.writing_outcome(ended, job.tasks.values(), partial(self._is_over_indeed, job))
        if stamp is None:
            return False
        job.job = job.on_disk.job = ended
        job.on_disk.state = stamp
        with contextlib.suppress(OSError):  # the next run of the job removes it
            yield from files.unlinking(self._store.paths(job.name).previous_tasks)
        return True

    def _is_over_indeed(self, job: ActiveJob, stamp: files.Stamp, existed: bool) -> Pieces[bool]:
        """Whether no tasks were added to the list that was replaced by the last one."""
        _replaced(job, stamp, existed)
        return (yield from self.merging_external_edits(job)) and job.is_over


def _replaced(job: ActiveJob, stamp: files.Stamp, existed: bool) -> None:
    """A new ``tasks.json`` has replaced the one that we believe was there.

    If another process has written meanwhile, the previous list is another one, and its stamp differs.
    """
    job.on_disk.previous_tasks = job.on_disk.tasks if existed else None
    job.on_disk.tasks = stamp
