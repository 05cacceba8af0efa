"""How long jobs of very many tasks block those of others.

A manager gets a job of one of five kinds: a chain, tasks of which one waits for all others, tasks that all wait for
one, 400,000 tasks that do not depend on each other, and tasks whose list is 100 MB long. A probe submits a job of one
task again and again, and measures the time until its end is known: alone, and while the long job is loaded, runs, is
adopted by the next manager, gets as many tasks again, is cancelled, and retried. Besides, each step of the manager's
loop is timed within the manager; the longest one is what others had to wait for.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.jobs import inbox, manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.run import Run

# Read by the manager at its start: it writes down how long its steps take.
_TIMED = """
import time
from airflow_provider_air_executor.manager.troubles import Guard

real, file = Guard.run, open({path!r}, "a", buffering=1)

def timed(self, step):
    began = time.perf_counter()
    try:
        return real(self, step)
    finally:
        took = time.perf_counter() - began
        if took > 0.01:
            file.write(f"{{took:.4f}} {{step.__name__}}\\n")

Guard.run = timed
"""

KINDS: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "chain": lambda number: [
        {"id": f"t{i}", "command": "true", "dependencies": [f"t{i - 1}"] if i else []} for i in range(number)
    ],
    "fan-in": lambda number: [
        {"id": f"t{i}", "command": "true", "dependencies": [f"t{j}" for j in range(i)] if i == number - 1 else []}
        for i in range(number)
    ],
    "fan-out": lambda number: [
        {"id": f"t{i}", "command": "true", "dependencies": ["t0"] if i else []} for i in range(number)
    ],
    "flat": lambda number: [{"id": f"t{i}", "command": "true"} for i in range(number)],
    "long": lambda number: [{"id": f"t{i}", "command": "true", "args": ["x" * 100_000]} for i in range(number)],
}
NUMBERS = {"chain": 8_000, "fan-in": 20_000, "fan-out": 100_000, "flat": 400_000, "long": 1_000}


class Probe(threading.Thread):
    """Submits jobs of one task, one after the other, and measures how long each takes."""

    def __init__(self, store: JobStore) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._is_over = threading.Event()
        self.times: list[float] = []

    def run(self) -> None:
        """Go on until :meth:`stop`."""
        for number in itertools.count():
            if self._is_over.is_set():
                return
            name, began = f"probe{time.time_ns()}-{number}", time.perf_counter()
            self._store.submit(name, ["true"], durable=False)
            while not self._store.get_job(name).state.is_terminal:
                time.sleep(0.002)
            self.times.append(time.perf_counter() - began)
            time.sleep(0.02)

    def stop(self) -> str:
        """End, and say what was measured."""
        self._is_over.set()
        self.join()
        times = sorted(self.times)
        return f"{len(times)} probes, median {statistics.median(times) * 1e3:.0f} ms, longest {times[-1] * 1e3:.0f} ms"


def start(store: JobStore, directory: Path) -> subprocess.Popen[bytes]:
    """Start a manager that times its steps."""
    (directory / "sitecustomize.py").write_text(_TIMED.format(path=str(directory / "steps")))
    command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", "manager", "--log-level", "ERROR"]
    process = subprocess.Popen(
        [*command, "--base-path", str(store.base_path)], env={**os.environ, "PYTHONPATH": str(directory)}
    )
    while manager_status.pid(store) != process.pid:
        time.sleep(0.05)
    return process


def measured(what: str, store: JobStore, directory: Path, step: Callable[[], None]) -> None:
    """Do something while the probe is at work, and print what it has measured."""
    (directory / "steps").write_text("")
    probe = Probe(store)
    probe.start()
    step()
    said = probe.stop()
    steps = [line.split() for line in (directory / "steps").read_text().splitlines()]
    longest = max(((float(took), name) for took, name in steps), default=(0.0, "-"))
    print(f"  {what:24}{said}; longest step {longest[0] * 1e3:.0f} ms ({longest[1]})", flush=True)


def until(check: Callable[[], bool]) -> None:
    """Wait."""
    while not check():
        time.sleep(0.1)


def run(kind: str, number: int) -> None:
    """Measure one kind of jobs."""
    directory = Path(tempfile.mkdtemp(prefix="air-executor-benchmark-"))
    store = JobStore(directory / "base")
    store.create_directories()
    tasks = KINDS[kind](number)
    process = start(store, directory)
    try:
        print(f"{kind}, {number} tasks", flush=True)
        measured("alone", store, directory, lambda: time.sleep(3))

        def submit() -> None:
            store.submit("long", tasks, max_parallel_tasks=1, durable=False)

        def load() -> None:
            submit()
            until(lambda: store.get_job("long").state != "waiting")
            time.sleep(5)

        def add() -> None:
            inbox.add_tasks(store, "long", [{**task, "id": f"more-{task['id']}"} for task in tasks])
            until(lambda: not inbox.requests(store))

        def cancel() -> None:
            inbox.cancel(store, "long")
            until(lambda: store.get_job("long").state.is_terminal)

        def retry() -> None:
            inbox.retry(store, "long")
            until(lambda: store.get_job("long").state == "working")

        def adopt() -> None:
            nonlocal process
            process.kill()
            process.wait()
            process = start(store, directory)
            time.sleep(5)

        measured("loaded, and running", store, directory, load)
        print(f"  its list has {store.paths('long').tasks.stat().st_size / 1e6:.0f} MB")
        measured("adopted", store, directory, adopt)
        measured("tasks are added", store, directory, add)
        measured("cancelled", store, directory, cancel)
        measured("retried", store, directory, retry)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--number", type=int, help="tasks; default: by its kind")
    arguments = parser.parse_args()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with Run():
        for chosen in arguments.kind or KINDS:
            run(chosen, arguments.number or NUMBERS[chosen])
