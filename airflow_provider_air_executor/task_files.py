"""Tasks in files beside the DAG: scripts, and YAML files with a whole job.

The DAG's template environment finds files, as it does for the BashOperator: in the folder of the DAG, and in its
``template_searchpath``. Only a bash line can be a script, and only ``tasks`` as a whole a job; no argument is read.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import jinja2
import yaml

from airflow_provider_air_executor.exceptions import InvalidJobError, why_unreadable
from airflow_provider_air_executor.jobs import spec
from airflow_provider_air_executor.task_templates import has_template

if TYPE_CHECKING:
    from airflow.sdk import Context

SCRIPTS = (".sh", ".bash")
JOBS = (".yaml", ".yml")
# Fields of a job file. The name is for the command line: a job's name exists once, and each run needs its own.
_FIELDS = ("tasks", "name", *spec.FIELDS)
# The shell would search a word without a slash in PATH; a path from the root, or from where it runs, is its business.
_PATH = re.compile(r"(?![/~.$-])[^\s;&|<>()`'\"$]+")
_LONGEST = 131_000  # bytes of an argument; Linux takes no longer one


def is_script(line: Any) -> bool:
    """Whether a bash line is the name of a script, and not a command."""
    return isinstance(line, str) and line.endswith(SCRIPTS) and _is_path(line)


def is_job(tasks: Any) -> bool:
    """Whether ``tasks`` is the name of a file."""
    return isinstance(tasks, str) and tasks.endswith(JOBS) and _is_path(tasks)


def _is_path(text: str) -> bool:
    return bool(_PATH.fullmatch(text)) and not has_template(text)


def with_scripts(tasks: Any, read: Callable[[str], str]) -> Any:
    """The tasks with the content of scripts in the place of their names; the same object if there is no script.

    :param read: reads a script, and renders it if the tasks have been rendered.
    :raises InvalidJobError: if a script cannot be found.
    """
    if not isinstance(tasks, list | tuple) or not has_files(tasks):
        return tasks
    return [_with_script(task, f"tasks[{position}]", read) for position, task in enumerate(tasks)]


def has_files(tasks: Any) -> bool:
    """Whether tasks name a file that has not been read yet."""
    return is_job(tasks) or (isinstance(tasks, list | tuple) and any(map(_has_script, tasks)))


def _has_script(task: Any) -> bool:
    return is_script(task.get("bash") if isinstance(task, Mapping) else task)


def _with_script(task: Any, where: str, read: Callable[[str], str]) -> Any:
    if not _has_script(task):
        return task
    if isinstance(task, Mapping):
        return {**task, "bash": _script(task["bash"], f"{where}.bash", read)}
    return _script(task, where, read)


def _script(name: str, where: str, read: Callable[[str], str]) -> str:
    try:
        text = read(name)
    except InvalidJobError as error:
        raise InvalidJobError(f"{where}: {error}; './{name}' would run it where the task runs") from None
    if len(text.encode()) > _LONGEST:
        raise InvalidJobError(
            f"{where}: {name} is longer than {_LONGEST} bytes, which no command line can be; "
            "put it where the task runs, and run it by its path"
        )
    return text


def read(environment: jinja2.Environment, name: str, context: Context | None = None) -> str:
    """The text of a file of the DAG.

    :param context: what it is rendered with; default: it is not rendered.
    :raises InvalidJobError: if it cannot be found or read.
    """
    try:
        if context is None:
            loader = environment.loader or jinja2.DictLoader({})
            return loader.get_source(environment, name)[0]
        template = environment.get_template(name)
    except (jinja2.TemplateNotFound, TypeError):  # the latter without any folder
        folders = ", ".join(map(str, getattr(environment.loader, "searchpath", ()))) or "none, without a DAG"
        raise InvalidJobError(
            f"there is no file {name!r} in the DAG's folder or its template_searchpath ({folders})"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidJobError(f"{name} cannot be read: {error}") from None
    # A native environment would make other values of the text.
    return "".join(map(str, template.root_render_func(template.new_context(dict(context)))))


def job_of(name: str, text: str) -> Any:
    """The job that a YAML file describes: a list of tasks, or a mapping with ``tasks`` and other fields.

    :param text: what is in the file.
    :raises InvalidJobError: if it is no job; naming the line, if it is not YAML.
    """
    found = _yaml(name, text)
    if isinstance(found, list):
        return found
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), list | str):
        raise InvalidJobError(f"tasks: {name} must hold a list of tasks, or a mapping with a list named 'tasks'")
    for field in found:
        if field not in _FIELDS:
            close = difflib.get_close_matches(str(field), _FIELDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; a job has {', '.join(_FIELDS)}"
            raise InvalidJobError(f"{field}: {name} must not have a field of this name{hint}")
    return found


def is_rendered_first(text: str) -> bool:
    """Whether a file becomes YAML by its templates, with a loop for instance.

    One that is YAML as it stands has its texts rendered one by one, like those in a DAG.
    """
    if not has_template(text):
        return False
    try:
        _yaml("", text)
    except InvalidJobError:
        return True
    return False


def _yaml(name: str, text: str) -> Any:
    try:
        return _as_texts(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidJobError(f"tasks: {name} is not YAML: {' '.join(why_unreadable(error).split())}") from None


def _as_texts(value: Any) -> Any:
    """What YAML takes for a date is a text to a command."""
    if isinstance(value, dict):
        return {key: _as_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_texts(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
