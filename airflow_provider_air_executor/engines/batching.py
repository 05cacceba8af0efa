"""The option ``tasks_per_submission`` of engines: how many tasks of a job they hand over together."""

from __future__ import annotations

import functools
import logging
from collections.abc import MutableMapping
from typing import Any

log = logging.getLogger("air_executor.manager")

_NAME, _OLD_NAME = "tasks_per_submission", "bundle"
_LARGEST = 50


def pop_tasks_per_submission(options: MutableMapping[str, Any], engine: str, default: int = 1) -> int:
    """Remove the option from others, and return it. Its old name is read too, with a warning.

    :param options: those that ``config.yaml`` has for an engine, or those that a task has.
    :param engine: the name of the engine.
    :param default: the value if the options have none.
    :raises ValueError: if it is not a whole number from 1 to 50.
    """
    old, size = options.pop(_OLD_NAME, None), options.pop(_NAME, None)
    if old is not None:
        _warn_once(engine)
    name, size = (_OLD_NAME, old) if size is None else (_NAME, size)
    if size is None:
        return default
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST:
        raise ValueError(f"{name}: must be a whole number from 1 to {_LARGEST}, not {size!r}")
    return size


@functools.cache
def _warn_once(engine: str) -> None:
    log.warning("the option %s.%s is called %s now; the old name will not be read for long", engine, _OLD_NAME, _NAME)
