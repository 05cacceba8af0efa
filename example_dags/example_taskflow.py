"""TaskFlow: a function returns the tasks of a job, and their results are what the Airflow task returns."""

from __future__ import annotations

from airflow.sdk import dag, task


@dag(schedule=None, catchup=False, tags=["air-executor"])
def example_taskflow():
    @task.air_executor(deferrable=True, poll_interval=1)
    def square(numbers):
        return [
            {"id": f"square-{number}", "bash": f"sleep 1; echo $(({number} * {number})) > $AIR_EXECUTOR_OUTPUT"}
            for number in numbers
        ]

    @task
    def add(squares):
        total = sum(squares.values())
        print(f"the sum of {squares} is {total}")
        return total

    add(square([3, 4]))


example_taskflow()
