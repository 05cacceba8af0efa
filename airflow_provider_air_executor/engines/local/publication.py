"""Publishes what is imported ahead of warm tasks, see :mod:`~airflow_provider_air_executor.jobs.preload_info`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.jobs import files, preload_info

SECONDS = 2.0  # between two looks,
_SHARE = 100  # and so many times what the last one took
_RETRY_SECONDS = 10.0


class Publication:
    """Publishes ``preload.info.json`` when something has changed.

    :param describe: what is published, as plain data.
    """

    def __init__(self, base_path: Path, describe: Callable[[], dict[str, Any]]) -> None:
        self._path = preload_info.path_of(base_path)
        self._describe = describe
        self._published = b""
        self._next_look = 0.0
        self._is_due = False

    def something_has_changed(self) -> None:
        """Look soon."""
        self._is_due = True

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`step` must be called; None: never."""
        return max(0.0, self._next_look - time.monotonic()) if self._is_due else None

    def step(self) -> None:
        """Publish what has changed, if it is time. What cannot be written is written later."""
        began = time.monotonic()
        if not self._is_due or began < self._next_look:
            return
        self._is_due = False
        data = json.dumps({"pid": os.getpid(), **self._describe()}).encode()
        self._next_look = began + max(SECONDS, _SHARE * (time.monotonic() - began))
        if data == self._published:
            return
        try:
            files.publish(self._path, data)
            self._published = data
        except OSError:
            self._is_due, self._next_look = True, began + _RETRY_SECONDS
