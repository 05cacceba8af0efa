"""The pages of jobs in Airflow's API server."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin


class _Apps:
    """Makes the web application when it is asked for: every process of Airflow loads plugins, one serves pages."""

    def __get__(self, plugin: AirflowPlugin | None, kind: type[AirflowPlugin]) -> list[dict[str, Any]]:
        from airflow_provider_air_executor.links import URL_PREFIX
        from airflow_provider_air_executor.plugin.app import app

        return [{"name": "Air-Executor", "app": app, "url_prefix": URL_PREFIX}]


class AirExecutorPlugin(AirflowPlugin):
    """Adds the pages of jobs, below ``/air-executor``."""

    name = "air_executor"
    fastapi_apps = _Apps()
