"""Tasks as the API shows them: without the values of environment variables, and with secrets masked."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from airflow_provider_air_executor.api.shape import Span
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.engine_options import option_names
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Reason, Resources, Task, TaskStatus
from airflow_provider_air_executor.jobs.usage import Usage

_COMMAND_CHARACTERS = 2_000  # of a task in a list
_SHOWN = {
    *("id", "dependencies", "status", "reason", "exit_code", "retries", "retry_delay", "timeout", "runner"),
    *("created_at", "started_at", "completed_at"),
}


class Attempt(BaseModel):
    """One attempt of a task."""

    number: int
    status: TaskStatus
    exit_code: int | None
    started_at: datetime | None
    ended_at: datetime | None
    usage: Usage | None = None

    @classmethod
    def of(cls, record: AttemptRecord) -> Attempt:
        """The attempt as it is shown."""
        return cls(
            number=record.number,
            status=record.status,
            exit_code=record.exit_code,
            started_at=record.started_at,
            ended_at=record.completed_at,
            usage=record.usage,
        )


class TaskDetails(BaseModel):
    """A task of a job. ``environment`` has the names of variables, never their values.

    ``options`` are those of engines, by their names. ``usage`` is what the latest attempt took, where that is known.
    """

    id: str
    command: str
    is_command_cut: bool
    cwd: str | None
    environment: list[str]
    dependencies: tuple[str, ...]
    run_if: str | None
    status: TaskStatus
    reason: Reason | None
    error: str | None
    where: str | None  # where an engine has it, and what it waits for there
    exit_code: int | None
    created_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    retries: int
    retry_delay: float
    timeout: float | None
    runner: str | None
    resources: Resources | None
    options: dict[str, Any]
    usage: Usage | None
    attempts: list[Attempt]

    @classmethod
    def of(
        cls, task: Task, attempts: list[AttemptRecord], mask: Mask, characters: int | None = _COMMAND_CHARACTERS
    ) -> TaskDetails:
        """The task as it is shown.

        :param characters: of its command, at most; None: all.
        """
        command = _command(task, mask)
        is_cut = characters is not None and len(command) > characters
        return cls(
            **task.model_dump(include=_SHOWN),
            command=f"{command[:characters]} ..." if is_cut else command,
            is_command_cut=is_cut,
            cwd=mask.text(task.cwd) if task.cwd else None,
            environment=sorted(task.env or ()),
            run_if=task.run_if,
            error=mask.text(task.error) if task.error else None,
            where=mask.text(task.where) if task.where else None,
            resources=task.resources,
            options={
                name: _masked(options, mask)
                for name, options in (task.model_extra or {}).items()
                if isinstance(options, dict) and name in (*option_names(), task.runner)
            },
            usage=task.usage,
            attempts=[Attempt.of(attempt) for attempt in attempts if attempt.started_at is not None],
        )


class TaskList(BaseModel):
    """Tasks of a job, in the order of its list, and how many there are that were asked for.

    ``busy``: when tasks of the whole job ran, from and to; None: until now. Times that are close are one.
    """

    tasks: list[TaskDetails]
    total: int
    busy: list[Span]


def _command(task: Task, mask: Mask) -> str:
    """The command of a task: a line of shell code as it was written, anything else as one would type it."""
    if task.command == "bash" and len(task.args) == 2 and task.args[0] == "-c":
        return mask.text(task.args[1])
    return shlex.join(mask.text(word) for word in (task.command, *task.args))


def _masked(value: Any, mask: Mask) -> Any:
    """Options of an engine without secrets, and without the values of environment variables in a template of a Pod."""
    if isinstance(value, str):
        return mask.text(value)
    if isinstance(value, Mapping):
        return {
            mask.text(str(key)): _names(item) if key == "env" else _masked(item, mask) for key, item in value.items()
        }
    return [_masked(item, mask) for item in value] if isinstance(value, list | tuple) else value


def _names(variables: Any) -> Any:
    if isinstance(variables, Mapping):
        return sorted(map(str, variables))
    if not isinstance(variables, list | tuple):
        return []
    return [str(variable.get("name")) for variable in variables if isinstance(variable, Mapping)]
