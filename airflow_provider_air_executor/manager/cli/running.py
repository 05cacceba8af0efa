"""``air-executor run``: a command as a job of its own, at once."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from airflow_provider_air_executor.manager.cli.log_printer import LogPrinter
from airflow_provider_air_executor.manager.cli.options import (
    Duration,
    embedded_option,
    is_interactive,
)
from airflow_provider_air_executor.manager.cli.place import Place, flags, open_jobs, takes_place, waiting
from airflow_provider_air_executor.manager.cli.remarks import is_running, problem_reporter
from airflow_provider_air_executor.manager.cli.submitting import check, make_sure, submit_job, what_to_run
from airflow_provider_air_executor.manager.cli.waiting import FOLLOW_SECONDS

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.models import Job

_TASK = "task-1"
_INTERRUPTED = 130
_EXIT_CODES = {"timeout": 124, "spawn": 127, "cancelled": _INTERRUPTED}  # as of timeout(1) and of shells


@click.command(context_settings={"allow_interspersed_args": False})
@takes_place
@click.option("--name", help="Name of the job; one is made up otherwise.")
@click.option("--replace", is_flag=True, help="Remove a job of the same name that has ended.")
@click.option("--bash", metavar="LINE", help="A line of bash, in place of a command.")
@click.option("--cwd", metavar="DIR", help="Where it runs (the current directory).")
@click.option("--own-directory", is_flag=True, help="It runs in a directory of its own, that of the job.")
@click.option("--env", metavar="KEY=VALUE", multiple=True, help="A variable of its environment; may be repeated.")
@click.option("--label", metavar="KEY=VALUE", multiple=True, help="A label of the job; may be repeated.")
@click.option("--timeout", type=Duration(in_seconds=True), metavar="SECONDS", help="After which it is killed (15m).")
@click.option("--retries", type=click.IntRange(min=0), default=0, help="How many more attempts follow a failed one.")
@click.option("--priority", type=int, default=0, help="Higher numbers start first.")
@click.option("--runner", metavar="NAME", help="What runs it, for example slurm.")
@click.option("--cpus", metavar="N", help="Processors that it needs.")
@click.option("--memory", metavar="BYTES", help="Memory that it needs: 4Gi.")
@click.option("--gpus", metavar="N", help="Graphics processors that it needs.")
@click.option("--detach", "-d", is_flag=True, help="Print the name of the job, and do not wait for it.")
@click.option("--rm", "remove", is_flag=True, help="Remove the job once it has ended.")
@embedded_option
@click.argument("command", nargs=-1)
def run(
    place: Place,
    name: str | None,
    replace: bool,
    bash: str | None,
    command: tuple[str, ...],
    detach: bool,
    remove: bool,
    embedded: bool,
    **about: Any,
) -> None:
    """Run a command as a job, and print its output.

    air-executor run -- COMMAND ARG...

    Prints its output as it comes, and ends with its exit code: 128 and more for a signal, 124 after its timeout, 127
    if it cannot be started, 130 if it was cancelled. Ctrl-C asks whether to cancel it; a second one leaves it running.
    """
    from airflow_provider_air_executor.jobs.names import made_up_name

    if detach and remove:
        raise click.UsageError("--rm removes what has ended, and --detach does not wait for that")
    task = what_to_run(command, bash)
    jobs = open_jobs(place, must_exist=False, embedded=embedded)
    check(jobs)
    name = name or made_up_name(command[0] if command else "bash")
    job = submit_job(jobs, _described(name, task, is_here=not place.is_remote, **about), replace=replace)
    make_sure(jobs, embedded=embedded)
    if detach:
        click.echo(job.name)
        return
    click.echo(f"air-executor: job {job.name}", err=True)
    job = _Follower(waiting(jobs), job).follow()
    code = _exit_code(waiting(jobs), job)
    if remove:
        waiting(jobs).delete(job.name)
    click.get_current_context().exit(code)


def _described(
    name: str,
    task: dict[str, Any],
    *,
    is_here: bool,
    cwd: str | None,
    own_directory: bool,
    env: tuple[str, ...],
    label: tuple[str, ...],
    timeout: timedelta | None,
    retries: int,
    priority: int,
    runner: str | None,
    **resources: str | None,
) -> dict[str, Any]:
    """The job, as it is submitted.

    :param is_here: whether it runs on this machine, or at least where this directory is.
    """
    if cwd is not None and own_directory:
        raise click.UsageError("give either --cwd, or --own-directory")
    needed = {key: value for key, value in resources.items() if value is not None}
    task = {
        **task,
        "env": _pairs("--env", env) or None,
        "cwd": (None if own_directory else os.path.abspath(cwd or ".")) if is_here else cwd,
        "timeout": timeout and timeout.total_seconds(),
        "retries": retries,
        "resources": needed or None,
    }
    given = {key: value for key, value in task.items() if value is not None}
    return {"name": name, "tasks": [given], "labels": _pairs("--label", label), "priority": priority, "runner": runner}


def _pairs(option: str, given: tuple[str, ...]) -> dict[str, str]:
    """What was given as ``KEY=VALUE``."""
    for pair in given:
        if "=" not in pair:
            raise click.UsageError(f"{option}: {pair!r} is not KEY=VALUE")
    return dict(pair.split("=", 1) for pair in given)


class _Follower:
    """Prints what the command prints, until it has ended, or somebody does not want to wait any longer."""

    def __init__(self, jobs: Jobs, job: Job) -> None:
        self._jobs = jobs
        self._name = job.name
        self._printer = LogPrinter(jobs, job.name, _TASK, prefix=False)
        self._report = problem_reporter(jobs, job.name)
        self._is_cancelled = False

    def follow(self) -> Job:
        """Wait for the end of the job, and print."""
        while True:
            try:
                return self._follow()
            except KeyboardInterrupt:
                try:
                    self._interrupted()
                except (KeyboardInterrupt, click.Abort):
                    self._leave()

    def _follow(self) -> Job:
        while True:
            job = self._jobs.get_job(self._name)
            self._printer.print_new(final=job.state.is_terminal)
            if job.state.is_terminal:
                return job
            self._report()
            while not self._jobs.wait(self._name, FOLLOW_SECONDS):
                self._report()

    def _interrupted(self) -> None:
        """Ctrl-C: cancel the job, if that is wanted."""
        if self._is_cancelled:
            self._leave()
        if is_interactive() and not click.confirm(f"\ncancel {self._name}?", default=True, err=True):
            return
        self._is_cancelled = True
        self._jobs.cancel(self._name)
        click.echo(f"air-executor: {self._name}: cancellation requested", err=True)
        if not is_running(self._jobs):
            self._leave()

    def _leave(self) -> None:
        command = f"air-executor logs {self._name} --follow {flags()}"
        click.echo(f"\nair-executor: job {self._name} goes on: {command}", err=True)
        click.get_current_context().exit(_INTERRUPTED)


def _exit_code(jobs: Jobs, job: Job) -> int:
    """The exit code of the command; what else has ended it is said."""
    if job.state == "completed":
        return 0
    (task,) = jobs.get_tasks(job.name)[:1]
    if job.reason != "exit":
        click.echo(f"air-executor: {job.name}: {task.error or job.error or job.reason}", err=True)
    return _EXIT_CODES.get(str(job.reason), task.exit_code or 1)
