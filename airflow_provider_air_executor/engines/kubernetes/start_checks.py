"""Whether a Pod can go on: what keeps it from starting, and whether its node still answers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from airflow_provider_air_executor.engines.kubernetes.client import ApiError, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.pod_status import Status, quantity
from airflow_provider_air_executor.engines.kubernetes.shared import Shared
from airflow_provider_air_executor.jobs.models import MAY_STILL_RUN, Reason

log = logging.getLogger("air_executor.manager")

_CERTAIN_SECONDS = 3.0  # for which the scheduler may find no node before the nodes are listed
_LIST_AGAIN_SECONDS = 60.0
_NODES_SECONDS = 20.0  # for which listed nodes are taken to be the same


class PodFailedError(Exception):
    """A Pod will not start, or is lost with its node.

    :param may_repeat: False if it may still be running on an unreachable node.
    """

    def __init__(self, reason: Reason, error: str, *, may_repeat: bool = True) -> None:
        super().__init__(error)
        self.reason = reason
        self.may_repeat = may_repeat


class Nodes:
    """The nodes of the cluster. Pods that wait at the same time list them once together."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._may_list = True
        self._listing = asyncio.Lock()
        self._nodes: list[dict[str, Any]] = []
        self._listed_at = -math.inf

    async def why_none_could(self, manifest: Mapping[str, Any]) -> str:
        """Why no node could ever run a Pod; empty if one could, or if that is not known."""
        if not self._may_list:
            return ""
        try:
            async with self._listing:
                if time.monotonic() - self._listed_at > _NODES_SECONDS:
                    self._nodes = await self._shared.client.list_nodes()
                    self._listed_at = time.monotonic()
            return no_node_could(manifest, self._nodes)
        except ApiError as error:
            if not error.may_pass:
                self._may_list = False
                log.warning(
                    "Kubernetes: whether a task can ever run is not known, since nodes may not be listed: %s", error
                )
        except UnreachableError as error:
            self._shared.warn(error)
        return ""


class StartChecks:
    """Checks one Pod each time that its status has changed, and when a limit of time is over."""

    def __init__(self, pod: Pod, shared: Shared, nodes: Nodes) -> None:
        self._pod = pod
        self._client, self._options = shared.client, shared.options
        self._nodes = nodes
        self._since: dict[str, float] = {}  # when each condition that must not last has begun

    async def check(self, status: Status) -> float | None:
        """Check it.

        :return: seconds after which it must be checked again; None: only if its status changes.
        :raises PodFailedError: if it cannot go on.
        """
        due = self._check_node(status), self._check_stuck(status), await self._check_starting(status)
        if self._pod.status is not status:  # it has changed meanwhile
            return 0
        return _earliest(*due, await self._check_scheduling(status))

    def _check_node(self, status: Status) -> float | None:
        """Whether its node answers."""
        limit, is_fenced = self._options.lost_after, self._options.fenced
        left = self._left("cut off", status.is_cut_off, limit)
        # It should be gone when its grace is over; a node that does not answer does not say so.
        grace = status.deletion_grace + limit
        left_to_go = self._left("deleted", status.is_being_deleted, grace) if status.node else None
        if left == 0 or left_to_go == 0:
            error = f"{self._pod} is lost: node {status.node} does not answer"
            if not is_fenced:
                error += MAY_STILL_RUN
            raise PodFailedError(Reason.LOST, error, may_repeat=is_fenced)
        return _earliest(left, left_to_go)

    def _check_stuck(self, status: Status) -> float | None:
        """Whether its container can be created."""
        left = self._left("stuck", status.stuck, self._options.stuck_after)
        if status.is_hopeless or left == 0:
            raise PodFailedError(Reason.SPAWN, f"Kubernetes cannot start it: {status.stuck}")
        return left

    async def _check_starting(self, status: Status) -> float | None:
        """Whether its node starts it in time."""
        limit = self._options.start_within
        is_starting = bool(status.node) and not self._pod.has_started and not status.is_being_deleted
        left = self._left("starting", is_starting, limit)
        if left == 0:
            why = await self._last_warning(status)
            if self._pod.status is status:
                error = f"its node {status.node} has not started it within {limit:g} s: {why}"
                raise PodFailedError(Reason.SPAWN, error)
        return left

    async def _check_scheduling(self, status: Status) -> float | None:
        """Whether a node can be found for it."""
        left = self._left("unschedulable", status.unschedulable, self._options.unschedulable_after)
        if left == 0:
            raise PodFailedError(Reason.SPAWN, f"Kubernetes finds no node for it: {status.unschedulable}")
        if self._left("full", status.unschedulable, _CERTAIN_SECONDS) == 0:
            self._since["full"] = time.monotonic() + _LIST_AGAIN_SECONDS - _CERTAIN_SECONDS
            if (why := await self._why_never(status)) and self._pod.status is status:
                error = f"Kubernetes can never run it: {status.unschedulable} ({why})"
                raise PodFailedError(Reason.SPAWN, error)
        return _earliest(left, self._left("full", status.unschedulable, _CERTAIN_SECONDS))

    async def _last_warning(self, status: Status) -> str:
        """Why it does not start, in words."""
        try:
            warnings = await self._client.list_warnings(self._pod.namespace, status.uid)
        except (ApiError, UnreachableError) as error:  # we may not be allowed to list them
            log.debug("the events of %s cannot be listed: %s", self._pod, error)
            warnings = []
        return warnings[-1] if warnings else status.waits_for or "it does not say why"

    async def _why_never(self, status: Status) -> str:
        """Why it will never find a node, in words; empty if it may."""
        if "not found" in status.unschedulable:  # a volume claim
            return "it asks for what is not there"
        return "" if self._options.autoscaled else await self._nodes.why_none_could(self._pod.manifest)

    def _left(self, condition: str, is_so: object, limit: float | None) -> float | None:
        """Seconds for which a condition may last; None if it is not so, or may last for ever."""
        if not is_so:
            self._since.pop(condition, None)
            return None
        now = time.monotonic()
        since = self._since.setdefault(condition, now)
        return None if limit is None else max(0.0, since + limit - now)


def _earliest(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


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
