"""Tasks that start warm: their processes are forked from one that has imported their modules."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.attempt_record import read_record
from airflow_provider_air_executor.jobs.models import Task
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system import processes
from tests.support.fork_servers import opened
from tests.support.jobs import ended, read_log, task
from tests.support.managers import Managers
from tests.support.processes import command_line, descendants, is_gone, kill, parent, pids
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")

MODULES = {
    "heavy": "import os\nIMPORTED_BY = os.getpid()\n",
    "broken": "raise ImportError('it is not installed')\n",
    "threaded": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    # It ends with its manager, too, whose streams it holds.
    "slow": """\
import os, time
parent = os.getppid()
while os.getppid() == parent and not os.path.exists(__file__ + ".go"):
    time.sleep(0.02)
""",
    "report": """\
import heavy, json, os, sys
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "imported_by": heavy.IMPORTED_BY, "session": os.getsid(0),
    "args": sys.argv[1:], "cwd": os.getcwd(), "task": os.environ.get("AIR_EXECUTOR_TASK"),
    "main": __name__, "input": sys.stdin.read(),
    "open": [os.readlink(path) for path in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
             if os.path.lexists(path)],
}))
""",
    "ends": """\
import sys
how = sys.argv[1]
print("about to end", how)
if how == "raise":
    raise ValueError("it went wrong")
sys.exit({"none": None, "three": 3, "text": "that is why"}[how])
""",
    # A child in a process group of its own, as Airflow has one, that hides its environment.
    "family": """\
import ctypes, os, sys, time
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    time.sleep(600)
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {pid}\\n")
if sys.argv[2:] == ["stubborn"]:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
""",
    # What it has left to itself has dropped all that it could be known by, but for its parent.
    "adopts": """\
import ctypes, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
depth = int(sys.argv[2])
line = "( " * depth + f"echo >> {sys.argv[1]}; sleep 600" + "; :)" * depth
subprocess.run(["sh", "-c", f"env -i setsid sh -c 'echo $$ > {sys.argv[1]}; {line}; :' &"])
time.sleep(600)
""",
    "pooled": """\
import atexit, concurrent.futures, sys
pool = concurrent.futures.ThreadPoolExecutor(2)
print(pool.submit(sum, [1, 2]).result())
atexit.register(print, "at exit")
""",
    "registered": "import atexit\natexit.register(print, 'registered before the fork')\n",
    "process": """\
import locale, os
mask = os.umask(0)
print(oct(mask), locale.setlocale(locale.LC_ALL))
""",
    "draws": """\
import random, numpy, seeded
print(numpy.random.random(), seeded.numbers.random())
""",
    "seeded": """\
import random
numbers = random.Random()
def after_fork():
    numbers.seed()
""",
    # What stands for a library that is seeded when it is imported.
    "numpy/__init__": "from numpy import random\n",
    "numpy/random": """\
import random as _random
_numbers = _random.Random()
seed, random = _numbers.seed, _numbers.random
""",
    "otel": """\
import threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True, name="OtelBatchSpanRecordProcessor").start()
""",
    # The fork server does not come to say what it has forked; and what it has forked may take a while to begin.
    "mute": """\
import __main__, time
def send(channel, real=__main__._send, **message):
    if "token" in message:
        time.sleep(600)
    real(channel, **message)
__main__._send = send
""",
    "late": """\
import mute, os, time
from airflow_provider_air_executor.engines.local import forked
def claim(path, record, real=forked.claim):
    while not os.path.exists(__file__ + ".go"):
        time.sleep(0.01)
    return real(path, record)
forked.claim = claim
""",
    "waits": """\
import os, sys, time
print("started", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
sys.exit(7)
""",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, managers: Managers) -> Path:
    """Modules that the managers of a test can import."""
    directory = tmp_path / "modules"
    directory.mkdir()
    (directory / "numpy").mkdir()
    for name, text in MODULES.items():
        (directory / f"{name}.py").write_text(text)
    managers.environment["PYTHONPATH"] = str(directory)
    return directory


def warm(module: str, *args: object, **more: Any) -> dict[str, Any]:
    """A task that runs a module, warm if that can be."""
    return {"id": "a", "command": sys.executable, "args": ["-m", module, *map(str, args)], "runner": "warm", **more}


def run(store: JobStore, name: str, task: dict[str, Any], **more: Any) -> Task:
    """Run a job of one task, and return that task."""
    store.submit(name, [task], **more)
    ended(store, name)
    return store.get_tasks(name)[0]


def report_of(store: JobStore, name: str) -> dict[str, Any]:
    import json

    report: dict[str, Any] = json.loads(read_log(store, name, "a").text.splitlines()[-1])
    return report


def fork_servers(manager: subprocess.Popen[str]) -> list[int]:
    """The fork servers of a manager; one at most, unless something is wrong."""
    return [
        pid
        for pid in pids()
        if parent(pid) == manager.pid and any("local.forkserver" in word for word in command_line(pid))
    ]


def test_a_task_is_forked_from_a_process_that_has_imported_its_module(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    manager = managers.start("--preload", "heavy")
    server = wait_until(lambda: fork_servers(manager), what="the fork server runs")[0]
    task = run(store, "one", warm("report", "x", "y z", cwd=str(tmp_path)))
    assert (task.status, task.exit_code) == ("completed", 0)
    report = report_of(store, "one")
    assert report["imported_by"] == report["parent"] == server
    assert report["session"] == report["pid"] != server
    assert report["args"] == ["x", "y z"]
    assert (report["cwd"], report["task"], report["main"], report["input"]) == (str(tmp_path), "a", "__main__", "")
    paths = store.paths("one")
    assert opened(report["open"]) == sorted(["/dev/null", *2 * [str(paths.log("a"))], str(paths.record("a", 1))])
    record = read_record(str(store.paths("one").record("a", 1)))
    assert record is not None
    assert (record.pid, record.exit_code) == (report["pid"], 0)
    assert run(store, "two", warm("report")).exit_code == 0
    assert report_of(store, "two")["pid"] != report["pid"]  # recycled, not used again


def test_without_preloading_the_first_task_warms_it_up(store: JobStore, managers: Managers) -> None:
    manager = managers.start()
    run(store, "local", {"id": "a", "bash": "true"})
    assert fork_servers(manager) == []
    run(store, "one", warm("report", preload=["heavy"]))
    assert report_of(store, "one")["imported_by"] == fork_servers(manager)[0]


@pytest.mark.parametrize(
    ("how", "code", "reason", "says"),
    [
        ("none", 0, None, ""),
        ("three", 3, "exit", ""),
        ("text", 1, "exit", "that is why"),
        ("raise", 1, "exit", "ValueError: it went wrong"),
    ],
)
def test_it_ends_as_a_module_does(
    store: JobStore, managers: Managers, how: str, code: int, reason: str | None, says: str
) -> None:
    managers.start()
    task = run(store, "job", warm("ends", how))
    assert (task.exit_code, task.reason) == (code, reason)
    text = read_log(store, "job", "a").text
    assert text.startswith(f"about to end {how}")
    assert says in text


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"env": {"MODE": "other"}}, "its environment differs"),
        ({"command": "/usr/bin/env", "args": [sys.executable, "-m", "report"]}, "its command is not"),
        ({"args": ["-c", "import report"]}, "its command is not"),
        ({"args": ["-m", "report", "x" * 100_000, "y" * 100_000]}, "too long"),
    ],
)
def test_what_cannot_be_warm_starts_cold_and_says_so(
    store: JobStore, managers: Managers, more: dict[str, Any], why: str
) -> None:
    managers.start("--preload", "heavy")
    task = run(store, "job", {**warm("report"), **more})
    assert task.exit_code == 0, read_log(store, "job", "a").text
    assert re.match(rf"air-executor: a cold start, .*{why}", read_log(store, "job", "a").text)
    report = report_of(store, "job")
    assert report["imported_by"] == report["pid"]


def test_a_task_without_the_managers_environment_starts_cold(store: JobStore, managers: Managers) -> None:
    managers.environment["OUTSIDE"] = "of the manager"
    managers.start("--preload", "heavy")
    line = "import os; print(os.environ.get('OUTSIDE'), os.environ['AIR_EXECUTOR_TASK'])"
    task = {"id": "a", "command": sys.executable, "args": ["-c", line], "runner": "warm", "append_env": False}
    assert run(store, "job", task).exit_code == 0
    assert read_log(store, "job", "a").text.endswith("None a\n")


@pytest.mark.parametrize(
    ("module", "why"),
    [("broken", "it is not installed"), ("threaded", "has started threads"), ("there_is_none", "No module named")],
)
def test_a_failing_preload_means_cold_starts(store: JobStore, managers: Managers, module: str, why: str) -> None:
    managers.start("--preload", module)
    for name in ("one", "two"):
        task = run(store, name, warm("report"))
        assert task.exit_code == 0
        assert why in read_log(store, name, "a").text
        report = report_of(store, name)
        assert report["imported_by"] == report["pid"]


def test_a_task_that_is_cancelled_before_its_modules_are_imported_never_starts(
    store: JobStore, managers: Managers, modules: Path
) -> None:
    managers.start("--preload", "slow")
    store.submit("job", [warm("report")])
    wait_until(lambda: store.get_job("job").state == "working", what="it is loaded")
    inbox.cancel(store, "job")
    assert ended(store, "job").reason == "cancelled"
    (modules / "slow.py.go").touch()
    assert run(store, "next", warm("report")).exit_code == 0  # now they are imported
    assert read_log(store, "job", "a").text == ""


@pytest.mark.parametrize("how", ["mute", "late"])
def test_a_task_that_is_cancelled_while_its_fork_server_dies_does_not_go_on(
    store: JobStore, managers: Managers, tmp_path: Path, modules: Path, how: str
) -> None:
    """It has been forked, and the manager has not heard of that; and it has begun, or begins later."""
    manager = managers.start("--preload", how)
    store.submit("job", [warm("waits", tmp_path / "go")])
    (server,) = wait_until(lambda: fork_servers(manager), what="there is a fork server")
    (shim,) = wait_until(lambda: [pid for pid in pids() if parent(pid) == server], what="it is forked")
    if how == "mute":
        wait_until(lambda: read_log(store, "job", "a").data, what="it runs")
    else:
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: is_gone(server), what="it is dead")
    inbox.cancel(store, "job")
    store.submit("after", ["true"])  # by whose end the manager has read that
    assert ended(store, "after").state == "completed"
    (modules / "late.py.go").touch()
    if how == "mute":
        os.kill(server, signal.SIGKILL)
    assert ended(store, "job").reason == "cancelled"
    wait_until(lambda: is_gone(shim), what="it is gone")


@pytest.mark.parametrize("mode", ["", "stubborn"])
def test_cancelling_ends_the_whole_session(store: JobStore, managers: Managers, tmp_path: Path, mode: str) -> None:
    managers.start()
    file = tmp_path / "pids"
    store.submit("job", [warm("family", file, mode)])
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), what="it runs")
    pids = [int(pid) for pid in file.read_text().split()]
    inbox.cancel(store, "job")
    assert ended(store, "job").reason == "cancelled"
    wait_until(lambda: all(map(is_gone, pids)), what="all of them are gone")


@pytest.mark.parametrize("depth", [0, 12])
def test_cancelling_ends_what_is_known_by_its_parent_alone(
    store: JobStore, managers: Managers, tmp_path: Path, depth: int
) -> None:
    """The children of a process that is killed are those of the shim once it has ended, and so on."""
    managers.start()
    file = tmp_path / "pids"
    store.submit("job", [warm("adopts", file, depth)])
    wait_until(lambda: file.exists() and file.read_text().endswith("\n\n"), what="all of them run")
    stray = int(file.read_text())
    wait_until(lambda: len(descendants([stray])) > depth, what="the last one, too")
    strays = {stray, *descendants([stray])}
    inbox.cancel(store, "job")
    try:
        assert ended(store, "job").reason == "cancelled"
        assert [pid for pid in strays if not is_gone(pid)] == []
    finally:
        kill(strays)


def test_a_shim_that_is_killed_is_lost_and_takes_its_session_along(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.start()
    file = tmp_path / "pids"
    store.submit("job", [warm("family", file)])
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), what="it runs")
    shim, child = (int(pid) for pid in file.read_text().split())
    os.kill(shim, signal.SIGKILL)
    assert ended(store, "job").reason == "lost"
    wait_until(lambda: is_gone(child), what="its child is gone")


def test_the_next_manager_adopts_warm_attempts(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    first = managers.start()
    server = None
    store.submit("job", [warm("waits", tmp_path / "go")])
    store.submit("killed", [warm("family", tmp_path / "pids")])
    pids = tmp_path / "pids"
    wait_until(
        lambda: read_log(store, "job", "a").data and pids.exists() and pids.read_text().endswith("\n"), what="they run"
    )
    server = fork_servers(first)[0]
    managers.kill(first)
    wait_until(lambda: is_gone(server), what="the fork server is gone with its manager")
    shim, child = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    managers.start()
    assert not is_gone(shim)
    (tmp_path / "go").touch()
    assert ended(store, "job").reason == "exit"
    assert store.get_tasks("job")[0].exit_code == 7
    assert read_log(store, "job", "a").text == "started\n"  # once
    os.kill(shim, signal.SIGKILL)
    assert ended(store, "killed").reason == "lost"
    wait_until(lambda: is_gone(child), what="its child is gone")


def test_a_shim_that_died_with_its_manager_is_lost(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    first = managers.start()
    store.submit("job", [warm("family", tmp_path / "pids")])
    wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith("\n"), what="it runs")
    shim, child = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    server = fork_servers(first)[0]
    managers.kill(first)
    wait_until(lambda: is_gone(server), what="the fork server is gone")
    os.kill(shim, signal.SIGKILL)
    managers.start()
    assert ended(store, "job").reason == "lost"
    wait_until(lambda: is_gone(child), what="its child is gone")


def test_the_fork_server_may_be_killed(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    manager = managers.start("--preload", "heavy")
    store.submit("job", [warm("waits", tmp_path / "go")])
    wait_until(lambda: read_log(store, "job", "a").data, what="it runs")
    server = fork_servers(manager)[0]
    os.kill(server, signal.SIGKILL)
    report = run(store, "next", warm("report"))
    assert report.exit_code == 0
    assert report_of(store, "next")["parent"] == fork_servers(manager)[0] != server
    (tmp_path / "go").touch()
    ended(store, "job")
    assert store.get_tasks("job")[0].exit_code == 7
    assert read_log(store, "job", "a").text == "started\n"


def test_many_at_once_and_the_limit_holds(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    managers.start("--max-concurrent-runners", "3")
    (tmp_path / "modules" / "counts.py").write_text("""\
import os, pathlib, sys, time
running, all_are_there = map(pathlib.Path, sys.argv[1:])
mine = running / str(os.getpid())
mine.touch()
while True:
    number = len(os.listdir(running))
    if number >= 3:
        all_are_there.touch()
    if all_are_there.exists():
        break
    time.sleep(0.02)
mine.unlink()
print(number)
""")
    (tmp_path / "running").mkdir()
    given = (tmp_path / "running", tmp_path / "all-are-there")
    tasks = [{**warm("counts", *given), "id": f"t{number}"} for number in range(40)]
    store.submit("job", tasks, max_parallel_tasks=40)
    assert ended(store, "job").state == "completed"
    seen = [int(read_log(store, "job", task["id"]).text) for task in tasks]
    assert max(seen) == 3


def test_a_timeout_ends_a_warm_task(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    managers.start()
    task = run(store, "job", warm("waits", tmp_path / "never", timeout=0.5))
    assert (task.status, task.reason) == ("failed", "timeout")


def test_a_reused_process_id_is_not_the_shim() -> None:
    token = processes.identity(os.getpid())
    pid, started, boot = token.split(".")
    assert processes.is_shim(int(pid), token)
    assert not processes.is_shim(int(pid), f"{pid}.{int(started) + 1}.{boot}")
    assert not processes.is_shim(int(pid), f"{pid}.{started}.00000000")
    assert processes.is_of_this_boot(token)
    with subprocess.Popen(["/bin/true"]) as process:
        token = processes.identity(process.pid)
        wait_until(lambda: is_gone(process.pid), what="it has ended")
        assert not processes.is_shim(process.pid, token)  # a zombie
    with pytest.raises(ProcessLookupError):
        processes.identity(process.pid)


def test_it_ends_as_python_does(store: JobStore, manager: subprocess.Popen[str]) -> None:
    """Pools of threads are stopped before they are joined, and registered functions are called."""
    done = run(store, "j", warm("pooled"))
    assert done.status == "completed"
    assert read_log(store, "j", "a").text == "3\nat exit\n"


def test_what_preloaded_modules_have_registered_is_called_at_its_end(store: JobStore, managers: Managers) -> None:
    managers.start("--preload", "registered")
    for name in ("one", "two"):
        assert run(store, name, warm("pooled")).status == "completed"
        assert read_log(store, name, "a").text == "3\nat exit\nregistered before the fork\n"


def test_it_has_the_umask_and_the_locale_of_a_fresh_process(store: JobStore, managers: Managers) -> None:
    managers.environment["LC_ALL"] = "C.UTF-8"
    managers.start("--preload", "heavy", umask=0o026)
    texts = []
    for runner in ("warm", "local"):
        assert run(store, runner, {**warm("process"), "runner": runner}).status == "completed"
        texts.append(read_log(store, runner, "a").text)
    assert texts[0] == texts[1]
    assert re.fullmatch("0o26 .*C.UTF-8.*\n", texts[0])


@pytest.mark.parametrize(
    ("instead", "why"),
    [("mkfifo", "No such device or address"), ("ln -s /dev/null", "Too many levels of symbolic links")],
)
def test_its_log_is_inspected_as_that_of_any_other_task(
    store: JobStore, manager: subprocess.Popen[str], instead: str, why: str
) -> None:
    """Of a pipe it would wait for a reader for ever."""
    store.submit(
        "j",
        [
            task("a", f'{instead} "$AIR_EXECUTOR_JOB_DIR/logs/b.log"'),
            {**warm("pooled"), "id": "b", "dependencies": ["a"]},
        ],
    )
    ended(store, "j")
    found = store.get_tasks("j")[1]
    assert (found.reason, found.error) == ("spawn", f"the log or the shell cannot be opened: {why}")
    assert run(store, "k", warm("pooled")).status == "completed"


def test_each_draws_numbers_of_its_own(store: JobStore, managers: Managers) -> None:
    """Of what was seeded when it was imported, by itself or by a hook."""
    managers.start("--preload", "numpy,seeded")
    drawn = []
    for number in range(3):
        assert run(store, f"j{number}", warm("draws")).status == "completed"
        drawn.append(read_log(store, f"j{number}", "a").text.split())
    assert len({numbers[0] for numbers in drawn}) == len({numbers[1] for numbers in drawn}) == 3


def test_threads_that_come_back_after_a_fork_are_let_pass(store: JobStore, managers: Managers) -> None:
    managers.start("--preload", "otel")
    run(store, "j", warm("report"))
    assert "cold start" not in read_log(store, "j", "a").text


@pytest.mark.parametrize("is_preloaded", [False, True])
def test_its_own_directory_comes_first(store: JobStore, managers: Managers, tmp_path: Path, is_preloaded: bool) -> None:
    """As with ``python -m``: the module that stands there is run, and no other one of its name."""
    directory = tmp_path / "own"
    directory.mkdir()
    (directory / "waits.py").write_text("import other, os; print('mine', other.WHOSE, os.getcwd())")
    (directory / "other.py").write_text("WHOSE = 'too'")
    managers.start(*(["--preload", "heavy,seeded"] if is_preloaded else []))
    if is_preloaded:
        (directory / "heavy.py").write_text("")
    assert run(store, "j", warm("waits", cwd=str(directory))).status == "completed"
    lines = read_log(store, "j", "a").text.splitlines()
    assert lines[-1] == f"mine too {directory}"
    assert [line for line in lines if "cold start" in line and "heavy" in line] == lines[:-1]
    assert len(lines) == 1 + is_preloaded


def test_modules_of_the_managers_directory_are_nobodys(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    """Neither the fork server's, nor those of a task that has a directory of its own."""
    directory = tmp_path / "start"
    directory.mkdir()
    (directory / "heavy.py").write_text("raise RuntimeError('this is not the one')")
    managers.start("--preload", "heavy", cwd=directory)
    assert run(store, "j", warm("report", cwd=str(tmp_path))).status == "completed"
    assert report_of(store, "j")["cwd"] == str(tmp_path)
