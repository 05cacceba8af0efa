"""The output of ``air-executor status`` for people: tables, live where asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from airflow_provider_air_executor.exceptions import AirExecutorError
from airflow_provider_air_executor.jobs import manager_status, summary
from airflow_provider_air_executor.jobs.index import JobIndex, TaskCounts
from airflow_provider_air_executor.jobs.models import Job, JobState, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.summary import progress

_REFRESH_SECONDS = 0.25
_BAR_WIDTH = 10
_OTHER_LINES = 3  # of the screen: heading, summary, and that of the cursor
_GAP = 2  # between two columns
_NAME_WIDTH = 16  # to which names are cut before a column goes
_REASON_WIDTH = 10
_ERROR_WIDTH = 20
_PIPE_WIDTH = 10_000
_COLOURS = {"completed": "green", "failed": "red", "working": "yellow", "running": "yellow"}


def show(store: JobStore, job_name: str | None, limit: int) -> None:
    """Print all jobs, or one with its tasks."""
    console = _console()
    if job_name is None:
        console.print(_overview(store, JobIndex(store), limit, console.width))
    else:
        console.print(_details(store, store.get_job(job_name), console.width))


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
            return _overview(store, index, max(1, min(limit, fitting)), console.width)

        with Live(shown(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH_SECONDS)
                live.update(shown(), refresh=True)
    job = store.get_job(job_name)
    if not console.is_terminal:
        return _print_progress(store, job, console)
    with Live(_details(store, job, console.width), console=console, auto_refresh=False) as live:
        while not job.state.is_terminal:
            time.sleep(_REFRESH_SECONDS)
            job = store.get_job(job_name)
            live.update(_details(store, job, console.width), refresh=True)
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
        line = progress(store.get_tasks(job.name)) + summary.trouble(store, job.name, embedded=False)
        if line != last:
            console.print(Text(f"{job.name}: {line}"))
            last = line
        if job.state.is_terminal:
            console.print(_details(store, job, console.width))
            return job
        time.sleep(_REFRESH_SECONDS)


def _overview(store: JobStore, index: JobIndex, limit: int, width: int) -> RenderableType:
    """The newest jobs, a line each. Where there is little room the bar goes first, then the reason, then the times."""
    jobs = index.jobs()
    problems = manager_status.problems(store)
    rows: list[dict[str, RenderableType]] = [
        {
            "JOB": job.name,
            "STATE": _coloured(job.state),
            **_how_far(job, index.counts(job.name)),
            "AGE": _age(job.created_at),
            "TOOK": _took(job),
            "REASON": job.reason or problems.get(job.name, ""),
        }
        for job in jobs[:limit]
    ]
    widths = _widths(("JOB", "STATE", "", "TASKS", "AGE", "TOOK", "REASON"), rows)
    least = {**widths, "JOB": min(widths["JOB"], _NAME_WIDTH), "REASON": min(widths["REASON"], _REASON_WIDTH)}
    shown, room = _fitting(least, width, first_to_go=("", "REASON", "TOOK", "AGE", "TASKS"))
    name_width = max(3, min(widths["JOB"], least["JOB"] + room))
    reason_width = max(_REASON_WIDTH, least["REASON"] + room - (name_width - least["JOB"]))
    table = Table(box=None, pad_edge=False)
    for heading in shown:
        is_reason = heading == "REASON"
        table.add_column(heading, overflow="ellipsis", no_wrap=True, max_width=reason_width if is_reason else None)
    for job, row in zip(jobs, rows, strict=False):
        row["JOB"] = Text(_cut(job.name, name_width))
        table.add_row(*(row[heading] for heading in shown))
    more = f", {len(jobs) - limit} more not shown" if len(jobs) > limit else ""
    return Group(
        table,
        Text(
            f"{len(jobs)} job{'' if len(jobs) == 1 else 's'} in {store.base_path}{more}; {_manager(store)}",
            style="dim",
        ),
    )


def _manager(store: JobStore) -> str:
    try:
        pid = manager_status.pid(store)
    except (AirExecutorError, OSError) as error:
        return f"it is not known whether a manager runs: {error}"
    why_old = manager_status.why_not_replaced(store)
    return f"manager {pid}{' is ' if why_old else ''}{why_old}" if pid else "no manager is running"


def _widths(headings: Sequence[str], rows: Iterable[Mapping[str, RenderableType]]) -> dict[str, int]:
    """How wide each column is that nothing is left out of."""
    widths = {heading: len(heading) for heading in headings}
    for row in rows:
        for heading, cell in row.items():
            widths[heading] = max(widths[heading], _BAR_WIDTH if isinstance(cell, ProgressBar) else cell_len(str(cell)))
    return widths


def _fitting(widths: Mapping[str, int], width: int, *, first_to_go: Sequence[str]) -> tuple[list[str], int]:
    """The columns that there is room for, and the room that is left."""
    shown = list(widths)

    def room() -> int:
        return width - sum(widths[heading] for heading in shown) - _GAP * (len(shown) - 1)

    for heading in first_to_go:
        if room() >= 0:
            break
        shown.remove(heading)
    return shown, room()


def _details(store: JobStore, job: Job, width: int) -> RenderableType:
    tasks = store.get_tasks(job.name)
    done = sum(task.status is TaskStatus.COMPLETED for task in tasks)
    heading = Table.grid(padding=(0, 1))
    heading.add_row(_coloured(job.state), _bar(done, len(tasks), 2 * _BAR_WIDTH, job.state), Text(progress(tasks)))
    rows: list[dict[str, RenderableType]] = [
        {
            "TASK": Text(task.id),
            "STATUS": _coloured(task.status),
            "TRY": str(task.attempt or ""),
            "TOOK": _seconds(_running_seconds(task)),
            "EXIT": "" if task.exit_code is None else str(task.exit_code),
            "ERROR": Text(task.error or task.where or ""),
        }
        for task in tasks
    ]
    widths = _widths(("TASK", "STATUS", "TRY", "TOOK", "EXIT", "ERROR"), rows)
    least = {**widths, "TASK": min(widths["TASK"], _NAME_WIDTH), "ERROR": min(widths["ERROR"], _ERROR_WIDTH)}
    shown, _ = _fitting(least, width, first_to_go=("TRY", "TOOK", "EXIT"))
    table = Table(box=None, pad_edge=False)
    for name in shown:
        table.add_column(name, overflow="fold", no_wrap=name not in ("TASK", "ERROR"))
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    parts: list[RenderableType] = [Text(job.name, style="bold"), heading, table]
    if job.error:
        parts.append(Text(job.error, style="red"))
    why = None if job.state.is_terminal else summary.why_blocked(store, job, store.list_jobs())
    if why:
        parts.append(Text(why, style="yellow"))
    return Group(*parts)


def _coloured(word: JobState | TaskStatus) -> Text:
    return Text(word.value, style=_COLOURS.get(word.value, ""))


def _cut(name: str, width: int) -> str:
    """A name without its middle, if it is longer: names differ most at their beginning and end."""
    if len(name) <= width:
        return name
    end = max(1, width // 3)
    return f"{name[: width - end - 1]}…{name[-end:]}"


def _how_far(job: Job, counts: TaskCounts) -> dict[str, RenderableType]:
    """A bar, and how many tasks of how many are done."""
    if not counts:
        return {"": "", "TASKS": "?"}
    done, total = counts.get(TaskStatus.COMPLETED, 0), sum(counts.values())
    return {"": _bar(done, total, _BAR_WIDTH, job.state), "TASKS": f"{done}/{total}"}


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
