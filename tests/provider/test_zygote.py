"""A supervisor's tasks are forked by a process that is as it was before any of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import is_gone
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux"),
]

# What a supervisor does, with tasks of a few lines in place of Airflow's.
PROGRAM = """\
import ctypes, json, os, random, signal, socket, sys, time
from airflow.sdk.execution_time import supervisor
from airflow_provider_air_executor import zygote
from airflow_provider_air_executor.system import process_family

def task():
    how = os.environ["HOW"]
    if how == "waits":
        time.sleep(600)
    if how == "exits":
        sys.exit(7)
    if how == "burns":
        while time.process_time() < 0.4:
            pass
    said = {
        "how": how, "kept": os.environ.get("KEPT"), "unset": os.environ.get("UNSET"), "cwd": os.getcwd(),
        "files": [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")], "drawn": DRAWN,
        "pid": os.getpid(), "group": os.getpgid(0), "session": os.getsid(0), "token": hasattr(zygote, "TOKEN"),
        "handler": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "inherited": [fd for fd in range(3, 64) if is_inheritable(fd)],
        "mask": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    }
    print(json.dumps(said), flush=True)

def is_inheritable(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False

def begin():
    global DRAWN
    DRAWN = random.random()

def start(how):
    os.environ["HOW"] = how
    pairs = [socket.socketpair() for _ in range(4)]
    pid = forker.fork([theirs for _, theirs in pairs], new_process_group=True)
    for _, theirs in pairs:
        theirs.close()
    ours = [one for one, _ in pairs]
    return pid, ours

def run(how):
    pid, ends = start(how)
    return said(ends), forker.wait(pid, 60)

def said(ends):
    data = b""
    while piece := ends[1].recv(65536):
        data += piece
    return json.loads(data) if data else None

supervisor._subprocess_main = task
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
os.environ.update(KEPT="yes", UNSET="yes", HOW="")
secret = os.open("secret", os.O_CREAT)
process_family.private.add(secret)
forker = zygote.Zygote.start(begin)
zygote.TOKEN = "of the supervisor"  # what it has later, no task has
del os.environ["UNSET"]
os.chdir("/")
result = {}
exec(sys.argv[1])
print(json.dumps(result))
"""


def ran(lines: str, tmp_path: Path) -> dict[str, Any]:
    """What the lines put into ``result``."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, lines], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_task_has_the_environment_and_the_directory_of_its_supervisor_and_a_group_of_its_own(tmp_path: Path) -> None:
    result = ran("result['first'], result['second'] = run('a'), run('b'); result['session'] = os.getsid(0)", tmp_path)
    (first, code), (second, _) = result["first"], result["second"]
    assert code == 0
    assert (first["how"], second["how"]) == ("a", "b")
    assert (first["kept"], first["unset"], first["cwd"]) == ("yes", None, "/")
    assert first["group"] == first["pid"] != second["pid"]
    assert first["session"] == result["session"]
    assert first["handler"]
    assert first["mask"] == []
    assert first["inherited"] == []
    assert not [path for path in first["files"] if path.endswith("secret")]
    assert not first["token"]
    assert first["drawn"] != second["drawn"]


def test_its_end_is_known_and_what_it_has_used(tmp_path: Path) -> None:
    lines = """
result['exits'] = run('exits')[1]
pid, ends = start('waits')
result['early'] = forker.wait(pid, 0)
os.kill(pid, signal.SIGKILL)
code = zygote._KilledBy(forker.wait(pid, 60))
result['killed'], result['name'] = code, code.name
process_family.take_usage()
run('burns')
result['used'] = process_family.take_usage()
result['next'] = process_family.take_usage()
"""
    result = ran(lines, tmp_path)
    assert (result["exits"], result["early"], result["killed"], result["name"]) == (7, None, -9, "SIGKILL")
    assert result["used"][0] >= 0.3
    assert result["used"][1] > 1000
    assert result["next"] == [0, 0]


def test_a_task_outlives_the_process_that_has_forked_it(tmp_path: Path) -> None:
    lines = """
pid, ends = start('waits')
os.kill(forker.pid, signal.SIGKILL)
os.waitid(os.P_PID, forker.pid, os.WEXITED | os.WNOWAIT)
result['early'] = forker.wait(pid, 0)
os.kill(pid, signal.SIGKILL)
result['killed'] = forker.wait(pid, 60)
result['alive'] = forker.is_alive()
result['helpers'] = sorted(process_family.helpers)
forker = zygote.Zygote.start(begin)
result['again'] = run('a')[1]
"""
    assert ran(lines, tmp_path) == {"early": None, "killed": -9, "alive": False, "helpers": [], "again": 0}


def test_it_is_not_asked_for_what_it_could_not_give(tmp_path: Path) -> None:
    lines = """
def refused():
    try:
        start("a")
    except zygote.CannotAskError:
        return True
os.environ["LONG"] = 250_000 * "x"
result["long"] = refused()
del os.environ["LONG"]
result["next"] = run("a")[1]
os.kill(forker.pid, signal.SIGKILL)
os.waitid(os.P_PID, forker.pid, os.WEXITED | os.WNOWAIT)
result["gone"] = refused()
"""
    assert ran(lines, tmp_path) == {"long": True, "next": 0, "gone": True}


def test_it_ends_with_its_supervisor(tmp_path: Path) -> None:
    lines = """
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, f"{zygote.Zygote.start(begin).pid}".encode())
    os._exit(0)
os.close(write)
result["pid"] = int(os.read(read, 100))
"""
    pid = ran(lines, tmp_path)["pid"]
    wait_until(lambda: is_gone(pid), what="it is gone")
