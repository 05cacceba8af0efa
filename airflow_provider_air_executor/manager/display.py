"""What ``air-executor status`` shows to people: tables, live where asked for."""

from __future__ import annotations

import os
import time
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from airflow_provider_air_executor.jobs import summary
from airflow_provider_air_executor.jobs.index import JobIndex, TaskCounts
from airflow_provider_air_executor.jobs.models import Job, JobState, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.summary import progress

_REFRESH_SECONDS = 0.25
_BAR_WIDTH = 10
_OTHER_LINES = 3  # of the screen: heading, summary, and that of the cursor
_OTHER_COLUMNS = 58  # of the screen: those that are not the name's
_NAME_WIDTH = 16
_PIPE_WIDTH = 10_000
_COLOURS = {"completed": "green", "failed": "red", "working": "yellow", "running": "yellow"}


def show(store: JobStore, job_name: str | None, limit: int) -> None:
    """Print all jobs, or one with its tasks."""
    console = _console()
    found = _overview(store, JobIndex(store), limit) if job_name is None else _details(store, store.get_job(job_name))
    console.print(found)


def watch(store: JobStore, job_name: str | None, limit: int) -> Job | None:
    """Show all jobs until interrupted, or one job until it has ended.

    :return: that job, once it has ended.
    """
    from rich.live import Live  # not needed, and not loaded, for a look

    console = _console()
    if job_name is None:
        index = JobIndex(store)  # it looks at what has changed only

        def shown() -> RenderableType:
            fitting = console.height - _OTHER_LINES if console.is_terminal else limit
            width = max(_NAME_WIDTH, console.width - _OTHER_COLUMNS) if console.is_terminal else None
            return _overview(store, index, max(1, min(limit, fitting)), name_width=width)

        with Live(shown(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH_SECONDS)
                live.update(shown(), refresh=True)
    job = store.get_job(job_name)
    if not console.is_terminal:
        return _print_progress(store, job, console)
    with Live(_details(store, job), console=console, auto_refresh=False) as live:
        while not job.state.is_terminal:
            time.sleep(_REFRESH_SECONDS)
            job = store.get_job(job_name)
            live.update(_details(store, job), refresh=True)
    return job


def _console() -> Console:
    """Where it is shown; into a pipe or a file nothing is folded, so that lines can be searched."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


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


def _overview(store: JobStore, index: JobIndex, limit: int, *, name_width: int | None = None) -> RenderableType:
    """The newest jobs.

    :param name_width: to how many characters names are cut, so that each job has one line; default: they are folded.
    """
    jobs = index.jobs()
    problems = store.problems()
    table = Table(box=None, pad_edge=False)
    for heading in ("JOB", "STATE", "", "TASKS", "AGE", "TOOK", "REASON"):
        table.add_column(heading, overflow="fold" if heading == "JOB" else "ellipsis", no_wrap=heading != "JOB")
    for job in jobs[:limit]:
        table.add_row(
            Text(_cut(job.name, name_width)),
            _coloured(job.state),
            *_how_far(job, index.counts(job.name)),
            _age(job.created_at),
            _took(job),
            job.reason or problems.get(job.name, ""),
        )
    pid = store.manager_pid()
    manager = f"manager {pid}" if pid else "no manager is running"
    more = f", {len(jobs) - limit} more not shown" if len(jobs) > limit else ""
    return Group(
        table,
        Text(f"{len(jobs)} job{'' if len(jobs) == 1 else 's'} in {store.base_path}{more}; {manager}", style="dim"),
    )


def _details(store: JobStore, job: Job) -> RenderableType:
    tasks = store.get_tasks(job.name)
    done = sum(task.status is TaskStatus.COMPLETED for task in tasks)
    heading = Table.grid(padding=(0, 1))
    heading.add_row(_coloured(job.state), _bar(done, len(tasks), 2 * _BAR_WIDTH, job.state), Text(progress(tasks)))
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
            Text(task.error or task.where or ""),
        )
    parts: list[RenderableType] = [Text(job.name, style="bold"), heading, table]
    if job.error:
        parts.append(Text(job.error, style="red"))
    held_up = None if job.state.is_terminal else summary.held_up(store, job, store.list_jobs())
    if held_up:
        parts.append(Text(held_up, style="yellow"))
    return Group(*parts)


def _coloured(word: JobState | TaskStatus) -> Text:
    return Text(word.value, style=_COLOURS.get(word.value, ""))


def _cut(name: str, width: int | None) -> str:
    """A name without its middle, if it is longer: names differ most at their beginning and end."""
    if width is None or len(name) <= width:
        return name
    end = width // 3
    return f"{name[: width - end - 1]}…{name[-end:]}"


def _how_far(job: Job, counts: TaskCounts) -> tuple[RenderableType, str]:
    """A bar, and how many tasks of how many are done."""
    if not counts:
        return "", "?"
    done, total = counts.get(TaskStatus.COMPLETED, 0), sum(counts.values())
    return _bar(done, total, _BAR_WIDTH, job.state), f"{done}/{total}"


def _bar(done: int, total: int, width: int, state: JobState) -> ProgressBar:
    colour = _COLOURS.get(state.value, "default")
    return ProgressBar(total, done, width=width, complete_style=colour, finished_style=colour)


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
