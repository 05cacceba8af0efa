"""The fields of a job that a user may set, besides its name and its tasks; they are passed on as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, TypedDict

from airflow_provider_air_executor.jobs.models import ALL_AT_ONCE


class JobSpec(TypedDict, total=False):
    """How a job is to be run, and by what it can be found. Whatever is left out has its default.

    :param max_parallel_tasks: how many tasks may run side by side; default: all that are independent.
    :param timeout: seconds from its first start after which the whole job is killed, also as a timedelta or a text such
        as ``"1h30m"``; default: no limit.
    :param priority: jobs with a higher number start their tasks first; default 0.
    :param labels: words by which the job can be found; default: none.
    :param outlets: the URIs of what it makes or changes; default: none.
    :param runner: what runs those of its tasks that do not say; default: what the manager's settings say.
    """

    max_parallel_tasks: int | None
    timeout: float | timedelta | str | None
    priority: int
    labels: Mapping[str, str] | None
    outlets: Iterable[str]
    runner: str | None


FIELDS = tuple(JobSpec.__annotations__)


def fields_of(spec: JobSpec) -> dict[str, Any]:
    """The fields of a new :class:`~.models.Job`, which are still to be validated.

    :raises TypeError: if there is no such field, as for any argument.
    """
    for name in spec.keys() - set(FIELDS):
        raise TypeError(f"there is no field {name!r}; a job has {', '.join(FIELDS)}")
    given = {name: value for name, value in spec.items() if value is not None}
    outlets: Any = given.get("outlets", ())
    return {
        "max_parallel_tasks": ALL_AT_ONCE,
        **given,
        "labels": dict(spec.get("labels") or {}),
        "outlets": outlets if isinstance(outlets, str) else tuple(outlets),
    }
