"""Benchmarks that are ended leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import kubernetes_cluster, slurm_cluster
from tests.support.installation import ROOT
from tests.support.long import takes_long
from tests.support.processes import command_line, environment, pids
from tests.support.waiting import wait_until

pytestmark = pytest.mark.airflow
# An Airflow beside a cluster takes its time to start.
ON_SLURM = (
    takes_long,
    pytest.mark.engine,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason="Slurm is missing"),
)
ON_KUBERNETES = (
    takes_long,
    pytest.mark.engine,
    pytest.mark.skipif(bool(kubernetes_cluster.missing()), reason="see make kubernetes-build"),
)


@pytest.mark.parametrize(
    ("words", "started"),
    [
        (("manager.py",), "manager"),
        (("engines.py", "--engines", "local"), "manager"),
        (("triggers.py", "--waiters", "--airflow", "1"), "triggerer"),
        pytest.param(("executor.py", "--on", "slurm"), "manager", marks=ON_SLURM, id="slurm"),
        pytest.param(("executor.py", "--on", "kubernetes"), "manager", marks=ON_KUBERNETES, id="kubernetes"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_benchmark_that_gets_sigterm_ends_what_it_has_started(
    words: tuple[str, ...], started: str, tmp_path: Path
) -> None:

    def runs() -> bool:
        """Whether what the benchmark starts runs: its temporary directory is below that of this test."""
        return any(
            any(value.startswith(f"TMPDIR={tmp_path}/") for value in environment(pid)) and started in command_line(pid)
            for pid in pids()
        )

    output = tmp_path.parent / f"{tmp_path.name}.log"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, f"benchmarks/{words[0]}", *words[1:]],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=file,
            stderr=file,
        )
    wait_until(lambda: runs() or process.poll() is not None, what=f"its {started} runs")
    assert process.poll() is None, output.read_text()
    process.terminate()
    process.wait()
    wait_until(lambda: not list(tmp_path.iterdir()), what="its files are removed, after its processes have ended")
    assert not runs()
