"""Tasks that clients add to jobs: exactly once, however often a client asks.

The key of a request, and the ids that its tasks get, are written to a file of the job before the manager is asked. Who
asks again gets the same ids; the manager is asked again only if it has not been asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Collection, Iterator
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import JobStateError
from airflow_provider_air_executor.jobs import attachments, files, inbox, masking
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.server.messages import Addition

FILE = "added.jsonl"
_LOCKS = 16


class _Known(NamedTuple):
    """A request that was made before."""

    key: str
    word: str  # which the ids that were not given end with
    first: int  # the position of its first task
    ids: tuple[str, ...]

    def dump(self) -> bytes:
        return b"\n" + json.dumps(self._asdict()).encode() + b"\n"  # what is before it may have been cut off


class Additions:
    """Adds tasks to jobs.

    :param jobs: the job filesystem; no other process adds tasks with keys to its jobs.
    """

    def __init__(self, jobs: FileJobs) -> None:
        self._jobs = jobs
        # Of two requests with one key, the second one waits.
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))

    def add(self, name: str, addition: Addition) -> tuple[str, ...]:
        """Ask for tasks to be appended; see :func:`~airflow_provider_air_executor.jobs.inbox.add_tasks`."""
        with self._locks[hash(name) % _LOCKS]:
            ids = self._add(name, addition)
        self._jobs.ensure_manager()
        return ids

    def _add(self, name: str, addition: Addition) -> tuple[str, ...]:
        store = self._jobs.store
        job, paths = store.get_job(name), store.paths(name)
        known = _find(paths, addition.key)
        present = inbox.present_tasks(store, name)
        if known is not None and {task.id for task in present}.issuperset(known.ids):
            return known.ids
        if job.state.is_terminal:
            raise JobStateError(f"job {name!r} is {job.state}; tasks can be added only before it ends")
        if known is not None:
            added = _tasks(name, addition, _without(present, known.ids), known.word, known.first)
        else:
            word, first = os.urandom(3).hex(), len(present) + 1
            added = _tasks(name, addition, present, word, first)
            known = _Known(addition.key, word, first, tuple(task.id for task in added))
            if addition.secrets:  # before they can be seen
                attachments.append(paths, masking.FILE, masking.dump(addition.secrets))
            _append(paths, known)
        inbox.ask_for_tasks(store, name, added)
        return known.ids


def _tasks(name: str, addition: Addition, present: Collection[Task], word: str, first: int) -> list[Task]:
    return inbox.new_tasks(name, addition.tasks, tuple(present), word=word, first=first)


def _without(tasks: Collection[Task], ids: Collection[str]) -> list[Task]:
    """Those of the tasks that have none of these ids."""
    return [task for task in tasks if task.id not in set(ids)]


def _append(paths: JobPaths, known: _Known) -> None:
    """Write a request down, so that it survives a power cut as the request itself does."""
    attachments.append(paths, FILE, known.dump())
    files.flush(paths.attached(FILE))
    files.sync_directory(paths.directory)


def _find(paths: JobPaths, key: str) -> _Known | None:
    """The request with a key, if there was one."""
    return next((known for known in _read(paths) if known.key == key), None)


def _read(paths: JobPaths) -> Iterator[_Known]:
    for line in files.read_if_there(paths.attached(FILE)).splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # a line that was cut off
            found = json.loads(line)
            ids = tuple(str(task_id) for task_id in found["ids"])
            yield _Known(str(found["key"]), str(found["word"]), int(found["first"]), ids)
