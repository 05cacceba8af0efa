"""Warm tasks that end in all ways while their generations change and all processes are killed: each is run once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import JobState, Reason
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.changing import ChangingManagers, only_warm
from tests.support.fork_servers import has_log, servers
from tests.support.jobs import ended, only_task, task
from tests.support.processes import is_gone, parent, pids, with_environment
from tests.support.waiting import wait_until

STEPS = 20
LINES = {"short": "sleep 0.1", "long": "sleep 1", "late": "sleep 1000"}


class Harm:
    """Submits jobs, cancels some of them, and kills processes, all by chance.

    :param out: where each task writes that it begins, with its process id, and that it ends.
    """

    def __init__(self, store: JobStore, managers: ChangingManagers, chance: random.Random, out: Path) -> None:
        self.store, self.managers, self.chance, self.out = store, managers, chance, out
        self.kinds: dict[str, str] = {}  # of the jobs
        self.killed = 0  # processes that may have been tasks
        self.manager = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return self.managers.start("--max-concurrent-runners", "8")

    def submit(self) -> None:
        """Submit a job that ends by itself, or whose time is over before."""
        name, kind = f"job{len(self.kinds)}", self.chance.choice(list(LINES))
        line = f"echo begins {name} $$ >> {self.out}; {LINES[kind]}; echo ends {name} >> {self.out}"
        limit = {"timeout": self.chance.choice([0.3, 1, 2])} if kind == "late" else {}
        self.store.submit(name, [task("a", line, **limit)])
        self.kinds[name] = kind

    def do_something(self) -> None:
        """Cancel jobs, kill a process, both, or neither."""
        found = list(servers(self.manager))
        what = self.chance.choice(["manager", "fork server", "generation", "shim", "cancel", "cancel and kill", "none"])
        if what == "manager":
            self.managers.kill(self.manager)
            self.manager = self._start()
        if what.startswith("cancel"):
            self._cancel()
        if what in ("fork server", "cancel and kill"):
            _kill(*found[:1])
        if what in ("generation", "cancel and kill"):
            self._kill_task_or(found[1:])
        if what == "shim":
            self._kill_task_or([pid for pid in pids() if parent(pid) in found and has_log(pid)])

    def _cancel(self) -> None:
        names = [name for name in self.kinds if not self.store.get_job(name).state.is_terminal]
        for name in self.chance.sample(names, min(2, len(names))):
            if inbox.cancel(self.store, name):
                self.kinds[name] = "cancelled"

    def _kill_task_or(self, found: list[int]) -> None:
        """Kill one of some processes: a generation may be a shim that has just been forked."""
        self.killed += bool(found)
        _kill(*self.chance.sample(found, min(1, len(found))))


def _kill(*found: int) -> None:
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@only_warm
def test_each_task_runs_once_and_ends_as_it_is_to(store: JobStore, managers: ChangingManagers, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance, out = random.Random(seed), tmp_path / "out"
    harm = Harm(store, managers, chance, out)
    for _ in range(STEPS):
        for _ in range(3):
            harm.submit()
        time.sleep(chance.uniform(0, 0.4))
        harm.do_something()
    jobs = {name: ended(store, name) for name in harm.kinds}
    lost = {name for name, job in jobs.items() if job.reason is Reason.LOST}
    assert len(lost) <= harm.killed
    expected = {"short": [None], "long": [None], "late": [Reason.TIMEOUT]}
    for name in jobs.keys() - lost:
        # What is cancelled may just have ended.
        kind = harm.kinds[name]
        assert jobs[name].reason in expected.get(kind, [None, Reason.TIMEOUT, Reason.CANCELLED]), (name, kind)
        assert only_task(store, name).attempt <= 1
    lines = [line.split() for line in out.read_text().splitlines()]
    did = [tuple(words[:2]) for words in lines]
    assert len(set(did)) == len(did), "one has run twice"
    completed = {name for name, job in jobs.items() if job.state is JobState.COMPLETED}
    assert {("ends", name) for name in completed} <= set(did)
    begun = {int(words[2]) for words in lines if words[0] == "begins"}
    of_tasks = begun & set(with_environment(f"AIR_EXECUTOR_BASE_PATH={store.base_path}"))
    wait_until(lambda: all(map(is_gone, of_tasks)), what="nothing is left")
