"""Trials of real modules, each in a process of its own: what may be imported ahead, and why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.local.learning import trial
from airflow_provider_air_executor.engines.local.learning.trial import Outcome
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")

RUN = """
import sys
from airflow_provider_air_executor.engines.local.learning import trial
names, after = (text.split(",") if text else [] for text in sys.argv[1:])
print(trial.run(names, after).to_json(), file=sys.__stdout__)
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory of installed packages."""
    path = tmp_path / "site-packages"
    path.mkdir()
    return path


def try_out(packages: Path, *names: str, after: tuple[str, ...] = (), **variables: str) -> Outcome:
    path = os.pathsep.join((str(packages), *variables.pop("path", "").split()))
    with tempfile.TemporaryFile() as output:  # no pipe: a process that a module has left would keep it open
        subprocess.run(
            [sys.executable, "-P", "-c", RUN, ",".join(names), ",".join(after)],
            env={**os.environ, "PYTHONPATH": path, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            check=True,
            timeout=PATIENCE,
        )
        return Outcome.from_json(output.seek(0) or output.read())


def module(packages: Path, name: str, code: str) -> None:
    path = packages / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)


def test_a_package_that_leaves_nothing_behind_passes(packages: Path) -> None:
    module(packages, "good.__init__", "from good import inner\nimport other\n")
    module(packages, "good.inner", "data = bytearray(b'x') * 30_000_000\n")
    burns = "import time\nend = time.process_time() + 0.07\nwhile time.process_time() < end: pass\n"
    module(packages, "good.late", burns)
    module(packages, "other.__init__", "import other.inner")
    module(packages, "other.inner", "")
    outcome = try_out(packages, "good", "good.inner", "good.late")
    assert (outcome.why_not, outcome.names, outcome.needs) == ("", ("good", "good.late"), ("other",))
    assert 0.05 <= outcome.cpu_seconds < 5
    assert 29_000_000 < outcome.memory_bytes < 60_000_000
    outcome = try_out(packages, "good", after=("other",))
    assert (outcome.why_not, outcome.needs) == ("", ())


REFUSED = {
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True, name='mine').start()": "mine",
    "import _thread, time\n_thread.start_new_thread(lambda: time.sleep(60), ())\ntime.sleep(0.1)": "it starts a thread",
    "import ctypes\nlibc = ctypes.CDLL(None)\n"
    "libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, ctypes.cast(libc.pause, ctypes.c_void_p), None)": (
        "its library starts threads"
    ),
    "import os, time\nif os.fork() == 0:\n    time.sleep(60)": "it starts a process",
    "import os, time\nif os.fork() == 0:\n    if os.fork() == 0:\n        time.sleep(60)\n    os._exit(0)": (
        "it starts a process"
    ),
    "import subprocess\nsubprocess.Popen(['sleep', '60'], start_new_session=True)": "it starts a process",
    "import os\nos.fork()": "it starts a process",  # its child comes back from the import, too
    "import socket\nkept = socket.socket()": "it opens a socket",
    "import os\nkept = os.pipe()": "it opens a pipe",
    "kept = open('/dev/null')": "it opens a device (/dev/null)",
    "kept = open(__file__)": "it opens a file",
    "import select\nkept = select.epoll()": "it opens a descriptor",
    "import mmap\nkept = mmap.mmap(-1, 4096)": "it shares memory",
    "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)": "it changes a signal handler",
    "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])": "it changes the mask of signals",
    "import signal\nsignal.setitimer(signal.ITIMER_REAL, 60)": "it changes a timer",
    "import os\nos.environ['SECRET'] = 'a secret'": "it changes the environment when it is imported (SECRET)",
    "import os\ndel os.environ['PATH']": "it changes the environment when it is imported (PATH)",
    "import os\nos.chdir('/')": "it changes the working directory",
    "import os\nos.umask(0o77)": "it changes the umask",
    "import sys\nsys.path.append('/x')": "it changes sys.path",
    "import sys\nsys.excepthook = print": "it changes a hook of Python's",
    "import sys, io\nsys.stdout = io.StringIO()": "it changes the standard streams",
    "import logging\nlogging.basicConfig(level='DEBUG')": "it changes the logging",
    "import time\ntime.sleep = print": "it changes functions of other modules",
    "import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))": "it changes the limits of the process",
    "import os\nos.setpgid(0, 0)": "it changes the session or the group",
    "import random\nrandom.seed(1)": "it changes the state of the module random",
    "import gc\ngc.disable()": "it changes the garbage collector",
    "import sys\nsys.setrecursionlimit(5000)": "it changes the limits of Python",
    "import socket\nsocket.setdefaulttimeout(5)": "it changes the timeout of sockets",
    "import multiprocessing\nmultiprocessing.set_start_method('spawn')": "it changes how other processes are started",
    "raise SystemExit(0)": "importing bad raises SystemExit",
    "raise KeyboardInterrupt": "importing bad raises KeyboardInterrupt",
    "raise ValueError('a secret')": "importing bad raises ValueError",
    "import missing_module": "importing bad raises ModuleNotFoundError",
    "print('hello')": "it writes text",
    "import os\nos.write(2, b'hello')": "it writes text",
    "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(60))": "a process that is forked after",
    "import os\nos.register_at_fork(after_in_child=lambda: os._exit(3))": "a process that is forked after",
}


@pytest.mark.parametrize("code", REFUSED)
def test_a_module_that_leaves_something_behind_is_refused(packages: Path, code: str) -> None:
    module(packages, "bad", code + "\n")
    try:
        outcome = try_out(packages, "bad")
    finally:
        end_all(str(packages))
    assert REFUSED[code] in outcome.why_not
    assert "a secret" not in outcome.to_json()


def end_all(path: str) -> None:
    """End the processes that modules have left, which are those with this path in their environment."""
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(number) != os.getpid() and path.encode() in Path(f"/proc/{number}/environ").read_bytes():
                os.kill(int(number), signal.SIGKILL)
        except OSError:
            continue


def test_what_was_there_before_is_no_reason(packages: Path) -> None:
    module(packages, "first", "import os\nos.environ['A'] = 'b'\nkept = os.pipe()\n")
    module(packages, "second", "import first\n")
    assert "first" in try_out(packages, "second").needs
    assert try_out(packages, "second", after=("first",)).why_not == ""
    assert try_out(packages, "second").changed == ("A",)


def test_a_user_s_module_is_never_imported(packages: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    module(bundle, "mine", "import os\nos._exit(3)\n")
    module(bundle, "space.mine", "import os\nos._exit(3)\n")
    module(packages, "space.theirs", "")
    for name in ("mine", "space.mine"):
        assert "not imported from the installed packages" in try_out(packages, name, path=str(bundle)).why_not
    assert try_out(packages, "space.theirs", path=str(bundle)).why_not == ""
    module(bundle, "shadowed", "import os\nos._exit(3)\n")
    module(packages, "shadowed", "")
    ahead = os.pathsep.join((str(bundle), str(packages)))
    assert "not imported from the installed" in try_out(packages, "shadowed", PYTHONPATH=ahead).why_not
    assert "is not installed" in try_out(packages, "there_is_no_such").why_not


def test_what_does_no_harm_passes(packages: Path) -> None:
    module(packages, "draws", "import random\nrandom.random()\n")
    assert try_out(packages, "draws").why_not == ""
    module(
        packages,
        "odd",
        "import types, sys\nclass Odd(types.ModuleType):\n    __dict__ = property()\nsys.modules['o'] = Odd('o')\n",
    )
    assert try_out(packages, "odd").why_not == ""


def test_what_is_known_not_to_survive_a_fork_is_refused(packages: Path) -> None:
    module(packages, "pyarrow.__init__", "")
    module(packages, "pyarrow.flight", "")
    module(packages, "uses", "import pyarrow.flight\n")
    assert try_out(packages, "pyarrow").why_not == ""
    assert try_out(packages, "uses").why_not.startswith("pyarrow.flight: its connections do not work")


def test_a_module_of_python_passes(packages: Path) -> None:
    assert try_out(packages, "wsgiref", "wsgiref.handlers").why_not == ""


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"\xff", b"{" * 99, b" " * 300_000, json.dumps({"why_not": None})[:-1].encode()]
)
def test_an_answer_that_is_none_has_not_passed(data: bytes) -> None:
    assert Outcome.from_json(data).why_not


def test_an_answer_is_bounded() -> None:
    content = {
        "cpu_seconds": 1e99,
        "memory_bytes": -5,
        "why_not": "a\nb" * 999,
        "names": ["a b", 1, "ok"],
        "needs": "x",
    }
    outcome = Outcome.from_json(json.dumps(content))
    assert (outcome.memory_bytes, outcome.names, outcome.needs) == (0, ("ok",), ())
    assert outcome.cpu_seconds < 100_000
    assert len(outcome.why_not) == 300
    assert "\n" not in outcome.why_not


def test_an_outcome_is_the_same_after_its_way_through_a_pipe() -> None:
    outcome = Outcome(0.5, 1000, "why", ("a", "a.b"), ("c",), ("D",))
    assert Outcome.from_json(outcome.to_json().encode()) == outcome


def test_one_that_ends_the_process_gives_no_answer(packages: Path) -> None:
    module(packages, "ends", "import os\nos._exit(0)\n")
    assert try_out(packages, "ends").why_not == "its trial gave no answer that can be read"
    assert trial.died(0) == "importing it ends the process"
    assert trial.died(9) == "importing it ends the process (signal 9)"
