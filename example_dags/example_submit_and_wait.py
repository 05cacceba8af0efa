"""Submit a job, wait for it without holding a worker slot, and use its result: three Airflow tasks."""

from __future__ import annotations

from airflow.sdk import dag, task

from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.sensors import AirExecutorJobSensor


@dag(schedule=None, catchup=False, tags=["air-executor"])
def example_submit_and_wait():
    submit = AirExecutorSubmitOperator(
        task_id="submit",
        wait_for_completion=False,
        tasks=[
            {"id": "download", "bash": "sleep 6; echo downloaded 3 files"},
            {
                "id": "transform",
                "bash": "sleep 8; echo transformed the files of {{ run_id }}",
                "dependencies": ["download"],
            },
            {"id": "upload", "command": "echo", "args": ["uploaded 1 file"], "dependencies": ["transform"]},
        ],
    )
    wait = AirExecutorJobSensor(task_id="wait", job_name=submit.output, deferrable=True, poke_interval=2)

    @task
    def result(job_name: str) -> dict[str, str]:
        hook = AirExecutorHook()
        outputs = {item.id: hook.read_log(job_name, item.id).text.strip() for item in hook.get_tasks(job_name)}
        for task_id, output in outputs.items():
            print(f"{task_id} printed: {output}")
        return outputs

    wait >> result(submit.output)


example_submit_and_wait()
