"""Files that describe jobs, JSON or YAML, as people write them."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any, BinaryIO

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.jobs.names import made_up_name

_YAML = (".yaml", ".yml")


def read_jobs(file: BinaryIO, name: str | None) -> list[dict[str, Any]]:
    """The jobs of a file: one, or as many as a YAML file has documents.

    :param name: of the job, whatever the file says. A job without any gets a made-up one.
    :return: what :meth:`~airflow_provider_air_executor.jobs.store.JobStore.submit` takes, for each.
    :raises InvalidJobError: naming the file, and the field.
    """
    jobs = [_checked(content, file.name) for content in _load(file)]
    if name is not None and len(jobs) > 1:
        raise exceptions.InvalidJobError(f"{file.name} has {len(jobs)} jobs, and there is one --name")
    for job in jobs:
        if name is not None:
            job["name"] = name
        elif job.get("name") is None:
            job["name"] = made_up_name("job" if file.name in ("-", "<stdin>") else PurePath(file.name).stem)
    return jobs


def _load(file: BinaryIO) -> list[Any]:
    data = file.read()
    suffix = PurePath(file.name).suffix.lower()
    if suffix in _YAML or (suffix != ".json" and not data.lstrip().startswith((b"{", b"["))):
        return _load_yaml(file.name, data)
    try:
        return [json.loads(data)]
    except ValueError as error:
        raise exceptions.InvalidJobError(f"{file.name} is not JSON: {error}") from None


def _load_yaml(file_name: str, data: bytes) -> list[Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """What looks like a date stays the text that it is."""

        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
            for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        return list(yaml.load_all(data, Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise exceptions.InvalidJobError(
            f"{file_name} is neither JSON nor YAML: {exceptions.why_unreadable(error)}"
        ) from None


def _checked(content: Any, file_name: str) -> dict[str, Any]:
    from airflow_provider_air_executor.jobs.spec import FIELDS

    if not isinstance(content, dict):
        raise exceptions.InvalidJobError(f"{file_name}: must be an object with name and tasks")
    allowed = {"name", "tasks", *FIELDS}
    for key in content.keys() - allowed:
        raise exceptions.InvalidJobError(f"{key}: there is no such field; a job has {', '.join(sorted(allowed))}")
    if "tasks" not in content:
        raise exceptions.InvalidJobError(f"tasks: the field is missing in {file_name}")
    return content
