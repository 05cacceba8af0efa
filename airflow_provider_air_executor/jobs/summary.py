"""A job in words: how far it is, and why it failed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    JobCancelledError,
    JobFailedError,
    JobInvalidError,
    JobLostError,
    NoLocksError,
)
from airflow_provider_air_executor.jobs import manager_status, masking
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.paths import JobPaths
from airflow_provider_air_executor.jobs.store import JobStore

_ERRORS: dict[Reason | None, type[JobFailedError]] = {
    Reason.CANCELLED: JobCancelledError,
    Reason.LOST: JobLostError,
    Reason.INVALID: JobInvalidError,
    Reason.SPAWN: JobInvalidError,
}
_SHOWN = 3  # tasks named one by one; the rest is counted
_ROWS = 50  # of a table
_LOG_LINES = 20  # shown of each log
_LOGS = 10  # tasks whose output is shown


def progress(tasks: Sequence[Task]) -> str:
    """How far a job is, in one line: ``3 of 10 tasks done, running: transform``."""
    done = sum(task.status is TaskStatus.COMPLETED for task in tasks)
    failed = [task.id for task in tasks if task.status is TaskStatus.FAILED]
    running = [task.id for task in tasks if task.status is TaskStatus.RUNNING]
    parts = [f"{done} of {len(tasks)} tasks done"]
    parts += [f"{word}: {_some(ids)}" for word, ids in (("failed", failed), ("running", running)) if ids]
    return ", ".join(parts)


def why_blocked(store: JobStore, job: Job, jobs: Iterable[Job]) -> str | None:
    """Why a job does not progress: what it waits for, or what the manager cannot do with it now; None if it progresses.

    :param jobs: all jobs of the base path.
    """
    if job.state.is_terminal:
        return None
    problem = manager_status.problems(store).get(job.name)
    if problem is not None or job.state is not JobState.WAITING:
        return problem
    try:
        if not manager_status.is_running(store):
            return "no manager is running"
    except (AirExecutorError, OSError) as error:
        return f"it is not known whether a manager runs: {error}"
    position = _position(job)
    before = sum(other.state is JobState.WAITING and _position(other) < position for other in jobs)
    if not before:
        return "waits for room: it is next"
    return f"waits for room: {before} job{'' if before == 1 else 's'} before it"


def trouble(store: JobStore, job_name: str, *, embedded: bool) -> str:
    """A remark beside the progress of a job, if it does not progress; empty otherwise.

    :param embedded: whether a manager is started if none runs.
    """
    problem = manager_status.problems(store).get(job_name)
    if problem is not None:
        return f" ({problem})"
    if embedded:
        return ""
    try:
        is_running = manager_status.is_running(store)
    except NoLocksError as error:
        return f" ({error})"
    return "" if is_running else f" (no manager is running: air-executor manager --base-path {store.base_path})"


def _position(job: Job) -> tuple[int, float]:
    """The position of a job in the queue, as the manager has it; the smallest is first."""
    return -job.priority, job.created_at.timestamp() if job.created_at else 0.0


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(ids[:_SHOWN]) + more


def table(tasks: Sequence[Task]) -> list[str]:
    """How the tasks stand, as the lines of a table; of a long list those that failed, and the first ones."""
    shown = list(tasks)
    if len(shown) > _ROWS:
        shown.sort(key=lambda task: task.status is not TaskStatus.FAILED)
        shown = shown[:_ROWS]
    rows = [("task", "status", "attempts", "seconds", "exit code", "reason")]
    for task in shown:
        seconds = f"{task.seconds:.1f}" if task.seconds is not None else ""
        code = str(task.exit_code) if task.exit_code is not None else ""
        rows.append(
            (task.id, task.status.value, str(task.attempt), seconds, code, task.reason.value if task.reason else "")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = (2, 3, 4)  # columns that are aligned to the right
    lines = [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if len(tasks) > len(shown):
        lines.append(f"and {len(tasks) - len(shown)} more")
    return lines


def root_failures(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that failed by themselves, and not because another one did."""
    return [task for task in tasks if task.status is TaskStatus.FAILED and task.reason is not Reason.DEPENDENCY]


def failure(store: JobStore, job: Job) -> str:
    """Why a job failed: the error of each task that failed by itself, and the end of its log."""
    lines = [job.error or (job.reason.value if job.reason else "no reason is recorded")]
    try:
        tasks, mask = store.get_tasks(job.name), masking.load(store.paths(job.name))
    except AirExecutorError as error:
        return "\n".join([*lines, str(error)])
    failed = root_failures(tasks)
    for task in failed[:_SHOWN]:
        lines.append(f"task {task.id}: {task.error or task.status.value}")
        lines += _last_lines(store.paths(job.name), task.id, mask, _LOG_LINES)
    if len(failed) > _SHOWN:
        lines.append(f"and {len(failed) - _SHOWN} more tasks failed")
    lines.append(f"logs: {store.paths(job.name).logs}")
    return "\n".join(lines)


def _last_lines(paths: JobPaths, task_id: str, mask: masking.Mask, count: int) -> list[str]:
    return [f"  {task_id} | {line}" for line in mask.tail(TaskLog(paths, task_id), count)]


def error_of(store: JobStore, job: Job) -> JobFailedError:
    """The error of a job that failed; its class is the kind of failure."""
    error = _ERRORS.get(job.reason, JobFailedError)
    return error(job.name, failure(store, job), job.reason.value if job.reason is not None else None)


def describe(store: JobStore, job: Job, *, log_lines: int = _LOG_LINES) -> list[str]:
    """A job that has ended: a table of its tasks, and the end of what they printed, of those that failed first.

    :param log_lines: how many lines of each log are shown; 0: none.
    """
    tasks, mask = store.get_tasks(job.name), masking.load(store.paths(job.name))
    lines = [f"job {job.name}: {job.state.value}" + (f": {job.error}" if job.error else ""), *table(tasks)]
    failed_first = sorted(tasks, key=lambda task: task.status is not TaskStatus.FAILED)
    for task in failed_first[:_LOGS] if log_lines else ():
        lines += _last_lines(store.paths(job.name), task.id, mask, log_lines)
    if job.state is JobState.FAILED:
        lines.append(f"logs: {store.paths(job.name).logs}")
    return lines
