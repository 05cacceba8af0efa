"""Jobs that read like a sentence, and how they end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.jobs.attempt_record import read_record
from airflow_provider_air_executor.jobs.logs import LogChunk, TaskLog
from airflow_provider_air_executor.jobs.models import Job, Task
from airflow_provider_air_executor.jobs.pieces import finish
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.job_writer import JobWriter
from tests.support.waiting import PATIENCE, wait_until

DATA = Path(__file__).parent.parent / "data"  # files of the existing system


def task(task_id: str, bash: str = "true", after: str | Sequence[str] = (), **more: Any) -> dict[str, Any]:
    """A task that runs a line of bash: ``task("b", "exit 3", after="a")``."""
    return {"id": task_id, "bash": bash, "dependencies": [after] if isinstance(after, str) else list(after), **more}


def plain(task_id: str, command: str, *args: str, after: tuple[str, ...] = (), **more: object) -> dict[str, object]:
    """A task with the fields of the existing format only."""
    return {
        "id": task_id,
        "job_name": "j",
        "command": command,
        "args": list(args),
        "dependencies": list(after),
        "status": "pending",
        "created_at": "2026-11-22T10:16:33.789Z",
        "started_at": None,
        "completed_at": None,
        "error": None,
        **more,
    }


def write_job(store: JobStore, name: str, tasks: object, *, state: str = "waiting", named: str = "") -> Path:
    """Fill a job directory in place, as a script does: tasks.json first, then state.json."""
    path = store.jobs_path / name
    path.mkdir(parents=True)
    (path / "logs").mkdir()
    (path / "tasks.json").write_text(tasks if isinstance(tasks, str) else json.dumps(tasks))
    stamp = "2026-11-22T10:16:33.789Z"
    record = {
        "id": f"{name}-1795342593",
        "name": named or name,
        "state": state,
        "created_at": stamp,
        "updated_at": stamp,
    }
    (path / "state.json").write_text(json.dumps(record))
    return path


def publish_job(store: JobStore, job: Job) -> None:
    """Publish the state of a job, as a manager does."""
    JobWriter(store).write_job(job)


def publish_tasks(store: JobStore, name: str, tasks: Iterable[Task]) -> None:
    """Publish the tasks of a job, as a manager does while the job runs: the list that is replaced is kept."""
    finish(JobWriter(store).writing_tasks(name, tasks))


def reset_tasks(store: JobStore, name: str, tasks: Iterable[Task]) -> None:
    """Publish the tasks of a job that is to be run again, as a manager does."""
    finish(JobWriter(store).resetting_tasks(name, tasks))


def remove(store: JobStore, name: str) -> None:
    """Remove a job while the manager may be writing there."""
    shutil.rmtree(store.paths(name).directory.rename(store.base_path / "removed"))


def ended(store: JobStore, name: str, timeout: float = PATIENCE) -> Job:
    """Wait for the end of a job."""

    def job() -> Job | None:
        found = store.get_job(name)
        return found if found.state.is_terminal else None

    return wait_until(job, timeout=timeout, what=f"{name} has ended")


def only_task(store: JobStore, name: str = "j", timeout: float = PATIENCE) -> Task:
    """The only task of a job, when it has ended."""
    ended(store, name, timeout)
    (found,) = store.get_tasks(name)
    return found


def read_log(store: JobStore, name: str, task_id: str, offset: int = 0, limit: int | None = None) -> LogChunk:
    """What a task of a job has printed."""
    return TaskLog(store.paths(name), task_id).read(offset, limit)


def said(store: JobStore, name: str) -> dict[str, Any]:
    """What the task ``a`` of a job has printed first, once it has: JSON."""
    text: str = wait_until(lambda: read_log(store, name, "a").text, what=f"{name} says something")
    found: dict[str, Any] = json.loads(text.splitlines()[0])
    return found


def outcomes(store: JobStore, name: str) -> dict[str, tuple[str, str | None]]:
    """How each task of a job stands: status and reason."""
    return {item.id: (item.status.value, item.reason and item.reason.value) for item in store.get_tasks(name)}


def await_record(store: JobStore, name: str, task_id: str, attempt: int = 1) -> None:
    """Wait until the record of an attempt says how it has ended; no manager need run."""

    def is_over() -> bool:
        found = read_record(store.paths(name).record(task_id, attempt))
        return found is not None and found.is_over

    wait_until(is_over, what=f"{task_id} of {name} has ended")


def shim_pid(store: JobStore, name: str, task_id: str, attempt: int = 1) -> int:
    """The process id of the shim of a task, once it has started."""
    path = store.paths(name).record(task_id, attempt)

    def pid() -> str:
        return path.read_text().split(" ")[0] if path.exists() else ""

    return int(wait_until(pid, what="the shim has started"))
