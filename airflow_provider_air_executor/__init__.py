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
        "triggers": [{"integration-name": name, "python-modules": [f"{module}.triggers", f"{module}.event_triggers"]}],
        "transfers": [
            {
                "source-integration-name": source,
                "target-integration-name": target,
                "python-module": f"{module}.transfers.{file}",
            }
            for source, target, file in (
                ("Common SQL", name, "sql_to_air_executor"),
                (name, "Common SQL", "air_executor_to_sql"),
            )
        ],
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
        "task-decorators": [{"name": "air_executor", "class-name": f"{module}.decorators.air_executor_task"}],
        "notifications": [f"{module}.notifications.AirExecutorNotifier"],
        "extra-links": [f"{module}.links.AirExecutorJobLink"],
        "plugins": [{"name": "air_executor", "plugin-class": f"{module}.plugin.AirExecutorPlugin"}],
        "executors": [f"{module}.executor.AirExecutorExecutor"],
        "cli": [f"{module}.cli.get_cli_commands"],
        "config": {
            "air_executor": {
                "description": "Settings of the AirExecutorExecutor, and of the embedded Air-Executor managers.",
                "options": {
                    "base_path": {
                        "description": (
                            "Directory of the executor's job filesystem, an absolute path. Empty: air-executor-tasks "
                            "in AIRFLOW_HOME.\nIt must not be that of the connection air_executor_default, else jobs "
                            "that tasks wait for\nwould compete with these tasks for the same slots."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "/var/lib/air-executor-tasks",
                        "default": "",
                    },
                    "embedded": {
                        "description": (
                            "Whether the scheduler starts the manager, and restarts it. False: it is a service of its "
                            "own."
                        ),
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    },
                    "max_running_tasks": {
                        "description": (
                            "How many tasks the manager runs at a time. Empty: parallelism of the section core.\n"
                            "With a lower number tasks wait in the manager's queue, where a slot is refilled at once."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "16",
                        "default": "",
                    },
                    "queues": {
                        "description": (
                            "Queues that have a job filesystem and a manager of their own, as JSON: to the name of "
                            "each its\nsettings, base_path (default: base_path of this section, a hyphen, and the "
                            "name) and max_running_tasks."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": '{"heavy": {"max_running_tasks": 1}}',
                        "default": "{{}}",  # Airflow formats defaults: {}
                    },
                    "preload": {
                        "description": (
                            "Modules that the fork server of an embedded manager imports, separated by commas.\n"
                            "Add those that many tasks import."
                        ),
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": f"{module}.workload,numpy,pandas",
                        "default": f"{module}.workload",
                    },
                    "kill_grace": {
                        "description": (
                            "Seconds between SIGTERM and SIGKILL when an embedded manager kills the process of a task."
                        ),
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "5",
                    },
                    "prune_after": {
                        "description": (
                            "Seconds after which the job of a task that has ended is removed.\n"
                            "The task's own log stays where Airflow keeps it."
                        ),
                        "version_added": "0.1.0",
                        "type": "float",
                        "example": None,
                        "default": "3600",
                    },
                    "keep_secrets": {
                        "description": (
                            "Whether the tasks of jobs that DAGs submit find Airflow's own secrets in their "
                            "environment,\nif their manager is an embedded one: the database connection, the JWT and "
                            "Fernet keys, and others\nthat are marked as sensitive. The executor's manager always has "
                            "them."
                        ),
                        "version_added": "0.1.0",
                        "type": "boolean",
                        "example": None,
                        "default": "False",
                    },
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
