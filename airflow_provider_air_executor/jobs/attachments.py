"""Files that are attached to a job: they lie in its directory, of mode 0600, for its tasks, and are removed with it.

:meth:`~.store.JobStore.submit` publishes those that are known from the beginning. :meth:`~.paths.JobPaths.attached`
says where one is. All functions here raise :class:`InvalidJobError` if no attached file can have the name.
"""

from __future__ import annotations

import os

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.paths import JobPaths


def attach(paths: JobPaths, file: str, data: bytes) -> None:
    """Attach a file to a job, or replace its content.

    :raises JobNotFoundError: if there is no such job.
    """
    try:
        files.publish(paths.attached(file), data)
    except FileNotFoundError:
        raise paths.not_found() from None


def replace(paths: JobPaths, file: str, data: bytes) -> bool:
    """Replace the content of an attached file, if the file is still there.

    :return: False if it has been removed; then nothing was written.
    """
    try:
        return files.replace(paths.attached(file), data)
    except FileNotFoundError:
        return False


def append(paths: JobPaths, file: str, line: bytes) -> None:
    """Append a line to an attached file, which is made if it is missing. Several processes may append to it at once.

    :raises JobNotFoundError: if there is no such job.
    """
    try:
        with files.opened(paths.attached(file), os.O_WRONLY | os.O_APPEND) as descriptor:
            os.write(descriptor, line)
    except FileNotFoundError:
        raise paths.not_found() from None
