"""The manager's settings: from flags, then the environment, then ``config.yaml``, then the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import ModuleName, RunnerName, Seconds
from airflow_provider_air_executor.jobs.store import DEFAULT_BASE_PATH

ENVIRONMENT_PREFIX = "AIR_EXECUTOR_"
_MAX_CHARACTERS = 1_000_000  # of a configuration file
_MAX_DEPTH = 50
_MAX_NODES = 100_000


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _split(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


class Settings(BaseModel):
    """How a manager works.

    :param poll_interval: seconds between two passes over everything, for file systems that do not notify;
        also how long a file may stay half-written before its job fails. Default 5.
    :param task_timeout: seconds an attempt may take if its task does not say; default: no limit.
    :param max_concurrent_runners: how many tasks run at a time on this machine, over all jobs; default 10.
    :param base_path: the job filesystem; default ``.air-executor``, in the working directory.
    :param log_level: ``DEBUG``, ``INFO``, ``WARNING``, ``ERROR`` or ``CRITICAL``.
    :param log_format: ``console`` or ``json``, one object a line.
    :param kill_grace: seconds between SIGTERM and SIGKILL; default 10.
    :param max_log_size: bytes that a task's log may grow to before the task is killed; default: no limit.
    :param idle_timeout: seconds without any work after which the manager ends; default: it does not end.
    :param preload: modules that the fork server imports for tasks with ``runner: warm``, as a list or separated by
        commas; it is then started at once. Default: the first such task starts it, and names the modules.
    :param runner: what runs the tasks that do not say, of jobs that do not say; default ``local``.
    :param runners: the options of each engine but the local one, by its name: ``max_concurrent`` (how many
        tasks it is given at a time; default 1000), and those that the engine's page describes. In ``config.yaml`` only.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    poll_interval: Annotated[float, Field(ge=0.05, le=3600)] = 5.0
    task_timeout: Seconds | None = None
    max_concurrent_runners: Annotated[int, Field(ge=1, le=10_000)] = 10
    base_path: Annotated[str, Field(min_length=1)] = DEFAULT_BASE_PATH
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["console", "json"] = "console"
    kill_grace: Annotated[float, Field(ge=0, le=3600)] = 10.0
    max_log_size: Annotated[int, Field(ge=1)] | None = None
    idle_timeout: Seconds | None = None
    preload: Annotated[tuple[ModuleName, ...], BeforeValidator(_split)] = ()
    runner: RunnerName = "local"
    runners: dict[RunnerName, dict[str, Any]] = {}


def load_settings(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> tuple[Settings, list[str]]:
    """Put the settings together.

    :param flags: what was given on the command line; None stands for "not given".
    :param config: the configuration file; default: ``config.yaml`` in the base path, if there is one.
    :return: the settings, and a warning for each key of the file that is not known.
    :raises SettingsError: naming the setting that is not valid, and where it was set.
    """
    given = {key: (value, f"--{key.replace('_', '-')}") for key, value in flags.items() if value is not None}
    for key in Settings.model_fields.keys() - {"runners"}:
        variable = ENVIRONMENT_PREFIX + key.upper()
        if environment.get(variable):
            given.setdefault(key, (environment[variable], variable))
    path = config or Path(files.expanded(str(given.get("base_path", (DEFAULT_BASE_PATH, ""))[0]))) / "config.yaml"
    warnings = []
    for key, value in _read_config(path, required=config is not None).items():
        if key not in Settings.model_fields:
            warnings.append(f"{path}: there is no setting {key!r}; it is ignored")
        elif value is not None:
            given.setdefault(key, (value, str(path)))
    try:
        settings = Settings.model_validate({key: value for key, (value, _) in given.items()})
    except ValidationError as error:
        raise SettingsError(_sentence(error, given)) from None
    return settings, warnings


def _read_config(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise SettingsError(f"{path} is not a file")
        with open(path, encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
    except FileNotFoundError:
        if required:
            raise SettingsError(f"there is no configuration file {path}") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from None
    if len(text) > _MAX_CHARACTERS:
        raise SettingsError(f"{path} is longer than {_MAX_CHARACTERS} characters")
    import yaml

    try:
        _check_size(text, path)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must be a mapping of settings to values, not a {type(content).__name__}")
    return content


def _check_size(text: str, path: Path) -> None:
    """Refuse what would take for ever to put together.

    :raises SettingsError: if it is nested too deep, or is too large with all that it refers to.
    """
    import yaml

    sizes: dict[str | None, int] = {}  # of what has a name, which may be referred to
    open_nodes: list[tuple[str | None, int]] = []
    size = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            # Within itself it has no size yet.
            size += sizes.get(event.anchor, _MAX_NODES)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, size))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor] = size - before
        else:
            size += 1
            sizes[getattr(event, "anchor", None)] = 1
        if len(open_nodes) > _MAX_DEPTH:
            raise SettingsError(f"{path} is nested deeper than {_MAX_DEPTH}")
        if size > _MAX_NODES:
            raise SettingsError(f"{path} has more than {_MAX_NODES} values, with all that it refers to")


def _sentence(error: ValidationError, given: Mapping[str, tuple[Any, str]]) -> str:
    problems = []
    for item in error.errors(include_url=False, include_context=False):
        key = str(item["loc"][0])
        value, source = given[key]
        problems.append(f"{key} = {value!r} (from {source}) is not valid: {item['msg']}")
    return "; ".join(problems)
