"""What it costs to have an engine run tasks through us, beside the engine's own command line in the same run.

Prints, for each engine: tasks per second for a number of tasks that print a letter, submitted at once, by the engine's
own command line and by a manager; how much longer ours takes, and how sure that is (the standard error of the mean);
the time of a single task (without `kubectl logs`), median of five; and the CPU use and memory of the manager with 1,000
tasks in flight, most of which wait for their turn. The two take turns at being the first, round after round, and the
median round counts. An engine that is faster gets more tasks, so that a round takes some seconds.

The command lines: `xargs -P` on this machine; `sbatch`, four at a time, and `squeue` until all have ended; `kubectl
create` with all Pods in one file, one `kubectl get --watch`, and then `kubectl logs`, several at a time, which is one
request for each Pod. The others write the output into files while they run; the overhead of ours over kubectl that
leaves it in the cluster is printed besides. What they leave out, and ours does, is overhead: exit codes and results of
all tasks. On this machine there is no engine besides the kernel: what xargs does not do (a shell that records start and
end of each task, a log of its own, a limit) is what ours takes longer.

Slurm and Kubernetes are the clusters of the tests, of two nodes on this machine (see `make slurm`, `make kubernetes`).
The nodes of Slurm have more room than in the tests: what a full node cannot take waits for one of the next ticks of
Slurm's scheduler, and a round, by either side, is then up to twice as long as the one before it.

    python benchmarks/engines.py [--engines slurm slurm-batches] [--tasks 40] [--rounds 10] [--in-flight 1000]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from airflow_provider_air_executor.jobs import inbox, manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.kubernetes_cluster import IMAGE, KubernetesCluster
from tests.support.kubernetes_cluster import PATH as KUBERNETES_PATH
from tests.support.run import Run
from tests.support.slurm_cluster import SlurmCluster
from tests.support.waiting import wait_until

SINGLE = 5
SETTLE_SECONDS, WATCHED_SECONDS = 30, 30
AT_A_TIME = 16  # tasks that this machine runs together
SLOTS = 36  # of a node of Slurm
READ_TOGETHER = 8  # Pods; one kubectl makes ten requests at once, and then five a second


class Local:
    """The local engine, and xargs."""

    look_every = 0.01  # seconds between two looks whether all have ended; a time may be too long by so much
    name, command_line = "local", "xargs -P 16"
    factor = 25  # as many tasks as Kubernetes
    environment: dict[str, str] = {}
    config: dict[str, Any] = {"max_concurrent_runners": AT_A_TIME}

    def by_command_line(self, tasks: int) -> None:
        """Have tasks run, and wait for their end."""
        words = ["xargs", "-P", str(AT_A_TIME), "-n", "1", "/bin/echo"]
        subprocess.run(words, input="\n".join("x" * tasks).encode(), stdout=subprocess.DEVNULL, check=True)

    def clean(self) -> None:
        """Leave nothing of it."""

    def close(self) -> None:
        """End the engine."""


class Slurm:
    """The Slurm engine, and sbatch."""

    look_every = 0.1
    name, command_line = "slurm", "sbatch, squeue"
    factor = 6

    def __init__(self) -> None:
        self._cluster = SlurmCluster(SLOTS).start()
        self._output = tempfile.TemporaryDirectory(prefix="air-executor-benchmark-")
        self.environment = self._cluster.environment
        self.config: dict[str, Any] = {"runner": "slurm", "runners": {"slurm": {"poll_interval": 1}}}

    def by_command_line(self, tasks: int) -> None:
        """Have tasks run, and wait for their end."""
        words = ["sbatch", "--parsable", f"--output={self._output.name}/%j", "--wrap=/bin/echo x"]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            said = pool.map(lambda _: self._cluster.call(*words, check=True), range(tasks))
            numbers = {line.strip() for line in said}
        states = ["squeue", "--noheader", "--format=%i"]
        are_over = lambda: not numbers & set(self._cluster.call(*states).split())  # noqa: E731
        wait_until(are_over, what="all ended", timeout=300, interval=self.look_every)

    def clean(self) -> None:
        """Leave nothing of it."""
        self._cluster.cancel_all()

    def close(self) -> None:
        """End the engine."""
        self._cluster.close()
        self._output.cleanup()


class SlurmBatches(Slurm):
    """The same, with tasks that share batch jobs."""

    name = "slurm-batches"

    def __init__(self) -> None:
        super().__init__()
        self.config["runners"]["slurm"]["tasks_per_submission"] = 20


class Kubernetes:
    """The Kubernetes engine, and kubectl."""

    look_every = 0.05
    name, command_line = "kubernetes", "kubectl create, get, logs"
    factor = 1

    def __init__(self) -> None:
        self._cluster = KubernetesCluster().start()
        self.environment = self._cluster.environment
        options = {"image": IMAGE, "pod_template": {"spec": {"hostNetwork": True}}, "ttl": 3600}
        self.config: dict[str, Any] = {"runner": "kubernetes", "runners": {"kubernetes": options}}
        self._round = 0

    def by_command_line(self, tasks: int) -> None:
        """Have tasks run, and wait for their end."""
        self._round += 1
        container = {"name": "task", "image": IMAGE, "command": ["/bin/echo", "x"]}
        spec = {"restartPolicy": "Never", "hostNetwork": True, "automountServiceAccountToken": False}
        pods = [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": f"p{self._round}-{number}",
                    "labels": {"round": str(self._round), "part": str(number // READ_TOGETHER)},
                },
                "spec": {**spec, "containers": [container]},
            }
            for number in range(tasks)
        ]
        listed = {"apiVersion": "v1", "kind": "List", "items": pods}
        self._cluster.kubectl("create", "-f", "-", text=json.dumps(listed))
        words = ["kubectl", "get", "pods", "--watch", "-l", f"round={self._round}"]
        words += ["-o", 'jsonpath={.metadata.name} {.status.phase}{"\\n"}']
        environment = {**os.environ, **self.environment, "PATH": KUBERNETES_PATH}
        done: set[str] = set()
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                if line.endswith(" Succeeded\n"):
                    done.add(line.split()[0])
                if len(done) == tasks:
                    break
            process.terminate()

    def read_output(self, tasks: int) -> None:
        """Read what the tasks have printed."""
        words = ["logs", "--tail=-1", f"--max-log-requests={READ_TOGETHER}"]
        selectors = [f"round={self._round},part={part}" for part in range(math.ceil(tasks / READ_TOGETHER))]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda selector: self._cluster.kubectl(*words, "-l", selector), selectors)
            assert "".join(found).split() == ["x"] * tasks

    def clean(self) -> None:
        """Leave nothing of it."""
        self._cluster.cancel_all()

    def close(self) -> None:
        """End the engine."""
        self._cluster.close()


class PodBatches(Kubernetes):
    """The same, with tasks that share Pods."""

    name = "kubernetes-batches"

    def __init__(self) -> None:
        super().__init__()
        self.config["runners"]["kubernetes"]["tasks_per_submission"] = 20


class Manager:
    """A manager on a temporary base path."""

    def __init__(self, engine: Any) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="air-executor-benchmark-")
        self.store = JobStore(self._directory.name)
        self._look_every: float = engine.look_every
        Path(self._directory.name, "config.yaml").write_text(yaml.safe_dump(engine.config))
        command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", "manager", "--log-level", "ERROR"]
        command += ["--base-path", self._directory.name, "--kill-grace", "1"]
        self.process = subprocess.Popen(command, env={**os.environ, **engine.environment})
        wait_until(lambda: manager_status.pid(self.store) == self.process.pid, what="it runs", timeout=30)
        self._numbers = iter(range(1 << 30))

    def run(self, tasks: int) -> None:
        """Have tasks run, and wait for their end."""
        name = f"j{next(self._numbers)}"
        self.store.submit(name, [{"command": "/bin/echo", "args": ["x"]}] * tasks, max_parallel_tasks=tasks)
        has_ended = lambda: self.store.get_job(name).state.is_terminal  # noqa: E731
        wait_until(has_ended, what="it has ended", timeout=300, interval=self._look_every)
        job = self.store.get_job(name)
        assert job.state == "completed", job

    def usage_in_flight(self, tasks: int) -> tuple[float, float]:
        """CPU in percent of a core, and memory in MiB, with so many tasks in flight."""
        task = {"command": "sleep", "args": ["900"], "resources": {"cpus": 0.2}}
        self.store.submit("flight", [task] * tasks, max_parallel_tasks=tasks)
        submitted = lambda: all(task.where for task in self.store.get_tasks("flight"))  # noqa: E731
        wait_until(submitted, what="the engine has them all", timeout=600, interval=1)
        time.sleep(SETTLE_SECONDS)
        before = self._cpu_seconds()
        time.sleep(WATCHED_SECONDS)
        used = self._cpu_seconds() - before
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        (memory,) = (int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS"))
        inbox.cancel(self.store, "flight")
        wait_until(lambda: self.store.get_job("flight").state.is_terminal, what="it is over", timeout=600, interval=0.5)
        return 100 * used / WATCHED_SECONDS, memory / 1024

    def _cpu_seconds(self) -> float:
        """Of the manager, and of the command lines that it has started and that have ended."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(fields[place]) for place in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)
        self._directory.cleanup()


def seconds(action: Any, *arguments: Any) -> float:
    """How long an action takes."""
    begun = time.monotonic()
    action(*arguments)
    return time.monotonic() - begun


def overhead(ours: list[float], theirs: list[float]) -> str:
    """How much longer ours takes."""
    of_medians = statistics.median(ours) / statistics.median(theirs) - 1
    of_means = statistics.mean(ours) / statistics.mean(theirs) - 1
    spread = math.hypot(*(statistics.stdev(side) / statistics.mean(side) for side in (theirs, ours)))
    error = (1 + of_means) * spread / math.sqrt(len(ours))
    return f"{100 * of_medians:.1f} %, of the means {100 * of_means:.1f} ± {100 * error:.1f} %"


def measure(engine: Any, tasks: int, rounds: int, in_flight: int) -> None:
    """Print the figures of one engine."""
    with contextlib.closing(Manager(engine)) as manager:
        theirs: list[float] = []
        ours: list[float] = []
        without_output: list[float] = []
        for number in range(rounds + 1):  # the first warms up
            sides = [(theirs, engine.by_command_line), (ours, manager.run)]
            for side, run in sides if number % 2 else reversed(sides):
                side.append(seconds(run, tasks))
                if side is theirs and isinstance(engine, Kubernetes):
                    without_output.append(side[-1])
                    side[-1] += seconds(engine.read_output, tasks)
                engine.clean()
        theirs, ours, without_output = theirs[1:], ours[1:], without_output[1:]
        single = [
            statistics.median(seconds(run, 1) for _ in range(SINGLE)) for run in (engine.by_command_line, manager.run)
        ]
        engine.clean()
        print(f"{engine.name}: {tasks} tasks, {rounds} rounds")
        for name, found, one in ((engine.command_line, theirs, single[0]), ("air-executor", ours, single[1])):
            times = " ".join(f"{each:.2f}" for each in found)
            rate = tasks / statistics.median(found)
            print(f"  {name:28} {rate:8.2f} tasks/s   one {1000 * one:7.0f} ms   ({times} s)")
        print(f"  overhead {overhead(ours, theirs)}", flush=True)
        if without_output:
            rate = tasks / statistics.median(without_output)
            print(f"  without kubectl logs: {rate:.2f} tasks/s, overhead {overhead(ours, without_output)}", flush=True)
        if in_flight and engine.name != "local":
            cpu, memory = manager.usage_in_flight(in_flight)
            print(f"  {in_flight} in flight: {cpu:.2f} % of a core, {memory:.0f} MiB", flush=True)


ENGINES = (Local, Slurm, SlurmBatches, Kubernetes, PodBatches)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=[engine.name for engine in ENGINES])
    parser.add_argument("--tasks", type=int, default=40, help="for the slowest engine")
    parser.add_argument("--rounds", type=int, default=10, help="at least 2")
    parser.add_argument("--in-flight", type=int, default=1000)
    given = parser.parse_args()
    if given.rounds < 2:
        parser.error("--rounds must be at least 2")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}")
    for make in ENGINES:
        if make.name in given.engines:
            with contextlib.closing(make()) as engine:
                measure(engine, given.tasks * engine.factor, given.rounds, given.in_flight)


if __name__ == "__main__":
    with Run():
        main()
