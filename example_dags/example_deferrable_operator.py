"""The operator alone: it submits the job, defers until the job has ended, and fails if the job fails."""

from __future__ import annotations

from airflow.sdk import dag

from airflow_provider_air_executor.operators import AirExecutorSubmitOperator


@dag(schedule=None, catchup=False, tags=["air-executor"])
def example_deferrable_operator():
    AirExecutorSubmitOperator(
        task_id="run",
        job_name="report_{{ run_id }}",
        deferrable=True,
        timeout=600,
        poll_interval=1,
        tasks=["sleep 2; echo one", "sleep 3; echo two", "sleep 8; echo three"],
    )


example_deferrable_operator()
