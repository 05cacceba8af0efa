"""What the pages cost a real API server (Linux).

10,000 jobs are on disk, 200 of which go on changing while the list is asked for, over HTTP, one request after the other
as an open page does it, with different filters: median, 95th and 99th percentile in milliseconds, and the first answer,
for which the server has to read all jobs. Then so many logs are followed at a time: the server's CPU with a follower,
and how late a line is seen. How often a follower looks at files is counted in this process, where it can be seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from airflow_provider_air_executor.api import live
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.models import JobState, SubmittedBy, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.installation import Installation
from tests.support.jobs import publish_job, publish_tasks, reset_tasks
from tests.support.run import Run
from tests.support.waiting import wait_until

_SEED = 1
_TICKS = os.sysconf("SC_CLK_TCK")
_FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"state": "failed"},
    {"name": "job-09"},
    {"label": "kind=3", "offset": 100},
    {"offset": 5_000},
    {"dag_id": "dag-7"},
    {"outcome": "failed", "dag_id": "dag-7", "sort": "duration"},
    {"created_after": "2020-01-01T00:00:00Z", "sort": "name", "order": "asc", "offset": 5_000},
)


class ApiServer(Installation):
    """An API server alone."""

    def start(self) -> None:
        """Start it, with a DAG for each that the jobs name."""
        self.create_database()
        self.airflow("dags", "reserialize")
        self.start_component("api-server")
        wait_until(self._answers, timeout=180, what="the API server answers", interval=0.5)
        self.api("/dags")  # makes the token

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/v2/version", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def get(self, path: str, **query: Any) -> Any:
        """Ask the API of the pages."""
        return self._request(f"/air-executor/api{path}?{urlencode(query)}", None, "GET", {})

    def open(self, path: str) -> Any:
        """Open a stream of events."""
        request = urllib.request.Request(f"{self.url}/air-executor/api{path}")
        request.add_header("Authorization", f"Bearer {self._token}")
        return urllib.request.urlopen(request, timeout=60)

    @property
    def cookie(self) -> str:
        """The value of the cookie that a browser has after somebody logged in."""
        return self._token

    def cpu(self) -> float:
        """Seconds of CPU that the server has used, with its children."""
        total = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.pid_of("api-server"):  # of its session
                total += sum(int(field) for field in fields[11:13])
        return total / _TICKS


def dag_file(folder: Path) -> None:
    """DAGs for the jobs to belong to."""
    (folder / "dags.py").write_text(
        "from airflow.sdk import DAG\nfor n in range(20):\n    globals()[f'd{n}'] = DAG(f'dag-{n}', schedule=None)\n"
    )


def fill(store: JobStore, count: int) -> None:
    """Submit so many jobs of 5 tasks, most of which have ended."""
    states = [*(JobState.COMPLETED,) * 8, JobState.FAILED, JobState.WORKING]
    statuses = {JobState.COMPLETED: TaskStatus.COMPLETED, JobState.FAILED: TaskStatus.FAILED}
    for number in range(count):
        state = random.choice(states)
        owner = SubmittedBy(dag_id=f"dag-{number % 20}", run_id=f"run-{number}", task_id="submit")
        labels = {"kind": str(number % 10)}
        name = f"job-{number:05}"
        job = store.submit(name, ["true"] * 5, labels=labels, submitted_by=owner, durable=False)
        created = utc_now() - timedelta(seconds=60 * (count - number))
        job = job.evolve(created_at=created, started_at=created, updated_at=created + timedelta(seconds=5), state=state)
        publish_job(store, job)
        status = statuses.get(state, TaskStatus.RUNNING)
        reset_tasks(store, name, [task.evolve(status=status) for task in store.get_tasks(name)])


@contextmanager
def changing(store: JobStore, names: list[str]) -> Iterator[None]:
    """Write 20 of these jobs a second, as a manager does."""
    over = threading.Event()

    def change() -> None:
        while not over.wait(0.05):
            name = random.choice(names)
            publish_job(store, store.get_job(name).evolve(updated_at=utc_now()))
            publish_tasks(store, name, store.get_tasks(name))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def timed(call: Callable[[], Any]) -> float:
    """How many milliseconds a call takes."""
    began = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - began)


def measure_list(server: ApiServer, count: int, requests: int) -> None:
    """Print how fast the list is."""
    print(f"the first answer, all {count:,} jobs are read: {timed(lambda: server.get('/jobs')):.0f} ms")
    print(f"{'filter':<80}{'p50':>8}{'p95':>8}{'p99':>8}   ms, {requests} requests each, 0.1 s apart")
    for query in _FILTERS:
        times = []
        for _ in range(requests):
            times.append(timed(lambda query=query: server.get("/jobs", **query)))  # type: ignore[misc]
            time.sleep(0.1)
        cut = statistics.quantiles(times, n=100)
        print(f"{urlencode(query) or 'none':<80}{cut[49]:>8.1f}{cut[94]:>8.1f}{cut[98]:>8.1f}")


def measure_followers(server: ApiServer, store: JobStore, followers: int, seconds: float) -> None:
    """Print what it costs to follow logs in which a line appears now and then."""
    store.submit("followed", ["true"] * followers, durable=False)
    lags: list[float] = []
    over = threading.Event()

    def follow(task_id: str) -> None:
        while not over.is_set():
            with server.open(f"/jobs/followed/tasks/{task_id}/events?offset=-1") as events:
                for line in events:
                    if line.startswith(b"data: ") and b"text" in line:
                        lags.extend(time.time() - float(at) for at in json.loads(line[6:])["text"].split())
                    if over.is_set():
                        return

    time.sleep(12)  # until the index looks no more
    before = server.cpu()
    time.sleep(seconds)
    idle = server.cpu() - before
    threads = [threading.Thread(target=follow, args=(f"task-{n + 1}",), daemon=True) for n in range(followers)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    before, began = server.cpu(), time.monotonic()
    while time.monotonic() - began < seconds:
        with store.paths("followed").log(f"task-{random.randint(1, followers)}").open("a") as log:
            log.write(f"{time.time()}\n")
        time.sleep(0.2)
    used, took = server.cpu() - before, time.monotonic() - began
    over.set()
    share = 100 * (used / took - idle / seconds) / followers
    print(
        f"{followers} followed logs: {share:.2f} % of a core each (the idle server: {100 * idle / seconds:.1f} %); "
        f"a line is seen after {statistics.median(lags):.2f} s (median), {max(lags):.2f} s (longest)"
    )


def count_looks(store: JobStore, seconds: float) -> None:
    """Print how often a follower looks at files."""
    store.submit("counted", ["true"], durable=False)
    looked: list[str] = []
    lstat = os.lstat

    def counted(path: Any, **how: Any) -> os.stat_result:
        looked.append(str(path))
        return lstat(path, **how)

    async def follow() -> None:
        async for _ in live.events(FileJobs(store), "counted", ("task-1", 0)):
            pass

    live.STREAM_SECONDS = seconds
    os.lstat = counted
    asyncio.run(follow())
    os.lstat = lstat
    of_log = sum(path.endswith(".log") for path in looked)
    print(
        f"a follower of a log that does not grow: {of_log / seconds:.2f} stat calls a second on the log, "
        f"{len(looked) - of_log} on other files in {seconds:g} s"
    )


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=100, help="of each filter (default: %(default)s)")
    parser.add_argument("--followers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0, help="of following (default: %(default)s)")
    arguments = parser.parse_args()
    random.seed(_SEED)
    print(
        f"Python {platform.python_version()}, Airflow {version('apache-airflow')}, {os.cpu_count()} cores, "
        f"{arguments.jobs:,} jobs"
    )
    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as folder:
        dag_file(Path(folder))
        with ApiServer(Path(folder)) as server:
            store = JobStore(server.base_path)
            fill(store, arguments.jobs)
            names = [job.name for job in store.list_jobs() if job.state is JobState.WORKING][:200]
            with changing(store, names):
                measure_list(server, arguments.jobs, arguments.requests)
            measure_followers(server, store, arguments.followers, arguments.seconds)
        count_looks(JobStore(folder), arguments.seconds)


if __name__ == "__main__":
    with Run():
        main()
