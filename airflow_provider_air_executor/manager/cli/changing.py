"""The commands that change jobs, or remove them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.manager.cli import errors
from airflow_provider_air_executor.manager.cli.options import (
    Duration,
    confirm_many,
    json_option,
    print_json,
    task_option,
    yes_option,
)
from airflow_provider_air_executor.manager.cli.place import Place, open_jobs, store_of, takes_place
from airflow_provider_air_executor.manager.cli.remarks import say_if_none_runs
from airflow_provider_air_executor.manager.cli.selection import Selection, selects_jobs
from airflow_provider_air_executor.manager.cli.waiting import exit_with, say_how, wait_for_all

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.models import Job

_MANY_NAMED, _MANY_OLD = 10, 100  # jobs, of which more are not removed without a question


def _each(jobs: Jobs, meant: Iterable[Job], act: Callable[[Job], None]) -> int:
    """Do something with each job, also if it cannot be done with one before.

    :return: the exit code of the first error, 0 if there is none.
    """
    code = 0
    for job in meant:
        try:
            act(job)
        except exceptions.JobsAwayError:
            raise
        except exceptions.AirExecutorError as error:
            said = errors.say(error, store_of(jobs))
            code = code or said
    return code


def _meant(jobs: Jobs, selection: Selection, is_apt: Callable[[Job], bool]) -> list[Job]:
    """The jobs of a selection. Those that are not named one by one are passed over if it is of no use for them."""
    meant = selection.jobs(jobs)
    if not selection.are_named:
        meant = [job for job in meant if is_apt(job)]
    if not meant:
        click.echo("no job is meant by this", err=True)
    return meant


@click.command()
@takes_place
@selects_jobs("Cancel")
@task_option("Cancel this task, and what depends on it; the job goes on. May be repeated.")
@click.option("--wait", is_flag=True, help="Wait until the jobs have ended.")
def cancel(place: Place, selection: Selection, task_ids: tuple[str, ...], wait: bool) -> None:
    """Cancel jobs: their running tasks are killed, and no other task starts."""
    jobs = open_jobs(place)
    if task_ids and selection.only is None:
        raise click.UsageError("--task is for one job")
    of_tasks: dict[str, Any] = {"tasks": task_ids} if task_ids else {}
    asked = []

    def act(job: Job) -> None:
        what = f"task {', '.join(task_ids)}: " if task_ids else ""
        if jobs.cancel(job.name, **of_tasks):
            asked.append(job.name)
            click.echo(f"{job.name}: {what}cancellation requested")
        elif task_ids and not jobs.get_job(job.name).state.is_terminal:
            click.echo(f"{job.name}: {what}ended already")
        else:
            click.echo(f"{job.name}: has ended already ({jobs.get_job(job.name).state})")

    code = _each(jobs, _meant(jobs, selection, lambda job: not job.state.is_terminal), act)
    if asked:
        say_if_none_runs(jobs)
    if wait:
        wait_for_all(jobs, asked, on_end=say_how)
    click.get_current_context().exit(code)


@click.command()
@takes_place
@selects_jobs("Retry")
@click.option("--all", "run_all", is_flag=True, help="Run all tasks again, also of a job that has completed.")
@task_option("Run this task again, and what failed because of it. May be repeated.")
@click.option("--wait", is_flag=True, help="Wait until the jobs have ended; exit with 1 if one failed.")
def retry(place: Place, selection: Selection, run_all: bool, task_ids: tuple[str, ...], wait: bool) -> None:
    """Run again what failed of jobs, and what depends on it."""
    jobs = open_jobs(place)
    if task_ids and (run_all or selection.only is None):
        raise click.UsageError("--task is for one job, and excludes --all")
    more: dict[str, Any] = {"all": True} if run_all else {"tasks": task_ids} if task_ids else {}
    asked: dict[str, int] = {}

    def act(job: Job) -> None:
        jobs.retry(job.name, **more)
        asked[job.name] = job.attempt
        click.echo(f"{job.name}: retry requested")

    code = _each(jobs, _meant(jobs, selection, lambda job: job.state.is_terminal and (run_all or _failed(job))), act)
    if asked:
        say_if_none_runs(jobs)
    if wait:
        exit_with(*wait_for_all(jobs, list(asked), after=asked, on_end=say_how))
    click.get_current_context().exit(code)


def _failed(job: Job) -> bool:
    return job.state == "failed"


@click.command()
@takes_place
@selects_jobs("Wait for")
@click.option(
    "--timeout", type=Duration(in_seconds=True), metavar="SECONDS", help="At most so long (15m); then exit with 1."
)
def wait(place: Place, selection: Selection, timeout: timedelta | None) -> None:
    """Wait until jobs have ended; exit with 1 if one failed."""
    jobs = open_jobs(place)
    names = [job.name for job in _meant(jobs, selection, bool)]
    if any(not jobs.get_job(name).state.is_terminal for name in names):
        say_if_none_runs(jobs)
    seconds = None if timeout is None else timeout.total_seconds()
    exit_with(*wait_for_all(jobs, names, timeout=seconds, on_end=say_how))


@click.command()
@takes_place
@selects_jobs("Remove")
@yes_option
def rm(place: Place, selection: Selection, yes: bool) -> None:
    """Remove jobs that have ended, with their logs.

    On a terminal it asks before it removes more than 10. A job that is named and has not ended is an error.
    """
    jobs = open_jobs(place)
    meant = _meant(jobs, selection, lambda job: job.state.is_terminal)
    confirm_many(len(meant), _MANY_NAMED, "jobs", yes=yes)

    removed = []

    def act(job: Job) -> None:
        jobs.delete(job.name)
        removed.append(job.name)
        if selection.are_named:
            click.echo(f"{job.name}: removed")

    code = _each(jobs, meant, act)
    if not selection.are_named:
        click.echo(_removed(len(removed)))
    click.get_current_context().exit(code)


def _removed(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'} removed"


@click.command()
@takes_place
@click.option("--older-than", type=Duration(), required=True, metavar="AGE", help="7d, 12h, 30m, 45s, 2w.")
@selects_jobs("Remove", all_if_none=True)
@click.option("--dry-run", is_flag=True, help="Only say which jobs would be removed.")
@yes_option
@json_option
def prune(place: Place, older_than: timedelta, selection: Selection, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Remove the jobs that ended longer ago than AGE, with their logs.

    On a terminal it asks before it removes more than 100. The exit code is 1 as long as some files of a job that was
    to be removed are still there.
    """
    jobs = open_jobs(place)
    names = [job.name for job in selection.among(jobs, _ended_before(jobs, older_than))]
    if dry_run:
        if as_json:
            print_json({"would_be_pruned": names})
        else:
            click.echo("".join(f"{name}\n" for name in names), nl=False)
            click.echo(f"{len(names)} job{'' if len(names) == 1 else 's'} would be removed", err=True)
        return
    confirm_many(len(names), _MANY_OLD, f"jobs of {jobs.where}", yes=yes)
    removed, left = _remove(jobs, names)
    if as_json:
        print_json({"pruned": removed, **({"left": {str(error.path): str(error) for error in left}} if left else {})})
    else:
        click.echo(_removed(len(removed)))
    for error in left:
        click.echo(f"air-executor: {error}", err=True)
    if left:
        click.get_current_context().exit(1)


def _ended_before(jobs: Jobs, age: timedelta) -> Iterator[Job]:
    """The jobs that ended longer ago, by name."""
    before = datetime.now(UTC) - age
    for job in jobs.list_jobs():
        ended = job.updated_at or job.created_at
        if job.state.is_terminal and ended is not None and ended < before:
            yield job


def _remove(jobs: Jobs, names: Iterable[str]) -> tuple[list[str], list[exceptions.NotRemovedError]]:
    """Remove jobs; on this machine also what submits and deletions left behind.

    :return: the names of those that were removed, and an error for each of which some files are still there.
    """
    store = store_of(jobs)
    if store is not None:
        return store.remove(names)
    removed, left = [], []
    for name in names:
        try:
            jobs.delete(name)
            removed.append(name)
        except exceptions.NotRemovedError as error:
            left.append(error)
        except exceptions.JobNotFoundError:
            continue
    return removed, left
