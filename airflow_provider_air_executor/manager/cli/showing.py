"""The commands that show jobs, their results, and the manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.manager.cli.options import (
    job_argument,
    json_option,
    print_json,
    task_argument,
)
from airflow_provider_air_executor.manager.cli.place import Place, open_jobs, store_of, takes_place
from airflow_provider_air_executor.manager.cli.remarks import why_not_replaced
from airflow_provider_air_executor.manager.cli.selection import Selection, selects_jobs
from airflow_provider_air_executor.manager.cli.waiting import exit_with, job_as_json, wait_for

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.models import Task

_SHOWN = 50  # jobs of a table


@click.command()
@takes_place
@selects_jobs("Show", all_if_none=True)
@click.option("--name", "names", metavar="PATTERN", multiple=True, help="Show jobs with such a name: 'nightly-*'.")
@click.option("--watch", "-w", is_flag=True, help="Go on until it has ended (one job), or until Ctrl-C.")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Jobs shown, newest first (50; of --json all if it is not given)."
)
@json_option
def status(
    place: Place,
    selection: Selection,
    names: tuple[str, ...],
    watch: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show all jobs, some of them, or one job with its tasks.

    With --watch and a job, the exit code is 1 if the job fails.
    """
    jobs = open_jobs(place)
    job_name = None if names else selection.only
    selection = selection._replace(names=selection.names + names)
    if as_json and job_name is not None:
        job = wait_for(jobs, job_name) if watch else jobs.get_job(job_name)
        print_json(job_as_json(jobs, job, with_tasks=True))
        if watch:
            exit_with(job)
        return
    if as_json:
        _print_jobs(jobs, selection, limit)
        return
    from airflow_provider_air_executor.manager.cli import display

    if watch:
        job_shown = display.watch(jobs, job_name, selection, limit or _SHOWN)
        if job_shown is not None:
            exit_with(job_shown)
    else:
        display.show(jobs, job_name, selection, limit or _SHOWN)


def _print_jobs(jobs: Jobs, selection: Selection, limit: int | None) -> None:
    found: dict[str, Any] = {"manager_pid": None}
    try:
        info = jobs.manager()
        found["manager_pid"] = info and info.pid
        if info and (why_old := why_not_replaced(jobs)):
            found["problem"] = f"manager {found['manager_pid']} is {why_old}"
    except exceptions.JobsAwayError:
        raise
    except (exceptions.AirExecutorError, OSError) as error:
        found["problem"] = f"it is not known whether a manager runs: {error}"
    meant = selection.among(jobs, jobs.index().jobs())
    print_json({**found, "jobs": [job_as_json(jobs, job) for job in meant[:limit]]})


@click.command()
@takes_place
@job_argument
@task_argument
def results(place: Place, job_name: str, task_id: str | None) -> None:
    """Print the results of a job's tasks as JSON.

    They are by the ids of the tasks; with a task, it is its result alone. A result is what a task that completed has
    written to $AIR_EXECUTOR_OUTPUT.
    """
    jobs = open_jobs(place)
    tasks = [task for task in jobs.get_tasks(job_name) if task_id in (None, task.id)]
    if task_id is not None and not tasks:
        raise exceptions.InvalidJobError(f"job {job_name!r} has no task {task_id!r}")
    found = _results(jobs, job_name, tasks)
    if task_id is None:
        print_json(found)
    elif task_id in found:
        print_json(found[task_id])
    else:
        raise exceptions.AirExecutorError(f"task {task_id!r} of job {job_name!r} {_why_no_result(tasks[0])}")


def _results(jobs: Jobs, job_name: str, tasks: list[Task]) -> dict[str, Any]:
    """The results of some tasks; of files, those of others are not read."""
    store = store_of(jobs)
    if store is None:
        return {task.id: found[task.id] for found in [jobs.results(job_name)] for task in tasks if task.id in found}
    from airflow_provider_air_executor.jobs.outputs import read_outputs

    return read_outputs(store.paths(job_name), tasks)


def _why_no_result(task: Task) -> str:
    return "has no result" if task.status == "completed" else f"has no result: it is {task.status}"
