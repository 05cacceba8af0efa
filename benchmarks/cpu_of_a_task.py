"""Where the CPU time of a task goes, in its supervisor and in its own process (Linux).

Runs the empty tasks and those with pandas of ``executor.py`` in a real Airflow with our executor, four at a time, and
prints the median of each part over all tasks of the last run: milliseconds, the share of it, and page faults. The parts
are functions of Airflow and of the executor, each without the parts within it; ``cpu_timers.py`` names them. The timers
themselves cost about two microseconds for each call, which `log lines` has most of.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import accounting
import cpu_timers
from executor import CONSTRAINTS, OURS, SETTLE_SECONDS, setting, started
from executor_dags import EMPTY, PANDAS
from packages import begin_anew_with

from tests.support.processes import exit_on_sigterm

PRELOAD = "airflow_provider_air_executor.workload,cpu_timers"
LEAST = 0.05  # milliseconds: smaller parts are printed as one


def measure(dag_id: str, arguments: argparse.Namespace) -> None:
    """Run a DAG again and again, and print where the CPU time of its tasks went in the last run."""
    with tempfile.TemporaryDirectory(prefix="air-executor-timers-") as directory:
        timers = Path(directory) / "cpu_timers.py"
        timers.write_text(Path(cpu_timers.__file__).read_text())
        told = Path(directory) / "told"
        more = {
            "AIRFLOW__AIR_EXECUTOR__PRELOAD": arguments.preload,
            "PYTHONPATH": directory,
            cpu_timers.FILE: str(told),
        }
        settings = argparse.Namespace(**{**vars(arguments), "setting": [*more.items(), *arguments.setting]})
        try:
            with started(OURS, arguments.running, {dag_id: arguments.tasks}, settings) as airflow:
                spared = set(accounting.descendants())
                for number in range(1, arguments.rounds + 1):
                    told.unlink(missing_ok=True)
                    run = airflow.measure(dag_id, number, spared)
        finally:
            accounting.end_the_rest(SETTLE_SECONDS)
        lines = [json.loads(line) for line in told.read_text().splitlines()]
    shares = ", ".join(f"{part} {1000 * used:.1f}" for part, used in run.shares.items())
    print(f"\n{dag_id}: {1000 * run.cpu:.1f} ms a task ({shares})")
    for who in ("supervisor", "task"):
        its = [line for line in lines if line["who"] == who]
        print(f"  {who}: {len(its)} runs in {len({line['pid'] for line in its})} processes")
        show([line["parts"] for line in its])


def show(processes: list[dict[str, list[float]]]) -> None:
    """Print the parts of one kind of process, the largest first."""
    names = {name for parts in processes for name in parts}
    median = {
        name: [statistics.median(parts.get(name, (0.0, 0.0))[place] for parts in processes) for place in (0, 1)]
        for name in names
    }
    total, faults = (sum(values[place] for values in median.values()) for place in (0, 1))
    print(f"    {'sum of the medians':32}{1000 * total:>7.2f} ms{'':7}{faults:>8.0f} faults")
    small = [0.0, 0.0]
    for name, (seconds, pages) in sorted(median.items(), key=lambda item: -item[1][0]):
        if 1000 * seconds < LEAST:
            small = [small[0] + seconds, small[1] + pages]
            continue
        print(f"    {name:32}{1000 * seconds:>7.2f} ms{seconds / total:>7.0%}{pages:>8.0f} faults")
    print(f"    {'smaller parts':32}{1000 * small[0]:>7.2f} ms{small[0] / total:>7.0%}{small[1]:>8.0f} faults")


if __name__ == "__main__":
    exit_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=60, help="of each DAG; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--running", type=int, default=4, help="tasks at a time; default: %(default)s")
    parser.add_argument("--parallelism", type=int, default=32, help=argparse.SUPPRESS)
    parser.add_argument("--preload", default=PRELOAD, help="the setting; default: %(default)s")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    parser.add_argument("--dags", nargs="+", choices=(EMPTY, PANDAS), default=[EMPTY, PANDAS], help="default: both")
    parser.add_argument("--setting", type=setting, action="append", default=[], metavar="KEY=VALUE")
    parsed = parser.parse_args()
    begin_anew_with(CONSTRAINTS, "pandas", "sqlalchemy", "requests")
    accounting.own_orphans()
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"Airflow {version('apache-airflow')}, {parsed.running} at a time"
    )
    for each in parsed.dags:
        measure(each, parsed)
    sys.exit(0)
