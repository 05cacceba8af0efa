"""Asks a batch system for the states of the batch jobs."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

from airflow_provider_air_executor.engines.batch.attempt import BatchedAttempt
from airflow_provider_air_executor.engines.batch.dialect import GONE, Dialect
from airflow_provider_air_executor.engines.children import Commands, Result
from airflow_provider_air_executor.engines.protocol import Attempt

log = logging.getLogger("air_executor.manager")

_SHARE = 20  # of the time: the system is asked again after so many times what its answer took
_LONGEST_PAUSE = 30.0  # the answer may have taken so long because the system was away; and it forgets what has ended
AGAIN_SECONDS = 5.0  # after a command could not reach the system


class Query:
    """Lists the batch jobs from time to time, and updates the states of attempts.

    While there is no answer, no attempt changes its state.

    :param interval: seconds between two questions.
    :param answered: is called after an answer, with the time at which it was asked for.
    """

    def __init__(
        self,
        dialect: Dialect,
        commands: Commands,
        attempts: Mapping[Attempt, BatchedAttempt],
        interval: float,
        answered: Callable[[float], None],
    ) -> None:
        self._dialect = dialect
        self._commands = commands
        self._attempts = attempts
        self._interval = interval
        self._answered = answered
        self._next = 0.0
        self._is_asking = False
        self._is_silent = False

    @property
    def due(self) -> float:
        """When it is to be asked next."""
        return math.inf if self._is_asking else self._next

    def by(self, due: float) -> None:
        """Ask at this time at the latest."""
        self._next = min(self._next, due)

    def soon(self) -> None:
        """Ask after the usual pause at the latest."""
        self.by(time.monotonic() + self._interval)

    def ask(self) -> None:
        """List the batch jobs."""
        self._is_asking = True
        asked_at = time.monotonic()
        self._commands.run(self._dialect.query(), lambda result: self._heard(result, asked_at))

    def _heard(self, result: Result, asked_at: float) -> None:
        now = time.monotonic()
        self._is_asking = False
        pause = min(_SHARE * (now - asked_at), _LONGEST_PAUSE if result.exit_code == 0 else AGAIN_SECONDS)
        self._next = now + max(self._interval, pause)
        if self._is_silent is not (result.exit_code != 0):
            self._is_silent = not self._is_silent
            command = self._dialect.query()[0]
            if self._is_silent:
                log.warning("%s does not answer: %s", command, result.last_words)
            else:
                log.info("%s answers again", command)
        if not self._is_silent:
            self._update(result.output, asked_at)
            self._answered(asked_at)

    def _update(self, output: str, asked_at: float) -> None:
        # A number is known to be ours; a token may be anybody's, and is for what has no number yet.
        by_token = {found.token: found for found in self._attempts.values()}
        by_number: dict[str, list[BatchedAttempt]] = {}
        for found in self._attempts.values():
            own = [str(found.record.pid)] if found.record is not None else []
            for number in {*found.states, *own} - found.left:
                by_number.setdefault(number, []).append(found)
        listed: set[tuple[str, str]] = set()
        for number, state, tokens in self._dialect.listed(output):
            named = [by_token[token] for token in tokens if token in by_token]
            for found in [*named, *(found for found in by_number.get(number, ()) if found not in named)]:
                if number not in found.left:
                    listed.add((found.token, number))
                    is_shared = len(tokens) > 1 if found in named else found.is_shared
                    found.states[number] = state._replace(is_shared=is_shared)
        for found in self._attempts.values():
            if found.record is not None and found.read_at < asked_at:
                found.states.setdefault(str(found.record.pid), GONE)
            for number, state in found.states.items():
                if (found.token, number) not in listed and found.submitted_at < asked_at:
                    found.states[number] = GONE._replace(nodes=state.nodes, is_shared=state.is_shared)
