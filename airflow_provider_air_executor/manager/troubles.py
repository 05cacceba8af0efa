"""What the manager cannot do at the moment: said once, tried again with growing pauses, and shown to who asks."""

from __future__ import annotations

import enum
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import printable, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.timers import Timers

log = logging.getLogger("air_executor.manager")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds
_PUBLISH_SECONDS = 0.5


class Step(enum.StrEnum):
    """What fails."""

    TAKE_IN = "cannot be taken in"
    WRITE = "cannot be written"
    LIST = "its tasks cannot be written"
    START = "a task cannot be started"
    BEGIN = "a task that was started did not begin"
    ACT = "something that is due cannot be done"
    REQUEST = "a request cannot be carried out"
    END = "it is to end, which cannot be written"


_OF_A_JOB = tuple(step for step in Step if step is not Step.REQUEST)


@dataclass
class _Trouble:
    why: str
    kind: object  # what tells one reason from another; texts may hold names that change
    since: datetime
    began: float
    pause: float = _FIRST_PAUSE
    is_waiting: bool = False  # whether a timer is set


class Troubles:
    """Keeps what fails, for each job and step: one line in the log when it begins and one when it is over.

    :param store: where what is wrong is published, for who asks how a job stands.
    """

    def __init__(self, store: JobStore, timers: Timers) -> None:
        self._store = store
        self._timers = timers
        self._troubles: dict[tuple[str, Step], _Trouble] = {}
        self._will_publish = False

    def met(self, name: str, step: Step, error: Exception, again: Callable[[], None] | None = None) -> None:
        """A step has failed.

        :param name: the job.
        :param again: what tries it again after a pause; there is one timer, however often it fails meanwhile. None:
            that is seen to elsewhere.
        """
        kind = (type(error), error.errno) if isinstance(error, OSError) else (type(error), str(error))
        trouble = self._troubles.get((name, step))
        if trouble is None or trouble.kind != kind:
            log.error("job %s: %s: %s; it is tried again", name, step.value, error)
            began = time.monotonic() if trouble is None else trouble.began
            since = utc_now() if trouble is None else trouble.since
            trouble = self._troubles[name, step] = _Trouble(
                printable(str(error)), kind, since, began, *((trouble.pause, trouble.is_waiting) if trouble else ())
            )
            self._publish_soon()
        if again is not None and not trouble.is_waiting:
            trouble.is_waiting = True
            pause, trouble.pause = trouble.pause, min(2 * trouble.pause, _LONGEST_PAUSE)
            self._timers.after(pause, lambda: self._try_again(name, step, again))

    def _try_again(self, name: str, step: Step, again: Callable[[], None]) -> None:
        trouble = self._troubles.get((name, step))
        if trouble is not None:
            trouble.is_waiting = False
        again()

    def is_waiting(self, name: str, step: Step) -> bool:
        """Whether the step will be tried again by itself, and not before."""
        trouble = self._troubles.get((name, step))
        return trouble is not None and trouble.is_waiting

    def over(self, name: str, *steps: Step) -> None:
        """These steps have succeeded, or there is no need for them any more.

        :param steps: default: all steps on a job. A request about one that has ended is still there.
        """
        if not self._troubles:
            return
        for step in steps or _OF_A_JOB:
            trouble = self._troubles.pop((name, step), None)
            if trouble is not None:
                log.info("job %s: %s: over after %.1f s", name, step.value, time.monotonic() - trouble.began)
                self._publish_soon()

    def over_everywhere(self, step: Step) -> None:
        """This step succeeds for all jobs."""
        for name in [name for name, failing in self._troubles if failing is step]:
            self.over(name, step)

    def _publish_soon(self) -> None:
        if not self._will_publish:
            self._will_publish = True
            self._timers.after(_PUBLISH_SECONDS, self.publish)

    def publish(self) -> None:
        """Tell others what is wrong."""
        self._will_publish = False
        told = {
            name: {"problem": f"{step.value}: {trouble.why}", "since": trouble.since.isoformat()}
            for (name, step), trouble in self._troubles.items()
        }
        try:
            if told:
                files.publish(self._store.problems_path, json.dumps(told).encode())
            else:
                files.remove(self._store.problems_path)
        except OSError:  # of a file system that is away, nobody can read it either
            self._will_publish = True
            self._timers.after(_FIRST_PAUSE, self.publish)
