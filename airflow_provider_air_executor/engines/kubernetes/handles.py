"""The handles of Pods, in ``runs/``: what the next manager needs to find a Pod, or to create it again.

``<task id>.<attempt>.on-kubernetes`` has the Pod of one attempt; or it says that the attempt shares a Pod, which is
described by ``<task id>.<attempt>.on-kubernetes-bundle`` of the first attempt of the batch. As long as that file is not
there, the Pod was never created. All of them are of mode 0600, since they contain the environment of tasks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt, complete
from airflow_provider_air_executor.engines.kubernetes.manifest import RUN_LABEL, TASKS_ANNOTATION, attached_names
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record, Used
from airflow_provider_air_executor.jobs.models import Reason, check_task_id
from airflow_provider_air_executor.jobs.store import JobStore

log = logging.getLogger("air_executor.manager")

NAME = "kubernetes"
_BATCH = f"{NAME}-bundle"
_PLAIN = (None, Reason.EXIT)
_INVALID = (ValueError, KeyError, TypeError, InvalidJobError)


class Handles:
    """The handles of one job filesystem.

    :param grace: seconds that tasks have between SIGTERM and SIGKILL.
    """

    def __init__(self, store: JobStore, grace: float) -> None:
        self._store = store
        self._grace = grace
        self._old: deque[tuple[float, Path]] = deque()  # and when they are removed

    def path(self, attempt: Attempt) -> Path:
        """The handle of an attempt."""
        return self._path(attempt.job_name, attempt)

    def _path(self, job_name: str, attempt: Attempt | BatchedAttempt) -> Path:
        return self._store.paths(job_name).handle(attempt.task_id, attempt.number, NAME)

    def _batch_path(self, job_name: str, task_id: str, number: int) -> Path:
        """The handle of the Pod of a batch, by its first attempt."""
        return self._store.paths(job_name).handle(check_task_id(task_id), int(number), _BATCH)

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, job_name: str, attempt: BatchedAttempt, manifest: Mapping[str, Any]) -> Pod:
        """Write the handle of the Pod of one attempt.

        :raises OSError: if it cannot be written.
        """
        path = self._path(job_name, attempt)
        handle = {"token": attempt.token, "log_start": attempt.log_start, "created": False, "pod": manifest}
        files.publish(path, _dump(handle))
        return self._pod_of_one(job_name, attempt, manifest, path)

    def _pod_of_one(self, job_name: str, attempt: BatchedAttempt, manifest: Mapping[str, Any], path: Path) -> Pod:
        paths = self._store.paths(job_name)
        attached = tuple(paths.attached(name) for name in attached_names(manifest))
        return Pod(job_name, attempt.token, manifest, path, [attempt], attached=attached)

    def write_attempt(self, job_name: str, attempt: BatchedAttempt, first: BatchedAttempt) -> None:
        """Write the handle of an attempt of a batch.

        :param first: the first attempt of the batch.
        :raises OSError: if it cannot be written.
        """
        handle = {"token": attempt.token, "bundle": [first.task_id, first.number]}
        files.publish(self._path(job_name, attempt), _dump(handle))

    def write_batch(self, job_name: str, manifest: dict[str, Any], attempts: Sequence[BatchedAttempt]) -> Pod:
        """Write the handle of the Pod of a batch, whose attempts have theirs already.

        :param manifest: that of the first attempt, without its variables.
        :raises OSError: if it cannot be written.
        """
        path = self._batch_path(job_name, attempts[0].task_id, attempts[0].number)
        files.publish(path, _dump({"created": False, "pod": manifest, "parts": [each.handle for each in attempts]}))
        return self._pod_of_batch(job_name, manifest, attempts, path)

    def write_creation(self, pod: Pod) -> None:
        """Write that a Pod was created for certain, and is not to be created again."""
        if pod.is_detached:
            return
        try:
            handle = json.loads(files.read(pod.handle_path)[0])
            files.replace(pod.handle_path, _dump({**handle, "created": True}))
        except (OSError, ValueError) as error:
            log.warning("the handle of %s could not be written: %s", pod, error)

    def _pod_of_batch(
        self, job_name: str, manifest: dict[str, Any], attempts: Sequence[BatchedAttempt], path: Path
    ) -> Pod:
        token = str(manifest["metadata"]["labels"][RUN_LABEL])
        whole = complete(manifest, attempts, self._grace)
        return Pod(job_name, token, whole, path, list(attempts), bare_manifest=manifest)

    def persist(self, batched: BatchedAttempt, ended: Ended, result: bytes | None) -> None:
        """Write how an attempt has ended, before that is emitted.

        :raises OSError: if it cannot be written.
        """
        if ended.exit_code is None or batched.attempt is None:
            return
        job_name, task_id, number = batched.attempt[:3]
        paths = self._store.paths(job_name)
        if result is not None:
            files.publish(paths.output(task_id, number), result)
        if ended.reason in _PLAIN:  # the next manager would not know of another reason, but it can ask the API server
            record = Record(0, ended.started_at or ended.ended_at, batched.token, ended.exit_code, used=_used(ended))
            files.publish(paths.record(task_id, number), record.text)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, attempt: Attempt, known: Mapping[Path, Pod]) -> tuple[Pod, BatchedAttempt] | None:
        """The Pod in which an attempt may run; None if it was never created.

        :param known: Pods by their handles, which are not read again.
        :raises OSError: if there is a handle that cannot be read.
        """
        path = self.path(attempt)
        try:
            handle = json.loads(files.read(path)[0])
            if "bundle" not in handle:
                own = BatchedAttempt(attempt, str(handle["token"]), attempt.task_id, attempt.number)
                own.log_path = self._store.paths(attempt.job_name).log(attempt.task_id)
                own.log_start = int(handle["log_start"])
                pod = self._pod_of_one(attempt.job_name, own, dict(handle["pod"]), path)
                pod.is_adopted, pod.is_created = True, bool(handle.get("created"))
                return pod, own
            batch_path = self._batch_path(attempt.job_name, *handle["bundle"])
            pod = known.get(batch_path) or self._read_batch(attempt.job_name, batch_path)
            return pod, next(each for each in pod.attempts if each.token == handle["token"])
        except (FileNotFoundError, *_INVALID, StopIteration):
            remove(path)
            return None

    def _read_batch(self, job_name: str, path: Path) -> Pod:
        handle = json.loads(files.read(path)[0])
        attempts = [
            BatchedAttempt(None, log_path=self._store.paths(job_name).log(check_task_id(each["task_id"])), **each)
            for each in handle["parts"]
        ]
        pod = self._pod_of_batch(job_name, dict(handle["pod"]), attempts, path)
        has_record = any(self._has_record(job_name, each) for each in handle["parts"])
        pod.is_adopted, pod.is_created = True, bool(handle.get("created")) or has_record
        return pod

    def _has_record(self, job_name: str, attempt: Mapping[str, Any]) -> bool:
        return self._store.paths(job_name).record(check_task_id(attempt["task_id"]), int(attempt["number"])).exists()

    def is_expected(self, annotations: Mapping[str, str], token: str) -> bool:
        """Whether there is a handle of a Pod that is not reconciled."""
        try:
            job_name, task_id = annotations["air-executor/job"], check_task_id(annotations["air-executor/task"])
            number = int(annotations["air-executor/attempt"])
            name = _BATCH if TASKS_ANNOTATION in annotations else NAME
            handle = json.loads(files.read(self._store.paths(job_name).handle(task_id, number, name))[0])
            return bool(handle["pod"]["metadata"]["labels"][RUN_LABEL] == token)
        except (OSError, *_INVALID):
            return False

    # -- removing --------------------------------------------------------------------------------------------

    def of_batch(self, pod: Pod) -> list[Path]:
        """The handle of the Pod of a batch, and those of attempts that the manager has not asked for."""
        first, found = pod.attempts[0], [pod.handle_path]
        for each in pod.attempts:
            if each.attempt is None:
                path = self._path(pod.job_name, each)
                with contextlib.suppress(OSError, *_INVALID):
                    if json.loads(files.read(path)[0])["bundle"] == [first.task_id, first.number]:
                        found.append(path)
        return found

    def forget(self, attempt: Attempt) -> None:
        """Remove the handle of an attempt that has a record, and that of its Pod if all others have one too."""
        path = self.path(attempt)
        with contextlib.suppress(OSError, *_INVALID):
            handle = json.loads(files.read(path)[0])
            if "bundle" in handle:
                batch_path = self._batch_path(attempt.job_name, *handle["bundle"])
                attempts = json.loads(files.read(batch_path)[0])["parts"]
                if all(self._has_record(attempt.job_name, each) for each in attempts):
                    remove(batch_path)
        remove(path)

    def remove_later(self, paths: Sequence[Path], seconds: float) -> None:
        """Remove handles after some seconds."""
        self._old.extend((time.monotonic() + seconds, path) for path in paths)

    @property
    def remove_after(self) -> float | None:
        """Seconds after which :meth:`remove_due` must be called; None: there is nothing to remove."""
        return max(0.0, self._old[0][0] - time.monotonic()) if self._old else None

    def remove_due(self, until: float | None = None) -> None:
        """Remove the handles whose time has come; they contain the environment of tasks.

        :param until: that time, by the monotonic clock; default: now.
        """
        until = time.monotonic() if until is None else until
        while self._old and self._old[0][0] <= until:
            remove(self._old.popleft()[1])


def remove(path: Path) -> None:
    """Remove a handle, if that is possible."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _dump(handle: Mapping[str, Any]) -> bytes:
    return json.dumps(handle, ensure_ascii=False).encode()


def _used(ended: Ended) -> Used | None:
    """What an attempt has used, for its record."""
    usage = ended.usage
    return None if usage is None else Used(usage.cpu_seconds, usage.max_memory)
