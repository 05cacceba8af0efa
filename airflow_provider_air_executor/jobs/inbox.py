"""Requests to the manager, which are files in ``inbox/``.

A request is not lost if no manager runs: the next one does what it asks for. The manager removes it then.
"""

from __future__ import annotations

import contextlib
import difflib
import enum
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from airflow_provider_air_executor.exceptions import CorruptFileError, InvalidJobError, JobStateError
from airflow_provider_air_executor.jobs import bell, files, task_lists
from airflow_provider_air_executor.jobs.models import (
    Count,
    Job,
    JobState,
    Reason,
    Record,
    SubmittedBy,
    Task,
    TaskStatus,
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
    :param task_ids: the tasks that it is about; none: the job as a whole.
    :param all: whether a job that is retried runs again as a whole.
    :param attempt: the last attempt of a job that is to be retried: the request is carried out once.
    :param again: whether the job was being cancelled already: what runs in spite of that (:class:`~.models.RunIf`) is
        to end, too.
    """

    request: Action
    job: str
    created_at: Timestamp | None = None
    owner: SubmittedBy | None = None
    tasks: Sequence[Task] = ()
    task_ids: tuple[str, ...] = ()
    all: bool = False
    attempt: Count | None = None
    again: bool = False


# -- asking ------------------------------------------------------------------------------------------------


def cancel(
    store: JobStore,
    name: str,
    owner: SubmittedBy | None = None,
    tasks: Iterable[str] = (),
    *,
    again: bool | None = None,
) -> bool:
    """Request that a job is cancelled: its running tasks are killed, and no other task starts.

    Tasks whose ``run_if`` is ``always`` still run.

    :param owner: the try of an Airflow task that asks, if the job is to be cancelled only as long as it belongs to
        this run of the task, and no later try waits for it; default: in any case.
    :param tasks: ids of tasks: only these are to end, and the job goes on.
    :param again: whether also those tasks are to end that always run, if the job is being cancelled already; default:
        if there is no owner, for an Airflow task may ask more than once.
    :return: False if the job, or each of the tasks, had ended already, or if it belongs to another owner; then nothing
        was asked.
    :raises JobNotFoundError: if there is no such job.
    :raises InvalidJobError: if it has no such task.
    """
    job, task_ids = store.get_job(name), _ids(tasks)
    found = _tasks_named(store, name, task_ids)
    if job.state.is_terminal or not may_cancel(store.paths(name), job, owner):
        return False
    if task_ids:
        if all(task.status.is_terminal for task in found):
            return False
        _ask(store, Request(request=Action.CANCEL, job=name, owner=owner, task_ids=task_ids))
        return True
    is_again = job.cancel_requested_at is not None and (owner is None if again is None else again)
    _ask(store, Request(request=Action.CANCEL, job=name, owner=owner, again=is_again))
    return True


def _ids(tasks: Iterable[str]) -> tuple[str, ...]:
    """The ids of tasks, each once."""
    return tuple(dict.fromkeys((tasks,) if isinstance(tasks, str) else tasks))


def _tasks_named(store: JobStore, name: str, task_ids: Sequence[str]) -> list[Task]:
    """The tasks of a job that have these ids.

    :raises InvalidJobError: if there is none for one of them.
    """
    if not task_ids:
        return []
    present = {task.id: task for task in (*_asked_for(store, name), *store.get_tasks(name))}
    for task_id in task_ids:
        if task_id not in present:
            close = difflib.get_close_matches(task_id, present, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InvalidJobError(f"there is no task {task_id!r} in job {name!r}{hint}")
    return [present[task_id] for task_id in task_ids]


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


def retry(
    store: JobStore,
    name: str,
    tasks: Iterable[str] = (),
    *,
    all: bool = False,  # noqa: A002
    attempt: int | None = None,
) -> None:
    """Request a retry of a job that has ended. By default failed tasks, and those that depend on them, run again.

    Other results stay, unless they are of tasks that wait for the end of one which runs again (``run_if``).

    :param tasks: ids of tasks: only these run again, whether they failed or not, and those that failed because of them.
    :param all: all tasks run again, also of a job that has completed.
    :param attempt: that of the job, if the caller knows it: if the job has been retried since then, or waits for its
        start, nothing is asked.
    :raises JobNotFoundError: if there is no such job.
    :raises JobStateError: if the job has not ended, or has completed and neither tasks are named nor all are meant, or
        if a named task depends on a failed one that is not named.
    :raises InvalidJobError: if the job has no such task.
    """
    task_ids = _ids(tasks)
    if task_ids and all:
        raise InvalidJobError("name the tasks that are to run again, or ask for all, not both")
    job = store.get_job(name)
    if attempt is not None and (job.attempt > attempt or job.state is JobState.WAITING):
        return
    found = _tasks_named(store, name, task_ids)
    if not job.state.is_terminal:
        raise JobStateError(f"job {name!r} is {job.state}; only a job that has ended can be retried")
    if job.state is not JobState.FAILED and not task_ids and not all:
        raise JobStateError(f"job {name!r} is {job.state}, and nothing of it failed; retry all of it, or single tasks")
    if found:
        _refuse_what_cannot_start(store, name, found)
    _ask(store, Request(request=Action.RETRY, job=name, task_ids=task_ids, all=all, attempt=job.attempt))


def _refuse_what_cannot_start(store: JobStore, name: str, chosen: Sequence[Task]) -> None:
    """Refuse tasks that are to run again and would fail at once because of others.

    :raises JobStateError: naming the one that failed first.
    """
    tasks = {task.id: task for task in store.get_tasks(name)}
    again = {task.id for task in chosen}
    for task in chosen:
        seen: set[str] = set()
        before = [] if task.run_if is not None else list(task.dependencies)
        while before:
            other = tasks.get(before.pop())
            if other is None or other.status is not TaskStatus.FAILED or other.id in again | seen:
                continue
            if other.reason is not Reason.DEPENDENCY:
                raise JobStateError(
                    f"task {task.id!r} of job {name!r} cannot run before {other.id!r}, which failed; "
                    f"retry {other.id!r}, and what failed because of it runs again, too"
                )
            seen.add(other.id)
            before += other.dependencies


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
    # Another process that adds tasks at the same time would count on from the same number.
    added = new_tasks(name, tasks, present_tasks(store, name), word=os.urandom(3).hex())
    ask_for_tasks(store, name, added)
    return tuple(task.id for task in added)


def present_tasks(store: JobStore, name: str) -> tuple[Task, ...]:
    """The tasks of a job, and those that it is to get by requests that have not been carried out."""
    asked = _asked_for(store, name)  # first: a request that is gone when we look is in the list
    present = store.get_tasks(name)
    known = {task.id for task in present}
    return present + tuple(task for task in asked if task.id not in known)


def new_tasks(
    name: str,
    tasks: Iterable[Task | Mapping[str, Any] | str],
    present: Sequence[Task],
    *,
    word: str,
    first: int | None = None,
) -> list[Task]:
    """Tasks that are to be appended to a job; see :func:`add_tasks`.

    :param present: see :func:`present_tasks`.
    :param word: which the ids that are filled in end with.
    :param first: the position of the first one; default: after those that are there.
    :raises InvalidJobError: naming the field.
    """
    now = utc_now()
    listed = tasks if isinstance(tasks, str | bytes | Mapping) else list(tasks)
    added = [task.fresh(name, now) for task in parse_tasks(listed, present=present, first=first)]
    given = {task.id for task in listed if isinstance(task, Task)} | {
        task.get("id") for task in listed if isinstance(task, Mapping)
    }
    renamed = {task.id: f"{task.id}-{word}" for task in added if task.id not in given}
    return [
        task.evolve(
            id=renamed.get(task.id, task.id),
            dependencies=tuple(renamed.get(dependency, dependency) for dependency in task.dependencies),
        )
        for task in added
    ]


def ask_for_tasks(store: JobStore, name: str, added: Iterable[Task]) -> None:
    """Ask for new tasks to be appended to a job. It does no harm to ask for the same ones again."""
    _ask(store, Request(request=Action.ADD_TASKS, job=name, tasks=tuple(added)))


def _ask(store: JobStore, request: Request) -> None:
    store.create_directories()
    path = store.inbox_path / f"{time.time_ns():020d}-{files.unique_name('')}.json"
    data = request.evolve(created_at=utc_now()).model_dump_json(exclude_none=True).encode() + b"\n"
    task_lists.check_lengths(request.tasks, data)
    files.publish(path, data, durable=True)
    bell.ring(store.base_path, bell.MANAGER)


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


def has_requests(store: JobStore, name: str) -> bool:
    """Whether a request about a job is still in the inbox.

    :raises OSError: if that cannot be read now.
    """
    return any(True for _ in _pending(store, name))


def _asked_for(store: JobStore, name: str) -> list[Task]:
    """The tasks that the job is to get by requests that have not been carried out."""
    return [task for request in _pending(store, name) for task in request.tasks]


def _pending(store: JobStore, name: str) -> Iterator[Request]:
    """The requests about a job that are still in the inbox."""
    for path in requests(store):
        with contextlib.suppress(CorruptFileError, FileNotFoundError):
            request = load_request(path)
            if request.job == name:
                yield request
