"""Records without secrets: what leaves the machine is shown to people, here or there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.masking import REPLACEMENT, Mask
from airflow_provider_air_executor.jobs.models import Job, Record, Task

R = TypeVar("R", bound=Record)


def shown_job(job: Job, mask: Mask) -> Job:
    """A job without secrets."""
    if not mask.secrets:
        return job
    shown = job.evolve(
        labels=shown_labels(job.labels, mask),
        outlets=tuple(mask.text(uri) for uri in job.outlets),
        error=_shown(job.error, mask),
    )
    return _without_extra_secrets(shown, mask)


def shown_labels(labels: Mapping[str, str], mask: Mask) -> dict[str, str]:
    """Labels without secrets; one whose name is a secret is left out."""
    return {key: mask.text(value) for key, value in labels.items() if mask.text(key) == key}


def shown_task(task: Task, mask: Mask) -> Task:
    """A task without secrets."""
    if not mask.secrets:
        return task
    names = ("command", "args", "env", "cwd", "error", "where")
    shown: dict[str, Any] = {name: _shown(getattr(task, name), mask) for name in names}
    return _without_extra_secrets(task.evolve(**shown), mask)


def without_values(task: Task) -> Task:
    """A task without the values of environment variables, also in a template of a Pod: they may be secrets.

    A job needs not say of them that they are. The pages do not show them either.
    """
    shown = task.evolve(env=_hidden(task.env))
    extra = shown.model_extra or {}
    for name, value in extra.items():
        extra[name] = _without_values(value)
    return shown


def _without_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _hidden(item) if key == "env" else _without_values(item) for key, item in value.items()}
    return [_without_values(item) for item in value] if isinstance(value, list | tuple) else value


def _hidden(variables: Any) -> Any:
    """Variables, by their names or as Kubernetes has them, each with its name only."""
    if isinstance(variables, Mapping):
        return dict.fromkeys(variables, REPLACEMENT)
    if not isinstance(variables, list | tuple):
        return None if variables is None else REPLACEMENT
    return [
        {"name": variable.get("name"), "value": REPLACEMENT} if isinstance(variable, Mapping) else REPLACEMENT
        for variable in variables
    ]


def shown_attempt(attempt: AttemptRecord, mask: Mask) -> AttemptRecord:
    """An attempt without secrets."""
    return attempt._replace(error=_shown(attempt.error, mask))


def _without_extra_secrets(record: R, mask: Mask) -> R:
    """A copy of a record whose unknown fields, such as the options of an engine, have no secrets."""
    extra = record.model_extra or {}  # `evolve` has copied it
    for name, value in extra.items():
        extra[name] = _shown(value, mask)
    return record


def _shown(value: Any, mask: Mask) -> Any:
    """A value of JSON, all its texts without secrets."""
    if isinstance(value, str):
        return mask.text(value)
    if isinstance(value, Mapping):
        return {mask.text(key) if isinstance(key, str) else key: _shown(item, mask) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_shown(item, mask) for item in value)
    return value
