"""The pages of jobs in Airflow's UI, served by its API server."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

_OWNER = "dag_id={DAG_ID}&run_id={RUN_ID}"  # Airflow fills it in


class _Apps:
    """Makes the web application when it is asked for: every process of Airflow loads plugins, one serves pages."""

    def __get__(self, plugin: AirflowPlugin | None, kind: type[AirflowPlugin]) -> list[dict[str, Any]]:
        from airflow_provider_air_executor.links import URL_PREFIX
        from airflow_provider_air_executor.plugin.app import app

        return [{"name": "Air-Executor", "app": app, "url_prefix": URL_PREFIX}]


class _Views:
    """Where the pages are in Airflow's: its menu, and tabs of task instances and DAG runs."""

    def __get__(self, plugin: AirflowPlugin | None, kind: type[AirflowPlugin]) -> list[dict[str, Any]]:
        from airflow_provider_air_executor.links import URL_PREFIX, root_path

        pages = f"{root_path()}{URL_PREFIX}"
        icons = {"icon": f"{pages}/static/icon.svg", "icon_dark_mode": f"{pages}/static/icon-dark.svg"}
        views = (
            ("nav", "Air-Executor jobs", "jobs", "air-executor"),
            ("task_instance", "Job", f"owned?{_OWNER}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}", "air-executor-job"),
            ("dag_run", "Jobs", f"owned?{_OWNER}", "air-executor-jobs"),
        )
        return [
            {"name": name, "destination": destination, "href": f"{pages}/{path}", "url_route": route, **icons}
            | ({"category": "browse"} if destination == "nav" else {})
            for destination, name, path, route in views
        ]


class AirExecutorPlugin(AirflowPlugin):
    """Adds the pages of jobs, below ``/air-executor``, and the places in Airflow's pages where they are shown."""

    name = "air_executor"
    fastapi_apps = _Apps()
    external_views = _Views()
