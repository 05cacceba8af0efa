"""How an attempt has ended, by the last that is known of its Pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_air_executor.engines.kubernetes.attended import Pod
from airflow_provider_air_executor.engines.kubernetes.bundles import BundleOutput
from airflow_provider_air_executor.engines.kubernetes.output import TaskOutput
from airflow_provider_air_executor.engines.kubernetes.pods import Ending, Status
from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.jobs.models import Reason, printable, utc_now

NOBODY = Attempt("", "", 0, -1, "")  # in what is told later
DELETED = "somebody deleted it while it ran"


def read_result(pod: Pod) -> tuple[str, bytes | None, bool]:
    """What a container says at its end: why its command could not be started, its result, and whether that is whole.

    A short result is in the message of the container, which a node cuts if the Pod has many containers. Every result is
    in the output, whose end a node may lose.
    """
    ending = pod.status.ending if pod.status is not None else None
    kind, _, rest = (ending.message if ending is not None else "").partition(" ")
    if kind == "spawn":
        return printable(rest.strip()), None, True
    line, _, short = rest.partition("\n")
    size = (line.split() or [""])[0]
    if kind != "end" or not size.isdigit() or int(size) == 0:
        return "", None, True
    if len(short.encode()) == int(size):
        return "", short.encode(), True
    found = pod.output.result if isinstance(pod.output, TaskOutput) else None
    return "", found, found is not None and len(found) == int(size)


def _was_told_to_end(pod: Pod, ending: Ending) -> bool | None:
    """Whether the command was told to end while it ran; None if the container does not say, or cannot know."""
    words = ending.message.partition("\n")[0].split()
    if len(words) != 3 or words[0] != "end":
        return None
    if words[2] != "0":
        return True
    return None if "preStop" in (_container(pod).get("lifecycle") or {}) else False  # that may have told it


def _container(pod: Pod) -> Mapping[str, Any]:
    containers = pod.manifest["spec"]["containers"]
    return next(item for item in containers if item["name"] == pod.container)


def has_all(pod: Pod) -> bool:
    """Whether all that one attempt had to print has come: its marker, and its result if that is long."""
    if not isinstance(pod.output, TaskOutput) or pod.output.result is None:
        return False
    _, _, result_is_whole = read_result(pod)
    return result_is_whole


# Why Kubernetes says that a container has ended, if the command was never started, or nobody knows.
_NOT_STARTED = {"StartError", "ContainerCannotRun", "CreateContainerError"}
_UNKNOWN = {"Unknown", "ContainerStatusUnknown"}
_PROBES = {"livenessProbe", "startupProbe"}


def conclude(pod: Pod, status: Status | None, *, was_gone: bool) -> Ended:
    """How the attempt has ended that ran last, by the last that is known of its Pod.

    A command that is told to end may end with any exit code, and with 0 if it has saved what it had. So the exit code
    counts if the command was not told to end, or if nothing says that the Pod was ended.
    """
    ending = status.ending if status is not None else None
    ended_at = (ending and ending.ended_at) or utc_now()
    exit_code = ending.exit_code if ending is not None else None
    was_told = _was_told_to_end(pod, ending) if ending is not None else None
    ended = Ended(NOBODY, exit_code, ended_at, status.started_at if status is not None else None)
    reason, error = None, ""
    if pod.cancelling is not None or (was_told is False and exit_code is not None and exit_code <= 128):
        return ended
    is_deleted = status is not None and (status.is_being_deleted or (was_gone and was_told))
    if status is not None and status.reason == "DeadlineExceeded":
        reason, error = Reason.TIMEOUT, f"DeadlineExceeded: {status.message}"
    elif ending is not None and ending.reason in _NOT_STARTED:
        reason, error = Reason.SPAWN, f"{ending.reason}: {ending.message}"
    elif ending is not None and ending.reason == "OOMKilled" and exit_code != 0:
        reason, error = Reason.SIGNAL, f"OOMKilled: it used more memory than it asked for (exit code {exit_code})"
    elif status is not None and (status.reason or status.is_disrupted):
        reason, error = Reason.LOST, f"{status.reason or 'Disrupted'}: {status.message or status.is_disrupted}"
    elif ending is not None and ending.reason in _UNKNOWN:
        reason, error = Reason.LOST, f"its node does not know how it ended ({ending.reason})"
    elif is_deleted and ending is not None:
        reason, error = Reason.LOST, f"{DELETED} (exit code {exit_code})"
    elif is_deleted and not was_gone:
        reason, error = Reason.LOST, DELETED
    elif ending is None:
        reason, error = Reason.LOST, "it is gone, and left no result" if was_gone else "it has failed, nobody says why"
    elif was_told and _PROBES & _container(pod).keys():
        reason, error = Reason.LOST, f"its node ended it, as after a probe that failed (exit code {exit_code})"
    if reason is None:
        return ended
    node = f" on {status.node}" if status is not None and status.node else ""
    return ended._replace(reason=reason, error=printable(f"{pod}{node}: {error}"))


def lacks_a_reason(pod: Pod) -> bool:
    """Whether something has ended a container, and it is not known yet what."""
    ending = pod.status.ending if pod.status is not None else None
    if ending is None or pod.is_gone or pod.cancelling is not None:
        return False
    if conclude(pod, pod.status, was_gone=False).reason is not None:
        return False
    if isinstance(pod.output, BundleOutput):
        return ending.exit_code > 128 or any(part.was_signalled for part in pod.output.parts)
    was_told = _was_told_to_end(pod, ending)
    return bool(was_told) or (was_told is None and ending.exit_code > 128)
