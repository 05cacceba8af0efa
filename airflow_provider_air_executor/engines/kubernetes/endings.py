"""How an attempt has ended, by the last known status of its Pod."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_air_executor.engines.kubernetes.batches import Message, read_message, read_usage
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.pod_status import Ending, Status
from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.jobs.models import Reason, printable, utc_now
from airflow_provider_air_executor.jobs.usage import Usage

NOBODY = Attempt("", "", 0, -1, "")  # in events that are emitted later
NO_RESULT = "it has ended with exit code 0, but its result could not be read"
NO_END = "it has ended, but what its Pod said of it could not be read"
ENDED_WITH_ANOTHER = "it was ended with another task that ran before it in the same Pod"
_DELETED = "somebody deleted it while it ran"
# Kubernetes' reasons for the end of a container whose command was never started, or whose end is not known.
_NOT_STARTED = {"StartError", "ContainerCannotRun", "CreateContainerError"}
_UNKNOWN = {"Unknown", "ContainerStatusUnknown"}
_PROBES = {"livenessProbe", "startupProbe"}


def read_result(pod: Pod) -> tuple[str, bytes | None, bool]:
    """Read why the command of a Pod of one attempt could not be started, its result, and whether that is whole.

    A short result is in the termination message, which a node cuts if the Pod has many containers. Every result is in
    the output, whose end a node may lose.
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
    found = pod.attempts[0].result
    return "", None if found is None else bytes(found), found is not None and len(found) == int(size)


def has_all(pod: Pod) -> bool:
    """Whether all output of a Pod of one attempt has come: its marker, and its result if that is long."""
    return not pod.is_batch and pod.attempts[0].result is not None and read_result(pod)[2]


def _was_signalled(pod: Pod, ending: Ending) -> bool | None:
    """Whether the container got SIGTERM while the command ran; None if it does not say, or cannot know."""
    words = ending.message.partition("\n")[0].split()
    if len(words) < 3 or words[0] != "end":
        return None
    if words[2] != "0":
        return True
    return None if "preStop" in (_container(pod).get("lifecycle") or {}) else False  # the hook may have ended it


def _usage(ending: Ending) -> Usage | None:
    """What the command has used, if the container says so."""
    words = ending.message.partition("\n")[0].split()
    if words[:1] != ["end"]:
        return None
    return read_usage(words[3:8])


def _container(pod: Pod) -> Mapping[str, Any]:
    containers = pod.manifest["spec"]["containers"]
    return next(item for item in containers if item["name"] == pod.container)


def last_end(pod: Pod, status: Status | None, *, was_gone: bool) -> Ended:
    """How the attempt has ended that ran last in a Pod.

    A command that gets SIGTERM may end with any exit code, and with 0 if it has saved its work. So the exit code counts
    if the container got no signal, or if nothing says that the Pod was ended.

    :param status: the last known one.
    :param was_gone: whether the Pod is not there any more.
    """
    ending = status.ending if status is not None else None
    ended_at = (ending and ending.ended_at) or utc_now()
    exit_code = ending.exit_code if ending is not None else None
    was_signalled = _was_signalled(pod, ending) if ending is not None else None
    ended = Ended(NOBODY, exit_code, ended_at, status.started_at if status is not None else None)
    if ending is not None and not pod.is_batch:
        ended = ended._replace(usage=_usage(ending))
    reason, error = None, ""
    if pod.cancelling is not None or (was_signalled is False and exit_code is not None and exit_code <= 128):
        return ended
    is_deleted = status is not None and (status.is_being_deleted or (was_gone and was_signalled))
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
        reason, error = Reason.LOST, f"{_DELETED} (exit code {exit_code})"
    elif is_deleted and not was_gone:
        reason, error = Reason.LOST, _DELETED
    elif ending is None:
        reason, error = Reason.LOST, "it is gone, and left no result" if was_gone else "it has failed, nobody says why"
    elif was_signalled and _PROBES & _container(pod).keys():
        reason, error = Reason.LOST, f"its node ended it, as after a probe that failed (exit code {exit_code})"
    if reason is None:
        return ended
    node = f" on {status.node}" if status is not None and status.node else ""
    return ended._replace(reason=reason, error=printable(f"{pod}{node}: {error}"))


def lacks_a_reason(pod: Pod) -> bool:
    """Whether something has ended a container, and it is not known yet what that was."""
    ending = pod.status.ending if pod.status is not None else None
    if ending is None or pod.is_gone or pod.cancelling is not None:
        return False
    if last_end(pod, pod.status, was_gone=False).reason is not None:
        return False
    if pod.is_batch:
        return ending.exit_code > 128 or any(each.was_signalled for each in pod.attempts)
    was_signalled = _was_signalled(pod, ending)
    return bool(was_signalled) or (was_signalled is None and ending.exit_code > 128)


def why_signalled(pod: Pod, exit_code: int | None) -> tuple[Reason, str] | None:
    """Why an attempt of a batch got SIGTERM, if something has ended its Pod; its exit code does not count then."""
    last = last_end(pod, pod.status, was_gone=pod.is_gone)
    if last.reason in (Reason.LOST, Reason.TIMEOUT) and last.error:
        return last.reason, last.error
    if pod.is_gone or pod.cancelling is not None:
        why = _DELETED if pod.cancelling is None else ENDED_WITH_ANOTHER
        return Reason.LOST, f"{pod}: {why} (exit code {exit_code})"
    return None  # a task may send a signal to its own process group


def last_message(pod: Pod) -> Message | None:
    """How far a batch has come; None if that is not known, or if another Pod would come no further."""
    ending = pod.status.ending if pod.status is not None and pod.is_batch else None
    message = read_message(ending.message) if ending is not None else None
    if message is None and pod.output.splitter.begun is not None:
        message = Message(pod.output.splitter.begun)  # a deleted Pod may go before its message is in its status
    return None if message is not None and message.begun == 0 and pod.cancelling is None else message
