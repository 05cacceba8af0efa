"""Where a command works: on files of this machine, or with a manager on another one.

``--base-path``, ``--url`` and ``--ssh`` may be given before the command and after it. What is given on the command line
counts more than the environment.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from airflow_provider_air_executor.manager.cli.options import Function, Opened, base_path_option, open_store

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.interface import Jobs
    from airflow_provider_air_executor.jobs.store import JobStore
    from airflow_provider_air_executor.remote.protocol import SshTarget, Target

PATIENCE = 10.0  # seconds for which a manager that is away is tried, unless a command waits for something
_COMMAND = "air-executor"
_SSH = re.compile(r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?:\[(?P<v6>[^]]+)\]|(?P<host>[^:@/\s]+))(?::(?P<port>\d{1,5}))?")

_OPTIONS: dict[str, dict[str, Any]] = {
    "url": {
        "envvar": "AIR_EXECUTOR_URL",
        "metavar": "URL",
        "help": "A manager on another machine: https://HOST:PORT (or AIR_EXECUTOR_URL; its token: AIR_EXECUTOR_TOKEN).",
    },
    "token_file": {"metavar": "FILE", "type": click.Path(dir_okay=False), "help": "Holds the token for --url."},
    "ca": {
        "envvar": "AIR_EXECUTOR_CA",
        "metavar": "FILE",
        "type": click.Path(dir_okay=False),
        "help": "The certificates that are trusted for --url (those of the system).",
    },
    "ssh": {
        "envvar": "AIR_EXECUTOR_SSH",
        "metavar": "[USER@]HOST[:PORT]",
        "help": "A manager on another machine, by SSH (or AIR_EXECUTOR_SSH); --base-path is there then.",
    },
    "ssh_command": {
        "envvar": "AIR_EXECUTOR_SSH_COMMAND",
        "metavar": "COMMAND",
        "help": "The command there, for --ssh, if it is not in the PATH there.",
    },
}


class Place(NamedTuple):
    """Where a command works; without a URL and a host: on this machine."""

    base_path: str | None = None
    url: str | None = None
    ssh: str | None = None
    ca: str | None = None
    token_file: str | None = None
    ssh_command: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is another machine."""
        return self.url is not None or self.ssh is not None


class Chosen(NamedTuple):
    """A job filesystem that was chosen before, by Airflow's ``--conn-id``; it is the ``obj`` of the context.

    :param find: gives its base path, or the other machine.
    """

    find: Callable[[], str | Target]
    flags: str


def options_before(function: Function) -> Function:
    """The options of a place, before a command."""
    for name, about in reversed(_OPTIONS.items()):
        told = {key: value for key, value in about.items() if key != "envvar"}  # a command after it reads that
        function = click.option(_flag(name), **{**told, "help": f"{about['help'].rstrip('.')}, for any command."})(
            function
        )
    return function


def takes_place(function: Function) -> Function:
    """Options of a command that works on any job filesystem, which gets them as ``place``."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        after = {name: given.pop(name) for name in ("base_path", *_OPTIONS)}
        return function(place=_given_place(click.get_current_context(), after), **given)

    for name, about in reversed(_OPTIONS.items()):
        command = click.option(_flag(name), **about)(command)
    return base_path_option(command)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _given_place(ctx: click.Context, after: dict[str, str | None]) -> Place:
    before = ctx.find_root().params
    sources = {name: ctx.get_parameter_source(name) for name in after}
    flags = {name: value for name in after if (value := before.get(name)) is not None}
    flags |= {name: value for name, value in after.items() if sources[name] is ParameterSource.COMMANDLINE and value}
    variables = {name: value for name, value in after.items() if sources[name] is ParameterSource.ENVIRONMENT and value}
    is_default = sources["base_path"] is ParameterSource.DEFAULT_MAP
    return choose(flags, variables, default=after["base_path"] if is_default else None)


def choose(flags: Mapping[str, str], variables: Mapping[str, str], *, default: str | None = None) -> Place:
    """The place that is meant.

    :param flags: what was given on the command line, by the names of the fields of a place.
    :param variables: what is in the environment.
    :param default: the base path if nothing is said.
    :raises UsageError: if several are named.
    """
    kind = _kind(flags, "on the command line")
    if not kind and "AIR_EXECUTOR_JOB" in os.environ and "base_path" in variables:
        kind = "base_path"  # a task means the machine that it runs on
    if kind == "base_path" and "base_path" in flags and "ssh" in variables and "url" not in variables:
        kind = "ssh"
    kind = kind or _kind(variables, "in the environment")
    both = {**variables, **flags}
    if kind == "url":
        return Place(None, both["url"], None, both.get("ca"), both.get("token_file"))
    if kind == "ssh":
        # A base path in the environment is one of this machine, unless the other machine is named there, too.
        base_path = (flags if "ssh" in flags else both).get("base_path")
        return Place(base_path, ssh=both["ssh"], ssh_command=both.get("ssh_command"))
    return Place(both.get("base_path", default))


def _kind(given: Mapping[str, str], where: str) -> str:
    """The kind of place that is named; empty if none is.

    :raises UsageError: if there is more than one.
    """
    if "url" in given and (other := next((name for name in ("ssh", "base_path") if name in given), "")):
        raise click.UsageError(f"{_flag('url')} and {_flag(other)} are both given {where}; give one of them")
    return next((name for name in ("url", "ssh", "base_path") if name in given), "")


def open_jobs(place: Place, *, must_exist: bool = True, embedded: bool = False) -> Jobs:
    """The job filesystem that is meant.

    :param must_exist: whether it must be there already, if it is on this machine.
    :param embedded: whether the other machine may start a manager.
    :raises ManagerError: if it must exist, and does not.
    :raises UsageError: if the place is not valid.
    """
    root = click.get_current_context().find_root()
    flags, found = _flags_of(place), _target(place, embedded=embedded) if place.is_remote else place.base_path
    if isinstance(root.obj, Chosen) and place == Place():
        flags, found = root.obj.flags, root.obj.find()
    if found is None or isinstance(found, str):
        from airflow_provider_air_executor.jobs.file_jobs import FileJobs

        return FileJobs(open_store(found, must_exist=must_exist))
    from airflow_provider_air_executor import remote

    root.obj = Opened(flags)
    return remote.connect(found, patience=PATIENCE, log=_log())


def _target(place: Place, *, embedded: bool) -> Target:
    from airflow_provider_air_executor.remote.address import target_of
    from airflow_provider_air_executor.remote.protocol import Target

    if place.url is not None:
        return target_of(place.url, token=_token(place.token_file), ca=place.ca, name="--url")
    command = place.ssh_command or _COMMAND
    return Target(ssh=ssh_target(place.ssh or ""), base_path=place.base_path, command=command, embedded=embedded)


def _token(path: str | None) -> str:
    """The token, which is never an argument: all users of a machine see those.

    :raises UsageError: if the file cannot be read.
    """
    if path is None:
        return os.environ.get("AIR_EXECUTOR_TOKEN", "").strip()
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"--token-file: {error}") from None


def ssh_target(text: str) -> SshTarget:
    """The machine of ``--ssh``; what it does not say comes from ``~/.ssh/config``.

    :raises UsageError: if it is none.
    """
    from airflow_provider_air_executor.remote.protocol import SshTarget

    found = _SSH.fullmatch(text)
    if found is None:
        raise click.UsageError(f"--ssh: {text!r} is not [USER@]HOST[:PORT]")
    port = int(found["port"]) if found["port"] else None
    return SshTarget(found["v6"] or found["host"], port, found["user"])


def _flags_of(place: Place) -> str:
    if place.url is not None:
        return f"--url {place.url}"
    if place.ssh is None:
        return ""
    return f"--ssh {place.ssh}" + (f" --base-path {place.base_path}" if place.base_path is not None else "")


def _log() -> logging.Logger:
    """Where it is said that the manager is away, and that it is back: on standard error."""
    log = logging.getLogger("air_executor.command_line")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("air-executor: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
        log.setLevel(logging.INFO)
    return log


def store_of(jobs: Jobs) -> JobStore | None:
    """The files of a job filesystem of this machine; None if it is on another one."""
    from airflow_provider_air_executor.jobs.file_jobs import FileJobs

    return jobs.store if isinstance(jobs, FileJobs) else None


def flags() -> str:
    """The flags with which another command works on the same jobs."""
    opened = click.get_current_context().find_root().obj
    return opened.flags if isinstance(opened, Opened) else ""


def waiting(jobs: Jobs, seconds: float | None = None) -> Jobs:
    """The same jobs for a command that waits: an outage of the other machine does not end it.

    :param seconds: for at most so long; None: for ever.
    """
    return jobs.with_patience(seconds)
