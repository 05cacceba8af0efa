"""Between databases and jobs: a task for each row of a query, and the history of a job in a table.

DAG files import both operators from here.
"""

from __future__ import annotations

from airflow_provider_air_executor.transfers.air_executor_to_sql import AirExecutorToSqlOperator
from airflow_provider_air_executor.transfers.sql_to_air_executor import SqlToAirExecutorOperator

__all__ = ["AirExecutorToSqlOperator", "SqlToAirExecutorOperator"]
