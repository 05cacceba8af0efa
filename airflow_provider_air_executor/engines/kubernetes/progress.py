"""How far the attempts of a Pod are: emits their starts, their location, and how they ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from airflow_provider_air_executor.engines.kubernetes import endings
from airflow_provider_air_executor.engines.kubernetes.batches import BatchedAttempt, Message
from airflow_provider_air_executor.engines.kubernetes.endings import NOBODY
from airflow_provider_air_executor.engines.kubernetes.pod import Pod
from airflow_provider_air_executor.engines.kubernetes.shared import Shared
from airflow_provider_air_executor.engines.protocol import Ended, Located, Started
from airflow_provider_air_executor.jobs.models import Reason, printable, utc_now

_CATCH_UP_SECONDS = 0.5  # after an attempt was seen to begin, within which its end may be read as well


class Progress:
    """The progress of one Pod.

    :param cancel: called when an attempt has begun that is cancelled, with whether it is killed.
    """

    def __init__(self, pod: Pod, shared: Shared, cancel: Callable[[bool], None]) -> None:
        self._pod = pod
        self._shared = shared
        self._emit = shared.events.put
        self._cancel = cancel

    def start(self, attempt: BatchedAttempt, begun_at: datetime) -> None:
        """An attempt has begun."""
        if not attempt.has_started:
            attempt.has_started, attempt.begun_at = True, begun_at
            if attempt.attempt is not None:
                self._emit(Started(attempt.attempt, begun_at))

    def locate(self, waits_for: str = "") -> None:
        """Emit where the attempts are, if that has changed.

        :param waits_for: the reason why the Pod is not there yet; default: that of its status.
        """
        pod, status = self._pod, self._pod.status
        node, why = ("", waits_for) if waits_for or status is None else (status.node, status.waits_for)
        found = f"{pod} on {node}" if node else f"{pod}, waiting ({why})" if why else f"{pod}, waiting"
        for each in pod.open_attempts:
            location = f"{found}, waiting for its turn" if pod.has_started and not each.has_started else found
            if location != each.location and each.attempt is not None:
                each.location = location
                self._emit(Located(each.attempt, location))

    def advance(self) -> None:
        """See which attempts of a batch have begun and ended, after more of its output was taken.

        :raises OSError: if an end cannot be persisted; it must be called again.
        """
        pod = self._pod
        if not pod.is_detached:  # then its log is gone, or another job's
            pod.output.splitter.take(b"")  # output that could not be written before
        for each in pod.attempts if pod.is_batch else ():
            # Why an attempt was signalled is known once the Pod is over.
            if each.is_done and each.ended is None and (pod.is_over or not each.was_signalled):
                each.has_started = True
                if pod.status is not None:
                    self.locate()
                ended_at = each.ended_at or utc_now()
                self._end_batched(each, Ended(NOBODY, each.exit_code, ended_at, each.begun_at, usage=each.usage))
            elif each.begun_at is not None and not each.is_done and not each.is_due:
                each.is_due = True
                self._shared.loop.call_later(_CATCH_UP_SECONDS, self._start_if_it_runs, each)

    def _start_if_it_runs(self, attempt: BatchedAttempt) -> None:
        """An attempt has begun, if it has not ended meanwhile: its end may come with the next piece of the output."""
        pod = self._pod
        if pod.is_over or attempt.is_done or attempt.ended or attempt.begun_at is None or pod.is_released:
            return
        self.start(attempt, attempt.begun_at)
        if pod.status is not None:
            self.locate()
        if attempt.cancelling is not None:
            self._cancel(attempt.cancelling)

    def end(self, attempt: BatchedAttempt, ended: Ended) -> None:
        """An attempt has ended; if it is not known to the manager yet, that is emitted later."""
        attempt.ended = ended
        if attempt.attempt is not None:
            self._emit(ended._replace(attempt=attempt.attempt))

    def end_all(self, reason: Reason | None, error: str | None = None, *, may_repeat: bool = True) -> None:
        """End the attempts that are still open, without an exit code."""
        pod, why = self._pod, None if error is None else printable(error)
        started_at = pod.status.started_at if pod.status is not None and not pod.is_batch else None
        for each in pod.open_attempts:
            begun_at = each.begun_at or started_at
            self.end(each, Ended(NOBODY, None, utc_now(), begun_at, reason, why, may_repeat))

    def finalize(self, last: Ended) -> list[BatchedAttempt]:
        """End the attempts that are still open, now that the Pod is over.

        :param last: how the attempt has ended that ran last.
        :return: those that have not begun, for another Pod.
        :raises OSError: if an end cannot be persisted; it must be called again.
        """
        self.advance()
        pod, message = self._pod, endings.last_message(self._pod)
        left: list[BatchedAttempt] = []
        for number, each in enumerate(pod.attempts, 1):
            if each.ended is not None:
                continue
            if not pod.is_batch:
                each.spawn_error, result, is_whole = endings.read_result(pod)
                self._end(each, last, result, is_whole=is_whole)
            elif message is None or number <= message.begun:
                self._finalize_batched(each, number, message, last)
            elif each.cancelling is None and each.attempt is not None and not pod.is_detached:
                left.append(each)
            else:
                self.end(each, Ended(NOBODY, None, utc_now()))
        return left

    def _finalize_batched(self, attempt: BatchedAttempt, number: int, message: Message | None, last: Ended) -> None:
        """End an attempt of a batch whose end is not in the output.

        :param number: in the batch, from 1.
        """
        pod = self._pod
        if message is not None and number == message.begun and message.exit_code is not None:
            if not pod.is_detached:
                pod.output.splitter.cut_off(attempt)
            attempt.size, attempt.was_signalled = message.size, message.was_signalled
            attempt.result = bytearray(message.result or b"")
            ended_at = message.ended_at or utc_now()
            self._end_batched(attempt, Ended(NOBODY, message.exit_code, ended_at, attempt.begun_at))
            return
        # That the container as a whole has ended well says nothing about one attempt.
        if (message is not None and number < message.begun) or last.exit_code == 0:
            last = Ended(NOBODY, None, utc_now(), reason=Reason.LOST, error=endings.NO_END)
        elif pod.cancelling is not None and attempt.cancelling is None:
            last = Ended(NOBODY, None, utc_now(), reason=Reason.LOST, error=endings.ENDED_WITH_ANOTHER)
        self._persist_and_end(attempt, last._replace(started_at=attempt.begun_at), None)

    def _end_batched(self, attempt: BatchedAttempt, ended: Ended) -> None:
        """End an attempt of a batch that has an exit code."""
        is_whole, result = attempt.has_whole_result, bytes(attempt.result or b"")
        is_ended = attempt.was_signalled and attempt.cancelling is None
        if is_ended and (why := endings.why_signalled(self._pod, ended.exit_code)):
            ended = ended._replace(reason=why[0], error=why[1])
        self._end(attempt, ended, result if is_whole and result else None, is_whole=is_whole)

    def _end(self, attempt: BatchedAttempt, ended: Ended, result: bytes | None, *, is_whole: bool) -> None:
        """End an attempt, unless its command could not be started or its result is not whole."""
        if attempt.spawn_error and attempt.cancelling is None:
            ended = ended._replace(exit_code=None, reason=Reason.SPAWN, error=attempt.spawn_error)
        elif not is_whole and ended.exit_code == 0 and ended.reason is None:
            ended = ended._replace(exit_code=None, reason=Reason.LOST, error=endings.NO_RESULT)
        self._persist_and_end(attempt, ended, result)

    def _persist_and_end(self, attempt: BatchedAttempt, ended: Ended, result: bytes | None) -> None:
        if attempt.attempt is not None and not self._pod.is_detached:
            self._shared.handles.persist(attempt, ended, result)
        self.end(attempt, ended)
