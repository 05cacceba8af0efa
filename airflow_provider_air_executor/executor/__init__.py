"""The Airflow executor: ``[core] executor = airflow_provider_air_executor.executor.AirExecutorExecutor``."""

from airflow_provider_air_executor.executor.executor import AirExecutorExecutor as AirExecutorExecutor
