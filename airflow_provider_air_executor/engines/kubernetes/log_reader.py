"""Reads the output of a container through the API server, while it runs and to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

from airflow_provider_air_executor.engines.kubernetes.client import ApiError, UnreachableError
from airflow_provider_air_executor.engines.kubernetes.endings import has_all
from airflow_provider_air_executor.engines.kubernetes.output import OutOfStepError, Reader
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.shared import Pause, Shared

log = logging.getLogger("air_executor.manager")

# Seconds of silence of a long output, before its node is asked whether the output goes on in another file; then longer.
FIRST_SILENCE, _LONGEST_SILENCE = 3.0, 300.0
ARRIVAL_SECONDS = 1.0  # for which output may be on its way
END_SEEN_SECONDS = 5.0  # after the end of the output, within which the status has the end of the container
_FOLLOW_AFTER_SECONDS = 0.5  # the output of a shorter attempt is read once, at its end
_IN_STEP_SECONDS = 10.0  # within which the output that was read before comes again
_LAST_OUTPUT_SECONDS = 10.0  # after the end of a container, within which some more of its output must come


class _ContinuedElsewhereError(Exception):
    """The output goes on in another file than the one that is read."""


class LogReader:
    """Reads the output of the container of one Pod.

    :param advance: called after each piece of the output; it may raise OSError, and is called again then.
    """

    def __init__(self, pod: Pod, shared: Shared, advance: Callable[[], None]) -> None:
        self._pod = pod
        self._shared = shared
        self._advance = advance
        self._silence = FIRST_SILENCE
        self._reading = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        self.has_begun = asyncio.Event()

    def start(self) -> None:
        """Read the output while it is printed."""
        self._following = self._shared.spawn(self._follow())

    def stop(self) -> None:
        """Do not read on."""
        if self._following is not None:
            self._following.cancel()

    async def _follow(self) -> None:
        output = self._pod.output
        await asyncio.sleep(_FOLLOW_AFTER_SECONDS if self._pod.cancelling is None else 0)
        pause, before = Pause(), 0
        # The timeouts of a batch count from the frames in its output, so that is always followed.
        async with contextlib.nullcontext() if self._pod.is_batch else self._shared.log_streams:
            while not self._pod.is_over:
                try:
                    if await self.read(follow=True):  # by the container's end; when that is seen this is cancelled
                        await asyncio.sleep(END_SEEN_SECONDS)
                        output.is_read_out = False  # it was only its node that closed the stream
                except (ApiError, UnreachableError) as error:
                    log.debug("the output of %s cannot be followed now: %s", self._pod, error)
                except OSError as error:
                    self._shared.warn(error)
                except Exception:
                    log.exception("the output of %s cannot be followed; trying again", self._pod)
                if output.taken > before:
                    before = output.taken
                    pause.reset()
                if not self._pod.is_over:
                    await pause()

    async def read(self, *, follow: bool) -> bool:
        """Read the output from our position to its end; False if it should be tried again, since it may go on.

        :param follow: whether to go on while the container runs.
        """
        async with self._reading:
            while True:
                try:
                    await self._read_once(follow=follow)
                except OutOfStepError:
                    self._continue_in(await self._read_all())
                    return False
                except _ContinuedElsewhereError:
                    continue
                else:
                    return True

    def _open(self, *, follow: bool, limit: int | None = None) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        pod = self._pod
        return self._shared.client.open_log(pod.namespace, pod.name, pod.container, follow=follow, limit=limit)

    async def _read_all(self, limit: int | None = None) -> bytes:
        """All of the output that its node has, or the first bytes of it."""
        async with self._open(follow=False, limit=limit) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def has_output(self) -> bool:
        """Whether the container has printed anything: its first process begins with a line.

        :raises ApiError: and UnreachableError, if that is not known now.
        """
        return bool(await self._read_all(limit=1))

    def _continue_in(self, found: bytes, *, is_read_out: bool = False) -> None:
        self._pod.output.continue_in(found, is_read_out=is_read_out)
        self._advance()

    async def _read_once(self, *, follow: bool) -> None:
        """Read the current file to its end.

        :raises OutOfStepError: if the output that was read before is not there any more.
        :raises _ContinuedElsewhereError: if the output goes on in another file, which is the current one now.
        """
        reader = self._pod.output.reader()
        async with self._open(follow=follow) as chunks:
            self.has_begun.set()
            async with contextlib.aclosing(self._watchfully(chunks, reader, follow=follow)) as watched:
                async for chunk in watched:
                    reader.feed(chunk)
                    self._advance()
        if not reader.is_in_step:
            raise OutOfStepError
        self._pod.output.is_read_out = True

    async def _watchfully(
        self, chunks: AsyncIterator[bytes], reader: Reader, *, follow: bool
    ) -> AsyncGenerator[bytes, None]:
        """The chunks, without waiting for those that will not come.

        :raises OutOfStepError: if the output that was read before does not come again, as when there is less now.
        :raises _ContinuedElsewhereError: as :meth:`_read_once`.
        """
        output = self._pod.output
        coming: asyncio.Future[bytes] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(chunks))
                patience = self._silence if reader.is_in_step else _IN_STEP_SECONDS
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
                        self._silence = FIRST_SILENCE
                elif not reader.is_in_step:
                    raise OutOfStepError
                else:
                    self._silence = min(2 * self._silence, _LONGEST_SILENCE)
                    found = await self._find_another_file()
                    # A stream that has gone on to the next file brings its output now; one that has not stays silent.
                    if found is not None and not (await asyncio.wait([coming], timeout=ARRIVAL_SECONDS))[0]:
                        self._continue_in(found, is_read_out=True)
                        raise _ContinuedElsewhereError
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait([coming])
                if not coming.cancelled():
                    coming.exception()  # so that asyncio does not log it

    async def _find_another_file(self) -> bytes | None:
        """All of the output that its node has, if that is in another file than the current one."""
        head = self._pod.output.head
        try:
            return None if await self._read_all(limit=len(head)) == head else await self._read_all()
        except (ApiError, UnreachableError) as error:
            log.debug("whether the output of %s goes on elsewhere is not known: %s", self._pod, error)
            return None

    async def read_to_the_end(self) -> None:
        """Read the rest of the output, after the container has ended."""
        pod, output = self._pod, self._pod.output
        if self._following is not None:
            before = -1
            while output.taken != before and not pod.is_detached:  # as long as more comes
                before = output.taken
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_OUTPUT_SECONDS), self._reading:
                        break
            self._following.cancel()
        deadline = time.monotonic() + self._shared.options.lost_after
        ending = pod.status.ending if pod.status is not None else None
        is_being_deleted = pod.status is not None and pod.status.is_being_deleted
        is_there = not pod.is_gone and (pod.status is None or ending is not None) and not has_all(pod)
        if is_being_deleted and self.has_begun.is_set():
            is_there = False  # its node is throwing it away
        ended_by_itself = ending is not None and ending.message.startswith("end ")
        pause = Pause()
        while not pod.is_detached:
            try:
                if is_there:
                    await self.read(follow=False)
                    is_there = False
                output.splitter.finish(marker_is_due=ended_by_itself)
            except ApiError as error:  # its node does not answer the API server, or has dropped the container
                is_there = error.may_pass and time.monotonic() < deadline and not pod.is_gone
                if not is_there and not (pod.status is not None and pod.status.is_being_deleted):
                    output.take(f"\n[air-executor] The output could not be read to its end: {error}\n".encode())
                    ended_by_itself = False
            except (UnreachableError, OSError) as error:
                self._shared.warn(error)
            else:
                return
            await pause()
