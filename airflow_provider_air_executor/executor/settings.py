"""The settings of the executor: the section ``[air_executor]`` of Airflow's configuration, and a task's own options."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from airflow.configuration import conf

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.hooks import tasks_base_path
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.workload import MODULE

SECTION = "air_executor"
AUTO = "auto"  # of the setting preload: what tasks import is learned


@dataclass
class Options:
    """``executor_config["air_executor"]`` of a task: how its job is to be run.

    :param env: environment variables added to the manager's own. The task then starts cold.
    :param timeout: seconds from its start after which it is killed.
    :param priority: in place of the task's priority weight.
    """

    env: dict[str, str] = field(default_factory=dict)
    timeout: float | None = None
    priority: int | None = None

    @classmethod
    def of(cls, executor_config: Any) -> Options:
        """Read the options of a task.

        :raises InvalidJobError: if there is an option that does not exist. Their values are checked on submission.
        """
        given = (executor_config or {}).get(SECTION) or {}
        if not isinstance(given, Mapping):
            raise InvalidJobError(f"executor_config[{SECTION!r}] must be a mapping, not {type(given).__name__}")
        for name in given.keys() - {"env", "timeout", "priority"}:
            raise InvalidJobError(f"executor_config[{SECTION!r}]: there is no option {name!r}")
        priority = given.get("priority")
        if priority is not None and (isinstance(priority, bool) or not isinstance(priority, int)):
            raise InvalidJobError(f"executor_config[{SECTION!r}]: priority must be a whole number, not {priority!r}")
        return cls(given.get("env") or {}, given.get("timeout"), priority)


class QueueBasePath(NamedTuple):
    """The job filesystem of a queue, and how many tasks its manager runs at a time if it is an embedded one."""

    store: JobStore
    max_running_tasks: int


class Settings:
    """The section ``[air_executor]``, as a team has it.

    Reading a setting that is not valid raises a ValueError which names it.

    :param source: the team's configuration, or Airflow's.
    :param parallelism: how many tasks the executor may run at a time.
    """

    def __init__(self, source: Any, team_name: str | None, parallelism: int) -> None:
        self._source = source
        self._team_name = team_name
        self._parallelism = parallelism

    def _text(self, key: str, default: str = "") -> str:
        return str(self._source.get(SECTION, key, fallback=default) or default)

    def _number(self, key: str, default: float) -> float:
        text = self._text(key, str(default))
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"[{SECTION}] {key} must be a number, not {text!r}") from None

    @property
    def is_embedded(self) -> bool:
        """Whether the scheduler starts the managers."""
        return self._text("embedded", "true").lower() in ("true", "t", "1", "yes", "on")

    @cached_property
    def prune_after(self) -> float:
        """Seconds after its end at which a job is removed."""
        return self._number("prune_after", 3600)

    @property
    def kill_grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL."""
        return self._number("kill_grace", 5)

    @property
    def preload(self) -> str:
        """The modules that a manager's fork server imports, separated by commas; ``auto`` has it learn others."""
        words = [word.strip() for word in self._text("preload", AUTO).split(",")]
        if AUTO in words and MODULE not in words:
            words.insert(words.index(AUTO) + 1, MODULE)  # without it there is nothing to learn from
        return ",".join(words)

    @cached_property
    def base_paths(self) -> dict[str | None, QueueBasePath]:
        """The job filesystem of each queue that has its own, and under None that of all others."""
        base_path = tasks_base_path(self._text("base_path"), self._team_name)
        limit = int(self._number("max_running_tasks", self._parallelism))
        found: dict[str | None, QueueBasePath] = {None: QueueBasePath(JobStore(base_path), limit)}
        text = self._text("queues", "{}")
        try:
            queues = json.loads(text)
        except ValueError as error:
            raise ValueError(f"[{SECTION}] queues is not JSON: {error}") from None
        if not isinstance(queues, dict) or not all(isinstance(value, dict) for value in queues.values()):
            raise ValueError(f"[{SECTION}] queues must map names of queues to settings, not {text!r}")
        for queue, settings in queues.items():
            for name in settings.keys() - {"base_path", "max_running_tasks"}:
                raise ValueError(f"[{SECTION}] queues: {queue!r} has no setting {name!r}")
            path = settings.get("base_path") or f"{base_path}-{queue}"
            if not os.path.isabs(path):
                raise ValueError(f"[{SECTION}] queues: base_path of {queue!r} must be an absolute path, not {path!r}")
            found[queue] = QueueBasePath(JobStore(path), int(settings.get("max_running_tasks", limit)))
        return found

    def store_of(self, queue: str | None) -> JobStore:
        """The job filesystem of a queue."""
        return self.base_paths.get(queue, self.base_paths[None]).store

    def store_with(self, job_name: str | None) -> JobStore | None:
        """The job filesystem that has a job of this name; None also if there can be no such name."""
        if not job_name:
            return None
        try:
            return next((s for s in self.stores if files.is_real_directory(s.paths(job_name).directory)), None)
        except InvalidJobError:
            return None

    @property
    def stores(self) -> list[JobStore]:
        """All job filesystems."""
        return [base_path.store for base_path in self.base_paths.values()]

    @cached_property
    def working_directory(self) -> str:
        """The directory in which tasks run: this process's own, as with LocalExecutor; if that holds jobs, another."""
        try:
            here = Path.cwd()
        except OSError:  # it has been removed
            return "/"
        is_ours = any(here.is_relative_to(store.base_path.resolve()) for store in self.stores)
        return "/" if is_ours else str(here)

    @cached_property
    def uploads_logs(self) -> bool:
        """Whether supervisors upload the logs of their tasks."""
        return bool(conf.getboolean("logging", "remote_logging", fallback=False))

    def server(self) -> str:
        """The address of the execution API."""
        for source in (self._source, conf):  # that of the team, and for what it does not say the common one
            url = source.get("core", "execution_api_server_url", fallback=None)
            if url:
                return str(url)
        base_url = str(self._source.get("api", "base_url", fallback=None) or conf.get("api", "base_url", fallback="/"))
        if base_url.startswith("/"):
            base_url = f"http://localhost:8080{base_url}"
        return f"{base_url.rstrip('/')}/execution/"
