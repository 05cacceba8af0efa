"""Commands that are handed over ahead: each follows a short one of its job, with nobody to ask in between."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.local.launcher import Request
from airflow_provider_air_executor.jobs import inbox, manager_control, manager_info
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended, outcomes, remove, task
from tests.support.launched import LAUNCHED
from tests.support.managers import Managers
from tests.support.processes import is_gone
from tests.support.waiting import until, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there are launchers on Linux")

# Every command counts as short, for so many seconds; each launcher has one ahead if it can.
_LAUNCHER = """
from airflow_provider_air_executor.engines.local import launcher

def give_back(self, request, real=launcher.Launcher._give_back):
    open("{path}/back", "a").close()
    real(self, request)

launcher._NEW_SECONDS, launcher.Launcher._give_back = {seconds}, give_back
launcher.main()
"""
_MANAGER = """
import sys

launching._SHORT_IN_A_ROW = 0
launching.module_command = lambda module, *words: [sys.executable, "-c", {code!r}, *words]
"""


def ahead(path: Path, seconds: float = 3600) -> str:
    """What the manager runs before it begins."""
    return LAUNCHED + _MANAGER.format(code=_LAUNCHER.format(path=path, seconds=seconds))


@pytest.fixture
def is_ahead(store: JobStore) -> Callable[[], bool]:
    """Whether the second task was handed over, behind the first one, which runs."""

    def found() -> bool:
        return [each.status for each in store.get_tasks("j")] == ["running", "running", "pending"]

    return found


def submit(store: JobStore, path: Path) -> None:
    """A job of three tasks, one at a time, of which the first one waits."""
    line = f"echo $$ > {path}/pid; echo a >> {path}/ran; {until(path / 'go')}; echo done >> {path}/ran"
    first = task("a", line)
    others = [task(name, f"echo {name} >> {path}/ran") for name in "bc"]
    store.submit("j", [first, *others], max_parallel_tasks=1)


def ran(path: Path) -> list[str]:
    return (path / "ran").read_text().split() if (path / "ran").exists() else []


def test_each_starts_when_the_one_before_has_ended(
    store: JobStore, managers: Managers, tmp_path: Path, is_ahead: Callable[[], bool]
) -> None:
    managers.patch = ahead(tmp_path)
    managers.start()
    submit(store, tmp_path)
    wait_until(is_ahead, what="the second one was handed over")
    wait_until(lambda: ran(tmp_path), what="the first one has begun")
    assert ran(tmp_path) == ["a"]
    assert not store.paths("j").record("b", 1).exists()
    (tmp_path / "go").touch()
    assert ended(store, "j").state == "completed"
    assert ran(tmp_path) == ["a", "done", "b", "c"]
    first, second, third = store.get_tasks("j")
    assert first.completed_at is not None
    assert second.started_at is not None
    assert third.started_at is not None
    assert second.completed_at is not None
    assert first.completed_at <= second.started_at <= second.completed_at <= third.started_at


def test_what_would_wait_is_given_back(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    managers.patch = ahead(tmp_path, seconds=2)
    managers.start()
    submit(store, tmp_path)
    wait_until((tmp_path / "back").exists, what="the second one was given back")
    wait_until(lambda: store.get_tasks("j")[1].status == "pending", what="that is known")
    (tmp_path / "go").touch()
    assert ended(store, "j").state == "completed"
    assert ran(tmp_path) == ["a", "done", "b", "c"]
    assert [each.attempt for each in store.get_tasks("j")] == [1, 1, 1]


def test_a_job_is_cancelled(store: JobStore, managers: Managers, tmp_path: Path, is_ahead: Callable[[], bool]) -> None:
    """What was handed over is withdrawn before the command is killed that it follows."""
    managers.patch = ahead(tmp_path)
    managers.start()
    submit(store, tmp_path)
    wait_until(is_ahead, what="the second one was handed over")
    inbox.cancel(store, "j")
    assert ended(store, "j").reason == "cancelled"
    assert {reason for _, reason in outcomes(store, "j").values()} == {"cancelled"}
    assert ran(tmp_path) == ["a"]


def test_a_task_is_cancelled(store: JobStore, managers: Managers, tmp_path: Path, is_ahead: Callable[[], bool]) -> None:
    managers.patch = ahead(tmp_path)
    managers.start()
    submit(store, tmp_path)
    wait_until(is_ahead, what="the second one was handed over")
    inbox.cancel(store, "j", tasks=["b"])
    wait_until(lambda: store.get_tasks("j")[1].status == "failed", what="it is cancelled")
    (tmp_path / "go").touch()
    assert ended(store, "j").state == "failed"
    assert outcomes(store, "j")["b"] == ("failed", "cancelled")
    cancelled = store.get_tasks("j")[1]
    assert (cancelled.attempt, cancelled.started_at) == (0, None)
    assert ran(tmp_path) == ["a", "done", "c"]


def test_a_job_is_removed(store: JobStore, managers: Managers, tmp_path: Path, is_ahead: Callable[[], bool]) -> None:
    managers.patch = ahead(tmp_path)
    managers.start()
    submit(store, tmp_path)
    wait_until(is_ahead, what="the second one was handed over")
    first = int((tmp_path / "pid").read_text())
    remove(store, "j")
    wait_until(lambda: is_gone(first), what="what ran is killed")
    store.submit("next", [task("x", f"echo x >> {tmp_path}/ran")])
    assert ended(store, "next").state == "completed"
    assert ran(tmp_path) == ["a", "x"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_manager_ends(
    store: JobStore, managers: Managers, tmp_path: Path, is_ahead: Callable[[], bool], number: signal.Signals
) -> None:
    """A launcher that is alone starts nothing more; the next manager does."""
    managers.patch = ahead(tmp_path)
    manager = managers.start()
    submit(store, tmp_path)
    wait_until(is_ahead, what="the second one was handed over")
    manager.send_signal(number)
    manager.wait()
    first = int((tmp_path / "pid").read_text())
    (tmp_path / "go").touch()
    wait_until(lambda: is_gone(first), what="the first one has ended")
    managers.start()
    assert ended(store, "j").state == "completed"
    assert ran(tmp_path) == ["a", "done", "b", "c"]
    assert [each.attempt for each in store.get_tasks("j")] == [1, 1, 1]


def test_the_launcher_is_killed(
    store: JobStore, managers: Managers, tmp_path: Path, is_ahead: Callable[[], bool]
) -> None:
    """What has not begun is not lost with it."""
    managers.patch = ahead(tmp_path)
    manager = managers.start()
    submit(store, tmp_path)
    wait_until(is_ahead, what="the second one was handed over")
    for pid in map(int, Path(f"/proc/{manager.pid}/task/{manager.pid}/children").read_text().split()):
        if b"import launcher" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    assert ended(store, "j").state == "failed"
    assert outcomes(store, "j") == {"a": ("failed", "lost"), "b": ("completed", None), "c": ("completed", None)}
    assert ran(tmp_path) == ["a", "b", "c"]


def test_another_job_waits(store: JobStore, managers: Managers, tmp_path: Path, is_ahead: Callable[[], bool]) -> None:
    """Then the next place is taken ahead by none."""
    managers.patch = ahead(tmp_path)
    managers.start("--max-concurrent-runners", "1")
    submit(store, tmp_path)
    wait_until(is_ahead, what="the second one was handed over")
    store.submit("other", [task("x", f"echo x >> {tmp_path}/ran")], priority=1)

    def waits() -> bool:
        found = manager_info.load(store)
        return found is not None and found.jobs["waiting"] == 1

    wait_until(waits, what="it waits for its turn")
    (tmp_path / "go").touch()
    for name in ("j", "other"):
        assert ended(store, name).state == "completed"
    assert ran(tmp_path) == ["a", "done", "b", "x", "c"]


def test_no_more_run_at_a_time_than_may(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    """Counted by what they do: in `ran` each writes + before it does something, and - after it."""
    managers.patch = ahead(tmp_path)
    managers.start()
    line = f"echo + >> {tmp_path}/ran; sleep 0.01; echo - >> {tmp_path}/ran"
    store.submit("j", [task(f"t{number}", line) for number in range(60)], max_parallel_tasks=2)
    assert ended(store, "j").state == "completed"
    running = most = 0
    for sign in ran(tmp_path):
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert (running, most) == (0, 2)
    changes = sorted(
        change
        for each in store.get_tasks("j")
        if each.started_at and each.completed_at
        for change in ((each.started_at, 1), (each.completed_at, -1))
    )
    assert max(sum(step for _, step in changes[: number + 1]) for number in range(len(changes))) == 2


@dataclass
class Channel:
    """A launcher, as the manager has it.

    :param socket: to it.
    :param process: its.
    :param directory: of what it starts.
    """

    socket: socket.socket
    process: subprocess.Popen[bytes]
    directory: Path

    def ask(self, key: int, line: str, *, after: int = -1, log: str = "log") -> None:
        """Ask it to run a line of sh."""
        where = [str(self.directory / name) for name in (f"record{key}", log)]
        now = datetime.now(UTC).isoformat()
        request = Request(key, after, f"{key:016x}", where[0], now, where[1], "", "/bin/sh", [], ["-c", line])
        self.socket.send(request.data)

    def events(self, number: int) -> list[list[object]]:
        """What it says next: so many events, each with its name and its key."""
        found: list[list[object]] = []
        while len(found) < number:
            found += [event[:2] for event in json.loads(self.socket.recv(100_000))]
        return found


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[Channel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [sys.executable, "-c", _LAUNCHER.format(path=tmp_path, seconds=3600), str(theirs.fileno())]
    with ours, subprocess.Popen(words, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        found = Channel(ours, process, tmp_path)
        assert ours.recv(1000) == b'[["ready"]]'
        yield found
        ours.close()
        process.wait()


def test_what_was_to_follow_a_refused_one_is_given_back(channel: Channel) -> None:
    """Its predecessor runs otherwise then, and one after the other."""
    channel.ask(1, "true", log="no-such-directory/log")
    channel.ask(2, "true", after=1)
    channel.ask(3, "true", after=2)
    assert channel.events(3) == [["refused", 1], ["later", 2], ["later", 3]]


@pytest.mark.parametrize("withdrawn", [1, 2])
def test_a_withdrawal_counts_that_came_before_the_end(channel: Channel, tmp_path: Path, withdrawn: int) -> None:
    """Of the follower, or of the command that it follows, which is to be killed."""
    channel.ask(1, f"echo $$ > {tmp_path}/pid; {until(tmp_path / 'go')}")
    channel.ask(2, f"echo 2 >> {tmp_path}/ran", after=1)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="it runs")
    channel.process.send_signal(signal.SIGSTOP)
    channel.socket.send(str(withdrawn).encode())
    (tmp_path / "go").touch()
    path = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    wait_until(lambda: path.read_text().rpartition(")")[2].split()[0] == "Z", what="it has ended")
    channel.process.send_signal(signal.SIGCONT)
    said = channel.events(2)
    assert said[0] == ["later", 2]
    assert said[1] in (["ended", 1], ["begun", 1])  # the former if it has seen the end first
    assert said[1][0] == "ended" or channel.events(1) == [["ended", 1]]
    assert not ran(tmp_path)


@pytest.mark.parametrize("first", ["a dependent", "a retry"])
def test_one_at_a_time_no_task_is_overtaken(store: JobStore, managers: Managers, tmp_path: Path, first: str) -> None:
    managers.patch = ahead(tmp_path)
    managers.start()
    line = f"echo $0 >> {tmp_path}/ran"
    tasks = [task("a", f"{line}; test $AIR_EXECUTOR_ATTEMPT = 2", retries=1), task("b", line)]
    if first == "a dependent":
        tasks = [task("a", line), task("x", line, after="a"), task("b", line)]
    for each in tasks:
        each["bash"] = each["bash"].replace("$0", each["id"])
    store.submit("j", tasks, max_parallel_tasks=1)
    assert ended(store, "j").state == "completed"
    assert ran(tmp_path) == (["a", "x", "b"] if first == "a dependent" else ["a", "a", "b"])


def test_there_are_fewer_slots_by_now(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    """Then a place that is free is not taken again."""
    managers.patch = ahead(tmp_path)
    managers.start("--max-concurrent-runners", "2")
    first = [task(f"a{number}", f"{until(tmp_path / f'go{number}')}; echo a >> {tmp_path}/ran") for number in (1, 2)]
    others = [task(f"b{number}", f"echo b{number} >> {tmp_path}/ran") for number in range(6)]
    store.submit("j", [*first, *others], max_parallel_tasks=2)
    statuses = ["running"] * 4 + ["pending"] * 4
    wait_until(lambda: [each.status for each in store.get_tasks("j")] == statuses, what="two were handed over")
    manager_control.set_slots(store, 1)

    def is_known() -> bool:
        info = manager_info.load(store)
        return info is not None and info.slots["local"].limit == 1

    wait_until(is_known, what="the manager knows")
    (tmp_path / "go1").touch()
    wait_until(lambda: "completed" in {each.status for each in store.get_tasks("j")[2:]}, what="a follower has ended")
    (tmp_path / "go2").touch()
    assert ended(store, "j").state == "completed"
    found = ran(tmp_path)
    assert [name[0] for name in found[:3]] == ["a", "b", "a"]
