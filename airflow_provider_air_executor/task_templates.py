"""Tasks with templates in them, and outputs of other Airflow tasks: checked before they are rendered, taken afterwards.

Nothing of Airflow is imported here: an output of another task is what has a method ``resolve``, as Airflow has it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import PurePath
from typing import Any

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs.models import Task, check_task_id, parse_tasks

_MARKS = ("{{", "{%", "{#")
_TEXT = "x"  # stands for a text that is not known yet
_NOTHING: Any = object()  # stands for a value that is not known yet and need not be there
# Fields that a template may leave empty: then the task does not say.
_MAY_BE_EMPTY = ("cwd", "runner", "timeout", "retries", "retry_delay", "run_if", "resources", "append_env")
_LISTS = ("args", "dependencies", "preload")
_EMPTY = (None, "", "None")
_FIELDS = {*Task.model_fields, "bash"}
# Fields that the manager writes; a new task has none of them.
_OF_MANAGER = {
    *("job_name", "status", "created_at", "started_at", "completed_at", "error", "exit_code", "reason"),
    *("attempt", "attempts_before", "where", "usage", "cancel_requested_at"),
}
_PLACE = re.compile(r"\btasks\[(\d+)\][^:;\s]*")


def has_template(value: Any) -> bool:
    """Whether there is a template in a value, or in what it consists of."""
    if isinstance(value, str):
        return any(mark in value for mark in _MARKS)
    if isinstance(value, Mapping):
        return any(has_template(part) for pair in value.items() for part in pair)
    return isinstance(value, list | tuple) and any(has_template(part) for part in value)


def is_unknown(value: Any) -> bool:
    """Whether a value is known only when the Airflow task runs: a template, or the output of another task."""
    if isinstance(value, str):
        return has_template(value)
    return hasattr(value, "resolve") and not isinstance(value, os.PathLike)


def _has_unknown(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_unknown, value.values()))
    return any(map(_has_unknown, value)) if isinstance(value, list | tuple) else is_unknown(value)


def plain(value: Any) -> Any:
    """Tasks, or parts of them, as lists, dicts, texts and numbers, in which Airflow can render templates.

    What is not known yet stays as it is.
    """
    if isinstance(value, Task):
        return value.model_dump(mode="json", exclude_unset=True, exclude=_OF_MANAGER)
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value) if isinstance(value, PurePath) else value


# -- before rendering ------------------------------------------------------------------------------------------


def check(tasks: Any) -> None:
    """Check a list of tasks as far as it is known before it is rendered.

    What is not a list yet (the output of another task, a template) is checked when the task runs. Of a list each field
    is checked that is neither a template nor the output of another task, and each dependency whose name is known.

    :raises InvalidJobError: naming the field that is not valid.
    """
    if is_unknown(tasks):
        return
    if isinstance(tasks, str):
        raise InvalidJobError("tasks: must be a list of tasks; a single bash line goes into a list too")
    if isinstance(tasks, Mapping | bytes | int | float) or tasks is None:
        raise InvalidJobError(f"tasks: must be a list of tasks, not {type(tasks).__name__}")
    if isinstance(tasks, list | tuple):
        names = _Names(tasks)
        _refuse_fields_of_manager(tasks)
        parse_tasks([_known_task(task, position, names) for position, task in enumerate(tasks)])


def _refuse_fields_of_manager(tasks: Sequence[Any]) -> None:
    """Refuse what would be ignored. In a list that was read from a job, when the Airflow task runs, it is ignored."""
    for position, task in enumerate(tasks):
        for name in task if isinstance(task, Mapping) else ():
            if name in _OF_MANAGER:
                raise InvalidJobError(f"tasks[{position}].{name}: is written by the manager; leave it out")


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Check the fields that all tasks of an operator have, as far as they are known.

    :raises InvalidJobError: naming the field that is not valid.
    """
    known = _known_task({"bash": "true", **defaults}, 0, _Names([]))
    try:
        parse_tasks([known], where="")
    except InvalidJobError as error:
        raise InvalidJobError(str(error).replace("[0].", "")) from None  # the list is ours


class _Names:
    """The ids of a list of tasks, as far as they are known.

    Two templates with the same text give the same id, so a dependency on such an id is checked by that text.
    """

    def __init__(self, tasks: Sequence[Any]) -> None:
        self.known = {self.of(task, position) for position, task in enumerate(tasks)}
        self.are_all_known = not any(
            is_unknown(task.get("id")) if isinstance(task, Mapping) else _is_whole_template(task) for task in tasks
        )

    @staticmethod
    def of(task: Any, position: int) -> str:
        """The id of a task, or what stands for it."""
        given = task.get("id") if isinstance(task, Mapping) else None
        if given:
            return _Names.stand_in(given) or f"{{{{{position}}}}}"
        return f"{{{{{position}}}}}" if _is_whole_template(task) else f"task-{position + 1}"

    @staticmethod
    def stand_in(name: Any) -> str:
        """A name, or a valid one that stands for a template; empty if nothing is known of it."""
        if not isinstance(name, str):
            return ""
        with contextlib.suppress(InvalidJobError):
            return check_task_id(name)
        return f"{{{{{name.encode().hex()[:100]}}}}}" if has_template(name) else name

    def dependencies(self, given: Sequence[Any]) -> list[Any]:
        """Those of which it is known whether there are such tasks."""
        stand_ins = [name if not is_unknown(name) else self.stand_in(name) for name in given]
        return [
            name
            for name, as_given in zip(stand_ins, given, strict=True)
            if not isinstance(name, str) or name in self.known or (self.are_all_known and not is_unknown(as_given))
        ]


def _is_whole_template(task: Any) -> bool:
    """Whether nothing is known of a task: it is the output of another one, or a template and nothing else."""
    if isinstance(task, str):
        return task.startswith("{{") and task.endswith("}}")
    return is_unknown(task)


def _known_task(task: Any, position: int, names: _Names) -> Any:
    """What is known of a task, with something valid in the place of what is not."""
    if _is_whole_template(task):
        return {"id": names.of(task, position), "bash": "true"}
    if not isinstance(task, Mapping):
        return task
    known = {name: _known_value(name, value, names) for name, value in task.items()}
    if is_unknown(task.get("id")):
        known["id"] = names.of(task, position)
    if task.get("dependencies") and known["dependencies"] in (_NOTHING, []):  # none is known yet
        known["run_if"] = _NOTHING
    return {name: value for name, value in known.items() if value is not _NOTHING}


def _known_value(name: str, value: Any, names: _Names) -> Any:
    if name in ("command", "bash"):
        return _known_text(value)
    if name == "args":
        return [] if is_unknown(value) else _each(value, _known_text)
    if name == "env" and isinstance(value, Mapping):
        return {key: _known_text(item) for key, item in value.items()}
    if name == "dependencies" and isinstance(value, list | tuple):
        return names.dependencies(value)
    if is_unknown(value):
        return _NOTHING if name in Task.model_fields else None  # the name itself is known
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if not _has_unknown(item)}
    return [item for item in value if not is_unknown(item)] if isinstance(value, list | tuple) else value


def _known_text(value: Any) -> Any:
    return value if isinstance(value, str) or not is_unknown(value) else _TEXT


def _each(value: Any, change: Any) -> Any:
    return [change(item) for item in value] if isinstance(value, list | tuple) else value


# -- after rendering -------------------------------------------------------------------------------------------


def rendered(tasks: Any) -> Any:
    """A list of tasks as it is after rendering, with values in place of the texts that templates give.

    A template of Airflow gives text. A list or a dict is read from JSON. A number or a name that became empty, or
    ``None``, is left out: ``{{ params.timeout or '' }}`` leaves it to the default.

    :raises InvalidJobError: if it is not a list.
    """
    if isinstance(tasks, Mapping):
        raise InvalidJobError(f"tasks: must be a list of tasks, not {type(tasks).__name__}")
    return _each(list_of(tasks), _rendered_task)


def list_of(tasks: Any) -> Any:
    """A list that a template has rendered as text."""
    if isinstance(tasks, str):
        try:
            return json.loads(tasks)
        except ValueError as error:
            raise InvalidJobError(
                f"tasks: the template did not give a JSON list: {error}; end it with '| tojson', or set "
                "render_template_as_native_obj=True in the DAG"
            ) from None
    return list(tasks) if not isinstance(tasks, Mapping) and hasattr(tasks, "__iter__") else tasks


def _rendered_task(task: Any) -> Any:
    if not isinstance(task, Mapping):
        return task
    values = {name: _rendered_value(name, plain(value)) for name, value in task.items()}
    return {name: value for name, value in values.items() if not (name in _MAY_BE_EMPTY and value in _EMPTY)}


def _rendered_value(name: str, value: Any) -> Any:
    if name in _LISTS:
        return from_json(name, value, list)
    if name in ("env", "resources") or name not in _FIELDS:
        value = from_json(name, value, dict)
    if name == "resources" and isinstance(value, Mapping):
        return {key: item for key, item in value.items() if item not in _EMPTY}
    return value


def from_json(name: str, value: Any, kind: type) -> Any:
    """A list or a dict that a template has rendered as text; other values as they are.

    :raises InvalidJobError: if the text is a list or dict in another form than JSON.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text in _EMPTY:
        return kind()
    if text[0] != ("[" if kind is list else "{"):
        return value
    try:
        found = json.loads(text)
    except ValueError:
        raise InvalidJobError(
            f"{name}: the template gave a text that is not JSON; end it with '| tojson', or set "
            "render_template_as_native_obj=True in the DAG"
        ) from None
    return found if isinstance(found, kind) else value


def to_submit(tasks: Any, defaults: Mapping[str, Any]) -> tuple[Task, ...]:
    """The tasks of a new job, after rendering.

    :param defaults: the fields that all of them have, rendered as well.
    :raises InvalidJobError: naming the field that is not valid.
    """
    return parse_tasks(with_defaults(rendered(tasks), _rendered_task(defaults)))


def with_defaults(tasks: Any, defaults: Mapping[str, Any]) -> Any:
    """Tasks with the fields that all of them have; what a task says itself wins, for ``env`` variable by variable."""
    given = {name: value for name, value in defaults.items() if value is not None}
    return _each(tasks, lambda task: _with_defaults(task, given)) if given else tasks


def _with_defaults(task: Any, defaults: Mapping[str, Any]) -> Any:
    if isinstance(task, str):
        return {"bash": task, **defaults}
    if not isinstance(task, Mapping):
        return task
    common, own = defaults.get("env"), task.get("env")
    if isinstance(common, Mapping) and isinstance(own, Mapping):
        return {**defaults, **task, "env": {**common, **own}}
    return {**defaults, **task}


# -- errors ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def naming(operator: Any, tasks: Collection[Any] | Any = ()) -> Iterator[None]:
    """Errors that name DAG and task of Airflow, the task of the job, and the line of the DAG's file.

    Airflow's list of import errors shows the message, and of the lines that led to it only the last ones.

    :param operator: the task of Airflow.
    :param tasks: those of the job.
    """
    try:
        yield
    except InvalidJobError as error:
        ids = [task.get("id") if isinstance(task, Mapping) else None for task in tasks] if _is_list(tasks) else []

        def with_id(found: re.Match[str]) -> str:
            position = int(found[1])
            task_id = ids[position] if position < len(ids) else None
            return f"{found[0]} of {task_id!r}" if task_id and not found[0].endswith(".id") else found[0]

        said = _PLACE.sub(with_id, str(error))
        raise InvalidJobError(f"{_name_of(operator)}: {said}{_line_in_file(operator)}") from None


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _name_of(operator: Any) -> str:
    dag = f"DAG {operator.dag_id!r}, " if operator.has_dag() else ""
    return f"{dag}task {operator.task_id!r}"


def _line_in_file(operator: Any) -> str:
    """Which line of its DAG's file makes this task, while that is parsed; empty when the task runs."""
    file = operator.dag.fileloc if operator.has_dag() else None
    frame = sys._getframe()  # noqa: SLF001 - the one way to it that costs nothing else
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == file:
            return f" ({os.path.basename(file)}, line {frame.f_lineno})"
    return ""
