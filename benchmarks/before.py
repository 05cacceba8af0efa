"""Whether one-task jobs by files take longer than with another build, submitted and waited for by the hook (Linux).

    python benchmarks/before.py OTHER_CHECKOUT

The other checkout, of an earlier commit for instance, has an environment of its own (``make .venv/.ready-3.3.2``
there). The two take turns, in processes of their own with a manager each. Of the ratios of their times the highest and
the lowest tenth do not count; beside the mean of the others stand two standard errors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
WARM_UP = 20  # jobs that do not count
ONE = """
import json, statistics, subprocess, sys, time
from airflow_provider_air_executor.hooks import AirExecutorHook

number, warm_up, base_path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
module = "airflow_provider_air_executor.manager.cli"
manager = subprocess.Popen([sys.executable, "-P", "-m", module, "manager", "--base-path", base_path])
hook, took = AirExecutorHook(), []
try:
    while not hook.test_connection()[1].startswith("manager"):
        time.sleep(0.05)
    for job in range(warm_up + number):
        began = time.perf_counter()
        hook.create_job(f"j{job}", ["true"])
        submitted = time.perf_counter()
        hook.wait_for_job(f"j{job}", poll_interval=0.002)
        took.append((submitted - began, time.perf_counter() - began))
finally:
    manager.terminate()
    manager.wait()
columns = [sorted(column) for column in zip(*took[warm_up:])]
print(json.dumps([statistics.mean(column[number // 10 : number - number // 10]) for column in columns]))
"""


def seconds(checkout: Path, jobs: int) -> list[float]:
    """How long the submission of a job took, and how long it took to its end: trimmed means."""
    with tempfile.TemporaryDirectory(prefix="air-executor-") as directory:
        connection = {"conn_type": "air_executor", "extra": {"base_path": f"{directory}/base"}}
        done = subprocess.run(
            [checkout / ".venv/bin/python", "-c", ONE, str(jobs), str(WARM_UP), f"{directory}/base"],
            env={**os.environ, "AIRFLOW_HOME": directory, "AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT": json.dumps(connection)},
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, and print a line for the submission and one for all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("other", type=Path, help="a checkout with an environment")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=150, help="of a round")
    given = parser.parse_args()
    times: dict[Path, list[list[float]]] = {given.other.resolve(): [], HERE: []}
    for number in range(given.rounds):
        for checkout in list(times)[:: 1 if number % 2 else -1]:
            times[checkout].append(seconds(checkout, given.jobs))
    before, after = times.values()
    for column, what in enumerate(("submission", "submit to completed")):
        ratios = sorted(new[column] / old[column] for old, new in zip(before, after, strict=True))
        cut = len(ratios) // 10
        kept = ratios[cut : len(ratios) - cut]
        error = 200 * statistics.stdev(kept) / len(kept) ** 0.5 if len(kept) > 1 else float("nan")
        medians = (1000 * statistics.median(row[column] for row in rows) for rows in (before, after))
        print("{:<20} before {:6.2f} ms, now {:6.2f} ms".format(what, *medians), end=": ")
        print(f"{100 * (statistics.mean(kept) - 1):+.1f} % +- {error:.1f} %")


if __name__ == "__main__":
    main()
