"""Files that are attached to a job, for its Pods: each gets them by a Secret of its own, which has the same name.

The Secret is created after the Pod, which it names as its owner, so that Kubernetes removes it with the Pod. Until it
is there, the node of the Pod waits. As long as the task has not begun, the Secret follows the files. Once the shim has
copied them, they are removed from the job, by which other processes see that the task has begun, and the Secret is
emptied. It stays, since a node that was restarted mounts it again.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.engines.kubernetes.client import ApiError, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.log_reader import LogReader
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.shared import Pause, Shared
from airflow_provider_air_executor.engines.kubernetes.start_checks import PodFailedError
from airflow_provider_air_executor.engines.protocol import SpawnError
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Reason
from airflow_provider_air_executor.jobs.paths import JobPaths

log = logging.getLogger("air_executor.manager")

_LARGEST = 1 << 20  # bytes of a Secret
_LOOK_SECONDS = 10.0  # between two looks whether a file was replaced
_AGAIN_SECONDS = 2.0
_REFUSALS = 3  # as for Pods: an API server that has just been started may not know our rights yet


def check_files(paths: JobPaths, names: Iterable[str]) -> None:
    """Check that a Secret can have files of a job.

    :raises SpawnError: if not.
    :raises OSError: if that cannot be known now.
    """
    size, name = 0, ""
    try:
        for name in names:
            size += paths.attached(name).stat().st_size
    except FileNotFoundError:
        raise SpawnError(f"the file {name!r} is not attached to its job") from None
    except InvalidJobError as error:
        raise SpawnError(str(error)) from None
    if size > _LARGEST:
        raise SpawnError(_too_large(size))


def _too_large(size: int) -> str:
    return f"the files attached to its job have {size} bytes, but a Secret of Kubernetes can have {_LARGEST}"


class PodSecret:
    """The Secret of one Pod; does nothing if the Pod gets no files."""

    def __init__(self, pod: Pod, shared: Shared, reader: LogReader) -> None:
        self._pod = pod
        self._shared = shared
        self._reader = reader
        self._given: list[files.Stamp | None] = []  # the files that are in the Secret
        self._is_there = False
        self._refusals = 0
        self._emptying: asyncio.Task[None] | None = None

    async def keep(self) -> float | None:
        """Have the files in the Secret as they are now, until the task begins.

        :return: seconds after which it must be called again; None: that is not needed.
        :raises PodFailedError: if the Pod cannot get them.
        :raises UnreachableError: if the API server does not answer.
        """
        if not self._pod.attached or self._pod.has_started or self._pod.cancelling is not None:
            return None
        try:
            found = [files.stamp(path) for path in self._pod.attached]
            if found == self._given:
                return _LOOK_SECONDS
            content = {path.name: files.read(path)[0] for path in self._pod.attached}
        except FileNotFoundError as error:
            why = f"the file {Path(error.filename).name!r} is not attached to its job any more"
            raise PodFailedError(Reason.SPAWN, why) from None
        except OSError as error:
            self._shared.warn(error)
            return _AGAIN_SECONDS
        size = sum(map(len, content.values()))
        if size > _LARGEST:
            raise PodFailedError(Reason.SPAWN, _too_large(size))
        try:
            await self._put(content)
        except ApiError as error:
            return self._refused(error)
        self._given = found
        return _LOOK_SECONDS

    def _refused(self, error: ApiError) -> float:
        """Seconds after which it is tried again.

        :raises PodFailedError: if that is of no use.
        """
        if error.status == 409 and error.reason == "AlreadyExists":  # an earlier manager has created it
            self._is_there = True
            return 0.0
        if error.status == 404 and self._is_there:
            self._is_there = False
            return 0.0
        if not error.may_pass and self._refusals >= _REFUSALS:
            why = f"it cannot get the files attached to its job, since Kubernetes refused its Secret: {error}"
            raise PodFailedError(Reason.SPAWN, why)
        self._refusals += not error.may_pass
        self._shared.warn(error)
        return _AGAIN_SECONDS

    async def _put(self, content: Mapping[str, bytes]) -> None:
        pod = self._pod
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}
        metadata: dict[str, Any] = {"name": pod.name, "namespace": pod.namespace, "ownerReferences": [owner]}
        metadata["labels"] = pod.manifest["metadata"]["labels"]
        data = {name: base64.b64encode(value).decode() for name, value in content.items()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}
        if self._is_there:
            await self._shared.client.replace_secret(secret)
        else:
            await self._shared.client.create_secret(secret)
            self._is_there = True

    def take_back(self) -> None:
        """Have the files removed once the task has them. To be called when its container has been started."""
        if self._pod.attached and self._emptying is None:
            self._emptying = self._shared.spawn(self._take_back())

    async def _take_back(self) -> None:
        pause = Pause()
        while not self._pod.is_released:
            try:
                if await self._reader.has_output():
                    break
            except (ApiError, UnreachableError) as error:
                log.debug("whether the task of %s has begun is not known: %s", self._pod, error)
            await pause()
        if not self._pod.is_released:
            self.withdraw()
        await self._empty()

    def withdraw(self) -> None:
        """Remove the files from the job, since the task has begun. Later ones of these names are another attempt's."""
        if not self._pod.is_detached:
            for path in self._pod.attached:
                files.remove(path)

    def release(self) -> None:
        """The Pod is over, or deleted."""
        if self._pod.attached and self._pod.is_created and not self._pod.is_gone and self._emptying is None:
            self._emptying = self._shared.spawn(self._empty())

    async def _empty(self) -> None:
        """Empty the Secret. Its files stay, since the Pod names them."""
        self._is_there = True
        pause = Pause()
        while True:
            try:
                await self._put({path.name: b"" for path in self._pod.attached})
            except ApiError as error:
                if error.status == 404:
                    return
                if not error.may_pass:
                    log.warning("the Secret of %s could not be emptied: %s", self._pod, error)
                    return
            except UnreachableError as error:
                self._shared.warn(error)
            else:
                return
            await pause()
