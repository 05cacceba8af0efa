"""``airflow air-executor``: the commands of ``air-executor`` in Airflow's own command line.

They are made from the click commands, with the same options and exit codes. What differs is where they work if nobody
says otherwise: in the executor's job filesystem. Each start of ``airflow`` imports this module, so it stays light.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click
from airflow.cli.cli_config import ActionCommand, Arg, CLICommand, GroupCommand
from rich.markup import escape

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.manager.cli import main
from airflow_provider_air_executor.manager.cli.place import Chosen
from airflow_provider_air_executor.remote.protocol import Target

NAME = "air-executor"
_BASE_PATH_HELP = (
    "Directory that holds jobs/ (or AIR_EXECUTOR_BASE_PATH; default: that of the executor; but for manager, run and "
    "submit, that of operators where there is none)."
)
_CONN_ID = Arg(("--conn-id",), help="The connection of operators whose jobs are meant, instead of --base-path.")
_MAKE_IT = ("manager", "run", "submit")  # these make a job filesystem where there is none


def get_cli_commands() -> list[CLICommand]:
    """The commands that Airflow adds to its command line."""
    commands = [_command(name, command) for name, command in main.commands.items()]
    return [GroupCommand(NAME, "Run and control the jobs of Air-Executor", commands, description=_description(main))]


def default_base_path(*, must_exist: bool = False) -> str:
    """The job filesystem of the executor; not that of a queue or a team that has its own.

    :param must_exist: where there is none, that of operators without a connection will do.
    :raises SettingsError: if the setting is not valid.
    """
    from airflow.configuration import conf

    from airflow_provider_air_executor.hooks import embedded_base_path, tasks_base_path

    of_executor = tasks_base_path(conf.get("air_executor", "base_path", fallback=""))
    of_operators = embedded_base_path()
    is_there = os.path.isdir(of_operators) and not os.path.isdir(of_executor)
    return of_operators if must_exist and is_there else of_executor


def base_path_of(conn_id: str) -> str:
    """The job filesystem of a connection, on this machine.

    :raises SettingsError: if there is no such connection, it is not valid, or it is of another machine.
    """
    found = place_of(conn_id)
    if isinstance(found, str):
        return found
    raise SettingsError(f"--conn-id {conn_id}: the jobs are on another machine, {found.where}; run the command there")


def place_of(conn_id: str) -> str | Target:
    """The job filesystem of a connection: a base path, or another machine.

    :raises SettingsError: if there is no such connection, or it is not valid.
    """
    from airflow.sdk.exceptions import AirflowNotFoundException

    from airflow_provider_air_executor.hooks import AirExecutorHook

    try:
        location = AirExecutorHook(conn_id).location
    except (AirflowNotFoundException, ValueError) as error:
        raise SettingsError(f"--conn-id {conn_id}: {error}") from None
    return location if isinstance(location, Target) else location.base_path


class _Collect(argparse.Action):
    """Collects what is given on the command line for click, which checks and converts it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if values is None:  # an argument that may be left out
            return
        given = [values] if isinstance(values, str) else list(values)
        if option_string is None:
            namespace.click_arguments = [*getattr(namespace, "click_arguments", []), *given]
        else:
            namespace.click_options = [*getattr(namespace, "click_options", []), option_string, *given]


def _command(name: str, command: click.Command) -> ActionCommand:
    def run(namespace: argparse.Namespace) -> None:
        options, arguments = getattr(namespace, "click_options", []), getattr(namespace, "click_arguments", [])
        root = logging.getLogger()
        for handler in root.handlers[:]:  # Airflow's; with them the manager could not set up its own
            root.removeHandler(handler)
        find: Callable[[], str] | None = partial(default_base_path, must_exist=name not in _MAKE_IT)
        chosen = None
        if namespace.conn_id:
            for variable in ("AIR_EXECUTOR_BASE_PATH", "AIR_EXECUTOR_URL", "AIR_EXECUTOR_SSH"):
                os.environ.pop(variable, None)  # they would go before
            find = partial(base_path_of, namespace.conn_id)
            if any(parameter.name == "url" and not getattr(parameter, "hidden", False) for parameter in command.params):
                chosen = Chosen(partial(place_of, namespace.conn_id), f"--conn-id {namespace.conn_id}")
                find = None
        main.main(
            [name, *options, "--", *arguments],
            prog_name=f"airflow {NAME}",
            default_map={name: {"base_path": find}},  # what neither an option nor the environment says
            obj=chosen,
        )

    context = click.Context(command, info_name=name)
    return ActionCommand(
        name=name,
        help=_help(command.get_short_help_str(limit=200)),
        description=_description(command),
        func=run,
        args=[
            _option(parameter, context) if isinstance(parameter, click.Option) else _argument(parameter)
            for parameter in command.params
        ]
        + [_CONN_ID],
        hide=command.hidden,
    )


def _option(option: click.Option, context: click.Context) -> Arg:
    more: dict[str, Any] = {"nargs": option.nargs}
    if option.is_flag or option.count:
        more["nargs"] = 0
    elif isinstance(option.type, click.Choice) and option.type.case_sensitive:
        more["choices"] = [str(choice) for choice in option.type.choices]
    else:
        more["metavar"] = option.metavar or option.type.name.upper()
    record = option.get_help_record(context)  # with the default and what else click adds
    more["help"] = argparse.SUPPRESS if record is None else _help(record[1])
    if option.name == "base_path":
        more["help"] = _BASE_PATH_HELP
    flags = sorted([*option.opts, *option.secondary_opts], key=lambda flag: flag.startswith("--"))
    return Arg(flags, dest=option.name, action=_Collect, required=option.required and not option.envvar, **more)


def _argument(argument: click.Parameter) -> Arg:
    if argument.nargs == -1:
        nargs: str | int | None = "+" if argument.required else "*"
    elif argument.nargs == 1:
        nargs = None if argument.required else "?"
    else:
        nargs = argument.nargs
    metavar = (argument.metavar or str(argument.name)).strip("[].")  # argparse adds how many there may be
    return Arg((argument.name,), action=_Collect, nargs=nargs, metavar=metavar)


def _help(text: str) -> str:
    return escape(text).replace("%", "%%")  # argparse formats it, and it is shown as markup


def _description(command: click.Command) -> str:
    return escape(inspect.cleandoc(command.help or ""))
