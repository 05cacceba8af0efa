"""What several commands share: their options, and the job filesystem that they work on."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.manager.cli import completion

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.store import JobStore

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

Function = Callable[..., Any]


class Opened(NamedTuple):
    """The job filesystem that a command works on, for its errors and hints; it is the ``obj`` of the context.

    :param flags: with which another command works on it.
    :param store: if it is on this machine.
    """

    flags: str
    store: JobStore | None = None


def base_path_option(function: Function) -> Function:
    """``--base-path``, which may also be given before the command."""
    return click.option(
        "--base-path",
        envvar="AIR_EXECUTOR_BASE_PATH",
        type=click.Path(file_okay=False),
        callback=_base_path,
        help="Directory that holds jobs/ (or AIR_EXECUTOR_BASE_PATH; default: .air-executor, or if that is not there "
        "the one in Airflow's home).",
    )(function)


def here_option(function: Function) -> Function:
    """``--base-path`` of a command that is about this machine, whatever else can be reached from it."""
    for name in ("--ssh", "--url"):
        option = click.option(name, hidden=True, expose_value=False, callback=_refuse, help="It works here alone.")
        function = option(function)
    return base_path_option(function)


def _refuse(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Refuse another machine, before the command or after it."""
    if value is not None or ctx.find_root().params.get(str(param.name)) is not None:
        flag = param.opts[0]
        raise click.UsageError(f"`{ctx.info_name}` is about this machine; run it on the other one, without {flag}")


def _base_path(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """What was given before the command, unless it is also given after it."""
    before: str | None = ctx.find_root().params.get("base_path")
    is_given = ctx.get_parameter_source(str(param.name)) is ParameterSource.COMMANDLINE
    return value if is_given or before is None else before


def json_option(function: Function) -> Function:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def yes_option(function: Function) -> Function:
    """``--yes``."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask before many jobs are removed.")(function)


def embedded_option(function: Function) -> Function:
    """``--embedded``."""
    text = "Start a manager if none runs; it ends after 10 minutes without work."
    return click.option("--embedded", is_flag=True, help=text)(function)


def listen_options(function: Function) -> Function:
    """Where a server listens, and how."""
    file = click.Path(dir_okay=False)
    for option in (
        click.option(
            "--trusted-proxy",
            "trusted_proxies",
            metavar="ADDRESS",
            multiple=True,
            callback=_given,
            help="A proxy that is believed when it names the address of its client. It may be given again.",
        ),
        click.option("--insecure-plain-text", is_flag=True, default=None, help="Listen by TCP without TLS anywhere."),
        click.option("--client-ca", type=file, help="Clients need a certificate that one of these has signed."),
        click.option("--tls-key", type=file, help="The key of the certificate."),
        click.option("--tls-cert", type=file, help="The certificate for TCP, which needs TLS but on loopback."),
        click.option(
            "--listen",
            metavar="ADDRESS",
            multiple=True,
            callback=_given,
            help="Where clients on other machines are answered: HOST:PORT. It may be given again.",
        ),
    ):
        function = option(function)
    return function


def _given(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...] | None:
    """What an option was given that may be repeated; None if it was not."""
    return value or None


def job_argument(function: Function) -> Function:
    """The name of one job."""
    return click.argument("job_name", metavar="JOB", shell_complete=completion.job_names)(function)


def task_argument(function: Function) -> Function:
    """The id of a task of the job."""
    return click.argument("task_id", metavar="[TASK]", required=False, shell_complete=completion.task_ids)(function)


def task_option(text: str) -> Callable[[Function], Function]:
    """``--task``, which may be repeated."""
    return click.option(
        "--task", "task_ids", metavar="ID", multiple=True, shell_complete=completion.task_ids, help=text
    )


def open_store(base_path: str | None, *, must_exist: bool = True) -> JobStore:
    """The job filesystem that is meant.

    Where it is not said, and there is none, it is that of Airflow's home, if there is one only.

    :raises ManagerError: if it must exist, and does not.
    """
    from airflow_provider_air_executor.jobs.store import JobStore

    is_said = base_path is not None
    if base_path is None:
        from airflow_provider_air_executor.manager.settings import load_settings

        base_path = load_settings({})[0].base_path
    store = JobStore(base_path)
    if must_exist and not store.base_path.is_dir():
        found = others(store)
        if is_said or len(found) != 1:
            seen = f", but at {' and '.join(map(str, found))}" if found else ""
            raise exceptions.ManagerError(
                f"there is no job filesystem at {store.base_path}{seen}; "
                "give --base-path, or set AIR_EXECUTOR_BASE_PATH"
            )
        store = JobStore(found[0])
    click.get_current_context().find_root().obj = Opened(f"--base-path {store.base_path}", store)
    return store


def others(store: JobStore) -> list[Path]:
    """Where else there are job filesystems: those of operators and of the executor, in Airflow's home."""
    home = Path(files.expanded(os.environ.get("AIRFLOW_HOME") or "~/airflow"))
    return sorted({path.parent for path in home.glob("air-executor*/jobs")} - {store.base_path})


def confirm_many(count: int, most: int, what: str, *, yes: bool) -> None:
    """Ask on a terminal before much is removed.

    :param most: how many may be removed without a question.
    :raises click.Abort: if the answer is no.
    """
    if count > most and not yes and is_interactive():
        click.confirm(f"remove {count} {what}?", abort=True, err=True)


def is_interactive() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))


class Duration(click.ParamType[timedelta]):
    """A time with its unit: ``7d``, ``12h``, ``1h30m``.

    :param in_seconds: whether a number without a unit is taken, too: so many seconds.
    """

    name = "duration"

    def __init__(self, *, in_seconds: bool = False) -> None:
        self._in_seconds = in_seconds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it."""
        text = str(value)
        if self._in_seconds and re.fullmatch(r"\d+(?:\.\d+)?", text):
            text += "s"
        if not _DURATION.fullmatch(text):
            self.fail(f"{value!r} is not a number with a unit: s, m, h, d or w (7d, 12h)", param, ctx)
        parts = re.findall(r"([\d.]+)([smhdw])", text)
        try:
            return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)
