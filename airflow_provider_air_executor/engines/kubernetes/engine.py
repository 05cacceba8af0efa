"""The engine that the manager talks to: hands Pods over to the :class:`Controller`, and writes handles and records.

Before a Pod is created, its handle is written (``handles.py``). The handle has the name of the Pod, so the API server
refuses a second creation by the next manager. Once a Pod was created for certain the handle says so, and the Pod is not
created again.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from airflow_provider_air_executor.engines.batching import pop_tasks_per_submission
from airflow_provider_air_executor.engines.kubernetes import batches
from airflow_provider_air_executor.engines.kubernetes.attached import check_files
from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt
from airflow_provider_air_executor.engines.kubernetes.client import KubernetesClient
from airflow_provider_air_executor.engines.kubernetes.controller import Controller
from airflow_provider_air_executor.engines.kubernetes.credentials import find_credentials
from airflow_provider_air_executor.engines.kubernetes.handles import NAME, Handles, remove
from airflow_provider_air_executor.engines.kubernetes.manifest import Installation, make_manifest
from airflow_provider_air_executor.engines.kubernetes.options import read_options
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.shared import EventQueue, Left, Shared
from airflow_provider_air_executor.engines.kubernetes.task_options import KubernetesOptions, check_options
from airflow_provider_air_executor.engines.protocol import (
    Attempt,
    Context,
    Ended,
    Event,
    NotStarted,
    Running,
    SpawnError,
)
from airflow_provider_air_executor.engines.shim import modified_at, prepare_files, preparing
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import read_record
from airflow_provider_air_executor.jobs.models import Reason, Task, utc_now
from airflow_provider_air_executor.jobs.usage import usage_of
from airflow_provider_air_executor.jobs.validation import describe_validation_error

log = logging.getLogger("air_executor.manager")

_OWNER_FILE = "kubernetes.owner"
_REMOVE_HANDLE_SECONDS = 5.0  # after an end was emitted, within which the manager writes it down


@dataclass
class _Batch:
    """Attempts that are to share a Pod.

    :param manifest: that of the first attempt, without its variables.
    :param size: how many attempts it takes.
    """

    manifest: dict[str, Any]
    size: int
    attempts: list[BatchedAttempt]

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return len(self.attempts) >= self.size or sum(len(each.text) for each in self.attempts) > batches.LARGEST_SCRIPT


class KubernetesEngine:
    """Runs attempts in Pods, see the package.

    :raises SettingsError: if an option is not valid, or the API server or the credentials for it are not found.
    """

    has_own_files = True

    def __init__(self, context: Context) -> None:
        options = read_options(context.options)
        credentials = find_credentials(context.environment, kubeconfig=options.kubeconfig, context=options.context)
        client = KubernetesClient(credentials)
        base_path = context.store.base_path
        shared_path = str(base_path.absolute()) if options.share_job_files else None
        namespace = options.namespace or credentials.namespace
        self._store = context.store
        self._handles = Handles(context.store, context.kill_grace)
        self._options = options
        self._tasks_per_submission = pop_tasks_per_submission(dict(options), NAME)
        self._installation = Installation(_find_owner(base_path), namespace, shared_path)
        self._pods: dict[Attempt, Pod] = {}
        self._batches: dict[Path, Pod] = {}  # Pods of batches, by their handles
        self._gathered: dict[tuple[str, str], _Batch] = {}  # attempts that are to share a Pod
        # Pods of an earlier manager, as long as the manager may adopt more of their attempts.
        self._arriving: dict[Path, Pod] = {}
        self._cancelled: dict[Attempt, bool] = {}  # and whether it is killed
        self._events = EventQueue()
        shared = Shared(client, options, self._installation, context.kill_grace, self._handles, self._events)
        self._controller = Controller(shared)

    # -- what the manager calls ------------------------------------------------------------------------------

    @property
    def descriptor(self) -> int:
        """Readable when there are events."""
        return self._events.descriptor

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called: to submit what was gathered, or to remove a handle."""
        return 0.0 if self._gathered or self._arriving else self._handles.remove_after

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> bool:
        """Hand an attempt to Kubernetes; it waits for its turn there."""
        job_name, task_id, number = attempt[:3]
        try:
            given = task.engine_options(NAME)
            options = check_options(given).over(self._options)
        except ValidationError as error:
            raise SpawnError(describe_validation_error(error, NAME)) from None
        except ValueError as error:
            raise SpawnError(f"{NAME}.{error}") from None
        paths = self._store.paths(job_name)
        log_path = paths.log(task_id)
        with preparing("Kubernetes"):
            start = prepare_files(paths.output(task_id, number), log_path)
            attached = options.attached_files if self._installation.shared_path is None else None
            check_files(paths, attached or ())
        token = secrets.token_hex(8)
        batched = BatchedAttempt(attempt, token, task_id, number, log_path=log_path, log_start=start)
        size = pop_tasks_per_submission(given, NAME, self._tasks_per_submission)
        if size > 1 and not attached and batches.can_share(task):
            text = batches.attempt_text(task, self._installation.variables_of(attempt, None))
            if len(text) <= batches.LARGEST_TEXT:
                batched.text = text
                self._gather(attempt, batched, task, options, size)
                return True
        manifest = make_manifest(attempt, task, options, self._installation, token)
        with preparing("Kubernetes"):
            pod = self._handles.write(job_name, batched, manifest)
        self._reconcile(pod)
        return True

    def _reconcile(self, pod: Pod) -> None:
        if pod.is_batch:
            self._batches[pod.handle_path] = pod
        self._pods.update({each.attempt: pod for each in pod.attempts if each.attempt is not None})
        self._controller.reconcile(pod)

    def poll(self) -> list[Event]:
        """Events since the last call."""
        self._submit_gathered()
        self._reconcile_arrived()
        events = []
        for event in self._events.take():
            if isinstance(event, Left):
                self._resubmit(event.pod, event.attempts)
                continue
            events.append(event)
            if isinstance(event, Ended | NotStarted):
                self._cancelled.pop(event.attempt, None)
                self._release(event.attempt, may_restart=isinstance(event, NotStarted))
        self._handles.remove_due()
        return events

    def _release(self, attempt: Attempt, *, may_restart: bool) -> None:
        """Remove the handle of an attempt that has ended; with the last one of a batch, that of its Pod.

        :param may_restart: whether it may be started again at once, with a handle of the same name.
        """
        pod = self._pods.pop(attempt, None)
        if pod is None:
            return
        paths = [self._handles.path(attempt)]
        if self._batches.get(pod.handle_path) is pod and pod not in self._pods.values():
            del self._batches[pod.handle_path]
            paths += self._handles.of_batch(pod)
        if pod.is_detached:
            return
        if may_restart:
            for path in paths:
                remove(path)
        else:
            self._handles.remove_later(paths, _REMOVE_HANDLE_SECONDS)

    # -- batches ---------------------------------------------------------------------------------------------

    def _gather(
        self, attempt: Attempt, batched: BatchedAttempt, task: Task, options: KubernetesOptions, size: int
    ) -> None:
        """Have an attempt share a Pod with others of its job that are started now and need the same.

        Its handle names the first of them; as long as their Pod has no handle, nothing was handed to Kubernetes.
        """
        key = attempt.job_name, f"{size} {options!r} {task.resources!r}"
        batch = self._gathered.get(key)
        if batch is None:
            bare = task.model_copy(update={"env": None})
            manifest = make_manifest(attempt, bare, options, self._installation, secrets.token_hex(8))
            batch = _Batch(manifest, size, [])
        with preparing("Kubernetes"):
            self._handles.write_attempt(attempt.job_name, batched, (batch.attempts or [batched])[0])
        batch.attempts.append(batched)
        self._gathered[key] = batch
        if batch.is_full:
            self._submit(attempt.job_name, self._gathered.pop(key))

    def _submit_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for (job_name, _), batch in gathered.items():
            self._submit(job_name, batch)

    def _submit(self, job_name: str, batch: _Batch) -> None:
        try:
            pod = self._handles.write_batch(job_name, batch.manifest, batch.attempts)
        except OSError as error:
            self._not_started(batch.attempts, error)
        else:
            self._reconcile(pod)

    def _not_started(self, attempts: Sequence[BatchedAttempt], error: OSError) -> None:
        why = f"what Kubernetes is to run cannot be written: {error.strerror}"
        for each in attempts:
            if each.attempt is not None:
                self._events.put(NotStarted(each.attempt, why))

    def _resubmit(self, old: Pod, attempts: Sequence[BatchedAttempt]) -> None:
        """Have another Pod run the attempts that have not begun in one that is over."""
        wanted = {each.attempt: each for each in attempts if each.attempt is not None}
        for attempt in [attempt for attempt in wanted if attempt in self._cancelled or old.is_detached]:
            del wanted[attempt]
            self._events.put(Ended(attempt, None, utc_now()))
        if not wanted or old.bare_manifest is None:
            return
        fresh = [BatchedAttempt(attempt, log_path=each.log_path, **each.handle) for attempt, each in wanted.items()]
        manifest = batches.renew(old.bare_manifest, next(iter(wanted)))
        try:
            for each in fresh:
                self._handles.write_attempt(old.job_name, each, fresh[0])
            pod = self._handles.write_batch(old.job_name, manifest, fresh)
        except OSError as error:
            self._not_started(fresh, error)
            return
        log.info("%s was over before it had begun %d of its tasks; %s runs them", old, len(fresh), pod)
        self._reconcile(pod)
        if old.handle_path != pod.handle_path and old not in self._pods.values():
            self._batches.pop(old.handle_path, None)
            self._handles.remove_later([old.handle_path], _REMOVE_HANDLE_SECONDS)

    # -- attempts of an earlier manager ------------------------------------------------------------------------

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Adopt an attempt that an earlier manager may have started."""
        job_name, task_id, number = attempt[:3]
        record_path = str(self._store.paths(job_name).record(task_id, number))
        record = read_record(record_path)
        if record is not None and record.exit_code is not None:
            if attempt not in self._pods:
                self._handles.forget(attempt)
            return Ended(attempt, record.exit_code, modified_at(record_path), record.started_at, usage=usage_of(record))
        if attempt in self._pods:
            return Running(attempt, None, waits=True)
        try:
            found = self._handles.read(attempt, self._batches)
        except OSError as error:
            if error.errno in files.TRANSIENT:
                raise
            why = f"what was handed to Kubernetes cannot be read: {error}"
            return Ended(attempt, None, utc_now(), None, Reason.LOST, why, may_repeat=False)
        if found is None:
            return None  # its handle was never written whole, and so its Pod was never created
        pod, batched = found
        self._pods[attempt] = pod
        if not pod.is_batch:
            self._reconcile(pod)
        elif pod.handle_path in self._batches and pod.handle_path not in self._arriving:
            self._controller.bind(pod, batched, attempt)
        else:
            self._batches[pod.handle_path] = self._arriving[pod.handle_path] = pod
            batched.attempt = attempt
        return Running(attempt, None, waits=True)

    def _reconcile_arrived(self) -> None:
        arrived, self._arriving = self._arriving, {}
        for pod in arrived.values():
            self._reconcile(pod)
            for each in pod.attempts:
                if each.attempt in self._cancelled:
                    self._controller.cancel(pod, each.attempt, kill=self._cancelled[each.attempt])

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt."""
        self._submit_gathered()
        if attempt in self._pods:
            self._cancelled[attempt] = kill
            if self._pods[attempt].handle_path not in self._arriving:
                self._controller.cancel(self._pods[attempt], attempt, kill=kill)

    def detach(self, attempt: Attempt) -> None:
        """The job of an attempt is gone."""
        self._submit_gathered()
        if attempt in self._pods:
            self._pods[attempt].is_detached = True

    def kill_orphan(self, attempt: Attempt) -> None:
        """Kill an attempt of a job that is gone, by its handle."""
        if isinstance(self.adopt(attempt), Running):
            self.detach(attempt)
            self.cancel(attempt, kill=True)

    def prepare(self) -> None:
        """Nothing is started ahead."""

    def close(self) -> None:
        """The Pods go on, and the next manager finds their handles."""
        self._controller.close()
        self._handles.remove_due(float("inf"))
        self._events.close()


def _find_owner(base_path: Path) -> str:
    """The label of all Pods of this base path: made once, and kept there.

    :raises SettingsError: if it cannot be written or read.
    """
    path = base_path / _OWNER_FILE
    base_path.mkdir(parents=True, exist_ok=True)
    try:
        if not path.exists():
            files.publish(path, secrets.token_hex(8).encode())
        owner = files.read(path)[0].decode().strip()
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error}") from error
    if not owner.isalnum():
        raise SettingsError(f"{path} does not hold what was written there")
    return owner
