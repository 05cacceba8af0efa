"""A job task for each row of a query, and the history of the job in a table.

The database is that of the connection ``example_sql``, for instance:

    airflow connections add example_sql --conn-type sqlite --conn-host /tmp/example_sql.db
"""

from __future__ import annotations

from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from airflow.sdk import dag

from airflow_provider_air_executor.transfers import AirExecutorToSqlOperator, SqlToAirExecutorOperator

CONN_ID = "example_sql"


@dag(schedule=None, catchup=False, tags=["air-executor"])
def example_sql():
    prepare = SQLExecuteQueryOperator(
        task_id="prepare",
        conn_id=CONN_ID,
        split_statements=True,
        sql="""
            DROP TABLE IF EXISTS example_customers;
            CREATE TABLE example_customers (id INTEGER PRIMARY KEY, name TEXT);
            INSERT INTO example_customers VALUES (1, 'Ada'), (2, 'Grace; rm -rf "$HOME"'), (3, NULL);
        """,
    )
    report = SqlToAirExecutorOperator(
        task_id="report",
        conn_id=CONN_ID,
        sql="SELECT 'customer-' || id AS task, id, name FROM example_customers ORDER BY id",
        task_id_column="task",
        task={"bash": 'echo "report for customer $1, ${2:-whose name is not known}"', "retries": 1},
        deferrable=True,
        poll_interval=1,
    )
    AirExecutorToSqlOperator(
        task_id="history",
        conn_id=CONN_ID,
        job_name=report.output["job_name"],
        table="example_job_history",
        create_table=True,
        trigger_rule="none_skipped",  # also of a job that failed
    )
    prepare >> report


example_sql()
