"""A base path, managers that run there as real processes, and jobs that read like a sentence."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore
from tests.waiting import wait_until

CLI = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli"]


class Managers:
    """Starts and kills managers of one base path."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("AIR_EXECUTOR")}
        self._processes: list[subprocess.Popen[str]] = []

    def launch(self, *flags: str, **kwargs: Any) -> subprocess.Popen[str]:
        """Start a manager, without waiting for it."""
        command = [*CLI, "manager", "--base-path", str(self.store.base_path), "--kill-grace", "0.5"]
        process = subprocess.Popen(
            [*command, "--poll-interval", "0.5", *flags],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            **kwargs,
        )
        self._processes.append(process)
        return process

    def start(self, *flags: str, **kwargs: Any) -> subprocess.Popen[str]:
        """Start a manager, and wait until it holds the base path."""
        process = self.launch(*flags, **kwargs)
        wait_until(lambda: self.store.manager_pid() == process.pid or process.poll() is not None, what="it runs")
        assert process.poll() is None, process.communicate()[1]
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        """``kill -9``."""
        process.kill()
        process.communicate()

    def close(self) -> None:
        """End all managers, and whatever their tasks have left."""
        for process in self._processes:
            if process.stderr is not None and not process.stderr.closed:
                self.kill(process)
        mark = os.fsencode(f"AIR_EXECUTOR_BASE_PATH={self.store.base_path}")
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "base")


@pytest.fixture
def managers(store: JobStore) -> Iterator[Managers]:
    found = Managers(store)
    yield found
    found.close()


@pytest.fixture
def manager(managers: Managers) -> subprocess.Popen[str]:
    """A running manager."""
    return managers.start()


def task(task_id: str, bash: str = "true", after: str | list[str] = (), **more: Any) -> dict[str, Any]:
    """A task that runs a line of bash: ``task("b", "exit 3", after="a")``."""
    return {"id": task_id, "bash": bash, "dependencies": [after] if isinstance(after, str) else list(after), **more}


def ended(store: JobStore, name: str, timeout: float = 60) -> Job:
    """Wait for the end of a job."""
    return wait_until(
        lambda: (job := store.get_job(name)).state.is_terminal and job, timeout=timeout, what=f"{name} has ended"
    )


def outcomes(store: JobStore, name: str) -> dict[str, tuple[str, str | None]]:
    """How each task of a job stands: status and reason."""
    return {item.id: (item.status.value, item.reason and item.reason.value) for item in store.get_tasks(name)}
