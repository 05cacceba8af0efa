"""DAGs for the tests of the operator: what becomes of a job when something happens to the task that waits for it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, task

from airflow_provider_air_executor.operators import AirExecutorSubmitOperator

ARGUMENTS = {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "schedule": None, "catchup": False}

LINE = "echo started; for i in $(seq {{ params.seconds }}); do echo line $i; sleep 1; done; echo '\"done\"' > "

for dag_id, deferrable in (("waits", True), ("holds_a_worker", False)):
    with DAG(dag_id, params={"seconds": 60}, **ARGUMENTS):
        AirExecutorSubmitOperator(
            task_id="submit",
            tasks=[{"id": "work", "bash": LINE + "$AIR_EXECUTOR_OUTPUT"}],
            job_name=dag_id + "-{{ run_id }}",
            deferrable=deferrable,
            stream_logs=True,
            poll_interval=1,
            retries=1,
            retry_delay=0,
        )

with DAG("taskflow", **ARGUMENTS):

    @task
    def numbers() -> list[int]:
        return [1, 2]

    @task.air_executor(deferrable=True)
    def squares(number: int) -> list[dict[str, Any]]:
        line = f"echo $(({number} * {number})) > $AIR_EXECUTOR_OUTPUT"
        return [{"id": "square", "bash": line}, {"command": "echo", "args": ["{{ task.task_id }}"]}]

    @task
    def total(found: list[dict[str, int]]) -> int:
        return sum(one["square"] for one in found)

    total(squares.expand(number=numbers()))  # type: ignore[arg-type]

with DAG("mapped_jobs", params={"seconds": 60}, max_active_tasks=100, **ARGUMENTS):
    AirExecutorSubmitOperator.partial(task_id="submit", deferrable=True, poll_interval=1).expand(
        tasks=[["sleep {{ params.seconds }}"]] * 3
    )

with DAG("many_jobs", params={"seconds": 60}, max_active_tasks=100, **ARGUMENTS):
    AirExecutorSubmitOperator.partial(task_id="submit", deferrable=True, poll_interval=1).expand(
        tasks=[["sleep {{ params.seconds }}"]] * 50
    )
