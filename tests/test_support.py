"""What the tests themselves rely on: ports of their own, nothing left behind, and waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import ordinary_user
from tests.support.ports import free_port
from tests.support.processes import is_gone
from tests.support.scheduling import group_of
from tests.support.waiting import nothing_until, wait_until

ROOT = Path(__file__).parent.parent

# A test that still runs when its run is ended. What it starts has left its session, and one of them its environment.
ENDLESS = """
import os, subprocess, time
from pathlib import Path

def test_endless(tmp_path):
    mark = dict(os.environ)
    hidden = {"PATH": os.environ["PATH"]}
    with open(tmp_path / "log", "w") as log:
        started = [
            subprocess.Popen(["sleep", "1000"], env=mark, start_new_session=True, stdout=subprocess.DEVNULL),
            subprocess.Popen(["sleep", "1000"], env=hidden, start_new_session=True, stdout=log, cwd="/"),
        ]
    numbers = " ".join(str(process.pid) for process in started)
    Path(os.environ["TOLD"]).write_text(f"{numbers} {tmp_path}\\n")
    time.sleep(1000)
"""


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_interrupted_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, workers: int) -> None:
    (tmp_path / "test_endless.py").write_text(ENDLESS)
    (tmp_path / "temporary").mkdir()
    told = tmp_path / "told"
    options = ["-c", os.devnull, "--rootdir", str(tmp_path), "-p", "tests.support.run", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, "-n", str(workers), str(tmp_path / "test_endless.py")],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary"), "TOLD": str(told)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    words = wait_until(
        lambda: told.exists() and told.read_text().endswith("\n") and told.read_text().split(), what="it runs"
    )
    assert Path(words[2]).exists()
    process.send_signal(number)
    process.wait()
    wait_until(lambda: all(is_gone(int(word)) for word in words[:2]), what="its processes have ended")
    wait_until(lambda: not list((tmp_path / "temporary").iterdir()), what="its files are removed")


def test_no_port_is_given_to_two_processes() -> None:
    code = "from tests.support.ports import free_port; print(*(free_port() for _ in range(60))); input()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    found = [free_port() for _ in range(60)]
    for process in processes:
        assert process.stdout is not None
        found += map(int, process.stdout.readline().split())
    for process in processes:
        process.communicate("\n")
    assert len(found) == len(set(found)) == 240


def test_the_load_of_a_slow_machine_ends_with_its_command() -> None:
    command = [sys.executable, "-m", "tests.support.slow_machine", sys.executable, "-c"]
    code = "import os; from tests.support.processes import *; print(*(p for p in pids() if parent(p) == os.getppid()))"
    done = subprocess.run([*command, code], cwd=ROOT, check=True, capture_output=True, text=True)
    load = [int(word) for word in done.stdout.split()]
    assert len(load) == (os.cpu_count() or 1) + 1
    assert all(map(is_gone, load))
    assert subprocess.run([*command, "raise SystemExit(7)"], cwd=ROOT, check=False).returncode == 7


def test_what_must_not_happen_is_shown_by_what_comes_after_it() -> None:
    steps = iter([False, False, True])
    nothing_until(lambda: next(steps), unless=lambda: None, what="the third step")
    with pytest.raises(AssertionError, match="before the end: 'it happened'"):
        nothing_until(lambda: True, unless=lambda: "it happened", what="the end")
    with pytest.raises(TimeoutError, match="still not: never"):
        wait_until(lambda: False, timeout=0.05, what="never")


def test_tests_that_share_something_are_a_group() -> None:
    module = "tests/engines/test_slurm.py"
    assert group_of(f"{module}::test_a_node_is_lost[True]") == group_of(f"{module}::TestBatches::test_a_batch")
    assert group_of(f"{module}::test_slurm_is_away") != group_of(f"{module}::TestSite::test_too_much_memory") != ""
    example = "tests/acceptance/test_example_dags.py::test_a_job_that_fails"
    assert group_of(f"{example}[embedded]") == group_of("tests/acceptance/test_executor.py::test_a_callback")
    assert group_of(f"{example}[slurm]") == group_of(f"{example}[service]") != group_of(f"{example}[embedded]")
    assert group_of("tests/jobs/test_models.py::test_any[acceptance]") == ""


@pytest.mark.skipif(bool(ordinary_user.missing()), reason=f"needs {', '.join(ordinary_user.missing())}")
def test_tests_as_an_ordinary_user() -> None:
    """They are that user's, and what fails is said."""
    text = "import os\n\ndef test_who(tmp_path):\n    assert os.access('/', os.W_OK), tmp_path.owner()\n"
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        file = Path(directory, "test_who.py")
        file.write_text(text)
        with pytest.raises(AssertionError, match=f"AssertionError: {ordinary_user.USER}\n"):
            ordinary_user.run_tests(str(file), f"--rootdir={directory}")
