"""What the executor writes into the log of a task, where Airflow's users look first.

The file is in Airflow's log folder. A Pod need not have that folder: then the log of its job is the task's, since the
supervisor in the Pod prints each record, too. A log handler that uploads logs does so in the supervisor, so not what is
written here, unless the supervisor has that folder, too.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from airflow.sdk.log import init_log_file

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.executor.submission import TASK_ID
from airflow_provider_air_executor.executor.tracking import TrackedWorkload
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Job, Task, utc_now
from airflow_provider_air_executor.jobs.store import JobStore

log = logging.getLogger(__name__)

_COMPARED_BYTES = 20_000
_TIME = re.compile(rb'"timestamp":\s*"([^"]+)"')
_LOGGER = "airflow_provider_air_executor.executor"


def write(log_path: str | None, key: Any, *lines: str, level: str = "error") -> None:
    """Write lines into the log of a task.

    :param log_path: of the log, in Airflow's log folder; None if the task has none.
    :param key: of the task, for messages.
    """
    if not log_path:
        return
    fields = {"timestamp": utc_now().isoformat(), "level": level, "logger": _LOGGER}
    try:
        with init_log_file(log_path).open("ab") as file:
            file.write(b"".join(json.dumps({**fields, "event": line}).encode() + b"\n" for line in lines))
    except (OSError, ValueError) as error:  # a setting of the log may not be valid
        log.warning("the log of task %s could not be written: %s", key, error)


def bring(tracked: TrackedWorkload, job: Job | None, task: Task | None) -> None:
    """Bring the log of a task that has run in a Pod into Airflow's log folder, if the Pod does not have that.

    :param job: its job; None: as it is now.
    :param task: the one of the job; None: as it is now.
    """
    try:
        task = task or tracked.task()
        log_path = (job or tracked.store.load_job(tracked.name)[0]).labels.get("log_path")
        if task is None or task.runner != "kubernetes" or not log_path:
            return
        with files.open_file(tracked.paths.log(TASK_ID)) as source, init_log_file(log_path).open("a+b") as target:
            printed, kept = _last_times(source), _last_times(target)
            if printed and printed.isdisjoint(kept):
                source.seek(0)
                shutil.copyfileobj(source, target)
    except FileNotFoundError:
        return  # it has never begun
    except (OSError, ValueError, AirExecutorError) as error:
        log.warning("the log of job %s could not be brought into Airflow's log folder: %s", tracked.name, error)


def is_there(path: Path, store: JobStore, name: str) -> bool:
    """Whether the log of a running task is in Airflow's log folder. That of a Pod may have lines of the executor alone.

    :param path: of the log.
    :param name: of the job.
    """
    if not path.exists() or store.load_tasks(name)[0][0].runner != "kubernetes":
        return path.exists()
    with files.open_file(store.paths(name).log(TASK_ID)) as source, files.open_file(path) as target:
        return not _last_times(source).isdisjoint(_last_times(target))


def _last_times(file: BinaryIO | FileIO) -> set[bytes]:
    """The times of the last records of a log, by which they are found in another one."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _COMPARED_BYTES))
    return set(_TIME.findall(file.read(_COMPARED_BYTES)))


def say_where_they_wait(tasks: Iterable[TrackedWorkload]) -> None:
    """Write into the logs of tasks that a cluster has, and that have not begun, what they wait for there."""
    for tracked in tasks:
        where = tracked.new_location()
        if where is None:
            continue
        try:
            log_path = tracked.store.load_job(tracked.name)[0].labels.get("log_path")
        except (OSError, AirExecutorError):
            continue  # its end is reported by other means
        write(log_path, tracked.key, f"{where} (job {tracked.name})", level="info")
