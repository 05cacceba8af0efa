"""Writes the pages of the reference, ``docs/reference/``, from the code; do not edit those by hand.

    python docs/generate.py            writes the pages that have changed
    python docs/generate.py --check    only says which ones would change; the exit code is 1 then

Parameters come from signatures and docstrings, fields from the records, commands from click, routes from OpenAPI.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "airflow_provider_air_executor"
REFERENCE = ROOT / "docs" / "reference"
_NOTICE = "<!-- Made by docs/generate.py from the code. Do not edit it; run `make reference`. -->\n\n"
_WITHOUT = ("self", "args", "kwargs", "context")
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)  # parameters
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`([^`]+)`")
_TYPES = {  # of the records, in words
    "Seconds": "[duration](../jobs.md#what-is-accepted) above 0",
    "Delay": "[duration](../jobs.md#what-is-accepted)",
    "Value": "text",
    "PathText": "text",
    "Count": "whole number from 0",
    "Cpus": "number",
    "Number": "whole number",
    "NonEmptyText": "text",
    "Text": "text",
    "TaskId": "text",
    "RunnerName": "text",
    "ModuleName": "name of a module",
    "Environment": "mapping of texts",
    "Timestamp": "time, ISO 8601 in UTC",
    "JobState": "[state](../concepts.md#the-life-of-a-job)",
    "TaskStatus": "[status](../concepts.md#the-life-of-a-job)",
    "Reason": "[reason](files.md#reasons)",
    "RunIf": "`all_done`, `any_failed` or `always`",
    "Usage": "[mapping](../runners.md#resources-of-a-task)",
}
_PLURALS = {
    "list of str": "list of texts",
    "list of text": "list of texts",
    "list of name of a module": "list of names of modules",
}
_EITHER = {("Resources", "memory"): "bytes, or a text"}
# Fields that users read and do not write have no parameter in a docstring.
_FIELDS = {
    "id": "unique for each submission",
    "name": "name of the job, and of its directory",
    "state": "where the job stands",
    "status": "where the task stands",
    "job_name": "name of its job",
    "created_at": "when it was submitted",
    "updated_at": "when this file was last changed",
    "started_at": "when the first task, or the latest attempt, was started",
    "completed_at": "when the latest attempt ended",
    "submitted_by": "the Airflow task that submitted it: `dag_id`, `run_id`, `task_id`, `map_index`, `try_number`, ...",
    "cancel_requested_at": "when a cancellation was requested",
    "cancel_again_requested_at": "when a second one was requested, which ends tasks that always run, too",
    "reason": "why it failed, in a word",
    "error": "why it failed, in a sentence",
    "exit_code": "of the latest attempt, as a shell has it: 128 and the number of the signal that ended it",
    "format_version": "of the files",
}
_TIMERS = {  # of the executor
    "air_executor.queue_time": "from the submission of a job to the start of its runner",
    "air_executor.run_time": "from there to its end",
}


def pages() -> dict[str, str]:
    """The pages by their file names."""
    made: dict[str, Callable[[], Iterator[str]]] = {
        "dags.md": _dags,
        "tasks.md": _tasks,
        "jobs.md": _jobs,
        "files.md": _files,
        "client.md": _client,
        "manager-settings.md": _manager_settings,
        "airflow-settings.md": _airflow_settings,
        "command-line.md": _command_line,
        "json-api.md": _json_api,
        "server-api.md": _server_api,
        "metrics.md": _metrics,
        "exceptions.md": _exceptions,
    }
    return {name: _NOTICE + "\n".join(make()).rstrip() + "\n" for name, make in made.items()}


# -- texts -------------------------------------------------------------------------------------------------


def _markdown(text: str) -> str:
    """A piece of a docstring as Markdown, in one line."""
    text = _ROLE.sub(lambda found: f"`{found[1].lstrip('~').rsplit('.', 1)[-1] or found[1]}`", text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
    return " ".join(text.split())


def _paragraphs(text: str | None) -> list[str]:
    """The description in a docstring: its paragraphs, without its parameters."""
    described = re.split(r"^:(?:param|raises|return)", inspect.cleandoc(text or ""), maxsplit=1, flags=re.MULTILINE)[0]
    return [_markdown(paragraph) for paragraph in re.split(r"\n\s*\n", described.strip()) if paragraph.strip()]


def parameters_in(docstring: str | None) -> dict[str, str]:
    """The descriptions of the parameters in a docstring, by their names."""
    found = re.findall(
        r"^:param (\w+):(.*?)(?=^:param |^:raises |^:return|^\S|\Z)",
        inspect.cleandoc(docstring or ""),
        re.DOTALL | re.MULTILINE,
    )
    return {name: _markdown(text) for name, text in found}


def _cell(text: object) -> str:
    text = re.sub(r"(?<!\\)\|", r"\\|", str(text))
    return text if text.endswith("...") or ". " in text else text.removesuffix(".")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(_cell, row)) + " |"
    yield ""


def _prose(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, break_long_words=False) + "\n"


def _code(text: object) -> str:
    return f"`{text}`" if str(text) else ""


# -- what DAG files import ---------------------------------------------------------------------------------


def public_classes() -> list[type]:
    """What people import into DAG files, in the order of the page."""
    from airflow_provider_air_executor import (
        decorators,
        event_triggers,
        hooks,
        notifications,
        operators,
        sensors,
        triggers,
    )
    from airflow_provider_air_executor.transfers import air_executor_to_sql, sql_to_air_executor

    modules = (
        operators,
        decorators,
        sensors,
        notifications,
        sql_to_air_executor,
        air_executor_to_sql,
        event_triggers,
        hooks,
        triggers,
    )
    return [
        kind
        for module in modules
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and re.match("AirExecutor|SqlToAirEx", name)
    ]


def parameters_of(kind: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a class or a method, without those that it hands on."""
    function = kind.__init__ if inspect.isclass(kind) else kind
    return [each for each in inspect.signature(function).parameters.values() if each.name not in _WITHOUT]


def _parameter_rows(kind: Callable[..., Any], docstring: str | None) -> Iterator[Sequence[object]]:
    described, templates = parameters_in(docstring), getattr(kind, "template_fields", ())
    for parameter in parameters_of(kind):
        is_templated = "yes" if parameter.name in templates else ""
        is_optional = parameter.default is not parameter.empty or parameter.kind in _ANY_NUMBER
        required = "" if is_optional else " **required**"
        kinds = "" if parameter.annotation is parameter.empty else _code(parameter.annotation)
        yield f"`{parameter.name}`{required}", kinds, is_templated, described.get(parameter.name, "")


def _dags() -> Iterator[str]:
    yield "# Operators, sensors, decorators, triggers, hook\n"
    yield _prose(
        "All parameters are given by keyword. In addition each operator and sensor takes Airflow's own. "
        "[Jobs in a DAG](../operator.md) explains how they work together."
    )
    for kind in public_classes():
        yield f"## {kind.__name__}\n"
        yield f"`from {kind.__module__} import {kind.__name__}`\n"
        for paragraph in _paragraphs(kind.__doc__):
            yield paragraph + "\n"
        yield from _table(("parameter", "type", "templated", "meaning"), _parameter_rows(kind, kind.__doc__))
        if kind.__name__.endswith("Hook"):
            yield from _methods(kind)


def _client() -> Iterator[str]:
    from airflow_provider_air_executor.client import Client, ClientJob

    yield "# The Python client\n"
    yield _prose("`from airflow_provider_air_executor import Client`. [From Python](../python-client.md) explains it.")
    for kind in (Client, ClientJob):
        yield f"## {kind.__name__}\n"
        for paragraph in _paragraphs(kind.__doc__):
            yield paragraph + "\n"
        rows = [(row[0], row[1], row[3]) for row in _parameter_rows(kind, kind.__doc__) if row[3]]
        if rows:
            yield from _table(("parameter", "type", "meaning"), rows)
        properties = {name: member for name, member in vars(kind).items() if isinstance(member, property)}
        found = [(f"`{name}`", " ".join(_paragraphs(member.__doc__))) for name, member in properties.items()]
        yield from _table(("property", "meaning"), found)
        yield from _methods(kind)


def _methods(kind: type) -> Iterator[str]:
    for name, method in vars(kind).items():
        if name.startswith("_") or not inspect.isfunction(method) or not method.__doc__:
            continue
        yield f"### {kind.__name__}.{name}\n"
        for paragraph in _paragraphs(method.__doc__):
            yield paragraph + "\n"
        rows = list(_parameter_rows(method, method.__doc__))
        if rows:
            yield from _table(("parameter", "type", "meaning"), [(row[0], row[1], row[3]) for row in rows])


# -- records -----------------------------------------------------------------------------------------------


def _comments(module: str, name: str) -> dict[str, str]:
    """The comments behind the fields of a class, by their names."""
    path = PACKAGE / module
    lines = path.read_text().splitlines()
    (found,) = (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef) and n.name == name)
    comments = {}
    for item in found.body:
        target = item.target if isinstance(item, ast.AnnAssign) else getattr(item, "targets", [None])[0]
        if isinstance(target, ast.Name) and item.end_lineno:
            _, _, comment = lines[item.end_lineno - 1][item.end_col_offset or 0 :].partition("#")
            if comment.strip():
                comments[target.id] = comment.strip()
    return comments


def fields_of(record: Any) -> dict[str, str]:
    """The fields of a record, each with its description, from the docstring or the comment behind it."""
    path = Path(inspect.getsourcefile(record) or "").relative_to(PACKAGE)
    described = {**_FIELDS, **_comments(str(path), record.__name__), **parameters_in(record.__doc__)}
    return {name: described.get(name, "") for name in record.model_fields}


def _type_of(record: Any, name: str) -> str:
    if (record.__name__, name) in _EITHER:
        return _EITHER[record.__name__, name]
    text = str(inspect.get_annotations(record).get(name, record.model_fields[name].annotation))
    text = re.sub(r"Annotated\[((?:[^\[\],]|\[[^\]]*\])+),.*?\](?= \||$)", r"\1", text)
    text = re.sub(r" \| None\b", "", text)
    words = [_TYPES.get(word, word) for word in re.findall(r"\w+|\W+", text)]
    kind = "".join(words)
    for pattern, word in (
        (r"^tuple\[(.+), \.\.\.\]$", r"list of \1"),
        (r"^dict\[text, text\]$", "mapping of texts"),
        (r"^dict\[.*\]$", "mapping"),
        (r"^str$", "text"),
        (r"^int$", "whole number"),
        (r"^float$", "number"),
        (r"^bool$", "true or false"),
        (r"^Resources$", "[mapping](tasks.md#resources)"),
        (r"^SubmittedBy$", "mapping"),
    ):
        kind = re.sub(pattern, word, kind)
    return _PLURALS.get(kind, kind)


def _default_of(record: Any, name: str) -> str:
    field = record.model_fields[name]
    default = field.get_default(call_default_factory=True) if not field.is_required() else None
    if default is None or default in ((), {}, ""):
        return ""
    return _code(str(default).lower() if isinstance(default, bool) else f"{default}")


def _field_rows(record: Any, names: Iterable[str]) -> Iterator[Sequence[object]]:
    described = fields_of(record)
    for name in names:
        yield _code(name), _type_of(record, name), _default_of(record, name), described[name]


_FIELD_HEAD = ("field", "type", "default", "meaning")


def _tasks() -> Iterator[str]:
    from airflow_provider_air_executor.jobs.models import Resources, Task

    settable = parameters_in(Task.__doc__)
    yield "# Fields of a task\n"
    yield _prose(
        "These are the fields that a user sets, in DAGs, in job files and in Python. [Tasks of a "
        "job](../jobs.md) has examples; [files](files.md#tasksjson) has the fields that the manager "
        "writes."
    )
    yield from _table(_FIELD_HEAD, _field_rows(Task, [name for name in Task.model_fields if name in settable]))
    yield _prose(
        "`bash` takes the place of `command` and `args`: a line for `bash -c`. A task that is a text is such a line."
    )
    yield _prose(
        "A field with the name of an engine holds the options of that engine: [`slurm`](../slurm.md), "
        "[`kubernetes`](../kubernetes.md#options-of-a-pod)."
    )
    yield "## resources\n"
    yield _paragraphs(Resources.__doc__)[0] + "\n"
    yield from _table(_FIELD_HEAD, _field_rows(Resources, Resources.model_fields))


def _jobs() -> Iterator[str]:
    from airflow_provider_air_executor.jobs.models import Job
    from airflow_provider_air_executor.jobs.spec import JobSpec

    described = parameters_in(JobSpec.__doc__)
    yield "# Fields of a job\n"
    yield _prose(
        "These are the fields that a user sets: in the file for `air-executor submit`, in "
        "`AirExecutorHook.create_job`, in `JobStore.submit`, and, under the same names, in the operator."
    )
    rows: list[Sequence[object]] = [
        ("`name`", "text", "1 to 100 ASCII letters, digits, `-` or `_`; a name exists once in a base path"),
        ("`tasks`", "list of [tasks](tasks.md)", "at least one"),
    ]
    rows += [
        (_code(name), _type_of(Job, name) if name in Job.model_fields else "", described.get(name, ""))
        for name in JobSpec.__annotations__
    ]
    yield from _table(("field", "type", "meaning"), rows)


def _files() -> Iterator[str]:
    from airflow_provider_air_executor.jobs.models import Job, Reason, Task

    yield "# Files of a job\n"
    yield _prose(
        "`jobs/<job>/` below the base path. Fields that are not known are kept when a file is written "
        "back. A program that writes a job itself gives `id`, `name`, `state` (`waiting`) and the tasks "
        "with `id` and `command`; the rest has defaults."
    )
    yield "## state.json\n"
    yield from _table(_FIELD_HEAD, _field_rows(Job, Job.model_fields))
    yield "## tasks.json\n"
    yield _prose("A list of tasks, in the order in which they were given.")
    yield from _table(_FIELD_HEAD, _field_rows(Task, Task.model_fields))
    yield "## Reasons\n"
    yield _prose("Why a task or a job failed. Exit codes 129 to 192 are signals, as shells have it.")
    comments = _comments("jobs/models.py", "Reason")
    yield from _table(("reason", "meaning"), [(_code(each.value), comments.get(each.name, "")) for each in Reason])


# -- settings ----------------------------------------------------------------------------------------------


def _manager_settings() -> Iterator[str]:
    from airflow_provider_air_executor.manager.settings import ENVIRONMENT_PREFIX, Settings

    described = parameters_in(Settings.__doc__)
    yield "# Settings of the manager\n"
    yield _prose(
        "A flag of `air-executor manager` overrides a variable, and a variable overrides `config.yaml` in the base "
        "path (or the file after `--config`). An unknown key is reported and ignored. With a value that is not valid "
        "the manager does not start."
    )
    rows = []
    for name in Settings.model_fields:
        variable = "" if name == "runners" else _code(ENVIRONMENT_PREFIX + name.upper())
        rows.append((_code(name), variable, described.get(name, "")))
    yield from _table(("key in `config.yaml`", "variable", "meaning"), rows)
    yield _prose(
        "`runners` holds the options of engines: [Slurm](../slurm.md), "
        "[Kubernetes](../kubernetes.md#the-engines-settings)."
    )


def _airflow_settings() -> Iterator[str]:
    from airflow_provider_air_executor import get_provider_info

    info = get_provider_info()
    yield "# Airflow's settings: the section `[air_executor]`\n"
    yield _prose(
        "In `airflow.cfg`, or as variables `AIRFLOW__AIR_EXECUTOR__...`. `airflow config list --section "
        "air_executor` shows them. [The executor](../executor.md#settings) explains those that concern "
        "it."
    )
    section = info["config"]["air_executor"]["options"]
    rows = []
    for name, option in section.items():
        default = str(option["default"] or "").replace("{{}}", "{}")
        rows.append((_code(name), option["type"], _code(default), _markdown(str(option["description"]))))
    yield from _table(("setting", "type", "default", "meaning"), rows)
    (connection,) = info["connection-types"]
    yield f"## The connection `{connection['connection-type']}`\n"
    yield _prose("Its extra fields, in the form of Airflow's UI or as JSON (`--conn-extra`):")
    fields = connection["conn-fields"].items()
    yield from _table(("field", "label", "meaning"), [(_code(n), f["label"], f["description"]) for n, f in fields])


# -- command line ------------------------------------------------------------------------------------------


def _command_line() -> Iterator[str]:
    import click

    from airflow_provider_air_executor.manager.cli import main

    yield "# Commands\n"
    yield _prose("`airflow air-executor` has the same commands. [The command line](../command-line.md) explains them.")
    top = click.Context(main, info_name="air-executor")
    for paragraph in _click_paragraphs(main.help):
        yield paragraph + "\n"
    yield from _table(("option", "meaning"), _option_rows(main, top))
    yield from _commands(main, top)


def _commands(group: Any, context: Any) -> Iterator[str]:
    import click

    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        yield f"## {inner.command_path}\n"
        usage = " ".join((inner.command_path, *command.collect_usage_pieces(inner)))
        yield f"```text\n{usage}\n```\n"
        for paragraph in _click_paragraphs(command.help):
            yield paragraph + "\n"
        if isinstance(command, click.Group):
            yield from _commands(command, inner)
        else:
            yield from _table(("option", "meaning"), _option_rows(command, inner))


def _click_paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.replace("\b", "").split()) for part in re.split(r"\n\s*\n", inspect.cleandoc(text or ""))]


def _option_rows(command: Any, context: Any) -> Iterator[Sequence[object]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)  # of an argument in some versions of click only
        if record is not None and record[1] and "--help" not in parameter.opts:
            yield _code(record[0]), record[1]


# -- JSON API ----------------------------------------------------------------------------------------------


def _json_api() -> Iterator[str]:
    from airflow_provider_air_executor.plugin.app import app

    yield "# JSON API\n"
    yield _prose(
        "Below `/air-executor` of Airflow's API server. `/air-executor/api/openapi.json` has the same with all schemas."
    )
    yield _prose("[Its use](../ui.md#the-json-api), and [the rights that it needs](../ui.md#rights).")
    yield from _routes(app.openapi(), "/api/")


def _server_api() -> Iterator[str]:
    from airflow_provider_air_executor.jobs.file_jobs import FileJobs
    from airflow_provider_air_executor.jobs.store import JobStore
    from airflow_provider_air_executor.server.app import application
    from airflow_provider_air_executor.server.service import Service

    with tempfile.TemporaryDirectory() as base_path:
        described = application(Service(FileJobs(JobStore(base_path)))).openapi()
    yield "# The API of a server: /v1\n"
    yield _prose(
        "Of `air-executor manager --listen` and `air-executor serve`; `/v1/openapi.json` has it with all schemas. "
        "[How to reach a manager on another machine](../remote.md). Many of these routes are those of the pages, too "
        "([JSON API](json-api.md)): here all jobs are seen, and `run_url` and `task_url` are null."
    )
    yield from _routes(described, "/v1/")


def _routes(described: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """The routes below a path, and the records that they answer with."""
    schemas = described["components"]["schemas"]
    for path, methods in sorted(described["paths"].items()):
        if not path.startswith(prefix):
            continue
        for method, operation in methods.items():
            yield f"## {method.upper()} {path}\n"
            yield from _operation(operation)
    yield "## Records\n"
    for name in sorted(schemas):
        if schemas[name].get("properties") and name not in ("HTTPValidationError", "ValidationError"):
            yield f"### {name}\n"
            yield _markdown(schemas[name].get("description", "")).split(" :param")[0] + "\n"
            yield from _table(("field", "type", "meaning"), _schema_rows(schemas[name]))


def _operation(operation: Mapping[str, Any]) -> Iterator[str]:
    yield _markdown(operation.get("description") or operation.get("summary", "")) + "\n"
    parameters = [each for each in operation.get("parameters", ()) if each["in"] != "header"]
    rows = []
    for each in parameters:
        schema = each["schema"]
        default = schema.get("default")
        rows.append(
            (
                _code(each["name"]),
                each["in"],
                _schema(schema),
                "" if default in (None, "", []) else _code(default),
                _markdown(each.get("description", "")),
            )
        )
    if rows:
        yield from _table(("parameter", "in", "type", "default", "meaning"), rows)
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body:
        yield f"Body: {_schema(body)}.\n"
    answers = []
    for code, answer in sorted(operation["responses"].items()):
        if code != "422":
            contents = answer.get("content", {})
            content = contents.get("application/json", {}).get("schema", {}) or _other_content(contents)
            meaning = _markdown(answer.get("description", "")).replace("Successful Response", "")
            answers.append((code, content if isinstance(content, str) else _schema(content), meaning))
    yield from _table(("answer", "JSON", "meaning"), answers)


def _other_content(contents: Mapping[str, Any]) -> str:
    """What an answer is that is no JSON of its own, or an error."""
    return ", ".join("" if "problem" in kind else _code(kind) for kind in contents if kind != "application/json")


def _schema(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return _code(name)
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_schema(each) for each in schema[several] if each.get("type") != "null"))
    if schema.get("type") == "array":
        return f"list of {_schema(schema.get('items', {}))}".replace("of text", "of texts")
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    return words.get(schema.get("type", ""), "mapping" if schema.get("type") == "object" else "anything")


def _schema_rows(schema: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    described = parameters_in(schema.get("description"))
    for name, field in schema["properties"].items():
        yield _code(name), _schema(field), _markdown(field.get("description", "") or described.get(name, ""))


# -- metrics and exceptions --------------------------------------------------------------------------------


def timers() -> set[str]:
    """The names of the timers that the executor emits."""
    found: set[str] = set()
    for path in (PACKAGE / "executor").glob("*.py"):
        found.update(re.findall(r"\btiming\(\"([\w.]+)\"", path.read_text()))
    return found


def _metrics() -> Iterator[str]:
    from airflow_provider_air_executor.jobs.manager_info import ManagerInfo
    from airflow_provider_air_executor.manager.metrics import metrics

    yield "# Metrics\n"
    yield "## Of a manager\n"
    yield _prose(
        "As OpenMetrics text, or by OpenTelemetry, where a name begins with `air_executor.` in place of "
        "`air_executor_` and has no suffix. [More](../observability.md#metrics)."
    )
    suffixes = {"counter": "_total", "info": "_info"}
    rows = [
        (_code(f"air_executor_{m.name}{suffixes.get(m.kind, '')}"), m.kind, m.meaning) for m in metrics(ManagerInfo(0))
    ]
    yield from _table(("metric", "kind", "meaning"), rows)
    yield "## Of the executor\n"
    yield _prose(
        "With Airflow's own metrics (StatsD, OpenTelemetry), recorded when a job has ended, with the tag "
        "`kind`: `task`, `callback` or `connection_test`. "
        "[More](../executor.md#metrics-logs-and-the-command-line)."
    )
    yield from _table(("timer", "meaning"), [(_code(name), _TIMERS.get(name, "")) for name in sorted(timers())])


def _exceptions() -> Iterator[str]:
    from airflow_provider_air_executor import exceptions

    yield "# Exceptions\n"
    yield _prose(
        "In `airflow_provider_air_executor.exceptions`. Each message states what is wrong and what to do; "
        "[troubleshooting](../troubleshooting.md) lists them by their words."
    )
    rows = []
    for name, kind in vars(exceptions).items():
        if inspect.isclass(kind) and kind.__module__ == exceptions.__name__:
            bases = ", ".join(_code(base.__name__) for base in kind.__bases__)
            rows.append((_code(name), bases, " ".join(_paragraphs(kind.__doc__))))
    yield from _table(("exception", "is a", "meaning"), rows)


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or say which ones are not as they would be written."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["AIRFLOW_HOME"] = home  # importing Airflow writes its configuration there
        made = pages()
    stale = [name for name, text in made.items() if not _is(REFERENCE / name, text)]
    stale += sorted(path.name for path in REFERENCE.glob("*.md") if path.name not in (*made, "index.md"))
    if "--check" in arguments:
        for name in stale:
            print(f"docs/reference/{name} is not what the code gives; run make reference", file=sys.stderr)
        return bool(stale)
    for name in stale:
        if name in made:
            (REFERENCE / name).write_text(made[name])
        else:
            (REFERENCE / name).unlink()
        print(f"docs/reference/{name}")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
