"""The page of a job, as HTML without scripts and without anything from elsewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from airflow_provider_air_executor import links
from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs import summary
from airflow_provider_air_executor.jobs.models import Job, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore

_ROWS = 200  # of the table; of a longer list those that failed first
_LOGS = 10  # tasks whose output is shown
_LOG_LINES = 20
_LOG_CHARACTERS = 8_000
_COMMAND_CHARACTERS = 500
_ORDER = (TaskStatus.FAILED, TaskStatus.RUNNING, TaskStatus.COMPLETED, TaskStatus.PENDING)

# Colours and other commands to a terminal, and what else cannot be shown.
_UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


def render(store: JobStore, job: Job, *, conn_id: str, with_logs: bool) -> str:
    """The page. The values of environment variables are never part of it.

    :param conn_id: the connection, for the links to the logs.
    :param with_logs: whether the user may see what the tasks have printed.
    """
    tasks = _tasks_of(store, job.name)
    first = sorted(tasks, key=lambda task: _ORDER.index(task.status))
    shown = first[:_ROWS] if len(tasks) > _ROWS else tasks
    return _template().render(
        job=job,
        progress=summary.progress(tasks),
        tasks=[(task, _command(task)) for task in shown],
        hidden=len(tasks) - len(shown),
        logs=_logs(store, job.name, first) if with_logs else [],
        with_logs=with_logs,
        owner=job.submitted_by,
        links=links,
        conn_id=conn_id,
    )


def _tasks_of(store: JobStore, job_name: str) -> Sequence[Task]:
    try:
        return store.get_tasks(job_name)
    except (AirExecutorError, OSError):
        return ()  # the job's own error says what is wrong with them


def _command(task: Task) -> str:
    text = shlex.join((task.command, *task.args))
    return _printable(text if len(text) <= _COMMAND_CHARACTERS else f"{text[:_COMMAND_CHARACTERS]} ...")


def _logs(store: JobStore, job_name: str, tasks: Sequence[Task]) -> list[tuple[str, str]]:
    """The last lines of the tasks that have printed something, by their ids."""
    found: list[tuple[str, str]] = []
    for task in tasks:
        if len(found) == _LOGS:
            break
        try:
            text = _printable(store.tail(job_name, task.id, _LOG_LINES))[-_LOG_CHARACTERS:]
        except (AirExecutorError, OSError):
            continue
        if text:
            found.append((task.id, text))
    return found


def _printable(text: str) -> str:
    return _UNPRINTABLE.sub("", text)


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        loader=PackageLoader(__package__, ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")
