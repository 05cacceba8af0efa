"""What it costs to wait for many jobs in one event loop, beside a poll per trigger as other providers have it (Linux).

For each number of waiters, and for ours and the poll in turns: seconds of CPU per second, in percent of a core, while
no job ends, and while 20 a second do; and how long after the end of a job its trigger fires, median and 99th
percentile. A process of its own ends the jobs, by writing their state.json as the manager does.

The poll reads state.json in a thread every 5 s (ours also has 5 s between two passes for systems that do not notify).
It does not log the progress, and ours does.

With --airflow, the same is measured in a real triggerer: so many sensors that start from their trigger, of which each
has a task of its own in one DAG. Then what Airflow itself does for a waiter counts too: it is measured beside a trigger
that only sleeps. The time is that of the line in the triggerer's log that says that a trigger has fired.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("AIRFLOW__LOGGING__LOGGING_LEVEL", "WARNING")  # here, not in the triggerer of --airflow

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_air_executor.jobs.models import JobState, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.triggers import AirExecutorJobTrigger
from tests.support.jobs import publish_job
from tests.support.run import Run
from tests.support.waiting import wait_until

OURS, POLL, SLEEP = "ours", "a poll per trigger", "only sleeps"
POLL_SECONDS = 5.0
PER_SECOND = 20
SETTLE_SECONDS = 8.0
_NAME = re.compile(r"'job_name': '(w\d+)'")
_SEED = 1


class PollTrigger(BaseTrigger):
    """Reads the state of a job every few seconds."""

    def __init__(self, job_name: str, base_path: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job_name = job_name
        self.base_path = base_path

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments."""
        return "benchmarks.triggers.PollTrigger", {"job_name": self.job_name, "base_path": self.base_path}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the job has ended."""
        path = JobStore(self.base_path).paths(self.job_name).state
        while json.loads(await asyncio.to_thread(path.read_bytes))["state"] == "working":  # noqa: ASYNC110 - a poll
            await asyncio.sleep(POLL_SECONDS)
        yield TriggerEvent({"status": "completed", "job_name": self.job_name, "message": ""})


class SleepTrigger(PollTrigger):
    """Waits, and never looks."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class and its arguments."""
        return "benchmarks.triggers.SleepTrigger", super().serialize()[1]

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep for a day."""
        await asyncio.sleep(86_400)
        yield TriggerEvent({})


TRIGGERS = {OURS: AirExecutorJobTrigger, POLL: PollTrigger, SLEEP: SleepTrigger}


def make_jobs(store: JobStore, number: int) -> None:
    """Jobs that work, as far as their files tell."""
    for index in range(number):
        job = store.submit(f"w{index}", ["true"], durable=False)
        publish_job(store, job.evolve(state=JobState.WORKING, attempt=1, started_at=utc_now()))


def end_jobs(base_path: str, names: list[str]) -> None:
    """End jobs at an even pace, and print when: what the process does that ends them."""
    store = JobStore(base_path)
    began = time.monotonic()
    for index, name in enumerate(names):
        ended = store.get_job(name).evolve(state=JobState.COMPLETED, updated_at=utc_now())
        time.sleep(max(0.0, began + index / PER_SECOND - time.monotonic()))
        publish_job(store, ended)
        print(name, time.time(), flush=True)


def those_that_end(number: int, seconds: float) -> list[str]:
    """Some of the jobs, by chance, but always the same ones."""
    ending = min(number, int(PER_SECOND * seconds))
    return [f"w{index}" for index in random.Random(_SEED).sample(range(number), ending)]


@contextlib.contextmanager
def another_process(store: JobStore, names: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The process that ends jobs."""
    command = [sys.executable, __file__, "--end", str(store.base_path), *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def measure(kind: str, number: int, seconds: float) -> dict[str, float]:
    """Wait for so many jobs in this process."""
    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as directory:
        store = JobStore(directory)
        make_jobs(store, number)
        fired: dict[str, float] = {}

        async def wait(name: str) -> None:
            if kind == POLL:
                await asyncio.sleep(random.random() * POLL_SECONDS)  # as they come in a triggerer, not all at once
            async for event in TRIGGERS[kind](name, str(store.base_path)).run():
                fired[event.payload["job_name"]] = time.time()

        waiting = [asyncio.create_task(wait(f"w{index}")) for index in range(number)]
        await asyncio.sleep(SETTLE_SECONDS + number / 1000)
        idle = await _cpu_over(seconds)
        names = those_that_end(number, seconds)
        ends: dict[str, float] = {}
        with another_process(store, names) as process:
            assert process.stdout is not None
            cpu, began = time.process_time(), time.monotonic()
            while line := await asyncio.to_thread(process.stdout.readline):
                name, at = line.split()
                ends[name] = float(at)
            await asyncio.to_thread(wait_until, lambda: len(fired) == len(names), timeout=60, what="all have fired")
            busy = (time.process_time() - cpu) / (time.monotonic() - began)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return {"idle": idle, "busy": busy, **_percentiles([fired[name] - ends[name] for name in names])}


async def _cpu_over(seconds: float) -> float:
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    return (time.process_time() - cpu) / (time.monotonic() - began)


def _percentiles(latencies: list[float]) -> dict[str, float]:
    return {"p50": statistics.median(latencies), "p99": statistics.quantiles(latencies, n=100, method="inclusive")[98]}


# -- in a real triggerer -----------------------------------------------------------------------------------

DAG_TASKS = 10  # of a DAG; all of it is handed to the triggerer with each trigger that a task of it starts from
DAG_FILE = """\
import datetime

from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import StartTriggerArgs

from benchmarks.triggers import TRIGGERS


class Waits(BaseOperator):
    def __init__(self, trigger, **kwargs):
        super().__init__(**kwargs)
        classpath, arguments = trigger.serialize()
        self.start_from_trigger = True
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=classpath, trigger_kwargs=arguments, next_method="execute_complete"
        )

    def execute_complete(self, context, event=None):
        pass


for first in range(0, {number}, {tasks}):
    with DAG(f"waits{{first}}", schedule=None, start_date=datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)):
        for index in range(first, min(first + {tasks}, {number})):
            Waits(task_id=f"t{{index}}", trigger=TRIGGERS[{kind!r}](f"w{{index}}", {base_path!r}))
"""


def logged(home: Path, text: str) -> list[dict[str, Any]]:
    """The lines with this text in the logs of all triggers."""
    lines = (line for path in home.glob("logs/**/*.trigger.*") for line in path.read_text().splitlines())
    return [json.loads(line) for line in lines if text in line]


def cpu_of(root: int) -> float:
    """CPU seconds of a process and its descendants so far."""
    parents: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            ticks = sum(int(fields[index]) for index in (11, 12, 13, 14))
            parents[int(path.parent.name)] = int(fields[1]), ticks / os.sysconf("SC_CLK_TCK")
    total, group = 0.0, {root}
    while group:
        total += sum(parents[pid][1] for pid in group if pid in parents)
        group = {pid for pid, (parent, _) in parents.items() if parent in group}
    return total


def measure_in_airflow(kind: str, number: int, seconds: float) -> dict[str, float]:
    """Wait for so many jobs in a real triggerer."""
    from tests.support.installation import Installation

    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as directory:
        store = JobStore(Path(directory) / "base")
        make_jobs(store, number)
        dags = Path(directory) / "dags"
        dags.mkdir()
        (dags / "waits.py").write_text(
            DAG_FILE.format(number=number, tasks=DAG_TASKS, kind=kind, base_path=str(store.base_path))
        )
        settings = {
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "AIRFLOW__TRIGGERER__CAPACITY": str(number),
            "AIRFLOW__CORE__DAG_FILE_PROCESSOR_TIMEOUT": "300",
        }
        with Installation(dags, settings) as airflow:
            airflow.api(
                "/pools/default_pool?update_mask=slots", {"name": "default_pool", "slots": 100_000}, method="PATCH"
            )
            for first in range(0, number, DAG_TASKS):
                airflow.trigger(f"waits{first}")
            wait_until(
                lambda: len(logged(airflow.home, " starting")) >= number, timeout=600, what="all wait", interval=2
            )
            time.sleep(SETTLE_SECONDS)
            triggerer = airflow.pid_of("triggerer")
            cpu, began = cpu_of(triggerer), time.monotonic()
            time.sleep(seconds)
            found = {"idle": (cpu_of(triggerer) - cpu) / (time.monotonic() - began)}
            if kind == SLEEP:
                return found
            names, ends = those_that_end(number, seconds), {}
            cpu, began = cpu_of(triggerer), time.monotonic()
            with another_process(store, names) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    name, at = line.split()
                    ends[name] = float(at)
            time.sleep(POLL_SECONDS + 2)
            found["busy"] = (cpu_of(triggerer) - cpu) / (time.monotonic() - began)
            fired = {
                match[1]: datetime.fromisoformat(line["timestamp"]).timestamp()
                for line in logged(airflow.home, "Trigger fired event")
                if (match := _NAME.search(str(line["result"])))
            }
            return {**found, **_percentiles([fired[name] - ends[name] for name in names])}


def main(arguments: argparse.Namespace) -> None:
    """Measure, and print a table."""
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Airflow {version('apache-airflow')}"
    )
    print(f"{'waiters':>8}  {'':24}{'CPU idle':>10}{'CPU, 20 end/s':>15}{'fires after, p50':>18}{'p99':>10}")
    for number in arguments.waiters:
        for kind in (OURS, POLL):
            show(number, kind, asyncio.run(measure(kind, number, arguments.seconds)))
    for number in arguments.airflow:
        for kind in (SLEEP, OURS, POLL):
            show(number, f"triggerer, {kind}", measure_in_airflow(kind, number, arguments.seconds))


def show(number: int, what: str, found: dict[str, float]) -> None:
    """Print a row."""
    row = f"{number:>8}  {what:30}{100 * found['idle']:>6.2f} %"
    if "p50" in found:
        row += f"{100 * found['busy']:>13.2f} %{1000 * found['p50']:>15.1f} ms{1000 * found['p99']:>7.1f} ms"
    print(row, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiters", type=int, nargs="*", default=[100, 1_000, 10_000], help="default: %(default)s")
    parser.add_argument("--airflow", type=int, nargs="*", default=[], help="numbers of waiters in a real triggerer")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement; default: %(default)s")
    parser.add_argument("--end", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.end:
        end_jobs(given.end[0], given.end[1:])
    else:
        with Run():
            main(given)
