"""What tasks import is imported ahead of the next ones, if it leaves nothing behind: with a manager as it is."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.fork_servers import servers
from tests.support.jobs import ended, only_task, read_log
from tests.support.managers import Managers, run_cli
from tests.support.processes import is_gone, parent, pids
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")

QUICKLY = """
from airflow_provider_air_executor.engines.local import freshness, preloading, publication
from airflow_provider_air_executor.engines.local.learning import trial
freshness.CHECK_SECONDS = 0.3
publication.SECONDS, publication._SHARE = 0.2, 0
preloading.FIRST_PAUSE = preloading.PAUSE = preloading.LONGEST_PAUSE = preloading.LOOK_SECONDS = 0.1
preloading.TRIALS_SECONDS, trial.SECONDS = 0.3, 2.0
"""
BURNS = "import time\nbegan = time.process_time()\nwhile time.process_time() < began + 0.06: pass\n"
INSTALLED = {
    "good": BURNS + "WHICH = 1\n",
    "better": "import good\n" + BURNS,
}
# Others, and why they are not imported ahead. In tasks they do no harm: a trial yields to these, by which they know it.
LIMIT = "pages = int(open('/proc/self/statm').read().split()[0])\n"
LIMIT += "resource.setrlimit(resource.RLIMIT_AS, (4096 * pages + (64 << 20), resource.RLIM_INFINITY))\n"
DEEPER = "def deeper(kept): return deeper([kept, bytearray(1 << 20)])\n"
REFUSED = {
    "threads": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "it starts a thread when it is imported",
    ),
    "listens": ("import socket\nkept = socket.create_server(('127.0.0.1', 0))", "it opens a socket"),
    "handles": ("import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)", "it changes a signal handler"),
    "forks": ("import os\nif os.nice(0): os.fork()", "it starts a process"),
    "starts": ("import os, subprocess\nif os.nice(0): subprocess.Popen(['sleep', '611'])", "it starts a process"),
    "hides": (
        "import os, subprocess\nif os.nice(0): subprocess.run('setsid sleep 612 & :', shell=True)",
        "it starts a process",
    ),
    "hangs": (
        "import os, subprocess, time\nif os.nice(0): subprocess.Popen(['sleep', '612']), time.sleep(60)",
        "importing it takes longer than",
    ),
    "moves": ("import os\nos.chdir('/')", "it changes the working directory"),
    "keeps": ("import tempfile\nkept = tempfile.TemporaryFile()", "it opens a file"),
    "ends": ("import os\nif os.nice(0): os._exit(0)", "importing it ends the process"),
    "raises": ("import os\nif os.nice(0): raise SystemExit(3)", "importing raises raises SystemExit"),
    "grows": (
        f"import os, resource\n{DEEPER}if os.nice(0):\n{textwrap.indent(LIMIT, ' ')} deeper(None)",
        "importing grows raises MemoryError",
    ),
    # As the kernel does it, where there is no more memory.
    "starves": ("import os\nif os.nice(0): os.kill(os.getpid(), 9)", "importing it ends the process (signal 9)"),
}
# A task: imports what it is told, and reports that, as a task of Airflow's does.
IMPORTS = """\
import importlib, json, os, sys
from airflow_provider_air_executor.system import import_report
if __name__ == "__main__":
    ahead = [name for name in sys.argv[2:] if name in sys.modules]
    for name in sys.argv[2:]:
        importlib.import_module(name)
    which = getattr(sys.modules.get("good"), "WHICH", None)
    import_report.send(sys.argv[1], parse_seconds=0.1, changed=[])
    print(json.dumps({"ahead": ahead, "parent": os.getppid(), "pid": os.getpid(), "which": which}), flush=True)
"""
WAITS = "import os, sys, time\nprint('waits', flush=True)\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\n"


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, managers: Managers) -> Path:
    """The directory of installed modules that the managers of a test have."""
    directory = tmp_path / "site-packages"
    directory.mkdir()
    for name, text in (INSTALLED | {name: f"{BURNS}{code}\n" for name, (code, _) in REFUSED.items()}).items():
        (directory / f"{name}.py").write_text(text)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "imports.py").write_text(IMPORTS)
    (tmp_path / "own" / "waits.py").write_text(WAITS)
    managers.environment["PYTHONPATH"] = f"{tmp_path / 'own'}:{directory}"
    managers.patch = QUICKLY
    return directory


class Tasks:
    """Runs tasks one after the other, under names of their own."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.count = 0

    def __call__(self, *names: str, key: str = "bundle/dag.py") -> dict[str, Any]:
        """Run a task that imports modules, and return what it has found."""
        self.count += 1
        name = f"job{self.count}"
        task = {"id": "a", "command": sys.executable, "args": ["-m", "imports", key, *names]}
        self.store.submit(name, [{**task, "runner": "warm", "preload": ["imports"], "preload_key": key}])
        ended(self.store, name)
        assert only_task(self.store, name).status == "completed", read_log(self.store, name, "a").text
        found: dict[str, Any] = json.loads(read_log(self.store, name, "a").text.splitlines()[-1])
        return found

    def until_ahead(self, *names: str) -> dict[str, Any]:
        """Run tasks until one has all these modules when it begins."""
        found: dict[str, Any] = wait_until(
            lambda: next((found for found in [self(*names)] if found["ahead"] == list(names)), None),
            what=f"{names} are imported ahead",
        )
        return found


@pytest.fixture
def tasks(store: JobStore) -> Tasks:
    return Tasks(store)


def test_what_tasks_import_is_imported_ahead_of_the_next_ones(
    store: JobStore, managers: Managers, tasks: Tasks
) -> None:
    manager = managers.start("--preload", "auto")
    assert tasks("good", "better")["ahead"] == []
    tasks.until_ahead("good", "better")
    assert tasks("good", key="bundle/another.py")["ahead"] == []  # nothing is known of this file
    managers.kill(manager)
    managers.start("--preload", "auto")  # it knows
    wait_until(lambda: tasks("good", "better")["ahead"] == ["good", "better"], what="the next manager has them, too")


def test_what_is_learned_outlives_managers_fork_servers_and_generations(
    store: JobStore, managers: Managers, tasks: Tasks
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    manager = managers.start("--preload", "auto")
    for _ in range(20):
        server = tasks("good", "better")["parent"]  # it has completed, whatever was killed
        found = list(servers(manager))
        what = chance.choice(["fork server", "generation", "manager", "nothing"])
        if what == "manager":
            managers.kill(manager)
            manager = managers.start("--preload", "auto")
        elif what == "generation":
            for pid in found[1:]:
                os.kill(pid, signal.SIGKILL)
        elif what == "fork server" and found and found[0] in (server, parent(server)):  # one that has been warm
            os.kill(found[0], signal.SIGKILL)
    tasks.until_ahead("good", "better")
    names = [f"job{number + 1}" for number in range(tasks.count)]
    assert all(only_task(store, name).attempt == 1 for name in names)
    assert {name: read_log(store, name, "a").text.count("ahead") for name in names} == dict.fromkeys(names, 1)


def test_without_auto_nothing_is_learned(store: JobStore, managers: Managers, tasks: Tasks) -> None:
    managers.start("--preload", "imports")
    for _ in range(6):
        assert tasks("good")["ahead"] == []
    assert not (store.base_path / "preload.json").exists()


def upgrade(installed: Path) -> None:
    """As pip does: a file in place of another one, and another version beside it."""
    (installed / "good-1.0.dist-info").rmdir()
    (installed / "new").write_text(INSTALLED["good"].replace("WHICH = 1", "WHICH = 2"))
    (installed / "new").rename(installed / "good.py")
    (installed / "good-2.0.dist-info").mkdir()


def test_after_an_upgrade_tasks_have_the_new_code_and_those_that_run_go_on(
    store: JobStore, managers: Managers, tasks: Tasks, installed: Path, tmp_path: Path
) -> None:
    (installed / "good-1.0.dist-info").mkdir()
    manager = managers.start("--preload", "auto")
    assert tasks.until_ahead("good")["which"] == 1
    waits = {"id": "a", "command": sys.executable, "args": ["-m", "waits", str(tmp_path / "go")], "runner": "warm"}
    store.submit("waits", [waits])
    wait_until(lambda: read_log(store, "waits", "a").text, what="it runs")
    upgrade(installed)
    wait_until(lambda: tasks("good")["which"] == 2, what="tasks have the new one")
    for _ in range(5):
        assert tasks("good")["which"] == 2
    assert tasks.until_ahead("good")["which"] == 2
    (tmp_path / "go").touch()
    assert ended(store, "waits").state == "completed"
    manager.kill()
    lines = manager.communicate()[1].splitlines()
    assert len([line for line in lines if "has changed; the fork server" in line]) == 1


def test_a_file_of_a_module_that_was_imported_ahead_may_change(
    managers: Managers, tasks: Tasks, tmp_path: Path
) -> None:
    """One that a module names: no package has changed."""
    configured = tmp_path / "configured"
    configured.write_text("one")
    text = f"WORD = open({str(configured)!r}).read()\ndef watched_files():\n    return [{str(configured)!r}]\n"
    (tmp_path / "own" / "reads.py").write_text(text)
    tell(tmp_path, "reads")
    managers.start("--preload", "reads,imports")
    assert tasks()["which"] == "one"
    configured.write_text("two")
    wait_until(lambda: tasks()["which"] == "two", what="it is read again")


def tell(tmp_path: Path, module: str) -> None:
    """Let tasks tell the word that a module has."""
    text = IMPORTS.replace('"which": which', f'"which": __import__({module!r}).WORD')
    (tmp_path / "own" / "imports.py").write_text(text)


def test_a_manager_may_be_asked_to_import_everything_anew(
    store: JobStore, managers: Managers, tasks: Tasks, tmp_path: Path
) -> None:
    own = tmp_path / "own" / "outside.py"
    own.write_text("WORD = 1\n")
    tell(tmp_path, "outside")
    command = ["manager", "--refresh", "--base-path", str(store.base_path)]
    done = run_cli(command, managers.environment)
    assert (done.returncode, "no manager is running" in done.stderr) == (1, True)
    manager = managers.start("--preload", "outside")
    assert tasks()["which"] == 1
    own.write_text("WORD = 22\n")
    done = run_cli(command, managers.environment)
    assert (done.returncode, f"manager {manager.pid}" in done.stdout) == (0, True), done.stderr
    wait_until(lambda: tasks()["which"] == 22, what="it is imported again")
    managers.kill(manager)
    managers.start("--preload", "outside")  # for which that has been done
    assert tasks()["which"] == 22


@pytest.mark.parametrize("module", REFUSED)
def test_a_module_that_leaves_something_behind_is_never_imported_ahead_and_that_is_said_once(
    store: JobStore, managers: Managers, tasks: Tasks, module: str
) -> None:
    why = REFUSED[module][1]
    manager = managers.start("--preload", "auto")
    tasks.until_ahead("good")
    wait_until(lambda: _runs(tasks, module) and refused(store, managers, module), what="it is refused")
    assert _runs(tasks, module)
    _, _, shown = run_cli(info(store), managers.environment).stdout.partition("not imported ahead\n")
    assert [line.split(None, 1)[1][: len(why)] for line in shown.splitlines() if line.startswith(module)] == [why]
    manager.kill()
    lines = [line for line in manager.communicate()[1].splitlines() if module in line]
    assert len([line for line in lines if f"{module} is not imported ahead of the tasks: {why}" in line]) == 1, lines
    assert not [line for line in lines if "generation" in line]
    wait_until(lambda: not _sleeping(), what="nothing is left of its trial")


def _runs(tasks: Tasks, module: str) -> bool:
    """Run a task; it is true that this module was not imported ahead."""
    assert tasks("good", module)["ahead"] in ([], ["good"])
    return True


def info(store: JobStore, *more: str) -> list[str]:
    return ["info", "--preload", "--base-path", str(store.base_path), *more]


def refused(store: JobStore, managers: Managers, module: str) -> bool:
    """Whether the manager says that a module is not imported ahead."""
    done = run_cli(info(store, "--json"), managers.environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return any(one["name"] == module and one["why"] for one in found["learned"]["refused"])


def test_info_shows_what_is_imported_ahead(store: JobStore, managers: Managers, tasks: Tasks) -> None:
    store.create_directories()
    done = run_cli(info(store), managers.environment)
    assert (done.returncode, "no manager is running" in done.stderr) == (1, True)
    manager = managers.start("--preload", "auto")
    assert "there is no fork server" in run_cli(info(store), managers.environment).stdout
    tasks.until_ahead("good", "better")
    both = ["good", "better"]

    def published() -> dict[str, Any] | None:  # before, it may be an earlier one
        found = _generation(store, managers)
        return found if found is not None and found["generation"]["modules"] == both else None

    found = wait_until(published, what="it is published")
    assert found["pid"] == manager.pid
    assert [one["name"] for one in found["learned"]["modules"]] == both
    assert found["learned"]["files"][0]["name"] == "bundle/dag.py"
    text = run_cli(info(store), managers.environment).stdout
    assert re.search(r"generation +\d+ since .*: good, better \(\d+ ms, \S+ MB\)", text)
    assert re.search(r"bundle/dag.py .* the generation", text)
    managers.kill(manager)
    managers.start("--preload", "imports")
    tasks()
    wait_until(
        lambda: "learning          off" in run_cli(info(store), managers.environment).stdout,
        what="there is no learning",
    )


def _generation(store: JobStore, managers: Managers) -> dict[str, Any] | None:
    found: dict[str, Any] = json.loads(run_cli(info(store, "--json"), managers.environment).stdout)
    return found if found["generation"] and found["generation"].get("pid") else None


def _sleeping() -> list[int]:
    words = [(pid, Path(f"/proc/{pid}/cmdline")) for pid in pids()]
    found = []
    for pid, path in words:
        try:
            if path.read_bytes().split(b"\0")[:2] in ([b"sleep", b"611"], [b"sleep", b"612"]) and not is_gone(pid):
                found.append(pid)
        except OSError:
            continue
    return found
