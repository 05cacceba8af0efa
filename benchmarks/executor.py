"""How Airflow's LocalExecutor and ours run the same DAGs, each in a real Airflow of its own (Linux).

Prints, for each run of a DAG: seconds from its start to its end, as Airflow reports them; tasks per second; CPU
seconds per task, of all processes of the installation; how long a task took to start, median and 95th percentile; and
how many tasks did not succeed. Then the CPU time by part, the ratios, the targets, and the memory of running tasks.

The DAGs: independent PythonOperator tasks that only write down the time (`empty_python`); independent BashOperator
tasks of `true` (`true_bash`); a chain of ten of the former (`chain`); and tasks that group some thousand rows with
pandas and select from a table in memory with SQLAlchemy (`pandas_sql`). The file of the last one imports pandas,
SQLAlchemy and requests, which takes many times as long as the work. `constraints-executor.txt` has the versions. The
benchmark installs them in an environment of its own, see `packages.py`.

Both executors take turns, one run of a DAG each, and the order changes with each pair of runs. For each number of
tasks that run at a time, each executor has an installation. The installation that has no turn is stopped (SIGSTOP for
all of its processes). So it takes nothing from the other one, both meet the same state of the machine, and neither
starts anew between two rounds. If one installation ran all of its rounds first, the two would be measured in different
quarters of an hour. One thing differs from a real Airflow: idle supervisors of ours end after a minute, and a pause
counts, so that most runs begin without them. In the first round an installation is cold: the API server takes seconds
for its first answer to a task, and the fork server has learned nothing.

A start is counted from the time when Airflow queued the task: for Python until its own code runs, for bash until the
task instance has started, which is somewhat earlier. With LocalExecutor, [core] parallelism limits the running tasks.
A task that waits for a slot is then not queued, unless a supervisor occupies a slot although its task has succeeded,
see docs/decisions/repeated-work.md. With ours a user sets two numbers: [air_executor] max_running_tasks limits the
running tasks; [core] parallelism, which is larger, limits those that are handed over, so that the next one is there
when one ends. The wait for a slot is then part of the start, except in `chain`, where none waits. The pool has room
for all, and the scheduler may queue 64 tasks at once, so that neither of them decides. The API server may have as many
connections to the database as it has requests: with its default of 15, requests that need a second one wait for each
other, and many tasks that start at once stand still for 30 s.

The CPU time of a run includes that of an idle Airflow meanwhile, and a second before and after, in which the processes
of the last tasks end. Its part `tasks` is the rest: task processes and their supervisors. If nearly all cores are in
use, a task can be no faster than its CPU time allows.

The memory is that of tasks that wait, of a DAG without and of one with pandas. Each executor has a fresh installation
for it, which has run such tasks twice before. PSS counts shared memory once. LocalExecutor starts all of its workers
in advance, so compare the totals, and not the growth.

With `--on slurm kubernetes` it measures something else: a task on these, beside their own command line, see
`clusters.py`. There only `--rounds`, `--postgresql` and `--setting` count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import accounting
from accounting import FORK_SERVER, MANAGER
from executor_dags import BASH, CHAIN, EMPTY, PANDAS, WAITING, WAITING_PANDAS, write_dag
from packages import begin_anew_with

from tests.support.installation import COMPONENTS, Installation
from tests.support.processes import exit_on_sigterm
from tests.support.waiting import wait_until

LOCAL, OURS = "LocalExecutor", "ours"
CLASSES = {LOCAL: LOCAL, OURS: "airflow_provider_air_executor.executor.AirExecutorExecutor"}
ROUND_DAGS = (EMPTY, BASH, CHAIN, PANDAS)
COLD, WARM = 1, 3  # the rounds that are compared; if there are fewer, the last one is the warm one
CHAIN_TASKS = 10
RUN_SECONDS = 1800  # after which a run fails
SETTLE_SECONDS = 1.0  # around a run, so that its processes have ended when the CPU time is read
LEARN_SECONDS = 10.0  # in which a fork server may make use of what it has learned, before the memory is looked at
PAGE = 100  # task instances that the API lists at once
CONSTRAINTS = Path(__file__).with_name("constraints-executor.txt")
# By DAG and number of running tasks: the least tasks per second, and the most CPU time per task, in LocalExecutor's.
TARGETS: dict[tuple[str, int], tuple[float | None, float]] = {
    (PANDAS, 4): (5.0, 0.2),
    (PANDAS, 32): (3.0, 0.2),
    (EMPTY, 4): (None, 0.6),
    (EMPTY, 32): (1.3, 0.6),
}
PARTS = (*COMPONENTS, MANAGER, FORK_SERVER, "tasks")


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


class Used(NamedTuple):
    """The memory of an installation in MB (PSS), in which tasks run and wait."""

    executor: str
    dag: str
    tasks: int
    components: float  # of Airflow itself
    rest: float  # the tasks, and what runs them
    idle: float  # the same, before
    task: float  # USS of a supervisor and its task, median


FIGURES: dict[str, Callable[[Run], float]] = {
    "tasks/s": lambda run: run.tasks / run.wall,
    "CPU/task": lambda run: run.cpu,
    "start": lambda run: run.median,
    "p95": lambda run: run.p95,
}


# -- runs --------------------------------------------------------------------------------------------------


class MeasuredAirflow(Installation):
    """A running Airflow with the DAGs of the benchmark."""

    def __init__(
        self, directory: Path, executor: str, running: int, sizes: dict[str, int], arguments: argparse.Namespace
    ) -> None:
        self.executor, self.running = executor, running
        self._marks, self._go = directory / "marks", directory / "go"
        self._sizes = sizes
        self._stopped: set[int] = set()
        dags = directory / "dags"
        dags.mkdir()
        for dag_id, number in sizes.items():
            write_dag(dags, dag_id, number, self._marks, self._go)
        parallelism = running if executor == LOCAL else max(arguments.parallelism, 2 * running)
        settings = {
            "AIRFLOW__CORE__EXECUTOR": CLASSES[executor],
            "AIRFLOW__CORE__PARALLELISM": str(parallelism),
            "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": str(running),
            "AIRFLOW__CORE__DEFAULT_POOL_TASK_SLOT_COUNT": str(max(128, parallelism)),
            "AIRFLOW__SCHEDULER__MAX_TIS_PER_QUERY": "64",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_MAX_OVERFLOW": "-1",
            **dict(arguments.setting),
        }
        super().__init__(dags, settings, postgresql=arguments.postgresql)

    def pause(self) -> None:
        """Stand still. No other installation may run meanwhile."""
        self._stopped = accounting.stop_all()

    def resume(self) -> None:
        """Go on, and be healthy again."""
        accounting.resume(self._stopped)
        self._stopped = set()
        self.wait_until_healthy()

    def close(self) -> None:
        """End everything, although it may stand still."""
        accounting.resume(self._stopped)
        super().close()

    def _components(self) -> dict[str, int]:
        return {part: self.pid_of(part) for part in COMPONENTS}

    def measure(self, dag_id: str, number: int, spared: set[int]) -> Run:
        """Run a DAG.

        :param number: of the round.
        :param spared: processes that are not ours to wait for.
        """
        self.wait_for_dag(dag_id)
        self._marks.unlink(missing_ok=True)
        time.sleep(SETTLE_SECONDS)
        accounting.reap(spared)
        before, shares_before = accounting.cpu_seconds(), accounting.shares(self._components())
        run_id = self.trigger(dag_id)
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"
        what = f"{dag_id} has ended"
        wait_until(lambda: self.has_ended(dag_id, run_id), timeout=RUN_SECONDS, what=what, interval=0.25)
        time.sleep(SETTLE_SECONDS)
        accounting.reap(spared)
        cpu, shares = accounting.cpu_seconds() - before, accounting.shares(self._components())
        run = self.api(path)
        instances: list[dict[str, Any]] = []
        tasks = self._sizes[dag_id]
        for offset in range(0, tasks, PAGE):
            instances += self.api(f"{path}/taskInstances?limit={PAGE}&offset={offset}")["task_instances"]
        failed = tasks - sum(instance["state"] == "success" for instance in instances)
        wall = seconds(run["end_date"]) - seconds(run["start_date"])
        starts = sorted(self._starts(instances, is_python=dag_id != BASH))
        cpu /= tasks
        shares = {part: (used - shares_before[part]) / tasks for part, used in shares.items()}
        shares["tasks"] = cpu - sum(shares.values())
        return Run(self.executor, self.running, dag_id, number, tasks, wall, cpu, starts, failed, shares)

    def has_ended(self, dag_id: str, run_id: str) -> bool:
        """Whether a DAG run has ended: asked from the database, since an answer of the API server takes its time."""
        return self.run_state(dag_id, run_id) in ("success", "failed")

    def _starts(self, instances: list[dict[str, Any]], *, is_python: bool) -> Iterator[float]:
        """How long each task took to start."""
        told = {name: float(at) for name, at in map(str.split, self._begun())}
        for instance in instances:
            began = told.get(instance["task_id"]) if is_python else seconds(instance["start_date"])
            if began and instance["queued_when"]:
                yield began - seconds(instance["queued_when"])

    def _begun(self) -> list[str]:
        return self._marks.read_text().splitlines() if self._marks.exists() else []

    def memory_of(self, dag_id: str) -> Used:
        """Run a DAG whose tasks wait, and look at the memory when all of them do."""
        self.wait_for_dag(dag_id)
        tasks = self._sizes[dag_id]
        idle = self._memory_now()[1]
        self._marks.unlink(missing_ok=True)
        run_id = self.trigger(dag_id)
        try:
            wait_until(
                lambda: len(self._begun()) == tasks or self.has_ended(dag_id, run_id),
                timeout=RUN_SECONDS,
                what=f"all tasks of {dag_id} run",
                interval=0.5,
            )
            time.sleep(2 * SETTLE_SECONDS)
            components, rest, task = self._memory_now()
        finally:
            self._go.touch()
        wait_until(lambda: self.has_ended(dag_id, run_id), timeout=RUN_SECONDS, what=f"{dag_id} has ended")
        self._go.unlink()
        return Used(self.executor, dag_id, tasks, components, rest, idle, task)

    def _memory_now(self) -> tuple[float, float, float]:
        """The PSS of Airflow's components, and of the rest; and the USS of a task with its supervisor, median."""
        processes = accounting.descendants()
        del processes[os.getpid()]
        seen = {pid: accounting.memory(pid) for pid in processes}
        components = accounting.of_components(self._components(), processes)
        rest = seen.keys() - components
        parents = {processes[pid].parent for pid in rest}
        leaves = [pid for pid in rest - parents if processes[pid].parent in rest]
        task = statistics.median([seen[pid].uss + seen[processes[pid].parent].uss for pid in leaves] or [0.0])
        return sum(seen[pid].pss for pid in components), sum(seen[pid].pss for pid in rest), task


def seconds(text: str | None) -> float:
    """A time of the API in seconds; 0 if there is none."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


@contextlib.contextmanager
def started(
    executor: str, running: int, sizes: dict[str, int], arguments: argparse.Namespace
) -> Iterator[MeasuredAirflow]:
    """An installation, of which nothing is left in the end."""
    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as directory:
        airflow = MeasuredAirflow(Path(directory), executor, running, sizes, arguments)
        try:
            with airflow:
                yield airflow
        finally:
            shutil.rmtree(airflow.home, ignore_errors=True)  # also if its own end is interrupted


def measure_in_turns(running: int, arguments: argparse.Namespace) -> Iterator[Run]:
    """Run all DAGs, round after round, with both executors."""
    sizes = {dag_id: CHAIN_TASKS if dag_id == CHAIN else arguments.tasks for dag_id in arguments.dags}
    with contextlib.ExitStack() as stack:
        stack.callback(accounting.end_the_rest, SETTLE_SECONDS)
        airflows: list[MeasuredAirflow] = []
        spared: set[int] = set()  # who has started these waits for them
        for executor in (LOCAL, OURS):
            if airflows:
                airflows[-1].pause()
            airflows.append(stack.enter_context(started(executor, running, sizes, arguments)))
            spared |= set(accounting.descendants())
        present = airflows[-1]
        for number in range(1, arguments.rounds + 1):
            for dag_id in arguments.dags:
                # Who was the second one is the first one in the next turn.
                for airflow in (present, *(one for one in airflows if one is not present)):
                    if airflow is not present:
                        present.pause()
                        airflow.resume()
                        present = airflow
                    yield airflow.measure(dag_id, number, spared)


def measure_memory(executor: str, arguments: argparse.Namespace) -> Iterator[Used]:
    """The memory of running tasks, with one executor."""
    sizes = dict.fromkeys((EMPTY, PANDAS, WAITING, WAITING_PANDAS), arguments.memory)
    with contextlib.ExitStack() as stack:
        stack.callback(accounting.end_the_rest, SETTLE_SECONDS)
        airflow = stack.enter_context(started(executor, arguments.memory, sizes, arguments))
        spared = set(accounting.descendants())
        for number in (1, 2):
            for dag_id in (EMPTY, PANDAS):
                airflow.measure(dag_id, number, spared)
        time.sleep(LEARN_SECONDS)
        for dag_id in (WAITING, WAITING_PANDAS):
            yield airflow.memory_of(dag_id)


# -- what is printed ---------------------------------------------------------------------------------------


def show(run: Run) -> None:
    """Print a row of the table."""
    start = f"{run.median:.2f} / {run.p95:.2f}"
    print(
        f"{run.executor:15}{run.running:>7}  {run.dag:14}{run.round:>5}{run.wall:>9.1f}{run.tasks / run.wall:>9.1f}"
        f"{run.cpu:>12.3f}{start:>16}{run.failed:>8}",
        flush=True,
    )


def show_ratios(runs: Sequence[Run]) -> None:
    """Print what is compared, as one divided by the other."""
    groups: dict[tuple[int, str], dict[str, list[Run]]] = {}
    for run in runs:
        groups.setdefault((run.running, run.dag), {LOCAL: [], OURS: []})[run.executor].append(run)
    warm = min(WARM, max(run.round for run in runs))
    print(f"\n{'running':>7}  {'dag':14}{'ratio':36}" + "".join(f"{name:>10}" for name in FIGURES))
    for (running, dag), its in sorted(groups.items()):
        rows = {f"{OURS} / {LOCAL}, median of rounds": (its[OURS], its[LOCAL])}
        if warm != COLD:
            for number in (COLD, warm):
                rows[f"{OURS} / {LOCAL}, round {number}"] = (of(its[OURS], number), of(its[LOCAL], number))
            for name, found in its.items():
                rows[f"{name}, round {warm} / round {COLD}"] = (of(found, warm), of(found, COLD))
        for name, (above, below) in rows.items():
            values = (ratio(figure, above, below) for figure in FIGURES.values())
            print(f"{running:>7}  {dag:14}{name:36}" + "".join(f"{value:>10.2f}" for value in values))
    show_targets(groups)


def ratio(figure: Callable[[Run], float], above: Sequence[Run], below: Sequence[Run]) -> float:
    """Of the medians of a figure."""
    return statistics.median(map(figure, above)) / statistics.median(map(figure, below))


def show_targets(groups: dict[tuple[int, str], dict[str, list[Run]]]) -> None:
    """Print which targets are met, with the medians of the rounds."""
    targets = [(key, target) for key, target in TARGETS.items() if key[::-1] in groups]
    if targets:
        print(f"\n{'running':>7}  {'dag':14}{'target':46}{'measured':>10}")
    for (dag, running), (faster, cpu) in targets:
        its = groups[running, dag]
        for name, wanted, sign in (("tasks/s", faster, 1), ("CPU/task", cpu, -1)):
            if wanted is not None:
                found = ratio(FIGURES[name], its[OURS], its[LOCAL])
                words = f"{name} at {'least' if sign > 0 else 'most'} {wanted:g} times {LOCAL}'s"
                met = "met" if sign * found >= sign * wanted else "missed"
                print(f"{running:>7}  {dag:14}{words:46}{found:>10.2f}  {met}")


def show_shares(runs: Sequence[Run]) -> None:
    """Print whose CPU time it was, and how much of the machine was in use: with all of it, nothing could be faster."""
    heads = "".join(f"{part:>15}" for part in PARTS)
    print(f"\nCPU s/task, median of rounds\n{'':15}{'running':>7}  {'dag':14}{heads}{'cores in use':>14}")
    groups: dict[tuple[int, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.running, run.dag, run.executor), []).append(run)
    for (running, dag, executor), found in sorted(groups.items()):
        figures = "".join(f"{statistics.median(run.shares[part] for run in found):>15.3f}" for part in PARTS)
        cores = statistics.median(run.cpu * run.tasks / (run.wall + 2 * SETTLE_SECONDS) for run in found)
        print(f"{executor:15}{running:>7}  {dag:14}{figures}{cores:>14.2f}")


def show_memory(found: Sequence[Used]) -> None:
    """Print the memory of running tasks."""
    tasks = found[0].tasks
    print(f"\nMemory of {tasks} running tasks, MB{'':4}components  tasks and what runs them  PSS/task  USS/task")
    print(f"{'':36}{'PSS':>10}{'PSS idle':>13}{'PSS running':>13}")
    for used in found:
        print(
            f"{used.executor:15}{used.dag:21}{used.components:>10.0f}{used.idle:>13.0f}{used.rest:>13.0f}"
            f"{used.rest / tasks:>10.1f}{used.task:>10.1f}"
        )
    for dag_id in (WAITING, WAITING_PANDAS):
        whole = {used.executor: used.rest for used in found if used.dag == dag_id}
        print(f"{OURS} / {LOCAL}, {dag_id}: {whole[OURS] / whole[LOCAL]:.2f}")


def of(runs: Sequence[Run], number: int) -> list[Run]:
    """The runs of one round."""
    return [run for run in runs if run.round == number]


def main(arguments: argparse.Namespace) -> int:
    """Measure, and print tables.

    :return: the exit code: 1 if a task did not succeed.
    """
    accounting.own_orphans()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Airflow {version('apache-airflow')}, {'PostgreSQL' if arguments.postgresql else 'SQLite'}, "
        f"pandas {version('pandas')}, {arguments.tasks} tasks, {arguments.rounds} rounds"
    )
    runs: list[Run] = []
    if arguments.rounds:
        print(f"{'':15}{'running':>7}  {'dag':14}{'round':>5}{'wall, s':>9}{'tasks/s':>9}{'CPU s/task':>12}", end="")
        print(f"{'start, s':>16}{'failed':>8}")
        for running in arguments.running:
            for run in measure_in_turns(running, arguments):
                runs.append(run)
                show(run)
        show_shares(runs)
        show_ratios(runs)
    if arguments.memory:
        show_memory([used for executor in (LOCAL, OURS) for used in measure_memory(executor, arguments)])
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
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s; 0: the memory alone")
    parser.add_argument("--running", type=int, nargs="+", default=[4, 32], help="tasks at a time; default: 4 32")
    parser.add_argument("--dags", nargs="+", choices=ROUND_DAGS, default=list(ROUND_DAGS), help="default: all")
    parser.add_argument("--memory", type=int, default=30, help="tasks for the memory; default: %(default)s; 0: none")
    parser.add_argument("--parallelism", type=int, default=32, help="of ours, at least; default: %(default)s")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite: a server of its own each")
    parser.add_argument(
        "--setting", type=setting, action="append", default=[], metavar="KEY=VALUE", help="for Airflow's environment"
    )
    parser.add_argument(
        "--on", nargs="+", choices=("slurm", "kubernetes"), help="measure tasks on these clusters, and nothing else"
    )
    parsed = parser.parse_args()
    if parsed.on:
        import clusters

        if parsed.rounds < 2:
            parser.error("--rounds must be at least 2 with --on")
        sys.exit(clusters.main(parsed))
    begin_anew_with(CONSTRAINTS, "pandas", "sqlalchemy", "requests")
    sys.exit(main(parsed))
