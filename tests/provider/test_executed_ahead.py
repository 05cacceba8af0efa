"""A DAG file is executed once for several tasks, which find what it gave: only where that makes no difference."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.installation import SINCE_3_3

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(not SINCE_3_3, reason="before Airflow 3.3 a supervisor forks its tasks itself"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux"),
]

# The DAG file counts how often it is executed.
DAG = """\
import os
from airflow.sdk import DAG, task
import constants

with open(os.environ["COUNT"], "a") as file:
    file.write("x")
with DAG("d", schedule=None) as dag:
    @task
    def work():
        return constants.VALUE
    work()
"""
# What a supervisor does, with tasks of a few lines in place of Airflow's.
PROGRAM = """\
import ctypes, gc, json, os, pathlib, select, signal, socket, sys, time
from airflow.sdk.execution_time import supervisor
from airflow.dag_processing import dagbag
from airflow_provider_air_executor import dag_files, task_forkers, zygote
from airflow_provider_air_executor.dag_files import DagFile
from airflow_provider_air_executor.system import import_report, process_family
from airflow_provider_air_executor.system.stamps import stamps
from airflow_provider_air_executor.zygote import CannotAskError, Zygote

DAGS = pathlib.Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
FILES = [str(DAGS / "d.py"), str(DAGS / "constants.py")]

def execute():
    return dagbag.BundleDagBag(
        dag_folder=str(DAGS / "d.py"), safe_mode=False, load_op_links=False, bundle_path=DAGS, bundle_name="dags-folder"
    )

def task():
    bag = execute()
    dag = bag.dags["d"]
    said = {
        "value": dag.task_dict["work"].python_callable(), "ahead": not any(one is dag for one in gc.get_objects()),
        "path": str(DAGS) in sys.path, "pid": os.getpid(), "group": os.getpgid(0), "session": os.getsid(0),
        "inherited": [fd for fd in range(3, 64) if is_inheritable(fd)], "kept": os.environ.get("KEPT"),
        "files": [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")],
        "handler": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "again": execute() is not bag,
    }
    print(json.dumps(said), flush=True)
    if os.environ.get("HOW") == "waits":
        time.sleep(600)

def is_inheritable(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False

def dag_file(seconds=600.0, key="d"):
    return DagFile(key, "dags-folder", None, "d.py", stamps(FILES), seconds)

def start(forker):
    pairs = [socket.socketpair() for _ in range(4)]
    pid = forker.fork([theirs for _, theirs in pairs], new_process_group=True)
    for _, theirs in pairs:
        theirs.close()
    return pid, [one for one, _ in pairs]

def run(forker):
    pid, ends = start(forker)
    data = b""
    while piece := ends[1].recv(65536):
        data += piece
    return json.loads(data), forker.wait(pid, 600)

def cannot(call):
    try:
        return not call()
    except CannotAskError:
        return True

def count():
    return len(pathlib.Path(os.environ["COUNT"]).read_text()) if os.path.exists(os.environ["COUNT"]) else 0

def said():
    reports = []
    try:
        while True:
            reports.append(json.loads(receiver.recv(65536, socket.MSG_DONTWAIT)))
    except BlockingIOError:
        return [one["why_not"] for one in reports if "why_not" in one]

def report():
    assert select.select([receiver], [], [], 900)[0]
    return json.loads(receiver.recv(65536))

supervisor._subprocess_main = task
task_forkers._WAIT_SECONDS = 900
process_family.may_stay = True
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
import_report.begin(sender)
secret = os.open("secret", os.O_CREAT)
process_family.private.add(secret)
result = {}
exec(sys.argv[1])
print(json.dumps(result))
"""
BEGIN = "plain = Zygote.start(lambda: None)\n"
READY = BEGIN + "ahead = plain.beget(dag_file())\nassert ahead.is_ready(600)\n"


@pytest.fixture
def dags(tmp_path: Path) -> Path:
    path = tmp_path / "dags"
    path.mkdir()
    (path / "d.py").write_text(DAG)
    (path / "constants.py").write_text("VALUE = 1\n")
    return path


def ran(lines: str, dags: Path) -> dict[str, Any]:
    """What the lines put into ``result``."""
    home = dags.parent
    given = {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__DAGS_FOLDER": str(dags), "COUNT": str(home / "count")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, lines],
        capture_output=True,
        text=True,
        check=False,
        cwd=home,
        env={**os.environ, **given, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_tasks_find_executed_what_was_executed_once(dags: Path) -> None:
    lines = f"{READY}result.update(before=count(), tasks=[run(ahead) for _ in range(3)], session=os.getsid(0))"
    result = ran(lines, dags)
    assert result["before"] == 1
    for task, code in result["tasks"]:
        assert (task["value"], task["ahead"], task["path"], task["again"], code) == (1, True, True, True, 0)
        assert task["group"] == task["pid"]
        assert task["session"] == result["session"]
        assert task["handler"]
        assert task["inherited"] == []
        assert not [path for path in task["files"] if path.endswith("secret") or "memfd" in path]


def test_a_task_can_execute_it_itself_as_well(dags: Path) -> None:
    result = ran(f"{READY}run(ahead)\nresult['count'] = count()", dags)
    assert result["count"] == 2  # ahead, and by the task's own wish


@pytest.mark.parametrize("name", ["d.py", "constants.py"])
def test_it_is_executed_anew_when_a_file_of_it_has_changed(dags: Path, name: str) -> None:
    lines = f"""{READY}
(DAGS / "constants.py").write_text("VALUE = 2\\n") if {name!r} != "d.py" else (DAGS / "d.py").write_text(
    (DAGS / "d.py").read_text().replace("constants.VALUE", "2"))
result["stale"] = cannot(lambda: run(ahead))
result["said"] = said()
next = plain.beget(dag_file())
assert next.is_ready(600)
result["value"] = run(next)[0]["value"]
"""
    assert ran(lines, dags) == {"stale": True, "said": [""], "value": 2}


def test_what_it_gave_holds_for_a_limited_time(dags: Path) -> None:
    lines = f"""{BEGIN}
ahead = plain.beget(dag_file(seconds=0.0))
assert ahead.is_ready(600)
result.update(stale=cannot(lambda: run(ahead)), said=said())
"""
    assert ran(lines, dags) == {"stale": True, "said": []}


WHY_NOT = {
    "print('hello')": "it prints, or logs",
    "import logging; logging.getLogger('mine').warning('hello')": "it prints, or logs",
    "import os; os.write(1, b'hello')": "it prints, or logs",
    "import os; os.environ['MINE'] = '1'": "it changes the environment",
    "import os; os.chdir('/')": "it changes the working directory",
    "import signal; signal.signal(signal.SIGUSR1, print)": "it changes handlers of signals",
    "import atexit; atexit.register(print)": "it changes what is done at the end",
    "import sys, logging; handler = logging.StreamHandler()": "it changes who keeps the standard output",
    "import sys; sys.stdout = sys.stderr": "it changes who keeps the standard output",
    "import threading; threading.Timer(600, print).start()": "it changes threads",
    "import os; os.open('/', os.O_RDONLY)": "it changes descriptors",
    "import sys; sys.excepthook = print": "it changes hooks",
    "import warnings; warnings.warn('old')": "it prints, or logs",
    "1 / 0": "it prints, or logs",
    "import other": "it imports other.py, which it did not before",
    "raise KeyboardInterrupt": "executing it has failed: KeyboardInterrupt",
    "import sys; sys.exit()": "it prints, or logs",
}


def test_a_file_that_leaves_something_behind_is_not_executed_ahead(dags: Path) -> None:
    (dags / "other.py").write_text("")
    lines = f"""{BEGIN}
for line in {list(WHY_NOT)!r}:
    (DAGS / "d.py").write_text(line + "\\n" + {DAG!r})
    result[line] = cannot(lambda: plain.beget(dag_file()).is_ready(600)), said()
(DAGS / "d.py").write_text({DAG!r})
result["after"] = run(plain)[0]["value"]
"""
    expected = {line: [True, [why]] for line, why in WHY_NOT.items()}
    assert ran(lines, dags) == {**expected, "after": 1}


def test_a_file_that_ends_its_process_is_not_executed_ahead(dags: Path) -> None:
    (dags / "d.py").write_text("import os\nos._exit(0)\n")
    result = ran(f"{BEGIN}result['cannot'] = cannot(lambda: plain.beget(dag_file()).is_ready(600))", dags)
    assert result == {"cannot": True}


def test_a_task_outlives_the_process_that_has_executed_its_file(dags: Path) -> None:
    lines = f"""os.environ["HOW"] = "waits"
{READY}
pid, ends = start(ahead)
ends[1].recv(65536)
os.kill(ahead.pid, signal.SIGKILL)
result["early"] = ahead.wait(pid, 0)
os.kill(pid, signal.SIGTERM)
result["late"] = ahead.wait(pid, 600)
result["cannot"] = cannot(lambda: run(ahead))
"""
    assert ran(lines, dags) == {"early": None, "late": -15, "cannot": True}


def test_the_process_that_has_executed_a_file_ends_when_it_is_not_needed_for_a_while(dags: Path) -> None:
    """Also if its task still runs: that is its supervisor's then."""
    lines = f"""os.environ["HOW"] = "waits"
zygote._KEEP_SECONDS = 0.1
{READY}
pid, ends = start(ahead)
ends[1].recv(65536)
while not ahead.has_ended():
    time.sleep(0.01)
result["early"] = ahead.wait(pid, 0)
os.kill(pid, signal.SIGTERM)
result["late"] = ahead.wait(pid, 600)
result["used"] = process_family.take_usage()[0] > 0
forkers = task_forkers.TaskForkers()
forkers.share(dag_file(), is_watched=False)
first = next(forkers())
while not first.has_ended():
    time.sleep(0.01)
zygote._KEEP_SECONDS = 600
second = next(forkers())
result["another"] = second is not first and second is not forkers._plain
"""
    expected = {"early": None, "late": -15, "used": True, "another": True}
    assert ran(lines, dags) == expected


FORKERS = """\
forkers = task_forkers.TaskForkers()
forkers.begin()
def ways():
    forkers.begin()
    forkers.share(dag_file(), is_watched=False)
    return forkers()
def pids():
    return [one.pid for one in ways()]
"""


def test_a_supervisor_asks_the_process_that_has_executed_the_file_first(dags: Path) -> None:
    lines = f"""{FORKERS}
result["begun"] = len(list(forkers()))
way = ways()
first = next(way)
result["ahead"] = run(first)[0]["ahead"]
result["the same"] = next(ways()) is first
os.kill(first.pid, signal.SIGKILL)
way = ways()
result["killed"] = cannot(lambda: run(next(way)))
result["then"] = run(next(way))[0]["ahead"]
result["another"] = next(ways()) is not first
"""
    expected = {"begun": 1, "ahead": True, "the same": True, "killed": True, "then": False, "another": True}
    assert ran(lines, dags) == expected


def test_where_each_supervisor_has_few_tasks_the_first_ones_execute_the_file_themselves(dags: Path) -> None:
    lines = f"""{FORKERS}
def is_ahead(key, after=2):
    forkers.begin()
    forkers.share(dag_file(key=key), is_watched=False, after=after)
    return next(forkers()) is not forkers._plain
result["one"] = [is_ahead("1") for _ in range(4)]
result["two"] = [is_ahead("2"), is_ahead("2")]
result["again"] = is_ahead("1")  # it has been executed by now
result["three"] = [is_ahead("3"), is_ahead("4"), is_ahead("3"), is_ahead("4"), is_ahead("3", after=0)]
"""
    assert ran(lines, dags) == {
        "one": [False, False, True, True],
        "two": [False, False],
        "again": True,
        "three": [False, False, False, False, True],
    }


@pytest.mark.parametrize("change", ["os.environ['MINE'] = '1'", "os.chdir('/')"])
def test_in_another_setting_a_file_is_executed_anew(dags: Path, change: str) -> None:
    lines = f"{FORKERS}\nfirst = next(ways())\n{change}\nresult['another'] = next(ways()) is not first"
    assert ran(lines, dags) == {"another": True}


def test_there_are_such_processes_for_the_last_files_only(dags: Path) -> None:
    lines = f"""{FORKERS}
def share(key):
    forkers.begin()
    forkers.share(dag_file(key=key), is_watched=False)
    return next(forkers())
one, two, three = map(share, ("1", "2", "3"))
result["kept"] = [share("3") is three, share("2") is two, share("1") is one]
"""
    assert ran(lines, dags) == {"kept": [True, True, False]}


OWN_BUNDLE = """
import os, pathlib
from airflow.dag_processing.bundles.base import BaseDagBundle

class Own(BaseDagBundle):
    supports_versioning = True
    path = pathlib.Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    def get_current_version(self): return None
    def refresh(self): pass
"""


def test_a_file_that_each_task_may_find_anew_is_not_shared(dags: Path) -> None:
    """That is so in a bundle which is no directory of this machine, if tasks have no version of it."""
    (dags.parent / "own_bundle.py").write_text(OWN_BUNDLE)
    (dags / "d.py").write_text("from airflow.sdk import DAG\nimport constants\nDAG('d', schedule=None)\n")
    lines = f"""
bundles = [{{"name": "dags-folder", "classpath": "own_bundle.Own", "kwargs": {{}}}}]
os.environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"] = json.dumps(bundles)
{BEGIN}
for version in (None, "1"):
    plain.watch(dag_file()._replace(version=version))
    result[str(version)] = report()["why_not"]
"""
    assert ran(lines, dags) == {"None": "each task updates its bundle, which has no versions", "1": ""}


def test_a_watched_file_is_reported_and_the_task_executes_it_itself(dags: Path) -> None:
    (dags / "d.py").write_text(DAG.replace('with open(os.environ["COUNT"], "a") as file:\n    file.write("x")\n', ""))
    lines = f"""{FORKERS}
forkers.begin()
forkers.share(dag_file(), is_watched=True)
result["ahead"] = run(next(forkers()))[0]["ahead"]
told = report()
result["why_not"], result["files"] = told["why_not"], told["files"] == stamps(FILES)
"""
    assert ran(lines, dags) == {"ahead": False, "why_not": "", "files": True}
