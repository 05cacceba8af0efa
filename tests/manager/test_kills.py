"""What is killed is gone when it is said to be, what may not be killed is said, and what cannot be seen is not gone."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system import processes
from airflow_provider_air_executor.system.processes import Kill
from tests.support.changing import ChangingManagers, in_both_kinds
from tests.support.jobs import ended, only_task, read_log, shim_pid, task
from tests.support.managers import CLI, Managers
from tests.support.processes import is_gone, with_environment
from tests.support.waiting import PATIENCE, wait_until

JOB = f"j-{os.getpid()}"  # other tests have jobs of their own at the same time
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# A process that starts another one in a session of its own and ends, every few milliseconds.
CHAIN = """
import os, sys, time
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    os.setsid()
    with open(sys.argv[1], "ab", 0) as file:
        file.write(b"x")
    time.sleep(0.005)
"""


@in_both_kinds
def test_a_chain_of_processes_does_not_outrun_the_kill(
    store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "chain.py").write_text(CHAIN)
    starts = " ".join(f"{sys.executable} {tmp_path}/chain.py {tmp_path}/c{number} 600 &" for number in range(3))
    store.submit(JOB, [task("a", f"{starts} sleep 1000")])
    counts = [tmp_path / f"c{number}" for number in range(3)]
    wait_until(lambda: all(path.exists() and path.stat().st_size > 3 for path in counts), what="they run")
    inbox.cancel(store, JOB)
    assert ended(store, JOB).reason == "cancelled"
    sizes = [path.stat().st_size for path in counts]
    assert not with_environment(f"AIR_EXECUTOR_JOB={JOB}")
    store.submit("next", ["sleep 1"])
    ended(store, "next")
    assert [path.stat().st_size for path in counts] == sizes


UNTOUCHABLE = """
import os, pathlib, signal

def words(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\\0")
    except OSError:
        return []

def kill(pid, number, real=os.kill):
    if b"1234567" in words(pid):
        raise PermissionError(1, "Operation not permitted")
    real(pid, number)

def killpg(group, number):  # those of a group that may be, as kill(2) does
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getpgid(int(name)) == group:
                kill(int(name), number)
        except OSError:
            pass

os.kill, os.killpg = kill, killpg
"""


@in_both_kinds
@pytest.mark.parametrize("how", ["timeout", "cancelled", "lost"])
def test_what_may_not_be_killed_is_said_and_not_repeated_beside(store: JobStore, managers: Managers, how: str) -> None:
    """A setuid program is such a one, if the manager is not root."""
    managers.patch = UNTOUCHABLE
    if isinstance(managers, ChangingManagers):  # the processes that it forks may not either
        managers.have_imported("untouchable", UNTOUCHABLE)
    managers.start()
    limit = {"timeout": 1} if how == "timeout" else {}
    store.submit(JOB, [task("a", "sleep 1234567 & wait", retries=1, **limit)])
    pid = shim_pid(store, JOB, "a")
    wait_until(_sleeps, what="it runs")
    if how == "cancelled":
        inbox.cancel(store, JOB)
    elif how == "lost":
        os.kill(pid, signal.SIGKILL)
    found = only_task(store, JOB)
    assert (found.reason, found.attempt) == (how, 1)
    assert "may not be killed and lives on (process " in (found.error or "")
    assert "may not be killed" in read_log(store, JOB, "a").text
    assert _sleeps()


def _sleeps() -> bool:
    """Whether the one that may not be killed is there."""
    return any(b"1234567" in words for words in map(_words, with_environment(f"AIR_EXECUTOR_JOB={JOB}")))


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


@needs_root
def test_where_processes_cannot_be_inspected_no_manager_starts(store: JobStore, managers: Managers) -> None:
    """There, whatever runs would be taken for gone, and be run again."""
    script = 'mount -t tmpfs none /proc && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", *CLI, "manager", "--base-path", str(store.base_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=managers.environment)
    assert done.returncode == 1
    assert "/proc is not mounted" in done.stderr


@in_both_kinds
def test_a_stopped_task_hears_that_it_is_to_end(store: JobStore, managers: Managers) -> None:
    managers.start("--kill-grace", "60")
    store.submit(JOB, [task("a", "trap 'echo bye; exit' TERM; kill -STOP $$; sleep 1000 & wait")])
    pid = shim_pid(store, JOB, "a")

    def is_stopped() -> bool:
        return any("T" in _state(process) for process in with_environment(f"AIR_EXECUTOR_JOB={JOB}") if process != pid)

    wait_until(is_stopped, what="it has stopped itself")
    inbox.cancel(store, JOB)
    assert ended(store, JOB).reason == "cancelled"
    assert read_log(store, JOB, "a").text == "bye\n"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@in_both_kinds
def test_a_signal_that_was_blocked_where_the_manager_was_started(
    store: JobStore, managers: Managers, tmp_path: Path, kind_of_tasks: str
) -> None:
    """The manager and its tasks hear SIGTERM all the same."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        manager = managers.start("--kill-grace", "60")
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    code = f"import time, pathlib; pathlib.Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(1000)"
    one = {"id": "a", "command": sys.executable, "args": ["-c", code]}
    if kind_of_tasks == "warm":  # the process that is forked
        one = {**one, "args": ["-m", "timeit", "-n", "1", code], "runner": "warm"}
    store.submit(JOB, [one])
    wait_until((tmp_path / "begun").exists, what="it runs")
    inbox.cancel(store, JOB)
    assert ended(store, JOB).reason == "cancelled"
    manager.send_signal(signal.SIGTERM)
    wait_until(lambda: manager.poll() is not None, what="it has ended")


def test_a_kill_is_over_when_nothing_is_left() -> None:
    token = secrets.token_hex(8)
    environment = {**os.environ, "AIR_EXECUTOR_RUN": token}
    with subprocess.Popen(["sleep", "1000"], env=environment) as one:
        kill = Kill(token, None)
        wait_until(lambda: token.encode() in Path(f"/proc/{one.pid}/environ").read_bytes(), what="it is there")
        assert not kill.look()  # it was found, so it is to be looked once more
        one.wait()
        wait_until(kill.look, what="a look finds nothing more")
    assert is_gone(one.pid)


def test_what_waits_in_the_kernel_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager kills it, and does not stand still meanwhile: a server may never answer."""
    token = secrets.token_hex(8)
    status = processes._status
    with subprocess.Popen(["sleep", "1000"], env={**os.environ, "AIR_EXECUTOR_RUN": token}) as one:
        wait_until(lambda: token.encode() in Path(f"/proc/{one.pid}/environ").read_bytes(), what="it is there")
        with monkeypatch.context() as patch:
            patch.setattr(processes, "_status", lambda pid: _held_up(status(pid)) if pid == one.pid else status(pid))
            kill = Kill(token, None)
            patch.setattr(kill, "_kill", lambda pid: True)
            kill.finish(PATIENCE)
        assert one.poll() is None
        assert not kill.is_over
        kill.finish(PATIENCE)
        one.wait()


def _held_up(status: Any) -> Any:
    return status and status._replace(state="D")


def test_only_new_processes_are_inspected_until_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are many others, and little time, a chain of processes outran the looks at all of them."""
    inspected: list[int] = []
    status = processes._status

    def count(pid: int) -> object:
        inspected.append(pid)
        return status(pid)

    monkeypatch.setattr(processes, "_status", count)
    token = secrets.token_hex(8)
    environment = {**os.environ, "AIR_EXECUTOR_RUN": token}
    with subprocess.Popen(["sleep", "1000"], env=environment) as one:
        wait_until(lambda: token.encode() in Path(f"/proc/{one.pid}/environ").read_bytes(), what="it is there")
        kill = Kill(token, None)
        assert not kill.look(60)
        assert inspected.index(one.pid) < inspected.index(1)  # what is new may be gone in a moment
        one.wait()
        inspected.clear()
        assert not kill.look(60)
        assert 1 not in inspected
        assert wait_until(lambda: kill.look(60), what="a look finds nothing more")
        assert 1 in inspected  # in the end, all are looked at
