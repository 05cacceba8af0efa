"""A machine on which attempts run and end as a test says, and the engine of a manager on it."""

from __future__ import annotations

from datetime import datetime

from airflow_provider_air_executor.engines.protocol import Attempt, Ended, Running
from airflow_provider_air_executor.jobs.models import Task, utc_now
from airflow_provider_air_executor.jobs.store import JobStore


class Machine:
    """Runs attempts by writing down that they run; survives the manager, as real engines do."""

    def __init__(self) -> None:
        self.running: dict[tuple[str, str, int], datetime] = {}
        self.ended: dict[tuple[str, str, int], int | None] = {}
        self.history: list[tuple[str, str, int]] = []


class MachineEngine:
    """The engine of one manager on that machine."""

    poll_after = None
    descriptor = None

    def __init__(self, machine: Machine, store: JobStore) -> None:
        self.machine = machine
        self.store = store
        self.known: dict[tuple[str, str, int], Attempt] = {}

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> None:
        key = attempt[:3]
        assert key not in self.machine.ended, "an attempt is made twice"
        assert key not in self.machine.running, "an attempt runs twice at the same time"
        self.store.paths(key[0]).record(*key[1:]).write_text("x")
        self.machine.running[key] = started_at
        self.machine.history.append(key)
        self.known[key] = attempt

    def poll(self) -> list[Ended]:
        over = [key for key in self.known if key in self.machine.ended]
        return [Ended(self.known.pop(key), self.machine.ended[key], utc_now()) for key in over]

    def adopt(self, attempt: Attempt) -> Ended | Running | None:
        key = attempt[:3]
        if key in self.machine.ended:
            return Ended(attempt, self.machine.ended[key], utc_now())
        if key in self.machine.running:
            self.known[key] = attempt
            return Running(attempt, self.machine.running[key])
        return None

    def cancel(self, attempt: Attempt, *, kill: bool) -> None:
        self.machine.running.pop(attempt[:3], None)
        self.machine.ended.setdefault(attempt[:3], 143)

    def kill_orphan(self, attempt: Attempt) -> None:
        """Nothing outlives an attempt here."""

    def prepare(self) -> None:
        """Nothing is started ahead."""

    def close(self) -> None:
        """Nothing is left."""

    def detach(self, attempt: Attempt) -> None:
        """No job is removed here."""
