"""Reconciles Pods in a thread with an event loop of its own, since requests take time and the manager must not wait.

While the API server does not answer, all requests are repeated and no attempt is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable

from airflow_provider_air_executor.engines.kubernetes.attached import PodSecret
from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt
from airflow_provider_air_executor.engines.kubernetes.client import ApiError, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.endings import lacks_a_reason, last_end
from airflow_provider_air_executor.engines.kubernetes.log_reader import END_SEEN_SECONDS, LogReader
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.pod_status import Status, read_status
from airflow_provider_air_executor.engines.kubernetes.progress import Progress
from airflow_provider_air_executor.engines.kubernetes.shared import FIRST_PAUSE, LONGEST_PAUSE, Left, Pause, Shared
from airflow_provider_air_executor.engines.kubernetes.start_checks import Nodes, PodFailedError, StartChecks
from airflow_provider_air_executor.engines.kubernetes.watcher import Cleanup, Watcher
from airflow_provider_air_executor.engines.protocol import Attempt, Started
from airflow_provider_air_executor.jobs.models import Reason, utc_now

log = logging.getLogger("air_executor.manager")

_REFUSALS = 3  # an API server that has just been started may not have loaded its access rights yet
_HIDDEN_SECONDS = 5.0  # between two requests for a Pod that the watch does not show
_LAST_LOOK_SECONDS = 3.0  # in which a container that is to be deleted may start, so that its output can be read
_LEAVE_SECONDS = 3  # after SIGTERM, in which the container of a batch says which attempts have not begun


class Controller:
    """Reconciles Pods. Its methods are called by other threads than its own.

    :param shared: the client in it is closed with this.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._reconcilers: dict[Pod, Reconciler] = {}
        self._cleanup = Cleanup(shared)
        self._nodes = Nodes(shared)
        self._watcher = Watcher(shared, self._cleanup)
        self._thread = threading.Thread(target=self._run, name="kubernetes", daemon=True)
        self._thread.start()
        self.call(self._watcher.watch, shared.installation.namespace)  # where an earlier manager may have left Pods

    def _run(self) -> None:
        loop = self._shared.loop
        asyncio.set_event_loop(loop)
        loop.run_forever()
        running = asyncio.all_tasks(loop)
        for task in running:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*running, return_exceptions=True))
        loop.run_until_complete(self._shared.client.close())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call something in the thread of the controller."""
        self._shared.loop.call_soon_threadsafe(function, *args)

    def close(self) -> None:
        """Release all Pods. They go on."""
        self.call(self._shared.loop.stop)
        self._thread.join(10)

    def reconcile(self, pod: Pod) -> None:
        """Reconcile a Pod until its attempts have ended."""
        self.call(self._reconcile, pod)

    def _reconcile(self, pod: Pod) -> None:
        self._shared.pods[pod.token] = pod
        self._watcher.watch(pod.namespace)
        self._reconcilers[pod] = reconciler = Reconciler(pod, self._shared, self._cleanup, self._nodes)
        self._shared.spawn(reconciler.reconcile()).add_done_callback(lambda _: self._reconcilers.pop(pod))

    def bind(self, pod: Pod, batched: BatchedAttempt, attempt: Attempt) -> None:
        """Say which attempt it is that runs in a Pod of an earlier manager."""
        self.call(self._bind, pod, batched, attempt)

    def _bind(self, pod: Pod, batched: BatchedAttempt, attempt: Attempt) -> None:
        batched.attempt, batched.location = attempt, ""
        if batched.ended is not None:
            self._shared.events.put(batched.ended._replace(attempt=attempt))
        elif batched.has_started:
            self._shared.events.put(Started(attempt, batched.begun_at or utc_now()))
        pod.changed.set()

    def cancel(self, pod: Pod, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt.

        :param kill: whether it is killed very soon; otherwise it gets SIGTERM, and SIGKILL after the grace.
        """
        self.call(self._cancel, pod, attempt, kill)

    def _cancel(self, pod: Pod, attempt: Attempt, kill: bool) -> None:
        if pod in self._reconcilers:
            self._reconcilers[pod].cancel_attempt(attempt, kill=kill)


class Reconciler:
    """Takes one Pod from each of its states to the next."""

    def __init__(self, pod: Pod, shared: Shared, cleanup: Cleanup, nodes: Nodes) -> None:
        self._pod = pod
        self._shared = shared
        self._cleanup = cleanup
        self._checks = StartChecks(pod, shared, nodes)
        self._progress = Progress(pod, shared, self.cancel)
        self._reader = LogReader(pod, shared, self._progress.advance)
        self._secret = PodSecret(pod, shared, self._reader)
        self._deleting: asyncio.Task[None] | None = None

    async def reconcile(self) -> None:
        """Reconcile the Pod until its attempts have ended."""
        pod = self._pod
        while not pod.is_released:
            try:
                if not pod.is_created:
                    await self._create()
                elif pod.status is None and not pod.is_gone:
                    await self._inspect()
                elif pod.status is not None and not pod.is_over:
                    await self._wait()
                else:
                    await self._finish()
            except PodFailedError as failed:
                self._fail_and_delete(failed)
            except UnreachableError as error:
                self._shared.warn(error)
                await asyncio.sleep(FIRST_PAUSE)
            except Exception:
                log.exception("%s cannot be reconciled; trying again", pod)
                await asyncio.sleep(LONGEST_PAUSE)

    async def _create(self) -> None:
        """Create the Pod, or find out that it cannot be created, or that it has been."""
        pod = self._pod
        pause = Pause()
        may_be_there = pod.is_adopted
        refusals = 0
        while True:
            try:
                if pod.cancelling is None:
                    async with self._shared.creations:
                        found = await self._shared.client.create_pod(dict(pod.manifest))
                elif may_be_there:
                    found = await self._shared.client.get_pod(pod.namespace, pod.name)
                else:
                    self._fail(None)
                    return
            except ApiError as error:
                if error.status == 409 and error.reason == "AlreadyExists":
                    found = None
                elif error.status == 404 and pod.cancelling is not None:
                    self._fail(None)
                    return
                elif error.may_pass or (error.status in (403, 404) and refusals < _REFUSALS):
                    refusals += not error.may_pass
                    may_be_there = may_be_there or error.status >= 500
                    self._progress.locate(waits_for=str(error))
                    self._shared.warn(error)
                    await pause()
                    continue
                else:
                    self._fail(Reason.SPAWN, f"Kubernetes refused it: {error}")
                    return
            except UnreachableError as error:
                may_be_there = True
                self._shared.warn(error)
                await pause()
                continue
            pod.is_created, pod.created_at = True, time.monotonic()
            if found is not None and pod.status is None:
                pod.status = read_status(found, pod.container)
            self._shared.handles.write_creation(pod)
            if pod.cancelling is not None:
                self.cancel(pod.cancelling)
            return

    async def _inspect(self) -> None:
        """Ask for the status of the Pod."""
        pod = self._pod
        try:
            found = await self._shared.client.get_pod(pod.namespace, pod.name)
        except ApiError as error:
            if error.status == 404:
                pod.is_gone = True
                return
            self._shared.warn(error)
            await asyncio.sleep(LONGEST_PAUSE)
        else:
            pod.created_at = min(pod.created_at, time.monotonic())
            status = read_status(found, pod.container)
            if pod.uid not in (None, status.uid):  # another one has its name
                pod.is_gone = True
            elif pod.status is None or pod.is_hidden:
                pod.status = status

    async def _wait(self) -> None:
        """Wait until something changes, and check whether the Pod can go on like this."""
        pod = self._pod
        pod.changed.clear()
        if pod.is_hidden:
            await self._inspect()
        status = pod.status
        if pod.is_over or status is None:
            return
        self._take_start(status)
        self._progress.locate()
        due = await self._secret.keep(), await self._checks.check(status), _HIDDEN_SECONDS if pod.is_hidden else None
        await self._wait_for_change(min((seconds for seconds in due if seconds is not None), default=None))

    async def _wait_for_change(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._pod.changed.wait()

    def _take_start(self, status: Status) -> None:
        pod = self._pod
        if status.started_at is not None and not pod.has_started:
            pod.has_started = True
            if not pod.is_batch:
                self._progress.start(pod.attempts[0], status.started_at)
                self._secret.take_back()
            self._reader.start()

    async def _finish(self) -> None:
        """The Pod is over: read the rest of its output, and end its attempts."""
        pod = self._pod
        if pod.status is not None and pod.status.started_at is not None and pod.status.ending is not None:
            pod.has_started = True  # so short that its start was not seen
            self._secret.withdraw()
        await self._reader.read_to_the_end()
        await self._wait_for_a_reason()
        last = last_end(pod, pod.status, was_gone=pod.is_gone)
        pause = Pause()
        while True:
            try:
                left = self._progress.finalize(last)
                break
            except OSError as error:
                self._shared.warn(error)
                await pause()
        self._release()
        if left:
            self._shared.events.put(Left(pod, left))

    async def _wait_for_a_reason(self) -> None:
        """Wait a little: a node may say why it has ended a container later than that it has ended."""
        deadline = time.monotonic() + END_SEEN_SECONDS
        while lacks_a_reason(self._pod) and (left := deadline - time.monotonic()) > 0:
            self._pod.changed.clear()
            await self._wait_for_change(left)

    # -- the Pod does not come to its own end --------------------------------------------------------------------

    def _fail(self, reason: Reason | None, error: str | None = None, *, may_repeat: bool = True) -> None:
        self._progress.end_all(reason, error, may_repeat=may_repeat)
        self._release()

    def _fail_and_delete(self, failed: PodFailedError) -> None:
        # A Pod whose node does not answer goes at once only if it need not wait for the node.
        grace = 0 if failed.reason is Reason.LOST and failed.may_repeat else 1
        self._shared.spawn(self._delete(grace))
        self._fail(failed.reason, str(failed), may_repeat=failed.may_repeat)

    def _release(self) -> None:
        """All attempts have ended, or are another Pod's."""
        pod = self._pod
        pod.is_released = True
        self._shared.pods.pop(pod.token, None)
        self._reader.stop()
        self._secret.release()
        if pod.is_created and not pod.is_gone:
            metadata = {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
            self._cleanup.delete_later(metadata, pod.token, is_over=pod.is_over, is_done=True)

    def cancel_attempt(self, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt; an attempt of a batch that has not begun is ended when its turn comes."""
        pod = self._pod
        for each in pod.open_attempts:
            if each.attempt == attempt and not each.is_done:
                each.cancelling = kill
                is_last = all(other.cancelling is not None for other in pod.open_attempts)
                if each.has_started or pod.is_detached or is_last:
                    self.cancel(kill)

    def cancel(self, kill: bool) -> None:
        """End what runs: SIGTERM, and SIGKILL after the grace, or very soon."""
        pod = self._pod
        pod.cancelling = kill
        pod.changed.set()
        if not pod.is_created or pod.is_released:
            return
        if self._deleting is None:
            self._deleting = self._shared.spawn(self._delete_with_last_output())
        elif kill and not pod.is_batch:  # the script of a batch kills it itself
            self._shared.spawn(self._kill(self._deleting))

    async def _delete_with_last_output(self) -> None:
        """Delete the Pod once its output is read: afterwards that is not possible."""
        pod = self._pod
        if pod.status is not None and pod.status.node:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_LOOK_SECONDS):
                    await self._reader.has_begun.wait()
        grace = 1 if pod.cancelling else max(1, math.ceil(self._shared.grace))
        if pod.is_batch and not pod.cancelling:
            grace += _LEAVE_SECONDS
        await self._delete(grace)

    async def _kill(self, deleting: asyncio.Task[None]) -> None:
        """Shorten the grace of the Pod that is being deleted."""
        await asyncio.wait([deleting])
        if not self._pod.is_released and self._shared.grace > 1:
            await self._delete(1)

    async def _delete(self, grace: int) -> None:
        pod = self._pod
        await self._cleanup.delete(pod.namespace, pod.name, pod.uid, grace)
