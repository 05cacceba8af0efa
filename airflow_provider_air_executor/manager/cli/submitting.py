"""The commands that submit jobs, and tasks of jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.manager.cli import completion, errors
from airflow_provider_air_executor.manager.cli.options import (
    Duration,
    embedded_option,
    json_option,
    print_json,
)
from airflow_provider_air_executor.manager.cli.place import Place, open_jobs, store_of, takes_place
from airflow_provider_air_executor.manager.cli.remarks import say_if_none_runs
from airflow_provider_air_executor.manager.cli.waiting import exit_with, job_as_json, say_how, wait_for_all

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.models import Job

_HINT = ", or give --embedded"


@click.command()
@takes_place
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.File("rb"))
@click.option("--name", help="Name of the job, in place of the one in the file.")
@click.option("--replace", is_flag=True, help="Remove a job of the same name that has ended.")
@click.option("--wait", is_flag=True, help="Wait until all have ended; exit with 1 if one failed.")
@embedded_option
@json_option
def submit(
    place: Place,
    files: tuple[BinaryIO, ...],
    name: str | None,
    replace: bool,
    wait: bool,
    embedded: bool,
    as_json: bool,
) -> None:
    """Submit jobs from files, JSON or YAML ("-": standard input).

    A file holds {"name": ..., "tasks": [{"command": "echo", "args": ["hi"]}, ...]}, and what else a job may say:
    max_parallel_tasks (default: all that are independent), timeout, priority, labels, outlets, runner. A job without
    a name gets one that is made up. A YAML file may have several jobs, as documents.
    """
    from airflow_provider_air_executor.manager.cli.job_files import read_jobs

    if name is not None and len(files) > 1:
        raise click.UsageError("--name is for one file only")
    jobs = open_jobs(place, must_exist=False, embedded=embedded)
    described = [job for file in files for job in read_jobs(file, name)]  # all of them, before the first is submitted
    check(jobs)
    submitted, code = [], 0
    for fields in described:
        try:
            submitted.append(submit_job(jobs, fields, replace=replace))
        except exceptions.JobsAwayError:
            raise
        except exceptions.AirExecutorError as error:
            if len(described) == 1:
                raise
            code = code or errors.say(error, store_of(jobs))
    if wait or embedded:
        make_sure(jobs, embedded=embedded)
    if wait:
        submitted = wait_for_all(jobs, [job.name for job in submitted])
    if as_json:
        listed = [job_as_json(jobs, job) for job in submitted]
        print_json(listed[0] if len(described) == 1 else listed)
    else:
        for job in submitted:
            say_how(job)
        if not wait:
            say_if_none_runs(jobs, hint=_HINT)
    if code:
        click.get_current_context().exit(code)
    exit_with(*submitted)


def check(jobs: Jobs) -> None:
    """Check, before anything is submitted, that a manager could run it.

    :raises NoLocksError: if none can.
    """
    store = store_of(jobs)
    if store is None:
        jobs.prepare()
    else:
        manager_status.check_locks(store)


def submit_job(jobs: Jobs, fields: dict[str, Any], *, replace: bool) -> Job:
    """Submit a job.

    :param replace: whether a job of the same name that has ended is removed.
    :raises JobStateError: if one has not ended.
    """
    try:
        return jobs.submit(**fields)
    except exceptions.JobExistsError:  # and so it is valid
        if not replace:
            raise
    jobs.delete(fields["name"])
    return jobs.submit(**fields)


def make_sure(jobs: Jobs, *, embedded: bool) -> None:
    """Start a manager if none runs, or say that none does.

    :raises ManagerError: if it cannot be started.
    """
    store = store_of(jobs)
    if not embedded or store is None:
        say_if_none_runs(jobs, hint=_HINT)
        return
    from airflow_provider_air_executor.jobs import embedded_manager

    warning = embedded_manager.start_if_none(store)
    if warning:
        click.echo(warning, err=True)


@click.command("add-task", context_settings={"allow_interspersed_args": False})
@takes_place
@click.option(
    "--job",
    "job_name",
    envvar="AIR_EXECUTOR_JOB",
    required=True,
    shell_complete=completion.job_names,
    help="The job; default: the task's own.",
)
@click.option("--id", "task_id", default="", help="Id of the new task; one is made up otherwise.")
@click.option(
    "--depends-on",
    multiple=True,
    metavar="ID",
    shell_complete=completion.task_ids,
    help="A task that must have completed; may be repeated.",
)
@click.option("--bash", metavar="LINE", help="A line of bash, in place of a command.")
@click.option("--timeout", type=Duration(in_seconds=True), metavar="SECONDS", help="After which it is killed.")
@click.option("--retries", type=int, default=0, help="How many more attempts are made after a failed one.")
@click.argument("command", nargs=-1)
def add_task(
    place: Place,
    job_name: str,
    task_id: str,
    depends_on: tuple[str, ...],
    timeout: Any,
    retries: int,
    **what: Any,
) -> None:
    """Add a task to a job that has not ended.

    air-executor add-task --depends-on a -- COMMAND ARG...

    A task can add tasks to its own job, and to no other unless it is named. Prints the id of the new task.
    """
    given = {"id": task_id, "dependencies": depends_on, "timeout": timeout and timeout.total_seconds()}
    task = {**what_to_run(**what), **given, "retries": retries}
    (added,) = open_jobs(place).add_tasks(job_name, [task])
    click.echo(added)


def what_to_run(command: tuple[str, ...], bash: str | None) -> dict[str, Any]:
    """The fields of a task that say what it runs.

    :raises UsageError: if it is not said once.
    """
    if (bash is None) == (not command):
        raise click.UsageError("give either a command, or --bash")
    return {"bash": bash} if bash is not None else {"command": command[0], "args": command[1:]}
