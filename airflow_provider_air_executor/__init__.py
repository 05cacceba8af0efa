"""Run multi-step shell jobs from Airflow: jobs are plain files, one manager process runs them."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """What Airflow's provider manager wants to know; nothing heavy is imported for it."""
    module = "airflow_provider_air_executor"
    name = "Air-Executor"
    return {
        "package-name": "airflow-provider-air-executor",
        "name": name,
        "description": "Run multi-step shell jobs that are plain files, without holding a worker slot.",
        "integrations": [{"integration-name": name, "tags": ["software"]}],
        "operators": [{"integration-name": name, "python-modules": [f"{module}.operators"]}],
        "sensors": [{"integration-name": name, "python-modules": [f"{module}.sensors"]}],
        "hooks": [{"integration-name": name, "python-modules": [f"{module}.hooks"]}],
        "triggers": [{"integration-name": name, "python-modules": [f"{module}.triggers"]}],
        "connection-types": [
            {
                "connection-type": "air_executor",
                "hook-class-name": f"{module}.hooks.AirExecutorHook",
                "hook-name": name,
                "conn-fields": {
                    "base_path": {
                        "label": "Base path",
                        "description": "Directory that holds jobs/. Default: air-executor in AIRFLOW_HOME.",
                        "schema": {"type": ["string", "null"]},
                    },
                    "embedded": {
                        "label": "Embedded",
                        "description": "Start the manager when it is needed and none runs.",
                        "schema": {"type": ["boolean", "null"], "default": False},
                    },
                },
                "ui-field-behaviour": {
                    "hidden-fields": ["host", "schema", "login", "password", "port", "extra"],
                    "relabeling": {},
                    "placeholders": {"base_path": "/var/lib/air-executor"},
                },
            }
        ],
        "config": {
            "air_executor": {
                "description": "Settings of the embedded Air-Executor manager.",
                "options": {
                    "embedded_idle_timeout": {
                        "description": "Seconds without work after which the embedded manager ends.",
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "600",
                    },
                },
            }
        },
    }
