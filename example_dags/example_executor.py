"""Plain operators, run by the executor: the DAG does not mention Air-Executor.

To see it, start Airflow with AIRFLOW__CORE__EXECUTOR=airflow_provider_air_executor.executor.AirExecutorExecutor.
"""

from __future__ import annotations

import datetime as dt

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG


def say_hello() -> str:
    """Print a greeting, and return it."""
    print("Hello from a warm runner")
    return "Hello"


with DAG(
    "example_executor",
    schedule=None,
    start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    tags=["example"],
    doc_md=__doc__,
):
    print_date = BashOperator(task_id="print_date", bash_command="date")
    sleep = BashOperator(task_id="sleep", bash_command="sleep 5")
    print_hello = PythonOperator(task_id="print_hello", python_callable=say_hello)

    print_date >> [sleep, print_hello]
