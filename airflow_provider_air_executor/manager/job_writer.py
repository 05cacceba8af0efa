"""JobWriter: the files of a job that only the manager writes; import-linter keeps other parts from importing it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import files, task_lists
from airflow_provider_air_executor.jobs.models import Job, Task
from airflow_provider_air_executor.jobs.pieces import Pieces
from airflow_provider_air_executor.jobs.store import JobStore, dump_job

_MAX_NAME_BYTES = 200  # of the name of a file that is quarantined, which gets longer by that


class JobWriter:
    """Writes ``state.json`` and ``tasks.json`` of the jobs of one base path.

    Whoever has one must hold the :class:`ManagerLock`, or be sure that no manager runs.

    :param store: the job filesystem.
    """

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def write_job(self, job: Job, *, durable: bool = False) -> files.Stamp:
        """Publish ``state.json``."""
        return files.publish(self._store.paths(job.name).state, dump_job(job), durable=durable)

    def writing_tasks(self, name: str, tasks: Iterable[Task]) -> Pieces[tuple[files.Stamp, bool]]:
        """Publish ``tasks.json``, with a backup of the list that it replaces (:func:`files.publishing_with_backup`)."""
        paths = self._store.paths(name)
        return (yield from files.publishing_with_backup(paths.tasks, task_lists.dumping(tasks), paths.previous_tasks))

    def resetting_tasks(self, name: str, tasks: Iterable[Task]) -> Pieces[files.Stamp]:
        """Publish ``tasks.json`` of a job that is to be run again, without a backup."""
        return (yield from files.publishing(self._store.paths(name).tasks, task_lists.dumping(tasks)))

    def writing_outcome(
        self, job: Job, tasks: Iterable[Task], may_end: Callable[[files.Stamp, bool], Pieces[bool]]
    ) -> Pieces[files.Stamp | None]:
        """Publish durably how a job has ended: its tasks, and then its state.

        :param may_end: gets the stamp of the published ``tasks.json`` and whether it replaced a list, and returns
            whether the job has ended indeed. If not, ``state.json`` stays as it was.
        :return: the stamp of ``state.json``; None if the job has not ended.
        """
        paths = self._store.paths(job.name)
        state_draft, state_stamp = files.write_beside(paths.state, dump_job(job), durable=False)
        try:
            tasks_draft, tasks_stamp = yield from files.writing_beside(
                paths.tasks, task_lists.dumping(tasks), durable=False
            )
            try:
                yield from files.flushing(tasks_draft, state_draft)
                existed = yield from files.putting_with_backup(
                    tasks_draft, paths.tasks, paths.previous_tasks, size=tasks_stamp.size
                )
            except BaseException:
                files.remove(tasks_draft)
                raise
            if not (yield from may_end(tasks_stamp, existed)):
                files.remove(state_draft)
                return None
            files.put(state_draft, paths.state)
        except BaseException:
            files.remove(state_draft)
            raise
        files.sync_directory(paths.directory)
        return state_stamp

    def prepare_job_directory(self, job: Job) -> None:
        """Make the directories of a job where they are missing.

        :raises InvalidJobError: if one of them is something else than a directory, a symlink for instance.
        """
        paths = self._store.paths(job.name)
        for path in (paths.logs, paths.runs, *([paths.work] if job.work_directory else [])):
            if files.is_real_directory(path):
                continue
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
            if not files.is_real_directory(path):
                raise InvalidJobError(f"{path} is not a directory; remove it and retry the job")

    def quarantine(self, path: Path) -> Path:
        """Quarantine a file that is not valid: give it another name.

        :return: its new path.
        """
        name = os.fsdecode(os.fsencode(path.name)[:_MAX_NAME_BYTES])
        target = path.with_name(f".{name}.invalid-{time.time_ns()}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, target)
        return target
