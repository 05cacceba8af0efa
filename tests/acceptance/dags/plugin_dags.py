"""DAGs for the tests of the page, the link, the notifier and the lineage of a job."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG, Asset

from airflow_provider_air_executor.notifications import AirExecutorNotifier
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.sensors import AirExecutorJobSensor

ARGUMENTS = {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "schedule": None, "catchup": False}

with DAG("seen", **ARGUMENTS):
    submit = AirExecutorSubmitOperator(
        task_id="submit",
        job_name="seen",
        tasks=[{"id": "print", "bash": "echo hello of {{ run_id }}; env", "env": {"SECRET": "hunter2"}}],
        inlets=[Asset("file://host/in.csv")],
        outlets=[Asset("file://host/out.csv")],
        openlineage_inject_parent_job_info=True,
    )
    wait = AirExecutorJobSensor(task_id="wait", job_name="seen")
    deferred = AirExecutorSubmitOperator(
        task_id="deferred", job_name="deferred", tasks=["sleep 2", {"command": "false"}], deferrable=True
    )
    mapped = AirExecutorSubmitOperator.partial(
        task_id="mapped",
        trigger_rule="all_done",
        on_success_callback=AirExecutorNotifier(tasks=["echo {{ ti.task_id }} {{ ti.map_index }}"]),
    ).expand(tasks=[["echo 0"], ["echo 1"]])
    fails = AirExecutorSubmitOperator(
        task_id="fails",
        tasks=["echo boom; exit 3"],
        trigger_rule="all_done",
        on_failure_callback=[
            AirExecutorNotifier(tasks=["echo {{ ti.task_id }} has failed"]),
            AirExecutorNotifier(
                tasks=["echo another job"], job_name="alert-{{ run_id }}", labels={"task": "{{ ti.task_id }}"}
            ),
        ],
    )
    submit >> wait >> deferred >> mapped >> fails

with DAG("hidden", **ARGUMENTS):
    AirExecutorSubmitOperator(task_id="submit", tasks=["true"], job_name="hidden")
