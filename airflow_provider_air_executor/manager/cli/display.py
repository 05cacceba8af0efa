"""The output of ``air-executor status`` for people: tables, live where asked for."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from airflow_provider_air_executor.exceptions import AirExecutorError, JobsAwayError
from airflow_provider_air_executor.jobs.index import OutcomeCounts
from airflow_provider_air_executor.jobs.interface import JobIndexView, Jobs
from airflow_provider_air_executor.jobs.manager_info import ManagerInfo, Share
from airflow_provider_air_executor.jobs.models import Job, JobState, Task, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.summary import progress
from airflow_provider_air_executor.manager.cli.place import store_of, waiting
from airflow_provider_air_executor.manager.cli.remarks import why_blocked, why_each_blocked, why_not_replaced
from airflow_provider_air_executor.manager.cli.selection import Selection

_REFRESH_SECONDS = 0.25
_BAR_WIDTH = 10
_OTHER_LINES = 3  # of the screen: heading, summary, and that of the cursor
_GAP = 2  # between two columns
_NAME_WIDTH = 16  # to which names are cut before a column goes
_REASON_WIDTH = 10
_LEAST_WIDTHS = {"TASK": _NAME_WIDTH, "ERROR": 20, "COMMAND": 16, "NEEDS": 8}  # of columns that may be cut
_FIRST_TO_GO = ("NEEDS", "RUNNER", "MEMORY", "CPU", "STARTED", "TRY", "COMMAND", "TOOK", "EXIT", "ERROR")
_PIPE_WIDTH = 10_000
_COLOURS = {"completed": "green", "failed": "red", "working": "yellow", "running": "yellow"}


def show(jobs: Jobs, job_name: str | None, selection: Selection, limit: int) -> None:
    """Print the jobs that are meant, or one with its tasks."""
    console = make_console()
    if job_name is None:
        index = jobs.index()
        console.print(_overview(jobs, index, selection.among(jobs, index.jobs()), limit, console.width))
    else:
        console.print(_details(jobs, jobs.get_job(job_name), console))


def watch(jobs: Jobs, job_name: str | None, selection: Selection, limit: int) -> Job | None:
    """Show the jobs that are meant until interrupted, or one job until it has ended.

    :return: that job, once it has ended.
    """
    from rich.live import Live  # not needed, and not loaded, for a look

    console, jobs = make_console(), waiting(jobs)
    if job_name is None:
        index = jobs.index()  # it looks at what has changed only

        def shown() -> RenderableType:
            fitting = console.height - _OTHER_LINES if console.is_terminal else limit
            meant = selection.among(jobs, index.jobs())
            return _overview(jobs, index, meant, max(1, min(limit, fitting)), console.width)

        with Live(shown(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(_REFRESH_SECONDS)
                live.update(shown(), refresh=True)
    job = jobs.get_job(job_name)
    if not console.is_terminal:
        return _print_progress(jobs, job, console)
    with Live(_details(jobs, job, console), console=console, auto_refresh=False) as live:
        while not job.state.is_terminal:
            jobs.wait(job_name, _REFRESH_SECONDS)  # and times go on even if nothing has changed
            job = jobs.get_job(job_name)
            live.update(_details(jobs, job, console), refresh=True)
    return job


def make_console() -> Console:
    """Where it is shown; into a pipe or a file nothing is folded, so that lines can be searched.

    ``COLUMNS`` alone is a user's wish. Together with ``LINES`` it says nothing of a pipe: GNU readline sets both in the
    environment of all children of a Python that has loaded it, a shell, a notebook or pytest for instance.
    """
    console = Console(highlight=False)
    if not console.is_terminal and ("COLUMNS" not in os.environ or "LINES" in os.environ):
        console.width = _PIPE_WIDTH
    return console


def _print_progress(jobs: Jobs, job: Job, console: Console) -> Job:
    """One line whenever something has changed, for a pipe or a file."""
    last = ""
    while True:
        job = jobs.get_job(job.name)
        line = progress(jobs.get_tasks(job.name)) + jobs.trouble(job.name)
        if line != last:
            console.print(Text(f"{job.name}: {line}"))
            last = line
        if job.state.is_terminal:
            console.print(_details(jobs, job, console))
            return job
        jobs.wait(job.name, _REFRESH_SECONDS)


def _overview(jobs: Jobs, index: JobIndexView, meant: Sequence[Job], limit: int, width: int) -> RenderableType:
    """The newest jobs, a line each. Where there is little room the bar goes first, then the reason, then the times."""
    held_up = why_each_blocked(jobs, meant[:limit], index.jobs())
    rows: list[dict[str, RenderableType]] = [
        {
            "JOB": job.name,
            "STATE": _coloured(job.state),
            **_how_far(job, index.outcomes(job.name)),
            "AGE": _age(job.created_at),
            "TOOK": _took(job),
            "REASON": job.reason or held_up.get(job.name, ""),
        }
        for job in meant[:limit]
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
    for job, row in zip(meant, rows, strict=False):
        row["JOB"] = Text(_cut(job.name, name_width))
        table.add_row(*(row[heading] for heading in shown))
    more = f", {len(meant) - limit} more not shown" if len(meant) > limit else ""
    return Group(
        table,
        Text(
            f"{len(meant)} job{'' if len(meant) == 1 else 's'} in {jobs.where}{more}; {_manager(jobs)}",
            style="dim",
        ),
    )


def show_manager(jobs: Jobs, info: ManagerInfo) -> None:
    """Print what a manager publishes about itself."""
    slots = [f"{name}: {slots.used} of {slots.limit} used" for name, slots in info.slots.items()]
    waiting, oldest = info.jobs.get("waiting", 0), info.oldest_waiting
    longest = f", the longest since {_age(oldest.since)}: {oldest.job}" if oldest is not None else ""
    rows = [
        ("manager", f"{info.pid}" + (f" on {info.host}" if info.host else "")),
        ("version", info.version),
        ("state", "paused: it starts no tasks" if info.paused else "running"),
        ("base path" if store_of(jobs) is not None else "at", jobs.where),
        ("started", f"{_clock(info.started_at)}, {_age(info.started_at)} ago" if info.started_at else ""),
        ("slots", "; ".join(slots)),
        ("free", "; ".join(_free(name, share) for name, share in info.capacity.items())),
        ("queue", f"{info.queued} task{'' if info.queued == 1 else 's'} could start and wait for room"),
        ("jobs", f"{info.jobs.get('working', 0)} working, {waiting} waiting{longest}"),
        ("since start", _counted(info)),
        ("problem", why_not_replaced(jobs)),
    ]
    for heading, text in rows:
        if text:
            make_console().print(Text(f"{heading:12}{text}"), soft_wrap=True)


def _free(name: str, share: Share) -> str:
    """How much of a resource of the machine no task holds."""
    free = max(0, share.limit - share.used)
    if name == "memory":
        return f"{_bytes(free) or '0'} of {_bytes(share.limit)} memory"
    ids = f" ({', '.join(share.free_ids)})" if share.free_ids else ""
    return f"{free:g} of {share.limit:g} {name}{ids}"


def _counted(info: ManagerInfo) -> str:
    words = ("jobs_completed", "jobs_failed", "tasks_completed", "tasks_failed", "tasks_retried")
    return ", ".join(f"{info.counters[word]:g} {word.replace('_', ' ')}" for word in words if word in info.counters)


def _manager(jobs: Jobs) -> str:
    try:
        info = jobs.manager()
    except JobsAwayError:
        raise
    except (AirExecutorError, OSError) as error:
        return f"it is not known whether a manager runs: {error}"
    if info is None:
        return "no manager is running"
    why_old = why_not_replaced(jobs)
    parts = [f"manager {info.pid}{' is ' if why_old else ''}{why_old}"]
    parts += [f"{name}: {slots.used} of {slots.limit} slots used" for name, slots in info.slots.items()]
    parts += [f"{info.queued} task{'' if info.queued == 1 else 's'} queued"] if info.queued else []
    return ", ".join([*parts, *(["paused"] if info.paused else [])])


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


def _details(jobs: Jobs, job: Job, console: Console) -> RenderableType:
    """A job, and a line for each of its tasks. Into a pipe nothing is cut."""
    tasks = jobs.get_tasks(job.name)
    done = sum(task.status is TaskStatus.COMPLETED for task in tasks)
    heading = Table.grid(padding=(0, 1))
    heading.add_row(_coloured(job.state), _bar(done, len(tasks), 2 * _BAR_WIDTH, job.state), Text(progress(tasks)))
    parts: list[RenderableType] = [Text(job.name, style="bold"), heading]
    if job.submitted_by is not None:
        parts.append(Text(f"submitted by {job.submitted_by}", style="dim"))
    if job.labels:
        parts.append(Text("labels " + " ".join(f"{key}={value}" for key, value in job.labels.items()), style="dim"))
    table, shows_errors = _task_table(jobs, job, tasks, console.width)
    parts.append(table)
    if job.error and not (shows_errors and _is_told_by(tasks, job.error)):
        parts.append(Text(job.error, style="red"))
    why = why_blocked(jobs, job)
    if why:
        parts.append(Text(why, style="yellow"))
    return Group(*parts)


def _is_told_by(tasks: Iterable[Task], error: str) -> bool:
    """Whether the error of a job is that of one of its tasks."""
    return any(error.startswith(f"task {task.id}: {task.error}") for task in tasks if task.error)


def _task_table(jobs: Jobs, job: Job, tasks: Sequence[Task], width: int) -> tuple[Table, bool]:
    """The tasks, a line each. Where there is little room, what is known of few goes first; long columns are cut.

    :return: also whether all errors are there, and none is cut.
    """
    mask = jobs.mask(job.name)
    rows: list[dict[str, RenderableType]] = [
        {
            "TASK": task.id,
            "STATUS": _coloured(task.status),
            "TRY": str(task.attempt or ""),
            "STARTED": _clock(task.started_at),
            "TOOK": _seconds(_running_seconds(task)),
            "EXIT": "" if task.exit_code is None else str(task.exit_code),
            "CPU": _seconds(_usage(task, "cpu_seconds")),
            "MEMORY": _bytes(_usage(task, "max_memory")),
            "NEEDS": _needs(task),
            "RUNNER": task.runner or job.runner or "",
            "ERROR": _one_line(mask.text(task.error or task.where or "")),
            "COMMAND": _one_line(mask.text(_command(task))),
        }
        for task in tasks
    ]
    unused = [name for name in ("CPU", "MEMORY", "NEEDS", "RUNNER", "ERROR") if not any(row[name] for row in rows)]
    rows = [{name: cell for name, cell in row.items() if name not in unused} for row in rows]
    widths = _widths(list(rows[0]) if rows else ["TASK", "STATUS"], rows)
    least = {name: min(width, _LEAST_WIDTHS.get(name, width)) for name, width in widths.items()}
    shown, room = _fitting(least, width, first_to_go=[name for name in _FIRST_TO_GO if name in least])
    table = Table(box=None, pad_edge=False)
    for name in shown:
        more = min(room, widths[name] - least[name]) if name in _LEAST_WIDTHS else 0
        room -= more
        least[name] += more
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=max(3, least[name]))
    for row in rows:
        row["TASK"] = Text(_cut(str(row["TASK"]), max(3, least["TASK"])))
        table.add_row(*(_as_text(row[name]) for name in shown))
    return table, "ERROR" in shown and least["ERROR"] >= widths["ERROR"]


def _as_text(cell: RenderableType) -> RenderableType:
    """A text as it is, and no markup."""
    return Text(cell) if isinstance(cell, str) else cell


def _command(task: Task) -> str:
    """What a task runs, as one would type it."""
    if task.command == "bash" and len(task.args) == 2 and task.args[0] == "-c":
        return task.args[1]
    return shlex.join([task.command, *task.args])


def _one_line(text: str) -> str:
    return "⏎".join(line.strip() for line in text.strip().splitlines())


def _needs(task: Task) -> str:
    """The resources that a task asks for."""
    if task.resources is None:
        return ""
    cpus, memory, gpus = task.resources.cpus, task.resources.memory, task.resources.gpus
    parts = [f"{cpus:g} cpu" if cpus else "", _bytes(memory), f"{gpus} gpu" if gpus else ""]
    return " ".join(filter(None, parts))


def _usage(task: Task, field: str) -> float | None:
    """What the latest attempt of a task has used, where its engine knows."""
    usage = getattr(task, "usage", None)
    value = usage.get(field) if isinstance(usage, Mapping) else getattr(usage, field, None)
    return value if isinstance(value, int | float) else None


def _coloured(word: JobState | TaskStatus) -> Text:
    return Text(word.value, style=_COLOURS.get(word.value, ""))


def _cut(name: str, width: int) -> str:
    """A name without its middle, if it is longer: names differ most at their beginning and end."""
    if len(name) <= width:
        return name
    end = max(1, width // 3)
    return f"{name[: width - end - 1]}…{name[-end:]}"


def _how_far(job: Job, counts: OutcomeCounts) -> dict[str, RenderableType]:
    """A bar, and how many tasks of how many are done."""
    if not counts:
        return {"": "", "TASKS": "?"}
    done = sum(number for outcome, number in counts.items() if outcome.status is TaskStatus.COMPLETED)
    total = sum(counts.values())
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


def _clock(time: datetime | None) -> str:
    """A time on the clock of this machine, with the day unless that is today."""
    if time is None:
        return ""
    try:
        local = time.astimezone()
    except (OverflowError, ValueError, OSError):  # files may hold any time
        return time.isoformat()
    return f"{local:%H:%M:%S}" if local.date() == utc_now().astimezone().date() else f"{local:%Y-%m-%d %H:%M:%S}"


def _bytes(count: float | None) -> str:
    """A number of bytes with a unit."""
    if count is None:
        return ""
    for size, unit in ((2**40, "Ti"), (2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:g}"


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
