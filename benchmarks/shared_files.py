"""How long a job takes whose client and manager are on two mounts of a file system that does not notify.

The client submits a job of one `true` on the first mount, and looks at its `state.json` every 5 ms until it has
completed. The manager is on the second one, and has the default `poll_interval`. Printed are the median, the fastest
and the slowest of all rounds; the same with one mount, in turns; and how much of a processor the idle manager uses with
old jobs.

Without `--mounts` two mounts of a temporary directory are made with bindfs, which needs root, or /dev/fuse. Two mounts
of GlusterFS or another file system must show the same directory. `--nfs 4.2` and `--nfs 3-nolock` measure NFS in the
virtual machine of the tests (`make virtual-machine`), which has one processor, and whose system calls take longer than
those of this machine. The figure for one mount says how much that is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from manager import cpu_seconds, write_finished

from airflow_provider_air_executor.jobs.store import JobStore, dump_tasks
from tests.support import nfs, virtual_machine
from tests.support.mounts import bindfs
from tests.support.run import Run

LOOK_SECONDS = 0.005
WARM_UP = 2  # rounds that do not count


@contextmanager
def bound() -> Iterator[tuple[Path, Path]]:
    """Two mounts of one directory."""
    directory = Path(tempfile.mkdtemp(prefix="air-executor-benchmark-"))
    source = directory / "source"
    source.mkdir()
    try:
        with bindfs(source, directory / "one") as one, bindfs(source, directory / "other") as other:
            yield one, other
    finally:
        shutil.rmtree(source, ignore_errors=True)


@contextmanager
def manager(base_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A manager with its defaults."""
    command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", "manager", "--log-level", "ERROR"]
    process = subprocess.Popen([*command, "--base-path", str(base_path)])
    try:
        time.sleep(3)  # it is on its way, and has listed the jobs
        yield process
    finally:
        process.terminate()
        process.wait()


def seconds(store: JobStore, name: str) -> float:
    """From the submit of a job until its end is seen."""
    began = time.perf_counter()
    store.submit(name, [{"command": "true"}])
    while not store.get_job(name).state.is_terminal:
        time.sleep(LOOK_SECONDS)
    return time.perf_counter() - began


def write_old_jobs(store: JobStore, number: int) -> None:
    """Jobs that have ended, as the manager leaves them."""
    name = store.job_names()[0]
    job, tasks = store.get_job(name), dump_tasks(store.get_tasks(name))
    for place in range(number):
        write_finished(store, job.evolve(name=f"old{place}", id=f"old{place}-1"), tasks)


def idle_share(process: subprocess.Popen[bytes], over: float) -> float:
    """The part of a processor that a process uses."""
    before = cpu_seconds(process.pid)
    time.sleep(over)
    return (cpu_seconds(process.pid) - before) / over


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mounts", nargs=2, type=Path, help="two empty directories that are the same one")
    parser.add_argument("--nfs", choices=nfs.KINDS, help="measure in a virtual machine")
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--old-jobs", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--idle-seconds", type=float, default=30, help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.nfs and not virtual_machine.IS_INSIDE:
        sys.exit(in_virtual_machine())
    if arguments.nfs:
        base = Path(tempfile.mkdtemp())
        (base / "served").mkdir()
        nfs.serve(base / "served")
        with nfs.mounted(base / "served", arguments.nfs, base) as places:
            measure(arguments, places)
        return
    with Run(), bound() if arguments.mounts is None else contextlib.nullcontext(arguments.mounts) as places:
        measure(arguments, places)


def measure(arguments: argparse.Namespace, places: Sequence[Path]) -> None:
    """Measure on two mounts, and print."""
    one, other = places
    print(f"{platform.platform()}, Python {platform.python_version()}, {arguments.rounds} rounds")
    stores = {"two mounts": JobStore(one), "one mount": JobStore(other)}
    took: dict[str, list[float]] = {what: [] for what in stores}
    with manager(other):
        for number in range(WARM_UP + arguments.rounds):
            for what, store in stores.items():
                took[what].append(seconds(store, f"{what.replace(' ', '-')}-{number}"))
    for what, times in took.items():
        each = times[WARM_UP:]
        print(f"{what}: median {statistics.median(each):.3f} s, {min(each):.3f} to {max(each):.3f} s")
    write_old_jobs(JobStore(one), arguments.old_jobs)
    with manager(other) as process:
        time.sleep(10)
        share = idle_share(process, arguments.idle_seconds)
        print(f"idle manager, {arguments.old_jobs} old jobs: {share:.2%} of a core")


def in_virtual_machine() -> int:
    """Run this program there: its exit code."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    own = {"HOME": "/root", "TMPDIR": "/run", "PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
    done = virtual_machine.run([sys.executable, *sys.argv], {**kept, **own, virtual_machine.INSIDE: "1"})
    print(done.output)
    return 1 if done.exit_code is None else done.exit_code


if __name__ == "__main__":
    main()
