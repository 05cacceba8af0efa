"""The commands that show the manager, and control it while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.manager.cli.options import json_option, print_json
from airflow_provider_air_executor.manager.cli.place import Place, flags, open_jobs, store_of, takes_place

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs


@click.command()
@takes_place
@click.option("--preload", is_flag=True, help="Show what is imported ahead of warm tasks, and what is not, and why.")
@json_option
def info(place: Place, preload: bool, as_json: bool) -> None:
    """Show the manager: how full it is, and what waits.

    The exit code is 1 if none runs.
    """
    jobs = open_jobs(place)
    if preload:
        _show_preload(jobs, as_json)
        return
    found = jobs.manager()
    if as_json:
        where = "url" if store_of(jobs) is None else "base_path"
        print_json({where: jobs.where, **({"pid": None} if found is None else found.as_json())})
    elif found is None:
        how = "start it there: " if store_of(jobs) is None else "start it: "
        more = "" if store_of(jobs) is None else f" {flags()}"
        click.echo(f"no manager is running on {jobs.where}; {how}air-executor manager --detach{more}")
    else:
        from airflow_provider_air_executor.manager.cli import display

        display.show_manager(jobs, found)
    if found is None:
        click.get_current_context().exit(1)


def _show_preload(jobs: Jobs, as_json: bool) -> None:
    from airflow_provider_air_executor.jobs import preload_info
    from airflow_provider_air_executor.manager.cli import preloaded

    store = store_of(jobs)
    if store is None:
        raise click.UsageError("--preload is for the machine of the manager: run it there")
    if jobs.manager() is None:
        raise exceptions.ManagerError(f"no manager is running on {jobs.where}")
    found = preload_info.load(store)
    if as_json:
        print_json(found)
    elif found is None:
        click.echo("there is no fork server: the first warm task starts it")
    else:
        preloaded.show(found)


@click.command()
@takes_place
def metrics(place: Place) -> None:
    """Print the metrics of the manager as OpenMetrics text. The exit code is 1 if none runs."""
    from airflow_provider_air_executor.manager.metrics import render

    jobs = open_jobs(place)
    found = jobs.manager()
    if found is None:
        raise exceptions.ManagerError(f"no manager is running on {jobs.where}")
    click.echo(render(found), nl=False)


@click.command()
@takes_place
def pause(place: Place) -> None:
    """Let the manager start no more tasks, until `resume`. Tasks that run go on, and jobs can be submitted.

    It also holds for managers that are started later.
    """
    jobs = open_jobs(place)
    jobs.set_paused(True)
    click.echo(f"no more tasks are started; continue: air-executor resume {flags()}")


@click.command()
@takes_place
def resume(place: Place) -> None:
    """Let the manager start tasks again after `pause`."""
    jobs = open_jobs(place)
    jobs.set_paused(False)
    click.echo(f"tasks are started again on {jobs.where}")


@click.command()
@takes_place
@click.argument("number", metavar="[N]", required=False)
@click.option("--runner", default="local", show_default=True, metavar="NAME", help="The runner that is meant.")
def slots(place: Place, number: str | None, runner: str) -> None:
    """Set how many tasks run at a time.

    N is a number, or "default" for what the settings say; without N, it is shown. If more run now they go on. It also
    holds for managers that are started later.
    """
    jobs = open_jobs(place)
    if number is None:
        _show_slots(jobs)
        return
    if number != "default" and not number.isdecimal():
        raise click.UsageError(f'{number!r} is neither a number nor "default"')
    jobs.set_slots(None if number == "default" else int(number), runner)
    words = "what the settings say" if number == "default" else f"{number} slot{'' if number == '1' else 's'}"
    click.echo(f"runner {runner} has {words}")


def _show_slots(jobs: Jobs) -> None:
    """What runs now, and what is set for the time when no manager runs."""
    info, control = jobs.manager(), jobs.control()
    for name, found in info.slots.items() if info is not None else ():
        click.echo(f"{name}: {found.used} of {found.limit} used")
    for name, count in control.slots.items():
        if info is None or name not in info.slots:
            click.echo(f"{name}: {count}")
