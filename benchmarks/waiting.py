"""How long jobs wait for room, by their priority, when twice as many come as can be run.

2,000 jobs of one task come evenly over a minute; the manager's slots can run half of them in that time. A tenth of them
has the priority 2, three tenths have 1, the others 0, in random order. Printed for each priority: how long jobs waited
from their submission until their task started (median, 95th percentile, longest), and how many started although one of
a higher priority, or an older one of their own, waited. An overtaking that lasted less than ``--tolerance`` is not
counted: the jobs had been submitted while the manager was starting something else.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time

from manager import AirExecutor, closing, cpu_seconds

from tests.support.run import Run

PRIORITIES, SHARES = (2, 1, 0), (0.1, 0.3, 0.6)


def run(system: AirExecutor, jobs: int, seconds: float, slots: int) -> list[tuple[int, float, float]]:
    """Submit jobs evenly, and wait for the end of all.

    :return: priority, time of submission and time of the start of each, in seconds.
    """
    chosen = random.Random(0).choices(PRIORITIES, SHARES, k=jobs)
    task = {"command": "sleep", "args": [f"{2 * slots * seconds / jobs:.3f}"]}
    began = time.perf_counter()
    for number, priority in enumerate(chosen):
        time.sleep(max(0.0, began + number * seconds / jobs - time.perf_counter()))
        system.store.submit(f"job{number}", [task], priority=priority, durable=False)
    late = time.perf_counter() - began - seconds
    print(f"{jobs} jobs in {seconds + late:.1f} s, {slots} slots for {task['args'][0]} s each")
    while any(not job.state.is_terminal for job in system.store.list_jobs()):
        time.sleep(1)
    found = []
    for job in system.store.list_jobs():
        assert job.created_at is not None
        assert job.started_at is not None
        found.append((job.priority, job.created_at.timestamp(), job.started_at.timestamp()))
    return found


def overtaken(jobs: list[tuple[int, float, float]], tolerance: float) -> dict[int, int]:
    """How many jobs of each priority have started before one that was to start before them and had come by then."""
    count = dict.fromkeys(PRIORITIES, 0)
    for priority, created, started in jobs:
        count[priority] += any(
            (-other, came) < (-priority, created) and came + tolerance < started < begun - tolerance
            for other, came, begun in jobs
        )
    return count


def main(jobs: int, seconds: float, slots: int, tolerance: float) -> None:
    """Measure, and print a table."""
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with closing(AirExecutor(slots)) as system:
        found = run(system, jobs, seconds, slots)
        used = cpu_seconds(system.process.pid)
    count = overtaken(found, tolerance)
    print(f"{'priority':>8}{'jobs':>8}{'median, s':>12}{'95 %, s':>10}{'longest, s':>12}{'overtook':>10}")
    for priority in PRIORITIES:
        waits = sorted(started - created for each, created, started in found if each == priority)
        words = f"{statistics.median(waits):12.2f}{waits[int(len(waits) * 0.95)]:10.2f}{waits[-1]:12.2f}"
        print(f"{priority:>8}{len(waits):>8}{words}{count[priority]:>10}")
    print(f"the manager used {used:.1f} s of a processor")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=60, help="default: %(default)s")
    parser.add_argument("--slots", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--tolerance", type=float, default=0.05, help="seconds; default: %(default)s")
    arguments = parser.parse_args()
    with Run():
        main(arguments.jobs, arguments.seconds, arguments.slots, arguments.tolerance)
