"""Which jobs have ended, at a glance: to read and check all that is said of each takes ten times as long."""

from __future__ import annotations

import os
import re
import stat

from airflow_provider_air_executor.jobs.files import Stamp
from airflow_provider_air_executor.jobs.paths import STATE

_LONGEST = 8_000  # bytes of a file that is looked at
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# How a state.json begins and ends as the manager writes it.
_BEGIN = re.compile(
    rb'\{\n  "id": "[^"\\]*",\n  "name": "([A-Za-z0-9_-]+)",\n  "state": "(?:completed|failed)",\n', re.ASCII
)
_END = b"\n}\n"


def ended(directory: str, name: str) -> Stamp | None:
    """The stamp of the ``state.json`` of a job, if that says in the form of the manager that the job has ended.

    What else it says is not looked at, and may not be valid.

    :param directory: that of the job.
    :return: None if it does not say so in this form, or cannot be read now: then it must be read whole.
    """
    try:
        descriptor = os.open(f"{directory}/{STATE}", _FLAGS)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST:
            return None
        data = os.read(descriptor, _LONGEST)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    found = _BEGIN.match(data)
    is_whole = len(data) == status.st_size and data.endswith(_END)
    return Stamp.of(status) if is_whole and found is not None and found[1].decode() == name else None
