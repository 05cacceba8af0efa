"""Hands attempts over to a batch system, one to a batch job or several."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from airflow_provider_air_executor.engines.batch.attempt import BatchedAttempt
from airflow_provider_air_executor.engines.batch.dialect import Dialect
from airflow_provider_air_executor.engines.children import Commands, Result


class Submitter:
    """Submits attempts, and says of each what the system has answered.

    :param commands: which run the command lines.
    :param answered: called for each attempt that has not ended meanwhile, with the result.
    """

    def __init__(
        self, dialect: Dialect, commands: Commands, answered: Callable[[BatchedAttempt, Result], None]
    ) -> None:
        self._dialect = dialect
        self._commands = commands
        self._answered = answered
        self._gathered: dict[tuple[int, str, str], list[BatchedAttempt]] = {}  # what is to share a batch job

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called."""
        return 0.0 if self._gathered else self._commands.poll_after

    def gather(self, found: BatchedAttempt, size: int, options: str) -> None:
        """Submit an attempt with others of its job that need the same and come before the next :meth:`poll`.

        :param size: how many share a batch job at most.
        """
        self._gathered.setdefault((size, found.attempt.job_name, options), []).append(found)

    def poll(self) -> None:
        """Submit what was gathered, and end commands that take too long."""
        self._commands.expire()
        gathered, self._gathered = self._gathered, {}
        for (size, *_), attempts in gathered.items():
            wanted = [found for found in attempts if found.cancelling is None]
            for start in range(0, len(wanted), size):
                self.submit(wanted[start : start + size])

    def submit(self, attempts: Sequence[BatchedAttempt]) -> None:
        """Submit a batch job for one attempt or several."""
        submissions = [found.submission for found in attempts if found.submission is not None]
        if len(submissions) != len(attempts):
            return
        for found in attempts:
            found.is_submitting = True
            found.is_shared = len(attempts) > 1
        words, text = self._dialect.submit(submissions)
        self._commands.run(words, partial(self._all_answered, attempts), text=text)

    def submit_alone(self, found: BatchedAttempt) -> None:
        """Submit once more an attempt that its batch job did not start. Its record prevents a second run."""
        found.left.update(found.states)
        found.states.clear()
        found.submitted_at, found.over_since, found.hopeless_answers = math.inf, None, 0
        self.submit([found])

    def _all_answered(self, attempts: Sequence[BatchedAttempt], result: Result) -> None:
        for found in attempts:
            found.is_submitting = False
        # One that has ended already is passed over: a second job of it will find that out.
        attempts = [found for found in attempts if not found.is_over]
        if len(attempts) > 1 and result.exit_code > 0 and not self._dialect.may_pass(result.last_words):
            for found in attempts:  # it may be that only all together are too much
                self.submit([found])
            return
        for found in attempts:
            self._answered(found, result)
