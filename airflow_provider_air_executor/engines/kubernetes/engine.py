"""What the manager talks to: hands attempts over to the :class:`Attendant`, and keeps their notes and records.

Before a Pod is created, it is noted (``handles.py``). Its name stands in the note: a second creation, by the next
manager, is refused by the API server. When a Pod was created for certain the note says so, and from then on it is not
created again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ConfigDict, Field, ValidationError

from airflow_provider_air_executor.engines.kubernetes import bundles
from airflow_provider_air_executor.engines.kubernetes.api import Api
from airflow_provider_air_executor.engines.kubernetes.attendant import Attendant, Limits
from airflow_provider_air_executor.engines.kubernetes.attended import Pod, Run
from airflow_provider_air_executor.engines.kubernetes.bundles import BundleOutput, Part
from airflow_provider_air_executor.engines.kubernetes.credentials import find_access
from airflow_provider_air_executor.engines.kubernetes.handles import Handles, remove
from airflow_provider_air_executor.engines.kubernetes.pods import make_manifest
from airflow_provider_air_executor.engines.protocol import (
    Attempt,
    Context,
    Ended,
    Event,
    NotStarted,
    Running,
)
from airflow_provider_air_executor.engines.shim import (
    modified_at,
    preparing,
    task_variables,
)
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.attempt_record import Record, read_record
from airflow_provider_air_executor.jobs.models import (
    KubernetesOptions,
    Reason,
    Seconds,
    Task,
    describe_validation_error,
    utc_now,
)

log = logging.getLogger("air_executor.manager")

_OWNER_FILE = "kubernetes.owner"
_KEEP_HANDLE_SECONDS = 5.0  # after an end was told: the manager has written it down by then
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


@dataclass
class _Bundle:
    """What is to share a Pod.

    :param manifest: that of the first attempt, without its variables.
    :param size: how many attempts there may be.
    """

    manifest: dict[str, Any]
    size: int
    parts: list[Part]

    @property
    def is_full(self) -> bool:
        """Whether it takes no more."""
        return len(self.parts) >= self.size or sum(len(part.text) for part in self.parts) > bundles.LARGEST_SCRIPT


class _Left(NamedTuple):
    """What a Pod that is over has not come to."""

    pod: Pod
    parts: list[Part]


class KubernetesEngine:
    """Runs attempts in Pods, see the package.

    :raises SettingsError: if an option is not valid, or it is not known where the API server is, or how to ask it.
    """

    has_own_files = True

    def __init__(self, context: Context) -> None:
        options = _read_options(context.options)
        access = find_access(context.environment, kubeconfig=options.kubeconfig, context=options.context)
        api = Api(access)
        self._store = context.store
        self._handles = Handles(context.store, context.kill_grace)
        self._owner = _find_owner(context.store.base_path)
        self._options = options
        self._shared = str(context.store.base_path.absolute()) if options.share_job_files else None
        self._namespace = options.namespace or access.namespace
        self._pods: dict[Attempt, Pod] = {}
        self._bundles: dict[Path, Pod] = {}  # Pods that run several attempts, by their notes
        self._gathered: dict[tuple[str, str], _Bundle] = {}  # what is to share a Pod
        # Pods of an earlier manager, as long as we may be asked for more of their attempts.
        self._arriving: dict[Path, Pod] = {}
        self._cancelled: dict[Attempt, bool] = {}  # and whether it is killed
        self._events: deque[Event | _Left] = deque()
        self._old_handles: deque[tuple[float, Path]] = deque()
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
            api,
            self._owner,
            limits,
            tell=self._take_event,
            again=lambda pod, parts: self._take_event(_Left(pod, parts)),
            created=self._handles.note_creation,
            keep=self._keep,
            is_expected=self._handles.is_expected,
        )
        self._attendant.watch(self._namespace)

    # -- what the manager asks -------------------------------------------------------------------------------

    @property
    def descriptor(self) -> int:
        """Readable when there are events."""
        return self._readable

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called: to submit what was gathered, or to remove a note."""
        if self._gathered or self._arriving:
            return 0.0
        return max(0.0, self._old_handles[0][0] - time.monotonic()) if self._old_handles else None

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> bool:
        """Hand an attempt to Kubernetes; it waits for its turn there."""
        job_name, task_id, number = attempt[:3]
        options = (task.kubernetes or KubernetesOptions()).over(self._options)
        paths = self._store.paths(job_name)
        log_path = paths.log(task_id)
        with preparing("Kubernetes"):
            with contextlib.suppress(FileNotFoundError):
                paths.output(task_id, number).unlink()
            os.close(files.open_log(log_path))
            start = os.stat(log_path).st_size
        token = secrets.token_hex(8)
        if (options.bundle or 1) > 1 and bundles.can_share(task):
            directory = f"{self._shared}/jobs/{job_name}" if self._shared is not None else None
            text = bundles.part_text(task, task_variables(attempt, directory, None))
            part = Part(attempt, token, task_id=task_id, number=number, text=text, log_path=log_path, log_start=start)
            if len(text) <= bundles.LARGEST_PART:
                self._gather(attempt, part, task, options)
                return True
        manifest = self._make_manifest(attempt, task, options, token)
        with preparing("Kubernetes"):
            pod = self._handles.write(attempt, token, start, manifest)
        self._attend(pod)
        return True

    def _make_manifest(self, attempt: Attempt, task: Task, options: KubernetesOptions, token: str) -> dict[str, Any]:
        owner, namespace, shared = self._owner, self._namespace, self._shared
        return make_manifest(attempt, task, options, owner=owner, token=token, namespace=namespace, shared=shared)

    def _attend(self, pod: Pod) -> None:
        if isinstance(pod.output, BundleOutput):
            self._bundles[pod.handle_path] = pod
        self._pods.update({run.attempt: pod for run in pod.runs if run.attempt is not None})
        self._attendant.attend(pod)

    def poll(self) -> list[Event]:
        """What has happened since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._readable, 65536)
        self._submit_gathered()
        self._attend_arrived()
        events = []
        while self._events:
            event = self._events.popleft()
            if isinstance(event, _Left):
                self._submit_again(event.pod, event.parts)
                continue
            events.append(event)
            if isinstance(event, Ended | NotStarted):
                self._cancelled.pop(event.attempt, None)
                self._let_go(event.attempt, 0.0 if isinstance(event, NotStarted) else _KEEP_HANDLE_SECONDS)
        self._remove_handles(time.monotonic())
        return events

    def _let_go(self, attempt: Attempt, seconds: float) -> None:
        """An attempt is not the Pod's any more: its note goes, and that of the Pod with the last one.

        :param seconds: after which they go; what is started again has a note of the same name.
        """
        pod = self._pods.pop(attempt, None)
        if pod is None:
            return
        paths = [self._handles.path(attempt)]
        if self._bundles.get(pod.handle_path) is pod and pod not in self._pods.values():
            del self._bundles[pod.handle_path]
            paths += self._handles.others(pod)
        if pod.is_detached:
            return
        if seconds == 0:
            for path in paths:
                remove(path)
        else:
            self._old_handles.extend((time.monotonic() + seconds, path) for path in paths)

    def _remove_handles(self, until: float) -> None:
        """Remove the notes of what has ended; there is an environment in them."""
        while self._old_handles and self._old_handles[0][0] <= until:
            remove(self._old_handles.popleft()[1])

    # -- several attempts in one Pod -------------------------------------------------------------------------

    def _gather(self, attempt: Attempt, part: Part, task: Task, options: KubernetesOptions) -> None:
        """Have an attempt share a Pod with others of its job that are started now and need the same.

        It is noted in which Pod; as long as that has no note itself, nothing has been handed to Kubernetes.
        """
        key = attempt.job_name, f"{options!r} {task.resources!r}"
        bundle = self._gathered.get(key)
        if bundle is None:
            bare = task.model_copy(update={"env": None})
            manifest = self._make_manifest(attempt, bare, options, secrets.token_hex(8))
            bundle = _Bundle(manifest, options.bundle or 1, [])
        with preparing("Kubernetes"):
            self._handles.write_part(attempt.job_name, part, (bundle.parts or [part])[0])
        bundle.parts.append(part)
        self._gathered[key] = bundle
        if bundle.is_full:
            self._submit(attempt.job_name, self._gathered.pop(key))

    def _submit_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for (job_name, _), bundle in gathered.items():
            self._submit(job_name, bundle)

    def _submit(self, job_name: str, bundle: _Bundle) -> None:
        try:
            pod = self._handles.write_bundle(job_name, bundle.manifest, bundle.parts)
        except OSError as error:
            self._not_started(bundle.parts, error)
        else:
            self._attend(pod)

    def _not_started(self, parts: Sequence[Part], error: OSError) -> None:
        why = f"what Kubernetes is to run cannot be written: {error.strerror}"
        self._events.extend(NotStarted(part.attempt, why) for part in parts if part.attempt is not None)

    def _submit_again(self, old: Pod, parts: Sequence[Part]) -> None:
        """Have another Pod run what one that is over has not come to."""
        wanted = {part.attempt: part for part in parts if part.attempt is not None}
        for attempt in [attempt for attempt in wanted if attempt in self._cancelled or old.is_detached]:
            del wanted[attempt]
            self._events.append(Ended(attempt, None, utc_now()))
        if not wanted:
            return
        fresh = [Part(attempt, log_path=part.log_path, **part.note()) for attempt, part in wanted.items()]
        manifest = bundles.renew(old.noted, next(iter(wanted)))
        try:
            for part in fresh:
                self._handles.write_part(old.job_name, part, fresh[0])
            pod = self._handles.write_bundle(old.job_name, manifest, fresh)
        except OSError as error:
            self._not_started(fresh, error)
            return
        log.info("%s was over before it had come to %d of its tasks; %s runs them", old, len(fresh), pod)
        self._attend(pod)
        if old.handle_path != pod.handle_path and old not in self._pods.values():
            self._bundles.pop(old.handle_path, None)
            self._old_handles.append((time.monotonic() + _KEEP_HANDLE_SECONDS, old.handle_path))

    # -- what an earlier manager has left ----------------------------------------------------------------------

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Take over an attempt that an earlier manager may have started."""
        job_name, task_id, number = attempt[:3]
        record_path = str(self._store.paths(job_name).record(task_id, number))
        record = read_record(record_path)
        if record is not None and record.exit_code is not None:
            if attempt not in self._pods:
                self._handles.forget(attempt)
            return Ended(attempt, record.exit_code, modified_at(record_path), record.started_at)
        if attempt in self._pods:
            return Running(attempt, None, waits=True)
        try:
            found = self._handles.read(attempt, self._bundles)
        except OSError as error:
            if error.errno in files.TRANSIENT:
                raise
            why = f"what was handed to Kubernetes cannot be read: {error}"
            return Ended(attempt, None, utc_now(), None, Reason.LOST, why, may_repeat=False)
        if found is None:
            return None  # it was never noted whole, and so never created
        pod, run = found
        self._pods[attempt] = pod
        if not isinstance(run, Part):
            self._attend(pod)
        elif pod.handle_path in self._bundles and pod.handle_path not in self._arriving:
            self._attendant.bind(pod, run, attempt)
        else:
            self._bundles[pod.handle_path] = self._arriving[pod.handle_path] = pod
            run.attempt = attempt
        return Running(attempt, None, waits=True)

    def _attend_arrived(self) -> None:
        arrived, self._arriving = self._arriving, {}
        for pod in arrived.values():
            self._attend(pod)
            for run in pod.runs:
                if run.attempt in self._cancelled:
                    self._attendant.cancel(pod, run.attempt, kill=self._cancelled[run.attempt])

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt."""
        self._submit_gathered()
        if attempt in self._pods:
            self._cancelled[attempt] = kill
            if self._pods[attempt].handle_path not in self._arriving:
                self._attendant.cancel(self._pods[attempt], attempt, kill=kill)

    def detach(self, attempt: Attempt) -> None:
        """The job of an attempt is gone."""
        self._submit_gathered()
        if attempt in self._pods:
            self._pods[attempt].is_detached = True

    def kill_orphan(self, attempt: Attempt) -> None:
        """Kill what an attempt has started according to its note."""
        if isinstance(self.adopt(attempt), Running):
            self.detach(attempt)
            self.cancel(attempt, kill=True)

    def prepare(self) -> None:
        """Nothing is started ahead."""

    def close(self) -> None:
        """The Pods go on, and the next manager finds their notes."""
        self._attendant.close()
        self._remove_handles(float("inf"))
        for descriptor in (self._readable, self._writable):
            os.close(descriptor)

    # -- what the attendant's thread calls -------------------------------------------------------------------

    def _take_event(self, event: Event | _Left) -> None:
        self._events.append(event)
        with contextlib.suppress(BlockingIOError):  # it is readable already
            os.write(self._writable, b"\0")

    def _keep(self, run: Run, ended: Ended, result: bytes | None) -> None:
        """Write down how an attempt has ended, before anybody is told."""
        if ended.exit_code is None or run.attempt is None:
            return
        job_name, task_id, number = run.attempt[:3]
        paths = self._store.paths(job_name)
        if result is not None:
            files.publish(paths.output(task_id, number), result)
        if ended.reason in _PLAIN:  # the next manager would not know of another reason, but it can ask the API server
            record = Record(0, ended.started_at or ended.ended_at, run.token, ended.exit_code)
            files.publish(paths.record(task_id, number), record.text)


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
