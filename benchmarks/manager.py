"""How fast the manager runs tasks, beside make, xargs and task-spooler in the same run.

Prints, for each system: tasks per second for 500 independent `/bin/true` and for a chain of 100; the time from
submitting one task until its end is known, median and 99th percentile of 50; and the CPU use of an idle manager with
5,000 finished jobs. The systems take turns, round after round, and the median round counts, since machines are noisy.
Every system runs at most two tasks at a time; ours also with its default of ten.

What is compared: make and xargs keep no state. task-spooler keeps its queue in memory, and the output in files.
Air-Executor has published the job durably before it counts as submitted, and its results before it counts as completed.
"""

from __future__ import annotations

import argparse
import os
import platform
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore, dump_job, dump_tasks
from tests.support.run import Run

INDEPENDENT, CHAIN, SINGLE, FINISHED = 500, 100, 50, 5000
TRUE = "/bin/true"


class AirExecutor:
    """A manager of its own on a temporary base path."""

    def __init__(self, limit: int) -> None:
        self.name = f"air-executor, {limit} at a time"
        self._limit = limit
        self._directory = tempfile.mkdtemp(prefix="air-executor-benchmark-")
        self.store = JobStore(self._directory)
        self._numbers = iter(range(1 << 30))
        self._notifier = Notifier()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", "manager", "--log-level", "ERROR"]
        command += ["--base-path", self._directory, "--max-concurrent-runners", str(self._limit)]
        process = subprocess.Popen(command)
        while manager_status.pid(self.store) != process.pid:
            time.sleep(0.02)
        time.sleep(0.2)
        return process

    def _run(self, tasks: list[dict[str, Any]]) -> float:
        """Seconds from before the submit until the job's end is known; woken by inotify, not by polling."""
        name = f"j{next(self._numbers)}"
        began = time.perf_counter()
        self.store.submit(name, tasks, max_parallel_tasks=self._limit)
        self._notifier.add(name, self.store.paths(name).directory)
        while not (job := self.store.get_job(name)).state.is_terminal:
            select.select([self._notifier], [], [], 5)
            while ("state.json") not in {change.name for change in self._notifier.read()[0]}:
                select.select([self._notifier], [], [], 5)
        took = time.perf_counter() - began
        self._notifier.remove(name)
        if job.state != "completed":
            raise RuntimeError(f"{name}: {job.error}")
        return took

    def independent(self, number: int) -> float:
        """Run tasks that do not depend on each other."""
        return self._run([{"command": TRUE}] * number)

    def chain(self, number: int) -> float:
        """Run tasks each of which depends on the one before."""
        return self._run(
            [
                {"id": f"t{place}", "command": TRUE, "dependencies": [f"t{place - 1}"] if place else []}
                for place in range(number)
            ]
        )

    def single(self) -> float:
        """Run one task."""
        return self._run([{"command": TRUE}])

    def close(self) -> None:
        """End the manager and remove its files."""
        self.process.terminate()
        self.process.wait()
        self._notifier.close()
        shutil.rmtree(self._directory, ignore_errors=True)


class Make:
    """`make -j2` on a file of targets."""

    name = "make -j2"

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="air-executor-benchmark-"))

    def _run(self, lines: list[str]) -> float:
        path = self._directory / "Makefile"
        path.write_text("\n".join(lines) + "\n")
        return timed(["make", "-s", "-j2", "-f", str(path)])

    def independent(self, number: int) -> float:
        """Run tasks that do not depend on each other."""
        names = " ".join(f"t{place}" for place in range(number))
        return self._run([f"all: {names}", f".PHONY: all {names}", f"{names}:", f"\t{TRUE}"])

    def chain(self, number: int) -> float:
        """Run tasks each of which depends on the one before."""
        lines = [f"all: t{number - 1}", ".PHONY: all " + " ".join(f"t{place}" for place in range(number))]
        for place in range(number):
            lines += [f"t{place}:" + (f" t{place - 1}" if place else ""), f"\t{TRUE}"]
        return self._run(lines)

    def single(self) -> float:
        """Run one task."""
        return self.independent(1)

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._directory)


class Xargs:
    """`xargs -P2`; it knows no dependencies, so a chain is `-P1`."""

    name = "xargs -P2"

    def independent(self, number: int) -> float:
        """Run tasks that do not depend on each other."""
        return timed(["xargs", "-P2", "-n1", TRUE], "\n".join(map(str, range(number))))

    def chain(self, number: int) -> float:
        """Run tasks one after the other."""
        return timed(["xargs", "-P1", "-n1", TRUE], "\n".join(map(str, range(number))))

    def single(self) -> float:
        """Run one task."""
        return self.independent(1)

    def close(self) -> None:
        """Nothing is left."""


class TaskSpooler:
    """task-spooler (`tsp`), its queue filled by a loop of `sh`, which is the fastest way to drive it.

    It keeps each task's output in a file, as we do.
    """

    name = "task-spooler"

    def __init__(self) -> None:
        self._directory = tempfile.mkdtemp(prefix="air-executor-benchmark-")
        self._environment = {**os.environ, "TS_SOCKET": f"{self._directory}/socket", "TMPDIR": self._directory}
        self._sh("tsp -S 2")

    def _sh(self, script: str) -> float:
        return timed(["sh", "-c", script], environment=self._environment)

    def independent(self, number: int) -> float:
        """Run tasks that do not depend on each other."""
        # Every second slot is waited for: when both of the last two jobs have ended, all have.
        script = f"i=0; while [ $i -lt {number - 2} ]; do tsp {TRUE} >/dev/null; i=$((i+1)); done"
        took = self._sh(f"{script}; a=$(tsp {TRUE}); b=$(tsp {TRUE}); tsp -w $a; tsp -w $b")
        self._sh("tsp -C")
        return took

    def chain(self, number: int) -> float:
        """Run tasks each of which depends on the one before."""
        took = self._sh(
            f"a=$(tsp {TRUE}); i=1; while [ $i -lt {number} ]; do a=$(tsp -d {TRUE}); i=$((i+1)); done; tsp -w $a"
        )
        self._sh("tsp -C")
        return took

    def single(self) -> float:
        """Run one task and wait for its end."""
        took = timed(["tsp", "-f", TRUE], environment=self._environment)
        self._sh("tsp -C")
        return took

    def close(self) -> None:
        """End its server."""
        self._sh("tsp -K")
        shutil.rmtree(self._directory, ignore_errors=True)


def timed(command: list[str], text: str = "", environment: dict[str, str] | None = None) -> float:
    """Run a command that must succeed.

    :return: seconds it took.
    """
    began = time.perf_counter()
    subprocess.run(command, input=text.encode(), env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def idle_cpu(finished: int, seconds: float) -> float:
    """CPU seconds per second that an idle manager with so many finished jobs on disk uses."""
    with closing(AirExecutor(2)) as system:
        system.single()
        store = system.store
        job, tasks = store.get_job("j0"), store.get_tasks("j0")
        for number in range(finished):
            write_finished(store, job.evolve(name=f"old{number}", id=f"old{number}-1"), dump_tasks(tasks))
        time.sleep(3)
        before = cpu_seconds(system.process.pid)
        time.sleep(seconds)
        return (cpu_seconds(system.process.pid) - before) / seconds


def write_finished(store: JobStore, job: Job, tasks: bytes) -> None:
    """Put a finished job on disk."""
    path = store.jobs_path / f".{job.name}"
    (path / "logs").mkdir(parents=True)
    (path / "tasks.json").write_bytes(tasks)
    (path / "state.json").write_bytes(dump_job(job))
    path.rename(store.jobs_path / job.name)


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, user and system (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def closing(system: AirExecutor) -> Iterator[AirExecutor]:
    """Close a system when done with it."""
    try:
        yield system
    finally:
        system.close()


def main(rounds: int, idle_seconds: float) -> None:
    """Measure, and print a table."""
    kinds: list[Callable[[], Any]] = [lambda: AirExecutor(2), lambda: AirExecutor(10), Make, Xargs]
    if shutil.which("tsp"):
        kinds.append(TaskSpooler)
    systems = [kind() for kind in kinds]
    independent: dict[str, list[float]] = {system.name: [] for system in systems}
    chain: dict[str, list[float]] = {system.name: [] for system in systems}
    single: dict[str, list[float]] = {system.name: [] for system in systems}
    try:
        for _ in range(rounds):
            for system in systems:
                independent[system.name].append(INDEPENDENT / system.independent(INDEPENDENT))
            for system in systems:
                chain[system.name].append(CHAIN / system.chain(CHAIN))
            for system in systems:
                single[system.name] += sorted(system.single() for _ in range(SINGLE))
    finally:
        for system in systems:
            system.close()
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds")
    print(f"{'':28}{'independent':>14}{'chain':>10}{'one task, ms':>20}")
    print(f"{'':28}{'tasks/s':>14}{'tasks/s':>10}{'median / p99':>20}")
    for name, values in independent.items():
        times = sorted(single[name])
        median, p99 = statistics.median(times) * 1000, times[int(len(times) * 0.99)] * 1000
        one = f"{median:.1f} / {p99:.1f}"
        print(f"{name:28}{statistics.median(values):14.0f}{statistics.median(chain[name]):10.0f}{one:>20}")
    used = idle_cpu(FINISHED, idle_seconds)
    print(f"idle manager, {FINISHED} finished jobs: {used * 100:.2f} % of a core over {idle_seconds:g} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--idle-seconds", type=float, default=20, help="default: %(default)s")
    arguments = parser.parse_args()
    with Run():
        main(arguments.rounds, arguments.idle_seconds)
