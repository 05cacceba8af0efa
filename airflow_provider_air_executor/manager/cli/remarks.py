"""What is said beside jobs: what their manager cannot do with them, that none runs, that it is paused.

Of a job filesystem on this machine it is read from its files, which costs next to nothing. Another machine is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import click

from airflow_provider_air_executor.jobs import manager_control, manager_status
from airflow_provider_air_executor.manager.cli.place import flags, store_of

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.models import Job

_REMOTE_SECONDS = 5.0  # between two questions to another machine


def is_running(jobs: Jobs) -> bool:
    """Whether a manager runs the jobs.

    :raises NoLocksError: if that cannot be known.
    """
    store = store_of(jobs)
    return jobs.manager() is not None if store is None else manager_status.is_running(store)


def say_if_none_runs(jobs: Jobs, *, hint: str = "") -> bool:
    """Warn a user that no manager runs the job, or carries out the request, or that it is paused.

    :param hint: what else can be done.
    :return: whether none runs.
    """
    store = store_of(jobs)
    if store is None:
        return _say_if_none_runs_there(jobs)
    if manager_status.is_running(store):
        if manager_control.load(store).paused:
            click.echo(f"air-executor: {manager_control.PAUSED} {flags()}", err=True)
        return False
    click.echo(f"no manager is running; start it: air-executor manager {flags()}{hint}", err=True)
    return True


def _say_if_none_runs_there(jobs: Jobs) -> bool:
    jobs.ensure_manager()  # which the other machine does if its manager is embedded
    info = jobs.manager()
    if info is None:
        click.echo(f"no manager is running at {jobs.where}; start it there: air-executor manager", err=True)
    elif info.paused:
        click.echo(f"air-executor: {manager_control.PAUSED} {flags()}", err=True)
    return info is None


def problem_of(jobs: Jobs, name: str) -> str | None:
    """What the manager cannot do with a job now; on another machine also that none runs, or that it is paused."""
    store = store_of(jobs)
    if store is not None:
        return manager_status.problems(store).get(name)
    return jobs.trouble(name).strip().removeprefix("(").removesuffix(")") or None


def problem_reporter(jobs: Jobs, name: str) -> Callable[[], None]:
    """A function that prints what the manager cannot do with a job now, each problem once."""
    reported: str | None = None
    next_at = 0.0
    pause = 0.0 if store_of(jobs) is not None else _REMOTE_SECONDS

    def report() -> None:
        nonlocal reported, next_at
        if time.monotonic() < next_at:
            return
        next_at = time.monotonic() + pause
        problem = problem_of(jobs, name)
        if problem not in (None, reported):
            click.echo(f"air-executor: job {name!r} {problem}", err=True)
        reported = problem

    return report


def why_blocked(jobs: Jobs, job: Job) -> str | None:
    """Why a job does not progress; None if it does, or has ended."""
    store = store_of(jobs)
    if job.state.is_terminal:
        return None
    if store is None:
        return jobs.held_up([job]).get(job.name)
    from airflow_provider_air_executor.jobs import summary

    return summary.why_blocked(store, job, jobs.list_jobs())


def why_each_blocked(jobs: Jobs, some: Sequence[Job], all_jobs: Iterable[Job]) -> dict[str, str]:
    """Why some jobs do not progress, by their names.

    :param all_jobs: those of the job filesystem.
    """
    store = store_of(jobs)
    if store is None:
        return jobs.held_up(some)
    from airflow_provider_air_executor.jobs import summary

    return summary.why_each_blocked(store, some, all_jobs)


def why_not_replaced(jobs: Jobs) -> str:
    """Why the manager that runs was not replaced by another one; empty if it need not be, or is on another machine."""
    store = store_of(jobs)
    return "" if store is None else manager_status.why_not_replaced(store)
