"""What ``air-executor status`` shows to people: tables, live where asked for."""

from __future__ import annotations

import time
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs.models import Job, JobState, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.summary import progress

_REFRESH_SECONDS = 0.25
_COLOURS = {"completed": "green", "failed": "red", "working": "yellow", "running": "yellow"}


def show(store: JobStore, job_name: str | None, limit: int) -> None:
    """Print all jobs, or one with its tasks."""
    console = Console(highlight=False)
    console.print(_overview(store, limit) if job_name is None else _details(store, store.get_job(job_name)))


def watch(store: JobStore, job_name: str | None, limit: int) -> Job | None:
    """Show all jobs until interrupted, or one job until it has ended.

    :return: that job, once it has ended.
    """
    from rich.live import Live  # not needed, and not loaded, for a look

    console = Console(highlight=False)
    if job_name is None:
        with Live(_overview(store, limit), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH_SECONDS)
                live.update(_overview(store, limit), refresh=True)
    job = store.get_job(job_name)
    if not console.is_terminal:
        return _print_progress(store, job, console)
    with Live(_details(store, job), console=console, auto_refresh=False) as live:
        while not job.state.is_terminal:
            time.sleep(_REFRESH_SECONDS)
            job = store.get_job(job_name)
            live.update(_details(store, job), refresh=True)
    return job


def _print_progress(store: JobStore, job: Job, console: Console) -> Job:
    """One line whenever something has changed, for a pipe or a file."""
    last = ""
    while True:
        job = store.get_job(job.name)
        line = progress(store.get_tasks(job.name))
        if line != last:
            console.print(Text(f"{job.name}: {line}"))
            last = line
        if job.state.is_terminal:
            console.print(_details(store, job))
            return job
        time.sleep(_REFRESH_SECONDS)


def _overview(store: JobStore, limit: int) -> RenderableType:
    jobs = sorted(store.list_jobs(), key=lambda job: job.created_at.timestamp() if job.created_at else 0, reverse=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("JOB", "STATE", "TASKS", "AGE", "TOOK", "REASON"):
        table.add_column(heading, overflow="fold" if heading == "JOB" else "ellipsis", no_wrap=heading != "JOB")
    for job in jobs[:limit]:
        table.add_row(
            Text(job.name), _coloured(job.state), _count(store, job), _age(job.created_at), _took(job), job.reason or ""
        )
    pid = store.manager_pid()
    manager = f"manager {pid}" if pid else "no manager is running"
    more = f", {len(jobs) - limit} more not shown" if len(jobs) > limit else ""
    return Group(table, Text(f"{len(jobs)} jobs in {store.base_path}{more}; {manager}", style="dim"))


def _details(store: JobStore, job: Job) -> RenderableType:
    tasks = store.get_tasks(job.name)
    done = sum(task.status.is_terminal for task in tasks)
    heading = Table.grid(padding=(0, 1))
    heading.add_row(_coloured(job.state), ProgressBar(len(tasks), done, width=20), Text(progress(tasks)))
    table = Table(box=None, pad_edge=False)
    for name in ("TASK", "STATUS", "TRY", "TOOK", "EXIT", "ERROR"):
        table.add_column(name, overflow="fold" if name in ("TASK", "ERROR") else "ellipsis")
    for task in tasks:
        table.add_row(
            Text(task.id),
            _coloured(task.status),
            str(task.attempt or ""),
            _seconds(_running_seconds(task)),
            "" if task.exit_code is None else str(task.exit_code),
            Text(task.error or ""),
        )
    parts: list[RenderableType] = [Text(job.name, style="bold"), heading, table]
    if job.error:
        parts.append(Text(job.error, style="red"))
    return Group(*parts)


def _coloured(word: JobState | TaskStatus) -> Text:
    return Text(word.value, style=_COLOURS.get(word.value, ""))


def _count(store: JobStore, job: Job) -> str:
    try:
        tasks = store.load_tasks(job.name)[0]
    except AirExecutorError:
        return "?"
    return f"{sum(task.status is TaskStatus.COMPLETED for task in tasks)}/{len(tasks)}"


def _age(since: datetime | None) -> str:
    return "" if since is None else _seconds((utc_now() - since).total_seconds())


def _took(job: Job) -> str:
    if job.started_at is None:
        return ""
    end = job.updated_at if job.state.is_terminal and job.updated_at else utc_now()
    return _seconds((end - job.started_at).total_seconds())


def _running_seconds(task: Task) -> float | None:
    if task.status is TaskStatus.RUNNING and task.started_at is not None:
        return (utc_now() - task.started_at).total_seconds()
    return task.seconds


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
