"""What the Pod of an attempt looks like, and what the API server says of it."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.protocol import Attempt, SpawnError
from airflow_provider_air_executor.engines.shim import FIND, task_variables
from airflow_provider_air_executor.jobs.models import KubernetesOptions, Resources, Task
from airflow_provider_air_executor.system.environment import RUN_VARIABLE

OWNER_LABEL = "air-executor/owner"  # which installation a Pod belongs to
RUN_LABEL = "air-executor/run"  # which attempt it is, by a word that is used once
TASK_LABEL = "air-executor/task"
TASKS_ANNOTATION = "air-executor/tasks"  # of a Pod that runs several
CONTAINER = "task"
MESSAGE_PATH = "/dev/termination-log"
# Of a result. Kubernetes keeps 4096 of all that a container says at its end, and less if its Pod has more than three
# containers: 12288 by their number.
MESSAGE_BYTES = 3000

# A task leaves its result in memory, which every container has as a file system that anybody may write to. A volume of
# its own would cost 0.3 s: the kubelet looks only so often whether what it has mounted is there.
_RESULTS = "/dev/shm"  # noqa: S108

# Kubernetes sends a signal to the first process alone, which hands it on to all of its group as SIGTERM. It is SIGTERM,
# or the STOPSIGNAL of the image: SIGINT, SIGQUIT, or 37, which is SIGRTMIN+3 (with others, a task may mean its own
# group). Meanwhile sh ignores SIGTERM: it would interrupt the next `wait`. What sh itself prints ("Killed") does not
# belong in the log.
BEGIN_BY_SIGNALS = f"""\
exec 2>/dev/null
ae_ended=
ae_end() {{
trap ae_hit=1 INT QUIT
command trap ae_hit=1 37
trap '' TERM
ae_ended=1 ae_hit=1
kill -TERM 0
trap ae_hit=1 TERM
ae_kill_later
}}
ae_kill_later() {{ :; }}
trap ae_end TERM INT QUIT
command trap ae_end 37
trap ae_hit=1 HUP USR1 USR2 ALRM
ae_say={MESSAGE_PATH}
if [ ! -w {_RESULTS} ]; then export AIR_EXECUTOR_OUTPUT="${{TMPDIR:-/tmp}}/${{AIR_EXECUTOR_OUTPUT##*/}}"; fi
ae_result=$AIR_EXECUTOR_OUTPUT
"""
# A signal interrupts sh while it waits. What `wait` says then may not be the exit code of the command, so it is called
# again. bash does not know any more (-1) how a command has ended that did so in the moment of the signal. `ae_told` is
# whether the command was told to end while it ran.
WAIT = """\
while :; do
ae_hit=
wait $ae_child
ae_now=$?
if [ $ae_now -lt 0 ]; then break; fi
ae_code=$ae_now
if [ -z "$ae_hit" ]; then break; fi
done
ae_told=${ae_ended:-0}"""
FIND_RESULT = 'ae_size=0\nif [ -s "$ae_result" ]; then ae_size=$(($(wc -c <"$ae_result"))); fi'
PRINT_BEGINNING = "printf '\\000air-executor %s output\\n'"  # and the token of the Pod
REMOVE_RESULT = 'if [ -e "$ae_result" ]; then rm -f "$ae_result"; fi'

# What sh, the first process of the container, runs. The directory to run in or nothing, then the command are its
# arguments. What it has to tell stands in the container's termination message: `spawn` and why the command could not
# be started, or `end`, the length of the result, whether the command was told to end, and the result itself if it is
# short. The result comes after the output too, behind a marker, since it may be long, or be cut in the message. The
# marker is always there, so that it is seen if a container runtime has lost the last of the output, as some versions
# do. Another line comes first, so that it is seen if a node has thrown away the first.
_SCRIPT = (
    FIND
    + BEGIN_BY_SIGNALS
    + f"""\
{PRINT_BEGINNING} $AIR_EXECUTOR_RUN
ae_no_directory="spawn the directory $1 (field cwd) does not exist in its Pod"
if [ -n "$1" ]; then CDPATH= cd -- "$1/." || {{ echo "$ae_no_directory" >$ae_say; exit 126; }}; fi
shift
air_executor_find "$1" || {{ printf 'spawn command %s was not found in its Pod\\n' "$1" >$ae_say; exit 127; }}
shift
set -- "$ae_found" "$@"
{{ if [ -n "$ae_ended" ]; then exit 143; fi; exec "$@"; }} </dev/null 2>&1 &
ae_child=$!
{WAIT}
printf '\\000air-executor %s\\n' $AIR_EXECUTOR_RUN
{FIND_RESULT}
echo "end $ae_size $ae_told" >$ae_say
if [ $ae_size -gt 0 ]; then cat "$ae_result"; fi
if [ $ae_size -gt 0 ] && [ $ae_size -le {MESSAGE_BYTES} ]; then cat "$ae_result" >>$ae_say; fi
{REMOVE_RESULT}
exit $ae_code
"""
)

# Why a container waits that is not just about to be started. Some of that may pass.
_STUCK = {
    "ErrImagePull",
    "ImagePullBackOff",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
    "CreatePodSandboxError",
    "RunContainerError",
    "PreStartHookError",
}
_NEVER = {"ErrImageNeverPull", "InvalidImageName"}
_OF_MOUNT = {"mountPath", "subPath", "readOnly"}
_NOT_IN_LABEL = re.compile(r"[^A-Za-z0-9_.-]+")
_NOT_IN_NAME = re.compile(r"[^a-z0-9]+")


def beginning(token: str) -> bytes:
    """What a container prints first of all.

    :param token: that of its Pod.
    """
    return f"\0air-executor {token} output\n".encode()


def end_marker(token: str) -> bytes:
    """What comes after the output of a task, and before its result if that is long.

    It does not begin with a newline, so that the last line of the output need not be held back.
    """
    return f"\0air-executor {token}\n".encode()


def pod_name(attempt: Attempt, token: str) -> str:
    """The name of the Pod of an attempt: readable, and used once."""
    words = [_NOT_IN_NAME.sub("-", word.lower()).strip("-")[:20].strip("-") for word in attempt[:2]]
    return "-".join([word for word in words if word] + [token])


def attempt_annotations(attempt: Attempt) -> dict[str, str]:
    """What a Pod says of its attempt, or of the first of several."""
    return {
        "air-executor/job": attempt.job_name,
        "air-executor/task": attempt.task_id,
        "air-executor/attempt": str(attempt.number),
    }


def container_of(manifest: Mapping[str, Any]) -> str:
    """The name of the container that runs the task."""
    names = [container["name"] for container in manifest["spec"]["containers"]]
    return CONTAINER if CONTAINER in names else str(names[0])


def make_manifest(
    attempt: Attempt,
    task: Task,
    options: KubernetesOptions,
    *,
    owner: str,
    token: str,
    namespace: str,
    shared: str | None,
) -> dict[str, Any]:
    """The Pod in which an attempt runs.

    :param owner: the installation that it belongs to.
    :param token: by which the attempt is known.
    :param namespace: that of Pods which do not say.
    :param shared: the base path, if the job filesystem is there in the Pod too.
    :raises SpawnError: if something is missing.
    """
    pod = copy.deepcopy(dict(options.pod_template or {}))
    try:
        spec = pod.setdefault("spec", {})
        metadata = pod.setdefault("metadata", {})
        containers = spec.setdefault("containers", [{}])
        container = next((item for item in containers if item.get("name") == CONTAINER), containers[0])
        container.setdefault("name", CONTAINER)
        _complete_container(container, attempt, task, options, token, shared)
        _complete_spec(spec, options)
        _add_volumes(spec, container, options.volumes or ())
        labels = {**metadata.get("labels", {}), **(options.labels or {})}
        annotations = {**metadata.get("annotations", {}), **(options.annotations or {})}
    except (AttributeError, TypeError, IndexError, KeyError) as error:
        raise SpawnError(f"kubernetes.pod_template is not that of a Pod: {error!r}") from error
    if not container.get("image"):
        raise SpawnError("there is no image for its Pod: give kubernetes.image, or runners.kubernetes.image")
    labels |= {
        "app.kubernetes.io/managed-by": "air-executor",
        OWNER_LABEL: owner,
        RUN_LABEL: token,
        "air-executor/job": _label(attempt.job_name),
        TASK_LABEL: _label(attempt.task_id),
    }
    annotations |= attempt_annotations(attempt)
    metadata.pop("generateName", None)
    metadata |= {
        "name": pod_name(attempt, token),
        "namespace": options.namespace or metadata.get("namespace") or namespace,
        "labels": labels,
        "annotations": annotations,
    }
    return {**pod, "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _complete_container(
    container: dict[str, Any],
    attempt: Attempt,
    task: Task,
    options: KubernetesOptions,
    token: str,
    shared: str | None,
) -> None:
    directory = f"{shared}/jobs/{attempt.job_name}" if shared is not None else None
    output_path = f"{_RESULTS}/air-executor-{token}.json"
    variables = {**(task.env or {}), **task_variables(attempt, directory, output_path)}
    variables[RUN_VARIABLE] = token
    if shared is not None:
        variables["AIR_EXECUTOR_BASE_PATH"] = shared
    kept = [item for item in container.get("env", ()) if item.get("name") not in variables]
    container["env"] = kept + [{"name": name, "value": literally(value)} for name, value in variables.items()]
    if options.env_from:
        container["envFrom"] = [*container.get("envFrom", ()), *options.env_from]
    words = [task.cwd or "", task.command, *task.args]
    container["command"] = ["/bin/sh", "-c", literally(_SCRIPT), "air-executor"]
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
    """Each volume of the options says where it is mounted, which Kubernetes wants to hear at another place."""
    volumes, mounts = list(spec.get("volumes", ())), list(container.get("volumeMounts", ()))
    for volume in given:
        volumes.append({key: value for key, value in volume.items() if key not in _OF_MOUNT})
        mounts.append({key: value for key, value in volume.items() if key == "name" or key in _OF_MOUNT})
    spec["volumes"], container["volumeMounts"] = volumes, mounts


def _needed(resources: Resources | None, gpu_resource: str) -> dict[str, dict[str, str]]:
    """What a task needs, in the words of Kubernetes. Of processors it may have more if nobody else needs them."""
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
    """A text that Kubernetes does not read ``$(NAME)`` in."""
    return text.replace("$", "$$")


def _label(text: str) -> str:
    """A text as the value of a label, as far as it can be one."""
    return _NOT_IN_LABEL.sub("-", text).strip("-_.")[:63].strip("-_.")


class Ending(NamedTuple):
    """How a container has ended."""

    exit_code: int
    reason: str
    message: str
    ended_at: datetime | None


class Status(NamedTuple):
    """How a Pod stands."""

    uid: str
    node: str
    phase: str
    started_at: datetime | None = None  # when the container was started
    ending: Ending | None = None
    waits_for: str = ""  # in words
    stuck: str = ""  # what keeps it from starting and does not look as if it would pass by itself, in words
    is_hopeless: bool = False  # whether that cannot pass at all
    unschedulable: str = ""  # the scheduler's words
    reason: str = ""  # why the Pod as a whole has failed
    message: str = ""
    is_being_deleted: bool = False
    deletion_grace: float = 0.0  # seconds that it has to end
    is_cut_off: bool = False  # its node does not answer any more
    is_disrupted: str = ""  # who has made it go, if it was not a person

    @property
    def is_over(self) -> bool:
        """Whether nothing of the container runs any more."""
        return self.ending is not None or self.phase in ("Succeeded", "Failed")


def read_status(pod: Mapping[str, Any], container: str) -> Status:
    """How a Pod stands, by its description.

    :param container: the one that runs the task.
    """
    status = pod.get("status") or {}
    spec = pod.get("spec") or {}
    metadata = pod.get("metadata") or {}
    conditions = {item["type"]: item for item in status.get("conditions") or ()}
    statuses = {item["name"]: item for item in status.get("containerStatuses") or ()}
    found: Mapping[str, Any] = statuses.get(container, {})
    state = found.get("state") or {}
    running, terminated, waiting = (state.get(word) or {} for word in ("running", "terminated", "waiting"))
    ending = None
    if terminated:
        reason, message = terminated.get("reason") or "", terminated.get("message") or ""
        ending = Ending(int(terminated.get("exitCode", -1)), reason, message, _time(terminated.get("finishedAt")))
    # One that fails before the container is begun: an init container, or the volumes.
    stuck_in = [
        waiting,
        *((item.get("state") or {}).get("waiting") or {} for item in status.get("initContainerStatuses") or ()),
    ]
    stuck = next((item for item in stuck_in if item.get("reason") in _STUCK | _NEVER), {})
    scheduled = conditions.get("PodScheduled") or {}
    is_unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    unschedulable = (scheduled.get("message") or "Unschedulable") if is_unschedulable else ""
    gated = _in_words(scheduled) if scheduled.get("reason") == "SchedulingGated" else ""
    # The controller of nodes changes this condition of a Pod, and no other one.
    ready = conditions.get("Ready") or {}
    is_ready = (conditions.get("ContainersReady") or {}).get("status") == "True"
    is_cut_off = is_ready and ready.get("status") == "False" and ready.get("reason") != "ReadinessGatesNotReady"
    disrupted = conditions.get("DisruptionTarget") or {}
    return Status(
        uid=metadata.get("uid", ""),
        node=spec.get("nodeName") or "",
        phase=status.get("phase") or "Pending",
        started_at=_time(running.get("startedAt") or terminated.get("startedAt")),
        ending=ending,
        waits_for=unschedulable or gated or _in_words(stuck or waiting),
        stuck=_in_words(stuck),
        is_hopeless=stuck.get("reason") in _NEVER,
        unschedulable=unschedulable,
        reason=status.get("reason") or "",
        message=status.get("message") or "",
        is_being_deleted=bool(metadata.get("deletionTimestamp")),
        deletion_grace=float(metadata.get("deletionGracePeriodSeconds") or 0),
        is_cut_off=bool(running) and is_cut_off,
        is_disrupted=_in_words(disrupted) if disrupted.get("status") == "True" else "",
    )


def _in_words(state: Mapping[str, Any]) -> str:
    return ": ".join(word for word in (state.get("reason"), state.get("message")) if word)


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return found if found.timestamp() > 0 else None


def no_node_could(manifest: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]) -> str:
    """Why no node could run a Pod even if it had nothing else to do, in words; empty if one could."""
    spec = manifest["spec"]
    needed: dict[str, float] = {}
    for container in spec["containers"]:
        resources = container.get("resources") or {}
        for name, value in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            needed[name] = needed.get(name, 0) + quantity(value)
    selector = spec.get("nodeSelector") or {}
    lacking: list[str] = []
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        has = node["status"].get("allocatable") or {}
        missing = [f"{key}={value}" for key, value in selector.items() if labels.get(key) != value]
        missing += [f"{name} ({value:g})" for name, value in needed.items() if value > quantity(has.get(name, 0))]
        if not missing:
            return ""
        lacking.append(f"{node['metadata']['name']} lacks {', '.join(missing)}")
    return "; ".join(lacking[:5])


_QUANTITY = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)([numkKMGTPE]?)(i?)")


def quantity(value: Any) -> float:
    """A quantity as Kubernetes writes it: ``500m``, ``2``, ``64Mi``; endless if it cannot be read."""
    match = _QUANTITY.fullmatch(str(value))
    if not match:
        return math.inf
    if match[2] in ("n", "u", "m"):
        return float(match[1]) * {"n": 1e-9, "u": 1e-6, "m": 1e-3}[match[2]]
    power = " KMGTPE".index(match[2].upper() or " ")
    return float(match[1]) * float((1024 if match[3] else 1000) ** power)
