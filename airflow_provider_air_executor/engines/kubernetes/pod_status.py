"""How a Pod stands, by its description from the API server."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

# Reasons why a container waits that is not just about to be started. Some of them may pass.
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
    stuck: str = ""  # what keeps it from starting and is unlikely to pass by itself, in words
    is_hopeless: bool = False  # whether that cannot pass at all
    unschedulable: str = ""  # the scheduler's words
    reason: str = ""  # why the Pod as a whole has failed
    message: str = ""
    is_being_deleted: bool = False
    deletion_grace: float = 0.0  # seconds that it has to end
    is_cut_off: bool = False  # its node does not answer any more
    is_disrupted: str = ""  # which part of Kubernetes has ended it, and why

    @property
    def is_over(self) -> bool:
        """Whether nothing of the container runs any more."""
        return self.ending is not None or self.phase in ("Succeeded", "Failed")


def read_status(pod: Mapping[str, Any], container: str) -> Status:
    """The status of a Pod.

    :param pod: its description.
    :param container: the one that runs the tasks.
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
    states = [item.get("state") or {} for item in status.get("initContainerStatuses") or ()]
    stuck_in = [waiting, *(state.get("waiting") or {} for state in states)]
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
