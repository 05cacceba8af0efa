"""A job of very many tasks is dealt with in pieces: nothing that the manager does at a time grows with the list."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from airflow_provider_air_executor.engines import registry
from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.jobs import files, inbox, models, pieces, task_lists
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager import (
    active_job,
    job_files,
    recovery,
    requests,
    schedule,
    turns,
)
from airflow_provider_air_executor.manager.lock import ManagerLock
from airflow_provider_air_executor.manager.manager import Manager
from airflow_provider_air_executor.manager.settings import Settings
from tests.support.machine import Machine, MachineEngine

NUMBER = 3_000
# Of our code that may be run at a time: less than one for each task. It takes 1,222 whatever the number of tasks is,
# and a few dozens more where something that is due after a time comes in the same step.
LINES = 2_000


@pytest.fixture(autouse=True)
def smallest_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (active_job, job_files, recovery, requests, models, pieces, registry, schedule):
        monkeypatch.setattr(module, "ITEMS", 10)
    monkeypatch.setattr(turns, "_SECONDS", -1.0)
    monkeypatch.setattr(task_lists, "AT_ONCE", 1_000)
    monkeypatch.setattr(task_lists, "_PIECE", 1_000)
    monkeypatch.setattr(files, "_PIECE_BYTES", 10_000)


class Stepped:
    """A manager that does one thing after the other, on a machine on which nothing ends by itself."""

    def __init__(self, store: JobStore, machine: Machine) -> None:
        self.machine = machine
        settings = Settings(base_path=str(store.base_path), max_concurrent_runners=4)
        self.engine = MachineEngine(machine, store)
        self.manager = Manager(store, settings, Engines(store, settings, self.engine, {}, Children()))
        self.longest = (0, "nothing")
        self.counted("recovers", self.manager.recover)

    def counted(self, what: str, step: Callable[[], object]) -> None:
        """Take a step, and count the lines of our code that it takes."""
        lines, before = 0, sys.gettrace()

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if "airflow_provider_air_executor" not in frame.f_code.co_filename:
                return None
            lines += event == "line"
            return trace

        sys.settrace(trace)
        try:
            step()
        finally:
            sys.settrace(before)
        self.longest = max(self.longest, (lines, what))

    def until(self, what: str, is_there: Callable[[], object]) -> None:
        for _ in range(100_000):
            if is_there():
                return
            self.manager.changes.next_pass = 0.0  # it looks at everything, whether or not files notify
            self.manager.shared.notifier.read()
            self.counted(what, self.manager.tick)
        raise AssertionError(f"never: {what}")

    def end_all(self) -> None:
        for key in list(self.machine.running):
            del self.machine.running[key]
            self.machine.ended[key] = 0


def test_whatever_is_done_with_it(tmp_path: Path) -> None:
    store, machine = JobStore(tmp_path), Machine()
    store.create_directories()
    tasks: list[dict[str, Any]] = [{"id": "first", "command": "true"}]
    tasks += [{"id": f"t{number}", "command": "true", "dependencies": ["first"]} for number in range(NUMBER)]
    # A task has a bound of its own, and with it the number of its dependencies.
    tasks += [{"id": "last", "command": "true", "dependencies": [f"t{number}" for number in range(50)]}]
    store.submit("j", tasks, max_parallel_tasks=4, durable=False)
    with ManagerLock(store):
        first = Stepped(store, machine)
        first.until("it is loaded", lambda: machine.running)
        first.end_all()
        first.until("the next ones start", lambda: len(machine.running) == 4)
        inbox.add_tasks(store, "j", [{**task, "id": f"more-{task['id']}", "dependencies": []} for task in tasks])
        first.until("tasks are added", lambda: not inbox.requests(store))
        assert len(store.get_tasks("j")) == 2 * len(tasks)
        second = Stepped(store, machine)
        second.until("it is adopted", lambda: second.engine.known and not second.manager.shared.turns.is_busy("j"))
        inbox.cancel(store, "j")
        second.until("it is cancelled", lambda: store.get_job("j").state.is_terminal)
        inbox.retry(store, "j")
        second.until("it is retried", lambda: len(machine.running) == 4)
        second.until("it is written", lambda: not second.manager.shared.turns.is_busy("j"))
    for stepped in (first, second):
        assert stepped.longest[0] < LINES, stepped.longest
        stepped.manager.shared.notifier.close()
