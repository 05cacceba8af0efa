"""What the executor adds to the time of a task on Slurm and Kubernetes, and where that time goes.

    python benchmarks/executor.py --on slurm kubernetes [--rounds 20]

A real Airflow hands over one task at a time, which does nothing, and three ways of running it take turns: our executor;
one command line for each task (`sbatch`, `kubectl create`), with the same program, workload file, environment and needs
(`by_hand.py`); and ours without compiled modules. Each round has another order. The clusters are those of the tests,
of two nodes on this machine.

Counted is from the time when Airflow queued the task until its end, as Airflow has both; so neither side has to find
out that a task has ended. What ours takes longer is the overhead: of the medians, of the means with the standard error
of that, and of each round by itself. The command line of `sbatch` or `kubectl` itself is part of both.

The time on the node, from the start of Python on, is divided into imports, which each process notes itself
(`import_clock.py`), the DAG file without its imports, and the rest: Airflow's requests to its API server, its
processes, and the task.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from engines import overhead

from tests.support import slurm_cluster
from tests.support.installation import EXECUTOR, ROOT, Installation
from tests.support.kubernetes_cluster import IMAGE, KubernetesCluster
from tests.support.kubernetes_cluster import PATH as KUBERNETES_PATH
from tests.support.kubernetes_cluster import missing as missing_for_kubernetes
from tests.support.processes import is_gone
from tests.support.run import Run
from tests.support.waiting import wait_until

OURS, BY_HAND, NOT_COMPILED = "ours", "by_hand", "ours_not_compiled"
SIDES = (OURS, BY_HAND, NOT_COMPILED)
ORDERS = list(itertools.permutations(SIDES))
TARGET = 5  # percent that ours may take longer than the command line
COMMAND = [sys.executable, "-P", "-m", "airflow_provider_air_executor.workload"]
SETTLE_SECONDS = 1.0  # between two tasks
TASK_SECONDS = 900  # after which a task fails
DAG = """\
import os, time
began = time.time()
import datetime
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG


def work():
    pass


with DAG({name!r}, schedule=None, start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)):
    PythonOperator(task_id="task", python_callable=work, queue={name!r}, executor={executor!r})
if "BENCHMARK_STAMPS" in os.environ:
    with open(os.environ["BENCHMARK_STAMPS"], "a") as file:
        file.write(f"file {{os.getpid()}} {{began:.6f}} {{time.time() - began:.6f}}\\n")
"""


@dataclass(frozen=True)
class Times:
    """The times of a task, in seconds.

    :param whole: from the time when Airflow queued it until its end.
    :param before: of that, until Python has started on the node.
    :param imports: on the node.
    :param dag_file: without imports.
    """

    whole: float
    before: float
    imports: float
    dag_file: float

    @property
    def on_node(self) -> float:
        """From the start of Python until the end of the task."""
        return self.whole - self.before

    @property
    def rest(self) -> float:
        """What is neither imports nor the DAG file, on the node."""
        return self.on_node - self.imports - self.dag_file


# -- clusters ----------------------------------------------------------------------------------------------


class Cluster(Protocol):
    """What a cluster is to the benchmark."""

    name: str
    command_line: str
    by_hand: str  # the class of by_hand.py
    environment: dict[str, str]

    def queue(self, shared: Sequence[Path]) -> dict[str, Any]:
        """The settings of a queue of the executor.

        :param shared: directories that a node must see.
        """

    def description(self, shared: Sequence[Path]) -> dict[str, Any]:
        """The same for the executor by hand."""

    def close(self) -> None:
        """End it."""


class Slurm:
    """The cluster of the tests of Slurm."""

    name, command_line = "slurm", "sbatch"
    by_hand = "SbatchExecutor"

    def __init__(self) -> None:
        self._cluster = slurm_cluster.SlurmCluster(slots=4, memory=16_000).start()
        self.environment = self._cluster.environment

    def queue(self, shared: Sequence[Path]) -> dict[str, Any]:
        """The settings of a queue of the executor."""
        return {"runner": "slurm", "resources": {"memory": "1Gi"}}

    def description(self, shared: Sequence[Path]) -> dict[str, Any]:
        """What the executor by hand is told."""
        return {"options": ["--mem=1024M"]}

    def close(self) -> None:
        """End it."""
        self._cluster.close()


class Kubernetes:
    """The cluster of the tests of Kubernetes. The image has no Python: the Pods see that of this machine."""

    name, command_line = "kubernetes", "kubectl create"
    by_hand = "KubectlExecutor"

    def __init__(self) -> None:
        self._cluster = KubernetesCluster().start()
        self.environment = {**self._cluster.environment, "PATH": KUBERNETES_PATH}

    def _volumes(self, shared: Sequence[Path]) -> list[tuple[str, str]]:
        places = {"/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, str(ROOT), *map(str, shared)}
        outer = [place for place in sorted(places) if not any(place.startswith(f"{other}/") for other in places)]
        return [(f"v{number}", place) for number, place in enumerate(outer)]

    def queue(self, shared: Sequence[Path]) -> dict[str, Any]:
        """The settings of a queue of the executor."""
        volumes = [
            {"name": name, "hostPath": {"path": place}, "mountPath": place} for name, place in self._volumes(shared)
        ]
        template = {"spec": {"hostNetwork": True, "hostPID": True}}
        options = {"image": IMAGE, "pod_template": template, "volumes": volumes}
        resources = {"cpus": 0.3, "memory": "1Gi"}
        return {"runner": "kubernetes", "kubernetes": options, "python": sys.executable, "resources": resources}

    def description(self, shared: Sequence[Path]) -> dict[str, Any]:
        """What the executor by hand is told."""
        volumes = self._volumes(shared)
        container = {
            "name": "task",
            "image": IMAGE,
            "resources": {"requests": {"cpu": "300m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            "volumeMounts": [{"name": name, "mountPath": place} for name, place in volumes],
        }
        spec = {
            "restartPolicy": "Never",
            "hostNetwork": True,
            "hostPID": True,
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": [{"name": name, "hostPath": {"path": place}} for name, place in volumes],
        }
        return {"spec": spec}

    def close(self) -> None:
        """End it."""
        self._cluster.close()


def missing() -> dict[str, list[str]]:
    """What is not there, by cluster."""
    return {Slurm.name: slurm_cluster.missing(), Kubernetes.name: missing_for_kubernetes()}


# -- one task ----------------------------------------------------------------------------------------------


@dataclass
class Stamps:
    """What processes of a node have noted of one task: when each thing began, and when it was over."""

    began: float = 0.0
    pids: set[int] = field(default_factory=set)
    imports: list[tuple[float, float]] = field(default_factory=list)
    files: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Stamps:
        """Read the file to which they have written."""
        found = cls()
        for line in path.read_text().splitlines():
            kind, pid, began, seconds = line.split()
            span = float(began), float(began) + float(seconds)
            found.pids.add(int(pid))
            if kind == "process":
                found.began = found.began or span[0]
            else:
                (found.imports if kind == "import" else found.files).append(span)
        return found


def covered(spans: Sequence[tuple[float, float]], until: float) -> float:
    """How many seconds are in any of these spans, before a time."""
    total, end = 0.0, 0.0
    for first, last in sorted(spans):
        total += max(0.0, min(last, until) - max(first, end))
        end = max(end, min(last, until))
    return total


def within(spans: Sequence[tuple[float, float]], outer: tuple[float, float]) -> list[tuple[float, float]]:
    """The spans that lie in another one."""
    return [span for span in spans if outer[0] <= span[0] and span[1] <= outer[1]]


class MeasuredAirflow(Installation):
    """A running Airflow whose tasks go to a cluster.

    :param directory: for its files; nodes see it.
    :param settings: more of the environment of Airflow.
    """

    def __init__(self, cluster: Cluster, directory: Path, settings: dict[str, str], *, postgresql: bool) -> None:
        self._stamps = directory / "stamps"
        names = ("dags", "clock", "by_hand", "no_bytecode")
        dags, clock, by_hand, nothing = (directory / name for name in names)
        for path in (dags, clock, by_hand, nothing):
            path.mkdir()
        shutil.copy(Path(__file__).with_name("import_clock.py"), clock / "sitecustomize.py")
        for name in SIDES:
            executor = cluster.by_hand if name == BY_HAND else None  # ours is the first one, and so that of the others
            (dags / f"{name}.py").write_text(DAG.format(name=name, executor=executor))
        env = {"BENCHMARK_STAMPS": str(self._stamps), "PYTHONPATH": str(clock)}
        not_compiled = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(nothing)}
        queue = cluster.queue([directory])
        queues = {OURS: {**queue, "env": env}, NOT_COMPILED: {**queue, "env": {**env, **not_compiled}}}
        description = {**cluster.description([directory]), "command": COMMAND, "env": env, "directory": str(by_hand)}
        environment = {
            "AIRFLOW__CORE__EXECUTOR": f"{EXECUTOR},benchmarks.by_hand.{cluster.by_hand}",
            "AIRFLOW__AIR_EXECUTOR__QUEUES": json.dumps(queues),
            "BENCHMARK_BY_HAND": json.dumps(description),
            **cluster.environment,
        }
        commands = environment.get("PATH") or os.environ.get("PATH", os.defpath)
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), commands])
        super().__init__(dags, {**environment, **settings}, postgresql=postgresql)

    def measure(self, side: str) -> Times:
        """Run one task."""
        self._stamps.unlink(missing_ok=True)
        time.sleep(SETTLE_SECONDS)
        run_id = self.trigger(side)
        state, _ = self.follow(side, run_id, timeout=TASK_SECONDS)
        if state != "success":
            raise RuntimeError(f"the task of {side} has failed:\n{self.explain(side, run_id)}")
        found = Stamps.read(self._stamps)
        wait_until(lambda: all(map(is_gone, found.pids)), what="all of its processes have ended")
        (task,) = self.api(f"/dags/{side}/dagRuns/{quote(run_id, safe='')}/taskInstances")["task_instances"]
        queued, ended = (datetime.fromisoformat(task[key]).timestamp() for key in ("queued_when", "end_date"))
        imports = covered(found.imports, ended)
        (file,) = found.files
        in_file = covered(within(found.imports, file), ended)
        return Times(ended - queued, found.began - queued, imports, file[1] - file[0] - in_file)


# -- all of it ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(cluster: Cluster, arguments: argparse.Namespace) -> Iterator[MeasuredAirflow]:
    """An Airflow for a cluster, of which nothing is left in the end."""
    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as directory:
        Path(directory).chmod(0o711)
        airflow = MeasuredAirflow(cluster, Path(directory), dict(arguments.setting), postgresql=arguments.postgresql)
        with airflow:
            yield airflow


def measure(cluster: Cluster, arguments: argparse.Namespace) -> None:
    """Measure one cluster, and print its figures."""
    found: dict[str, list[Times]] = {side: [] for side in SIDES}
    print(f"\n{cluster.name}, seconds, and percent of the time on the node; round 0 warms up")
    print(f"{'':34}{'whole':>9}{'before':>9}{'on node':>9}{'imports':>14}{'DAG file':>14}{'rest':>14}")
    with started(cluster, arguments) as airflow:
        for number in range(arguments.rounds + 1):  # the first one warms up
            for side in ORDERS[number % len(ORDERS)]:
                times = airflow.measure(side)
                print(f"{number:>5} {row(names_of(cluster)[side], [times])}", flush=True)
                if number:
                    found[side].append(times)
    show(cluster, found)


def names_of(cluster: Cluster) -> dict[str, str]:
    """What the sides are called in tables."""
    return {OURS: "ours", BY_HAND: f"by hand: {cluster.command_line}", NOT_COMPILED: "ours, no compiled modules"}


def row(name: str, found: Sequence[Times]) -> str:
    """The medians of some tasks as a row of a table."""
    seconds = (statistics.median(getattr(times, key) for times in found) for key in ("whole", "before", "on_node"))
    parts = "".join(f"{part_of(found, key):>14}" for key in ("imports", "dag_file", "rest"))
    return f"{name:28}{''.join(f'{each:>9.2f}' for each in seconds)}{parts}"


def show(cluster: Cluster, found: dict[str, list[Times]]) -> None:
    """Print the figures of one cluster."""
    print(f"{cluster.name}, median of {len(found[OURS])} rounds")
    for side, name in names_of(cluster).items():
        print(f"{'':5} {row(name, found[side])}")
    whole_of = {side: [times.whole for times in found[side]] for side in SIDES}
    is_met = statistics.median(whole_of[OURS]) <= (1 + TARGET / 100) * statistics.median(whole_of[BY_HAND])
    print(f"overhead of ours over {cluster.command_line}: {overhead(whole_of[OURS], whole_of[BY_HAND])}")
    of_rounds = [100 * (ours / theirs - 1) for ours, theirs in zip(whole_of[OURS], whole_of[BY_HAND], strict=True)]
    first, middle, last = statistics.quantiles(of_rounds)
    print(f"  of each round by itself: median {middle:.1f} %, half of them from {first:.1f} to {last:.1f} %")
    print(f"  target: at most {TARGET} % of the medians, {'met' if is_met else 'missed'}")
    before_of = {side: statistics.median(times.before for times in found[side]) for side in (OURS, BY_HAND)}
    print(f"  of that until Python starts: {1000 * (before_of[OURS] - before_of[BY_HAND]):.0f} ms", flush=True)


def part_of(found: Sequence[Times], key: str) -> str:
    """The median of a part, in seconds and in percent of the time on the node."""
    seconds = statistics.median(getattr(times, key) for times in found)
    percent = 100 * statistics.median(getattr(times, key) / times.on_node for times in found)
    return f"{seconds:.2f} ({percent:.0f} %)"


CLUSTERS: tuple[type[Slurm | Kubernetes], ...] = (Slurm, Kubernetes)


def main(arguments: argparse.Namespace) -> int:
    """Measure, and print tables.

    :return: the exit code: 1 if a cluster is not there.
    """
    lacking = {name: words for name, words in missing().items() if words and name in arguments.on}
    if lacking:
        print("; ".join(f"{name} needs {', '.join(words)}" for name, words in lacking.items()), file=sys.stderr)
        return 1
    with Run():
        print(
            f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"Airflow {version('apache-airflow')}, {'PostgreSQL' if arguments.postgresql else 'SQLite'}, "
            f"load {os.getloadavg()[0]:.1f} before",
            flush=True,
        )
        for make in CLUSTERS:
            if make.name in arguments.on:
                with contextlib.closing(make()) as cluster:
                    measure(cluster, arguments)
        print(f"load {os.getloadavg()[0]:.1f} after")
    return 0
