"""Lines that the executor writes into the log of a task, where Airflow's users look first.

The file is in Airflow's log folder. A log handler that uploads logs does so in the supervisor, so not these, unless the
supervisor has that folder, too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

from airflow.sdk.log import init_log_file

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.executor.tracking import TrackedWorkload
from airflow_provider_air_executor.jobs.models import utc_now

log = logging.getLogger(__name__)

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
