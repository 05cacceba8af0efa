"""A job that fails: the Airflow task fails too, with the exit code and the last lines of the failed task's log."""

from __future__ import annotations

from airflow.sdk import dag

from airflow_provider_air_executor.operators import AirExecutorSubmitOperator


@dag(schedule=None, catchup=False, tags=["air-executor"])
def example_failing_job():
    AirExecutorSubmitOperator(
        task_id="fails",
        deferrable=True,
        poll_interval=1,
        tasks=[
            {"id": "prepare", "command": "echo", "args": ["prepared"]},
            {"id": "break", "bash": "sleep 6; echo the disk is on fire >&2; exit 3", "dependencies": ["prepare"]},
            {"id": "report", "command": "echo", "args": ["never printed"], "dependencies": ["break"]},
        ],
    )


example_failing_job()
