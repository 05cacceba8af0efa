"""Rows that become tasks, and the history of a job in a table: on a real SQLite and a real PostgreSQL."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from airflow.sdk import DAG, BaseHook
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from airflow_provider_air_executor.exceptions import (
    InvalidJobError,
    JobExistsError,
    JobFailedError,
    JobNotFoundError,
)
from airflow_provider_air_executor.hooks import start_manager_if_none
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import Job, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.transfers import AirExecutorToSqlOperator, SqlToAirExecutorOperator
from airflow_provider_air_executor.transfers.air_executor_to_sql import create_sql
from airflow_provider_air_executor.transfers.databases import database_hook
from airflow_provider_air_executor.transfers.sql_to_air_executor import as_text
from tests.support.contexts import context
from tests.support.installation import Installation
from tests.support.jobs import publish_job, publish_tasks, read_log
from tests.support.postgresql import PostgreSQL
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTATION = ROOT / "docs/sql.md"
EXAMPLE = ROOT / "example_dags/example_sql.py"
SHOW = {"command": "printf", "args": ["%s\\0"]}  # prints its further arguments, each with a NUL after it
SHOW_IN_BASH = {"bash": """printf '%s\\0' "$@\""""}


class Database:
    """A database with nothing in it, and Airflow's connection ``db`` to it."""

    def __init__(self, connection: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        self.connection = connection
        self._monkeypatch = monkeypatch
        self.connect()

    def connect(self, **extra: Any) -> None:
        """Set up the connection."""
        self._monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({**self.connection, "extra": extra}))

    @property
    def hook(self) -> Any:
        return BaseHook.get_connection("db").get_hook()

    def run(self, sql: str, *parameters: Any) -> None:
        self.hook.run(sql.replace("?", self.hook.placeholder), parameters=parameters)

    def fill(self, table: str, *rows: Sequence[Any], columns: str = "n INTEGER, word TEXT") -> None:
        """Make a table of these rows, whatever was there before."""
        self.run(f"DROP TABLE IF EXISTS {table}")
        self.run(f"CREATE TABLE {table} ({columns})")
        for row in rows:
            self.run(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.hook.get_records(sql)]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as running:
        yield running


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    return Database({"conn_type": "sqlite", "host": str(tmp_path / "test.db")}, monkeypatch)


@pytest.fixture
def postgresql(server: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> Database:
    where = {"host": "127.0.0.1", "port": server.port, "login": "airflow", "schema": "postgres"}
    found = Database({"conn_type": "postgres", **where}, monkeypatch)
    found.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(request.param)
    return found


def from_rows(sql: str = "SELECT word FROM t ORDER BY n", task: Any = None, **kwargs: Any) -> SqlToAirExecutorOperator:
    kwargs = {"task_id": "t", "conn_id": "db", "job_name": "j", "poll_interval": 0.1, **kwargs}
    return SqlToAirExecutorOperator(sql=sql, task=SHOW if task is None else task, **kwargs)


def tasks_of(tested: SqlToAirExecutorOperator) -> tuple[Task, ...]:
    """The tasks that would be submitted."""
    return tested._tasks_to_submit()


def arguments_of(sql: str, **kwargs: Any) -> list[str]:
    """What the only row of a query becomes."""
    (task,) = tasks_of(from_rows(sql, {"command": "true"}, **kwargs))
    return list(task.args)


def printed(store: JobStore, job_name: str = "j") -> dict[str, list[str]]:
    """What each task has printed, NUL by NUL."""
    return {
        task.id: read_log(store, job_name, task.id).data.decode().split("\0")[:-1] for task in store.get_tasks(job_name)
    }


class TestParsing:
    """What fails when the DAG is parsed; no database is there yet."""

    @pytest.mark.parametrize(
        ("task", "says"),
        [
            (None, "task: "),
            (7, "task: "),
            ({"cmd": "a"}, "task.cmd: there is no such field; did you mean 'command'"),
            ({"command": "a", "cmd": "a"}, "task.cmd"),
            ({"command": "a", "arg": []}, "did you mean 'args'"),
            ({"command": "a", "id": "x"}, "task.id"),
            ({"command": "a", "dependencies": ["x"]}, "no task 'x'"),
            ({"bash": "true", "args": []}, "either bash"),
            ({"command": "a", "timeout": 0}, "task.timeout"),
        ],
    )
    def test_bad_patterns(self, task: Any, says: str) -> None:
        with pytest.raises(InvalidJobError) as refused:
            SqlToAirExecutorOperator(task_id="t", sql="SELECT 1", conn_id="db", task=task)
        assert says in str(refused.value)

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            ({"rows_as": "stdin"}, "rows_as: must be one of args, env"),
            ({"on_empty": "ignore"}, "on_empty: must be one of skip, fail"),
            ({"max_tasks": 0}, "max_tasks"),
            ({"env_prefix": "ROW_"}, "rows_as='env' only"),
            ({"rows_as": "env", "env_prefix": "1-"}, "env_prefix"),
            ({"on_retry": "some"}, "on_retry"),
        ],
    )
    def test_bad_parameters(self, bad: dict[str, Any], says: str) -> None:
        with pytest.raises(InvalidJobError, match=re.escape(says)):
            from_rows(**bad)

    @pytest.mark.parametrize("table", ["", "a b", "a;DROP TABLE x", '"a"', "a.b.c.d", "1a", "a.", "a--", "ä", None, 7])
    def test_bad_tables(self, table: Any) -> None:
        with pytest.raises(InvalidJobError, match="table"):
            AirExecutorToSqlOperator(task_id="t", job_name="j", conn_id="db", table=table)

    def test_templates_are_rendered_in_all_fields(self) -> None:
        with DAG("d", start_date=datetime(2026, 1, 1, tzinfo=UTC)):
            tested = SqlToAirExecutorOperator(
                task_id="t",
                sql="SELECT {{ word }}",
                parameters=["{{ word }}"],
                task=Task(command="echo", args=["{{ word }}"], env={"A": "{{ word }}"}),
                conn_id="{{ word }}",
                job_name="{{ word }}",
            )
            history = AirExecutorToSqlOperator(
                task_id="h", job_name="{{ word }}", conn_id="{{ word }}", table="{{ word }}"
            )
        for operator in (tested, history):
            operator.render_template_fields({"word": "hi"})
        assert tested.sql == "SELECT hi"
        assert json.dumps([tested.parameters, tested.task, tested.conn_id, tested.job_name]).count("hi") == 5
        assert [history.job_name, history.conn_id, history.table] == ["hi"] * 3

    def test_a_sql_file_is_read_for_the_query_and_nowhere_else(self, tmp_path: Path) -> None:
        (tmp_path / "query.sql").write_text("SELECT '{{ word }}'")
        names = {"command": "psql", "args": ["-f", "query.sql", "{{ word }}.sql"]}
        with DAG("d", start_date=datetime(2026, 1, 1, tzinfo=UTC), template_searchpath=str(tmp_path)) as dag:
            tested = SqlToAirExecutorOperator(
                task_id="t", conn_id="db", sql="query.sql", task=names, parameters=["query.sql"]
            )
            line = SqlToAirExecutorOperator(task_id="t2", conn_id="db", sql="query.sql", task="psql -f query.sql")
        dag.resolve_template_files()
        for operator in (tested, line):
            operator.render_template_fields({"word": "hi"})
            assert operator.sql == "SELECT 'hi'"
        assert tested.task == {"command": "psql", "args": ["-f", "query.sql", "hi.sql"]}
        assert tested.parameters == ["query.sql"]
        assert line.task == "psql -f query.sql"

    def test_it_begins_in_a_worker_which_asks_the_database(self) -> None:
        tested = from_rows(start_from_trigger=True)
        assert (tested.start_from_trigger, tested.deferrable) == (False, True)

    def test_a_script_and_templates_in_a_pattern(self, sqlite: Database, tmp_path: Path) -> None:
        (tmp_path / "row.sh").write_text("echo {{ word }} $1")
        pattern = {"bash": "row.sh", "timeout": "{{ number }}", "runner": "{{ nothing }}", "env": {"A": "own"}}
        with DAG("d", start_date=datetime(2026, 1, 1, tzinfo=UTC), template_searchpath=str(tmp_path)) as dag:
            tested = from_rows("SELECT 7", pattern, env={"A": "x", "B": "{{ word }}"}, cwd="/{{ word }}")
            with pytest.raises(InvalidJobError, match="DAG 'd', task 'u': task.bash: there is no file 'no.sh'"):
                from_rows("SELECT 7", {"bash": "no.sh"}, task_id="u").resolve_template_files()
        dag.get_task("t").resolve_template_files()
        tested.render_template_fields({"word": "hi", "number": 3, "nothing": ""})
        (task,) = tasks_of(tested)
        assert task.args == ("-c", "echo hi $1", "bash", "7")
        assert (task.timeout, task.runner, task.env, task.cwd) == (3, None, {"A": "own", "B": "hi"}, "/hi")

    def test_the_output_of_another_task_as_pattern_and_a_mapped_query(self) -> None:
        with DAG("d", start_date=datetime(2026, 1, 1, tzinfo=UTC)):
            before = AirExecutorSubmitOperator(task_id="before", tasks=["true"])
            tested = SqlToAirExecutorOperator(task_id="t", conn_id="db", sql="SELECT 1", task=before.output)
            mapped = SqlToAirExecutorOperator.partial(task_id="m", conn_id="db", sql="SELECT ?", task=SHOW)
            mapped = mapped.expand(parameters=[["north"], ["south"]])
            history = AirExecutorToSqlOperator(task_id="h", conn_id="db", table="t", job_name=tested.output["job_name"])
        assert tested.upstream_task_ids == {"before"}
        assert history.upstream_task_ids == {"t"}
        assert mapped.is_mapped


class TestRowsAsArguments:
    HOSTILE = (
        "'; touch {canary}; '",
        '"; touch {canary}; "',
        "$(touch {canary})",
        "`touch {canary}`",
        "; touch {canary} #",
        "| touch {canary}",
        "&& touch {canary}",
        "\ntouch {canary}\n",
        "$HOME ${{PATH}} * ~ ? [a-z] \\ \\n %s %d",
        "-rf",
        "--help",
        "--",
        "two\nlines\r\n",
        "\t tab and  blanks ",
        "žluťoučký 漢字 🙂 e\u0301 \u202e",
        "{{ 1 + 1 }} {% raw %}",
        "'",
        '"',
        "\x01\x1b[31m\x7f",
        "",
        "x" * 100_000,
    )

    @pytest.mark.embedded
    @pytest.mark.parametrize("pattern", [SHOW, SHOW_IN_BASH], ids=["command", "bash"])
    def test_values_arrive_byte_for_byte(
        self, database: Database, store: JobStore, tmp_path: Path, pattern: dict[str, Any]
    ) -> None:
        canary = tmp_path / "canary"
        values = [value.format(canary=canary) if "canary" in value else value for value in self.HOSTILE]
        database.fill("t", *enumerate(values))
        from_rows("SELECT word, word FROM t ORDER BY n", pattern).execute(context())
        assert list(printed(store).values()) == [[value, value] for value in values]
        assert not canary.exists()

    def test_they_follow_the_arguments_of_the_command(self, database: Database) -> None:
        database.fill("t", (1, "a"), (2, "b"))
        tasks = tasks_of(from_rows("SELECT n, word FROM t ORDER BY n", {"command": "x", "args": ["-q", "--"]}))
        assert [(task.id, task.command, task.args) for task in tasks] == [
            ("task-1", "x", ("-q", "--", "1", "a")),
            ("task-2", "x", ("-q", "--", "2", "b")),
        ]

    @pytest.mark.parametrize("pattern", [{"bash": "echo $1"}, "echo $1", Task(bash="echo $1")])
    def test_a_bash_line_stays_as_it_is(self, database: Database, pattern: Any) -> None:
        database.fill("t", (1, "; x"))
        (task,) = tasks_of(from_rows(task=pattern))
        assert (task.command, task.args) == ("bash", ("-c", "echo $1", "bash", "; x"))

    def test_everything_else_of_the_pattern_is_kept(self, database: Database) -> None:
        database.fill("t", (1, "a"))
        more = {"env": {"A": "1"}, "cwd": "/", "timeout": 9, "retries": 2, "retry_delay": 3, "runner": "warm"}
        (task,) = tasks_of(from_rows(task={"command": "x", **more}))
        assert task.model_dump(include=set(more)) == more

    def test_null_is_an_empty_argument(self, database: Database) -> None:
        database.fill("t", (1, None))
        assert arguments_of("SELECT word, n, word FROM t") == ["", "1", ""]

    @pytest.mark.embedded
    def test_a_template_in_a_value_is_not_rendered(self, database: Database, store: JobStore) -> None:
        with DAG("d", start_date=datetime(2026, 1, 1, tzinfo=UTC)):
            tested = from_rows()
        database.fill("t", (1, "{{ word }}"))
        tested.render_template_fields({"word": "hi"})
        tested.execute(context())
        assert printed(store) == {"task-1": ["{{ word }}"]}

    def test_rows_may_be_dicts(self, postgresql: Database) -> None:
        postgresql.connect(cursor="dictcursor")
        postgresql.fill("t", (1, "a"))
        assert arguments_of("SELECT word, n FROM t") == ["a", "1"]

    def test_parameters_are_bound(self, database: Database) -> None:
        database.fill("t", (1, "a"), (2, "'"))
        sql = f"SELECT n FROM t WHERE word = {database.hook.placeholder}"
        assert arguments_of(sql, parameters=["'"]) == ["2"]

    def test_a_percent_sign_in_a_query_without_parameters(self, database: Database) -> None:
        database.fill("t", (1, "a"), (2, "b"))
        assert arguments_of("SELECT n FROM t WHERE word LIKE '%a%'") == ["1"]

    def test_a_query_that_changes_something(self, database: Database) -> None:
        database.fill("t", (1, "a"))
        assert arguments_of("UPDATE t SET word = 'taken' RETURNING n") == ["1"]
        assert database.rows("SELECT word FROM t") == [("taken",)]


class TestTexts:
    """What becomes of values that are no texts."""

    @pytest.mark.parametrize(
        ("sql", "text"),
        [
            ("42", "42"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("CAST(0.1 AS DOUBLE PRECISION)", "0.1"),
            ("CAST(1e300 AS DOUBLE PRECISION)", "1e+300"),
            ("'2026-01-02'", "2026-01-02"),
        ],
    )
    def test_in_both(self, database: Database, sql: str, text: str) -> None:
        assert arguments_of(f"SELECT {sql}") == [text]

    @pytest.mark.parametrize(
        ("sql", "text"),
        [
            ("true", "true"),
            ("false", "false"),
            ("1000.50::numeric", "1000.50"),
            ("1e20::numeric", "100000000000000000000"),
            ("0.0000000001::numeric", "0.0000000001"),
            ("'2026-01-02'::date", "2026-01-02"),
            ("'12:30'::time", "12:30:00"),
            ("'2026-01-02 03:04:05.678'::timestamp", "2026-01-02T03:04:05.678000"),
            ("'2026-01-02 03:04:05+00'::timestamptz", "2026-01-02T03:04:05+00:00"),
            ("'6f1c1c1e-0d2b-4f0e-9a39-3f0f4e1f2a3b'::uuid", "6f1c1c1e-0d2b-4f0e-9a39-3f0f4e1f2a3b"),
            ("""'{"a": ["\\"", null, "ž"]}'::jsonb""", """{"a": ["\\"", null, "ž"]}"""),
            ("ARRAY[1, 2]", "[1, 2]"),
            ("ARRAY['2026-01-02'::date]", '["2026-01-02"]'),
            ("ARRAY[1.50]", '["1.50"]'),
        ],
    )
    def test_in_postgresql(self, postgresql: Database, sql: str, text: str) -> None:
        postgresql.connect(options="-c timezone=UTC")
        assert arguments_of(f"SELECT {sql}") == [text]

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (Decimal("1E+3"), "1000"),
            (True, "true"),
            (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
            (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (float("inf"), "inf"),
        ],
    )
    def test_whatever_a_driver_gives(self, value: Any, text: str) -> None:
        assert as_text(value, "") == text

    @pytest.mark.parametrize(("kind", "value"), [("sqlite", "x'00ff'"), ("postgresql", "'\\x00ff'::bytea")])
    def test_binary_data_is_refused(self, request: pytest.FixtureRequest, kind: str, value: str) -> None:
        request.getfixturevalue(kind)
        with pytest.raises(InvalidJobError, match=r"rows\[0\]\.picture: .* cast it in the query"):
            arguments_of(f"SELECT 1 AS n, {value} AS picture")

    def test_what_is_no_json_is_refused(self, postgresql: Database) -> None:
        for values in ("ARRAY['NaN'::float]", "ARRAY['\\x00'::bytea]"):
            with pytest.raises(InvalidJobError, match=r"rows\[0\]\.picture"):
                arguments_of(f"SELECT {values} AS picture")

    @pytest.mark.parametrize("rows_as", ["args", "env"])
    def test_a_nul_character_is_refused(self, sqlite: Database, store: JobStore, rows_as: Any) -> None:
        sqlite.fill("t", (1, "a"), (2, "b\0c"))
        with pytest.raises(InvalidJobError, match=r"rows\[1\]\.word: must not contain a NUL character"):
            from_rows(rows_as=rows_as).execute(context())
        assert store.job_names() == []


class TestRowsAsVariables:
    SHOW_ENV = {"command": "env", "args": ["-0"]}

    @pytest.mark.embedded
    def test_values_arrive_byte_for_byte(self, database: Database, store: JobStore, tmp_path: Path) -> None:
        canary = tmp_path / "canary"
        values = [value.format(canary=canary) if "canary" in value else value for value in TestRowsAsArguments.HOSTILE]
        database.fill("t", *enumerate(values))
        from_rows(task=self.SHOW_ENV, rows_as="env").execute(context())
        found = [[line for line in lines if line.startswith("WORD=")] for lines in printed(store).values()]
        assert found == [[f"WORD={value}"] for value in values]
        assert not canary.exists()

    def test_names_are_in_upper_case_and_have_the_prefix(self, database: Database) -> None:
        database.fill("t", (1, "a"))
        (task,) = tasks_of(from_rows("SELECT n, word AS wOrd_2 FROM t", rows_as="env", env_prefix="Row_"))
        assert task.env == {"Row_N": "1", "Row_WORD_2": "a"}
        assert task.args == ("%s\\0",)

    def test_null_is_left_out_and_others_win_over_the_pattern(self, database: Database) -> None:
        database.fill("t", (1, None))
        pattern = {"command": "x", "env": {"N": "9", "WORD": "default", "OTHER": "kept"}}
        (task,) = tasks_of(from_rows("SELECT n, word FROM t", pattern, rows_as="env"))
        assert task.env == {"N": "1", "WORD": "default", "OTHER": "kept"}

    @pytest.mark.parametrize(
        ("column", "says"),
        [
            ("a-b", "'A-B'; give it another name with AS"),
            ("1st", "'1ST'"),
            ("a b", "'A B'"),
            ("a=b", "'A=B'"),
            ("ž", "cannot be the environment variable"),
            ("?column?", "cannot be the environment variable"),
            ("path", "PATH, which decides what runs"),
            ("ld_preload", "env_prefix"),
            ("bash_env", "BASH_ENV"),
            ("pythonpath", "PYTHONPATH"),
            ("air_executor_job", "AIR_EXECUTOR_JOB"),
        ],
    )
    def test_names_that_cannot_be(self, database: Database, store: JobStore, column: str, says: str) -> None:
        with pytest.raises(InvalidJobError) as refused:
            from_rows(f'SELECT 1 AS "{column}"', rows_as="env").execute(context())
        assert says in str(refused.value)
        assert store.job_names() == []

    def test_a_prefix_makes_a_name_usable(self, database: Database) -> None:
        (task,) = tasks_of(from_rows("SELECT 'x' AS path", rows_as="env", env_prefix="ROW_"))
        assert task.env == {"ROW_PATH": "x"}

    def test_two_columns_of_the_same_name(self, database: Database) -> None:
        with pytest.raises(InvalidJobError, match="two columns would be the same"):
            tasks_of(from_rows('SELECT 1 AS a, 2 AS "A"', rows_as="env"))


class TestHowMany:
    def test_as_many_as_are_allowed(self, database: Database) -> None:
        database.fill("t", *((number, "") for number in range(5)))
        assert len(tasks_of(from_rows(max_tasks=5))) == 5

    def test_one_more_submits_nothing_and_changes_nothing(self, database: Database, store: JobStore) -> None:
        database.fill("t", *((number, "new") for number in range(5)))
        with pytest.raises(InvalidJobError, match="more rows than max_tasks=4 allows"):
            from_rows("UPDATE t SET word = 'taken' RETURNING n", max_tasks=4).execute(context())
        assert store.job_names() == []
        assert {word for (word,) in database.rows("SELECT word FROM t")} == {"new"}

    def test_a_value_that_is_refused_changes_nothing(self, database: Database) -> None:
        database.fill("t", (1, "new"), (1, "new"))
        with pytest.raises(InvalidJobError, match=r"rows\[1\]\.id: '1' is the id of another task"):
            tasks_of(from_rows("UPDATE t SET word = 'taken' RETURNING n", task_id_column="n"))
        assert {word for (word,) in database.rows("SELECT word FROM t")} == {"new"}

    def test_no_more_is_fetched_than_needed(self, sqlite: Database) -> None:
        """A query without an end, for who fetches all of it."""
        sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
        with pytest.raises(InvalidJobError, match="max_tasks=1000"):
            tasks_of(from_rows(sql))

    def test_no_row_skips(self, database: Database, store: JobStore) -> None:
        database.fill("t")
        with pytest.raises(AirflowSkipException, match="no rows"):
            from_rows().execute(context())
        assert store.job_names() == []

    def test_no_row_succeeds_if_it_is_told_to(self, sqlite: Database, store: JobStore) -> None:
        sqlite.run("CREATE TABLE t (n INTEGER, word TEXT)")
        assert from_rows(on_empty="succeed").execute(context()) == {}
        assert store.job_names() == []

    def test_no_row_fails_if_it_is_told_to(self, database: Database, store: JobStore) -> None:
        database.fill("t")
        with pytest.raises(InvalidJobError, match="no rows"):
            from_rows(on_empty="fail").execute(context())
        assert store.job_names() == []

    @pytest.mark.parametrize("sql", ["CREATE TABLE other (n INTEGER)", "DELETE FROM t"])
    def test_a_statement_that_is_no_query(self, database: Database, sql: str) -> None:
        database.fill("t", (1, "a"))
        with pytest.raises(InvalidJobError, match="it must be a query"):
            tasks_of(from_rows(sql))
        assert database.rows("SELECT n FROM t") == [(1,)]

    def test_a_connection_to_something_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_DB", json.dumps({"conn_type": "air_executor"}))
        with pytest.raises(ValueError, match="'db' is no connection to a database, its hook is AirExecutorHook"):
            tasks_of(from_rows("SELECT 1"))

    def test_the_hook_gets_its_parameters(self, database: Database) -> None:
        assert database_hook("db", {"log_sql": False}).log_sql is False
        with pytest.raises(InvalidJobError, match="no rows"):
            tasks_of(from_rows("SELECT 1 WHERE 1 = 0", hook_params={"log_sql": False}, on_empty="fail"))


class TestNames:
    def test_a_column_gives_the_ids_and_is_not_handed_over(self, database: Database) -> None:
        database.fill("t", (1, "a"), (2, "b"))
        tasks = tasks_of(from_rows("SELECT n, word, n FROM t ORDER BY n", task_id_column="WORD"))
        assert [(task.id, task.args[1:]) for task in tasks] == [("a", ("1", "1")), ("b", ("2", "2"))]
        tasks = tasks_of(from_rows("SELECT n, word FROM t ORDER BY n", task_id_column="n", rows_as="env"))
        assert [(task.id, task.env) for task in tasks] == [("1", {"WORD": "a"}), ("2", {"WORD": "b"})]

    def test_without_any_other_column(self, database: Database) -> None:
        database.fill("t", (1, "a"))
        (task,) = tasks_of(from_rows(task={"command": "x"}, task_id_column="word"))
        assert (task.id, task.args) == ("a", ())
        (task,) = tasks_of(from_rows(task="true", task_id_column="word", rows_as="env"))
        assert (task.id, task.args, task.env) == ("a", ("-c", "true"), {})

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["a", "a"], "rows[1].id: 'a' is the id of another task"),
            (["a", ""], "rows[1].word: the id of a task must not be empty"),
            (["a", None], "rows[1].word: the id of a task must not be empty"),
            (["a", "../b"], "rows[1].id: a task id must not begin with '.'"),
            (["a", "x" * 201], "rows[1].id: a task id must not be longer"),
        ],
    )
    def test_bad_ids(self, database: Database, store: JobStore, words: list[Any], says: str) -> None:
        database.fill("t", *enumerate(words))
        with pytest.raises(InvalidJobError) as refused:
            from_rows(task_id_column="word").execute(context())
        assert says in str(refused.value)
        assert store.job_names() == []

    @pytest.mark.parametrize("columns", ["word", 'n AS id, n AS "ID"'])
    def test_a_column_that_is_not_there_once(self, database: Database, columns: str) -> None:
        database.fill("t", (1, "a"))
        with pytest.raises(InvalidJobError, match="must give one column 'id'; its columns are"):
            tasks_of(from_rows(f"SELECT {columns} FROM t", task_id_column="id"))


@pytest.mark.embedded
class TestTriedAgain:
    def test_its_own_job_goes_on_whatever_the_rows_are(
        self, database: Database, store: JobStore, tmp_path: Path
    ) -> None:
        database.fill("t", (1, "a"))
        tested = {"bash": f'sleep 0.5; echo "$1" >> {tmp_path}/out'}
        from_rows(task=tested, wait_for_completion=False).execute(context())
        database.run("DROP TABLE t")
        assert from_rows(task=tested).execute(context(try_number=2)) == {}
        assert (tmp_path / "out").read_text() == "a\n"

    def test_it_goes_on_waiting_where_the_database_is_down(
        self, database: Database, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.fill("t", (1, "a"))
        from_rows(task={"bash": "sleep 0.5"}, wait_for_completion=False).execute(context())
        monkeypatch.delenv("AIRFLOW_CONN_DB")
        assert from_rows(task={"bash": "sleep 0.5"}).execute(context(try_number=2)) == {}

    def test_what_failed_runs_again_with_its_first_rows(
        self, database: Database, store: JobStore, tmp_path: Path
    ) -> None:
        database.fill("t", (1, "a"), (2, "b"))
        tested = {"bash": f'echo "$1" >> {tmp_path}/out; [ $1 = a ] || [ -e {tmp_path}/flag ]'}
        with pytest.raises(JobFailedError):
            from_rows(task=tested, max_parallel_tasks=1).execute(context())
        database.fill("t", (3, "c"))
        (tmp_path / "flag").touch()
        from_rows(task=tested).execute(context(try_number=2))
        assert (tmp_path / "out").read_text().split() == ["a", "b", "b"]

    def test_a_new_start_takes_the_new_rows(self, database: Database, store: JobStore, tmp_path: Path) -> None:
        database.fill("t", (1, "a"))
        with pytest.raises(JobFailedError):
            from_rows(task={"bash": "exit 3"}).execute(context())
        database.fill("t", (2, "b"))
        from_rows(on_retry="all").execute(context(try_number=2))
        assert printed(store) == {"task-1": ["b"]}

    def test_a_cleared_task_takes_the_new_rows(self, database: Database, store: JobStore) -> None:
        database.fill("t", (1, "a"))
        from_rows().execute(context())
        database.fill("t", (2, "b"))
        from_rows().execute(context(try_number=2, max_tries=1))
        assert printed(store) == {"task-1": ["b"]}

    def test_a_cleared_task_without_rows_ends_the_job_of_its_earlier_run(
        self, database: Database, store: JobStore
    ) -> None:
        database.fill("t", (1, "a"))
        from_rows(task={"bash": "sleep 1000"}, wait_for_completion=False).execute(context())
        database.fill("t")
        with pytest.raises(AirflowSkipException):
            from_rows().execute(context(try_number=2, max_tries=1))
        assert store.get_job("j").reason == "cancelled"

    def test_the_job_of_somebody_else_is_not_touched(self, database: Database, store: JobStore) -> None:
        database.fill("t", (1, "a"))
        from_rows().execute(context())
        with pytest.raises(JobExistsError, match="DAG d, run manual"):
            from_rows().execute(context(run_id="another"))

    def test_it_defers(self, database: Database, store: JobStore) -> None:
        database.fill("t", (1, "a"))
        with pytest.raises(TaskDeferred):
            from_rows(task={"bash": "sleep 1000"}, deferrable=True).execute(context())


def history_of(job_name: str = "j", **kwargs: Any) -> int:
    """Write the history of a job to the table ``h``; the number of rows written."""
    kwargs = {"task_id": "h", "conn_id": "db", "table": "h", "create_table": True, **kwargs}
    written: int = AirExecutorToSqlOperator(job_name=job_name, **kwargs).execute(context())
    return written


def rows_of(database: Database, columns: str = "task_id, attempt, status, reason, exit_code") -> list[tuple[Any, ...]]:
    return database.rows(f"SELECT {columns} FROM h ORDER BY job_id, task_id, attempt")


def run(tasks: Any, *, job_name: str = "j") -> None:
    """Run a job to its end, good or bad."""
    with suppress(JobFailedError):
        AirExecutorSubmitOperator(task_id="t", tasks=tasks, job_name=job_name, poll_interval=0.1).execute(context())


def retry(store: JobStore) -> Job:
    """Let the failed job run again what failed, and wait for its end."""
    before = store.get_job("j").attempt
    inbox.retry(store, "j")
    return wait_until(
        lambda: (job := store.get_job("j")).attempt > before and job.state.is_terminal and job, what="it has ended"
    )


def utc(value: Any) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


FLAKY = {"id": "flaky", "bash": "[ $AIR_EXECUTOR_ATTEMPT = 2 ] || exit 3", "retries": 1}


class TestHistory:
    @pytest.mark.embedded
    def test_a_row_for_each_attempt_of_each_task(self, database: Database, store: JobStore) -> None:
        run([{"id": "ok", "bash": "sleep 0.1"}, FLAKY])
        assert history_of() == 3
        assert rows_of(database) == [
            ("flaky", 1, "failed", None, 3),
            ("flaky", 2, "completed", None, 0),
            ("ok", 1, "completed", None, 0),
        ]

    @pytest.mark.embedded
    def test_what_stands_in_a_row(self, database: Database, store: JobStore) -> None:
        before = datetime.now(tz=UTC)
        run([{"id": "a", "command": "sh", "args": ["-c", "sleep 0.1; exit 7"], "env": {"SECRET": "s3cr3t"}}])
        history_of()
        (row,) = database.hook.get_records("SELECT * FROM h")
        assert "s3cr3t" not in str(row)
        names = (
            "job_name job_id task_id attempt status reason exit_code error command started_at completed_at seconds"
            " dag_id run_id recorded_at cpu_seconds max_memory"
        )
        found = dict(zip(names.split(), row, strict=True))
        started, completed, recorded = (utc(found.pop(name)) for name in ("started_at", "completed_at", "recorded_at"))
        assert before < started < completed < recorded < datetime.now(tz=UTC)
        assert found.pop("seconds") == pytest.approx((completed - started).total_seconds())
        job = store.get_job("j")
        (task,) = store.get_tasks("j")
        assert task.usage == Usage(cpu_seconds=found.pop("cpu_seconds"), max_memory=found.pop("max_memory"))
        assert found == {
            "job_name": "j",
            "job_id": job.id,
            "task_id": "a",
            "attempt": 1,
            "status": "failed",
            "reason": "exit",
            "exit_code": 7,
            "error": "exit code 7",
            "command": None,
            "dag_id": "d",
            "run_id": "manual__1+00:00",
        }
        assert (started, completed) == (task.started_at, task.completed_at)

    @pytest.mark.embedded
    def test_times_of_attempts_that_were_followed(self, database: Database, store: JobStore) -> None:
        run([{"id": "a", "bash": "sleep 0.2; [ $AIR_EXECUTOR_ATTEMPT = 2 ]", "retries": 1}])
        history_of()
        (first, second) = rows_of(database, "started_at, completed_at, seconds")
        assert utc(first[0]) < utc(first[1]) <= utc(second[0]) < utc(second[1])
        assert first[2] == pytest.approx((utc(first[1]) - utc(first[0])).total_seconds(), abs=0.01)
        assert first[2] > 0.1

    @pytest.mark.embedded
    def test_commands_are_written_if_wanted(self, database: Database, store: JobStore) -> None:
        run([{"id": "a", "command": "echo", "args": ["'\"", "ž"]}])
        history_of(include_command=True)
        ((command,),) = rows_of(database, "command")
        assert json.loads(command) == ["echo", "'\"", "ž"]

    @pytest.mark.embedded
    def test_tasks_that_were_not_started(self, database: Database, store: JobStore) -> None:
        run([{"id": "a", "bash": "exit 1"}, {"id": "b", "bash": "true", "dependencies": ["a"]}])
        history_of()
        assert rows_of(database, "task_id, attempt, status, reason, started_at, seconds")[1] == (
            ("b", 1, "failed", "dependency", None, None)
        )

    def test_a_job_that_nobody_of_airflow_has_submitted(self, database: Database, store: JobStore) -> None:
        store.submit("j", ["true"])
        history_of()
        assert rows_of(database, "task_id, attempt, status, dag_id, run_id") == [("task-1", 1, "pending", None, None)]

    def test_a_job_that_is_not_there(self, database: Database, store: JobStore) -> None:
        with pytest.raises(JobNotFoundError):
            history_of("another")

    @pytest.mark.embedded
    def test_a_name_that_is_not_valid_is_mapped(self, database: Database, store: JobStore) -> None:
        run(["true"], job_name="of: today")
        assert history_of("of: today") == 1


@pytest.mark.embedded
class TestWrittenAgain:
    def test_nothing_changes_if_nothing_has_changed(self, database: Database, store: JobStore) -> None:
        run([FLAKY, {"id": "a", "bash": "exit 1"}, {"id": "b", "bash": "true", "dependencies": ["a"]}])
        history_of()
        before = rows_of(database, "*")
        assert len(before) == 4
        assert history_of() == 0
        assert rows_of(database, "*") == before

    def test_a_job_that_runs(self, database: Database, store: JobStore, tmp_path: Path) -> None:
        line = f"until [ -e {tmp_path}/flag ]; do sleep 0.05; done"
        store.submit("j", [{"id": "a", "bash": line}, {"id": "b", "bash": "true", "dependencies": ["a"]}])
        assert history_of() == 2
        start_manager_if_none(store)
        wait_until(lambda: store.get_tasks("j")[0].status is TaskStatus.RUNNING, what="it runs")
        assert history_of() == 1
        assert rows_of(database) == [("a", 1, "running", None, None), ("b", 1, "pending", None, None)]
        assert history_of() == 0
        (tmp_path / "flag").touch()
        wait_until(lambda: store.get_job("j").state.is_terminal, what="it has ended")
        assert history_of() == 2
        assert rows_of(database) == [("a", 1, "completed", None, 0), ("b", 1, "completed", None, 0)]

    def test_after_a_retry_of_the_job(self, database: Database, store: JobStore, tmp_path: Path) -> None:
        """Its earlier attempts are gone from the job, and stay in the table with their reasons."""
        a = {"id": "a", "bash": f"[ -e {tmp_path}/flag ] || exit 3"}
        run([{"id": "ok", "bash": "true"}, a, {"id": "b", "bash": "true", "dependencies": ["a"]}])
        assert history_of() == 3
        kept = rows_of(database, "*")
        (tmp_path / "flag").touch()
        retry(store)
        assert history_of() == 2
        assert rows_of(database) == [
            ("a", 1, "failed", "exit", 3),
            ("a", 2, "completed", None, 0),
            ("b", 1, "completed", None, 0),
            ("ok", 1, "completed", None, 0),
        ]
        assert set(kept) - set(rows_of(database, "*")) == {row for row in kept if row[2] == "b"}

    def test_attempts_of_which_nothing_is_left(self, database: Database, store: JobStore) -> None:
        run([{"id": "a", "bash": "exit 3"}])
        retry(store)
        history_of()
        assert rows_of(database) == [("a", 2, "failed", "exit", 3)]

    def test_another_job_of_the_same_name_and_id(self, database: Database, store: JobStore) -> None:
        """Ids hold a second: what was cleared and submitted again within one has the same."""
        run([{"id": "a", "bash": "exit 3"}])
        history_of()
        first = store.get_job("j")
        store.delete("j")
        run([{"id": "a", "bash": "exit 4"}])
        publish_job(store, store.get_job("j").evolve(id=first.id))
        assert history_of() == 1
        assert rows_of(database) == [("a", 1, "failed", "exit", 4)]

    def test_jobs_beside_each_other(self, database: Database, store: JobStore) -> None:
        for name in ("j", "k"):
            run([FLAKY], job_name=name)
            assert history_of(name) == 2
        assert rows_of(database, "job_name, task_id, attempt") == [
            (name, "flaky", attempt) for name in ("j", "k") for attempt in (1, 2)
        ]


class TestTables:
    @pytest.mark.embedded
    def test_a_table_that_is_not_there(self, database: Database, store: JobStore) -> None:
        run(["true"])
        with pytest.raises(Exception, match=r"no such table|does not exist"):
            history_of(create_table=False)

    @pytest.mark.embedded
    def test_a_table_of_ones_own_with_more_columns(self, database: Database, store: JobStore) -> None:
        run([FLAKY])
        history_of()
        database.run("DELETE FROM h")
        database.run("ALTER TABLE h ADD COLUMN team TEXT DEFAULT 'etl'")
        assert history_of(create_table=False) == 2
        assert rows_of(database, "attempt, team") == [(1, "etl"), (2, "etl")]
        assert history_of(create_table=False) == 0

    @pytest.mark.embedded
    def test_what_the_attempts_have_used(self, database: Database, store: JobStore) -> None:
        busy = f"{sys.executable} -c 'import time\nwhile time.process_time() < 0.4: pass'"
        run([{"id": "a", "bash": f"{busy}; test $AIR_EXECUTOR_ATTEMPT = 2", "retries": 1}])
        history_of()
        first, second = rows_of(database, "cpu_seconds, max_memory")
        assert first[0] >= 0.3
        assert second[0] >= 0.3
        assert store.get_tasks("j")[0].usage == Usage(cpu_seconds=second[0], max_memory=second[1])

    @pytest.mark.embedded
    def test_a_table_that_was_made_before_there_was_usage(self, database: Database, store: JobStore) -> None:
        run([FLAKY])
        database.run(create_sql("h").replace("cpu_seconds DOUBLE PRECISION, max_memory BIGINT, ", ""))
        assert (history_of(), history_of()) == (2, 0)

    @pytest.mark.embedded
    @pytest.mark.parametrize("kind", ["TIMESTAMP", "TEXT"])
    def test_times_of_another_type(self, database: Database, store: JobStore, kind: str) -> None:
        database.run(create_sql("h").replace("TIMESTAMP WITH TIME ZONE", kind))
        run([FLAKY])
        assert history_of() == 2
        assert history_of() == 0
        (task,) = store.get_tasks("j")
        ((started,),) = database.rows("SELECT started_at FROM h WHERE attempt = 2")
        assert utc(started).replace(tzinfo=UTC) == task.started_at

    @pytest.mark.embedded
    @pytest.mark.parametrize(("kind", "table"), [("sqlite", "main.h"), ("postgresql", "public.h")])
    def test_a_table_in_a_schema(self, request: pytest.FixtureRequest, store: JobStore, kind: str, table: str) -> None:
        database = request.getfixturevalue(kind)
        run(["true"])
        assert (history_of(table=table), history_of(table=table)) == (1, 0)
        assert database.rows("SELECT attempt FROM h") == [(1,)]

    @pytest.mark.embedded
    def test_the_primary_key(self, database: Database, store: JobStore) -> None:
        run(["true"])
        history_of()
        with pytest.raises(Exception, match=r"UNIQUE constraint|duplicate key"):
            database.run("INSERT INTO h SELECT * FROM h")

    @pytest.mark.embedded
    def test_rows_may_be_dicts(self, postgresql: Database, store: JobStore) -> None:
        postgresql.connect(cursor="dictcursor")
        run(["true"])
        assert (history_of(), history_of()) == (1, 0)

    @pytest.mark.embedded
    def test_a_table_that_a_template_has_spoiled(self, database: Database, store: JobStore) -> None:
        run(["true"])
        tested = AirExecutorToSqlOperator(task_id="h", job_name="j", conn_id="db", table="{{ x }}")
        tested.table = "h; DROP TABLE h"
        with pytest.raises(InvalidJobError, match="is not the name of a table"):
            tested.execute(context())

    @pytest.mark.embedded
    def test_a_failure_in_between_leaves_the_old_rows(self, database: Database, store: JobStore) -> None:
        """The old rows are out, and the new one of a is in, when that of b is refused."""
        database.run(f"{create_sql('h')[:-1]}, CHECK (task_id <> 'b' OR status <> 'completed'))")
        store.submit("j", [{"id": "a", "bash": "true"}, {"id": "b", "bash": "true"}])
        assert history_of() == 2
        before = rows_of(database, "*")
        start_manager_if_none(store)
        wait_until(lambda: store.get_job("j").state == "completed", what="it has completed")
        with pytest.raises(Exception, match=r"CHECK constraint|check constraint"):
            history_of()
        assert rows_of(database, "*") == before
        database.run("DELETE FROM h WHERE task_id = 'b'")
        with pytest.raises(Exception, match=r"CHECK constraint|check constraint"):
            history_of()
        assert [row[:3] for row in rows_of(database)] == [("a", 1, "pending")]

    def test_what_other_systems_write_as_an_error(self, database: Database, store: JobStore) -> None:
        store.submit("j", ["true"])
        (task,) = store.get_tasks("j")
        publish_tasks(store, "j", [task.evolve(status=TaskStatus.FAILED, error="it said \0 '; DROP TABLE h; --")])
        history_of()
        assert rows_of(database, "error") == [("it said  '; DROP TABLE h; --",)]


COMMANDS = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from airflow.__main__ import main

for line in sys.stdin:
    sys.argv = ["airflow", *json.loads(line)]
    error = None
    try:
        main()
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps(error), file=answers, flush=True)
"""


class Airflow(Installation):
    """An Airflow with the DAGs of the documentation and the example, of which no component runs.

    The database of the DAGs is in its home. One process is its command line: most of what a command costs is importing.
    """

    def __init__(self, dags: Path) -> None:
        super().__init__(dags)
        self.store = JobStore(self.base_path)
        connection = json.dumps({"conn_type": "sqlite", "host": str(self.home / "shop.db")})
        self.environment |= {"AIRFLOW_CONN_SHOP": connection, "AIRFLOW_CONN_EXAMPLE_SQL": connection}
        self.create_database()
        with (self.home / "commands.out").open("w") as output:
            self._commands = subprocess.Popen(
                [sys.executable, "-c", COMMANDS],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                bufsize=1,
            )

    def close(self) -> None:
        self._commands.communicate()
        super().close()

    def run(self, *arguments: str) -> None:
        """Run ``airflow`` with these arguments."""
        assert self._commands.stdin is not None
        assert self._commands.stdout is not None
        print(json.dumps(arguments), file=self._commands.stdin)
        error = json.loads(self._commands.stdout.readline() or '"it has ended"')
        assert error is None, f"{error}\n{(self.home / 'commands.out').read_text()}"

    def sql(self, script: str) -> list[tuple[Any, ...]]:
        """Run statements; the rows that the last one gives."""
        with closing(sqlite3.connect(self.home / "shop.db")) as connection:
            *statements, last = script.split(";")
            for statement in statements:
                connection.execute(statement)
            rows = connection.execute(last).fetchall()
            connection.commit()
        return rows

    def printed(self, dag_id: str) -> dict[str, str]:
        """What the tasks of the job of a DAG have printed."""
        (job,) = (job for job in self.store.list_jobs() if job.submitted_by and job.submitted_by.dag_id == dag_id)
        return {task.id: read_log(self.store, job.name, task.id).text for task in self.store.get_tasks(job.name)}


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    dags = tmp_path_factory.mktemp("dags")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", DOCUMENTATION.read_text(), flags=re.DOTALL)):
        (dags / f"documented_{number}.py").write_text(block)
    (dags / EXAMPLE.name).write_text(EXAMPLE.read_text())
    with closing(Airflow(dags)) as installation:
        yield installation


@pytest.mark.airflow
class TestDocumented:
    """The DAGs of the documentation do what it says, each in a real Airflow."""

    def test_a_task_for_each_row_and_its_history(self, airflow: Airflow) -> None:
        airflow.sql(
            "CREATE TABLE invoices (id INTEGER, email TEXT, amount NUMERIC, day TEXT);"
            "INSERT INTO invoices VALUES (7, 'ada@example.com', 12.5, '2026-11-22'), (8, '$(id)', 3, '2026-11-22');"
            "INSERT INTO invoices VALUES (9, 'another day', 3, '2026-11-23')"
        )
        airflow.run("dags", "test", "invoices", "2026-11-22")
        (name,) = {name for (name,) in airflow.sql("SELECT job_name FROM invoice_jobs")}
        assert sorted((airflow.store.paths(name).directory / "sent").read_text().splitlines()) == [
            "invoice 7 of 12.5 to ada@example.com",
            "invoice 8 of 3 to $(id)",
        ]
        history = "SELECT task_id, attempt, status, dag_id FROM invoice_jobs ORDER BY task_id"
        assert airflow.sql(history) == [
            ("invoice-7", 1, "completed", "invoices"),
            ("invoice-8", 1, "completed", "invoices"),
        ]

    def test_rows_as_variables(self, airflow: Airflow) -> None:
        airflow.sql(
            "CREATE TABLE customers (email TEXT, greeting TEXT);"
            "INSERT INTO customers VALUES ('ada@example.com', NULL), ('x', 'Hi')"
        )
        airflow.run("dags", "test", "reminders")
        assert airflow.printed("reminders") == {"task-1": "Hello, ada@example.com\n", "task-2": "Hi, x\n"}

    def test_the_example(self, airflow: Airflow) -> None:
        airflow.run("dags", "test", "example_sql")
        assert list(airflow.printed("example_sql").values()) == [
            "report for customer 1, Ada\n",
            'report for customer 2, Grace; rm -rf "$HOME"\n',
            "report for customer 3, whose name is not known\n",
        ]
        assert airflow.sql("SELECT task_id, status FROM example_job_history ORDER BY task_id") == [
            (f"customer-{number}", "completed") for number in (1, 2, 3)
        ]
