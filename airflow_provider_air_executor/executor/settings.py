"""The settings of the executor: the section ``[air_executor]`` of Airflow's configuration."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow.configuration import conf

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.executor.queues import SECTION, Queue
from airflow_provider_air_executor.hooks import tasks_base_path
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.workload import MODULE

AUTO = "auto"  # of the setting preload: what tasks import is learned


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
    def queues(self) -> dict[str | None, Queue]:
        """The queues that have a job filesystem of their own, and under None what is for all others."""
        base_path = tasks_base_path(self._text("base_path"), self._team_name)
        limit = int(self._number("max_running_tasks", self._parallelism))
        found: dict[str | None, Queue] = {None: Queue(JobStore(base_path), limit)}
        text = self._text("queues", "{}")
        try:
            queues = json.loads(text)
        except ValueError as error:
            raise ValueError(f"[{SECTION}] queues is not JSON: {error}") from None
        if not isinstance(queues, dict) or not all(isinstance(value, dict) for value in queues.values()):
            raise ValueError(f"[{SECTION}] queues must map names of queues to settings, not {text!r}")
        for name, given in queues.items():
            found[name] = Queue.of(name, f"{base_path}-{name}", limit, given)
        return found

    def queue(self, name: str | None) -> Queue:
        """What is for a queue of Airflow's."""
        return self.queues.get(name, self.queues[None])

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
        return [queue.store for queue in self.queues.values()]

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

    def server(self, queue: Queue) -> str:
        """The address of the execution API, as the tasks of a queue use it."""
        if queue.server is not None:
            return queue.server
        for source in (self._source, conf):  # that of the team, and for what it does not say the common one
            url = source.get("core", "execution_api_server_url", fallback=None)
            if url:
                return str(url)
        base_url = str(self._source.get("api", "base_url", fallback=None) or conf.get("api", "base_url", fallback="/"))
        if base_url.startswith("/"):
            base_url = f"http://localhost:8080{base_url}"
        return f"{base_url.rstrip('/')}/execution/"
