"""A diamond: two tasks side by side between a first and a last one, written with ``Task``."""

from __future__ import annotations

from airflow.sdk import dag

from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator


@dag(schedule=None, catchup=False, tags=["air-executor"])
def example_diamond():
    AirExecutorSubmitOperator(
        task_id="diamond",
        max_parallel_tasks=2,
        tasks=[
            Task(id="split", bash="seq 1 100 > $AIR_EXECUTOR_JOB_DIR/numbers"),
            Task(id="odd", bash="grep -c '[13579]$' $AIR_EXECUTOR_JOB_DIR/numbers", dependencies=["split"]),
            Task(id="even", bash="grep -c '[02468]$' $AIR_EXECUTOR_JOB_DIR/numbers", dependencies=["split"]),
            Task(id="join", command="echo", args=["joined"], dependencies=["odd", "even"], retries=2, retry_delay=1),
        ],
    )


example_diamond()
