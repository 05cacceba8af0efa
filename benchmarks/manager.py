"""How fast the manager runs tasks, beside make, xargs and task-spooler in the same run.

Prints, for each system: tasks per second for 500 independent `/bin/true` and for a chain of 100; the time from
submitting one task until its end is known, median and 99th percentile of 50; and the CPU use of an idle manager with
5,000 finished jobs. The systems take turns, round after round, and the median round counts, since machines are noisy.
Every system runs at most two tasks at a time (`--running`); ours also with its default of ten. Then it prints how many
tasks per second ours runs for each one of xargs, both in the same round.

`--growth` measures in place of that what grows with the number of tasks and of jobs: the time per task of a job of
1,000 and of 100,000 tasks, which take turns; the most memory of the manager meanwhile; and how long a manager takes to
start that finds 50,000 finished jobs, and then to run a job.

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
from functools import partial
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore, dump_job, dump_tasks
from tests.support.run import Run

INDEPENDENT, CHAIN, SINGLE, FINISHED = 500, 100, 50, 5000
SHORT, LONG, HISTORY = 1000, 100_000, 50_000
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
        time.sleep(0.2)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", "manager", "--log-level", "ERROR"]
        command += ["--base-path", self._directory, "--max-concurrent-runners", str(self._limit)]
        process = subprocess.Popen(command)
        while manager_status.pid(self.store) != process.pid:
            time.sleep(0.02)
        return process

    def stop(self) -> None:
        """End the manager."""
        self.process.terminate()
        self.process.wait()

    def start_again(self) -> None:
        """Start another manager."""
        self.process = self._start()

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
        self.stop()
        self._notifier.close()
        shutil.rmtree(self._directory, ignore_errors=True)


class Make:
    """`make -j` on a file of targets."""

    def __init__(self, limit: int) -> None:
        self.name = f"make -j{limit}"
        self._directory = Path(tempfile.mkdtemp(prefix="air-executor-benchmark-"))

    def _run(self, lines: list[str]) -> float:
        path = self._directory / "Makefile"
        path.write_text("\n".join(lines) + "\n")
        return timed(["make", "-s", self.name.split()[1], "-f", str(path)])

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
    """`xargs -P`; it knows no dependencies, so a chain is `-P1`."""

    def __init__(self, limit: int) -> None:
        self.name = f"xargs -P{limit}"

    def independent(self, number: int) -> float:
        """Run tasks that do not depend on each other."""
        return timed(["xargs", self.name.split()[1], "-n1", TRUE], "\n".join(map(str, range(number))))

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

    def __init__(self, limit: int) -> None:
        self._directory = tempfile.mkdtemp(prefix="air-executor-benchmark-")
        self._environment = {**os.environ, "TS_SOCKET": f"{self._directory}/socket", "TMPDIR": self._directory}
        self._sh(f"tsp -S {limit}")

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


def growth(rounds: int, tasks: int, finished: int) -> None:
    """Measure what grows with the number of tasks and of jobs, and print it."""
    with closing(AirExecutor(2)) as system:
        growth_of_tasks(system, rounds, tasks)
        beginning(system, finished)


def growth_of_tasks(system: AirExecutor, rounds: int, tasks: int) -> None:
    """Compare short jobs with a long one, before and after which they run: machines get slower and faster."""
    system.independent(SHORT)
    repeated = max(1, tasks // SHORT // 20)  # so that a short moment does not stand for a long one
    short, long = [], []
    for _ in range(rounds):
        before = costs(system, SHORT, repeated)
        long.append(costs(system, tasks, 1))
        short.append([statistics.mean(both) for both in zip(before, costs(system, SHORT, repeated), strict=True)])
    for place, what in enumerate(("", " of the manager's processor time")):
        for number, found in ((SHORT, short), (tasks, long)):
            milliseconds = statistics.median(cost[place] for cost in found) * 1000
            print(f"a job of {number} tasks: {milliseconds:.3f} ms a task{what}")
        ratio = statistics.median(
            of_long[place] / of_short[place] for of_short, of_long in zip(short, long, strict=True)
        )
        print(f"growth: {ratio:.2f}", flush=True)
    print(f"the most memory of the manager: {peak_memory(system.process.pid) / 1e6:.0f} MB", flush=True)


def costs(system: AirExecutor, number: int, repeated: int) -> tuple[float, float]:
    """Run jobs of so many tasks one after the other: seconds a task, and of the manager's processor time."""
    before = cpu_seconds(system.process.pid)
    took = sum(system.independent(number) for _ in range(repeated))
    used = cpu_seconds(system.process.pid) - before
    return took / repeated / number, used / repeated / number


def beginning(system: AirExecutor, finished: int) -> None:
    """Let another manager find many finished jobs, and print how long it takes to start and to run a job."""
    store = system.store
    job, tasks = store.get_job("j0"), dump_tasks(store.get_tasks("j0")[:1])
    system.stop()
    for number in range(finished):
        write_finished(store, job.evolve(name=f"old{number}", id=f"old{number}-1"), tasks)
    began = time.perf_counter()
    system.start_again()
    started = time.perf_counter()
    system.single()
    took, single = started - began, time.perf_counter() - began
    memory = peak_memory(system.process.pid) / 1e6
    print(f"{finished} finished jobs: a manager starts in {took:.2f} s, and has run a job after {single:.2f} s")
    in_short = system.independent(SHORT) / SHORT * 1000
    print(f"its memory: {memory:.0f} MB; a job of {SHORT} tasks: {in_short:.3f} ms a task")


def peak_memory(pid: int) -> int:
    """The most memory in bytes that a process has had (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main(rounds: int, running: int, idle_seconds: float) -> None:
    """Measure, and print a table."""
    limits = dict.fromkeys((running, 10))
    kinds: list[Callable[[], Any]] = [partial(AirExecutor, limit) for limit in limits]
    kinds += [partial(Make, running), partial(Xargs, running)]
    if shutil.which("tsp"):
        kinds.append(partial(TaskSpooler, running))
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
    ours, xargs = independent[systems[0].name], independent[f"xargs -P{running}"]
    ratio = statistics.median(one / other for one, other in zip(ours, xargs, strict=True))
    print(f"independent tasks, {systems[0].name}, to xargs -P{running}: {ratio:.2f}")
    used = idle_cpu(FINISHED, idle_seconds)
    print(f"idle manager, {FINISHED} finished jobs: {used * 100:.2f} % of a core over {idle_seconds:g} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--running", type=int, default=2, help="tasks at a time; default: %(default)s")
    parser.add_argument("--growth", action="store_true", help="measure what grows with the number of tasks and jobs")
    parser.add_argument("--tasks", type=int, default=LONG, help="of the long job of --growth; default: %(default)s")
    parser.add_argument("--finished", type=int, default=HISTORY, help="jobs on disk then; default: %(default)s")
    parser.add_argument("--idle-seconds", type=float, default=20, help="default: %(default)s")
    arguments = parser.parse_args()
    with Run():
        if arguments.growth:
            growth(arguments.rounds, arguments.tasks, arguments.finished)
        else:
            main(arguments.rounds, arguments.running, arguments.idle_seconds)
