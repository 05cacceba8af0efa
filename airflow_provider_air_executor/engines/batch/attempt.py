"""One attempt that a batch system has, or is to get, and all that is known of it."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_air_executor.engines.batch.dialect import GONE, Phase, State, Submission
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.attempt_record import Record, claim, read_record
from airflow_provider_air_executor.jobs.models import utc_now


@dataclass(eq=False)
class BatchedAttempt:
    """An attempt, and how it stands.

    :param title: of the batch system, for people.
    :param submission: None if it must not be submitted again.
    """

    attempt: Attempt
    title: str
    token: str
    record_path: str
    handle_path: Path
    submission: Submission | None
    is_shared: bool = False  # whether it was submitted with others
    is_submitting: bool = False
    submitted_at: float = math.inf
    submit_again_at: float = 0.0
    states: dict[str, State] = field(default_factory=dict)  # by the number of the job; there may be two by misfortune
    left: set[str] = field(default_factory=set)  # shared jobs that were to run it, and ended before its turn
    size: int = -1  # of the record when it was read last
    record: Record | None = None
    is_read_again: bool = False  # because it did not say what the attempt has used
    read_at: float = math.inf  # when there was a record for the first time
    has_started: bool = False
    location: str = ""
    over_since: float | None = None
    ended_since: float | None = None
    put_back_at: float | None = None  # when the system said that it waits although it has started
    hopeless_answers: int = 0  # how often in a row the system has given a reason that does not go away
    misstarts: int = 0  # jobs that failed without having begun it
    cancelling: bool | None = None  # True: by SIGKILL; None: it is not being cancelled
    cancelled_at: float = 0.0
    is_detached: bool = False
    is_over: bool = False  # whether its end was emitted
    asked: str = ""  # the command by which the system was asked for more
    answer: str | None = None
    has_living_node: bool = False  # whether its node answers, although the system says that it has failed

    @property
    def holder(self) -> State | None:
        """The batch job that runs the attempt, or the last one that may."""
        if self.record is not None:
            return self.states.get(str(self.record.pid))
        alive = [state for state in self.states.values() if not state.is_over]
        return alive[0] if alive else next(iter(self.states.values()), None)

    @property
    def numbers(self) -> list[str]:
        """The batch jobs that may run it."""
        return [number for number, state in self.states.items() if not state.is_over]

    def has_new_record(self) -> bool:
        """Whether the node has written something since the record was read."""
        if self.is_detached:
            return False
        before = self.size
        try:
            self.size = os.stat(self.record_path, follow_symlinks=False).st_size
        except OSError:
            self.size = -1
        return self.size != before

    def read(self) -> None:
        """Read the record. To open it is what makes a network file system show what another machine wrote."""
        if self.is_detached:
            return
        try:
            record = read_record(self.record_path, self.handle_path)
        except OSError:
            self.size = -1  # it is read again at the next look
            return
        if record is not None and self.record is None:
            self.read_at = time.monotonic()
        self.record = record or self.record

    def has_half_a_record(self) -> bool:
        """Whether what it has used may be written into its record at this moment; then that is read again once."""
        is_half = self.record is not None and self.record.used is None and not self.is_read_again
        if is_half:
            self.is_read_again, self.size = True, -1
        return is_half

    def claim(self) -> bool:
        """Write the record of an attempt that is not to run; False if it runs already, or nothing can be written."""
        if self.is_detached:
            return False
        try:
            os.close(claim(self.record_path, Record(0, utc_now(), self.token, 128 + signal.SIGTERM)))
        except OSError:
            return False
        return True

    def where(self) -> str:
        """Where it is, for people; empty if that is not known."""
        holder, numbers = self.holder, list(self.states)
        if holder is None or not numbers:
            return ""
        found = f"{self.title} job {self.record.pid if self.record is not None else numbers[-1]}"
        if holder.phase is Phase.WAITING and (not self.has_started or self.put_back_at is not None):
            return found + (f", waiting ({holder.why})" if holder.why else ", waiting")
        if holder.nodes:
            found += f" on {holder.nodes}"
            if holder.is_shared and not self.has_started:
                found += ", waiting for its turn"
        return found

    def describe(self, state: State) -> str:
        """How its batch job stands, for people."""
        numbers = [str(self.record.pid)] if self.record is not None else list(self.states)
        words = f"{self.title} job {', '.join(numbers)}"
        if state.nodes:
            words += f" on {state.nodes}"
        if state.word == GONE.word:
            return f"{words} is not known to {self.title} any more"
        reason = f" ({state.why})" if state.why else ""
        return f"{words} ended as {state.word}{reason}" if state.is_over else f"{words} is {state.word}{reason}"
