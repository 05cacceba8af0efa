"""Shims that stay: a process that has run a task to its end runs the next one, and nobody can tell."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local.engine import LocalEngine
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.attempt_record import Record, read_record
from airflow_provider_air_executor.jobs.models import utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system import processes
from airflow_provider_air_executor.system.processes import identity_from_now
from tests.support.jobs import ended, only_task, said
from tests.support.managers import Managers
from tests.support.processes import is_gone
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")

# It does what it is told by its arguments, and then says how it has found its process.
STAYS = """\
import json, os, random, signal, subprocess, sys, time
def renew():
    return "refuses" not in sys.argv
if __name__ == "__main__":
    print(json.dumps({
        "pid": os.getpid(), "cwd": os.getcwd(),
        "leaked": os.environ.get("LEAKED"), "run": os.environ["AIR_EXECUTOR_RUN"],
        "job": os.environ["AIR_EXECUTOR_JOB"], "handler": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "drawn": [random.random(), __import__("numpy").random.random()],
    }), flush=True)
    os.environ["LEAKED"] = "yes"
    os.chdir("/")
    if "handles" in sys.argv:
        signal.signal(signal.SIGTERM, lambda *_: None)
    if "burns" in sys.argv:
        began = time.process_time()
        while time.process_time() < began + 0.6:
            pass
    if "leaves" in sys.argv:
        subprocess.Popen(["sleep", "600"])
    if "thread" in sys.argv:
        import threading
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    if "charges" in sys.argv:
        from airflow_provider_air_executor.system import process_family
        process_family.add_usage(process_family.Used(100.0, 1))
    if "waits" in sys.argv:
        while not os.path.exists(sys.argv[-1]):
            time.sleep(0.02)
    sys.exit(3 if "fails" in sys.argv else 0)
"""
RANDOM = "import random as _random\n_numbers = _random.Random()\nseed, random = _numbers.seed, _numbers.random\n"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, managers: Managers) -> None:
    directory = tmp_path / "modules"
    (directory / "numpy").mkdir(parents=True)
    (directory / "stays.py").write_text(STAYS)
    (directory / "numpy" / "__init__.py").write_text("from numpy import random\n")
    (directory / "numpy" / "random.py").write_text(RANDOM)  # what stands for a library that is seeded at its import
    managers.environment["PYTHONPATH"] = str(directory)


def submit(store: JobStore, name: str, *words: object, file: str | None = None) -> None:
    args = ["-m", "stays", *map(str, words)]
    task = {"id": "a", "command": sys.executable, "args": args, "runner": "warm", "preload_key": file}
    store.submit(name, [task], work_directory=False)


def run(store: JobStore, name: str, *words: object, file: str | None = None) -> dict[str, Any]:
    submit(store, name, *words, file=file)
    ended(store, name)
    return said(store, name)


def test_a_process_runs_one_task_after_the_other_and_each_finds_it_as_new(store: JobStore, managers: Managers) -> None:
    managers.start("--preload", "stays")
    found = [run(store, f"job{number}", "handles") for number in range(4)]
    assert len({one["pid"] for one in found}) == 1
    assert [one["job"] for one in found] == [f"job{number}" for number in range(4)]
    assert len({one["run"] for one in found}) == 4
    assert len({one["cwd"] for one in found}) == 1
    assert found[0]["cwd"] != "/"
    assert all(one["handler"] and one["leaked"] is None for one in found)
    assert len({number for one in found for number in one["drawn"]}) == 8
    for one in found:
        record = read_record(str(store.paths(one["job"]).record("a", 1)))
        assert record is not None
        assert (record.pid, record.token, record.exit_code) == (one["pid"], one["run"], 0)


def test_a_task_gets_the_process_that_has_had_one_of_its_file(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.start("--preload", "stays")
    for file in ("one", "two"):
        submit(store, file, "waits", tmp_path / "go", file=file)
    pids = {file: said(store, file)["pid"] for file in ("one", "two")}
    (tmp_path / "go").touch()
    for file in ("one", "two"):
        ended(store, file)
    found = [(file, run(store, f"{file}{number}", file=file)["pid"]) for number in range(3) for file in ("one", "two")]
    assert all(pid == pids[file] for file, pid in found)
    assert run(store, "three", file="three")["pid"] in pids.values()


def test_some_wait_longer_for_the_next_task_than_others(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    """Here one of them, and the others not at all."""
    hasty = "import __main__\n__main__._IDLE_SECONDS, __main__._KEPT = 0.0, 1\n"
    (tmp_path / "modules" / "hasty.py").write_text(hasty)
    managers.start("--preload", "stays,hasty")
    for name in ("one", "two"):
        submit(store, name, "waits", tmp_path / "go")
    pids = [said(store, name)["pid"] for name in ("one", "two")]
    (tmp_path / "go").touch()
    for name in ("one", "two"):
        ended(store, name)
    wait_until(lambda: any(map(is_gone, pids)), what="one of them is gone")
    (left,) = (pid for pid in pids if not is_gone(pid))
    assert run(store, "three")["pid"] == left


@pytest.mark.parametrize("left", ["leaves", "thread", "fails", "refuses"])
def test_a_process_of_which_something_is_left_ends(store: JobStore, managers: Managers, left: str) -> None:
    managers.start("--preload", "stays")
    first = run(store, "first", left)
    assert only_task(store, "first").exit_code == (3 if left == "fails" else 0)
    assert run(store, "second")["pid"] != first["pid"]
    wait_until(lambda: is_gone(first["pid"]), what="it is gone")


def test_a_process_that_waits_for_a_task_may_be_killed(store: JobStore, managers: Managers) -> None:
    managers.start("--preload", "stays")
    first = run(store, "first")
    os.kill(first["pid"], signal.SIGKILL)
    assert run(store, "second")["pid"] != first["pid"]
    assert only_task(store, "second").exit_code == 0


def test_killing_a_task_ends_its_process_and_no_other_task(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    managers.start("--preload", "stays")
    first = run(store, "first")
    submit(store, "killed", "waits", tmp_path / "never")
    assert said(store, "killed")["pid"] == first["pid"]
    submit(store, "beside", "waits", tmp_path / "go")
    assert said(store, "beside")["pid"] != first["pid"]
    inbox.cancel(store, "killed")
    assert ended(store, "killed").reason == "cancelled"
    assert run(store, "next")["pid"] != first["pid"]
    (tmp_path / "go").touch()
    assert ended(store, "beside").state == "completed"


def test_a_task_that_is_killed_in_a_process_that_stayed_takes_what_it_has_started_along(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.start("--preload", "stays")
    first = run(store, "first")
    submit(store, "lost", "leaves", "waits", tmp_path / "never")
    assert said(store, "lost")["pid"] == first["pid"]
    child: int = wait_until(lambda: next(iter(_children(first["pid"])), 0), what="it has a child")
    os.kill(first["pid"], signal.SIGKILL)
    assert ended(store, "lost").reason == "lost"
    wait_until(lambda: is_gone(child), what="its child is gone")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_next_manager_adopts_it_and_it_ends_with_its_task(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    manager = managers.start("--preload", "stays")
    first = run(store, "first")
    submit(store, "job", "waits", tmp_path / "go")
    assert said(store, "job")["pid"] == first["pid"]
    managers.kill(manager)
    managers.start("--preload", "stays")
    (tmp_path / "go").touch()
    assert ended(store, "job").state == "completed"
    wait_until(lambda: is_gone(first["pid"]), what="it has ended, since its fork server is gone")


def test_each_task_is_charged_what_it_has_used_itself(store: JobStore, managers: Managers) -> None:
    managers.start("--preload", "stays")
    burnt, idle = run(store, "burnt", "burns"), run(store, "idle")
    assert burnt["pid"] == idle["pid"]
    used = [only_task(store, name).usage for name in ("burnt", "idle")]
    assert used[0] is not None
    assert used[1] is not None
    assert used[0].cpu_seconds >= 0.5
    assert used[1].cpu_seconds < 0.5


def test_what_was_left_of_an_attempt_is_killed_but_not_the_process_that_has_another_one(store: JobStore) -> None:
    store.create_directories()
    store.submit("over", [{"id": "a", "command": "true"}])
    path = store.paths("over").record("a", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.pause()
        os._exit(0)
    try:
        wait_until(lambda: os.getsid(pid) == pid, what="it has a session")
        over = Record(pid, utc_now(), identity_from_now(pid), 0)
        path.write_bytes(over.text)
        engine = LocalEngine(store, dict(os.environ), Children())
        engine.kill_orphan(Attempt.of("over", "a", 1))
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        path.write_bytes(over._replace(exit_code=None).text)
        engine.kill_orphan(Attempt.of("over", "a", 1))
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        engine.close()
    finally:
        if not is_gone(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_process_is_lost_that_is_killed_after_others_have_worked_for_it(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    """What these have used is no part of what it has used itself: less than nothing would be left."""
    managers.start("--preload", "stays")
    first = run(store, "first", "charges")
    submit(store, "killed", "waits", tmp_path / "never")
    assert said(store, "killed")["pid"] == first["pid"]
    os.kill(first["pid"], signal.SIGKILL)
    assert ended(store, "killed").reason == "lost"
    used = only_task(store, "first").usage
    assert used is not None
    assert used.cpu_seconds > 99


def test_how_long_an_attempt_has_run_is_not_how_long_its_process_has() -> None:
    pid = os.getpid()
    whole = processes.age(pid, processes.identity(pid))
    part = processes.age(pid, identity_from_now(pid))
    assert whole is not None
    assert part is not None
    assert part < whole
    assert processes.is_shim(pid, identity_from_now(pid))
    assert processes.is_of_this_boot(identity_from_now(pid))
