"""What stands in ``runs/`` of the Pods that were handed to Kubernetes.

``<task id>.<attempt>.on-kubernetes`` has the Pod of an attempt; or it says that it shares one with others, which then
is described by ``<task id>.<attempt>.on-kubernetes-bundle`` of the first of them. As long as there is no such file,
that Pod was never created. All of them are of mode 0600, since environments stand in them.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.engines.kubernetes import pods
from airflow_provider_air_executor.engines.kubernetes.attended import Pod, Run
from airflow_provider_air_executor.engines.kubernetes.bundles import BundleOutput, Part, complete
from airflow_provider_air_executor.engines.kubernetes.output import TaskOutput
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import check_task_id
from airflow_provider_air_executor.jobs.store import JobStore

log = logging.getLogger("air_executor.manager")

NAME = "kubernetes"
_BUNDLE = f"{NAME}-bundle"
_INVALID = (ValueError, KeyError, TypeError, InvalidJobError)


class Handles:
    """The notes of one job filesystem.

    :param grace: seconds that tasks have between SIGTERM and SIGKILL.
    """

    def __init__(self, store: JobStore, grace: float) -> None:
        self._store = store
        self._grace = grace

    def path(self, attempt: Attempt) -> Path:
        """The note of an attempt."""
        return self._store.paths(attempt.job_name).handle(attempt.task_id, attempt.number, NAME)

    def _bundle_path(self, job_name: str, task_id: str, number: int) -> Path:
        """The note of a Pod that runs several, by the first of them."""
        return self._store.paths(job_name).handle(check_task_id(task_id), int(number), _BUNDLE)

    def others(self, pod: Pod) -> list[Path]:
        """The note of a Pod that runs several attempts, and of those that nobody has asked for."""
        parts = [run for run in pod.runs if isinstance(run, Part)]
        found = [pod.handle_path]
        for part in parts:
            if part.attempt is None:
                path = self._store.paths(pod.job_name).handle(part.task_id, part.number, NAME)
                with contextlib.suppress(OSError, *_INVALID):
                    if json.loads(files.read(path)[0])["bundle"] == [parts[0].task_id, parts[0].number]:
                        found.append(path)
        return found

    # -- writing ---------------------------------------------------------------------------------------------

    def write(self, attempt: Attempt, token: str, log_start: int, manifest: Mapping[str, Any]) -> Pod:
        """Note the Pod of one attempt.

        :raises OSError: if it cannot be written.
        """
        path = self.path(attempt)
        files.publish(path, _dump({"token": token, "log_start": log_start, "created": False, "pod": manifest}))
        return self._pod_of_one(attempt, token, log_start, manifest, path)

    def write_part(self, job_name: str, part: Part, first: Part) -> None:
        """Note whose Pod an attempt shares.

        :raises OSError: if it cannot be written.
        """
        path = self._store.paths(job_name).handle(part.task_id, part.number, NAME)
        files.publish(path, _dump({"token": part.token, "bundle": [first.task_id, first.number]}))

    def write_bundle(self, job_name: str, manifest: dict[str, Any], parts: Sequence[Part]) -> Pod:
        """Note a Pod that runs several attempts, each of which is noted already.

        :param manifest: that of the first, without its variables.
        :raises OSError: if it cannot be written.
        """
        path = self._bundle_path(job_name, parts[0].task_id, parts[0].number)
        files.publish(path, _dump({"created": False, "pod": manifest, "parts": [part.note() for part in parts]}))
        return self._pod_of_several(job_name, manifest, parts, path)

    def note_creation(self, pod: Pod) -> None:
        """Note that a Pod was created for certain, and is not to be created again."""
        if pod.is_detached:
            return
        try:
            note = json.loads(files.read(pod.handle_path)[0])
            files.replace(pod.handle_path, _dump({**note, "created": True}))
        except (OSError, ValueError) as error:
            log.warning("the note of %s could not be written: %s", pod, error)

    # -- reading ---------------------------------------------------------------------------------------------

    def read(self, attempt: Attempt, known: Mapping[Path, Pod]) -> tuple[Pod, Run] | None:
        """The Pod in which an attempt may run; None if it was never created.

        :param known: Pods by their notes, which are not read again.
        :raises OSError: if there is a note that cannot be read.
        """
        path = self.path(attempt)
        try:
            note = json.loads(files.read(path)[0])
            if "bundle" not in note:
                start, manifest = int(note["log_start"]), dict(note["pod"])
                pod = self._pod_of_one(attempt, str(note["token"]), start, manifest, path)
                pod.is_adopted, pod.is_created = True, bool(note.get("created"))
                return pod, pod.runs[0]
            bundle_path = self._bundle_path(attempt.job_name, *note["bundle"])
            pod = known.get(bundle_path) or self._read_bundle(attempt.job_name, bundle_path)
            return pod, next(run for run in pod.runs if run.token == note["token"])
        except (FileNotFoundError, *_INVALID, StopIteration):
            remove(path)
            return None

    def forget(self, attempt: Attempt) -> None:
        """Remove the note of an attempt that has a record, and that of its Pod if all others have one too."""
        path = self.path(attempt)
        with contextlib.suppress(OSError, *_INVALID):
            note = json.loads(files.read(path)[0])
            if "bundle" in note:
                bundle_path = self._bundle_path(attempt.job_name, *note["bundle"])
                parts = json.loads(files.read(bundle_path)[0])["parts"]
                if all(self._has_record(attempt.job_name, part) for part in parts):
                    remove(bundle_path)
        remove(path)

    def _has_record(self, job_name: str, part: Mapping[str, Any]) -> bool:
        return self._store.paths(job_name).record(check_task_id(part["task_id"]), int(part["number"])).exists()

    def _read_bundle(self, job_name: str, path: Path) -> Pod:
        note = json.loads(files.read(path)[0])
        parts = [
            Part(None, log_path=self._store.paths(job_name).log(check_task_id(part["task_id"])), **part)
            for part in note["parts"]
        ]
        pod = self._pod_of_several(job_name, dict(note["pod"]), parts, path)
        pod.is_adopted = True
        pod.is_created = bool(note.get("created")) or any(self._has_record(job_name, part) for part in note["parts"])
        return pod

    def is_expected(self, annotations: Mapping[str, str], token: str) -> bool:
        """Whether there is a note of a Pod that nobody attends."""
        try:
            job_name, task_id = annotations["air-executor/job"], check_task_id(annotations["air-executor/task"])
            number = int(annotations["air-executor/attempt"])
            name = _BUNDLE if pods.TASKS_ANNOTATION in annotations else NAME
            note = json.loads(files.read(self._store.paths(job_name).handle(task_id, number, name))[0])
            return bool(note["pod"]["metadata"]["labels"][pods.RUN_LABEL] == token)
        except (OSError, *_INVALID):
            return False

    # -- Pods ------------------------------------------------------------------------------------------------

    def _pod_of_one(self, attempt: Attempt, token: str, log_start: int, manifest: Mapping[str, Any], path: Path) -> Pod:
        log_path = self._store.paths(attempt.job_name).log(attempt.task_id)
        output = TaskOutput(pods.beginning(token), log_path, log_start, pods.end_marker(token))
        return Pod(attempt.job_name, token, manifest, manifest, output, path, [Run(attempt, token)])

    def _pod_of_several(self, job_name: str, manifest: dict[str, Any], parts: Sequence[Part], path: Path) -> Pod:
        token = str(manifest["metadata"]["labels"][pods.RUN_LABEL])
        whole = complete(manifest, parts, self._grace)
        return Pod(job_name, token, whole, manifest, BundleOutput(pods.beginning(token), parts), path, list(parts))


def remove(path: Path) -> None:
    """Remove a note, if that is possible."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _dump(note: Mapping[str, Any]) -> bytes:
    return json.dumps(note, ensure_ascii=False).encode()
