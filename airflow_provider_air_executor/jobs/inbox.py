"""Requests to the manager, which are files in ``inbox/``.

A request is not lost if no manager runs: the next one does what it asks for. The manager removes it then.
"""

from __future__ import annotations

import contextlib
import enum
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from airflow_provider_air_executor.exceptions import CorruptFileError, InvalidJobError, JobStateError
from airflow_provider_air_executor.jobs import files, task_lists
from airflow_provider_air_executor.jobs.models import (
    Job,
    JobState,
    Record,
    SubmittedBy,
    Task,
    Timestamp,
    parse_tasks,
    utc_now,
)
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.jobs.pieces import Pieces, finish
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.validation import describe_validation_error


class Action(enum.StrEnum):
    """The kinds of requests."""

    CANCEL = "cancel"  # kill what runs, start nothing more
    RETRY = "retry"  # run again what failed
    ADD_TASKS = "add_tasks"  # append tasks to the list


class Request(Record):
    """A file in the inbox: a request about one job.

    :param owner: the Airflow task that asks, if the request counts only while the job belongs to it: when the manager
        reads the request, another job may have the name.
    """

    request: Action
    job: str
    created_at: Timestamp | None = None
    owner: SubmittedBy | None = None
    tasks: Sequence[Task] = ()


# -- asking ------------------------------------------------------------------------------------------------


def cancel(store: JobStore, name: str, owner: SubmittedBy | None = None) -> bool:
    """Request that a job is cancelled: its running tasks are killed, and no other task starts.

    :param owner: the try of an Airflow task that asks, if the job is to be cancelled only as long as it belongs to
        this run of the task, and no later try waits for it; default: in any case.
    :return: False if the job had ended already, or belongs to another owner; then nothing was asked.
    :raises JobNotFoundError: if there is no such job.
    """
    job = store.get_job(name)
    if job.state.is_terminal or not may_cancel(store.paths(name), job, owner):
        return False
    _ask(store, Request(request=Action.CANCEL, job=name, owner=owner))
    return True


def may_cancel(paths: JobPaths, job: Job, owner: SubmittedBy | None) -> bool:
    """Whether the job still belongs to this try of an Airflow task, see :func:`cancel`. Without an owner, returns True.

    :raises OSError: if that cannot be read now.
    """
    if owner is None or not job.belongs_to(owner):
        return owner is None
    waiter = job.submitted_by or owner
    with contextlib.suppress(ValidationError):
        waiter = SubmittedBy.model_validate_json(files.read_if_there(paths.waiter))
    return (waiter.try_number or 0) <= (owner.try_number or 0)


def reattach(paths: JobPaths, owner: SubmittedBy) -> None:
    """Record that this try of an Airflow task waits for the job from now on, so that no earlier try can cancel it.

    :raises JobNotFoundError: if there is no such job.
    """
    try:
        files.publish(paths.waiter, owner.model_dump_json().encode())
    except FileNotFoundError:
        raise paths.not_found() from None


def retry(store: JobStore, name: str) -> None:
    """Request a retry of a failed job: failed tasks, and those that depend on them, run again; other results stay.

    :raises JobNotFoundError: if there is no such job.
    :raises JobStateError: if the job has not failed.
    """
    job = store.get_job(name)
    if job.state is not JobState.FAILED:
        raise JobStateError(f"job {name!r} is {job.state}; only a failed job can be retried")
    _ask(store, Request(request=Action.RETRY, job=name))


def add_tasks(store: JobStore, name: str, tasks: Iterable[Task | Mapping[str, Any] | str]) -> tuple[str, ...]:
    """Ask for tasks to be appended to a job that has not ended.

    They may depend on tasks of the job, ended or not, and on each other. Ids that are missing are filled in.

    :return: the ids of the new tasks.
    :raises JobNotFoundError: if there is no such job.
    :raises JobStateError: if the job has ended.
    :raises InvalidJobError: naming the field; nothing was asked.
    """
    job = store.get_job(name)
    if job.state.is_terminal:
        raise JobStateError(f"job {name!r} is {job.state}; tasks can be added only before it ends")
    # The requests first: one that is gone when we look is in the list.
    asked = [task for request in _pending(store, name) for task in request.tasks]
    present = store.get_tasks(name)
    known = {task.id for task in present}
    present += tuple(task for task in asked if task.id not in known)
    now = utc_now()
    listed = tasks if isinstance(tasks, str | bytes | Mapping) else list(tasks)
    added = [task.fresh(name, now) for task in parse_tasks(listed, present=present)]
    given = {task.id for task in listed if isinstance(task, Task)} | {
        task.get("id") for task in listed if isinstance(task, Mapping)
    }
    # Another process that adds tasks at the same time would count on from the same number.
    token = os.urandom(3).hex()
    renamed = {task.id: f"{task.id}-{token}" for task in added if task.id not in given}
    added = [
        task.evolve(
            id=renamed.get(task.id, task.id),
            dependencies=tuple(renamed.get(dependency, dependency) for dependency in task.dependencies),
        )
        for task in added
    ]
    _ask(store, Request(request=Action.ADD_TASKS, job=name, tasks=tuple(added)))
    return tuple(task.id for task in added)


def _ask(store: JobStore, request: Request) -> None:
    store.create_directories()
    path = store.inbox_path / f"{time.time_ns():020d}-{files.unique_name('')}.json"
    data = request.evolve(created_at=utc_now()).model_dump_json(exclude_none=True).encode() + b"\n"
    task_lists.check_lengths(request.tasks, data)
    files.publish(path, data, durable=True)


# -- reading -----------------------------------------------------------------------------------------------


def requests(store: JobStore) -> list[Path]:
    """The requests in the inbox, oldest first."""
    with contextlib.suppress(FileNotFoundError):
        names = [name for name in os.listdir(store.inbox_path) if name.endswith(".json") and name[0] != "."]
        return [store.inbox_path / name for name in sorted(names)]
    return []


def load_request(path: Path) -> Request:
    """Read a request.

    :raises CorruptFileError: if it is not valid.
    """
    return finish(loading_request(path))


def loading_request(path: Path) -> Pieces[Request]:
    """The same in pieces."""
    try:
        data, _ = yield from files.reading(path)
        if task_lists.is_short(data):
            return Request.model_validate_json(data[0])
        given = yield from task_lists.parsing_object(data)
        tasks = given.pop("tasks", ())
        return Request.model_validate(given).evolve(tasks=tasks)
    except ValidationError as error:
        raise CorruptFileError(path, describe_validation_error(error, "request")) from None
    except InvalidJobError as error:
        raise CorruptFileError(path, f"request: {error}") from None
    except OSError as error:
        if error.errno in files.NOT_A_FILE:
            raise CorruptFileError(path, os.strerror(error.errno)) from None
        raise


def _pending(store: JobStore, name: str) -> Iterator[Request]:
    """The requests about a job that are still in the inbox."""
    for path in requests(store):
        with contextlib.suppress(CorruptFileError, FileNotFoundError):
            request = load_request(path)
            if request.job == name:
                yield request
