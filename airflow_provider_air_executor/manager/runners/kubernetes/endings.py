"""How an attempt has ended, by the last that is known of its Pod."""

from __future__ import annotations

from airflow_provider_air_executor.jobs.models import Reason, printable, utc_now
from airflow_provider_air_executor.manager.runners.kubernetes import pods
from airflow_provider_air_executor.manager.runners.kubernetes.attended import Pod
from airflow_provider_air_executor.manager.runners.kubernetes.output import TaskOutput
from airflow_provider_air_executor.manager.runners.kubernetes.pods import Status
from airflow_provider_air_executor.manager.runners.protocol import Attempt, Ended

NOBODY = Attempt("", "", 0, -1, "")  # in what is told later
DELETED = "somebody deleted it while it ran"


def read_result(pod: Pod) -> tuple[str, bytes | None, bool]:
    """What a container says at its end: why its command could not be started, its result, and whether that is whole."""
    ending = pod.status.ending if pod.status is not None else None
    kind, _, rest = (ending.message if ending is not None else "").partition(" ")
    if kind == "spawn":
        return printable(rest.strip()), None, True
    size, _, short = rest.partition("\n")
    if kind != "end" or not size.strip().isdigit() or int(size) == 0:
        return "", None, True
    if int(size) <= pods.MESSAGE_BYTES:
        return "", short.encode(), True
    found = pod.output.result if isinstance(pod.output, TaskOutput) else None
    return "", found, found is not None and len(found) == int(size)


def has_all(pod: Pod) -> bool:
    """Whether all that one attempt had to print has come: its marker, and its result if that is long."""
    if not isinstance(pod.output, TaskOutput) or pod.output.result is None:
        return False
    _, _, result_is_whole = read_result(pod)
    return result_is_whole


# Why Kubernetes says that a container has ended, if the command was never started, or nobody knows.
_NOT_STARTED = {"StartError", "ContainerCannotRun", "CreateContainerError"}
_UNKNOWN = {"Unknown", "ContainerStatusUnknown"}


def conclude(pod: Pod, status: Status | None, *, was_gone: bool) -> Ended:
    """How the attempt has ended that ran last, by the last that is known of its Pod."""
    ending = status.ending if status is not None else None
    ended_at = (ending and ending.ended_at) or utc_now()
    exit_code = ending.exit_code if ending is not None else None
    ended = Ended(NOBODY, exit_code, ended_at, status.started_at if status is not None else None)
    reason, error = None, ""
    if pod.cancelling is not None or (exit_code == 0 and ending is not None and ending.reason not in _UNKNOWN):
        return ended
    if status is not None and status.reason == "DeadlineExceeded":
        reason, error = Reason.TIMEOUT, f"DeadlineExceeded: {status.message}"
    elif ending is not None and ending.reason in _NOT_STARTED:
        reason, error = Reason.SPAWN, f"{ending.reason}: {ending.message}"
    elif ending is not None and ending.reason == "OOMKilled":
        reason, error = Reason.SIGNAL, f"OOMKilled: it used more memory than it asked for (exit code {exit_code})"
    elif status is not None and (status.reason or status.is_disrupted):
        reason, error = Reason.LOST, f"{status.reason or 'Disrupted'}: {status.message or status.is_disrupted}"
    elif ending is not None and ending.reason in _UNKNOWN:
        reason, error = Reason.LOST, f"its node does not know how it ended ({ending.reason})"
    elif status is not None and status.is_being_deleted and exit_code is not None:
        reason, error = Reason.LOST, f"{DELETED} (exit code {exit_code})"
    elif ending is None:
        reason, error = Reason.LOST, "it is gone, and left no result" if was_gone else "it has failed, nobody says why"
    if reason is None:
        return ended
    node = f" on {status.node}" if status is not None and status.node else ""
    return ended._replace(reason=reason, error=printable(f"{pod}{node}: {error}"))
