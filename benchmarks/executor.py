"""How Airflow's LocalExecutor and ours run the same DAGs, each in a real Airflow of its own (Linux).

Prints, for each run of a DAG: seconds from its start to its end, as Airflow says; tasks per second; CPU seconds per
task, of all processes of the installation; how long a task took to start, median and 95th percentile; the peak of the
memory of all processes (PSS, so that what they share counts once); and how many tasks did not succeed. Then the
ratios, and whose CPU time it was: that of the tasks is the rest, with what runs them. Where nearly all cores are in
use, a task can be no faster than its CPU time allows.

The DAGs: independent PythonOperator tasks that do nothing but tell the time (`empty_python`); independent BashOperator
tasks of `true` (`true_bash`); a chain of ten of the former (`chain`); and as many tasks of five seconds as may run at a
time (`sleepers`), for the memory that a running task takes. For each number of tasks that run at a time, both executors
get an installation of their own; who is first changes with each number. In it the DAGs run round after round, the first
one cold: that goes for the API server most of all, which then takes seconds for its first answer to a task.

A start is counted from when Airflow queued the task: for Python until its own code runs, for bash until the task
instance has started, which is somewhat earlier. With LocalExecutor, [core] parallelism is how many tasks run, and what
waits for a slot is not queued yet. With ours a user sets two numbers: [air_executor] max_running_tasks is how many run;
[core] parallelism is how many are handed over, more than that, so that the next one is there when one ends. The wait
for a slot is then part of the start, except in `chain` and `sleepers`, where none waits. The pool has room for all, and
the scheduler may queue 64 tasks at once, so that neither of them decides. The API server may have as many connections
to the database as it has requests: with its default of 15, requests that need a second one wait for each other, and
many tasks that start at once stand still for 30 s.

The CPU time of a run includes what an idle Airflow uses meanwhile, and a second before and after, in which what the
tasks have left to do is done. The memory is looked at every 0.2 s, in a round of its own, the last one, so that this
cannot disturb the other figures; those of that round stand in no ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from tests.support.installation import COMPONENTS, Installation
from tests.support.processes import exit_on_sigterm
from tests.support.waiting import wait_until

LOCAL, OURS = "LocalExecutor", "ours"
CLASSES = {LOCAL: LOCAL, OURS: "airflow_provider_air_executor.executor.AirExecutorExecutor"}
ROUND_DAGS, SLEEPERS = ("empty_python", "true_bash", "chain"), "sleepers"
COLD, WARM = 1, 3  # the rounds that are compared; if there are fewer, the last one is the warm one
CHAIN = 10
RUN_SECONDS = 1800  # after which a run fails
SETTLE_SECONDS = 1.0  # around a run, so that its processes have ended when the CPU time is read
SAMPLE_SECONDS = 0.2
PAGE = 100  # task instances that the API lists at once
PR_SET_CHILD_SUBREAPER = 36

DAG_FILE = """\
import datetime, itertools, os, time

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG


def tell_time(task_id, seconds):
    line = f"{{task_id}} {{time.time()}}\\n"
    file = os.open({marks!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, line.encode())
    os.close(file)
    if seconds:
        time.sleep(seconds)


with DAG(
    {dag_id!r},
    schedule=None,
    start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc),
    max_active_tasks=100_000,
    default_args={{"retries": 0}},
):
    names = [f"t{{number}}" for number in range({number})]
    tasks = [{operator} for name in names]
    if {is_chain}:
        for before, after in itertools.pairwise(tasks):
            before >> after
"""
BASH = 'BashOperator(task_id=name, bash_command="true")'
PYTHON = "PythonOperator(task_id=name, python_callable=tell_time, op_args=[name, {seconds}])"


class Process(NamedTuple):
    """What ``/proc/<pid>/stat`` says, see proc(5)."""

    state: str
    parent: int
    used: int  # clock ticks, user and system
    reaped: int  # the same of all that it has waited for


class Memory(NamedTuple):
    """Of one process, in MB: with its share of what it has in common with others, and without."""

    pss: float
    uss: float


@dataclass
class Run:
    """What was measured in a run of a DAG."""

    executor: str
    running: int
    dag: str
    round: int
    tasks: int
    wall: float
    cpu: float  # per task
    starts: list[float]  # seconds, in order
    peak: float  # 0 where nobody has looked
    failed: int
    shares: dict[str, float]  # of the CPU time, in seconds per task

    @property
    def median(self) -> float:
        """Of the seconds that a task took to start."""
        return statistics.median(self.starts or [float("nan")])

    @property
    def p95(self) -> float:
        """Of the seconds that a task took to start."""
        return self.starts[int(len(self.starts) * 0.95)] if self.starts else float("nan")


FIGURES: dict[str, Callable[[Run], float]] = {
    "wall": lambda run: run.wall,
    "CPU/task": lambda run: run.cpu,
    "start": lambda run: run.median,
    "p95": lambda run: run.p95,
}


# -- processes ---------------------------------------------------------------------------------------------


def descendants() -> dict[int, Process]:
    """This process, and all that come from it: orphans are given to us, so that none is missing."""
    everything: dict[int, Process] = {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            used, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
            everything[int(path.name)] = Process(fields[0], int(fields[1]), used, reaped)
            children.setdefault(int(fields[1]), []).append(int(path.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return {pid: everything[pid] for pid in found}


def cpu_seconds() -> float:
    """What our descendants have used so far, the dead included: somebody among them, or we, have waited for each."""
    found = descendants()
    ticks = sum(process.used + process.reaped for process in found.values()) - found[os.getpid()].used
    return ticks / os.sysconf("SC_CLK_TCK")


def shares_of(airflow: Installation) -> dict[str, float]:
    """Seconds of CPU that the parts of Airflow have used so far; the tasks, and what runs them, are the rest."""
    processes = descendants()
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    shares = {}
    for part in COMPONENTS:
        pids = [airflow.pid_of(part)]
        ticks = processes[pids[0]].used
        if part != "scheduler":  # what it has started are the tasks, or their manager
            for pid in pids:
                pids += children.get(pid, [])
            ticks = sum(processes[pid].used + processes[pid].reaped for pid in pids)
        shares[part] = ticks / os.sysconf("SC_CLK_TCK")
    return shares


def reap(spared: set[int]) -> None:
    """Wait for orphans that have ended."""
    for pid, process in descendants().items():
        if process.state == "Z" and process.parent == os.getpid() and pid not in spared:
            os.waitpid(pid, 0)


def end_the_rest() -> None:
    """Make sure that nothing is left: an executor of ours lets tasks go on when it ends."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while len(found := descendants()) > 1:
        reap(set())
        if time.monotonic() > deadline:
            for pid in found.keys() - {os.getpid()}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def comes_from_fork_server(pid: int) -> bool:
    """Whether a process is the fork server, or has been forked from it and not been given another title."""
    with contextlib.suppress(OSError):
        return b"local.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def memory(pid: int) -> Memory:
    """Nothing if the process has ended meanwhile."""
    with contextlib.suppress(OSError, KeyError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        mb = {words[0]: int(words[1]) / 1024 for words in map(str.split, lines)}
        return Memory(mb["Pss:"], mb["Private_Clean:"] + mb["Private_Dirty:"])
    return Memory(0, 0)


class Watch(threading.Thread):
    """Looks at the memory of all processes of an installation again and again, and reaps orphans."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._spared = set(descendants())  # who has started them waits for them
        self._done = threading.Event()
        self.looks = False
        self.reset()

    def reset(self) -> None:
        """Forget what was seen so far."""
        self.peak = 0.0
        self.fork_server = Memory(0, 0)  # each at its peak
        self.fork_server_shared = Memory(0, 0)  # while most shims were there
        self.task_peaks: dict[int, float] = {}  # USS of each shim and what it has started

    def run(self) -> None:
        """Look until told not to."""
        while not self._done.wait(SAMPLE_SECONDS):
            reap(self._spared)
            if self.looks:
                self._look()

    def _look(self) -> None:
        processes = descendants()
        del processes[os.getpid()]
        seen = {pid: memory(pid) for pid in processes}
        self.peak = max(self.peak, sum(one.pss for one in seen.values()))
        forked = set(filter(comes_from_fork_server, processes))
        server = next((pid for pid in forked if processes[pid].parent not in forked), None)
        if server is None:
            return
        used: dict[int, float] = {}
        for pid, process in processes.items():
            shim = process.parent
            if shim in processes and processes[shim].parent == server:
                used[shim] = used.get(shim, seen[shim].uss) + seen[pid].uss
        if len(used) >= len(self.task_peaks):
            self.fork_server_shared = seen[server]
        self.fork_server = Memory(*map(max, self.fork_server, seen[server]))
        for shim, uss in used.items():
            self.task_peaks[shim] = max(uss, self.task_peaks.get(shim, 0))

    def close(self) -> None:
        """Look no more."""
        self._done.set()
        self.join()


# -- runs --------------------------------------------------------------------------------------------------


class MeasuredAirflow(Installation):
    """A running Airflow with the DAGs of the benchmark."""

    def __init__(
        self, directory: Path, executor: str, running: int, arguments: argparse.Namespace, settings: dict[str, str]
    ) -> None:
        self.executor, self.running = executor, running
        self._marks = directory / "marks"
        self._sizes = {"empty_python": arguments.tasks, "true_bash": arguments.tasks, "chain": CHAIN, SLEEPERS: running}
        self._write_dags(directory / "dags")
        parallelism = running if executor == LOCAL else max(arguments.parallelism, 2 * running)
        ours = {
            "AIRFLOW__CORE__EXECUTOR": CLASSES[executor],
            "AIRFLOW__CORE__PARALLELISM": str(parallelism),
            "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": str(running),
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": str(max(128, parallelism)),
            "AIRFLOW__SCHEDULER__MAX_TIS_PER_QUERY": "64",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_MAX_OVERFLOW": "-1",
        }
        super().__init__(directory / "dags", {**ours, **settings})

    def _write_dags(self, directory: Path) -> None:
        """Each DAG in a file of its own, since a task parses the whole file."""
        directory.mkdir()
        for dag_id, number in self._sizes.items():
            operator = BASH if dag_id == "true_bash" else PYTHON.format(seconds=5 * (dag_id == SLEEPERS))
            text = DAG_FILE.format(
                marks=str(self._marks), dag_id=dag_id, number=number, operator=operator, is_chain=dag_id == "chain"
            )
            (directory / f"{dag_id}.py").write_text(text)

    def measure(self, dag_id: str, number: int, watch: Watch) -> Run:
        """Run a DAG; the number is that of the round."""
        self.wait_for_dag(dag_id)
        self._marks.unlink(missing_ok=True)
        watch.reset()
        time.sleep(SETTLE_SECONDS)
        before, shares_before = cpu_seconds(), shares_of(self)
        path = f"/dags/{dag_id}/dagRuns/{quote(self.trigger(dag_id), safe='')}"
        what = f"{dag_id} has ended"
        run = wait_until(lambda: self._ended(path), timeout=RUN_SECONDS, what=what, interval=0.5) or {}
        time.sleep(SETTLE_SECONDS)
        cpu, shares = cpu_seconds() - before, shares_of(self)
        instances: list[dict[str, Any]] = []
        tasks = self._sizes[dag_id]
        for offset in range(0, tasks, PAGE):
            instances += self.api(f"{path}/taskInstances?limit={PAGE}&offset={offset}")["task_instances"]
        failed = tasks - sum(instance["state"] == "success" for instance in instances)
        wall = seconds(run["end_date"]) - seconds(run["start_date"])
        starts = sorted(self._starts(instances, is_python=dag_id != "true_bash"))
        cpu /= tasks
        shares = {part: (used - shares_before[part]) / tasks for part, used in shares.items()}
        shares["tasks"] = cpu - sum(shares.values())
        return Run(self.executor, self.running, dag_id, number, tasks, wall, cpu, starts, watch.peak, failed, shares)

    def _ended(self, path: str) -> dict[str, Any] | None:
        with contextlib.suppress(OSError):  # an API server that is too busy answers the next time
            run: dict[str, Any] = self.api(path)
            return run if run["state"] in ("success", "failed") else None
        return None

    def _starts(self, instances: list[dict[str, Any]], *, is_python: bool) -> Iterator[float]:
        """How long each task took to start."""
        lines = self._marks.read_text().splitlines() if self._marks.exists() else []
        told = {name: float(at) for name, at in map(str.split, lines)}
        for instance in instances:
            began = told.get(instance["task_id"]) if is_python else seconds(instance["start_date"])
            if began and instance["queued_when"]:
                yield began - seconds(instance["queued_when"])


def seconds(text: str | None) -> float:
    """A time of the API in seconds; 0 if there is none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def measure_installation(executor: str, running: int, arguments: argparse.Namespace) -> tuple[list[Run], str]:
    """Run all DAGs in an installation of its own.

    :return: the runs, and what a fork server and the tasks that come from it take.
    """
    runs: list[Run] = []
    settings = dict(arguments.setting)
    try:
        with contextlib.ExitStack() as stack:
            if arguments.postgresql:
                from tests.support.postgresql import PostgreSQL

                settings["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = stack.enter_context(PostgreSQL()).url
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="air-executor-benchmark-")))
            airflow = MeasuredAirflow(directory, executor, running, arguments, settings)
            stack.callback(shutil.rmtree, airflow.home, ignore_errors=True)  # also if its own end is interrupted
            stack.enter_context(airflow)
            watch = stack.enter_context(contextlib.closing(Watch()))
            watch.start()
            last = arguments.rounds + 1
            rounds = [(dag_id, number) for number in range(1, last + 1) for dag_id in ROUND_DAGS]
            for dag_id, number in [*rounds, (SLEEPERS, last)]:
                watch.looks = number == last
                runs.append(airflow.measure(dag_id, number, watch))
                show(runs[-1])
            return runs, describe(watch) if executor == OURS else ""
    finally:
        end_the_rest()


# -- what is printed ---------------------------------------------------------------------------------------


def show(run: Run) -> None:
    """Print a row of the table."""
    start = f"{run.median:.2f} / {run.p95:.2f}"
    peak = f"{run.peak:.0f}" if run.peak else ""
    print(
        f"{run.executor:15}{run.running:>7}  {run.dag:14}{run.round:>5}{run.wall:>9.1f}{run.tasks / run.wall:>9.1f}"
        f"{run.cpu:>12.3f}{start:>16}{peak:>9}{run.failed:>8}",
        flush=True,
    )


def describe(watch: Watch) -> str:
    """What the fork server takes, and the tasks that were forked from it."""
    server, shared, peaks = watch.fork_server, watch.fork_server_shared, list(watch.task_peaks.values())
    if not peaks:
        return "no fork server was seen"
    return (
        f"fork server: USS {server.uss:.0f} MB alone; USS {shared.uss:.0f}, PSS {shared.pss:.0f} MB with its tasks; "
        f"a running task: USS {statistics.median(peaks):.0f} MB (shim and task process, median of {len(peaks)})"
    )


def show_ratios(runs: list[Run]) -> None:
    """Print what is compared, as one divided by the other."""
    groups: dict[tuple[int, str], dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault((run.running, run.dag), {LOCAL: [], OURS: []})[run.executor].append(run)
    timed = max(run.round for run in runs) - 1
    warm = min(WARM, timed)
    print(f"\n{'running':>7}  {'dag':14}{'ratio':36}" + "".join(f"{name:>10}" for name in FIGURES))
    for (running, dag), found in sorted(groups.items()):
        quick = {name: [run for run in its if run.round <= timed] for name, its in found.items()}
        rows = {f"{OURS} / {LOCAL}, median of rounds": (quick[OURS], quick[LOCAL])} if dag != SLEEPERS else {}
        compared = (COLD, warm) if rows and warm != COLD else ()
        for number in compared:
            rows[f"{OURS} / {LOCAL}, round {number}"] = (of(quick[OURS], number), of(quick[LOCAL], number))
        if compared:
            for name, its in quick.items():
                rows[f"{name}, round {warm} / round {COLD}"] = (of(its, warm), of(its, COLD))
        for name, (above, below) in rows.items():
            values = (statistics.median(map(f, above)) / statistics.median(map(f, below)) for f in FIGURES.values())
            print(f"{running:>7}  {dag:14}{name:36}" + "".join(f"{value:>10.2f}" for value in values))
        peaks = {name: max(run.peak for run in its) for name, its in found.items()}
        print(f"{running:>7}  {dag:14}{f'{OURS} / {LOCAL}, peak memory':36}{peaks[OURS] / peaks[LOCAL]:>10.2f}")


def show_shares(runs: list[Run]) -> None:
    """Print whose CPU time it was, and how much of the machine was in use: with all of it, nothing could be faster."""
    timed = max(run.round for run in runs) - 1
    parts = [*COMPONENTS, "tasks"]
    heads = "".join(f"{part:>15}" for part in parts)
    print(f"\nCPU s/task, median of rounds\n{'':15}{'running':>7}  {'dag':14}{heads}{'cores in use':>14}")
    groups: dict[tuple[int, str, str], list[Run]] = {}
    for run in runs:
        if run.round <= timed:
            groups.setdefault((run.running, run.dag, run.executor), []).append(run)
    for (running, dag, executor), found in sorted(groups.items()):
        figures = "".join(f"{statistics.median(run.shares[part] for run in found):>15.3f}" for part in parts)
        cores = statistics.median(run.cpu * run.tasks / (run.wall + 2 * SETTLE_SECONDS) for run in found)
        print(f"{executor:15}{running:>7}  {dag:14}{figures}{cores:>14.2f}")


def of(runs: list[Run], number: int) -> list[Run]:
    """The runs of one round."""
    return [run for run in runs if run.round == number]


def main(arguments: argparse.Namespace) -> int:
    """Measure, and print tables.

    :return: the exit code: 1 if a task did not succeed.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "orphans cannot be had")
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Airflow {version('apache-airflow')}, {'PostgreSQL' if arguments.postgresql else 'SQLite'}, "
        f"{arguments.tasks} tasks, {arguments.rounds} rounds"
    )
    print(f"{'':15}{'running':>7}  {'dag':14}{'round':>5}{'wall, s':>9}{'tasks/s':>9}{'CPU s/task':>12}", end="")
    print(f"{'start, s':>16}{'peak MB':>9}{'failed':>8}")
    runs: list[Run] = []
    notes: list[str] = []
    for place, running in enumerate(arguments.running):
        for executor in (LOCAL, OURS) if place % 2 == 0 else (OURS, LOCAL):
            measured, note = measure_installation(executor, running, arguments)
            runs += measured
            notes += [f"{executor}, {running} running: {note}"] if note else []
    show_ratios(runs)
    show_shares(runs)
    print("", *notes, sep="\n")
    return 1 if any(run.failed for run in runs) else 0


def setting(text: str) -> tuple[str, str]:
    """An environment variable and its value."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"not KEY=VALUE: {text!r}")
    return key, value


if __name__ == "__main__":
    exit_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100, help="of each DAG; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--running", type=int, nargs="+", default=[4, 32], help="tasks at a time; default: 4 32")
    parser.add_argument("--parallelism", type=int, default=32, help="of ours, at least; default: %(default)s")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite: a server of its own each")
    parser.add_argument(
        "--setting", type=setting, action="append", default=[], metavar="KEY=VALUE", help="for Airflow's environment"
    )
    sys.exit(main(parser.parse_args()))
