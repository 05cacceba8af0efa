"""The history of a job in a table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.models import Job, utc_now, valid_job_name
from airflow_provider_air_executor.transfers.databases import database_hook, row_values

if TYPE_CHECKING:
    from airflow.sdk import Context

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
    "cpu_seconds": "DOUBLE PRECISION",
    "max_memory": "BIGINT",
}
_LATER = {"cpu_seconds", "max_memory"}  # that a table need not have, since tables were made before there were any


class AirExecutorToSqlOperator(BaseOperator):
    """Writes the history of a job to a table: one row for each attempt of each of its tasks.

    It can be run any number of times, while the job runs and after it was retried: changed rows are written in one
    transaction, and the others stay. A task that waits for its next attempt, or failed without it, has a
    row for that attempt, without ``started_at``.

    ``tasks.json`` describes the latest attempt of each task only. Of an attempt before it, ``reason`` and ``error`` are
    known if its row was written while it was the latest one; its other columns come from its record.
    A retry of the whole job removes these records: write the history before that, if it is to be whole.

    The columns are ``job_name``, ``job_id``, ``task_id``, ``attempt`` (1 for the first), ``status``, ``reason``,
    ``exit_code``, ``error``, ``command``, ``started_at``, ``completed_at``, ``seconds``, ``dag_id`` and ``run_id`` (of
    the Airflow task that submitted the job), ``recorded_at``, and ``cpu_seconds`` and ``max_memory`` (in bytes), which
    a table need not have. The primary key is ``job_id, task_id, attempt``. The
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
        found = self.hook.jobs.get_attempts(job.name)
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
        database = database_hook(self.conn_id, self.hook_params)
        mark, now = database.placeholder, utc_now()
        # A connection that is closed before its commit has changed nothing.
        with closing(database.get_conn()) as connection, closing(connection.cursor()) as cursor:
            if database.supports_autocommit:
                database.set_autocommit(connection, autocommit=False)
            if self.create_table:
                cursor.execute(create_sql(table))
            known = _known_attempts(cursor, table, mark, job)
            changed = {key: attempt for key, attempt in attempts.items() if not _is_known(attempt, known.get(key))}
            outdated = [(job.id, *key) for key in changed if key in known]
            if outdated:
                cursor.executemany(_delete_sql(table, mark), outdated)
            if changed:
                columns = _columns_of(cursor, table)
                rows = [_row(job, attempt, commands.get(attempt.task_id), now, columns) for attempt in changed.values()]
                cursor.executemany(_insert_sql(table, mark, columns), rows)
            connection.commit()
        return len(changed)


def _check_table(table: Any) -> str:
    if not isinstance(table, str) or not _TABLE.fullmatch(table):
        raise InvalidJobError(
            f"table: {table!r} is not the name of a table: letters, digits and '_', and a schema and a '.' before it"
        )
    return table


def create_sql(table: str) -> str:
    """The statement that makes a table if it is not there."""
    columns = ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
    return f"CREATE TABLE IF NOT EXISTS {table} ({columns}, PRIMARY KEY (job_id, task_id, attempt))"


# In these statements table and columns are identifiers that have been checked, and every value is bound.


def _delete_sql(table: str, mark: str) -> str:
    return f"DELETE FROM {table} WHERE job_id = {mark} AND task_id = {mark} AND attempt = {mark}"  # noqa: S608


def _insert_sql(table: str, mark: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join([mark] * len(columns))})"  # noqa: S608


def _columns_of(cursor: Any, table: str) -> list[str]:
    """The columns of a row, as far as the table has them."""
    cursor.execute(f"SELECT * FROM {table} WHERE 1 = 0")  # noqa: S608
    found = {str(column[0]).lower() for column in cursor.description}
    return [column for column in _COLUMNS if column in found or column not in _LATER]


def _known_attempts(cursor: Any, table: str, mark: str, job: Job) -> dict[_Key, Sequence[Any]]:
    """Status, start and end of the attempts of a job that are in the table."""
    columns = ["task_id", "attempt", "status", "started_at", "completed_at"]
    cursor.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE job_id = {mark}", (job.id,))  # noqa: S608
    rows = [row_values(row, columns) for row in cursor.fetchall()]
    return {(task_id, number): facts for task_id, number, *facts in rows}


def _is_known(attempt: AttemptRecord, facts: Sequence[Any] | None) -> bool:
    """Whether an attempt is in the table as it is: one that has ended does not change any more.

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
    """A time as a database gives it, if it is one."""
    with suppress(ValueError):
        value = datetime.fromisoformat(value) if isinstance(value, str) else value
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value


def _row(
    job: Job, attempt: AttemptRecord, command: str | None, now: datetime, columns: Sequence[str]
) -> tuple[Any, ...]:
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
        "cpu_seconds": attempt.usage.cpu_seconds if attempt.usage else None,
        "max_memory": attempt.usage.max_memory if attempt.usage else None,
    }
    return tuple(_as_cell(values[column]) for column in columns)


def _as_cell(value: Any) -> Any:
    """A value that every driver takes."""
    if isinstance(value, datetime):  # all of the same length, so that they are in order as texts too
        return value.isoformat(timespec="microseconds")
    # Other systems write all sorts of errors, and PostgreSQL has no NUL.
    return value.replace("\0", "") if isinstance(value, str) else value
