"""A task for each row of a query."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from uuid import UUID

from airflow.sdk import BaseOperator
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION

from airflow_provider_air_executor import arguments, task_templates
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.job_tasks import OnEmpty
from airflow_provider_air_executor.jobs.models import Task, parse_tasks
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.transfers.databases import database_hook, row_values

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

RowsAs = Literal["args", "env"]

_SQL_FILES = (".sql",)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Variables that decide which programs and libraries run: the content of a table must not.
_RESERVED = re.compile(r"PATH|HOME|IFS|PS4|SHELLOPTS|BASHOPTS|PYTHON[A-Z]+|(BASH_|LD_|DYLD_|AIR_EXECUTOR_).*")


class SqlToAirExecutorOperator(AirExecutorSubmitOperator):
    """Submits a job with one task for each row of a query, and waits until it has ended.

    The values of a row reach their task as arguments or as environment variables, byte for byte. They are never part of
    a shell line, and no template in them is rendered. As texts they are: numbers in decimal, ``true`` and ``false``,
    dates and times in ISO 8601, lists and dicts (of a JSON column for instance) as JSON. Binary data and other types
    are refused, and so are NUL characters: a query can cast or encode them. A value that begins with ``-`` may look
    like an option to its program; most programs take what follows an argument ``--`` as it is.

    The query runs where a new job is submitted. A retry of the Airflow task that takes up its own job runs that one's
    tasks, whatever the rows are by then.

    :param sql: the query (templated), or the name of a ``.sql`` file with it.
    :param task: the pattern of the tasks (templated): what one of the ``tasks`` of :class:`AirExecutorSubmitOperator`
        may be, without ``id`` and ``dependencies``.
    :param conn_id: the connection to the database (templated).
    :param parameters: what the query's placeholders stand for (templated), a list or a dict as its driver wants it;
        default: nothing.
    :param rows_as: how a row reaches its task. ``args`` (default): its values follow the arguments of ``command``; for
        a ``bash`` line they are ``$1``, ``$2``, ...; NULL is an empty argument. ``env``: they are environment
        variables, called like the columns in upper case, over those of the pattern's own ``env``; NULL is left out.
    :param env_prefix: what the names of these variables begin with; default: nothing.
    :param task_id_column: the column whose values are the ids of the tasks. It is not handed over to them; a query can
        give a column twice. Default: ``task-1``, ``task-2``, ...
    :param max_tasks: how many rows there may be; if there are more, nothing is submitted. Default 1000.
    :param on_empty: what happens if there is no row: ``skip`` (default) skips the Airflow task, ``fail`` fails it,
        ``succeed`` lets it succeed.
    :param hook_params: parameters of the database's hook (templated); default: none.
    :param kwargs: those of :class:`AirExecutorSubmitOperator`, without ``tasks``.
    """

    template_fields: Sequence[str] = (
        "sql",
        "parameters",
        "task",
        "conn_id",
        "hook_params",
        *(field for field in AirExecutorSubmitOperator.template_fields if field != "tasks"),
    )
    template_ext: Sequence[str] = _SQL_FILES
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **{
            field: renderer
            for field, renderer in AirExecutorSubmitOperator.template_fields_renderers.items()
            if field != "tasks"
        },
        "sql": "sql",
        "parameters": "json",
        "task": "json",
        "hook_params": "json",
    }

    def __init__(
        self,
        *,
        sql: str,
        task: Task | Mapping[str, Any] | str | Any,
        conn_id: str,
        parameters: Iterable[Any] | Mapping[str, Any] | None = None,
        rows_as: RowsAs = "args",
        env_prefix: str = "",
        task_id_column: str | None = None,
        max_tasks: int = 1000,
        on_empty: OnEmpty = "skip",
        hook_params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(tasks=SET_DURING_EXECUTION, on_empty=on_empty, **kwargs)
        self.sql = sql
        self.task = task_templates.plain(task)
        self.conn_id = conn_id
        self.parameters = parameters
        self.rows_as = rows_as
        self.env_prefix = env_prefix
        self.task_id_column = task_id_column
        self.max_tasks = max_tasks
        self.hook_params = hook_params
        with task_templates.naming(self):
            arguments.word("rows_as", rows_as, get_args(RowsAs))
            if max_tasks < 1:
                raise InvalidJobError(f"max_tasks: must be at least 1, not {max_tasks!r}")
            if env_prefix and rows_as != "env":
                raise InvalidJobError("env_prefix: is of use with rows_as='env' only")
            if env_prefix and not _VARIABLE.fullmatch(env_prefix):
                raise InvalidJobError(f"env_prefix: the name of a variable cannot begin with {env_prefix!r}")
            with _of_pattern(self.task):
                task_templates.check([self.task])

    def resolve_template_files(self) -> None:
        """Let the name of a file stand for what is in it: in ``sql``, and a script in ``task``."""
        fields, self.template_fields = self.template_fields, ("sql",)
        try:
            BaseOperator.resolve_template_files(self)
        finally:
            self.template_fields = fields
        with task_templates.naming(self), _of_pattern(self.task):
            self.task = self._with_files([self.task])[0]

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render templates, see :meth:`resolve_template_files`."""
        self.template_ext = _SQL_FILES if content is self.sql else ()
        if content is self.task:
            with task_templates.naming(self), _of_pattern(content):
                content = self._with_files([content])[0]
        return super().render_template(content, context, jinja_env, seen_oids)

    def _tasks_to_submit(self) -> tuple[Task, ...]:
        """One task for each row. What the query has changed is rolled back if something is refused."""
        with task_templates.naming(self), _of_pattern(self.task):
            (pattern,) = task_templates.to_submit([self.task], self._defaults)
        tasks: list[Task] = []

        def fetch(cursor: Any) -> list[Any]:
            if cursor.description is None:
                raise InvalidJobError("sql: the statement gives no rows; it must be a query")
            rows: list[Any] = cursor.fetchmany(self.max_tasks + 1)
            if len(rows) > self.max_tasks:
                raise InvalidJobError(f"sql: the query gives more rows than max_tasks={self.max_tasks} allows")
            if rows:
                tasks.extend(self._tasks_of(pattern, [column[0] for column in cursor.description], rows))
            return rows

        database_hook(self.conn_id, self.hook_params).run(self.sql, parameters=self.parameters, handler=fetch)
        if not tasks:
            self._nothing_to_run("sql: the query gives no rows")
        return tuple(tasks)

    def _tasks_of(self, pattern: Task, columns: Sequence[str], rows: Sequence[Any]) -> tuple[Task, ...]:
        position = None if self.task_id_column is None else _position(self.task_id_column, columns)
        variables = self._variables(columns, position) if self.rows_as == "env" else None
        tasks = []
        for index, row in enumerate(rows):
            where = [f"rows[{index}].{column}" for column in columns]
            values = [as_text(value, place) for value, place in zip(row_values(row, columns), where, strict=True)]
            task_id = "" if position is None else values.pop(position)
            if position is not None and not task_id:
                raise InvalidJobError(f"{where[position]}: the id of a task must not be empty")
            task = (
                _with_arguments(pattern, values) if variables is None else _with_variables(pattern, variables, values)
            )
            tasks.append(task.evolve(id=task_id))
        return parse_tasks(tasks, where="rows")

    def _variables(self, columns: Sequence[str], position: int | None) -> list[str]:
        """The environment variables that the columns become, without that of the ids."""
        variables = [self._variable(column) for index, column in enumerate(columns) if index != position]
        if len(set(variables)) < len(variables):
            raise InvalidJobError(f"sql: two columns would be the same environment variable: {', '.join(variables)}")
        return variables

    def _variable(self, column: str) -> str:
        """The environment variable that a column becomes.

        :raises InvalidJobError: if there can be none of this name, or it has a meaning already.
        """
        name = f"{self.env_prefix}{column.upper()}"
        if not _VARIABLE.fullmatch(name):
            raise InvalidJobError(
                f"sql: column {column!r} cannot be the environment variable {name!r}; give it another name with AS"
            )
        if _RESERVED.fullmatch(name):
            raise InvalidJobError(
                f"sql: column {column!r} must not set the environment variable {name}, which decides what runs; "
                "give it another name with AS, or set env_prefix"
            )
        return name


@contextlib.contextmanager
def _of_pattern(task: Any) -> Iterator[None]:
    """Errors that name the pattern of the tasks, and not a list, which is ours."""
    if isinstance(task, Mapping) and "id" in task:
        raise InvalidJobError("task.id: each task has an id of its own; see task_id_column")
    try:
        yield
    except InvalidJobError as error:
        raise InvalidJobError(str(error).replace("tasks[0]", "task")) from None


def _position(name: str, columns: Sequence[str]) -> int:
    """Where the column is that holds the ids; databases differ in the case of names."""
    found = [index for index, column in enumerate(columns) if column.lower() == name.lower()]
    if len(found) != 1:
        raise InvalidJobError(
            f"task_id_column: the query must give one column {name!r}; its columns are {', '.join(columns)}"
        )
    return found[0]


def _with_arguments(pattern: Task, values: Sequence[str | None]) -> Task:
    """The pattern with the values as further arguments."""
    args = pattern.args
    if pattern.command == "bash" and len(args) == 2 and args[0] == "-c":
        args = (*args, "bash")  # what follows the line is $0
    return pattern.evolve(args=(*args, *(value or "" for value in values)))


def _with_variables(pattern: Task, names: Sequence[str], values: Sequence[str | None]) -> Task:
    """The pattern with the values as environment variables."""
    given = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    return pattern.evolve(env={**(pattern.env or {}), **given})


def as_text(value: Any, where: str) -> str | None:
    """A value of a row as a text; None for NULL.

    :param where: its row and column.
    :raises InvalidJobError: if it has none, or one that no argument can be.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, Decimal):
        text = format(value, "f")
    elif isinstance(value, date | time):
        text = value.isoformat()
    elif isinstance(value, str | int | float | UUID):
        text = str(value)
    elif isinstance(value, dict | list):
        text = _as_json(value, where)
    else:
        raise InvalidJobError(f"{where}: a value of type {type(value).__name__} is no text; cast it in the query")
    if "\0" in text:
        raise InvalidJobError(f"{where}: must not contain a NUL character")
    return text


def _as_json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda item: as_text(item, where))
    except ValueError as error:
        raise InvalidJobError(f"{where}: is no JSON: {error}") from None
