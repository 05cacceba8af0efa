"""The interface of engines: the manager has attempts run through it, on this machine or elsewhere.

``docs/runners.md`` says how to write one; the suite in ``tests/engines/contract.py`` tests it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.jobs.models import Reason, Task
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage

LOCAL = "local"
_SERIALS = itertools.count()


class Attempt(NamedTuple):
    """One run of a task."""

    job_name: str
    task_id: str
    number: int
    serial: int  # differs from that of the same attempt of a job that was removed and submitted again
    engine: str  # the name of its engine; `warm` tasks are run by `local`

    @classmethod
    def of(cls, job_name: str, task_id: str, number: int, engine: str = LOCAL) -> Attempt:
        """An attempt that equals no other."""
        return cls(job_name, task_id, number, next(_SERIALS), engine)


class Started(NamedTuple):
    """The command of an attempt that waited for its turn has been started."""

    attempt: Attempt
    started_at: datetime


class Located(NamedTuple):
    """Where an attempt is, in words for people: by what name the engine knows it, and what it waits for."""

    attempt: Attempt
    where: str


class Ended(NamedTuple):
    """An attempt that is over; its process is gone, and all of its output is in its log."""

    attempt: Attempt
    exit_code: int | None  # None: it left no result
    ended_at: datetime
    started_at: datetime | None = None
    reason: Reason | None = None  # if the engine knows better than the exit code
    error: str | None = None  # in the engine's words
    may_repeat: bool = True  # False: it may still be running on an unreachable node
    left: str = ""  # what of it lives on, in words for people
    usage: Usage | None = None


class NotStarted(NamedTuple):
    """An attempt whose command was never started, but may be started later."""

    attempt: Attempt
    why: str  # what the machine is short of; empty if there is no reason to wait


class Running(NamedTuple):
    """An attempt of an earlier manager that is still running, or waits for its turn."""

    attempt: Attempt
    started_at: datetime | None
    waits: bool = False
    age: float | None = None  # seconds that it has run, by a clock that cannot be set


Event = Started | Located | Ended | NotStarted


class SpawnError(Exception):
    """The command cannot be started, now or later."""


class ResourceExhaustedError(Exception):
    """The machine is short of something; the command can be started later."""


class Context(NamedTuple):
    """The arguments of an engine.

    :param store: the job filesystem that the attempts belong to.
    :param environment: what the commands inherit.
    :param options: the options in ``config.yaml`` under ``runners`` and the engine's name.
    :param children: starts processes, and calls back when they end.
    :param kill_grace: seconds after which an attempt that was cancelled will be killed.
    """

    store: JobStore
    environment: Mapping[str, str]
    options: Mapping[str, Any]
    children: Children
    kill_grace: float = 10.0


class Engine(Protocol):
    """Runs attempts. No method may wait for anything outside this machine; :meth:`poll` returns events later.

    A class is made with a :class:`Context`, and raises ``SettingsError`` if it cannot work here.
    """

    @property
    def descriptor(self) -> int | None:
        """A descriptor that becomes readable when there is something to :meth:`poll`; None: there is none."""

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called in any case; None: never."""

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> bool | None:
        """Start an attempt, exactly once whatever happens to this process meanwhile.

        Before anything outside this process knows of it, a record or a handle must be in ``runs/``, by which
        :meth:`adopt` finds it, see :meth:`JobPaths.handle`.

        :param task: what is to run. ``runner`` is what it, its job or the settings say; ``cwd`` is the directory to run
            in, None for that of the manager. An engine whose commands do not see the job filesystem has an attribute
            ``has_own_files`` that is true, and gets the ``cwd`` of the task as it is.
        :param started_at: the time that counts as its start if it starts at once.
        :return: whether it waits for its turn; then an event :class:`Started` follows.
        :raises SpawnError: if the command cannot be started, now or later.
        :raises ResourceExhaustedError: if the machine is short of something.
        """

    def poll(self) -> list[Event]:
        """The events since the last call."""

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Adopt an attempt that an earlier manager may have started; it may be called twice for the same one.

        :return: None if it was never started.
        """

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt; :meth:`poll` returns its end.

        :param kill: whether all of its processes are killed at once; otherwise they get SIGTERM.
        """

    def detach(self, attempt: Attempt) -> None:
        """The job of an attempt is gone: the file at the path of its record may belong to another job."""

    def kill_orphan(self, attempt: Attempt) -> None:
        """Kill what an attempt has started according to its record, whether it runs or is over."""

    def prepare(self) -> None:
        """Do ahead what makes the next start faster; called when there is nothing else to do."""

    def close(self) -> None:
        """Release all resources. Attempts go on."""
