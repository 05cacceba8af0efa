"""Sees the Pod of each attempt through: creates it, watches it, reads its output, and tells how it ended.

This runs in a thread of its own with an event loop, since requests take time and the manager must not wait. One watch
for each namespace tells of all Pods; each attempt has a coroutine that goes from one of its states to the next.

While the API server does not answer, everything is tried again and nothing is concluded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from airflow_provider_air_executor.engines.kubernetes import pods
from airflow_provider_air_executor.engines.kubernetes.api import Api, ApiError, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.attended import FIRST_SILENCE, Pod, Run
from airflow_provider_air_executor.engines.kubernetes.bundles import BundleOutput, Message, Part, read_message
from airflow_provider_air_executor.engines.kubernetes.endings import (
    DELETED,
    NOBODY,
    conclude,
    has_all,
    lacks_a_reason,
    read_result,
)
from airflow_provider_air_executor.engines.kubernetes.output import (
    OutOfStepError,
    Reader,
    TaskOutput,
)
from airflow_provider_air_executor.engines.kubernetes.pods import Status
from airflow_provider_air_executor.engines.protocol import Attempt, Ended, Event, Located, Started
from airflow_provider_air_executor.jobs.models import Reason, printable, utc_now

log = logging.getLogger("air_executor.manager")

_CREATIONS = 8  # at a time
_REFUSALS = 3  # an API server that has just been started does not know yet who may do what
_FOLLOW_AFTER_SECONDS = 0.5  # what ends sooner is read once, at its end
_IN_STEP_SECONDS = 10.0  # in which what was read before comes again
_HIDDEN_SECONDS = 5.0  # between two looks at a Pod that nobody tells of
_STRAY_SECONDS = 60.0  # that a Pod may be there which nobody knows
_CERTAIN_SECONDS = 3.0  # that the scheduler may find no node before the nodes are asked
_ASK_NODES_SECONDS = 60.0
_NODES_SECONDS = 20.0  # for which the nodes are taken to be the same
_SHORTEST_WATCH_SECONDS = 1.0
_LAST_LOOK_SECONDS = 3.0  # in which one that is to be deleted may start, so that its output can be read
_TELLING_SECONDS = 3  # in which a container that was told to end tells what it has not come to
_LAST_WORDS_SECONDS = 10.0  # after a container has ended, in which some more of its output must come
_END_TOLD_SECONDS = 5.0  # after its output has ended, in which the end of a container is told
_ARRIVAL_SECONDS = 1.0  # that output may be on its way
_LONGEST_SILENCE = 300.0  # of a long output, before its node is asked whether it goes on in another file
_CATCH_UP_SECONDS = 0.5  # in which the end of what has begun may be read too, if it was before
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_NO_RESULT = "it has ended with exit code 0, but its result could not be read"
_NO_END = "it has ended, but what its Pod said of it could not be read"
_ENDED_WITH_ANOTHER = "it was ended with another task that ran before it in the same Pod"


class Limits(NamedTuple):
    """How patient to be, in seconds.

    :param lost_after: for how long a node may not answer.
    :param stuck_after: for how long a container may not come to its start, for want of its image or a secret.
    :param start_within: how long it may take to start what has a node.
    :param unschedulable_after: for how long no node may be found; None: for ever, unless none could be.
    :param ttl: for how long a Pod is kept after its end.
    :param grace: between SIGTERM and SIGKILL.
    :param is_fenced: whether a node that does not answer is known to be off.
    :param is_autoscaled: whether nodes are made that are not there now.
    :param log_streams: how many outputs are followed at a time.
    """

    lost_after: float
    stuck_after: float
    start_within: float
    unschedulable_after: float | None
    ttl: float
    grace: float
    is_fenced: bool
    is_autoscaled: bool
    log_streams: int


class Attendant:
    """Attends Pods in a thread.

    :param api: the API server; it is closed with this.
    :param owner: this installation, as the Pods' label says it.
    :param limits: how patient to be.
    :param tell: called, in the thread, with each event.
    :param again: called, in the thread, with a Pod that is over and those of its attempts that it has not come to.
    :param created: called, in the thread, with a Pod that is known to have been created.
    :param keep: called, in the thread, with an attempt, what is to be kept of it (exit code, time of its start and end)
        and its result, before its end is told; it may raise OSError, and is called again then.
    :param is_expected: called, in the thread, with the annotations and the token of a Pod that is not attended: whether
        it soon will be.
    """

    def __init__(
        self,
        api: Api,
        owner: str,
        limits: Limits,
        *,
        tell: Callable[[Event], None],
        again: Callable[[Pod, list[Part]], None],
        created: Callable[[Pod], None],
        keep: Callable[[Run, Ended, bytes | None], None],
        is_expected: Callable[[Mapping[str, str], str], bool],
    ) -> None:
        self._owner = owner
        self._api = api
        self._selector = f"{pods.OWNER_LABEL}={owner}"
        self._limits = limits
        self._tell, self._again = tell, again
        self._created, self._keep, self._is_expected = created, keep, is_expected
        self._pods: dict[str, Pod] = {}  # by their tokens
        self._tidying: set[tuple[str, bool]] = set()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._may_list_nodes = True
        self._nodes: list[dict[str, Any]] = []
        self._nodes_at = -math.inf
        self._complained_at = -math.inf
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kubernetes", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._creations = asyncio.Semaphore(_CREATIONS)
        self._listing = asyncio.Lock()
        self._streams = asyncio.Semaphore(self._limits.log_streams)
        self._loop.run_forever()
        running = asyncio.all_tasks(self._loop)
        for task in running:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*running, return_exceptions=True))
        self._loop.run_until_complete(self._api.close())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    # These are called by the manager's thread.

    def close(self) -> None:
        """Let go of everything. What runs goes on."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def watch(self, namespace: str) -> None:
        """Watch a namespace, so that what is left there is seen."""
        self._loop.call_soon_threadsafe(self._watch, namespace)

    def attend(self, pod: Pod) -> None:
        """See a Pod through to its end."""
        self._loop.call_soon_threadsafe(self._attend, pod)

    def bind(self, pod: Pod, run: Run, attempt: Attempt) -> None:
        """Say which attempt it is that runs in a Pod of an earlier manager."""
        self._loop.call_soon_threadsafe(self._bind, pod, run, attempt)

    def cancel(self, pod: Pod, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt: SIGTERM, and SIGKILL after the grace, or very soon."""
        self._loop.call_soon_threadsafe(self._cancel_run, pod, attempt, kill)

    # All that follows is called by this thread.

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _complain(self, about: object) -> None:
        """Say what does not work, but not all the time."""
        now = time.monotonic()
        if now - self._complained_at > _LONGEST_PAUSE:
            self._complained_at = now
            log.warning("Kubernetes: %s; trying again", about)

    # -- what is there ---------------------------------------------------------------------------------------

    def _watch(self, namespace: str) -> None:
        if namespace not in self._watches:
            self._watches[namespace] = self._spawn(self._keep_watching(namespace))

    async def _keep_watching(self, namespace: str) -> None:
        version: str | None = None
        pause = _Pause()
        while True:
            begun = time.monotonic()
            try:
                if version is None:
                    listed, version = await self._api.list_pods(namespace, self._selector)
                    self._take_list(namespace, listed, begun)
                async for kind, pod in self._api.watch_pods(namespace, self._selector, version):
                    version = pod["metadata"]["resourceVersion"]
                    pause.reset()
                    if kind != "BOOKMARK":
                        self._take_change(pod, is_gone=kind == "DELETED")
            except ApiError as error:
                version = None
                if error.status == 410:  # too much has happened since
                    continue
                self._complain(error)
                await pause()
            except UnreachableError as error:
                self._complain(error)
                await pause()
            except Exception:
                log.exception("the watch of namespace %s has failed; it begins anew", namespace)
                version = None
                await pause()
            if time.monotonic() - begun < _SHORTEST_WATCH_SECONDS:
                await asyncio.sleep(_SHORTEST_WATCH_SECONDS)

    def _take_list(self, namespace: str, listed: list[dict[str, Any]], asked_at: float) -> None:
        found = {item["metadata"]["labels"].get(pods.RUN_LABEL) for item in listed}
        for item in listed:
            self._take_change(item)
        for pod in list(self._pods.values()):
            if pod.namespace == namespace and pod.created_at < asked_at and pod.token not in found:
                pod.is_hidden = True
                pod.changed.set()

    def _take_change(self, item: Mapping[str, Any], *, is_gone: bool = False) -> None:
        """A Pod has changed.

        :param is_gone: whether that was the last we hear of it. It need not be gone: somebody may have changed labels.
        """
        labels = item["metadata"].get("labels") or {}
        token = labels.get(pods.RUN_LABEL, "")
        pod = self._pods.get(token) or self._pod_named(item["metadata"])
        if pod is not None:
            pod.status = pods.read_status(item, pod.container)
            if is_gone and labels.get(pods.OWNER_LABEL) == self._owner:
                pod.is_gone = True
            pod.is_hidden = is_gone
            pod.changed.set()
        elif not is_gone:
            self._tidy_later(item["metadata"], token, is_over=pods.read_status(item, pods.CONTAINER).is_over)

    def _pod_named(self, metadata: Mapping[str, Any]) -> Pod | None:
        """The Pod that is known by its name, since it has lost its labels."""
        for pod in self._pods.values():
            if (pod.namespace, pod.name) == (metadata["namespace"], metadata["name"]):
                return pod if pod.uid in (None, metadata["uid"]) else None
        return None

    def _tidy_later(self, metadata: Mapping[str, Any], token: str, *, is_over: bool, is_told: bool = False) -> None:
        """Delete a Pod that nobody attends: some time after its end, or if its attempt is forgotten.

        :param is_told: whether its end has been told, so that its note means nothing any more.
        """
        if (token, is_over) not in self._tidying:
            self._tidying.add((token, is_over))
            self._spawn(self._tidy(metadata, token, is_over=is_over, is_told=is_told))

    async def _tidy(self, metadata: Mapping[str, Any], token: str, *, is_over: bool, is_told: bool) -> None:
        await asyncio.sleep(self._limits.ttl if is_over else _STRAY_SECONDS)
        self._tidying.discard((token, is_over))
        if token in self._pods:
            return
        if is_told or not self._is_expected(metadata.get("annotations") or {}, token):
            await self._delete(metadata["namespace"], metadata["name"], metadata["uid"], None)

    # -- one attempt -----------------------------------------------------------------------------------------

    def _attend(self, pod: Pod) -> None:
        self._pods[pod.token] = pod
        self._watch(pod.namespace)
        self._spawn(self._see_through(pod))

    async def _see_through(self, pod: Pod) -> None:
        while pod.token in self._pods:
            try:
                if not pod.is_created:
                    await self._create(pod)
                elif pod.status is None and not pod.is_gone:
                    await self._look_at(pod)
                elif pod.status is not None and not pod.is_over:
                    await self._wait(pod, pod.status)
                else:
                    await self._finish(pod)
            except UnreachableError as error:
                self._complain(error)
                await asyncio.sleep(_FIRST_PAUSE)
            except Exception:
                log.exception("%s cannot be attended; trying again", pod)
                await asyncio.sleep(_LONGEST_PAUSE)

    async def _create(self, pod: Pod) -> None:
        """Have the Pod created, or find out that it cannot be, or that it has been."""
        pause = _Pause()
        may_be_there = pod.is_adopted
        refusals = 0
        while True:
            try:
                if pod.cancelling is None:
                    async with self._creations:
                        found = await self._api.create_pod(dict(pod.manifest))
                elif may_be_there:
                    found = await self._api.get_pod(pod.namespace, pod.name)
                else:
                    self._end_all(pod, None)
                    return
            except ApiError as error:
                if error.status == 409 and error.reason == "AlreadyExists":
                    found = None
                elif error.status == 404 and pod.cancelling is not None:
                    self._end_all(pod, None)
                    return
                elif error.may_pass or (error.status in (403, 404) and refusals < _REFUSALS):
                    refusals += not error.may_pass
                    may_be_there = may_be_there or error.status >= 500
                    self._place(pod, f"{pod}, waiting ({error})")
                    self._complain(error)
                    await pause()
                    continue
                else:
                    self._fail(pod, Reason.SPAWN, f"Kubernetes refused it: {error}")
                    return
            except UnreachableError as error:
                may_be_there = True
                self._complain(error)
                await pause()
                continue
            pod.is_created, pod.created_at = True, time.monotonic()
            if found is not None and pod.status is None:
                pod.status = pods.read_status(found, pod.container)
            self._created(pod)
            if pod.cancelling is not None:
                self._cancel(pod, pod.cancelling)
            return

    def _bind(self, pod: Pod, run: Run, attempt: Attempt) -> None:
        run.attempt, run.where = attempt, ""
        if run.ended is not None:
            self._tell(run.ended._replace(attempt=attempt))
        elif run.has_started and isinstance(run, Part):
            self._tell(Started(attempt, run.begun_at or utc_now()))
        pod.changed.set()

    async def _look_at(self, pod: Pod) -> None:
        try:
            found = await self._api.get_pod(pod.namespace, pod.name)
        except ApiError as error:
            if error.status == 404:
                pod.is_gone = True
                return
            self._complain(error)
            await asyncio.sleep(_LONGEST_PAUSE)
        else:
            pod.created_at = min(pod.created_at, time.monotonic())
            status = pods.read_status(found, pod.container)
            if pod.uid not in (None, status.uid):  # another one of its name
                pod.is_gone = True
            elif pod.status is None or pod.is_hidden:
                pod.status = status

    async def _wait(self, pod: Pod, status: Status) -> None:
        """Wait until something changes, and see whether it can go on like this."""
        pod.changed.clear()
        if pod.is_hidden:
            await self._look_at(pod)
            if pod.is_over or pod.status is None:
                return
            status = pod.status
        if status.started_at is not None:
            self._has_started(pod, status.started_at)
        self._tell_where(pod, status)
        seconds = [_HIDDEN_SECONDS if pod.is_hidden else None, self._look_at_its_node(pod, status)]
        if pod.token in self._pods:
            seconds.append(await self._look_whether_it_starts(pod, status))
        if pod.token in self._pods:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min((each for each in seconds if each is not None), default=None)):
                    await pod.changed.wait()

    def _has_started(self, pod: Pod, started_at: datetime) -> None:
        if not pod.has_started:
            pod.has_started = True
            if isinstance(pod.output, TaskOutput):
                self._run_has_started(pod.runs[0], started_at)
            pod.following = self._spawn(self._follow(pod))

    def _run_has_started(self, run: Run, started_at: datetime) -> None:
        if not run.has_started:
            run.has_started = True
            if run.attempt is not None:
                self._tell(Started(run.attempt, started_at))

    async def _look_whether_it_starts(self, pod: Pod, status: Status) -> float | None:
        """Give up what will not start; seconds after which to look again."""
        if status.is_hopeless or (left := self._left(pod, "stuck", status.stuck, self._limits.stuck_after)) == 0:
            self._give_up(pod, Reason.SPAWN, f"Kubernetes cannot start it: {status.stuck}")
            return None
        is_starting = bool(status.node) and not pod.has_started and not status.is_being_deleted
        left_to_start = self._left(pod, "starting", is_starting, self._limits.start_within)
        if left_to_start == 0:
            why = await self._last_warning(pod, status)
            if pod.status is not status:  # it has come to something meanwhile
                return 0
            error = f"its node {status.node} has not started it within {self._limits.start_within:g} s: {why}"
            self._give_up(pod, Reason.SPAWN, error)
            return None
        limit = self._limits.unschedulable_after
        if self._left(pod, "unschedulable", status.unschedulable, limit) == 0:
            self._give_up(pod, Reason.SPAWN, f"Kubernetes finds no node for it: {status.unschedulable}")
        elif self._left(pod, "full", status.unschedulable, _CERTAIN_SECONDS) == 0:
            pod.since["full"] = time.monotonic() + _ASK_NODES_SECONDS - _CERTAIN_SECONDS  # when it is looked again
            if (why := await self._never(pod, status)) and pod.status is status:
                self._give_up(pod, Reason.SPAWN, f"Kubernetes can never run it: {status.unschedulable} ({why})")
        due = [left, left_to_start, self._left(pod, "full", status.unschedulable, _CERTAIN_SECONDS)]
        due.append(self._left(pod, "unschedulable", status.unschedulable, limit))
        return min((each for each in due if each is not None), default=None)

    async def _last_warning(self, pod: Pod, status: Status) -> str:
        """Why a Pod does not start, in words."""
        try:
            warnings = await self._api.list_warnings(pod.namespace, status.uid)
        except (ApiError, UnreachableError) as error:  # it may not be allowed to us
            log.debug("the events of %s cannot be listed: %s", pod, error)
            warnings = []
        return warnings[-1] if warnings else status.waits_for or "it does not say why"

    async def _never(self, pod: Pod, status: Status) -> str:
        """Why a Pod will never find a node, in words; empty if it may."""
        if "not found" in status.unschedulable:  # a volume claim
            return "it asks for what is not there"
        if self._limits.is_autoscaled or not self._may_list_nodes:
            return ""
        try:
            return pods.no_node_could(pod.manifest, await self._list_nodes())
        except ApiError as error:
            if not error.may_pass:
                self._may_list_nodes = False
                log.warning(
                    "Kubernetes: whether a task can ever run is not known, since nodes may not be listed: %s", error
                )
        except UnreachableError as error:
            self._complain(error)
        return ""

    async def _list_nodes(self) -> list[dict[str, Any]]:
        """The nodes; many Pods that wait ask for them once together."""
        async with self._listing:
            if time.monotonic() - self._nodes_at > _NODES_SECONDS:
                self._nodes = await self._api.list_nodes()
                self._nodes_at = time.monotonic()
        return self._nodes

    def _look_at_its_node(self, pod: Pod, status: Status) -> float | None:
        """Give up what is lost; seconds after which to look again."""
        limit = self._limits.lost_after
        left = self._left(pod, "cut off", status.is_cut_off, limit)
        # It should be gone when its grace is over; a node that does not answer does not say so.
        grace = status.deletion_grace + limit
        left_to_go = self._left(pod, "deleted", status.is_being_deleted, grace) if status.node else None
        if left == 0 or left_to_go == 0:
            error = f"{pod} is lost: node {status.node} does not answer"
            if not self._limits.is_fenced:
                error += "; it may still run there, so it is not tried again (see the setting fenced)"
            self._give_up(pod, Reason.LOST, error, may_repeat=self._limits.is_fenced)
        return min((each for each in (left, left_to_go) if each is not None), default=None)

    @staticmethod
    def _left(pod: Pod, what: str, is_so: object, limit: float | None) -> float | None:
        """Seconds for which something may go on; None if it is not so, or may go on for ever."""
        if not is_so:
            pod.since.pop(what, None)
            return None
        now = time.monotonic()
        since = pod.since.setdefault(what, now)
        return None if limit is None else max(0.0, since + limit - now)

    def _tell_where(self, pod: Pod, status: Status) -> None:
        if status.node:
            self._place(pod, f"{pod} on {status.node}")
        else:
            self._place(pod, f"{pod}, waiting ({status.waits_for})" if status.waits_for else f"{pod}, waiting")

    def _place(self, pod: Pod, where: str) -> None:
        for run in pod.open_runs:
            waits = isinstance(run, Part) and pod.has_started and not run.has_started
            what = f"{where}, waiting for its turn" if waits else where
            if what != run.where and run.attempt is not None:
                run.where = what
                self._tell(Located(run.attempt, what))

    # -- its output ------------------------------------------------------------------------------------------

    async def _follow(self, pod: Pod) -> None:
        """Read the output while it is printed."""
        await asyncio.sleep(_FOLLOW_AFTER_SECONDS if pod.cancelling is None else 0)
        pause, before = _Pause(), 0
        # What is in a bundle would have no limits of time if nobody saw it start.
        async with self._streams if isinstance(pod.output, TaskOutput) else contextlib.nullcontext():
            while not pod.is_over:
                try:
                    if await self._read(pod, follow=True):  # by the container's end; telling of that cancels this
                        await asyncio.sleep(_END_TOLD_SECONDS)
                        pod.output.is_read_out = False  # it was only its node that let go
                except (ApiError, UnreachableError) as error:
                    log.debug("the output of %s cannot be followed now: %s", pod, error)
                except OSError as error:
                    self._complain(error)
                except Exception:
                    log.exception("the output of %s cannot be followed; trying again", pod)
                if pod.output.taken > before:
                    before = pod.output.taken
                    pause.reset()
                if not pod.is_over:
                    await pause()

    async def _read(self, pod: Pod, *, follow: bool) -> bool:
        """Read the output, from where we are to its end; False if it should be tried again, since that may go on."""
        async with pod.reading:
            while True:
                try:
                    await self._read_once(pod, follow=follow)
                except OutOfStepError:
                    self._go_on_in(pod, await self._read_all(pod))
                    return False
                except _GoesOnElsewhereError:
                    continue
                else:
                    return True

    async def _read_all(self, pod: Pod, limit: int | None = None) -> bytes:
        """All that its node has of the output, or the first of it."""
        log = self._api.open_log(pod.namespace, pod.name, pod.container, follow=False, limit=limit)
        async with log as chunks:
            return b"".join([chunk async for chunk in chunks])

    def _go_on_in(self, pod: Pod, found: bytes, *, is_read_out: bool = False) -> None:
        pod.output.go_on_in(found, is_read_out=is_read_out)
        if isinstance(pod.output, BundleOutput):
            self._take_parts(pod, pod.output)

    async def _read_once(self, pod: Pod, *, follow: bool) -> None:
        """Read the file in which we are, to its end.

        :raises OutOfStepError: if what was read before is not there any more.
        :raises _GoesOnElsewhereError: if the output goes on in another file, in which we are now.
        """
        reader = pod.output.reader()
        async with self._api.open_log(pod.namespace, pod.name, pod.container, follow=follow) as chunks:
            pod.is_followed.set()
            async with contextlib.aclosing(self._watchfully(pod, chunks, reader, follow=follow)) as watched:
                async for chunk in watched:
                    reader.feed(chunk)
                    if isinstance(pod.output, BundleOutput):
                        self._take_parts(pod, pod.output)
        if not reader.is_in_step:
            raise OutOfStepError
        pod.output.is_read_out = True

    async def _watchfully(
        self, pod: Pod, chunks: AsyncIterator[bytes], reader: Reader, *, follow: bool
    ) -> AsyncGenerator[bytes, None]:
        """The chunks, but do not wait for what will not come.

        :param follow: whether they go on while the container runs.
        :raises OutOfStepError: if what was read before does not come again, as when there is less now.
        :raises _GoesOnElsewhereError: as :meth:`_read_once`.
        """
        output = pod.output
        coming: asyncio.Future[bytes] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(chunks))
                patience = pod.silence if reader.is_in_step else _IN_STEP_SECONDS
                is_patient = reader.is_in_step and not (follow and output.is_long)
                await asyncio.wait([coming], timeout=None if is_patient else patience)
                if coming.done():
                    try:
                        chunk = coming.result()
                    except StopAsyncIteration:
                        return
                    coming, before = None, output.taken
                    yield chunk
                    if output.taken > before:
                        pod.silence = FIRST_SILENCE
                elif not reader.is_in_step:
                    raise OutOfStepError
                else:
                    pod.silence = min(2 * pod.silence, _LONGEST_SILENCE)
                    found = await self._find_another_file(pod)
                    # What has gone on to the next file brings now what is there; what does not stays where it is.
                    if found is not None and not (await asyncio.wait([coming], timeout=_ARRIVAL_SECONDS))[0]:
                        self._go_on_in(pod, found, is_read_out=True)
                        raise _GoesOnElsewhereError
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait([coming])
                if not coming.cancelled():
                    coming.exception()  # it has been seen

    async def _find_another_file(self, pod: Pod) -> bytes | None:
        """All that its node has of the output, if that is in another file than what is being read."""
        head = pod.output.head
        try:
            return None if await self._read_all(pod, limit=len(head)) == head else await self._read_all(pod)
        except (ApiError, UnreachableError) as error:
            log.debug("whether the output of %s goes on elsewhere is not known: %s", pod, error)
            return None

    async def _read_to_the_end(self, pod: Pod) -> None:
        """Read what is there of the output after its container has ended."""
        if pod.following is not None:
            before = -1
            while pod.output.taken != before and not pod.is_detached:  # as long as more comes
                before = pod.output.taken
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_WORDS_SECONDS), pod.reading:
                        break
            pod.following.cancel()
        give_up_at = time.monotonic() + self._limits.lost_after
        is_there = not pod.is_gone and (pod.status is None or pod.status.ending is not None) and not has_all(pod)
        if pod.status is not None and pod.status.is_being_deleted and pod.is_followed.is_set():
            is_there = False  # its node is throwing it away
        ending = pod.status.ending if pod.status is not None else None
        ended_by_itself = ending is not None and ending.message.startswith("end ")
        pause = _Pause()
        while not pod.is_detached:
            try:
                if is_there:
                    await self._read(pod, follow=False)
                    is_there = False
                pod.output.finish(marker_is_due=ended_by_itself)
            except ApiError as error:  # its node does not answer the API server, or has dropped the container
                is_there = error.may_pass and time.monotonic() < give_up_at and not pod.is_gone
                if not is_there and not (pod.status is not None and pod.status.is_being_deleted):
                    pod.output.take(f"\n[air-executor] The output could not be read to its end: {error}\n".encode())
                    ended_by_itself = False
            except (UnreachableError, OSError) as error:
                self._complain(error)
            else:
                return
            await pause()

    # -- its end ---------------------------------------------------------------------------------------------

    async def _finish(self, pod: Pod) -> None:
        """It is over: read what it has left, and tell how it ended."""
        if pod.status is not None and pod.status.started_at is not None and pod.status.ending is not None:
            pod.has_started = True  # so short that nobody has seen it run
        await self._read_to_the_end(pod)
        await self._learn_why(pod)
        ended = conclude(pod, pod.status, was_gone=pod.is_gone)
        if isinstance(pod.output, BundleOutput):
            await self._finish_bundle(pod, pod.output, ended)
            return
        run = pod.runs[0]
        spawn_error, result, result_is_whole = read_result(pod)
        if spawn_error and pod.cancelling is None:
            ended = ended._replace(exit_code=None, reason=Reason.SPAWN, error=spawn_error)
        elif not result_is_whole and ended.exit_code == 0 and ended.reason is None:
            ended = ended._replace(exit_code=None, reason=Reason.LOST, error=_NO_RESULT)
        pause = _Pause()
        while not pod.is_detached:
            try:
                self._keep(run, ended, result)
                break
            except OSError as error:
                self._complain(error)
                await pause()
        self._end_run(run, ended)
        self._let_go(pod)

    async def _learn_why(self, pod: Pod) -> None:
        """Its node may tell why it has ended a container later than that this has ended."""
        give_up_at = time.monotonic() + _END_TOLD_SECONDS
        while lacks_a_reason(pod) and (left := give_up_at - time.monotonic()) > 0:
            pod.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await pod.changed.wait()

    def _fail(self, pod: Pod, reason: Reason, error: str, *, may_repeat: bool = True) -> None:
        self._end_all(pod, reason, printable(error), may_repeat=may_repeat)

    def _end_all(self, pod: Pod, reason: Reason | None, error: str | None = None, *, may_repeat: bool = True) -> None:
        """End what is still open, without an exit code."""
        started_at = pod.status.started_at if pod.status is not None else None
        for run in pod.open_runs:
            begun_at = run.begun_at if isinstance(run, Part) else started_at
            self._end_run(run, Ended(NOBODY, None, utc_now(), begun_at, reason, error, may_repeat))
        self._let_go(pod)

    def _end_run(self, run: Run, ended: Ended) -> None:
        run.is_over, run.ended = True, ended
        if run.attempt is not None:
            self._tell(ended._replace(attempt=run.attempt))

    def _let_go(self, pod: Pod) -> None:
        """All of its attempts have ended, or are another Pod's."""
        del self._pods[pod.token]
        if pod.following is not None:
            pod.following.cancel()
        if pod.is_created and not pod.is_gone:
            metadata = {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid}
            self._tidy_later(metadata, pod.token, is_over=pod.is_over, is_told=True)

    # -- several attempts in one Pod -------------------------------------------------------------------------

    def _take_parts(self, pod: Pod, output: BundleOutput) -> None:
        """See which of its attempts have begun and ended.

        :raises OSError: if an end cannot be kept; it must be called again.
        """
        output.take(b"")  # what could not be written before
        for part in output.parts:
            # What has ended when the container was told to end has a reason that its status will tell.
            if part.is_done and not part.is_over and (pod.is_over or not part.was_signalled):
                part.has_started = True
                if pod.status is not None:
                    self._tell_where(pod, pod.status)
                ended = Ended(NOBODY, part.exit_code, part.ended_at or utc_now(), part.begun_at)
                self._end_part(pod, part, ended)
            elif part.begun_at is not None and not part.is_done and not part.is_seen:
                part.is_seen = True
                self._loop.call_later(_CATCH_UP_SECONDS, self._part_runs, pod, part)

    def _part_runs(self, pod: Pod, part: Part) -> None:
        """Tell that an attempt has begun, if it has not ended meanwhile: its end may come with what is read next."""
        if pod.is_over or part.is_done or part.is_over or part.begun_at is None or pod.token not in self._pods:
            return
        self._run_has_started(part, part.begun_at)
        if pod.status is not None:
            self._tell_where(pod, pod.status)
        if part.cancelling is not None:
            self._cancel(pod, part.cancelling)

    def _end_part(self, pod: Pod, part: Part, ended: Ended) -> None:
        """An attempt has ended by itself."""
        if part.spawn_error and part.cancelling is None:
            ended = ended._replace(exit_code=None, reason=Reason.SPAWN, error=part.spawn_error)
        elif part.was_signalled and part.cancelling is None and (why := self._why_told_to_end(pod, ended)):
            ended = ended._replace(reason=why[0], error=why[1])
        elif not part.result_is_whole and ended.exit_code == 0:
            ended = ended._replace(exit_code=None, reason=Reason.LOST, error=_NO_RESULT)
        if part.attempt is not None and not pod.is_detached:
            self._keep(part, ended, part.result if part.result_is_whole and part.size else None)
        self._end_run(part, ended)

    def _why_told_to_end(self, pod: Pod, ended: Ended) -> tuple[Reason, str] | None:
        """Why an attempt was told to end, if something has ended its Pod; its exit code does not count then."""
        last = conclude(pod, pod.status, was_gone=pod.is_gone)
        if last.reason in (Reason.LOST, Reason.TIMEOUT) and last.error:
            return last.reason, last.error
        if pod.is_gone or pod.cancelling is not None:
            why = DELETED if pod.cancelling is None else _ENDED_WITH_ANOTHER
            return Reason.LOST, f"{pod}: {why} (exit code {ended.exit_code})"
        return None  # a task may send a signal to its own process group

    async def _finish_bundle(self, pod: Pod, output: BundleOutput, ended: Ended) -> None:
        """The Pod is over: tell how those have ended that are still open, and have the others run.

        :param ended: how the one has ended that ran last.
        """
        ending = pod.status.ending if pod.status is not None else None
        message = read_message(ending.message) if ending is not None else None
        if output.begun is not None:  # of a Pod that is deleted, the status may go before its last words are in it
            message = message or Message(output.begun)
        if message is not None and message.begun == 0 and pod.cancelling is None:
            message = None  # whatever it was, another Pod would fare no better
        pause = _Pause()
        left: list[Part] = []
        while True:
            try:
                self._take_parts(pod, output)
                for place, part in enumerate(output.parts, 1):
                    if part.is_over or part in left:
                        continue
                    if message is None or place <= message.begun:
                        self._conclude_part(pod, output, part, place, message, ended)
                    elif part.cancelling is None and part.attempt is not None and not pod.is_detached:
                        left.append(part)
                    else:
                        self._end_run(part, Ended(NOBODY, None, utc_now()))
                break
            except OSError as error:
                self._complain(error)
                await pause()
        self._let_go(pod)
        if left:
            self._again(pod, left)

    def _conclude_part(
        self, pod: Pod, output: BundleOutput, part: Part, place: int, message: Message | None, ended: Ended
    ) -> None:
        """Tell how an attempt has ended whose end has not come with the output.

        :param place: in the Pod, from 1.
        :param message: what the container said at its end.
        """
        if message is not None and place == message.begun and message.exit_code is not None:
            if not pod.is_detached:
                output.cut_off(part)
            part.size, part.result, part.was_signalled = message.size, message.result, message.was_signalled
            end = Ended(NOBODY, message.exit_code, message.ended_at or utc_now(), part.begun_at)
            self._end_part(pod, part, end)
            return
        why = ""
        # That the container as a whole has ended well says nothing of one of them.
        if (message is not None and place < message.begun) or ended.exit_code == 0:
            why = _NO_END
        elif pod.cancelling is not None and part.cancelling is None:
            why = _ENDED_WITH_ANOTHER
        if why:
            ended = Ended(NOBODY, None, utc_now(), reason=Reason.LOST, error=why)
        ended = ended._replace(started_at=part.begun_at)
        if part.attempt is not None and not pod.is_detached:
            self._keep(part, ended, None)
        self._end_run(part, ended)

    def _give_up(self, pod: Pod, reason: Reason, error: str, *, may_repeat: bool = True) -> None:
        """End an attempt whose Pod is not over."""
        # A Pod whose node does not answer goes at once only if nobody waits for the node.
        grace = 0 if reason is Reason.LOST and may_repeat else 1
        self._spawn(self._delete(pod.namespace, pod.name, pod.uid, grace))
        self._fail(pod, reason, error, may_repeat=may_repeat)

    # -- ending it -------------------------------------------------------------------------------------------

    def _cancel_run(self, pod: Pod, attempt: Attempt, kill: bool) -> None:
        for run in pod.runs:
            if run.attempt == attempt and not run.is_over and not (isinstance(run, Part) and run.is_done):
                run.cancelling = kill
                # Of a bundle, what has not begun is let be until its turn comes, so that what runs can end.
                if run.has_started or pod.is_detached or all(other.cancelling is not None for other in pod.open_runs):
                    self._cancel(pod, kill)

    def _cancel(self, pod: Pod, kill: bool) -> None:
        pod.cancelling = kill
        pod.changed.set()
        if not pod.is_created or pod.token not in self._pods:
            return
        if pod.deleting is None:
            pod.deleting = self._spawn(self._delete_with_last_words(pod))
        elif kill and isinstance(pod.output, TaskOutput):  # a bundle kills it itself
            self._spawn(self._kill(pod, pod.deleting))

    async def _delete_with_last_words(self, pod: Pod) -> None:
        """Delete a Pod, having begun to read what it says: afterwards nobody can."""
        if pod.status is not None and pod.status.node:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_LOOK_SECONDS):
                    await pod.is_followed.wait()
        grace = 1 if pod.cancelling else max(1, math.ceil(self._limits.grace))
        if isinstance(pod.output, BundleOutput) and not pod.cancelling:
            grace += _TELLING_SECONDS
        await self._delete(pod.namespace, pod.name, pod.uid, grace)

    async def _kill(self, pod: Pod, deleting: asyncio.Task[None]) -> None:
        """Shorten the grace of a Pod that is being deleted."""
        await asyncio.wait([deleting])
        if pod.token in self._pods and self._limits.grace > 1:
            await self._delete(pod.namespace, pod.name, pod.uid, 1)

    async def _delete(self, namespace: str, name: str, uid: str | None, grace: int | None) -> None:
        """Delete a Pod, however often it takes."""
        pause = _Pause()
        while True:
            try:
                await self._api.delete_pod(namespace, name, uid=uid or None, grace=grace)
            except ApiError as error:
                if error.status in (404, 409):  # gone, or another one by now
                    return
                self._complain(error)
                if not error.may_pass:
                    return
            except UnreachableError as error:
                self._complain(error)
            else:
                return
            await pause()


class _GoesOnElsewhereError(Exception):
    """The output goes on in another file than the one that is being read."""


class _Pause:
    """Waits longer each time."""

    def __init__(self) -> None:
        self._seconds = _FIRST_PAUSE

    def reset(self) -> None:
        """Begin anew."""
        self._seconds = _FIRST_PAUSE

    async def __call__(self) -> None:
        await asyncio.sleep(self._seconds)
        self._seconds = min(2 * self._seconds, _LONGEST_PAUSE)
