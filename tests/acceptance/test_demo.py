"""`make demo`: what it shows, its exit codes, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest

import demo
from tests.support.installation import Installation
from tests.support.ports import free_port
from tests.support.processes import with_environment
from tests.support.waiting import PATIENCE, wait_until

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.airflow


def test_demo(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "demo.py"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (": success", "download | downloaded 3 files", "upload     completed", "DAG run: success"):
        assert text in done.stdout
    assert re.search(r"page was at http://localhost:\d+/plugin/air-executor\..* make up$", done.stdout, re.MULTILINE)
    assert_nothing_is_left(tmp_path)


def test_a_dag_that_fails(with_executor: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown of it, and the exit code of the demo; that one does not start an Airflow of its own."""
    assert demo.show(with_executor, "example_failing_job", print) == 1
    shown = capsys.readouterr().out
    for text in (": failed", "DAG run: failed", "$ air-executor status", "$ air-executor logs"):
        assert text in shown


def test_up(tmp_path: Path) -> None:
    """`make up`: Airflow runs, with its UI and an example, until somebody ends it."""
    command = ["make", "--no-print-directory", "up", f"VENV={Path(sys.prefix)}", f"AIRFLOW={version('apache-airflow')}"]
    command.append(f"UI_PORT={free_port()}")  # another run of the tests may want 8080 too
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    # What a shell runs in the background ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    try:
        shown = ""
        while "Ctrl-C ends" not in shown:
            line = process.stdout.readline()
            assert line, shown
            shown += line.decode()
        (url,) = re.findall(r"Airflow \(no password\): +(http://\S+)", shown)
        assert f"{url}/plugin/air-executor" in shown
        (command,) = re.findall(r"In a terminal: +(\S+) status --watch", shown)
        assert os.access(command, os.X_OK)
        with urllib.request.urlopen(f"{url}/auth/token", timeout=PATIENCE) as answer:
            token = json.load(answer)["access_token"]
        request = urllib.request.Request(f"{url}/air-executor/api/jobs", headers={"Authorization": f"Bearer {token}"})

        def jobs() -> list[str]:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return [job["name"] for job in json.load(answer)["jobs"] if job["state"] == "completed"]

        wait_until(jobs, interval=0.5, what="the example has run")
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.wait(PATIENCE)
        process.stdout.close()
    assert_nothing_is_left(tmp_path)


def assert_nothing_is_left(tmp_path: Path) -> None:
    """Neither a file nor a process."""
    assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not with_environment(f"TMPDIR={tmp_path}"), what="no process is left")
