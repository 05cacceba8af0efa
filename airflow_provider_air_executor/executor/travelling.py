"""Which of Airflow's settings travel to another machine, for the supervisor and the task there.

They are in the attached file of the workload, which only its owner can read, and never among the variables of the job.
Nothing travels by which one could speak for Airflow: the address of its database, its keys, the options that it calls
sensitive, and commands or names under which these are to be found. Connections and variables from this process's
environment do travel, as far as tasks find them there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from functools import cache

from airflow.configuration import AIRFLOW_HOME, conf

from airflow_provider_air_executor.hooks import DATABASE_VARIABLE, NO_DATABASE, secret_variables

# Sections of the server alone, and our own settings of the scheduler.
_NOT_OF_TASKS = {"api_auth", "database", "secrets", "celery"}
_NOT_OPTIONS = {("air_executor", "queues")}
_STORED = ("AIRFLOW_CONN_", "AIRFLOW_VAR_")
_SOURCES = ("airflow.cfg", "env var")  # of settings that somebody has set, as Airflow calls them


def variables(chosen: bool | Collection[str], server: str, *, shares_home: bool) -> dict[str, str]:
    """Environment variables that give another machine the settings of this Airflow.

    :param chosen: whether they travel; or the names of those that do, see :func:`check_name`.
    :param server: the address of the execution API as it is seen there.
    :param shares_home: whether the paths of this machine hold there.
    """
    if chosen is False:
        return {}
    found = {name: value for name, value in _all().items() if chosen is True or _is_chosen(name, chosen)}
    found[DATABASE_VARIABLE] = NO_DATABASE
    found["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = server
    if shares_home:
        # A file of the home would be read there besides, with all that is secret in it.
        found.update(AIRFLOW_HOME=AIRFLOW_HOME, AIRFLOW_CONFIG=os.devnull)
    return found


def check_name(name: str) -> None:
    """Check the name of something that travels: ``section``, ``section.option``, or that of a variable.

    :raises ValueError: if it never travels.
    """
    if name.startswith(_STORED):
        return
    section, _, option = name.partition(".")
    is_secret = bool(option) and secret_variables().fullmatch(_variable(section, option)) is not None
    if section.lower() in _NOT_OF_TASKS or is_secret:
        raise ValueError(f"settings: {name} never travels: with it a task could speak for Airflow")


def _is_chosen(variable: str, chosen: Collection[str]) -> bool:
    if variable.startswith(_STORED):
        return variable in chosen
    section, _, option = variable.removeprefix("AIRFLOW__").lower().partition("__")
    return section in chosen or f"{section}.{option}" in chosen


@cache
def _all() -> dict[str, str]:
    """All that may travel. The configuration does not change while this process runs."""
    found = {name: value for name, value in os.environ.items() if name.startswith(_STORED)}
    secret = secret_variables()
    for section, option in _set_options():
        name = _variable(section, option)
        value = None if secret.fullmatch(name) else conf.get(section, option, fallback=None, suppress_warnings=True)
        if value is not None:
            found[name] = value
    return found


def _set_options() -> Iterator[tuple[str, str]]:
    """The options that somebody has set. Values come from elsewhere, for these here are not expanded."""
    # What commands and secrets backends give is sensitive, and left out.
    sections = conf.as_dict(display_source=True, display_sensitive=True, include_cmds=False, include_secret=False)
    for section, options in sections.items():
        for option, found in options.items():
            if found[1] in _SOURCES and section not in _NOT_OF_TASKS and (section, option) not in _NOT_OPTIONS:
                yield section, option


def _variable(section: str, option: str) -> str:
    return f"AIRFLOW__{section.replace('.', '_').upper()}__{option.upper()}"
