"""Generations of the fork server: what they import, which tasks they get, and that nobody waits for the next one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.fork_servers import has_log, is_fork_server, opened, servers
from tests.support.jobs import ended, only_task, read_log, said
from tests.support.managers import Managers
from tests.support.processes import is_gone, parent, pids
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")

# In place of a learner, files say what it would: what is imported, and whether a task goes to the fork server itself.
LEARNER = """
import os, pathlib
from airflow_provider_air_executor.engines.local import engine, preloading
where = pathlib.Path({directory!r})

class Said:
    refused = set()
    def modules(self):
        return tuple(name for name in (where / "wanted").read_text().split() if name not in self.refused)
    def hint(self, key, beside):
        return {{}}
    def goes_to_base(self, key):
        return (where / "to_base").exists()
    def imported(self, seconds, memory):
        (where / "imported").write_text(f"{{seconds}} {{memory}}")
    def failed(self, name, why_not):
        self.refused.add(name)
    def next_trial(self):
        return None
    def write(self, now=False):
        pass
    take = recheck = describe = write

real = engine.LocalEngine.__init__
engine.LocalEngine.__init__ = lambda self, *args, preload, **more: real(
    self, *args, preload=preload._replace(learner=Said()), **more
)
preloading.FIRST_PAUSE = preloading.PAUSE = preloading.LONGEST_PAUSE = preloading.LOOK_SECONDS = {pause}
"""
MODULES = {
    "base": "import os\nIMPORTED_BY = os.getpid()\n",
    "one": "import os\nIMPORTED_BY = os.getpid()\n",
    "two": "import os\nIMPORTED_BY = os.getpid()\n",
    "slow": "import os, time\nwhile not os.path.exists(__file__ + '.go'):\n    time.sleep(0.01)\n",
    "broken": "raise ImportError('it is not installed')\n",
    "threaded": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n",
    "forks": "import subprocess\nsubprocess.Popen(['sleep', '600'])\n",
    "exits": "import os\nos._exit(0)\n",
    "says": """\
import json, os, sys, time
def renew():
    return True
if __name__ == "__main__":
    print(json.dumps({
        "pid": os.getpid(), "parent": os.getppid(),
        "loaded": [name for name in ("base", "one", "two") if name in sys.modules],
        "open": [os.readlink(path) for path in map("/proc/self/fd/{}".format, os.listdir("/proc/self/fd"))
                 if os.path.lexists(path)],
    }), flush=True)
    while sys.argv[1:] and not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
""",
}


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, managers: Managers) -> Path:
    """Modules that the managers of a test can import."""
    directory = tmp_path / "modules"
    directory.mkdir()
    for name, text in MODULES.items():
        (directory / f"{name}.py").write_text(text)
    managers.environment["PYTHONPATH"] = str(directory)
    (tmp_path / "wanted").write_text("")
    managers.patch = LEARNER.format(directory=str(tmp_path), pause=0.05)
    return directory


def submit(store: JobStore, name: str, *words: object) -> None:
    args = ["-m", "says", *map(str, words)]
    store.submit(name, [{"id": "a", "command": sys.executable, "args": args, "runner": "warm"}])


def run(store: JobStore, name: str, *words: object) -> dict[str, Any]:
    submit(store, name, *words)
    ended(store, name)
    assert only_task(store, name).status == "completed", read_log(store, name, "a").text
    return said(store, name)


class Runs:
    """Runs tasks one after the other, under names of their own."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.count = 0

    def __call__(self, *words: object) -> dict[str, Any]:
        self.count += 1
        return run(self.store, f"job{self.count}", *words)

    def until_loaded(self, *names: str) -> dict[str, Any]:
        """Run tasks until one has exactly these modules besides the first one."""
        found: dict[str, Any] = wait_until(
            lambda: next((found for found in [self()] if found["loaded"] == ["base", *names]), None),
            what=f"a generation has {names}",
        )
        return found


@pytest.fixture
def runs(store: JobStore) -> Runs:
    return Runs(store)


def test_a_generation_has_imported_more_and_the_fork_server_has_not(
    store: JobStore, managers: Managers, runs: Runs, tmp_path: Path
) -> None:
    manager = managers.start("--preload", "base")
    first = runs()
    assert first["loaded"] == ["base"]
    (tmp_path / "wanted").write_text("one")
    found = runs.until_loaded("one")
    assert found["parent"] != first["parent"]
    assert parent(found["parent"]) == first["parent"]
    assert parent(first["parent"]) == manager.pid
    (tmp_path / "to_base").touch()
    assert runs()["loaded"] == ["base"]
    (tmp_path / "to_base").unlink()
    (tmp_path / "wanted").write_text("one two")
    last = runs.until_loaded("one", "two")
    assert parent(last["parent"]) == first["parent"]  # not of the one before
    wait_until(lambda: is_gone(found["parent"]), what="the earlier generation has ended")
    paths = store.paths(f"job{runs.count}")
    files = sorted(["/dev/null", *2 * [str(paths.log("a"))], str(paths.record("a", 1))])
    assert opened(last["open"]) == [*files, "socket"]  # of the shim, which may have another attempt
    seconds, memory = map(float, (tmp_path / "imported").read_text().split())
    assert 0 <= seconds < 10
    assert 0 < memory < 100e6


def test_nobody_waits_for_the_next_generation(managers: Managers, runs: Runs, tmp_path: Path, modules: Path) -> None:
    managers.start("--preload", "base")
    (tmp_path / "wanted").write_text("one")
    present = runs.until_loaded("one")["parent"]
    (tmp_path / "wanted").write_text("one slow two")
    manager_sees_it = time.monotonic() + 1
    while time.monotonic() < manager_sees_it:
        assert runs()["parent"] == present
    (modules / "slow.py.go").touch()
    assert runs.until_loaded("one", "two")["parent"] != present


def test_an_earlier_generation_lives_as_long_as_its_attempts(
    store: JobStore, managers: Managers, runs: Runs, tmp_path: Path
) -> None:
    managers.start("--preload", "base")
    (tmp_path / "wanted").write_text("one")
    earlier = runs.until_loaded("one")["parent"]
    submit(store, "waits", tmp_path / "go")
    assert said(store, "waits")["parent"] == earlier
    (tmp_path / "wanted").write_text("two")
    runs.until_loaded("two")
    assert not is_gone(earlier)
    (tmp_path / "go").touch()
    assert ended(store, "waits").state == "completed"
    wait_until(lambda: is_gone(earlier), what="it has ended")
    assert only_task(store, "waits").usage is not None


@pytest.mark.parametrize("module", ["broken", "threaded", "forks", "exits"])
def test_a_generation_that_cannot_be_made_is_said_once_and_the_present_one_goes_on(
    managers: Managers, runs: Runs, tmp_path: Path, module: str
) -> None:
    manager = managers.start("--preload", "base")
    (tmp_path / "wanted").write_text("one")
    present = runs.until_loaded("one")["parent"]
    (tmp_path / "wanted").write_text(f"one {module}")
    for _ in range(8):
        assert runs()["parent"] == present
    (tmp_path / "wanted").write_text("one two")
    runs.until_loaded("one", "two")
    manager.kill()
    lines = manager.communicate()[1].splitlines()
    assert len([line for line in lines if "could not be made" in line]) == 1


def test_a_learner_that_fails_is_left_alone_and_the_present_generation_goes_on(
    store: JobStore, managers: Managers, runs: Runs, tmp_path: Path
) -> None:
    manager = managers.start("--preload", "base")
    (tmp_path / "wanted").write_text("one")
    present = runs.until_loaded("one")["parent"]
    (tmp_path / "wanted").unlink()  # the one of this test reads it
    for _ in range(4):
        assert runs()["parent"] in (present, parent(present))
    began = _cpu_seconds(manager.pid)
    time.sleep(1)
    assert _cpu_seconds(manager.pid) - began < 0.5
    manager.kill()
    assert manager.communicate()[1].count("tasks start without what was learned until the next manager") == 1


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_generation_may_be_killed(store: JobStore, managers: Managers, runs: Runs, tmp_path: Path) -> None:
    managers.start("--preload", "base")
    (tmp_path / "wanted").write_text("one")
    first = runs.until_loaded("one")
    submit(store, "waits", tmp_path / "go")
    assert said(store, "waits")["parent"] == first["parent"]
    os.kill(first["parent"], signal.SIGKILL)
    second = runs.until_loaded("one")
    assert second["parent"] != first["parent"]
    assert parent(second["parent"]) == parent(first["parent"]) or is_gone(first["parent"])
    (tmp_path / "go").touch()
    assert ended(store, "waits").state == "completed"


def test_the_fork_server_may_be_killed_and_its_generation_goes_with_it_when_a_new_one_is_there(
    store: JobStore, managers: Managers, runs: Runs, tmp_path: Path
) -> None:
    manager = managers.start("--preload", "base")
    (tmp_path / "wanted").write_text("one")
    first = runs.until_loaded("one")
    base = parent(first["parent"])
    os.kill(base, signal.SIGKILL)
    wait_until(lambda: base not in servers(manager), what="it is gone")
    wait_until(lambda: runs.until_loaded("one")["parent"] != first["parent"], what="another generation serves")
    wait_until(lambda: is_gone(first["parent"]), what="the earlier generation is gone")
    assert base not in servers(manager)
    assert len(servers(manager)) == 2


def test_nothing_is_left_when_the_manager_is_killed_while_a_generation_is_made(
    store: JobStore, managers: Managers, runs: Runs, tmp_path: Path
) -> None:
    manager = managers.start("--preload", "base")
    runs()
    (tmp_path / "wanted").write_text("slow")
    wait_until(lambda: runs() and len(servers(manager)) == 2, what="it is being made")
    left = list(servers(manager))
    managers.kill(manager)
    wait_until(lambda: all(map(is_gone, left)), what="all of them are gone")


# It writes where it begins and ends, each in one step.
COUNTS = """\
import os, sys, time
def renew():
    return True
def write(word):
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{word} {sys.argv[2]}\\n".encode())
    os.close(file)
if __name__ == "__main__":
    write("begins")
    time.sleep(int(sys.argv[2]) % 7 / 20)
    write("ends")
"""
JOBS = 160


def test_each_job_runs_once_while_generations_change_and_processes_are_killed(
    store: JobStore, managers: Managers, tmp_path: Path, modules: Path
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    (modules / "counts.py").write_text(COUNTS)
    out = tmp_path / "out"
    flags = ("--preload", "base", "--max-concurrent-runners", "6")
    manager = managers.start(*flags)
    store.create_directories()
    names = [f"job{number}" for number in range(JOBS)]
    for number, name in enumerate(names):
        args = ["-m", "counts", str(out), str(number)]
        store.submit(name, [{"id": "a", "command": sys.executable, "args": args, "runner": "warm"}])
    kills = 0
    for _ in range(25):
        (tmp_path / "wanted").write_text(chance.choice(["", "one", "two", "one two"]))
        time.sleep(chance.uniform(0.05, 0.4))
        found = list(servers(manager))
        what = chance.choice(["base", "generation", "shim", "manager", "nothing"])
        if what == "manager":
            managers.kill(manager)
            manager = managers.start(*flags)
        elif what == "base" and found:
            _kill(found[0])
        elif what == "generation" and found[1:]:
            _kill(chance.choice(found[1:]))
            kills += 1  # it may have been a shim that has just been forked
        elif what == "shim":
            shims = [pid for pid in pids() if parent(pid) in found and has_log(pid)]
            kills += bool(shims)
            _kill(*shims[:1])
    for name in names:
        ended(store, name)
    lines = out.read_text().split("\n")[:-1]
    assert len(set(lines)) == len(lines), f"one has run twice, seed {seed}"
    states = [only_task(store, name) for name in names]
    lost = [task for task in states if task.status != "completed"]
    assert all(task.reason == "lost" for task in lost), {task.reason for task in lost}
    assert len(lost) <= kills
    assert all(f"ends {number}" in lines for number, task in enumerate(states) if task.status == "completed")
    assert all(task.attempt == 1 for task in states)
    left = list(servers(manager))
    managers.kill(manager)
    wait_until(lambda: all(map(is_gone, left)), what="all of them are gone")
    assert not _left(modules)


def _kill(*found: int) -> None:
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _left(modules: Path) -> list[int]:
    """The fork servers and generations that are left of this test."""
    wanted = f"PYTHONPATH={modules}".encode()
    found = []
    for pid in pids():
        with contextlib.suppress(OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") and is_fork_server(pid):
                found.append(pid)
    return found
