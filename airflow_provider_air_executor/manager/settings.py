"""The manager's settings: from flags, then the environment, then ``config.yaml``, then the defaults."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Bytes, Count, Cpus, ModuleName, RunnerName, Seconds
from airflow_provider_air_executor.jobs.store import DEFAULT_BASE_PATH
from airflow_provider_air_executor.manager.metrics_server import parse_address

ENVIRONMENT_PREFIX = "AIR_EXECUTOR_"
_MAX_CHARACTERS = 1_000_000  # of a configuration file
_MAX_DEPTH = 50
_MAX_NODES = 100_000
_EXAMPLE = '{"cpus": 8, "memory": "32Gi", "gpus": ["0", "1"]}'
_GPU_ID = re.compile(r"[\w./:-]{1,200}", re.ASCII)


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _split(value: Any) -> Any:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _text(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _limits(value: Any) -> Any:
    """Limits by the names of engines, also from a text: ``slurm=500,kubernetes=20``."""
    if not isinstance(value, str):
        return value
    pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
    return {name.strip(): limit.strip() for name, _, limit in pairs}


def _address(value: str) -> str:
    parse_address(value)
    return value


def _json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"must be JSON, such as {_EXAMPLE}: {error}") from None


def _gpus(value: Any) -> Any:
    """How many, or which: their ids may be numbers, and in one text."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() else tuple(_split(value))
    return tuple(str(one) for one in value) if isinstance(value, list) else value


def _ids(value: int | tuple[str, ...] | None) -> int | tuple[str, ...] | None:
    for one in value if isinstance(value, tuple) else ():
        if not _GPU_ID.fullmatch(one):
            raise ValueError(f"{one!r} is no id of a graphics processor: an index, or a UUID")
    return value


class CapacitySettings(BaseModel):
    """What tasks with ``resources`` may have of this machine, all together.

    :param cpus: processors; default: those that this process may use, by its affinity and its control groups.
    :param memory: bytes, or a text such as ``"64Gi"``; default: that of the machine, or of its control groups.
    :param gpus: graphics processors: how many, or the list of their ids (index, UUID, or UUID of a MIG device);
        default: those that ``nvidia-smi -L`` lists, or else those that there are files for. ``CUDA_VISIBLE_DEVICES`` in
        the environment of the manager limits them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: Cpus | None = None
    memory: Bytes | None = None
    gpus: Annotated[Count | tuple[str, ...] | None, BeforeValidator(_gpus), AfterValidator(_ids)] = None


Days = Annotated[float, Field(gt=0, le=36_600, allow_inf_nan=False)]

#: The defaults of embedded managers, where they are others than those of :class:`Settings`.
EMBEDDED: Mapping[str, Any] = {"keep_jobs": 1000, "keep_days": 30, "keep_failed_days": 90}


class Settings(BaseModel):
    """How a manager works.

    :param poll_interval: seconds between two passes over everything, for file systems that do not notify;
        also how long a file may stay half-written before its job fails. Default 5.
    :param task_timeout: seconds an attempt may take if its task does not say; default: no limit.
    :param max_concurrent_runners: how many tasks run at a time on this machine, over all jobs; default 10.
    :param capacity: what tasks with ``resources`` have of this machine: ``cpus``, ``memory`` and ``gpus``, a mapping
        or JSON. Default: all that the machine, or its control group, has.
    :param base_path: the job filesystem; default ``.air-executor``, in the working directory.
    :param log_level: ``DEBUG``, ``INFO``, ``WARNING``, ``ERROR`` or ``CRITICAL``.
    :param log_format: ``console`` or ``json``, one object a line.
    :param kill_grace: seconds between SIGTERM and SIGKILL; default 10.
    :param max_log_size: bytes that a task's log may grow to before the task is killed; default: no limit.
    :param host_timeout: seconds without a sign of life after which a task counts as lost that an earlier manager has
        started on another machine, where this one cannot see it; default 300.
    :param idle_timeout: seconds without any work after which the manager ends; default: it does not end.
    :param keep_jobs: how many jobs that have ended are kept; the oldest completed ones are removed first, failed ones
        only if there are more than so many of these alone. Default: no limit; 1,000 for an embedded manager.
    :param keep_days: days after which a job that has completed is removed; default: never; 30 for an embedded manager.
    :param keep_failed_days: the same for a job that has failed; default: as ``keep_days``; 90 for an embedded manager.
    :param metrics_address: where metrics are served as OpenMetrics text: ``HOST:PORT``, ``PORT`` (for this machine
        only), or the path of a Unix socket, with a slash, from the base path on: ``./metrics.sock``. Default: nowhere.
    :param metrics_otel: whether metrics are sent by OpenTelemetry; default: if it is installed, and
        ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`` is set.
    :param listen: where a server answers clients on other machines, besides its Unix socket, as a list or separated by
        commas: ``HOST:PORT``, or the path of another Unix socket, with a slash. Default: a manager has no server.
    :param tls_cert: the file of the server's certificate, in PEM, with the intermediate ones that belong to it.
    :param tls_key: the file of its key, without a password.
    :param client_ca: a file of authorities one of which must have signed the certificate of each client; default:
        clients need none.
    :param insecure_plain_text: whether the server answers without TLS also where others can overhear it; default: no.
    :param trusted_proxies: addresses of proxies that are believed when they name the address of their client, as a list
        or separated by commas; default: none.
    :param preload: modules that the fork server imports for tasks with ``runner: warm``, as a list or separated by
        commas; it is then started at once. The word ``auto`` among them has the manager learn what tasks import, and
        import what is worth it ahead of the next ones. Default: the first such task starts it, and names the modules.
    :param runner: what runs the tasks that do not say, of jobs that do not say; default ``local``.
    :param max_concurrent: how many tasks each engine but the local one is given at a time, in place of the option
        ``max_concurrent`` in ``runners``, by its name: ``slurm=500,kubernetes=20``.
    :param runners: the options of each engine but the local one, by its name: ``max_concurrent`` (how many
        tasks it is given at a time; default 1000), and those that the engine's page describes. In ``config.yaml`` only.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    poll_interval: Annotated[float, Field(ge=0.05, le=3600)] = 5.0
    task_timeout: Seconds | None = None
    max_concurrent_runners: Annotated[int, Field(ge=1, le=10_000)] = 10
    capacity: Annotated[CapacitySettings, BeforeValidator(_json)] = CapacitySettings()
    base_path: Annotated[str, Field(min_length=1)] = DEFAULT_BASE_PATH
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)] = "INFO"
    log_format: Literal["console", "json"] = "console"
    kill_grace: Annotated[float, Field(ge=0, le=3600)] = 10.0
    max_log_size: Annotated[int, Field(ge=1)] | None = None
    host_timeout: Seconds = 300.0
    idle_timeout: Seconds | None = None
    keep_jobs: Annotated[int, Field(ge=1, le=10**9)] | None = None
    keep_days: Days | None = None
    keep_failed_days: Days | None = None
    metrics_address: Annotated[str, BeforeValidator(_text), AfterValidator(_address)] | None = None
    metrics_otel: bool | None = None
    listen: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    client_ca: str | None = None
    insecure_plain_text: bool = False
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    preload: Annotated[tuple[ModuleName, ...], BeforeValidator(_split)] = ()
    runner: RunnerName = "local"
    max_concurrent: Annotated[
        dict[RunnerName, Annotated[int, Field(ge=1, le=1_000_000)]], BeforeValidator(_limits)
    ] = {}
    runners: dict[RunnerName, dict[str, Any]] = {}


def load_settings(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    defaults: Mapping[str, Any] = {},
    environment: Mapping[str, str] = os.environ,
) -> tuple[Settings, list[str]]:
    """Put the settings together.

    :param flags: what was given on the command line; None stands for "not given".
    :param config: the configuration file; default: ``config.yaml`` in the base path, if there is one.
    :param defaults: other defaults than those of :class:`Settings`.
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
    for key, value in defaults.items():
        given.setdefault(key, (value, "the defaults"))
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
