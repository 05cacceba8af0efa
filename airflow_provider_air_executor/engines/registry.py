"""The engines of one manager: which one a task gets, how much room each has, and which one has an earlier attempt.

Engines other than the local one are entry points of the group ``air_executor.runners``.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from airflow_provider_air_executor.engines.capacity import Amounts
from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.holdings import Holdings, holdings_of
from airflow_provider_air_executor.engines.protocol import (
    LOCAL,
    Attempt,
    Context,
    Ended,
    Engine,
    Event,
    NotStarted,
    Running,
    SpawnError,
    Started,
)
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Job, Reason, Task, utc_now
from airflow_provider_air_executor.jobs.paths import parse_run
from airflow_provider_air_executor.jobs.pieces import ITEMS, Pieces
from airflow_provider_air_executor.jobs.store import JobStore

log = logging.getLogger("air_executor.manager")

ENTRY_POINTS = "air_executor.runners"

_WARM = "warm"  # tasks that the local engine forks
_MAX_CONCURRENT = "max_concurrent"  # the one option that is the same for all engines
_DEFAULT_MAX_CONCURRENT = 1000


class EngineSettings(Protocol):
    """The settings of a manager for its engines."""

    @property
    def runner(self) -> str:
        """The default of tasks and jobs that do not say."""

    @property
    def runners(self) -> Mapping[str, Mapping[str, Any]]:
        """The options of each engine, by its name."""

    @property
    def max_concurrent(self) -> Mapping[str, int]:
        """How many attempts engines have at a time, in place of their options, by their names."""

    @property
    def max_concurrent_runners(self) -> int:
        """How many attempts run at a time on this machine."""

    @property
    def kill_grace(self) -> float:
        """Seconds after which an attempt that was cancelled will be killed."""


class Engines:
    """The engines of one manager, behind the same few methods that each of them has.

    :param settings: the default engine, and the options of each engine.
    :param local: the engine of this machine.
    :param environment: what commands inherit.
    :param children: through which engines start processes.
    :raises SettingsError: if an engine that the settings name is not installed, or cannot work here.
    """

    def __init__(
        self,
        store: JobStore,
        settings: EngineSettings,
        local: Engine,
        environment: Mapping[str, str] = os.environ,
        children: Children | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._environment = environment
        self._children = children or Children()
        self._engines: dict[str, Engine] = {LOCAL: local}
        self._limits = {LOCAL: settings.max_concurrent_runners}
        self._slots: dict[str, int] = {}  # in place of some of these limits
        self._failures: dict[str, str] = {}  # engines whose last poll failed, and why
        self._marked: set[Attempt] = set()
        self._work_paths: dict[str, str] = {}  # of the job whose task was started last
        self._in_use: Counter[str] = Counter()
        found: Holdings | None = getattr(local, "holdings", None)
        self.holdings = found or holdings_of(store, self._environment, self._children)
        for name in named(settings):
            self._load(name)

    def _load(self, name: str) -> Engine:
        """The engine of this name; it is made at the first call.

        :raises SettingsError: if there is none, or it cannot work here.
        """
        if name not in self._engines:
            self._engines[name], self._limits[name] = make(
                name, self._store, self._settings, self._environment, self._children
            )
        return self._engines[name]

    # -- which one, and whether it has room ------------------------------------------------------------------

    def word_for(self, job: Job, task: Task) -> str:
        """The setting ``runner`` of a task: its own, or that of its job, or the default."""
        return task.runner or job.runner or self._settings.runner

    def name_for(self, job: Job, task: Task) -> str:
        """The name of the engine of a task; the local one runs warm tasks."""
        word = self.word_for(job, task)
        return LOCAL if word == _WARM else word

    def has_room(self, name: str) -> bool:
        """Whether an engine may get one more attempt; True if it is not loaded: :meth:`start` says why it is not."""
        return name not in self._limits or self._in_use[name] < self._limit(name)

    def needs(self, name: str, task: Task) -> Amounts | None:
        """What a task needs of this machine before it can start; None: nothing, or its engine sees to that."""
        return self.holdings.needs(task) if task.resources is not None and name == LOCAL else None

    def _limit(self, name: str) -> int:
        return self._slots.get(name, self._limits[name])

    def set_slots(self, slots: Mapping[str, int]) -> None:
        """Set how many attempts engines may have from now on, in place of the settings; attempts that run go on.

        :param slots: by the name of the engine; for others the settings hold.
        """
        self._slots = dict(slots)

    @property
    def slots(self) -> dict[str, tuple[int, int]]:
        """How many attempts each loaded engine has, and how many it may have."""
        return {name: (self._in_use[name], self._limit(name)) for name in self._limits}

    def _mark_in_use(self, attempt: Attempt) -> None:
        if attempt not in self._marked:
            self._marked.add(attempt)
            self._in_use[attempt.engine] += 1

    # -- what an earlier manager may have left -----------------------------------------------------------------

    def recording(self, name: str) -> Pieces[list[Attempt]]:
        """The attempts of a job that have left something in ``runs/``, in their order."""
        found: dict[int, dict[str, str]] = {}  # by their numbers
        path = self._store.paths(name).runs
        if not files.is_real_directory(path):
            return []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as listed:
            for number, entry in enumerate(listed, 1):
                run = parse_run(entry.name)
                if run is not None:
                    task_id, attempt, engine = run
                    engines = found.setdefault(attempt, {})
                    engines[task_id] = engine or engines.get(task_id, LOCAL)
                if not number % ITEMS:
                    yield False
        attempts = []
        for number in sorted(found):
            for task_id, engine in found[number].items():
                attempts.append(Attempt.of(name, task_id, number, engine))
                if not len(attempts) % ITEMS:
                    yield False
        return attempts

    def discard(self, attempt: Attempt) -> None:
        """Remove the record and the handle of an attempt."""
        paths = self._store.paths(attempt.job_name)
        paths.record(attempt.task_id, attempt.number).unlink(missing_ok=True)
        paths.handle(attempt.task_id, attempt.number, attempt.engine).unlink(missing_ok=True)

    # -- the methods of an engine -------------------------------------------------------------------------------

    @property
    def descriptors(self) -> list[int]:
        """Descriptors that become readable when there is something to :meth:`poll`, besides SIGCHLD."""
        found = [engine.descriptor for engine in self._engines.values()]
        return [descriptor for descriptor in found if descriptor is not None]

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`poll` must be called in any case; None: never."""
        due = [self.holdings.poll_after, *(engine.poll_after for engine in self._engines.values())]
        return min((seconds for seconds in due if seconds is not None), default=None)

    def start(self, attempt: Attempt, job: Job, task: Task, started_at: datetime) -> bool:
        """Start an attempt; see :meth:`Engine.start`.

        :param job: the job of the task, which has the defaults of the task's fields.
        """
        try:
            engine = self._load(attempt.engine)
        except SettingsError as error:
            raise SpawnError(str(error)) from None
        has_own_files = getattr(engine, "has_own_files", False)
        given = self._given(job, task, task.cwd if has_own_files else self._directory(job, task))
        if task.resources is not None and attempt.engine == LOCAL:
            waits = self._start_with_resources(attempt, given, started_at)
        else:
            waits = engine.start(attempt, given, started_at)
        self._mark_in_use(attempt)
        return bool(waits)

    def _given(self, job: Job, task: Task, directory: str | None) -> Task:
        """A task as its engine gets it."""
        return task.evolve(runner=self.word_for(job, task), cwd=directory)

    def short_one(self, job_name: str) -> Attempt | None:
        """An attempt of a job that is probably over soon: :meth:`start_after` takes one that starts then.

        None if there is none, or if there are more than may be by now.
        """
        if self._in_use[LOCAL] > self._limit(LOCAL):
            return None
        find = getattr(self._engines[LOCAL], "short_one", None)
        found: Attempt | None = find(job_name) if callable(find) else None
        return found

    def start_after(self, before: Attempt, attempt: Attempt, job: Job, task: Task, started_at: datetime) -> bool:
        """Have an attempt of this machine started as soon as another one has ended, if that is soon.

        Until then it takes no room. An event :class:`Started` follows, or :class:`NotStarted` with no reason.

        :param before: what :meth:`short_one` gave.
        :return: whether that is possible.
        """
        local: Any = self._engines[LOCAL]
        given = self._given(job, task, self._directory(job, task))
        return bool(local.start_after(before, attempt, given, started_at))

    def _start_with_resources(self, attempt: Attempt, task: Task, started_at: datetime) -> bool | None:
        """Start an attempt on this machine, of which it holds something from then on."""
        self.holdings.take(attempt, task, started_at)
        try:
            return self._engines[LOCAL].start(attempt, task, started_at)
        except BaseException:
            self.holdings.withdraw(attempt)
            raise

    def _directory(self, job: Job, task: Task) -> str | None:
        """Where a task is to run; None: where the manager does."""
        if not job.work_directory or (task.cwd is not None and task.cwd.startswith("/")):
            return task.cwd
        if job.name not in self._work_paths:
            self._work_paths.clear()  # of one job the tasks come one after the other
            self._work_paths[job.name] = str(self._store.paths(job.name).work)
        path = self._work_paths[job.name]
        return f"{path}/{task.cwd}".rstrip("/") if task.cwd else path

    def poll(self) -> list[Event]:
        """The events since the last call."""
        self._children.reap()
        self.holdings.expire()
        events: list[Event] = []
        for name, engine in list(self._engines.items()):
            try:
                events += engine.poll()
            except Exception as error:  # the others have their events all the same
                if self._failures.get(name) != repr(error):
                    self._failures[name] = repr(error)
                    log.exception("the engine %s cannot say what has happened; it is asked again", name)
            else:
                if self._failures.pop(name, None) is not None:
                    log.info("the engine %s can say again what has happened", name)
        for event in events:
            if isinstance(event, Started) and event.attempt.engine == LOCAL:  # it may have been handed over ahead
                self._mark_in_use(event.attempt)
            elif isinstance(event, Ended | NotStarted) and event.attempt in self._marked:
                self._marked.discard(event.attempt)
                self._in_use[event.attempt.engine] -= 1
                self.holdings.capacity.release(event.attempt)
        return events

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        """Adopt an attempt that an earlier manager may have started; see :meth:`Engine.adopt`."""
        try:
            found = self._load(attempt.engine).adopt(attempt)
        except SettingsError as error:
            why = f"it was handed to the engine {attempt.engine}, which this manager does not have: {error}"
            return Ended(attempt, None, utc_now(), reason=Reason.LOST, error=why, may_repeat=False)
        if isinstance(found, Running):
            self._mark_in_use(attempt)
        if attempt.engine == LOCAL:
            self.holdings.adopt(attempt, found)
        return found

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        """End an attempt; see :meth:`Engine.cancel`."""
        self._engines[attempt.engine].cancel(attempt, kill=kill)

    def limit_memory(self, attempt: Attempt, limit: int) -> None:
        """Limit the bytes of memory of an attempt that runs, if its engine sees to that on this machine."""
        limit_memory = getattr(self._engines[attempt.engine], "limit_memory", None)
        if callable(limit_memory):
            limit_memory(attempt, limit)

    def detach(self, attempt: Attempt) -> None:
        """The job of an attempt is gone."""
        self._engines[attempt.engine].detach(attempt)

    def kill_orphan(self, attempt: Attempt) -> None:
        """Kill what an attempt has started, whether it runs or is over."""
        try:
            self._load(attempt.engine).kill_orphan(attempt)
        except SettingsError:
            return

    def prepare(self) -> None:
        """Do ahead what makes the next start faster."""
        for engine in self._engines.values():
            engine.prepare()

    def refresh(self) -> None:
        """Have engines import anew what they import ahead of tasks."""
        for engine in self._engines.values():
            refresh = getattr(engine, "refresh", None)
            if callable(refresh):
                refresh()

    def close(self) -> None:
        """Release all resources. Attempts go on."""
        for engine in self._engines.values():
            engine.close()


def named(settings: EngineSettings) -> set[str]:
    """The engines that the settings name, besides that of this machine."""
    return {settings.runner, *settings.runners} - {LOCAL, _WARM}


def make(
    name: str, store: JobStore, settings: EngineSettings, environment: Mapping[str, str], children: Children
) -> tuple[Engine, int]:
    """An engine, and how many attempts it may have at a time. Making one starts nothing.

    :raises SettingsError: if there is none of this name, or it cannot work here.
    """
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = ", ".join(sorted({LOCAL, _WARM, *found}))
        raise SettingsError(f"there is no runner {name!r}; there are {known}")
    options = dict(settings.runners.get(name) or {})
    limit = options.pop(_MAX_CONCURRENT, _DEFAULT_MAX_CONCURRENT)
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise SettingsError(f"runners.{name}.{_MAX_CONCURRENT} must be a whole number from 1, not {limit!r}")
    engine = _load(found[name])(Context(store, environment, options, children, settings.kill_grace))
    return engine, settings.max_concurrent.get(name, limit)


def _load(point: EntryPoint) -> Any:
    """Import the class of an engine.

    :raises SettingsError: if a package that it needs is not installed, with the command that installs the package.
    """
    try:
        return point.load()
    except ImportError as error:
        line = ""
        if point.dist is not None and point.name in (point.dist.metadata.get_all("Provides-Extra") or ()):
            line = f"; pip install '{point.dist.name}[{point.name}]'"
        raise SettingsError(f"runner {point.name!r} cannot be loaded: {error}{line}") from error
