"""Run multi-step shell jobs from Airflow: jobs are plain files, one manager process runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_air_executor.client import AirExecutorClient as AirExecutorClient
    from airflow_provider_air_executor.client import Client as Client

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The client, loaded when somebody asks for it: Airflow imports this package at each of its starts."""
    if name in ("AirExecutorClient", "Client"):
        from airflow_provider_air_executor import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_provider_info() -> dict[str, Any]:
    """The description of this package for Airflow's provider manager; it imports nothing heavy."""
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
                "conn-fields": _fields(),
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "extra"],
                    "relabeling": {"host": "Host (of a manager on another machine)", "password": "Token"},
                    "placeholders": {
                        "host": "jobs.example.org",
                        "port": "8443",
                        "schema": "https",
                        "password": "aex_...",
                        "base_path": "/var/lib/air-executor",
                        "ca": "/etc/ssl/certs/jobs-ca.pem",
                        "command": "air-executor",
                    },
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
                "options": _options(module),
            }
        },
    }


def _fields() -> dict[str, dict[str, Any]]:
    """The fields of the connection form besides Airflow's own."""
    return {
        "base_path": _field(
            "Base path",
            "Directory that holds jobs/, on this machine or, with SSH, on the other one. "
            "Default: air-executor in AIRFLOW_HOME; with SSH, as air-executor serve has it there.",
        ),
        "embedded": {
            "label": "Embedded",
            "description": "Start the manager when it is needed and none runs.",
            "schema": {"type": ["boolean", "null"], "default": False},
        },
        "ssh_conn_id": _field(
            "SSH connection",
            "Connection of type SSH by which the machine of the manager is reached, in place of a host.",
        ),
        "command": _field(
            "Command", "With SSH: the command air-executor on the other machine. Default: as its PATH has it."
        ),
        "ca": _field(
            "CA file", "File with the certificates by which the server's is checked. Default: those of the system."
        ),
        "client_cert": _field("Client certificate", "File with a certificate for the server, where that wants one."),
        "client_key": _field("Client key", "File with the key of that certificate, if it is not in the same file."),
    }


def _field(label: str, description: str) -> dict[str, Any]:
    return {"label": label, "description": description, "schema": {"type": ["string", "null"]}}


def _options(module: str) -> dict[str, dict[str, str | None]]:
    """The settings in the section ``[air_executor]``."""
    return {
        "base_path": _option(
            "Directory of the executor's job filesystem, an absolute path. Empty: air-executor-tasks in AIRFLOW_HOME.\n"
            "It must not be that of the connection air_executor_default, else jobs that tasks wait for\n"
            "would compete with these tasks for the same slots.",
            example="/var/lib/air-executor-tasks",
        ),
        "embedded": _option(
            "Whether the scheduler starts the manager, and restarts it. False: it is a service of its own.",
            "boolean",
            "True",
        ),
        "max_running_tasks": _option(
            "How many tasks the manager runs at a time. Empty: parallelism of the section core.\n"
            "With a lower number tasks wait in the manager's queue, where a slot is refilled at once.",
            example="16",
        ),
        "capacity": _option(
            "What tasks with resources may have of the machine, all together, as JSON: cpus, memory, and gpus, which\n"
            "is a number or a list of ids. Each embedded manager has it. Empty: all that the machine, or its control\n"
            "group, has.",
            example='{"cpus": 16, "memory": "64Gi", "gpus": ["0", "1"]}',
        ),
        "queues": _option(
            "Queues that have a job filesystem and a manager of their own, as JSON: to the name of each its\n"
            "settings, base_path (default: base_path of this section, a hyphen, and the name) and max_running_tasks.\n"
            "With a runner (slurm, kubernetes) its tasks run on a cluster, with these settings besides: resources,\n"
            "slurm, kubernetes, env, settings, server, python, prologue and image.",
            default="{{}}",  # Airflow formats defaults: {}
            example='{"heavy": {"max_running_tasks": 1}, "hpc": {"runner": "slurm", "slurm": {"partition": "cpu"}}}',
        ),
        "preload": _option(
            "Modules that the fork server of an embedded manager imports, separated by commas.\n"
            "auto: Airflow, and besides the packages that tasks turn out to import.",
            default="auto",
            example=f"{module}.workload,numpy,pandas",
        ),
        "execute_ahead": _option(
            "Whether a DAG file that gives the same in each task is executed once for several of them, if what tasks\n"
            "import is learned (preload = auto).",
            "boolean",
            "True",
        ),
        "kill_grace": _option(
            "Seconds between SIGTERM and SIGKILL when an embedded manager kills the process of a task.", "float", "5"
        ),
        "prune_after": _option(
            "Seconds after which the job of a task that has ended is removed.\n"
            "The task's own log stays where Airflow keeps it.",
            "float",
            "3600",
        ),
        "stream_limit": _option(
            "How many bytes of what the tasks of a job print appear in the log of the Airflow task that waits for it.\n"
            "0: all of it.",
            "integer",
            "10000000",
        ),
        "keep_secrets": _option(
            "Whether the tasks of jobs that DAGs submit find Airflow's own secrets in their environment,\n"
            "if their manager is an embedded one: the database connection, the JWT and Fernet keys, and others\n"
            "that are marked as sensitive. The executor's manager always has them.",
            "boolean",
            "False",
        ),
        "embedded_idle_timeout": _option("Seconds without work after which the embedded manager ends.", "float", "600"),
    }


def _option(
    description: str, kind: str = "string", default: str = "", example: str | None = None
) -> dict[str, str | None]:
    return {
        "description": description,
        "version_added": "0.1.0",
        "type": kind,
        "example": example,
        "default": default,
    }
