"""Limits the memory of attempts: by a control group of each where the manager may make some, and by looking at them.

The processes of each are inspected some times a second, those that are far below their limit less often. One that grows
fast is over its limit for a moment, and may use all that the machine has before it is seen. That cannot be in a group;
the look finds what has left it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from airflow_provider_air_executor.engines.local.attempt import LocalAttempt, TooMuchMemory
from airflow_provider_air_executor.engines.local.endings import say_in_log
from airflow_provider_air_executor.engines.local.memory_groups import MemoryGroups
from airflow_provider_air_executor.engines.protocol import Attempt, Ended, NotStarted
from airflow_provider_air_executor.jobs.attempt_record import Record
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage
from airflow_provider_air_executor.system.control_groups import Group, Measured
from airflow_provider_air_executor.system.family_memory import Families, Shim, cpu_seconds_of, memory_of

_SHORTEST, _LONGEST = 0.25, 2.0  # seconds between two looks at an attempt
_NEAR = 0.5  # of its limit, from which on it is inspected as often as it can be
_SHARE = 20.0  # looks take one part of so many of the time


@dataclass(eq=False, slots=True)
class _Watched:
    """An attempt that may use so much."""

    found: LocalAttempt
    limit: int
    due: float = 0.0  # on the monotonic clock
    pause: float = _SHORTEST

    @property
    def shim(self) -> Shim:
        """What its processes have in common."""
        return Shim(self.found.pid, self.found.token)

    def has_used(self, used: int, now: float) -> None:
        """Note how much it uses, by which it is known when to inspect it again."""
        self.pause = _SHORTEST if used > self.limit * _NEAR else min(2 * self.pause, _LONGEST)
        self.due = now + self.pause


class MemoryWatch:
    """Attempts whose memory is limited.

    :param exceeded: called when one uses too much.
    """

    def __init__(self, exceeded: Callable[[LocalAttempt, TooMuchMemory], None]) -> None:
        self._exceeded = exceeded
        self._watched: dict[Attempt, _Watched] = {}
        self._families = Families()
        self._next_look = 0.0

    def add(self, found: LocalAttempt, limit: int) -> None:
        """Watch an attempt until it is dropped.

        :param limit: bytes.
        """
        if sys.platform.startswith("linux"):
            self._watched[found.attempt] = _Watched(found, limit, time.monotonic() + _SHORTEST)

    def drop(self, attempt: Attempt) -> None:
        """Its process is gone."""
        if self._watched:
            self._watched.pop(attempt, None)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there is nothing to watch."""
        if not self._watched:
            return None
        due = min(watched.due for watched in self._watched.values())
        return max(due, self._next_look) - time.monotonic()

    def look(self) -> None:
        """Inspect the attempts for which it is time."""
        if not self._watched:
            return
        now = time.monotonic()
        if now < self._next_look:
            return
        due = [watched for watched in self._watched.values() if watched.due <= now]
        if due:
            self._inspect(due, now)
            self._next_look = time.monotonic() + _SHARE * (time.monotonic() - now)

    def _inspect(self, due: list[_Watched], now: float) -> None:
        try:
            pids = self._families.find([watched.shim for watched in self._watched.values() if watched.found.pid])
        except OSError:  # the manager is short of something
            pids = {}
        for watched in due:
            processes, group = pids.get(watched.shim, []), watched.found.group
            is_limited = group is not None and group.processes.issuperset(processes)  # by the system
            used = 0 if is_limited else memory_of(processes, watched.limit)
            watched.has_used(used, now)
            if used > watched.limit and watched.found.too_much_memory is None:
                usage = Usage(cpu_seconds=round(cpu_seconds_of(processes), 3), max_memory=used)
                self._exceeded(watched.found, TooMuchMemory(watched.limit, usage))


class MemoryLimits:
    """The limits of the memory of attempts.

    :param exceeded: called when one uses too much that was not kept from that.
    """

    def __init__(self, store: JobStore, exceeded: Callable[[LocalAttempt, TooMuchMemory], None]) -> None:
        self._store = store
        self._groups = MemoryGroups(store.base_path)
        self._watch = MemoryWatch(exceeded)

    def needs_shell(self, task: Task) -> bool:
        """Whether attempts of a task enter groups: a shell does that before it starts the command."""
        return task.resources is not None and task.resources.memory is not None and self._groups.may_be_made

    def make_group(self, found: LocalAttempt, task: Task, started_at: str) -> Group | None:
        """The group of an attempt that is about to be started; None if it has none.

        :param started_at: as it will be in the record.
        """
        limit = None if task.resources is None else task.resources.memory
        if limit is not None and found.group is None and self._groups.may_be_made:
            found.group = self._groups.make(found.record_path, started_at, limit)
        return found.group

    @contextlib.contextmanager
    def in_group(self, found: LocalAttempt, task: Task, started_at: str) -> Iterator[str]:
        """Start an attempt in its group, which is removed if that fails.

        :return: the file by which a process enters it; empty if there is none.
        """
        group = self.make_group(found, task, started_at)
        try:
            yield "" if group is None else group.entry
        except BaseException:
            self._release(found)
            raise

    def adopt(self, found: LocalAttempt, record: Record) -> LocalAttempt:
        """Find the group of an attempt that was started, perhaps by an earlier manager; the attempt is returned."""
        started_at = record.started_at
        group = None if started_at is None else self._groups.find(found.record_path, started_at)
        if found.group is not None and found.group != group:
            self._groups.remove(found.group)
        found.group = group
        return found

    def watch(self, found: LocalAttempt, limit: int) -> None:
        """Look at an attempt that runs, until it is released.

        :param limit: bytes.
        """
        self._watch.add(found, limit)

    def _release(self, found: LocalAttempt) -> Measured | None:
        self._watch.drop(found.attempt)
        if found.group is None:
            return None
        measured = found.group.measure()
        self._groups.remove(found.group)
        found.group = None
        return measured

    def end(self, found: LocalAttempt, result: Ended | NotStarted) -> Ended | NotStarted:
        """Forget an attempt whose process is gone: its end, with what it has used, and why it was killed."""
        measured = self._release(found)
        return self._judge(found, result, measured) if isinstance(result, Ended) else result

    def end_adopted(self, found: LocalAttempt, record: Record | None, ended: Ended) -> Ended:
        """The end of an attempt of an earlier manager, by its record, with what it has used, and why it was killed."""
        if record is not None:
            self.adopt(found, record)
        return self._judge(found, ended, self._release(found))

    def blame(self, found: LocalAttempt, why: TooMuchMemory) -> None:
        """Note why an attempt is killed, and say so in its log."""
        found.too_much_memory = why
        if not found.is_detached:
            say_in_log(self._store, found.attempt, why.error)

    def _judge(self, found: LocalAttempt, ended: Ended, measured: Measured | None) -> Ended:
        if measured is not None and found.too_much_memory is None and ended.exit_code != 0:
            why = TooMuchMemory.of(measured)
            if why is not None:
                self.blame(found, why)
        return found.judge(ended, measured)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there is nothing to look at."""
        due = [part.look_after for part in (self._watch, self._groups)]
        return min((seconds for seconds in due if seconds is not None), default=None)

    def look(self) -> None:
        """Inspect the attempts for which it is time, and remove what is left of others."""
        self._watch.look()
        self._groups.look()
