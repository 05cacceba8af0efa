"""Waiting for jobs, and a job as programs see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.manager.cli.place import store_of, waiting
from airflow_provider_air_executor.manager.cli.remarks import problem_of, problem_reporter, why_blocked

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.models import Job

FOLLOW_SECONDS = 0.2


def wait_for(jobs: Jobs, name: str) -> Job:
    """Wait until a job has ended; meanwhile print what the manager cannot do with it."""
    (job,) = wait_for_all(jobs, [name])
    return job


def wait_for_all(
    jobs: Jobs,
    names: Sequence[str],
    *,
    timeout: float | None = None,
    after: dict[str, int] | None = None,
    on_end: Callable[[Job], None] | None = None,
) -> list[Job]:
    """Wait until jobs have ended; meanwhile print what the manager cannot do with them.

    :param timeout: at most so many seconds.
    :param after: the end of this attempt of a job, or an earlier one, does not count.
    :param on_end: called with each job when it has ended.
    :return: the jobs, in this order.
    :raises JobTimeoutError: when the time is over; the jobs go on.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    jobs = waiting(jobs, timeout)
    reporters = {name: problem_reporter(jobs, name) for name in names}
    ended: dict[str, Job] = {}
    changed = set(names)
    while True:
        for name, report in reporters.items():
            if name in ended:
                continue
            job = jobs.get_job(name) if name in changed else None
            if job is not None and job.state.is_terminal and job.attempt > (after or {}).get(name, -1):
                ended[name] = job
                if on_end is not None:
                    on_end(job)
            else:
                report()
        if len(ended) == len(reporters):
            return [ended[name] for name in names]
        left = [name for name in reporters if name not in ended]
        if deadline is not None and time.monotonic() >= deadline:
            raise exceptions.JobTimeoutError(f"not ended after {timeout:g} s: {', '.join(left)}")
        # One is waited for, and the others may have changed meanwhile.
        pauses = (FOLLOW_SECONDS, *(0.0 for _ in left[1:]))
        changed = {name for name, pause in zip(left, pauses, strict=True) if jobs.wait(name, pause)}


def say_how(job: Job) -> None:
    """Print how a job stands, in a line."""
    click.echo(f"{job.name}: {job.state}" + (f": {job.error}" if job.error else ""))


def exit_with(*jobs: Job) -> None:
    """End with exit code 1 if one of the jobs has failed."""
    if any(job.state == "failed" for job in jobs):
        click.get_current_context().exit(1)


def job_as_json(jobs: Jobs, job: Job, *, with_tasks: bool = False) -> dict[str, Any]:
    """A job as programs get it."""
    record = job.model_dump(mode="json")
    # Another machine is not asked once for each job of a list.
    problem = problem_of(jobs, job.name) if with_tasks or store_of(jobs) is not None else None
    if problem is not None:
        record["problem"] = problem
    if with_tasks:
        record["held_up"] = why_blocked(jobs, job)
        record["tasks"] = [task.model_dump(mode="json") for task in jobs.get_tasks(job.name)]
    return record
