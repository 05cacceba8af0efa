"""DAGs for the tests of the network: what becomes of Airflow's tasks while the other machine is away.

The jobs run there until a file is there. Each of their tasks says so on a line of another file when it begins.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG

from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.sensors import AirExecutorJobSensor

ARGUMENTS = {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "schedule": None, "catchup": False}

BEGIN = "echo $AIR_EXECUTOR_JOB >> '{{ params.begun }}'; "
UNTIL = "until test -e '{{ params.go }}'; do "
TALK = BEGIN + "echo started; i=0; " + UNTIL + "i=$((i + 1)); echo line $i; sleep 0.2; done; "
WORK = [{"id": "work", "bash": TALK + "echo '\"done\"' > $AIR_EXECUTOR_OUTPUT"}]
NAMED = "named-{{ run_id }}"

with DAG("away", params={"go": "", "begun": ""}, **ARGUMENTS):
    HOW = {"tasks": WORK, "stream_logs": True, "poll_interval": 1, "execution_timeout": timedelta(hours=1)}
    AirExecutorSubmitOperator(task_id="waits", **HOW)
    AirExecutorSubmitOperator(task_id="defers", deferrable=True, **HOW)
    submit = AirExecutorSubmitOperator(task_id="submit", job_name=NAMED, tasks=WORK, wait_for_completion=False)
    submit >> AirExecutorJobSensor(task_id="senses", job_name=NAMED, deferrable=True, poke_interval=1, timeout=3600)

with DAG("many", params={"go": "", "begun": ""}, max_active_tasks=100, **ARGUMENTS):
    AirExecutorSubmitOperator.partial(task_id="submit", deferrable=True, poll_interval=1).expand(
        tasks=[[BEGIN + UNTIL + "sleep 0.2; done"]] * 4
    )
