"""``air-executor``: the command line.

Exit codes: 0 done; 1 the job failed, or the work could not be done; 2 the call or the input is not valid;
3 there is no such job; 4 it is taken: a job of that name exists, another manager runs, or the job's state forbids it.
``run`` ends with the exit code of its command.
"""

from __future__ import annotations

import click

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.manager.cli.changing import cancel, prune, retry, rm, wait
from airflow_provider_air_executor.manager.cli.controlling import info, metrics, pause, resume, slots
from airflow_provider_air_executor.manager.cli.doctor import doctor
from airflow_provider_air_executor.manager.cli.errors import Commands
from airflow_provider_air_executor.manager.cli.logs import logs
from airflow_provider_air_executor.manager.cli.managing import manager, stop
from airflow_provider_air_executor.manager.cli.place import options_before
from airflow_provider_air_executor.manager.cli.running import run
from airflow_provider_air_executor.manager.cli.serving import serve
from airflow_provider_air_executor.manager.cli.showing import results, status
from airflow_provider_air_executor.manager.cli.submitting import add_task, submit
from airflow_provider_air_executor.manager.cli.tokens import token


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="air-executor")
@click.option("--base-path", type=click.Path(file_okay=False), help="Directory that holds jobs/, for any command.")
@options_before
def main(**_where: str | None) -> None:
    """Run multi-step shell jobs that are plain files.

    Exit codes: 0 done, 1 failed, 2 not valid, 3 no such job, 4 taken. `run` ends with the exit code of its command.
    """


for _command in (
    run,
    submit,
    status,
    logs,
    results,
    wait,
    cancel,
    retry,
    rm,
    prune,
    add_task,
    info,
    pause,
    resume,
    slots,
    metrics,
    manager,
    stop,
    doctor,
    token,
    serve,
):
    main.add_command(_command)
