"""The command that prints logs."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.manager.cli.log_printer import LogPrinter, choose_part, print_by_time
from airflow_provider_air_executor.manager.cli.options import (
    Duration,
    job_argument,
    task_argument,
)
from airflow_provider_air_executor.manager.cli.place import Place, open_jobs, takes_place, waiting
from airflow_provider_air_executor.manager.cli.remarks import problem_reporter
from airflow_provider_air_executor.manager.cli.waiting import FOLLOW_SECONDS

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.models import Task


class _Moment(click.ParamType[datetime]):
    """A time, or how long ago it was."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it."""
        try:
            return datetime.fromisoformat(str(value)).astimezone()
        except ValueError:
            ago: timedelta = Duration().convert(value, param, ctx)
            return datetime.now().astimezone() - ago


@click.command()
@takes_place
@job_argument
@task_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.option(
    "--tail", "-n", metavar="LINES", type=click.IntRange(min=0), help="Of each task so many lines at the end."
)
@click.option("--since", metavar="TIME", type=_Moment(), help="Lines that came since then: 10m, 2h, 2026-11-29T10:00.")
@click.option("--attempt", metavar="N", type=click.IntRange(min=1), help="Of each task what this attempt has printed.")
@click.option("--timestamps", "-t", is_flag=True, help="When each line came, to a second or two, in UTC.")
@click.option("--by-time", is_flag=True, help="Lines of all tasks in the order of their times.")
def logs(
    place: Place,
    job_name: str,
    task_id: str | None,
    follow: bool,
    timestamps: bool,
    by_time: bool,
    **asked: Any,
) -> None:
    """Print what the tasks of a job have printed.

    Each line has the task's id before it. Of a line that is written over, as progress bars do, its last state; with
    --follow, now and then. With a task: its log as it is, byte for byte.
    """
    jobs = open_jobs(place)
    ids = [task.id for task in jobs.get_tasks(job_name)]
    if task_id is not None and task_id not in ids:
        raise exceptions.InvalidJobError(f"job {job_name!r} has no task {task_id!r}; its tasks: {', '.join(ids)}")
    if follow:
        jobs = waiting(jobs)
    printers = {
        each: printer
        for each in ids
        if task_id in (None, each)
        and (printer := _printer(jobs, job_name, each, prefix=task_id is None, timestamps=timestamps, **asked))
    }
    if not printers and asked["attempt"] is not None:
        raise exceptions.InvalidJobError(f"nothing is known of attempt {asked['attempt']}")
    if follow:
        _follow(jobs, job_name, task_id, printers, timestamps=timestamps, by_time=by_time, known=set(ids))
    _print_new(printers, final=True, by_time=by_time)


def _follow(
    jobs: Jobs,
    job_name: str,
    task_id: str | None,
    printers: dict[str, LogPrinter],
    *,
    timestamps: bool,
    by_time: bool,
    known: set[str],
) -> None:
    """Print what comes, until the job has ended, or the task that is asked for."""
    report_problem = problem_reporter(jobs, job_name)
    is_over = False
    while not is_over:
        job, tasks = jobs.get_job(job_name), jobs.get_tasks(job_name)
        for task in tasks if task_id is None else ():
            if task.id not in known:
                known.add(task.id)
                printers[task.id] = LogPrinter(jobs, job_name, task.id, prefix=True, timestamps=timestamps)
        begun = {task.id for task in tasks if task.attempt or task.status.is_terminal}
        _print_new({each: printer for each, printer in printers.items() if each in begun}, final=False, by_time=by_time)
        report_problem()
        is_over = job.state.is_terminal or _has_ended(tasks, task_id)
        while not is_over and not jobs.wait(job_name, FOLLOW_SECONDS):
            report_problem()


def _printer(
    jobs: Jobs,
    job_name: str,
    task_id: str,
    *,
    prefix: bool,
    timestamps: bool,
    attempt: int | None,
    since: datetime | None,
    tail: int | None,
) -> LogPrinter | None:
    """What prints the log of a task; None if the attempt that is asked for is none of this task."""
    log = jobs.log(job_name, task_id)
    times = None if attempt is None and since is None else log.times()
    part = choose_part(log, times, attempt=attempt, since=since, tail=tail)
    if part is None:
        return None
    return LogPrinter(jobs, job_name, task_id, prefix=prefix, timestamps=timestamps, part=part)


def _print_new(printers: dict[str, LogPrinter], *, final: bool, by_time: bool) -> None:
    if by_time:
        print_by_time(printers.values(), final=final)
    else:
        for printer in printers.values():
            printer.print_new(final=final)
    sys.stdout.buffer.flush()


def _has_ended(tasks: Iterable[Task], task_id: str | None) -> bool:
    return any(task.id == task_id and task.status.is_terminal for task in tasks)
