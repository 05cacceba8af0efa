"""Benchmarks that are ended leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installation import ROOT
from tests.support.processes import command_line, with_environment
from tests.support.waiting import wait_until

pytestmark = pytest.mark.airflow


@pytest.mark.parametrize(
    ("words", "started"),
    [
        (("manager.py",), "manager"),
        (("engines.py", "--engines", "local"), "manager"),
        (("triggers.py", "--waiters", "--airflow", "1"), "triggerer"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_benchmark_that_gets_sigterm_ends_what_it_has_started(
    words: tuple[str, ...], started: str, tmp_path: Path
) -> None:
    mark = f"TMPDIR={tmp_path}"
    process = subprocess.Popen(
        [sys.executable, f"benchmarks/{words[0]}", *words[1:]],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: any(started in command_line(pid) for pid in with_environment(mark)), what=f"its {started} runs")
    process.terminate()
    assert process.wait() == 143
    assert with_environment(mark) == []
    assert list(tmp_path.iterdir()) == []
