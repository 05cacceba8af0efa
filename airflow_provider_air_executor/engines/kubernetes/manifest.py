"""The manifest of the Pod of one attempt, and what manifests of several attempts have in common with it."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.kubernetes.task_options import KubernetesOptions
from airflow_provider_air_executor.engines.protocol import Attempt, SpawnError
from airflow_provider_air_executor.engines.shim import FIND, task_variables
from airflow_provider_air_executor.jobs.models import Resources, Task
from airflow_provider_air_executor.system.environment import RUN_VARIABLE

OWNER_LABEL = "air-executor/owner"  # the installation to which a Pod belongs
RUN_LABEL = "air-executor/run"  # the token of a Pod
TASK_LABEL = "air-executor/task"
TASKS_ANNOTATION = "air-executor/tasks"  # of a Pod with the script of several attempts
CONTAINER = "task"
ATTACHED_VOLUME = "air-executor-attached"
MESSAGE_PATH = "/dev/termination-log"
# Of a result. Kubernetes keeps 4096 of all that a container says at its end, and less if its Pod has more than three
# containers: 12288 by their number.
MESSAGE_BYTES = 3000

# A task leaves its result in memory, which every container has as a file system that anybody may write to. A volume of
# its own would cost 0.3 s: the kubelet checks only so often whether a volume is mounted.
_RESULTS = "/dev/shm"  # noqa: S108

# Where a container finds the files that are attached to its job. The shim copies them to the directory of the result,
# so that the task can remove them once they are read, and the manager can empty the Secret.
_ATTACHED = "/run/air-executor/attached"
_EVERYONE, _OWNER = 0o444, 0o400  # modes

_SHIM = Path(__file__).with_name("shim")


def shim(name: str) -> str:
    """The script that sh, the first process of a container, runs; see the directory ``shim``.

    :param name: ``one`` or ``batch``.
    """
    lines = [(_SHIM / f"{each}.sh").read_text() for each in ("begin", name)]
    variables = f"ae_say={MESSAGE_PATH} ae_results={_RESULTS} ae_short={MESSAGE_BYTES} ae_attached={_ATTACHED}\n"
    return FIND + variables + re.sub(r"^(#.*)?\n", "", "".join(lines), flags=re.MULTILINE)


SCRIPT = shim("one")
_OF_MOUNT = {"mountPath", "subPath", "readOnly"}
_NOT_IN_LABEL = re.compile(r"[^A-Za-z0-9_.-]+")
_NOT_IN_NAME = re.compile(r"[^a-z0-9]+")


def beginning(token: str) -> bytes:
    """The first line that a container prints.

    :param token: that of its Pod.
    """
    return f"\0air-executor {token} output\n".encode()


def pod_name(attempt: Attempt, token: str) -> str:
    """The name of the Pod of an attempt: readable, and used once."""
    words = [_NOT_IN_NAME.sub("-", word.lower()).strip("-")[:20].strip("-") for word in attempt[:2]]
    return "-".join([word for word in words if word] + [token])


def attempt_annotations(attempt: Attempt) -> dict[str, str]:
    """The annotations that name the attempt of a Pod, or the first of several."""
    return {
        "air-executor/job": attempt.job_name,
        "air-executor/task": attempt.task_id,
        "air-executor/attempt": str(attempt.number),
    }


def container_of(manifest: Mapping[str, Any]) -> str:
    """The name of the container that runs the task."""
    names = [container["name"] for container in manifest["spec"]["containers"]]
    return CONTAINER if CONTAINER in names else str(names[0])


class Installation(NamedTuple):
    """The values that all Pods of one base path have in common.

    :param owner: the value of their label.
    :param namespace: that of Pods whose options and template name none.
    :param shared_path: the base path, if it is mounted in the Pods at the same path.
    """

    owner: str
    namespace: str
    shared_path: str | None = None

    def variables_of(self, attempt: Attempt, output_path: str | None) -> dict[str, str]:
        """The environment variables that describe an attempt to its command; see :func:`task_variables`."""
        directory = f"{self.shared_path}/jobs/{attempt.job_name}" if self.shared_path is not None else None
        return task_variables(attempt, directory, output_path)


def make_manifest(
    attempt: Attempt,
    task: Task,
    options: KubernetesOptions,
    installation: Installation,
    token: str,
) -> dict[str, Any]:
    """The manifest of the Pod in which an attempt runs.

    :param token: that of the Pod.
    :raises SpawnError: if there is no image, or the template is not that of a Pod.
    """
    pod = copy.deepcopy(dict(options.pod_template or {}))
    try:
        spec = pod.setdefault("spec", {})
        metadata = pod.setdefault("metadata", {})
        containers = spec.setdefault("containers", [{}])
        container = next((item for item in containers if item.get("name") == CONTAINER), containers[0])
        container.setdefault("name", CONTAINER)
        _complete_container(container, attempt, task, options, installation, token)
        _complete_spec(spec, options)
        _add_volumes(spec, container, options.volumes or ())
        if options.attached_files and installation.shared_path is None:
            _add_attached(spec, container, pod_name(attempt, token), options.attached_files)
        labels = {**metadata.get("labels", {}), **(options.labels or {})}
        annotations = {**metadata.get("annotations", {}), **(options.annotations or {})}
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise SpawnError(f"kubernetes.pod_template is not that of a Pod: {error!r}") from error
    if not container.get("image"):
        raise SpawnError("there is no image for its Pod: give kubernetes.image, or runners.kubernetes.image")
    labels |= {
        "app.kubernetes.io/managed-by": "air-executor",
        OWNER_LABEL: installation.owner,
        RUN_LABEL: token,
        "air-executor/job": _label(attempt.job_name),
        TASK_LABEL: _label(attempt.task_id),
    }
    annotations |= attempt_annotations(attempt)
    metadata.pop("generateName", None)
    metadata |= {
        "name": pod_name(attempt, token),
        "namespace": options.namespace or metadata.get("namespace") or installation.namespace,
        "labels": labels,
        "annotations": annotations,
    }
    return {**pod, "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _complete_container(
    container: dict[str, Any],
    attempt: Attempt,
    task: Task,
    options: KubernetesOptions,
    installation: Installation,
    token: str,
) -> None:
    output_path = f"{_RESULTS}/air-executor-{token}.json"
    variables = {**(task.env or {}), **installation.variables_of(attempt, output_path)}
    variables[RUN_VARIABLE] = token
    if installation.shared_path is not None:
        variables["AIR_EXECUTOR_BASE_PATH"] = installation.shared_path
    kept = [item for item in container.get("env", ()) if item.get("name") not in variables]
    container["env"] = kept + [{"name": name, "value": literally(value)} for name, value in variables.items()]
    if options.env_from:
        container["envFrom"] = [*container.get("envFrom", ()), *options.env_from]
    words = [task.cwd or "", task.command, *task.args]
    container["command"] = ["/bin/sh", "-c", literally(SCRIPT), "air-executor"]
    container["args"] = [literally(word) for word in words]
    container["terminationMessagePath"] = MESSAGE_PATH
    container["terminationMessagePolicy"] = "File"
    if options.image:
        container["image"] = options.image
    if options.image_pull_policy:
        container["imagePullPolicy"] = options.image_pull_policy
    needed = _needed(task.resources, options.gpu_resource or "nvidia.com/gpu")
    given = container.get("resources") or {}
    resources = {kind: {**(given.get(kind) or {}), **needed[kind]} for kind in ("requests", "limits")}
    if any(resources.values()):
        container["resources"] = {**given, **resources}


def _complete_spec(spec: dict[str, Any], options: KubernetesOptions) -> None:
    spec["restartPolicy"] = "Never"
    spec.setdefault("enableServiceLinks", False)
    if options.service_account:
        spec["serviceAccountName"] = options.service_account
    elif not spec.get("serviceAccountName"):
        spec.setdefault("automountServiceAccountToken", False)
    if options.node_selector:
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **options.node_selector}
    if options.tolerations:
        spec["tolerations"] = [*spec.get("tolerations", ()), *options.tolerations]
    if options.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.image_pull_secrets]
    if options.priority_class:
        spec["priorityClassName"] = options.priority_class


def _add_volumes(spec: dict[str, Any], container: dict[str, Any], given: Iterable[Mapping[str, Any]]) -> None:
    """Add volumes. Each has its mount path beside it in the options, while Kubernetes wants that in the container."""
    volumes, mounts = list(spec.get("volumes", ())), list(container.get("volumeMounts", ()))
    for volume in given:
        volumes.append({key: value for key, value in volume.items() if key not in _OF_MOUNT})
        mounts.append({key: value for key, value in volume.items() if key == "name" or key in _OF_MOUNT})
    spec["volumes"], container["volumeMounts"] = volumes, mounts


def _add_attached(spec: dict[str, Any], container: dict[str, Any], secret: str, names: Iterable[str]) -> None:
    """Mount files of a Secret.

    Kubernetes makes root their owner, and with an ``fsGroup`` the Pod's own group. Without one, as which user an image
    runs need not be known here; only this container sees the files.
    """
    of_pod, of_container = spec.get("securityContext") or {}, container.get("securityContext") or {}
    is_root = of_container.get("runAsUser", of_pod.get("runAsUser")) == 0
    items = [{"key": name, "path": name} for name in names]
    mode = _OWNER if is_root or of_pod.get("fsGroup") is not None else _EVERYONE
    source = {"secretName": secret, "items": items, "defaultMode": mode}
    spec["volumes"] = [*spec["volumes"], {"name": ATTACHED_VOLUME, "secret": source}]
    mount = {"name": ATTACHED_VOLUME, "mountPath": _ATTACHED, "readOnly": True}
    container["volumeMounts"] = [*container["volumeMounts"], mount]


def attached_names(manifest: Mapping[str, Any]) -> list[str]:
    """The files that a Pod gets by a Secret of its own, which has its name."""
    for volume in manifest["spec"].get("volumes") or ():
        if volume["name"] == ATTACHED_VOLUME:
            return [item["key"] for item in volume["secret"]["items"]]
    return []


def _needed(resources: Resources | None, gpu_resource: str) -> dict[str, dict[str, str]]:
    """The resources of a task in the words of Kubernetes. It may use more processors than that while they are free."""
    requests, limits = {}, {}
    if resources is not None:
        if resources.cpus is not None:
            requests["cpu"] = f"{math.ceil(resources.cpus * 1000)}m"
        if resources.memory is not None:
            requests["memory"] = limits["memory"] = str(resources.memory)
        if resources.gpus:
            requests[gpu_resource] = limits[gpu_resource] = str(resources.gpus)
    return {"requests": requests, "limits": limits}


def literally(text: str) -> str:
    """A text in which Kubernetes does not replace ``$(NAME)``."""
    return text.replace("$", "$$")


def _label(text: str) -> str:
    """A text as the value of a label, as far as it can be one."""
    return _NOT_IN_LABEL.sub("-", text).strip("-_.")[:63].strip("-_.")
