"""The DAG of the quick start: a first job of four tasks."""

from __future__ import annotations

from airflow.sdk import dag

from airflow_provider_air_executor.operators import AirExecutorSubmitOperator


@dag(schedule=None, is_paused_upon_creation=False)
def hello():
    AirExecutorSubmitOperator(
        task_id="count",
        tasks=[
            {"id": "numbers", "bash": "sleep 5; seq 100 > numbers"},
            {"id": "odd", "bash": "grep -c '[13579]$' numbers", "dependencies": ["numbers"]},
            {"id": "even", "bash": "grep -c '[02468]$' numbers", "dependencies": ["numbers"]},
            {"id": "report", "command": "echo", "args": ["counted in {{ run_id }}"], "dependencies": ["odd", "even"]},
        ],
    )


hello()
