"""DAGs for the tests of the pages: their jobs go on when a file ``go`` appears in the job's directory."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG

from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.sensors import AirExecutorJobSensor

ARGUMENTS = {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "schedule": None, "catchup": False}
TICK = 'n=0; until [ -e "$AIR_EXECUTOR_JOB_DIR/go" ]; do n=$((n+1)); echo "tick $n"; sleep 0.2; done; echo over'

with DAG("watched", **ARGUMENTS):
    AirExecutorSubmitOperator(
        task_id="process",
        job_name="{{ dag_run.conf['job'] }}",
        labels={"team": "data"},
        deferrable=True,
        tasks=[
            {"id": "extract", "bash": "sleep 0.5; echo extracted"},
            {"id": "transform-a", "bash": TICK, "dependencies": ["extract"]},
            {"id": "transform-b", "bash": "echo b; sleep 1", "dependencies": ["extract"]},
            {"id": "load", "bash": "echo loaded", "dependencies": ["transform-a", "transform-b"]},
        ],
    )

with DAG("waiting", **ARGUMENTS):
    AirExecutorJobSensor(task_id="wait", job_name="of-nobody", deferrable=True)
