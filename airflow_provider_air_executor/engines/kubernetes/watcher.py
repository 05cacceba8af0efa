"""Lists and watches the Pods of namespaces, keeps their status, and deletes those that are not needed any more."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from airflow_provider_air_executor.engines.kubernetes.client import ApiError, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.manifest import CONTAINER, OWNER_LABEL, RUN_LABEL
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.pod_status import read_status
from airflow_provider_air_executor.engines.kubernetes.shared import Pause, Shared

log = logging.getLogger("air_executor.manager")

_SHORTEST_WATCH_SECONDS = 1.0
_STRAY_SECONDS = 60.0  # for which a Pod may run that no handle describes


class Cleanup:
    """Deletes the Pods of one installation."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._due: set[tuple[str, bool]] = set()

    def delete_later(self, metadata: Mapping[str, Any], token: str, *, is_over: bool, is_done: bool = False) -> None:
        """Delete a Pod some time after its end, or if no handle describes it.

        :param is_done: whether the ends of all its attempts were emitted, so that its handle does not count.
        """
        if (token, is_over) not in self._due:
            self._due.add((token, is_over))
            self._shared.spawn(self._delete_when_due(metadata, token, is_over=is_over, is_done=is_done))

    async def _delete_when_due(self, metadata: Mapping[str, Any], token: str, *, is_over: bool, is_done: bool) -> None:
        await asyncio.sleep(self._shared.options.ttl if is_over else _STRAY_SECONDS)
        self._due.discard((token, is_over))
        if token in self._shared.pods:
            return
        if is_done or not self._shared.handles.is_expected(metadata.get("annotations") or {}, token):
            await self.delete(metadata["namespace"], metadata["name"], metadata["uid"])

    async def delete(self, namespace: str, name: str, uid: str | None, grace: int | None = None) -> None:
        """Delete a Pod, however often it takes.

        :param uid: the identifier that it must have, if that is known.
        :param grace: seconds between SIGTERM and SIGKILL; default: those of the Pod.
        """
        pause = Pause()
        while True:
            try:
                await self._shared.client.delete_pod(namespace, name, uid=uid or None, grace=grace)
            except ApiError as error:
                if error.status in (404, 409):  # it is gone, or another one has its name
                    return
                self._shared.warn(error)
                if not error.may_pass:
                    return
            except UnreachableError as error:
                self._shared.warn(error)
            else:
                return
            await pause()


class Watcher:
    """One watch for each namespace, which shows all Pods of an installation."""

    def __init__(self, shared: Shared, cleanup: Cleanup) -> None:
        self._shared = shared
        self._cleanup = cleanup
        self._namespaces: set[str] = set()

    def watch(self, namespace: str) -> None:
        """Watch a namespace, if that is not watched already."""
        if namespace not in self._namespaces:
            self._namespaces.add(namespace)
            self._shared.spawn(self._watch(namespace))

    async def _watch(self, namespace: str) -> None:
        version: str | None = None
        selector = f"{OWNER_LABEL}={self._shared.installation.owner}"
        pause = Pause()
        while True:
            begun = time.monotonic()
            try:
                if version is None:
                    listed, version = await self._shared.client.list_pods(namespace, selector)
                    self._take_list(namespace, listed, begun)
                async for kind, pod in self._shared.client.watch_pods(namespace, selector, version):
                    version = pod["metadata"]["resourceVersion"]
                    pause.reset()
                    if kind != "BOOKMARK":
                        self._take_change(pod, is_gone=kind == "DELETED")
            except ApiError as error:
                version = None
                if error.status == 410:  # too much has happened since
                    continue
                self._shared.warn(error)
                await pause()
            except UnreachableError as error:
                self._shared.warn(error)
                await pause()
            except Exception:
                log.exception("the watch of namespace %s has failed; it begins anew", namespace)
                version = None
                await pause()
            if time.monotonic() - begun < _SHORTEST_WATCH_SECONDS:
                await asyncio.sleep(_SHORTEST_WATCH_SECONDS)

    def _take_list(self, namespace: str, listed: list[dict[str, Any]], asked_at: float) -> None:
        found = {item["metadata"]["labels"].get(RUN_LABEL) for item in listed}
        for item in listed:
            self._take_change(item)
        for pod in list(self._shared.pods.values()):
            if pod.namespace == namespace and pod.created_at < asked_at and pod.token not in found:
                pod.is_hidden = True
                pod.changed.set()

    def _take_change(self, item: Mapping[str, Any], *, is_gone: bool = False) -> None:
        """A Pod has changed.

        :param is_gone: whether the watch shows no more of it. It need not be gone: its labels may have changed.
        """
        labels = item["metadata"].get("labels") or {}
        token = labels.get(RUN_LABEL, "")
        pod = self._shared.pods.get(token) or self._find_by_name(item["metadata"])
        if pod is not None:
            pod.status = read_status(item, pod.container)
            if is_gone and labels.get(OWNER_LABEL) == self._shared.installation.owner:
                pod.is_gone = True
            pod.is_hidden = is_gone
            pod.changed.set()
        elif not is_gone:
            self._cleanup.delete_later(item["metadata"], token, is_over=read_status(item, CONTAINER).is_over)

    def _find_by_name(self, metadata: Mapping[str, Any]) -> Pod | None:
        """The Pod of a name, if it has lost its labels."""
        for pod in self._shared.pods.values():
            if (pod.namespace, pod.name) == (metadata["namespace"], metadata["name"]):
                return pod if pod.uid in (None, metadata["uid"]) else None
        return None
