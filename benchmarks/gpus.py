"""Whether tasks that share the graphics processors of this machine see their own ones, and no others (NVIDIA).

    python benchmarks/gpus.py [--tasks 40]

A manager runs tasks that need 1, 2 and 4 graphics processors, as far as there are so many, on those that it finds by
itself. Each task looks with `nvidia-smi` which ones it was given, and with PyTorch or CuPy, if the Python has one, how
many it can use. Then it waits for a moment, so that others run beside it. It is printed how much of the time of the
processors was used, and what was wrong: an id that two tasks held at a time, one that a task did not see, or a task
that did not run. The exit code is 1 then. Where there is no graphics processor it says so, and the exit code is 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from airflow_provider_air_executor.engines.local.gpus import listed_ids, visible_ids
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.outputs import read_outputs
from airflow_provider_air_executor.jobs.store import JobStore

SIZES = (1, 2, 4)
SECONDS = 1.0  # that a task holds what it has
LOOK = """
import importlib, json, os, subprocess, sys, time
began = time.time()
ids = os.environ["AIR_EXECUTOR_GPUS"].split(",")
listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
usable = None
for name, count in (("torch", lambda m: m.cuda.device_count()), ("cupy", lambda m: m.cuda.runtime.getDeviceCount())):
    try:
        usable = count(importlib.import_module(name))
        break
    except ImportError:
        pass
time.sleep(float(sys.argv[1]))
found = {"ids": ids, "visible": os.environ["CUDA_VISIBLE_DEVICES"].split(","), "usable": usable, "listed": listed}
with open(os.environ["AIR_EXECUTOR_OUTPUT"], "w") as file:
    json.dump({**found, "began": began, "ended": time.time()}, file)
"""


def ids_here() -> list[str]:
    """The graphics processors that a manager finds here."""
    visible = visible_ids(os.environ)
    if visible is not None:
        return visible
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return listed_ids(listed.stdout) if listed.returncode == 0 else []


def run(ids: list[str], number: int, directory: str) -> tuple[list[dict[str, Any]], float]:
    """Run tasks: what each of them has found, and the seconds that all took."""
    sizes = [size for size in SIZES if size <= len(ids)]
    store = JobStore(directory)
    command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", "manager", "--log-level", "ERROR"]
    command += ["--base-path", directory, "--max-concurrent-runners", str(len(ids))]
    manager = subprocess.Popen(command)
    try:
        while manager_status.pid(store) != manager.pid:
            time.sleep(0.02)
        look = {"command": sys.executable, "args": ["-c", LOOK, str(SECONDS)]}
        tasks = [{"id": f"t{at}", **look, "resources": {"gpus": sizes[at % len(sizes)]}} for at in range(number)]
        began = time.perf_counter()
        store.submit("gpus", tasks, max_parallel_tasks=number)
        while not (job := store.get_job("gpus")).state.is_terminal:
            time.sleep(0.1)
        took = time.perf_counter() - began
        if job.error:
            sys.exit(f"{job.error}\n{store.paths('gpus').log('t0').read_text(errors='replace')}")
        return list(read_outputs(store.paths("gpus"), store.get_tasks("gpus")).values()), took
    finally:
        manager.terminate()
        manager.wait()


def problems(found: list[dict[str, Any]], ids: list[str], number: int) -> Iterator[str]:
    """What is wrong, a sentence each."""
    if len(found) != number:
        yield f"{number - len(found)} of {number} tasks have left nothing"
    for one in found:
        if one["visible"] != one["ids"] or not set(one["ids"]) <= set(ids):
            yield f"a task was given {one['ids']} and sees {one['visible']}"
        elif one["usable"] not in (None, len(one["ids"])):
            yield f"a task was given {one['ids']} and can use {one['usable']}"
        elif not all(each in listed_ids(one["listed"]) for each in one["ids"] if not each.isdecimal()):
            yield f"nvidia-smi does not list {one['ids']} to its task"
    for each in ids:
        held = sorted((one["began"], one["ended"]) for one in found if each in one["ids"])
        for (_, ended), (began, _) in itertools.pairwise(held):
            if began < ended:
                yield f"{each} was held by two tasks at a time"


def main() -> int:
    """Run the tasks, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tasks", type=int, default=40)
    number = parser.parse_args().tasks
    ids = ids_here()
    if not ids:
        print("this machine has no graphics processor that nvidia-smi lists: there is nothing to measure")
        return 0
    with tempfile.TemporaryDirectory(prefix="air-executor-benchmark-") as directory:
        found, took = run(ids, number, directory)
    held = sum(len(one["ids"]) * (one["ended"] - one["began"]) for one in found)
    kinds = {one["usable"] is not None for one in found}
    print(f"{number} tasks on {len(ids)} graphics processors ({', '.join(ids)}): {took:.1f} s")
    print(f"held {100 * held / (took * len(ids)):.0f} % of the time; counted by a library of CUDA: {kinds == {True}}")
    wrong = list(problems(found, ids, number))
    print(json.dumps(wrong, indent=2) if wrong else "each task had its own, and saw no others")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
