"""Between databases and jobs: a task for each row of a query, and the history of a job in a table.

Any connection of common-sql will do, that is one whose hook is a
:class:`~airflow.providers.common.sql.hooks.sql.DbApiHook`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from uuid import UUID

from airflow.providers.common.sql.hooks.sql import DbApiHook
from airflow.sdk import BaseHook, BaseOperator
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION
from airflow.sdk.exceptions import AirflowSkipException

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.models import Job, Task, parse_tasks, utc_now, valid_job_name
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

RowsAs = Literal["args", "env"]
OnEmpty = Literal["skip", "fail"]

_SQL_FILES = (".sql",)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Variables that decide which programs and libraries run: the content of a table must not.
_RESERVED = re.compile(r"PATH|HOME|IFS|PS4|SHELLOPTS|BASHOPTS|PYTHON[A-Z]+|(BASH_|LD_|DYLD_|AIR_EXECUTOR_).*")
_TABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*){0,2}")
_TEMPLATE_MARK = "{"

_Key = tuple[str, int]  # of an attempt within its job: task id and number
_COLUMNS = {
    "job_name": "TEXT NOT NULL",
    "job_id": "TEXT NOT NULL",
    "task_id": "TEXT NOT NULL",
    "attempt": "INTEGER NOT NULL",
    "status": "TEXT NOT NULL",
    "reason": "TEXT",
    "exit_code": "INTEGER",
    "error": "TEXT",
    "command": "TEXT",
    "started_at": "TIMESTAMP WITH TIME ZONE",
    "completed_at": "TIMESTAMP WITH TIME ZONE",
    "seconds": "DOUBLE PRECISION",
    "dag_id": "TEXT",
    "run_id": "TEXT",
    "recorded_at": "TIMESTAMP WITH TIME ZONE NOT NULL",
}


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
    :param on_empty: what happens if there is no row: ``skip`` (default) skips the Airflow task, ``fail`` fails it.
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
        super().__init__(tasks=SET_DURING_EXECUTION, **kwargs)
        self.sql = sql
        self.task = task.model_dump(mode="json", exclude_unset=True) if isinstance(task, Task) else task
        self.conn_id = conn_id
        self.parameters = parameters
        self.rows_as = rows_as
        self.env_prefix = env_prefix
        self.task_id_column = task_id_column
        self.max_tasks = max_tasks
        self.on_empty = on_empty
        self.hook_params = hook_params
        for name, given, known in (("rows_as", rows_as, get_args(RowsAs)), ("on_empty", on_empty, get_args(OnEmpty))):
            if given not in known:
                raise InvalidJobError(f"{name}: must be one of {', '.join(known)}, not {given!r}")
        if max_tasks < 1:
            raise InvalidJobError(f"max_tasks: must be at least 1, not {max_tasks!r}")
        if env_prefix and rows_as != "env":
            raise InvalidJobError("env_prefix: is of use with rows_as='env' only")
        if env_prefix and not _VARIABLE.fullmatch(env_prefix):
            raise InvalidJobError(f"env_prefix: the name of a variable cannot begin with {env_prefix!r}")
        if not hasattr(self.task, "resolve"):  # what another Airflow task gives is checked when this one runs
            _pattern_of(self.task)

    def resolve_template_files(self) -> None:
        """Let the name of a file stand for what is in it: in ``sql`` only, it may be an argument elsewhere."""
        fields, self.template_fields = self.template_fields, ("sql",)
        try:
            super().resolve_template_files()
        finally:
            self.template_fields = fields

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render templates, see :meth:`resolve_template_files`."""
        self.template_ext = _SQL_FILES if content is self.sql else ()
        return super().render_template(content, context, jinja_env, seen_oids)

    def _tasks_to_submit(self) -> tuple[Task, ...]:
        """One task for each row. What the query has changed is rolled back if something is refused."""
        pattern = _pattern_of(self.task)
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

        _database(self.conn_id, self.hook_params).run(self.sql, parameters=self.parameters, handler=fetch)
        if tasks:
            return tuple(tasks)
        if self.on_empty == "fail":
            raise InvalidJobError("sql: the query gives no rows; on_empty='skip' would skip the task")
        raise AirflowSkipException("the query gives no rows")

    def _tasks_of(self, pattern: Task, columns: Sequence[str], rows: Sequence[Any]) -> tuple[Task, ...]:
        position = None if self.task_id_column is None else _position(self.task_id_column, columns)
        variables = self._variables(columns, position) if self.rows_as == "env" else None
        tasks = []
        for index, row in enumerate(rows):
            where = [f"rows[{index}].{column}" for column in columns]
            values = [_as_text(value, place) for value, place in zip(_values(row, columns), where, strict=True)]
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


class AirExecutorToSqlOperator(BaseOperator):
    """Writes the history of a job to a table: one row for each attempt of each of its tasks.

    It can be run any number of times, while the job runs and after it was retried: what has changed is written in one
    transaction, and what has not stays as it is. A task that waits for its next attempt, or failed without it, has a
    row for that attempt, without ``started_at``.

    ``tasks.json`` tells of the latest attempt of each task only. Of an attempt before it, ``reason`` and ``error`` are
    known if its row was written while it was the latest one; its other columns come from what its runner has recorded.
    A retry of the whole job removes these records: write the history before that, if it is to be whole.

    The columns are ``job_name``, ``job_id``, ``task_id``, ``attempt`` (1 for the first), ``status``, ``reason``,
    ``exit_code``, ``error``, ``command``, ``started_at``, ``completed_at``, ``seconds``, ``dag_id`` and ``run_id`` (of
    the Airflow task that submitted the job), and ``recorded_at``. The primary key is ``job_id, task_id, attempt``. The
    table may have more columns. Times are in UTC.

    The return value is the number of rows that were written.

    :param job_name: the job (templated); the name that was given to :class:`AirExecutorSubmitOperator`, or that it
        returned.
    :param conn_id: the connection to the database (templated).
    :param table: the table (templated), with its schema before it if need be: ``history`` or ``jobs.history``.
    :param create_table: whether to create the table if it is not there (SQLite, PostgreSQL); default False.
    :param include_command: whether to write the tasks' commands and arguments, as a JSON list; default False, since
        there may be secrets in them.
    :param hook_params: parameters of the database's hook (templated); default: none.
    :param air_executor_conn_id: the connection (templated), see
        :class:`~airflow_provider_air_executor.hooks.AirExecutorHook`; default ``air_executor_default``.
    """

    template_fields: Sequence[str] = ("job_name", "conn_id", "table", "hook_params", "air_executor_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"hook_params": "json"}
    ui_color = "#cfe2f3"

    def __init__(
        self,
        *,
        job_name: str,
        conn_id: str,
        table: str,
        create_table: bool = False,
        include_command: bool = False,
        hook_params: Mapping[str, Any] | None = None,
        air_executor_conn_id: str = AirExecutorHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.job_name = job_name
        self.conn_id = conn_id
        self.table = table
        self.create_table = create_table
        self.include_command = include_command
        self.hook_params = hook_params
        self.air_executor_conn_id = air_executor_conn_id
        if not hasattr(table, "resolve") and not (isinstance(table, str) and _TEMPLATE_MARK in table):
            _check_table(table)

    @cached_property
    def hook(self) -> AirExecutorHook:
        """The job filesystem."""
        return AirExecutorHook(self.air_executor_conn_id)

    def execute(self, context: Context) -> int:
        """Write what has changed since the last time.

        :raises JobNotFoundError: if there is no such job.
        """
        table = _check_table(self.table)
        job = self.hook.get_job(valid_job_name(self.job_name))
        found = self.hook.store.get_attempts(job.name)
        attempts = {(attempt.task_id, attempt.number): attempt for attempt in found}
        commands = {}
        if self.include_command:
            commands = {task.id: json.dumps([task.command, *task.args]) for task in self.hook.get_tasks(job.name)}
        written = self._write(table, job, attempts, commands)
        self.log.info("wrote %d of %d attempts of job %s to %s", written, len(attempts), job.name, table)
        return written

    def _write(self, table: str, job: Job, attempts: Mapping[_Key, AttemptRecord], commands: Mapping[str, str]) -> int:
        """Replace the rows that have changed, all or none.

        :return: how many.
        """
        database = _database(self.conn_id, self.hook_params)
        mark, now = database.placeholder, utc_now()
        # A connection that is closed before its commit has changed nothing.
        with closing(database.get_conn()) as connection, closing(connection.cursor()) as cursor:
            if database.supports_autocommit:
                database.set_autocommit(connection, autocommit=False)
            if self.create_table:
                cursor.execute(_create_sql(table))
            known = _known_attempts(cursor, table, mark, job)
            changed = {key: attempt for key, attempt in attempts.items() if not _is_known(attempt, known.get(key))}
            outdated = [(job.id, *key) for key in changed if key in known]
            if outdated:
                cursor.executemany(_delete_sql(table, mark), outdated)
            if changed:
                rows = [_row(job, attempt, commands.get(attempt.task_id), now) for attempt in changed.values()]
                cursor.executemany(_insert_sql(table, mark), rows)
            connection.commit()
        return len(changed)


# -- rows that become tasks --------------------------------------------------------------------------------


def _pattern_of(task: Any) -> Task:
    """The pattern of the tasks.

    :raises InvalidJobError: naming the field that is not valid.
    """
    if isinstance(task, Mapping) and "id" in task:
        raise InvalidJobError("task.id: each task has an id of its own; see task_id_column")
    try:
        (pattern,) = parse_tasks([task], where="task")
    except InvalidJobError as error:
        raise InvalidJobError(str(error).replace("task[0]", "task")) from None  # the list is ours
    return pattern


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


def _as_text(value: Any, where: str) -> str | None:
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
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda item: _as_text(item, where))
    except ValueError as error:
        raise InvalidJobError(f"{where}: is no JSON: {error}") from None


# -- attempts that become rows -----------------------------------------------------------------------------


def _check_table(table: Any) -> str:
    if not isinstance(table, str) or not _TABLE.fullmatch(table):
        raise InvalidJobError(
            f"table: {table!r} is not the name of a table: letters, digits and '_', and a schema and a '.' before it"
        )
    return table


def _create_sql(table: str) -> str:
    columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
    return f"CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY (job_id, task_id, attempt))"


# In these statements table and columns are identifiers that have been checked, and every value is bound.


def _delete_sql(table: str, mark: str) -> str:
    return f"DELETE FROM {table} WHERE job_id = {mark} AND task_id = {mark} AND attempt = {mark}"  # noqa: S608


def _insert_sql(table: str, mark: str) -> str:
    return f"INSERT INTO {table} ({', '.join(_COLUMNS)}) VALUES ({', '.join([mark] * len(_COLUMNS))})"  # noqa: S608


def _known_attempts(cursor: Any, table: str, mark: str, job: Job) -> dict[_Key, Sequence[Any]]:
    """Status, start and end of the attempts of a job that stand in the table."""
    columns = ["task_id", "attempt", "status", "started_at", "completed_at"]
    cursor.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE job_id = {mark}", (job.id,))  # noqa: S608
    rows = [_values(row, columns) for row in cursor.fetchall()]
    return {(task_id, number): facts for task_id, number, *facts in rows}


def _is_known(attempt: AttemptRecord, facts: Sequence[Any] | None) -> bool:
    """Whether an attempt stands in the table as it is: one that has ended does not change any more.

    :param facts: status, start and end of the row, if there is one.
    """
    if facts is None:
        return False
    status, started_at, completed_at = facts
    if (status, _as_time(started_at)) != (attempt.status.value, attempt.started_at):
        return False
    # The two sources of an attempt differ a little in when it has ended.
    has_ended = attempt.started_at is not None and attempt.status.is_terminal
    return has_ended or _as_time(completed_at) == attempt.completed_at


def _as_time(value: Any) -> Any:
    """A time as a database gives it, if it can be told."""
    with suppress(ValueError):
        value = datetime.fromisoformat(value) if isinstance(value, str) else value
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def _row(job: Job, attempt: AttemptRecord, command: str | None, now: datetime) -> tuple[Any, ...]:
    """The row of an attempt, in the order of the columns."""
    owner = job.submitted_by
    values = {
        "job_name": job.name,
        "job_id": job.id,
        "task_id": attempt.task_id,
        "attempt": attempt.number,
        "status": attempt.status.value,
        "reason": attempt.reason.value if attempt.reason else None,
        "exit_code": attempt.exit_code,
        "error": attempt.error,
        "command": command,
        "started_at": attempt.started_at,
        "completed_at": attempt.completed_at,
        "seconds": attempt.seconds,
        "dag_id": owner.dag_id if owner else None,
        "run_id": owner.run_id if owner else None,
        "recorded_at": now,
    }
    return tuple(_as_cell(values[column]) for column in _COLUMNS)


def _as_cell(value: Any) -> Any:
    """A value that every driver takes."""
    if isinstance(value, datetime):  # all of the same length, so that they are in order as texts too
        return value.isoformat(timespec="microseconds")
    # Other systems write all sorts of errors, and PostgreSQL has no NUL.
    return value.replace("\0", "") if isinstance(value, str) else value


# -- databases ---------------------------------------------------------------------------------------------


def _database(conn_id: str, hook_params: Mapping[str, Any] | None) -> DbApiHook:
    """The hook of a connection to a database.

    :raises ValueError: if it is a connection to something else.
    """
    hook = BaseHook.get_connection(conn_id).get_hook(hook_params=dict(hook_params or {}))
    if not isinstance(hook, DbApiHook):
        raise ValueError(f"conn_id: {conn_id!r} is no connection to a database, its hook is {type(hook).__name__}")
    return hook


def _values(row: Any, columns: Sequence[str]) -> list[Any]:
    """The values of a row; some connections are set up to give dicts."""
    return [row[column] for column in columns] if isinstance(row, Mapping) else list(row)
