"""A manager in this process that runs real commands, step by step, while calls of the system fail.

Its clock is moved on by hand, so that its pauses cost nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.engine import LocalEngine
from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.exceptions import NoLocksError
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs import store as store_module
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.lock import ManagerLock
from airflow_provider_air_executor.manager.loop import Loop
from airflow_provider_air_executor.manager.manager import Manager
from airflow_provider_air_executor.manager.settings import Settings
from tests.support.managers import end_tasks_of
from tests.support.system_calls import Faults
from tests.support.waiting import PATIENCE, wait_until

QUIET_ROUNDS = 150  # in which nothing runs, and in which the manager must come to an end; each is a second of its clock
_LAST_ROUNDS = 40  # in which the manager sees that all is well again: it tries each half a minute at least
LIMIT = 2  # tasks at a time


class Clock:
    """The time of this machine, and what was let pass besides."""

    def __init__(self) -> None:
        self.passed = 0.0

    def monotonic(self) -> float:
        """Seconds, among them those that were let pass."""
        return time.monotonic() + self.passed

    def time_ns(self) -> int:
        """As above."""
        return time.time_ns() + int(self.passed * 1e9)


class Lines(logging.Handler):
    """What the manager says is wrong, and over."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self.said: set[str] = set()  # since something has changed
        self.repeated: list[str] = []
        self.wrong: set[str] = set()  # what is wrong at the moment

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        line = record.getMessage()
        over = _OVER.fullmatch(line)
        if over is not None:
            self.wrong.discard(_what(over))
        elif record.levelno < logging.WARNING:
            return
        elif begun := _BEGUN.fullmatch(line):
            self.wrong.add(_what(begun))
        self.lines.append(line if record.exc_info is None else f"{line} ({record.exc_info[1]!r})")
        if over is None and line in self.said:
            self.repeated.append(line)
        self.said.add(line)

    def something_changes(self, *, is_new_manager: bool = False) -> None:
        """Another trouble, or none, or another manager: what was said may be said again."""
        self.said.clear()
        if is_new_manager:
            self.wrong.clear()


_BEGUN = re.compile(
    r"(?P<what>job \S+: [\w ,]+): .+; it is tried again"
    r"|something could not be done \((?P<step>\w+)\); it is tried again"
    r"|(?P<engine>the engine \w+) cannot say what has happened; it is asked again"
)
_OVER = re.compile(
    r"(?P<what>job \S+: [\w ,]+): over after .+|(?P<step>\w+): that is over|(?P<engine>the engine \w+) can say again.+"
)


def _what(match: re.Match[str]) -> str:
    return next(str(value) for value in match.groupdict().values() if value)


class SteppedManager:
    """A base path, a manager, and the commands it runs."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.store = JobStore(self.directory / "base")
        self.done_path = self.directory / "done"
        self.done_path.touch()
        self.gate = self.directory / "gate"
        os.mkfifo(self.gate)
        self.faults = Faults()
        self._installed = contextlib.ExitStack()
        self._installed.enter_context(self.faults.installed())
        self.clock = Clock()
        self.lines = Lines()
        self.settings: dict[str, Any] = {}  # of the next managers, besides the usual ones
        self.manager: Manager | None = None
        self.engine: LocalEngine | None = None
        self.loop: Loop | None = None
        self.lock: ManagerLock | None = None
        store_module._HALF_WRITTEN_SECONDS = 0.0
        log = logging.getLogger("air_executor.manager")
        log.addHandler(self.lines)
        log.setLevel(logging.INFO)
        log.propagate = False

    def close(self) -> None:
        """Remove everything."""
        log = logging.getLogger("air_executor.manager")
        log.removeHandler(self.lines)
        log.propagate = True
        with self._installed:
            self.kill_manager()
            end_tasks_of(self.store)
            store_module._HALF_WRITTEN_SECONDS = 0.5
            shutil.rmtree(self.directory)

    def start_manager(self) -> bool:
        """Start one; False if it says that it cannot start now."""
        usual = {"poll_interval": 1, "max_concurrent_runners": LIMIT, "kill_grace": 0, "idle_timeout": 20}
        settings_ = Settings(**usual | self.settings)
        children = Children()
        lock = ManagerLock(self.store)
        with self.faults.on():
            try:
                if not lock.acquire():
                    return False
            except (OSError, NoLocksError):
                return False
            environment = {key: value for key, value in os.environ.items() if not key.startswith("AIR_EXECUTOR")}
            self.lock, self.engine = lock, LocalEngine(self.store, environment, children)
            engines = Engines(self.store, settings_, self.engine, environment, children)
            self.manager = Manager(self.store, settings_, engines, self.clock)
            self.loop = Loop(self.manager, lock)
            try:
                self.manager.recover()
            except OSError:
                self.kill_manager()
                return False
        return True

    def kill_manager(self) -> None:
        """What is left of a process that was killed: nothing of it is open."""
        if self.manager is not None and self.engine is not None and self.lock is not None:
            self.manager.shared.notifier.close()
            self.engine.close()
            if self.lock._descriptor is not None:
                os.close(self.lock._descriptor)
        self.manager = self.loop = self.engine = self.lock = None
        self.lines.something_changes(is_new_manager=True)

    def go_round(self) -> None:
        """The manager does what it can do now; if there is none, one is started."""
        if self.loop is None:
            self.start_manager()
            return
        with self.faults.on():
            continues = self.loop.go_round()
        if not continues:
            self.kill_manager()

    def something_runs(self) -> bool:
        """Whether a shim of the manager is alive, or the manager still processes the end of one."""
        found = self.engine
        if found is None:
            return False
        is_busy = bool(found._adopted or found._unread or found._endings)
        return is_busy or any(_is_alive(one.pid) for one in found._attempts.values())

    def open_gate(self) -> None:
        """Let the commands go on that wait."""
        os.close(os.open(self.gate, os.O_RDWR))

    def done(self) -> Counter[tuple[str, str, int]]:
        """How often each attempt has run its command."""
        lines = self.done_path.read_text().split("\n")[:-1]
        return Counter((job, task, int(attempt)) for job, task, attempt in (line.split(" ") for line in lines))

    def submit(self, name: str, tasks: list[dict[str, Any]], parallel: int) -> None:
        """Submit a job whose tasks say that they have run, and may wait at the gate."""
        # So that who lists the directory now and then sees by its time that there is something new.
        self.store.create_directories()
        probe = self.directory / "probe"
        changed = self.store.jobs_path.stat().st_mtime_ns

        def has_moved_on() -> bool:
            probe.write_text("")
            return probe.stat().st_mtime_ns > changed

        wait_until(has_moved_on, what="the clock of the file system has moved on", interval=0.001)
        self.store.submit(name, tasks, max_parallel_tasks=parallel)

    def let_all_end(self) -> bool:
        """Whether all jobs end when nothing is wrong any more, and all requests are carried out."""
        deadline = time.monotonic() + PATIENCE
        quiet = 0
        while quiet < QUIET_ROUNDS and time.monotonic() < deadline:
            self.open_gate()
            if self.something_runs():
                time.sleep(0.002)
            else:
                quiet += 1
            self.clock.passed += 1.0
            self.go_round()
            if not inbox.requests(self.store) and all(job.state.is_terminal for job in self.store.list_jobs()):
                for _ in range(_LAST_ROUNDS):
                    self.clock.passed += 1.0
                    self.go_round()
                    if not self.lines.wrong:
                        break
                return True
        return False

    def command(self, *, waits: bool) -> dict[str, Any]:
        """The command of such a task."""
        line = f'echo "$AIR_EXECUTOR_JOB $AIR_EXECUTOR_TASK $AIR_EXECUTOR_ATTEMPT" >> {self.done_path}'
        return {"command": "sh", "args": ["-c", line + (f"; read -r _ < {self.gate} || :" if waits else "")]}


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False
