"""The Slurm engine: a batch job for each attempt, or for several short ones."""

from __future__ import annotations

import logging
import re
from typing import ClassVar

from airflow_provider_air_executor.engines.batch.attempt import BatchedAttempt
from airflow_provider_air_executor.engines.batch.dialect import Dialect, State
from airflow_provider_air_executor.engines.batch.engine import BatchEngine
from airflow_provider_air_executor.engines.children import Result
from airflow_provider_air_executor.engines.slurm import commands
from airflow_provider_air_executor.jobs.models import Reason

log = logging.getLogger("air_executor.manager")

_MISSTARTS = 1  # that are made up for: a node may fail to start a job, and then has no record of it
_CANCELLED = {"CANCELLED", "REVOKED"}
_LOST_NODE = {"NODE_FAIL", "BOOT_FAIL"}
_HAD_NO_END = re.compile(r"\bExitCode=0:0\b")  # of a job that was cancelled before it ran; one that ran was signalled
_HAD_NO_TIME = re.compile(r"\bRunTime=00:00:00\b")
_OF_PROLOG = re.compile(r"prolog", re.IGNORECASE)  # why a node is taken out of service
_IS_DOWN = re.compile(r"\*|down|fail", re.IGNORECASE)  # what sinfo says of a node that is off, or does not answer


class SlurmEngine(BatchEngine):
    """Runs attempts as Slurm's batch jobs, see :class:`BatchEngine`."""

    dialect: ClassVar[Dialect] = commands

    def _finalize(self, found: BatchedAttempt, state: State) -> None:
        error, word = found.describe(state), state.word
        is_by_others = not self._canceller.has_ended(found.states)
        has_record = found.record is not None
        if state.is_shared and not has_record and found.submission and not (word in _CANCELLED and is_by_others):
            self._submitter.submit_alone(found)
        elif not has_record and word == "CANCELLED" and is_by_others and found.cancelling is None and state.nodes:
            has_run = self._has_run(found, state)
            if has_run:
                self._end(found, None, reason=state.reason, error=error)
            elif has_run is False:
                error += ", although nobody has asked for that: its node could not start it"
                self._submit_or_lose(found, error, error)
        elif state.reason is not None:
            self._end(found, None, reason=state.reason, error=error)
        elif not has_record and word in ("FAILED", "COMPLETED"):
            lost = f"{error}; its node could not write to the job filesystem: is that shared with the nodes?"
            if word == "FAILED":  # slurmd, when busy, may miss the script that it has just written
                self._submit_or_lose(found, f"{error}, without having begun it", lost)
            else:
                self._end(found, None, reason=Reason.LOST, error=lost)
        else:
            self._lose_node(found, state, f"{error}; it left no result")

    def _submit_or_lose(self, found: BatchedAttempt, error: str, lost: str) -> None:
        """A node could not start an attempt: it is submitted once more, and then lost."""
        if found.submission is None or found.cancelling is not None or found.misstarts >= _MISSTARTS:
            self._end(found, None, reason=Reason.LOST, error=lost)
            return
        log.warning("%s; task %s is submitted again", error, found.attempt.task_id)
        found.misstarts += 1
        found.asked = ""
        self._submitter.submit_alone(found)

    def _lose_node(self, found: BatchedAttempt, state: State, error: str) -> None:
        """The node of an attempt has failed, as far as Slurm knows."""
        is_cut_off = state.word in _LOST_NODE
        if is_cut_off and self._options.fenced and state.nodes:
            answer = self._ask(found, "sinfo", "--noheader", "--Node", f"--nodes={state.nodes}", "--format=%T")
            if answer is None:
                return
            # The node answers: it was not the node that failed, but what Slurm has there for each job.
            found.has_living_node = not _IS_DOWN.search(answer)
        self._lose(found, Reason.LOST, error, is_cut_off=is_cut_off)

    def _has_run(self, found: BatchedAttempt, state: State) -> bool | None:
        """Whether a job that was cancelled had run, or its node could not start it; None if that is not known yet."""
        if found.asked != "sinfo":
            answer = self._ask(found, "scontrol", "--oneliner", "show", "job", *list(found.states)[-1:])
            if answer is None or not _HAD_NO_END.search(answer):
                return None if answer is None else True
            if _HAD_NO_TIME.search(answer):
                return False
        # It was being started for a while; it may have been cancelled meanwhile, or a prolog has failed late.
        answer = self._ask(found, "sinfo", "--noheader", "--Node", f"--nodes={state.nodes}", "--format=%E")
        return None if answer is None else _OF_PROLOG.search(answer) is None

    def _ask(self, found: BatchedAttempt, *words: str) -> str | None:
        """Ask Slurm what decides how an attempt has ended: the answer, or None if it is still to come."""
        if found.asked != words[0]:
            found.asked, found.answer = words[0], None

            def answered(result: Result) -> None:
                found.answer = result.output

            self._commands.run(words, answered)
        return found.answer
