"""What attempts of this machine hold of its resources, and the handles that say so to the next manager.

The handle of an attempt is in ``runs/`` before its command is started: how much it holds, the ids of its graphics
processors, and the times of its start. There may be two of these: a manager that was killed may have started a process
that has not made its record yet. The next manager gives the attempt the same ids, so that it does not matter which of
the two processes makes the record first.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from airflow_provider_air_executor.engines.capacity import Amounts, Capacity, Holding
from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.gpus import VISIBLE, Gpus, visible_ids
from airflow_provider_air_executor.engines.protocol import (
    LOCAL,
    Attempt,
    Ended,
    ResourceExhaustedError,
    Running,
    SpawnError,
)
from airflow_provider_air_executor.jobs import files
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system import machine
from airflow_provider_air_executor.system.environment import GPUS_VARIABLE

_BYTES = 100_000  # of a handle


class _Handle(NamedTuple):
    """The content of a handle."""

    starts: list[str]  # the times that may be in the record
    holding: Holding


class Holdings:
    """What attempts hold.

    :param capacity: what there is.
    :param gpus: what finds out which graphics processors there are, if that is not known.
    """

    def __init__(self, store: JobStore, capacity: Capacity, gpus: Gpus) -> None:
        self._store = store
        self.capacity = capacity
        self._gpus = gpus
        # What an earlier manager gave attempts that may have begun, or may not.
        self._pledged: dict[tuple[str, str, int], tuple[Attempt, _Handle]] = {}

    # -- what there is -------------------------------------------------------------------------------------

    @property
    def poll_after(self) -> float | None:
        """Seconds after which :meth:`expire` must be called; None: never."""
        return self._gpus.poll_after

    def expire(self) -> None:
        """Do without what takes too long to say which graphics processors there are."""
        self._gpus.expire()

    def needs(self, task: Task) -> Amounts | None:
        """What a task needs before it can start; None if it need not wait for anything.

        That includes one that needs what there never is: :meth:`take` refuses it.
        """
        amounts = Amounts.of(task.resources)
        if amounts is None:
            return None
        if not self.capacity.is_known_for(amounts):
            self._gpus.find()
        return None if self.capacity.can_never_have(amounts) else amounts

    # -- what an attempt holds -----------------------------------------------------------------------------

    def take(self, attempt: Attempt, task: Task, started_at: datetime) -> None:
        """Give an attempt what its task needs, and write its handle.

        :raises SpawnError: if this machine never has that.
        :raises ResourceExhaustedError: if it is not free.
        :raises OSError: if the handle cannot be written.
        """
        amounts = Amounts.of(task.resources)
        if amounts is None:
            return
        starts = [started_at.isoformat()]
        pledged, handle = self._pledged.pop(_key(attempt), (None, None))
        if pledged is not None:
            self.capacity.release(pledged)
        why = self.capacity.why_never(amounts)
        if why:
            raise SpawnError(why)
        if handle is not None and handle.holding.amounts == amounts:
            starts += handle.starts
            self.capacity.hold(attempt, handle.holding)
        elif self.capacity.has(amounts):
            self.capacity.take(attempt, amounts)
        else:
            self.needs(task)
            raise ResourceExhaustedError(self.capacity.why_waits(amounts))
        try:
            self._write(attempt, starts)
        except BaseException:
            self.capacity.release(attempt)
            raise

    def withdraw(self, attempt: Attempt) -> None:
        """An attempt was not started after all."""
        if self.capacity.held_by(attempt) is not None:
            self.capacity.release(attempt)
            with contextlib.suppress(OSError):
                os.unlink(self._path(attempt))

    def variables(self, attempt: Attempt) -> Mapping[str, str]:
        """The environment variables that name the graphics processors of an attempt; none if it has none."""
        holding = self.capacity.held_by(attempt)
        if holding is None or not holding.gpus:
            return {}
        return dict.fromkeys((*VISIBLE, GPUS_VARIABLE), ",".join(holding.gpus))

    # -- what earlier managers gave ------------------------------------------------------------------------

    def adopt(self, attempt: Attempt, found: Ended | Running | None) -> None:
        """Reckon with what an attempt of an earlier manager holds.

        :param found: what is known of it; None: it has not begun, as far as its records say.
        """
        if isinstance(found, Ended) or self.capacity.held_by(attempt) is not None or _key(attempt) in self._pledged:
            return
        handle = self._read(attempt)
        if handle is None:
            return
        if found is None:
            self._pledged[_key(attempt)] = attempt, handle
        elif found.started_at is None or found.started_at.isoformat() not in handle.starts:
            return  # it is of another attempt of the same number, before the job was put back by hand
        self.capacity.hold(attempt, handle.holding)

    @property
    def pledged(self) -> list[Attempt]:
        """The attempts that an earlier manager was about to start: they come before all others."""
        return [attempt for attempt, _ in self._pledged.values()]

    def drop_pledge(self, attempt: Attempt) -> None:
        """An attempt is not to be started any more."""
        pledged, _ = self._pledged.pop(_key(attempt), (None, None))
        if pledged is not None:
            self.capacity.release(pledged)

    # -- handles -------------------------------------------------------------------------------------------

    def _path(self, attempt: Attempt) -> str:
        return str(self._store.paths(attempt.job_name).handle(attempt.task_id, attempt.number, LOCAL))

    def _write(self, attempt: Attempt, starts: list[str]) -> None:
        holding = self.capacity.held_by(attempt) or Holding(Amounts())
        content = {"starts": starts, **holding.amounts._asdict(), "gpus": list(holding.gpus)}
        path = self._store.paths(attempt.job_name).handle(attempt.task_id, attempt.number, LOCAL)
        files.publish(path, json.dumps(content).encode())

    def _read(self, attempt: Attempt) -> _Handle | None:
        """The handle of an attempt; None if there is none, or it is not valid: the task may write there.

        :raises OSError: if it cannot be read now.
        """
        try:
            data = files.read_start(self._path(attempt), _BYTES)
            content = json.loads(data)
            gpus = tuple(str(gpu) for gpu in content["gpus"])
            amounts = Amounts(_count(content["cpus"]), _count(content["memory"]), len(gpus))
            return _Handle([str(start) for start in content["starts"]], Holding(amounts, gpus))
        except OSError as error:
            if error.errno not in files.ABSENT:
                raise
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


def _count(value: object) -> int:
    """A number of something.

    :raises ValueError: if it is none.
    """
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no amount")
    return value


def _key(attempt: Attempt) -> tuple[str, str, int]:
    return attempt.job_name, attempt.task_id, attempt.number


def holdings_of(
    store: JobStore,
    environment: Mapping[str, str],
    children: Children,
    *,
    cpus: float | None = None,
    memory: int | None = None,
    gpus: int | Sequence[str] | None = None,
) -> Holdings:
    """Nothing is held yet.

    :param environment: what may limit the graphics processors.
    :param cpus: processors for tasks; default: those of the machine, or of the control group.
    :param memory: bytes; default: likewise.
    :param gpus: ids of graphics processors, or how many; default: all that there are.
    """
    most = gpus if isinstance(gpus, int) else None
    visible = visible_ids(environment)
    ids: Sequence[str] | None
    if gpus is not None and not isinstance(gpus, int):
        ids = gpus if visible is None or not _are_alike(gpus, visible) else [gpu for gpu in gpus if gpu in visible]
    elif visible is not None:
        ids = visible[:most]
    else:
        ids = None if most is None else [str(index) for index in range(most)]
    capacity = Capacity(cpus or machine.processors(), memory or machine.memory(), ids)
    return Holdings(store, capacity, Gpus(capacity, environment, children))


def _are_alike(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether ids can be compared: all are indices, or none is."""
    return all(one.isdecimal() for one in some) == all(other.isdecimal() for other in others)
