"""What the manager of a base path publishes about itself: ``manager.info.json``.

The manager writes the file once a second at most, and only when something has changed. The file stays when the manager
ends, and is passed over then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from airflow_provider_air_executor.jobs import files, manager_status

if TYPE_CHECKING:  # the command line does not wait for what the store imports
    from airflow_provider_air_executor.jobs.store import JobStore

#: The counters, each counted from the start of the manager's process, and what they count.
COUNTERS: Mapping[str, str] = {
    "jobs_started": "Jobs of which a first task was started.",
    "jobs_completed": "Jobs that have completed.",
    "jobs_failed": "Jobs that have failed, for whatever reason.",
    "job_wait_seconds": "Seconds that started jobs had waited since they were submitted, all together.",
    "tasks_started": "Attempts of tasks that were given to a runner.",
    "tasks_completed": "Tasks that have completed.",
    "tasks_failed": "Tasks whose last attempt has failed.",
    "tasks_retried": "Failed attempts of tasks that are followed by another one.",
    "task_seconds": "Seconds that ended attempts of tasks had run, all together.",
}


class Slots(NamedTuple):
    """How many attempts a runner has, and how many it may have."""

    used: int
    limit: int


class Share(NamedTuple):
    """How much of a resource of its machine tasks hold, and how much there is for them.

    Of ``cpus`` it is processors, of ``memory`` bytes, and of ``gpus`` graphics processors.
    """

    used: float
    limit: float
    free_ids: Sequence[str] | None = None  # of graphics processors

    def as_json(self) -> dict[str, Any]:
        """It, for ``json.dumps``."""
        ids = {} if self.free_ids is None else {"free_ids": list(self.free_ids)}
        return {"used": self.used, "limit": self.limit, **ids}


class OldestWaiting(NamedTuple):
    """The job that has waited longest for the start of its first task."""

    job: str
    since: datetime


@dataclass(frozen=True)
class ManagerInfo:
    """A manager that runs.

    If it has not published anything yet, only its process id is known, and all other fields have their defaults.

    :param pid: its process id.
    :param version: of this package.
    :param started_at: when its process was started.
    :param host: the name of its machine.
    :param paused: whether it starts no tasks, see :mod:`.manager_control`.
    :param slots: how full each runner is, by its name.
    :param capacity: the resources of its machine: ``cpus``, ``memory``, and ``gpus`` once a task has asked for one.
    :param queued: how many tasks could start and wait for room.
    :param oldest_waiting: the job that has waited longest.
    :param jobs: how many jobs that have not ended are ``waiting``, and how many ``working``.
    :param counters: see :data:`COUNTERS`.
    :param idle: whether there is no job that has not ended.
    """

    pid: int
    version: str = ""
    started_at: datetime | None = None
    host: str = ""
    paused: bool = False
    slots: Mapping[str, Slots] = field(default_factory=dict)
    capacity: Mapping[str, Share] = field(default_factory=dict)
    queued: int = 0
    oldest_waiting: OldestWaiting | None = None
    jobs: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    idle: bool = True

    def as_json(self) -> dict[str, Any]:
        """The content of the file, for ``json.dumps``."""
        oldest = self.oldest_waiting
        return {
            **vars(self),
            "started_at": self.started_at and self.started_at.isoformat(),
            "slots": {name: slots._asdict() for name, slots in self.slots.items()},
            "capacity": {name: share.as_json() for name, share in self.capacity.items()},
            "oldest_waiting": oldest and {"job": oldest.job, "since": oldest.since.isoformat()},
        }


def path_of(store: JobStore) -> Path:
    """The file."""
    return store.base_path / "manager.info.json"


def load(store: JobStore) -> ManagerInfo | None:
    """The manager that runs the jobs of a base path; None if there is none.

    :raises NoLocksError: if that cannot be known, since the file system has no locks.
    """
    pid = manager_status.pid(store)
    if pid is None:
        return None
    try:
        found = _parse(json.loads(files.read(path_of(store))[0]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return ManagerInfo(pid)
    return found if found.pid == pid else ManagerInfo(pid)


def _parse(content: dict[str, Any]) -> ManagerInfo:
    oldest = content["oldest_waiting"]
    return ManagerInfo(
        pid=int(content["pid"]),
        version=str(content["version"]),
        started_at=_time(content["started_at"]),
        host=str(content["host"]),
        paused=bool(content["paused"]),
        slots={name: Slots(int(slots["used"]), int(slots["limit"])) for name, slots in content["slots"].items()},
        capacity={name: share_of(share) for name, share in content.get("capacity", {}).items()},
        queued=int(content["queued"]),
        oldest_waiting=oldest and OldestWaiting(str(oldest["job"]), _time(oldest["since"])),
        jobs={state: int(number) for state, number in content["jobs"].items()},
        counters={name: number + 0 for name, number in content["counters"].items()},
        idle=bool(content["idle"]),
    )


def share_of(content: Mapping[str, Any]) -> Share:
    """How much of a resource is held, by what :meth:`Share.as_json` gives."""
    ids = content.get("free_ids")
    return Share(content["used"] + 0, content["limit"] + 0, None if ids is None else [str(one) for one in ids])


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return found
