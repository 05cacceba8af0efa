"""Steps of the manager that fail: they are logged once, tried again with growing pauses, and published."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import printable, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.timers import RETRY_SECONDS, Action, Backoff, Timers

log = logging.getLogger("air_executor.manager")

_PUBLISH_SECONDS = 0.5

FailJob = Callable[[str, Exception], None]


class Step(enum.StrEnum):
    """The steps that may fail, as the messages describe them."""

    LOAD = "cannot be loaded"
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
    since: datetime
    began: float  # the same on the monotonic clock
    backoff: Backoff
    kind: object = None  # identifies the reason; texts may hold names that change
    why: str = ""


class Troubles:
    """Records failures, for each job and step: one line in the log when it begins and one when it is over.

    :param store: where the problems are published, for the status of jobs.
    """

    def __init__(self, store: JobStore, timers: Timers) -> None:
        self._store = store
        self._timers = timers
        self._troubles: dict[tuple[str, Step], _Trouble] = {}
        self._will_publish = False

    def met(self, name: str, step: Step, error: Exception, again: Action | None = None) -> None:
        """A step has failed. If permissions were missing, the modes of the job's directories are put back.

        :param name: the job, or a request whose job is not known.
        :param again: tries it again after a pause; there is one timer, however often it fails meanwhile. None: the
            caller tries it again.
        """
        if isinstance(error, PermissionError):
            with contextlib.suppress(InvalidJobError):  # it is the name of a request
                files.put_modes_back(*self._store.paths(name).directories)
        kind = (type(error), error.errno) if isinstance(error, OSError) else (type(error), str(error))
        trouble = self._troubles.get((name, step))
        if trouble is None:
            trouble = self._troubles[name, step] = _Trouble(utc_now(), self._timers.now(), Backoff(self._timers))
        if trouble.kind != kind:
            trouble.kind, trouble.why = kind, printable(str(error))
            log.error("job %s: %s: %s; it is tried again", name, step.value, error)
            self._publish_soon()
        if again is not None:
            trouble.backoff.retry(again)

    def is_waiting(self, name: str, step: Step) -> bool:
        """Whether the step will be tried again by itself, and not before."""
        trouble = self._troubles.get((name, step))
        return trouble is not None and trouble.backoff.is_waiting

    def over(self, name: str, *steps: Step) -> None:
        """These steps have succeeded, or there is no need for them any more.

        :param steps: default: all steps on a job. A request about one that has ended is still there.
        """
        if not self._troubles:
            return
        for step in steps or _OF_A_JOB:
            trouble = self._troubles.pop((name, step), None)
            if trouble is not None:
                log.info("job %s: %s: over after %.1f s", name, step.value, self._timers.now() - trouble.began)
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
        """Publish what is wrong now."""
        self._will_publish = False
        problems = {
            name: {"problem": f"{step.value}: {trouble.why}", "since": trouble.since.isoformat()}
            for (name, step), trouble in self._troubles.items()
        }
        try:
            if problems:
                files.publish(self._store.problems_path, json.dumps(problems).encode())
            else:
                files.remove(self._store.problems_path)
        except OSError:  # while the file system is away, it cannot be read either
            self._will_publish = True
            self._timers.after(RETRY_SECONDS, self.publish)


class Guard:
    """Takes steps, and takes them again later if they fail.

    :param fail_job: ends a job, by its name, on which a step has raised an unexpected error.
    """

    def __init__(self, timers: Timers, troubles: Troubles, fail_job: FailJob) -> None:
        self.fail_job = fail_job
        self._timers = timers
        self._troubles = troubles
        self._failures: dict[str, str] = {}  # steps that have failed the last time, and how
        self._waking: set[str] = set()  # steps for which a timer ends the sleep
        self._failing: Counter[str] = Counter()  # how many steps on a job are to be taken again

    def run(self, step: Action) -> bool:
        """Take a step that concerns all jobs, and wake up soon if it fails, whatever it raises.

        :return: whether it has succeeded.
        """
        name = step.__name__
        try:
            step()
        except Exception as error:
            if self._failures.get(name) != repr(error):
                self._failures[name] = repr(error)
                log.exception("something could not be done (%s); it is tried again", name)
            if name not in self._waking:
                self._waking.add(name)
                self._timers.after(RETRY_SECONDS, partial(self._wake_for, name))
            return False
        if self._failures and self._failures.pop(name, None) is not None:
            log.info("%s: that is over", name)
        return True

    def _wake_for(self, name: str) -> None:
        """Have a step taken again that has failed: in the next round, as it may have failed in this one already."""
        self._waking.discard(name)
        self._timers.wake(0)

    def run_for(self, name: str, step: Action, *, is_again: bool = False) -> None:
        """Take a step on one job. One that raises an OSError is taken again; another error ends the job."""
        self._failing[name] -= is_again
        try:
            step()
        except OSError as error:
            self._failing[name] += 1
            self._troubles.met(name, Step.ACT, error)
            self._timers.after(RETRY_SECONDS, lambda: self.run_for(name, step, is_again=True))
        except Exception as error:  # noqa: BLE001 - the contents of a job's files may lead to any error
            self.fail_job(name, error)
        else:
            if not self._failing[name]:
                del self._failing[name]
                self._troubles.over(name, Step.ACT)

    def run_later(self, name: str, seconds: float, step: Action) -> None:
        """Take a step on one job in so many seconds."""
        self._timers.after(seconds, partial(self.run_for, name, step))
