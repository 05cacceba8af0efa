"""The options of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, Field, ValidationError

from airflow_provider_air_executor.engines.kubernetes.task_options import KubernetesOptions
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.models import Seconds
from airflow_provider_air_executor.jobs.validation import describe_validation_error


class EngineOptions(KubernetesOptions):
    """The options in ``config.yaml`` under ``runners.kubernetes``.

    These are the defaults of tasks, see :class:`KubernetesOptions`, and:

    :param kubeconfig: path of the file with the address of the API server and our credentials; default:
        ``KUBECONFIG``, or as a Pod of the cluster itself, or ``~/.kube/config``.
    :param context: the context of that file; default: its current one.
    :param pod_template: as for a task, or the path of a YAML file.
    :param share_job_files: whether the base path is mounted in the Pods at the same path; then they have the
        directory of their job in ``AIR_EXECUTOR_JOB_DIR``. Default false.
    :param lost_after: seconds for which a node may not answer before its tasks are lost; default 60.
    :param fenced: whether such a node is then known to be off, so that what it ran may be tried again; default false.
    :param stuck_after: seconds for which a Pod may want for its image or a secret before its task fails; default 60.
    :param start_within: seconds for which a node may take to start a Pod, pulling its image included; default 900.
    :param unschedulable_after: seconds for which a Pod may find no node before its task fails; default: for ever, if a
        node could run it that is full now.
    :param autoscaled: whether nodes are made when they are needed, so that those which are there now do not say what
        can run; default false.
    :param ttl: seconds for which a Pod is kept after its end; default 60.
    :param log_streams: how many tasks have their output read while they run; that of the others comes at their end.
        Default 200.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kubeconfig: str | None = None
    context: str | None = None
    pod_template: dict[str, Any] | str | None = None  # type: ignore[assignment]
    share_job_files: bool = False
    lost_after: Seconds = 60.0
    fenced: bool = False
    stuck_after: Seconds = 60.0
    start_within: Seconds = 900.0
    unschedulable_after: Seconds | None = None
    autoscaled: bool = False
    ttl: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    log_streams: int = Field(default=200, ge=1)


def read_options(given: Mapping[str, Any]) -> EngineOptions:
    """The options of the engine, with the Pod template that they may name.

    :raises SettingsError: naming each that is not valid.
    """
    try:
        options = EngineOptions.model_validate(dict(given))
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, "runners.kubernetes")) from None
    if not isinstance(options.pod_template, str):
        return options
    path = Path(options.pod_template).expanduser()
    try:
        template = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"runners.kubernetes.pod_template: {path} cannot be read: {error}") from None
    if not isinstance(template, dict):
        raise SettingsError(f"runners.kubernetes.pod_template: {path} is not the description of a Pod")
    return options.model_copy(update={"pod_template": template})
