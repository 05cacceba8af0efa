"""A job in words: how far it is, and why it failed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from airflow_provider_air_executor.exceptions import (
    AirExecutorError,
    JobCancelledError,
    JobFailedError,
    JobInvalidError,
    JobLostError,
    NoLocksError,
)
from airflow_provider_air_executor.jobs import manager_control, manager_status
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import in_bytes

if TYPE_CHECKING:  # which is made of the functions here, in part
    from airflow_provider_air_executor.jobs.interface import Jobs

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
    skipped = [task.id for task in tasks if task.reason is Reason.SKIPPED]
    parts = [f"{done} of {len(tasks)} task{'' if len(tasks) == 1 else 's'} done"]
    named = (("failed", failed), ("skipped", skipped), ("running", running))
    parts += [f"{word}: {_some(ids)}" for word, ids in named if ids]
    return ", ".join(parts)


def why_blocked(store: JobStore, job: Job, jobs: Iterable[Job]) -> str | None:
    """Why a job does not progress: what it waits for, or what the manager cannot do with it now; None if it progresses.

    :param jobs: all jobs of the base path.
    """
    return why_each_blocked(store, [job], jobs).get(job.name)


def why_each_blocked(store: JobStore, some: Iterable[Job], jobs: Iterable[Job]) -> dict[str, str]:
    """Why some jobs do not progress, see :func:`why_blocked`, by their names; those that progress are left out.

    :param jobs: all jobs of the base path.
    """
    unfinished = [job for job in some if not job.state.is_terminal]
    if not unfinished:
        return {}
    problems, is_paused = manager_status.problems(store), manager_control.load(store).paused
    waiting = [job for job in unfinished if job.state is JobState.WAITING]
    found = {job.name: manager_control.PAUSED for job in unfinished if is_paused}
    if waiting and (why := _why_no_manager(store)) is not None:
        found |= {job.name: why for job in waiting}
    elif waiting and not is_paused:
        queue = sorted(_position(job) for job in jobs if job.state is JobState.WAITING)
        found |= {job.name: _waits_for_room(bisect_left(queue, _position(job))) for job in waiting}
    return found | {job.name: problems[job.name] for job in unfinished if job.name in problems}


def _why_no_manager(store: JobStore) -> str | None:
    """Why the manager takes up no job; None if it runs."""
    try:
        return None if manager_status.is_running(store) else "no manager is running"
    except (AirExecutorError, OSError) as error:
        return f"it is not known whether a manager runs: {error}"


def _waits_for_room(before: int) -> str:
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
    if manager_control.load(store).paused:
        return f" ({manager_control.PAUSED} --base-path {store.base_path})"
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
    heading = ("task", "status", "attempts", "seconds", "cpu", "memory", "exit code", "reason")
    rows: list[tuple[str, ...]] = [heading, *map(_row, shown)]
    unused = [column for column in (4, 5) if not any(row[column] for row in rows[1:])]  # cpu and memory
    rows = [tuple(cell for column, cell in enumerate(row) if column not in unused) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numbers = range(2, len(rows[0]) - 1)  # columns that are aligned to the right
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


def _row(task: Task) -> tuple[str, ...]:
    """The cells of a task."""
    usage = task.usage
    return (
        task.id,
        task.status.value,
        str(task.attempt),
        f"{task.seconds:.1f}" if task.seconds is not None else "",
        f"{usage.cpu_seconds:.1f}" if usage is not None else "",
        in_bytes(usage.max_memory) if usage is not None and usage.max_memory is not None else "",
        str(task.exit_code) if task.exit_code is not None else "",
        task.reason.value if task.reason else "",
    )


def root_failures(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that failed by themselves, and not because another one did."""
    return [task for task in tasks if task.status is TaskStatus.FAILED and task.reason is not Reason.DEPENDENCY]


def failure(jobs: Jobs, job: Job) -> str:
    """Why a job failed: the error of each task that failed by itself, and the end of its log."""
    lines = [job.error or (job.reason.value if job.reason else "no reason is recorded")]
    try:
        tasks = jobs.get_tasks(job.name)
        failed = root_failures(tasks)
        shown = {task.id: _last_lines(jobs, job, task.id, _LOG_LINES) for task in failed[:_SHOWN]}
    except AirExecutorError as error:
        return "\n".join([*lines, str(error)])
    for task in failed[:_SHOWN]:
        lines.append(f"task {task.id}: {task.error or task.status.value}")
        lines += shown[task.id]
    if len(failed) > _SHOWN:
        more = len(failed) - _SHOWN
        lines.append(f"and {more} more task{'' if more == 1 else 's'} failed")
    lines.append(f"logs: {jobs.log_location(job.name)}")
    return "\n".join(lines)


def _last_lines(jobs: Jobs, job: Job, task_id: str, count: int) -> list[str]:
    return [f"  {task_id} | {line}" for line in jobs.log(job.name, task_id).tail(count)]


def error_of(jobs: Jobs, job: Job) -> JobFailedError:
    """The error of a job that failed; its class is the kind of failure."""
    error = _ERRORS.get(job.reason, JobFailedError)
    return error(job.name, failure(jobs, job), job.reason.value if job.reason is not None else None)


def describe(jobs: Jobs, job: Job, *, log_lines: int = _LOG_LINES) -> list[str]:
    """A job that has ended: a table of its tasks, and the end of what they printed, of those that failed first.

    :param log_lines: how many lines of each log are shown; 0: none.
    """
    tasks = jobs.get_tasks(job.name)
    lines = [f"job {job.name}: {job.state.value}" + (f": {job.error}" if job.error else ""), *table(tasks)]
    failed_first = sorted(tasks, key=lambda task: task.status is not TaskStatus.FAILED)
    for task in failed_first[:_LOGS] if log_lines else ():
        lines += _last_lines(jobs, job, task.id, log_lines)
    if job.state is JobState.FAILED:
        lines.append(f"logs: {jobs.log_location(job.name)}")
    return lines
