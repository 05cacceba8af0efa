"""`make demo`: what it shows, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(("dag_id", "code"), [("example_submit_and_wait", 0), ("example_failing_job", 1)])
def test_demo(dag_id: str, code: int, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "demo.py", dag_id], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ": deferred" in done.stdout
    if code == 0:
        for text in ("download | downloaded 3 files", "upload     completed", "DAG run: success"):
            assert text in done.stdout
    assert list(tmp_path.iterdir()) == []
    mark = os.fsencode(str(tmp_path))
    assert not [path for path in Path("/proc").glob("[0-9]*/environ") if mark in readable(path)]


def readable(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
