"""Has generations made of the fork server: what they import is said by a learner, which sees what tasks import."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from airflow_provider_air_executor.engines.local.generations import Generations
from airflow_provider_air_executor.engines.local.learning import trial as trials
from airflow_provider_air_executor.engines.local.learning.learner import Learner
from airflow_provider_air_executor.engines.local.learning.trial import Outcome, Trial
from airflow_provider_air_executor.engines.local.serving import Server
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.system.import_report import MAX_REPORT

log = logging.getLogger("air_executor.manager")

_T = TypeVar("_T")
AUTO = "auto"
IS_LINUX = sys.platform.startswith("linux")
FIRST_PAUSE = 2.0  # seconds between the first wish for other modules and the first generation
PAUSE = 10.0  # after a generation; after each one, twice as long as after the one before
LONGEST_PAUSE = 600.0
TRIALS_SECONDS = 10.0  # that a generation waits for trials
LOOK_SECONDS = 0.5  # between two looks at what has been learned
_REPORTS = 10  # that are read at a time; the system keeps no more by default


class Preload(NamedTuple):
    """What is imported ahead.

    :param modules: that the fork server imports; if there are none, the first task says which.
    :param learner: says what its generations import besides; None: it has none.
    """

    modules: tuple[str, ...] = ()
    learner: Learner | None = None


NO_PRELOAD = Preload()


def preload_of(words: tuple[str, ...], base_path: Path) -> Preload:
    """What is imported ahead according to the setting of that name.

    :param words: modules; and ``auto`` if what tasks import is to be learned.
    :param base_path: where it is kept what was learned.
    """
    modules = tuple(word for word in words if word != AUTO)
    return Preload(modules, Learner(base_path) if AUTO in words and IS_LINUX else None)


class Preloading:
    """Has packages tried, and the next generation made when other modules are wanted than the present one has.

    :param learner: says which; None: there are no generations.
    """

    def __init__(self, learner: Learner | None, generations: Generations) -> None:
        self._learner = learner
        self._generations = generations
        self._reports: socket.socket | None = None
        self._trial: tuple[Trial, Server] | None = None  # which is being made, and by whom
        self._killed: set[str] = set()  # packages whose trial was killed by somebody else
        self._look_at: float | None = None  # when to look at what has been learned; None: when something happens
        self._wanted_since: float | None = None  # since when other modules are wanted than there are
        self._next_at = 0.0  # before which there is no other generation
        self._pause = PAUSE
        if learner is not None:
            self._reports, generations.reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def goes_to_base(self, task: Task) -> bool:
        """Whether a task gets a process of the fork server itself."""
        return self._ask(lambda learner: learner.goes_to_base(task.preload_key), otherwise=True)

    def hint(self, task: Task) -> dict[str, Any]:
        """What the process of a task is told of what it executes."""
        beside = self._generations.attempts
        return self._ask(lambda learner: learner.hint(task.preload_key, beside), otherwise={})

    def _ask(self, call: Callable[[Learner], _T], otherwise: _T) -> _T:
        """Call the learner. If it fails, tasks go on without it and what it has learned.

        :param otherwise: what it is taken to have answered then.
        """
        if self._learner is None:
            return otherwise
        try:
            return call(self._learner)
        except Exception:
            log.exception("tasks start without what was learned until the next manager")
            self._learner = None
            return otherwise

    def an_attempt_has_ended(self) -> None:
        """Look soon: its task may have sent a report."""
        if self._learner is not None and self._look_at is None:
            self._look_at = time.monotonic() + LOOK_SECONDS

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`step` must be called; None: never."""
        if self._look_at is None or self._learner is None:
            return None
        return max(0.0, self._look_at - time.monotonic())

    def step(self) -> None:
        """Do what is due, if anything is."""
        now = time.monotonic()
        if self._look_at is None or now < self._look_at or self._learner is None:
            return
        self._look_at = now + LOOK_SECONDS if self._take_reports() == _REPORTS else None
        if not self._generations.is_serving:  # when one is ready, there is another look
            return
        self._start_trial()
        self._make_generation(now)
        self._ask(lambda learner: learner.write(), None)

    def _take_reports(self) -> int:
        """Read what tasks have sent: anything may come, from any process that a task has left."""
        count = 0
        with contextlib.suppress(OSError):
            while self._reports is not None and count < _REPORTS:
                data = self._reports.recv(MAX_REPORT + 1, socket.MSG_DONTWAIT)
                count += 1
                if len(data) <= MAX_REPORT:
                    self._ask(partial(_take, data), None)
        return count

    def _start_trial(self) -> None:
        base = self._generations.base
        if self._trial is not None or base is None or self._generations.next_base is not None:
            return
        trial = self._ask(lambda learner: learner.next_trial(), None)
        if trial is None:
            return
        if base.tell(trial=trial.names, after=trial.after, seconds=trials.SECONDS):
            self._trial = trial, base

    def has_tried(self, server: Server, message: dict[str, Any]) -> None:
        """Take note of the outcome of a trial."""
        if self._trial is None or self._trial[1] is not server:
            return
        trial, self._trial = self._trial[0], None
        self._look_at = time.monotonic()
        if "error" in message:  # it could not be made
            self._look_at += TRIALS_SECONDS
        elif message["tried"]:
            outcome = Outcome.from_json(message["tried"])
            self._ask(lambda learner: learner.tried(trial, outcome), None)
        elif message["status"] == signal.SIGKILL and not message["late"] and trial.root not in self._killed:
            self._killed.add(trial.root)  # by somebody, or for lack of memory: once more, later
            self._look_at += TRIALS_SECONDS
        else:
            why_not = trials.TOO_LONG if message["late"] else trials.died(message["status"])
            self._ask(lambda learner: learner.tried(trial, Outcome(why_not=why_not)), None)

    def _make_generation(self, now: float) -> None:
        """Have a generation made if one is wanted, and it is time."""
        generations = self._generations
        if generations.next_generation is not None or generations.next_base is not None:
            return
        present: tuple[str, ...] = () if generations.generation is None else generations.generation.modules
        wanted = self._ask(lambda learner: learner.modules(), present)
        if wanted == present:
            self._wanted_since = None
            return
        if self._wanted_since is None:
            self._wanted_since = now
        due = max(self._next_at, self._wanted_since + FIRST_PAUSE)
        if self._trial is not None:
            due = max(due, self._wanted_since + TRIALS_SECONDS)
        if now < due:
            self._look_at = due
        elif generations.make_generation(wanted):
            self._wanted_since, self._next_at = None, now + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._look_at = now + PAUSE

    def has_become_ready(self, server: Server) -> None:
        """Take note of a process that serves from now on."""
        self._look_at = now = time.monotonic()
        if server.parent is None:  # a generation of it is to be made at once
            self._trial, self._pause, self._next_at = None, PAUSE, now
            self._wanted_since = now - FIRST_PAUSE
            self._ask(lambda learner: learner.recheck(), None)
        elif server.imported is not None:
            seconds, memory = server.imported.seconds, server.imported.memory
            self._ask(lambda learner: learner.imported(seconds, memory), None)

    def has_failed(self, module: str | None, why: str) -> None:
        """Take note of a generation that could not be made.

        :param module: because of which; None: because of none, and it may be made another time.
        """
        self._look_at = time.monotonic()
        if module is not None:
            self._ask(lambda learner: learner.failed(module, why), None)

    def describe(self) -> dict[str, Any] | None:
        """What has been learned, as plain data; None if nothing is learned."""
        return self._ask(lambda learner: learner.describe(), None)

    def close(self) -> None:
        """Write what has been learned."""
        self._ask(lambda learner: learner.write(now=True), None)
        for end in (self._reports, self._generations.reports):
            if end is not None:
                end.close()


def _take(data: bytes, learner: Learner) -> None:
    learner.take(data)
