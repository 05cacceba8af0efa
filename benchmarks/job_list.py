"""How fast the route of the list of jobs answers, without a server, a network and a login.

10,000 jobs are on disk, 200 of which go on changing, 20 a second. A process of its own asks the route for them with
different filters and orders, one request after the other, and prints the median, the 95th and the 99th percentile in
milliseconds. With ``--before`` another one does so with the package of that commit, on the same jobs at the same time,
request by request in turn; filters that it does not know it passes over. ``benchmarks/page.py`` measures a whole API
server.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, os.environ.get("BENCHMARK_PACKAGE") or str(ROOT))

_SEED = 1
_WIDTH = 72  # of the name of a request


def requests() -> list[dict[str, Any]]:
    """What the list is asked for."""
    from airflow_provider_air_executor.jobs.models import utc_now

    def at(hours: float) -> str:
        return (utc_now() - timedelta(hours=hours)).isoformat()

    return [
        {},
        {"state": "failed"},
        {"name": "job-09"},
        {"label": "kind=3", "offset": 100},
        {"offset": 5_000},
        {"dag_id": "dag-7"},
        {"outcome": ["cancelled", "lost", "working"]},
        {"created_after": at(24)},
        {"created_after": at(48), "created_before": at(24), "dag_id": "dag-7", "reason": "cancelled"},
        {"sort": "name", "order": "asc"},
        {"sort": "duration", "offset": 5_000},
        {"sort": "state", "order": "asc", "name": "job-0"},
        {"sort": "ended", "label": "kind"},
    ]


# -- the process that answers ------------------------------------------------------------------------------


def answer() -> None:
    """Answer each line of queries on standard input with the milliseconds that the route took."""
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    from airflow_provider_air_executor.plugin.access import Rights, rights_of
    from airflow_provider_air_executor.plugin.app import app

    class AllRights(Rights):
        """Those of somebody who may do everything; each DAG is asked for once in a request."""

        sees_jobs = edits_connection = _sees_jobs = _edits_connection = True

        def _ask(self, *_: object) -> bool:
            return True

    app.dependency_overrides[get_user] = lambda: None
    app.dependency_overrides[rights_of] = lambda: AllRights(None, "air_executor_default")  # type: ignore[arg-type]
    client = TestClient(app)
    for line in sys.stdin:
        began = time.perf_counter()
        found = client.get("/api/jobs", params=json.loads(line))
        took = 1000 * (time.perf_counter() - began)
        assert found.status_code == 200, found.text
        print(json.dumps([took, found.json()["total"]]), flush=True)


class Route:
    """A process that answers, with the package in this directory."""

    def __init__(self, package: Path, base_path: Path) -> None:
        connection = {"conn_type": "air_executor", "extra": {"base_path": str(base_path)}}
        environment = {
            **os.environ,
            "BENCHMARK_PACKAGE": str(package),
            "AIRFLOW_HOME": str(base_path.parent / "airflow"),
            "AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT": json.dumps(connection),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--answer"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, query: dict[str, Any]) -> tuple[float, int]:
        """Ask for jobs: how many milliseconds that took, and how many jobs fit."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(query) + "\n")
        self._process.stdin.flush()
        while True:
            line = self._process.stdout.readline()
            if line.startswith("["):  # others are those of Airflow's logs
                took, total = json.loads(line)
                return took, total
            if not line:
                raise RuntimeError("the process has ended")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# -- measuring ---------------------------------------------------------------------------------------------


def package_of(commit: str, folder: Path) -> Path:
    """The package as a commit has it."""
    archive = subprocess.run(
        ["git", "archive", commit, "airflow_provider_air_executor"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        found.extractall(folder, filter="data")
    return folder


def measure(routes: dict[str, Route], number: int) -> None:
    """Print how fast the routes are."""
    for name, route in routes.items():
        print(f"the first answer, {name}: {route.ask({})[0]:.0f} ms")
    heads = "".join(f"{f'{name}: p50':>14}{'p95':>8}{'p99':>8}" for name in routes)
    print(f"{'request':<{_WIDTH}}{heads}   ms, {number} requests each, 0.05 s apart")
    for query in requests():
        times: dict[str, list[float]] = {name: [] for name in routes}
        for _ in range(number):
            for name, route in routes.items():
                times[name].append(route.ask(query)[0])
                time.sleep(0.05)
        cells = ""
        for name in routes:
            cut = statistics.quantiles(times[name], n=100)
            cells += f"{cut[49]:>14.1f}{cut[94]:>8.1f}{cut[98]:>8.1f}"
        shown = {key: "..." if key.startswith("created") else value for key, value in query.items()}
        print(f"{urlencode(shown, doseq=True) or 'none':<{_WIDTH}}{cells}", flush=True)


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=100, help="of each kind (default: %(default)s)")
    parser.add_argument("--before", metavar="COMMIT", help="measure the package of this commit, too")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        answer()
        return
    from page import changing, fill

    from airflow_provider_air_executor.jobs.models import JobState
    from airflow_provider_air_executor.jobs.store import JobStore

    random.seed(_SEED)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {arguments.jobs:,} jobs")
    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as folder:
        store = JobStore(Path(folder) / "base")
        fill(store, arguments.jobs)
        names = [job.name for job in store.list_jobs() if job.state is JobState.WORKING][:200]
        packages = {"now": ROOT}
        if arguments.before:
            packages["before"] = package_of(arguments.before, Path(folder) / "before")
        routes = {name: Route(package, store.base_path) for name, package in packages.items()}
        try:
            with changing(store, names):
                measure(routes, arguments.requests)
        finally:
            for route in routes.values():
                route.close()


if __name__ == "__main__":
    main()
