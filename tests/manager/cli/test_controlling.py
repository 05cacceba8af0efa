"""The manager is shown, paused, and gets more or fewer slots."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from airflow_provider_air_executor.jobs import manager_control
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended
from tests.support.managers import Managers
from tests.support.waiting import until, wait_until


def test_the_manager(run: Any, store: JobStore, managers: Managers, tmp_path: Path) -> None:
    store.submit("j", [until(tmp_path / "go")] * 3)
    done = run("info")
    assert done.returncode == 1
    assert done.stdout == (
        f"no manager is running on {store.base_path}; "
        f"start it: air-executor manager --detach --base-path {store.base_path}\n"
    )
    assert json.loads(run("info", "--json").stdout) == {"base_path": str(store.base_path), "pid": None}
    process = managers.start("--max-concurrent-runners", "2")
    wait_until(lambda: "local: 2 of 2 used" in run("info").stdout, what="it publishes how full it is")
    store.submit("late", ["true"])
    wait_until(lambda: "1 waiting, the longest since" in run("info").stdout, what="it publishes what waits")
    shown = run("info").stdout
    assert re.search(rf"^manager +{process.pid} on ", shown)
    assert re.search(r"\nqueue +2 tasks could start and wait for room\n", shown)
    assert re.search(r"\njobs +1 working, 1 waiting, the longest since .* s: late\n", shown)
    assert json.loads(run("info", "--json").stdout)["slots"] == {"local": {"used": 2, "limit": 2}}
    assert "local: 2 of 2 slots used, 2 tasks queued" in run("status").stdout.replace("\n", " ")
    (tmp_path / "go").touch()
    wait_until(lambda: "2 jobs completed, 0 jobs failed, 4 tasks completed" in run("info").stdout, what="it counts")


def test_metrics(run: Any, store: JobStore, managers: Managers) -> None:
    store.create_directories()
    assert run("metrics").returncode == 1
    managers.start()
    wait_until(lambda: "slots" in run("metrics").stdout, what="it has published something")
    text = run("metrics").stdout
    assert text.startswith("# ")
    assert text.endswith("# EOF\n")


def test_a_manager_is_paused_and_resumed(run: Any, store: JobStore, manager: object) -> None:
    assert "continue: air-executor resume" in run("pause").stdout
    wait_until(lambda: "paused: it starts no tasks" in run("info").stdout, what="it is paused")
    assert "the manager is paused and starts no tasks" in run("run", "--detach", "--name", "j", "true").stderr
    assert "paused" in run("status").stdout
    assert store.get_job("j").state == "waiting"
    assert run("resume").returncode == 0
    assert ended(store, "j").state == "completed"


def test_slots(run: Any, store: JobStore, managers: Managers) -> None:
    """Also before a manager is started."""
    store.create_directories()
    assert run("slots", "1").stdout == "runner local has 1 slot\n"
    assert run("slots").stdout == "local: 1\n"
    managers.start()
    wait_until(lambda: run("slots").stdout == "local: 0 of 1 used\n", what="the manager has one slot")
    assert run("slots", "7", "--runner", "local").returncode == 0
    wait_until(lambda: run("slots").stdout == "local: 0 of 7 used\n", what="it has seven")
    assert run("slots", "5", "--runner", "slurm").returncode == 0
    assert run("slots", "default").stdout == "runner local has what the settings say\n"
    assert manager_control.load(store).slots == {"slurm": 5}
    for wrong in (["0"], ["many"], ["3", "--runner", "../x"]):
        assert run("slots", *wrong).returncode == 2
