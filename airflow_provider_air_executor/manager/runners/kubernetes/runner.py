"""What the manager talks to: hands attempts over to the :class:`Attendant`, and keeps their notes and records.

Before a Pod is created, its description is written to ``runs/<task id>.<attempt>.on-kubernetes``. The name of the Pod
stands in it: a second creation, by the next manager, is refused by the API server. When a Pod was created for certain
the note says so, and from then on it is not created again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, Field, ValidationError

from airflow_provider_air_executor.exceptions import InvalidJobError, SettingsError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import (
    KubernetesOptions,
    Reason,
    Seconds,
    Task,
    check_task_id,
    describe_validation_error,
)
from airflow_provider_air_executor.manager.runners.kubernetes.attendant import Attendant, Limits, Pod
from airflow_provider_air_executor.manager.runners.kubernetes.credentials import find_access
from airflow_provider_air_executor.manager.runners.kubernetes.output import Output
from airflow_provider_air_executor.manager.runners.kubernetes.pods import end_marker, make_manifest
from airflow_provider_air_executor.manager.runners.protocol import (
    Attempt,
    Context,
    Ended,
    Event,
    Running,
)
from airflow_provider_air_executor.manager.runners.records import create_log, modified_at, preparing, read_record

log = logging.getLogger("air_executor.manager")

NAME = "kubernetes"
_OWNER_FILE = "kubernetes.owner"
_KEEP_NOTE_SECONDS = 5.0  # after an end was told: the manager has written it down by then
_PLAIN = (None, Reason.EXIT)


class RunnerOptions(KubernetesOptions):
    """What ``config.yaml`` says under ``runners.kubernetes``.

    That is how Pods look whose tasks do not say, see :class:`KubernetesOptions`, and:

    :param kubeconfig: path of the file that says where the API server is and who we are; default: ``KUBECONFIG``, or
        as a Pod of the cluster itself, or ``~/.kube/config``.
    :param context: the context of that file; default: its current one.
    :param pod_template: as for a task, or the path of a YAML file.
    :param share_job_files: whether the base path is mounted in the Pods at the same path; they are told then where
        their job is. Default false.
    :param lost_after: seconds for which a node may not answer before its tasks are lost; default 60.
    :param fenced: whether such a node is then known to be off, so that what it ran may be tried again; default false.
    :param stuck_after: seconds for which a Pod may want for its image or a secret before its task fails; default 60.
    :param start_within: seconds for which a node may take to start a Pod, pulling its image included; default 900.
    :param unschedulable_after: seconds for which a Pod may find no node before its task fails; default: for ever, if a
        node could run it that is full now.
    :param autoscaled: whether nodes are made when they are needed, so that those which are there now do not say what
        can run; default false.
    :param ttl: seconds for which a Pod is kept after its end; default 60.
    :param log_streams: how many tasks have their output read while they run; that of the others comes at their end.
        Default 200.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    kubeconfig: str | None = None
    context: str | None = None
    pod_template: dict[str, Any] | str | None = None  # type: ignore[assignment]
    share_job_files: bool = False
    lost_after: Seconds = 60.0
    fenced: bool = False
    stuck_after: Seconds = 60.0
    start_within: Seconds = 900.0
    unschedulable_after: Seconds | None = None
    autoscaled: bool = False
    ttl: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    log_streams: int = Field(default=200, ge=1)


class KubernetesRunner:
    """Runs attempts in Pods, see the package.

    :raises SettingsError: if an option is not valid, or it is not known where the API server is.
    """

    def __init__(self, context: Context) -> None:
        options = _read_options(context.options)
        access = find_access(context.environment, kubeconfig=options.kubeconfig, context=options.context)
        self._store = context.store
        self._owner = _find_owner(context.store.base_path)
        self._options = options
        self._namespace = options.namespace or access.namespace
        self._pods: dict[Attempt, Pod] = {}
        self._events: deque[Event] = deque()
        self._old_notes: deque[tuple[float, Attempt]] = deque()
        self._readable, self._writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        limits = Limits(
            lost_after=options.lost_after,
            stuck_after=options.stuck_after,
            start_within=options.start_within,
            unschedulable_after=options.unschedulable_after,
            ttl=options.ttl,
            grace=context.kill_grace,
            is_fenced=options.fenced,
            is_autoscaled=options.autoscaled,
            log_streams=options.log_streams,
        )
        self._attendant = Attendant(
            access,
            self._owner,
            limits,
            tell=self._take_event,
            created=self._note_creation,
            keep=self._keep,
            is_expected=self._is_expected,
        )
        self._attendant.watch(self._namespace)

    # -- what the manager asks -------------------------------------------------------------------------------

    @property
    def descriptor(self) -> int:
        """Readable when there are events."""
        return self._readable

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called: to remove a note."""
        return max(0.0, self._old_notes[0][0] - time.monotonic()) if self._old_notes else None

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> bool:
        """Hand an attempt to Kubernetes; it waits for its turn there."""
        job_name, task_id, number = attempt[:3]
        options = (task.kubernetes or KubernetesOptions()).over(self._options)
        token = secrets.token_hex(8)
        shared = str(self._store.base_path.absolute()) if self._options.share_job_files else None
        manifest = make_manifest(
            attempt, task, options, owner=self._owner, token=token, namespace=self._namespace, shared=shared
        )
        log_path = self._store.log_path(job_name, task_id)
        with preparing("Kubernetes"):
            with contextlib.suppress(FileNotFoundError):
                self._store.output_path(job_name, task_id, number).unlink()
            create_log(str(log_path))
            start = os.stat(log_path).st_size
            note = {"token": token, "log_start": start, "created": False, "pod": manifest}
            files.publish(self._note_path(attempt), _dump(note))
        self._attend(Pod(attempt, token, manifest, Output(log_path, start, end_marker(token))))
        return True

    def _attend(self, pod: Pod) -> None:
        self._pods[pod.attempt] = pod
        self._attendant.attend(pod)

    def poll(self) -> list[Event]:
        """What has happened since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, 65536)
        events = []
        while self._events:
            event = self._events.popleft()
            events.append(event)
            if isinstance(event, Ended):
                pod = self._pods.pop(event.attempt)
                if not pod.is_disowned:
                    self._old_notes.append((time.monotonic() + _KEEP_NOTE_SECONDS, event.attempt))
        self._remove_notes(time.monotonic())
        return events

    def _remove_notes(self, until: float) -> None:
        """Remove the notes of what has ended; there is an environment in them."""
        while self._old_notes and self._old_notes[0][0] <= until:
            _, attempt = self._old_notes.popleft()
            with contextlib.suppress(OSError):
                self._note_path(attempt).unlink(missing_ok=True)

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Take over an attempt that an earlier manager may have started."""
        job_name, task_id, number = attempt[:3]
        record_path = str(self._store.run_path(job_name, task_id, number))
        record = read_record(record_path)
        if record is not None and record.exit_code is not None:
            return Ended(attempt, record.exit_code, modified_at(record_path), record.started_at)
        if attempt in self._pods:
            return Running(attempt, None, waits=True)
        try:
            note = json.loads(files.read(self._note_path(attempt))[0])
            token, manifest, start = str(note["token"]), dict(note["pod"]), int(note["log_start"])
        except (OSError, ValueError, KeyError, TypeError):
            self._note_path(attempt).unlink(missing_ok=True)
            return None  # it was never written whole, and so never created
        output = Output(self._store.log_path(job_name, task_id), start, end_marker(token))
        pod = Pod(attempt, token, manifest, output, is_adopted=True, is_created=bool(note.get("created")))
        self._attend(pod)
        return Running(attempt, None, waits=True)

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt."""
        if attempt in self._pods:
            self._attendant.cancel(self._pods[attempt], kill=kill)

    def disown(self, attempt: Attempt) -> None:
        """The job of an attempt is gone."""
        if attempt in self._pods:
            self._pods[attempt].is_disowned = True

    def kill_recorded(self, attempt: Attempt) -> None:
        """Kill what an attempt has started according to its note."""
        if isinstance(self.adopt(attempt), Running):
            self.disown(attempt)
            self.cancel(attempt, kill=True)

    def prepare(self) -> None:
        """Nothing is started ahead."""

    def close(self) -> None:
        """The Pods go on, and the next manager finds their notes."""
        self._attendant.close()
        self._remove_notes(float("inf"))
        for descriptor in (self._readable, self._writable):
            os.close(descriptor)

    # -- what the attendant's thread calls -------------------------------------------------------------------

    def _take_event(self, event: Event) -> None:
        self._events.append(event)
        with contextlib.suppress(BlockingIOError):  # it is readable already
            os.write(self._writable, b"\0")

    def _note_creation(self, pod: Pod) -> None:
        """A Pod was created for certain, and is not created again."""
        if pod.is_disowned:
            return
        try:
            path = self._note_path(pod.attempt)
            note = json.loads(files.read(path)[0])
            files.replace(path, _dump({**note, "created": True}))
        except (OSError, ValueError) as error:
            log.warning("the note of %s could not be written: %s", pod, error)

    def _keep(self, pod: Pod, ended: Ended, result: bytes | None) -> None:
        """Write down how a Pod has ended, before anybody is told."""
        if ended.exit_code is None:
            return
        job_name, task_id, number = pod.attempt[:3]
        if result is not None:
            files.publish(self._store.output_path(job_name, task_id, number), result)
        if ended.reason in _PLAIN:  # the next manager would not know of another reason, but it can ask the API server
            started_at = (ended.started_at or ended.ended_at).isoformat()
            record = f"0 {started_at} {pod.token}\n{ended.exit_code}\n".encode()
            files.publish(self._store.run_path(job_name, task_id, number), record)

    def _is_expected(self, annotations: Mapping[str, str], token: str) -> bool:
        """Whether there is a note of a Pod that nobody attends."""
        try:
            job_name, task_id = annotations["air-executor/job"], check_task_id(annotations["air-executor/task"])
            number = int(annotations["air-executor/attempt"])
            path = self._store.note_path(job_name, task_id, number, NAME)
            return bool(json.loads(files.read(path)[0])["token"] == token)
        except (OSError, ValueError, KeyError, TypeError, InvalidJobError):
            return False

    # -- notes -----------------------------------------------------------------------------------------------

    def _note_path(self, attempt: Attempt) -> Path:
        return self._store.note_path(attempt.job_name, attempt.task_id, attempt.number, NAME)


def _dump(note: Mapping[str, Any]) -> bytes:
    return json.dumps(note, ensure_ascii=False).encode()


def _read_options(given: Mapping[str, Any]) -> RunnerOptions:
    """The options of the runner, with the template that they may name.

    :raises SettingsError: naming each that is not valid.
    """
    try:
        options = RunnerOptions.model_validate(dict(given))
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, "runners.kubernetes")) from None
    if not isinstance(options.pod_template, str):
        return options
    path = Path(options.pod_template).expanduser()
    try:
        template = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"runners.kubernetes.pod_template: {path} cannot be read: {error}") from None
    if not isinstance(template, dict):
        raise SettingsError(f"runners.kubernetes.pod_template: {path} is not the description of a Pod")
    return options.model_copy(update={"pod_template": template})


def _find_owner(base_path: Path) -> str:
    """What tells the Pods of this base path from those of all others: made once, and kept there."""
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
