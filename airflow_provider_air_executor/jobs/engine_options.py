"""The options of engines in tasks. Each is a field that is called like the engine, which checks it by itself.

An engine that comes with a package registers its check as an entry point of the group ``air_executor.task_options``,
under its name: a function that is given the value of the field, and raises a ValueError, or a pydantic ValidationError.
It is called where tasks are submitted, so its module must not need what the engine alone needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.validation import describe_validation_error

GROUP = "air_executor.task_options"


def has_valid_options(name: str, value: Any, path: str, engine: str | None) -> bool:
    """Whether a field of a task holds the valid options of an engine.

    :param path: of the field, for the error.
    :param engine: the engine that the task names. It may be installed with the manager alone, and checks them there.
    :raises InvalidJobError: naming the option that is not valid.
    """
    try:
        check = _check_of(name)
        if check is None:
            return name == engine
        if value is not None:  # versions before have written that for no options
            check(value)
    except ValidationError as error:
        raise InvalidJobError(describe_validation_error(error, path)) from None
    except (ValueError, ImportError, AttributeError) as error:
        raise InvalidJobError(f"{path}: {error}") from None
    return True


@functools.cache
def option_names() -> frozenset[str]:
    """The fields of tasks that hold options of engines, as far as these have registered a check."""
    return frozenset(point.name for point in entry_points(group=GROUP))


@functools.cache
def _check_of(name: str) -> Callable[[Any], object] | None:
    found: Callable[[Any], object] | None = None
    for point in entry_points(group=GROUP, name=name):
        found = point.load()
    return found
