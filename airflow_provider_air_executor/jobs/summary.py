"""A job in words: how far it is, and why it failed."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore

_SHOWN = 3  # tasks named one by one; the rest is counted


def progress(tasks: Sequence[Task]) -> str:
    """How far a job is, in one line: ``3 of 10 tasks done, running: transform``."""
    done = sum(task.status is TaskStatus.COMPLETED for task in tasks)
    failed = [task.id for task in tasks if task.status is TaskStatus.FAILED]
    running = [task.id for task in tasks if task.status is TaskStatus.RUNNING]
    parts = [f"{done} of {len(tasks)} tasks done"]
    parts += [f"{word}: {_some(ids)}" for word, ids in (("failed", failed), ("running", running)) if ids]
    return ", ".join(parts)


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more


def outcome(task: Task) -> str:
    """How a task stands, in one line: ``transform: failed (exit code 3, 2 attempts, 1.2 s)``."""
    facts = []
    if task.reason is not None and task.exit_code is None:
        facts.append(task.reason.value)
    if task.exit_code is not None:
        facts.append(f"exit code {task.exit_code}")
    if task.attempt > 1:
        facts.append(f"{task.attempt} attempts")
    if task.seconds is not None:
        facts.append(f"{task.seconds:.1f} s")
    return f"{task.id}: {task.status.value}" + (f" ({', '.join(facts)})" if facts else "")


def failure(store: JobStore, job: Job, *, log_lines: int = 20) -> str:
    """Why a job failed: the error of each task that failed by itself, and the end of its log.

    :param log_lines: how many lines of each log are shown.
    """
    lines = [job.error or (job.reason.value if job.reason else "no reason is recorded")]
    try:
        tasks = store.get_tasks(job.name)
    except AirExecutorError as error:
        return "\n".join([*lines, str(error)])
    culprits = [task for task in tasks if task.status is TaskStatus.FAILED and task.reason is not Reason.DEPENDENCY]
    for task in culprits[:_SHOWN]:
        lines.append(f"task {task.id}: {task.error or task.status.value}")
        lines += [f"  {task.id} | {line}" for line in store.tail(job.name, task.id, log_lines).splitlines()]
    if len(culprits) > _SHOWN:
        lines.append(f"and {len(culprits) - _SHOWN} more tasks failed")
    lines.append(f"logs: {store.logs_path(job.name)}")
    return "\n".join(lines)


def describe(store: JobStore, job: Job, *, log_lines: int = 20) -> list[str]:
    """A job that has ended, task by task: how each ended, and the end of what it printed."""
    lines = [f"job {job.name}: {job.state.value}" + (f": {job.error}" if job.error else "")]
    for task in store.get_tasks(job.name):
        lines.append(outcome(task))
        lines += [f"  {task.id} | {line}" for line in store.tail(job.name, task.id, log_lines).splitlines()]
    if job.state is JobState.FAILED:
        lines.append(f"logs: {store.logs_path(job.name)}")
    return lines
