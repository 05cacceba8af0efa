"""Commands that are handed over ahead: each follows a short one of its job, with nobody to ask in between."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import inbox, manager_info
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
