"""Which job is next: the one of the highest priority, then the oldest, whatever arrives meanwhile."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import JobState, Task, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.lock import ManagerLock
from airflow_provider_air_executor.manager.manager import Manager
from airflow_provider_air_executor.manager.settings import Settings
from airflow_provider_air_executor.system import clock
from tests.support.jobs import ended, publish_job, task
from tests.support.managers import Managers, run_cli
from tests.support.waiting import until, wait_until


class Recorder:
    """An engine that runs nothing, and records the order of starts."""

    descriptor = poll_after = None

    def __init__(self) -> None:
        self.started: list[str] = []
        self.running: list[Attempt] = []
        self.ended: list[Ended] = []

    def start(self, attempt: Attempt, task: Task, started_at: datetime) -> None:
        self.started.append(attempt.job_name)
        self.running.append(attempt)

    def end(self, number: int) -> None:
        """Let so many end, the oldest first."""
        now = datetime.now().astimezone()
        self.ended += [Ended(attempt, 0, now) for attempt in self.running[:number]]
        del self.running[:number]

    def poll(self) -> list[Ended]:
        events, self.ended = self.ended, []
        return events

    def prepare(self) -> None:
        pass


def manager_with(store: JobStore, engine: Any, limit: int) -> Manager:
    settings = Settings(base_path=str(store.base_path), max_concurrent_runners=limit)
    return Manager(store, settings, Engines(store, settings, engine, {}, Children()))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 2)),
        st.tuples(st.just("end"), st.integers(1, 3)),
        st.tuples(st.just("tick"), st.just(0)),
    ),
    max_size=40,
)


@given(steps=STEPS, limit=st.integers(1, 3))
def test_no_job_is_overtaken(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], limit: int
) -> None:
    """At each start there was no job that waited, of a higher priority, or of the same one and older."""
    store = JobStore(tmp_path_factory.mktemp("queue"))
    engine = Recorder()
    manager = manager_with(store, engine, limit)
    with ManagerLock(store):
        manager.recover()
        waiting: dict[str, tuple[int, int]] = {}
        checked = 0
        for number, (what, value) in enumerate([*steps, ("end", 99), *[("end", 99)] * len(steps)]):
            if what == "submit":
                waiting[f"j{number}"] = (-value, number)
                store.submit(f"j{number}", ["true"], priority=value, durable=False)
                continue
            if what == "end":
                engine.end(value)
            manager.changes.next_pass = 0.0  # it looks at everything, whether or not files notify
            manager.tick()
            for name in engine.started[checked:]:
                assert name == min(waiting, key=lambda other: waiting[other])
                del waiting[name]
            checked = len(engine.started)
        assert not waiting
        manager.shared.notifier.close()


def test_a_job_that_waits_for_one_engine_does_not_block_others(store: JobStore) -> None:
    """And has its turn before what came later, as soon as there is room."""
    engine = Recorder()
    manager = manager_with(store, engine, 1)
    manager.shared.engines._engines["other"] = engine  # type: ignore[assignment]
    manager.shared.engines._limits["other"] = 1
    with ManagerLock(store):
        manager.recover()
        for name, priority in (("a", 0), ("b", 0), ("c", 9)):
            store.submit(name, ["true"], priority=priority)
        store.submit("d", ["true"], runner="other")
        manager.changes.next_pass = 0.0
        manager.tick()
        assert engine.started == ["c", "d"]
        engine.end(1)
        store.submit("e", ["true"])
        manager.changes.next_pass = 0.0
        manager.tick()
        assert engine.started == ["c", "d", "a"]
        manager.shared.notifier.close()


def test_jobs_in_a_row_run_in_their_order(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    managers.start("--max-concurrent-runners", "4")
    store.submit("first", [task(f"t{n}", until(tmp_path / "go")) for n in range(4)], max_parallel_tasks=4)
    wait_until(lambda: len(list(store.paths("first").runs.iterdir())) >= 4, what="all room is taken")
    names = [f"j{number:03}" for number in range(300)]
    for name in names:
        store.submit(name, [f"echo {name} >> {tmp_path}/ran"], durable=False)
    (tmp_path / "go").touch()
    for name in names:
        ended(store, name)
    started = sorted(names, key=lambda name: store.get_job(name).started_at)  # type: ignore[arg-type, return-value]
    assert started == names


class TestWaiting:
    def _full(self, store: JobStore, managers: Managers, tmp_path: Path) -> subprocess.Popen[str]:
        manager = managers.start("--max-concurrent-runners", "1")
        store.submit("first", [task("a", until(tmp_path / "go"))])
        wait_until(lambda: store.get_job("first").state == "working", what="all room is taken")
        return manager

    def test_a_job_that_waits_for_room_is_waiting_and_its_time_does_not_run(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        """Whoever has set a timeout has not thought of those before it."""
        self._full(store, managers, tmp_path)
        store.submit("j", [task("a", "sleep 0.1")], timeout=60)
        store.submit("late", [task("a", "sleep 1000")], timeout=0.5)
        store.submit("cancelled", ["true"])
        inbox.cancel(store, "cancelled")
        assert ended(store, "cancelled").reason == "cancelled"
        job = store.get_job("j")
        assert (job.state, job.started_at, job.attempt) == (JobState.WAITING, None, 0)
        assert store.get_job("late").state == "waiting"

        def status(*words: str) -> str:
            return run_cli(["status", *words, "--base-path", str(store.base_path)], managers.environment).stdout

        assert "waits for room: it is next" in status("j")
        assert "waits for room: 1 job before it" in status("late")
        assert re.search(r"\nlate +waiting .* waits for room: 1 job before it", status())
        found = json.loads(status("late", "--json"))
        assert found["held_up"] == "waits for room: 1 job before it"
        (tmp_path / "go").touch()
        assert ended(store, "j").state == "completed"
        assert ended(store, "late").reason == "timeout"
        assert store.get_tasks("late")[0].attempt == 1

    def test_the_timeout_of_a_job_that_is_retried_runs_anew(self, store: JobStore, managers: Managers) -> None:
        managers.start()
        store.submit("j", [task("a", "[ $AIR_EXECUTOR_ATTEMPT = 2 ]")], timeout=60)
        first = ended(store, "j")
        assert (first.reason, first.started_at is not None) == ("exit", True)
        an_hour_ago = utc_now() - timedelta(hours=1)
        publish_job(store, first.evolve(started_at=an_hour_ago, started_clock=clock.mark(3600)))
        inbox.retry(store, "j")
        second = wait_until(
            lambda: job if (job := store.get_job("j")).attempt == 2 and job.state.is_terminal else None, what="its end"
        )
        assert second.state == "completed", second.error

    def test_a_job_that_waits_outlives_its_manager(self, store: JobStore, managers: Managers, tmp_path: Path) -> None:
        first = self._full(store, managers, tmp_path)
        store.submit("j", ["true"])
        store.submit("after", ["true"])
        inbox.cancel(store, "after")
        ended(store, "after")
        managers.kill(first)
        managers.start("--max-concurrent-runners", "1")
        (tmp_path / "go").touch()
        job = ended(store, "j")
        assert (job.state, job.attempt) == ("completed", 1)


def test_warm_is_understood_of_jobs_and_settings_too() -> None:
    """As if each task said it."""
    engines: Any = SimpleNamespace(_settings=Settings(runner="warm"))
    words: Mapping[str, Any] = {"job": SimpleNamespace(runner="warm"), "plain": SimpleNamespace(runner=None)}
    plain = Task(id="a", command="true")
    assert Engines.word_for(engines, words["plain"], plain) == "warm"
    engines._settings = Settings()
    assert Engines.word_for(engines, words["plain"], plain) == "local"
    assert Engines.word_for(engines, words["job"], plain) == "warm"
    assert Engines.word_for(engines, words["job"], plain.evolve(runner="slurm")) == "slurm"
