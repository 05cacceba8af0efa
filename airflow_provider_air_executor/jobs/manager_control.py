"""Controls the manager of a base path: whether it starts tasks, and how many at a time: ``manager.control.json``.

The file stays when the manager ends, and holds for the next one. A manager that runs reads it at once.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from airflow_provider_air_executor.exceptions import CorruptFileError, SettingsError, why_unreadable
from airflow_provider_air_executor.jobs import bell, changing, files

if TYPE_CHECKING:  # the command line does not wait for what the store imports
    from airflow_provider_air_executor.jobs.store import JobStore

MAX_SLOTS = 10_000
PAUSED = "the manager is paused and starts no tasks; continue: air-executor resume"

_LIMIT = 1_000_000  # bytes of the file
_MAX_REFRESHED = 100  # characters
_RUNNER = re.compile(r"[a-z][a-z0-9_]{0,30}")


class Control(NamedTuple):
    """What the manager is to do."""

    paused: bool = False  # whether it starts no tasks; what runs goes on
    slots: Mapping[str, int] = {}  # how many attempts a runner may have, in place of the setting
    refreshed: str = ""  # changes when the manager is to import anew what it imports ahead of tasks

    def as_json(self) -> dict[str, object]:
        """The content of the file, for ``json.dumps``."""
        return self._asdict()


def path_of(store: JobStore) -> Path:
    """The file."""
    return store.base_path / "manager.control.json"


def set_paused(store: JobStore, paused: bool) -> None:
    """Let the manager start no more tasks, or start them again. Tasks that run go on, and jobs can be submitted.

    :raises ManagerError: if another process changes the file, and does not come to an end.
    """
    with _changing(store):
        _publish(store, load(store)._replace(paused=paused))


def set_slots(store: JobStore, slots: int | None, runner: str = "local") -> None:
    """Set how many attempts of tasks a runner may have at a time. If it has more now, they go on.

    :param slots: 1 to 10,000; None: as the settings say.
    :param runner: the name of the runner; warm tasks are run by ``local``.
    :raises SettingsError: if one of them is not valid.
    :raises ManagerError: if another process changes the file, and does not come to an end.
    """
    if slots is not None and (isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= MAX_SLOTS):
        raise SettingsError(f"slots must be a whole number from 1 to {MAX_SLOTS}, not {slots!r}")
    if not _RUNNER.fullmatch(runner):
        raise SettingsError(f"{runner!r} cannot be the name of a runner")
    name = "local" if runner == "warm" else runner
    with _changing(store):
        before = load(store)
        kept = {other: number for other, number in before.slots.items() if other != name}
        _publish(store, before._replace(slots=kept if slots is None else {**kept, name: slots}))


def refresh(store: JobStore) -> None:
    """Let the manager that runs import anew what it has imported ahead of tasks, in a new process; tasks go on.

    :raises ManagerError: if another process changes the file, and does not come to an end.
    """
    with _changing(store):
        _publish(store, load(store)._replace(refreshed=str(time.time_ns())))


def load(store: JobStore) -> Control:
    """What the manager of a base path is to do; the defaults if the file cannot be read."""
    with contextlib.suppress(CorruptFileError, OSError):
        return read(store)
    return Control()


def read(store: JobStore) -> Control:
    """The same, see :func:`load`.

    :raises CorruptFileError: if the file is not valid.
    :raises OSError: if it cannot be read now.
    """
    path = path_of(store)
    try:
        data = files.read(path, limit=_LIMIT)[0]
    except FileNotFoundError:
        return Control()
    except OSError as error:
        if error.errno not in (*files.ABSENT, files.TOO_LARGE):
            raise
        raise CorruptFileError(path, error.strerror or str(error)) from None
    try:
        return _parse(data)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(path, why_unreadable(error)) from None


def _parse(data: bytes) -> Control:
    content = json.loads(data)
    slots = {name: number for name, number in content.get("slots", {}).items() if _RUNNER.fullmatch(name)}
    if not all(type(number) is int and 1 <= number <= MAX_SLOTS for number in slots.values()):
        raise ValueError(f"slots must be whole numbers from 1 to {MAX_SLOTS}")
    paused = content.get("paused", False)
    if not isinstance(paused, bool):
        raise ValueError("paused must be true or false")
    return Control(paused, slots, str(content.get("refreshed", ""))[:_MAX_REFRESHED])


@contextlib.contextmanager
def _changing(store: JobStore) -> Iterator[None]:
    """Be the only process that changes the file."""
    store.create_directories()
    with changing.alone(store.base_path / "manager.control.lock", path_of(store).name):
        yield


def _publish(store: JobStore, control: Control) -> None:
    files.publish(path_of(store), json.dumps(control.as_json()).encode(), durable=True)
    files.publish(store.inbox_path / ".control", b"")  # the manager watches the inbox
    bell.ring(store.base_path, bell.MANAGER)
