"""Each task of the executor says at its end what it has imported, if its fork server is to learn that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_air_executor.engines.local.learning.report import Report
from airflow_provider_air_executor.workload import preload_key
from tests.support.waiting import PATIENCE

# A fork server, and a task in a process forked from it, with Airflow's own functions around a DAG file and a callable.
TASK = """
import json, os, socket, sys
from types import SimpleNamespace
from airflow.sdk.execution_time import task_runner
from airflow_provider_air_executor import workload
from airflow_provider_air_executor.system import import_report
says, sends, ends = sys.argv[1:]

def parse(what, log):
    os.environ["PARSED"] = "a secret"
    sys.path.insert(0, os.environ["BUNDLE"])
    import mine, wsgiref.headers
    return SimpleNamespace(task=SimpleNamespace(run_as_user=None))

def main():
    bundle = SimpleNamespace(name="dags")
    task_runner.parse(SimpleNamespace(bundle_info=bundle, dag_rel_path="sub/a.py"), None)
    os.environ["RUN"] = "a secret"
    if ends == "raises":
        raise SystemExit(5)

task_runner.parse, task_runner.main = parse, main
workload._prepare()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
ours.setblocking(False)
import_report.begin(theirs if sends == "yes" else None)
pid = os.fork()
if pid == 0:
    try:
        task_runner.main()
    except SystemExit as end:
        os._exit(end.code)
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
try:
    report = ours.recv(100_000).decode()
except BlockingIOError:
    report = None
with open(says, "w") as file:
    json.dump([code, report], file)
"""


def run(tmp_path: Path, sends: str, ends: str) -> tuple[int, str | None]:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "mine.py").write_text("")
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "BUNDLE": str(bundle)}
    environment["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    command = [sys.executable, "-c", TASK, str(tmp_path / "says"), sends, ends]
    subprocess.run(command, env=environment, check=True, timeout=PATIENCE)
    code, report = json.loads((tmp_path / "says").read_text())
    return code, report


@pytest.mark.airflow
@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_a_task_reports_at_its_end(tmp_path: Path, ends: str) -> None:
    code, report = run(tmp_path, "yes", ends)
    assert code == (5 if ends == "raises" else 0)
    assert report is not None
    assert "secret" not in report
    assert "mine" not in report
    found = Report.parse(report.encode())
    assert found is not None
    assert (found.key, found.changed, found.is_base) == ("dags/sub/a.py", ("PARSED", "RUN"), True)
    assert found.roots["wsgiref"] == ("wsgiref", "wsgiref.headers")
    assert 0 < found.parse_seconds < 10


@pytest.mark.airflow
def test_without_a_reader_it_does_not(tmp_path: Path) -> None:
    assert run(tmp_path, "no", "raises") == (5, None)


@pytest.mark.parametrize(
    ("name", "path", "key"),
    [
        ("dags", Path("a/b.py"), "dags/a/b.py"),
        ("dags", "a\nb\udcff.py", "dags/a?b?.py"),
        ("b" * 300, "a" * 300, "b" * 199 + "/" + "a" * 300),
    ],
)
def test_the_key_of_a_dag_file_is_a_text_that_a_task_may_have(name: str, path: Any, key: str) -> None:
    workload = SimpleNamespace(bundle_info=SimpleNamespace(name=name), dag_rel_path=path)
    assert preload_key(workload) == key
