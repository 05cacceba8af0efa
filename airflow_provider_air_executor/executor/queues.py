"""The queues of the executor, and the options of a task: what runs a task, and what it finds there.

A queue that names a runner other than ``local`` hands its tasks to a cluster: each becomes a batch job or a Pod.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.executor import travelling
from airflow_provider_air_executor.jobs.engine_options import has_valid_options
from airflow_provider_air_executor.jobs.models import Resources
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.validation import describe_validation_error
from airflow_provider_air_executor.system.environment import VARIABLE
from airflow_provider_air_executor.workload import WORKLOAD_FILE

SECTION = "air_executor"
LOCAL = "local"  # the machine of the manager, where tasks run warm
MEMORY = "1Gi"  # of a task on a cluster that does not say: a cold one takes some 300 MB before it does anything
_ENGINES = ("slurm", "kubernetes")  # whose options a task may have
_MAX_TASKS = 10_000
_MEMORY_OPTIONS = {"mem", "mem-per-cpu", "mem-per-gpu"}  # of sbatch
_SETTINGS = {
    *("base_path", "max_running_tasks", "runner", "resources", *_ENGINES),
    *("env", "settings", "server", "python", "prologue", "image"),
}
_OPTIONS = {"env", "timeout", "priority", "runner", "resources", *_ENGINES}


@dataclass(frozen=True)
class Queue:
    """A queue of Airflow's with a job filesystem, and what runs its tasks.

    :param max_running_tasks: how many tasks the manager hands to the runner at a time; None: what the manager's own
        settings say.
    :param runner: what runs tasks that do not say.
    :param fields: ``resources``, ``slurm`` and ``kubernetes`` of tasks that do not say.
    :param env: environment variables of the tasks.
    :param settings: whether Airflow's settings travel to a cluster, or which do.
    :param server: the address of the execution API there; None: that of the configuration.
    :param python: the Python there; None: this one, or that of the image.
    :param prologue: lines that a shell runs there before each task.
    :param image: of Apptainer, in which tasks run there.
    """

    store: JobStore
    max_running_tasks: int | None
    runner: str = LOCAL
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    settings: bool | tuple[str, ...] = True
    server: str | None = None
    python: str | None = None
    prologue: tuple[str, ...] = ()
    image: str | None = None

    @classmethod
    def of(cls, name: str, base_path: str, limit: int, given: Mapping[str, Any]) -> Queue:
        """Read the settings of a queue.

        :param base_path: the default.
        :param limit: of the tasks that run at a time on this machine, if the queue does not say.
        :raises ValueError: naming the one that is not valid.
        """
        where = f"[{SECTION}] queues: {name!r}"
        for key in given.keys() - _SETTINGS:
            raise ValueError(f"[{SECTION}] queues: {name!r} has no setting {key!r}")
        try:
            runner = _runner(given.get("runner", LOCAL))
            queue = cls(
                JobStore(_absolute(given.get("base_path") or base_path)),
                _limit(given.get("max_running_tasks", limit if runner == LOCAL else None)),
                runner,
                fields={key: _mapping(given, key) for key in ("resources", *_ENGINES) if given.get(key) is not None},
                env=_env(given.get("env") or {}),
                settings=_settings(given.get("settings", True)),
                server=_server(given.get("server")),
                python=_word(given, "python"),
                prologue=_prologue(given.get("prologue") or ()),
                image=_word(given, "image"),
            )
            _check_fields(queue.fields)
        except (ValueError, InvalidJobError) as error:
            raise ValueError(f"{where}: {error}") from None
        if queue.image and queue.runner == "kubernetes":
            raise ValueError(f"{where}: image is one of Apptainer; that of Pods is in kubernetes")
        return queue

    @property
    def is_on_cluster(self) -> bool:
        """Whether tasks that do not say run on other machines."""
        return self.runner != LOCAL

    def placement(self, options: Options) -> Placement:
        """What runs a task with these options, and with what."""
        runner = options.runner or self.runner
        fields = {
            key: {**self.fields.get(key, {}), **getattr(options, key)}
            for key in ("resources", *_ENGINES)
            if key in self.fields or getattr(options, key)
        }
        if runner != LOCAL:
            by_option = {key.replace("_", "-") for key in fields.get("slurm", {})} if runner == "slurm" else set()
            if by_option.isdisjoint(_MEMORY_OPTIONS):
                fields["resources"] = {"memory": MEMORY, **fields.get("resources", {})}
        if runner == "kubernetes":  # whose Pods do not see the directory of the job
            fields["kubernetes"] = {**fields.get("kubernetes", {}), "attached_files": [WORKLOAD_FILE]}
        return Placement(runner, fields, {**self.env, **options.env})


@dataclass(frozen=True)
class Placement:
    """What runs one task, and with what.

    :param fields: ``resources``, ``slurm`` and ``kubernetes`` of its job's task.
    :param env: its environment variables.
    """

    runner: str = LOCAL
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_on_cluster(self) -> bool:
        """Whether it runs on another machine."""
        return self.runner != LOCAL


@dataclass
class Options:
    """``executor_config["air_executor"]`` of a task: how its job is to be run. They refine those of its queue.

    :param env: environment variables added to the queue's. On this machine the task then starts cold.
    :param timeout: seconds from its start after which it is killed.
    :param priority: in place of the task's priority weight.
    :param runner: ``local``, ``slurm``, ``kubernetes``, or another one that is installed.
    :param resources: what it needs, as for a task of a job.
    :param slurm: options of ``sbatch``.
    :param kubernetes: options of its Pod.
    """

    env: dict[str, str] = field(default_factory=dict)
    timeout: float | None = None
    priority: int | None = None
    runner: str | None = None
    resources: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, Any] = field(default_factory=dict)
    kubernetes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, executor_config: Any) -> Options:
        """Read the options of a task.

        :raises InvalidJobError: naming the option that is not valid. Most values are checked on submission.
        """
        given = (executor_config or {}).get(SECTION) or {}
        where = f"executor_config[{SECTION!r}]"
        if not isinstance(given, Mapping):
            raise InvalidJobError(f"{where} must be a mapping, not {type(given).__name__}")
        for name in given.keys() - _OPTIONS:
            raise InvalidJobError(f"{where}: there is no option {name!r}")
        priority = given.get("priority")
        if priority is not None and (isinstance(priority, bool) or not isinstance(priority, int)):
            raise InvalidJobError(f"{where}: priority must be a whole number, not {priority!r}")
        try:
            runner = None if given.get("runner") is None else _runner(given["runner"])
            mappings = {key: _mapping(given, key) if given.get(key) else {} for key in ("env", "resources", *_ENGINES)}
        except ValueError as error:
            raise InvalidJobError(f"{where}: {error}") from None
        return cls(timeout=given.get("timeout"), priority=priority, runner=runner, **mappings)


def is_of_this_machine(server: str) -> bool:
    """Whether an address means another machine wherever it is used."""
    host = urlsplit(server).hostname or ""
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")  # noqa: S104 - it is not listened on


def _absolute(path: Any) -> str:
    if not isinstance(path, str) or not os.path.isabs(path):
        raise ValueError(f"base_path must be an absolute path, not {path!r}")
    return path


def _limit(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_TASKS):
        raise ValueError(f"max_running_tasks must be a whole number from 1 to {_MAX_TASKS}, not {value!r}")
    return value


def _runner(value: Any) -> str:
    known = sorted({LOCAL, *(point.name for point in entry_points(group="air_executor.runners"))})
    if value == "warm":
        return LOCAL
    if value not in known:
        raise ValueError(f"there is no runner {value!r}; there are {', '.join(known)}")
    return str(value)


def _mapping(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(given[key], Mapping):
        raise ValueError(f"{key} must be a mapping, not {type(given[key]).__name__}")
    return dict(given[key])


def _check_fields(fields: Mapping[str, Mapping[str, Any]]) -> None:
    try:
        Resources.model_validate(fields.get("resources", {}))
    except ValidationError as error:
        raise ValueError(describe_validation_error(error, "resources")) from None
    for engine in _ENGINES:
        if engine in fields:
            has_valid_options(engine, fields[engine], engine, engine)


def _env(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"env must be a mapping, not {type(value).__name__}")
    for name, text in value.items():
        if not VARIABLE.fullmatch(name):
            raise ValueError(f"env: {name!r} cannot be the name of a variable")
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"env: {name} must be a text")
    return dict(value)


def _settings(value: Any) -> bool | tuple[str, ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"settings must be true, false, or a list of names, not {value!r}")
    for name in value:
        travelling.check_name(name)
    return tuple(value)


def _server(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname:
        raise ValueError(f"server must be the address of the execution API, http://HOST:PORT/execution/, not {value!r}")
    return value


def _word(given: Mapping[str, Any], key: str) -> str | None:
    value = given.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value or not value.isprintable() or value != value.strip():
        raise ValueError(f"{key} must be a name or a path, not {value!r}")
    if "/" in value and not os.path.isabs(value) and "://" not in value:
        raise ValueError(f"{key} must be an absolute path, not {value!r}")
    return value


def _prologue(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(line, str) and "\0" not in line for line in value):
        raise ValueError("prologue must be a list of lines")
    return tuple(value)
