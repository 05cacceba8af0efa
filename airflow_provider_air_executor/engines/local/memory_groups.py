"""The control groups of attempts whose memory is limited, where the manager may make some.

The system itself limits what is in a group: its processes are killed together before they have more than they may, also
while no manager runs. A group has a name that another manager finds out by the record of the attempt.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.system import control_groups
from airflow_provider_air_executor.system.control_groups import Group, Groups, NoGroupsError

log = logging.getLogger("air_executor.manager")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 60.0  # seconds between two tries to remove a group in which something lives on


class _Left(NamedTuple):
    """A group that is to be removed when nothing is in it any more."""

    group: Group
    due: float
    pause: float  # before the next try


class MemoryGroups:
    """Makes and removes the groups of attempts.

    What an earlier manager has left is removed, too, but not before there was time to adopt its attempts.

    :param base_path: of the manager; others may have groups at the same place.
    :param find: finds out whether this process may make groups.
    :param clock: seconds that only grow.
    """

    def __init__(
        self,
        base_path: Path,
        find: Callable[[], Groups] = control_groups.find,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._prefix = f"air-executor-{_digest(str(base_path))[:8]}-"
        self._groups: Groups | None = None
        self._left: dict[str, _Left] = {}  # by their paths
        self._to_be_said = ""  # how memory is limited, when the first task asks for that
        try:
            self._groups = find()
        except NoGroupsError as error:
            self._to_be_said = f"the memory of tasks is limited by a look at it now and then, without groups: {error}"
            return
        self._to_be_said = f"the memory of tasks is limited by control groups in {self._groups.parent}"
        for group in self._groups.all(self._prefix):
            self._left[group.path] = _Left(group, self._clock() + _LONGEST_PAUSE, _LONGEST_PAUSE)

    @property
    def may_be_made(self) -> bool:
        """Whether groups can be made here, as far as that is known."""
        if self._to_be_said:
            log.info("%s", self._to_be_said)
            self._to_be_said = ""
        return self._groups is not None

    def make(self, record_path: str, started_at: str, limit: int) -> Group | None:
        """Make a group for an attempt; None if that is not possible.

        :param started_at: as it will be in the record.
        :param limit: bytes.
        """
        if self._groups is None:
            return None
        try:
            return self._groups.make(self._name(record_path, started_at), limit)
        except OSError as error:
            log.warning("no control group can be made for %s: %s", record_path, error.strerror)
            return None

    def find(self, record_path: str, started_at: datetime) -> Group | None:
        """The group of an attempt that was started before; None if it has none."""
        if self._groups is None:
            return None
        group = self._groups.find(self._name(record_path, started_at.isoformat()))
        if group is not None:
            self._left.pop(group.path, None)
        return group

    def _name(self, record_path: str, started_at: str) -> str:
        return self._prefix + _digest(f"{record_path}\n{started_at}")[:16]

    def remove(self, group: Group) -> None:
        """Remove a group, as soon as nothing lives in it any more."""
        if not group.remove():
            self._left[group.path] = _Left(group, self._clock() + _FIRST_PAUSE, _FIRST_PAUSE)

    @property
    def look_after(self) -> float | None:
        """Seconds after which :meth:`look` must be called; None: there is nothing to remove."""
        return min(left.due for left in self._left.values()) - self._clock() if self._left else None

    def look(self) -> None:
        """Remove what could not be removed before, if it is time."""
        if not self._left:
            return
        now = self._clock()
        for path, left in list(self._left.items()):
            if left.due <= now:
                del self._left[path]
                if not left.group.remove():
                    pause = min(2 * left.pause, _LONGEST_PAUSE)
                    self._left[path] = _Left(left.group, now + pause, pause)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
