"""The results of tasks: JSON that every consumer of results can store.

Python reads more than JSON is (``NaN``, a lone surrogate), and JSON holds more than a database keeps (a NUL character)
or another process is handed (a number of any length, lists in lists without end).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from airflow_provider_air_executor.exceptions import OutputError, why_unreadable
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.masking import Mask, masked
from airflow_provider_air_executor.jobs.models import Task, TaskStatus, check_task_id
from airflow_provider_air_executor.jobs.paths import JobPaths

MAX_OUTPUT_BYTES = 1_000_000  # of the result of one task
MAX_OUTPUTS_BYTES = 5_000_000  # of the results of all tasks of a job, together
MAX_DEPTH = 100  # of nested lists and objects; Airflow 3.3.2 takes 249
_NUMBERS = range(-(2**63), 2**64)
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


class ShownResult(NamedTuple):
    """The result of one task, without secrets."""

    task_id: str
    value: Any
    problem: str | None  # why it cannot be shown


class ShownResults(NamedTuple):
    """Some results of a job, in the order of its list."""

    results: tuple[ShownResult, ...]
    total: int  # tasks that have one


def shown_results(
    paths: JobPaths, tasks: Iterable[Task], mask: Mask, *, only: Collection[str] = (), limit: int, offset: int = 0
) -> ShownResults:
    """The results of completed tasks for people. One that cannot be read does not stand for the others.

    :param tasks: the tasks of the job.
    :param only: those that are asked for, by their ids; default: all.
    :param limit: at most so many; each may have a megabyte.
    :param offset: how many to pass over.
    """
    wanted = [task for task in tasks if (not only or task.id in only) and _has_result(paths, task)]
    return ShownResults(
        tuple(_shown_result(paths, task, mask) for task in wanted[offset : offset + limit]), len(wanted)
    )


def _has_result(paths: JobPaths, task: Task) -> bool:
    if task.status is not TaskStatus.COMPLETED:
        return False
    return files.stamp(paths.output(task.id, task.attempt)) is not None


def _shown_result(paths: JobPaths, task: Task, mask: Mask) -> ShownResult:
    try:
        value = read_outputs(paths, [task]).get(task.id)
    except OutputError as error:
        return ShownResult(task.id, None, mask.text(str(error)))
    return ShownResult(task.id, masked(value, mask), None)


def read_outputs(paths: JobPaths, tasks: Iterable[Task], reserved: Sequence[frozenset[str]] = ()) -> dict[str, Any]:
    """The outputs of completed tasks of a job, from ``$AIR_EXECUTOR_OUTPUT``, by the ids of the tasks.

    :param paths: the paths of the job.
    :param reserved: see :func:`why_unfit`, which says what is refused besides.
    :raises OutputError: if a result is not JSON, is longer than 1 MB (5 MB for all together), or cannot be kept.
    """
    outputs, left = {}, MAX_OUTPUTS_BYTES
    for task in tasks:
        if task.status is TaskStatus.COMPLETED:
            with contextlib.suppress(FileNotFoundError):
                outputs[task.id], size = _read_output(paths, task, reserved)
                left -= size
            if left < 0:
                raise OutputError(
                    paths.name, task.id, "those of all tasks are too long together; write what is long to files"
                )
    return outputs


def _read_output(paths: JobPaths, task: Task, reserved: Sequence[frozenset[str]]) -> tuple[Any, int]:
    """The result of a task, and its length in bytes."""
    path = paths.output(check_task_id(task.id), task.attempt)
    try:
        if not files.is_real_directory(path.parent):
            raise FileNotFoundError(path)
        with io.BufferedReader(files.open_file(path)) as file:
            data = file.read(MAX_OUTPUT_BYTES + 1)
    except OSError as error:
        if error.errno in files.NOT_A_FILE:
            raise OutputError(paths.name, task.id, f"{path} is not a regular file") from None
        raise
    if len(data) > MAX_OUTPUT_BYTES:
        raise OutputError(
            paths.name, task.id, f"{path} is longer than {MAX_OUTPUT_BYTES} bytes; write what is long to a file"
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OutputError(
            paths.name, task.id, f"{path} is not JSON that can be read: {why_unreadable(error)}"
        ) from None
    why = why_unfit({task.id: value}, reserved)
    if why is not None:
        raise OutputError(paths.name, task.id, f"{path} cannot be kept: {why}")
    return value, len(data)


def why_unfit(value: Any, reserved: Sequence[frozenset[str]] = ()) -> str | None:
    """Why a value that was read from JSON cannot be a result; None if it can.

    :param reserved: keys with a meaning for the store of results: no object may have all of one of these sets.
    """
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            return f"lists and objects are nested more than {MAX_DEPTH} deep"
        if isinstance(item, dict):
            for keys in reserved:
                if keys <= item.keys():
                    return f"an object has {' and '.join(sorted(keys))} among its keys, which is reserved"
            waiting += ((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            waiting += ((part, depth + 1) for part in item)
        elif (why := _why_unfit_alone(item)) is not None:
            return why
    return None


def _why_unfit_alone(item: Any) -> str | None:
    if isinstance(item, str) and (found := _UNWRITABLE.search(item)):
        return "a text has a NUL character in it" if found[0] == "\0" else "a text has a lone surrogate in it"
    if isinstance(item, float) and not math.isfinite(item):
        return f"{item} is no number of JSON"
    if isinstance(item, int) and item not in _NUMBERS:
        return "a number has more than 64 bits"
    return None
