"""The end of a job schedules a DAG, whichever program submitted it. Here another DAG does, and declares its outlet."""

from __future__ import annotations

from airflow.sdk import Asset, AssetWatcher, dag, task

from airflow_provider_air_executor.event_triggers import AirExecutorJobEventTrigger
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator

REPORT = "file:///tmp/example_report"
reports = Asset(
    "example_reports",
    watchers=[
        AssetWatcher(name="completed", trigger=AirExecutorJobEventTrigger(outlet=REPORT, states=["completed"])),
    ],
)


@dag(schedule=None, catchup=False, tags=["air-executor"])
def example_asset_producer():
    AirExecutorSubmitOperator(task_id="make", tasks=["sleep 1; echo made"], job_outlets=[REPORT], poll_interval=1)


@dag(schedule=[reports], catchup=False, tags=["air-executor"])
def example_asset_consumer():
    @task(inlets=[reports])
    def consume(triggering_asset_events=None):
        names = [event.extra["payload"]["job_name"] for event in triggering_asset_events[reports]]
        print(f"jobs that have ended: {', '.join(names)}")
        return names

    consume()


example_asset_producer()
example_asset_consumer()
