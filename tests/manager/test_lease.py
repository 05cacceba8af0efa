"""The lease of a manager: what keeps others from its jobs where its lock is not seen."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.local import elsewhere
from airflow_provider_air_executor.engines.local.attempt import LocalAttempt
from airflow_provider_air_executor.engines.local.elsewhere import Elsewhere
from airflow_provider_air_executor.engines.protocol import Attempt, Ended
from airflow_provider_air_executor.exceptions import ManagerRunningError
from airflow_provider_air_executor.jobs import files, manager_lease, manager_status
from airflow_provider_air_executor.jobs.manager_lease import SECONDS, Lease, Place
from airflow_provider_air_executor.jobs.models import JobState, Reason, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.lease import ManagerLease
from airflow_provider_air_executor.manager.lock import ManagerLock
from airflow_provider_air_executor.system import processes
from airflow_provider_air_executor.system.clock import boot
from tests.support.jobs import ended, task
from tests.support.managers import Managers, command, end_tasks_of, run_cli
from tests.support.waiting import wait_until

THERE = Place("0therb00", 42)  # a machine that is not this one
FAR = Lease(7, "far", 4711, THERE, is_shared=True)  # its manager


class Time:
    """Seconds that pass while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.on_sleep: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def lease(store: JobStore, clock: Time) -> ManagerLease:
    store.create_directories()
    return ManagerLease(store, clock, clock.sleep)


def write(store: JobStore, lease: Lease, *, age: float = 0.0) -> None:
    """Write a lease as a manager elsewhere does it."""
    files.make_directory(manager_lease.directory_of(store), exist_ok=True)
    path = manager_lease.path_of(store, lease.term)
    path.write_bytes(lease.text)
    os.utime(path, (time.time() - age, time.time() - age))


def latest(store: JobStore) -> Lease:
    found = manager_lease.latest(store)
    assert found is not None
    return found


# -- taking it ---------------------------------------------------------------------------------------------


def test_one_term_after_the_other(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    for term in range(1, 4):
        lease.take()
        found = latest(store)
        assert (found.term, found.host, found.pid) == (term, os.uname().nodename, os.getpid())
        assert not found.is_over
        lease.release()
        assert latest(store).is_over
    assert clock.now == 1000.0
    assert manager_lease.terms(store) == [1, 2, 3]


def test_of_a_manager_that_was_killed_here(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    ManagerLease(store).take()  # the lock, which is free, says that it is gone
    lease.take()
    assert (latest(store).term, clock.now) == (2, 1000.0)


def test_of_a_manager_elsewhere_that_lives(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    write(store, FAR)
    clock.on_sleep = lambda: write(store, FAR._replace(beat=1)) if clock.now >= 1004 else None
    with pytest.raises(ManagerRunningError, match=r"process 4711 of far") as raised:
        lease.take()
    assert (raised.value.pid, raised.value.host) == (4711, "far")
    assert manager_lease.terms(store) == [7]


def test_of_a_manager_elsewhere_that_is_dead(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    write(store, FAR)
    lease.take()
    assert latest(store).term == 8
    assert clock.now >= 1000 + SECONDS


def test_of_a_manager_elsewhere_that_ends(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    write(store, FAR)
    clock.on_sleep = lambda: write(store, FAR._replace(beat=1, is_over=True))
    lease.take()
    assert latest(store).term == 8
    assert clock.now < 1002


def test_of_a_machine_that_was_started_anew(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    """No other machine uses its file system, so it is this one, or one that has given its volume away."""
    write(store, FAR._replace(is_shared=False))
    assert not manager_status.is_running(store)
    lease.take()
    assert (latest(store).term, clock.now) == (8, 1000.0)


def test_of_a_manager_that_is_long_dead(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    write(store, FAR, age=3600)
    lease.take()
    assert (latest(store).term, clock.now) == (8, 1000.0)


def test_of_two_that_want_it_at_once_one_gets_it(
    store: JobStore, lease: ManagerLease, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mount does not see yet what the other one has made."""
    write(store, Lease(1, "far", 4711, THERE, is_over=True))
    write(store, FAR._replace(term=2, pid=4712))
    listed = iter([[1], [1]])
    real = manager_lease.terms
    monkeypatch.setattr(manager_lease, "terms", lambda store: next(listed, None) or real(store))
    clock.on_sleep = lambda: write(store, FAR._replace(term=2, pid=4712, beat=int(clock.now)))
    with pytest.raises(ManagerRunningError, match="process 4712 of far"):
        lease.take()


def test_one_that_is_just_being_written(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    write(store, Lease(1))
    manager_lease.path_of(store, 1).write_bytes(b"")
    clock.on_sleep = lambda: write(store, FAR._replace(term=1))
    with pytest.raises(ManagerRunningError, match="of far"):
        lease.take()


def test_on_a_full_disk(store: JobStore, lease: ManagerLease, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        lease.take()
        assert manager_lease.terms(store) == []
        lease.renew()
    lease.renew()
    assert latest(store).term == 1


def test_old_ones_are_removed(store: JobStore, lease: ManagerLease) -> None:
    for term in range(1, 31):
        write(store, Lease(term, "far", 1, THERE, is_over=True), age=7200 if term < 28 else 0)
    lease.take()
    assert manager_lease.terms(store) == list(range(12, 32))


def test_what_is_no_lease_is_passed_over(store: JobStore, lease: ManagerLease) -> None:
    lease.take()
    (manager_lease.directory_of(store) / ".nfs0001").touch()
    (manager_lease.directory_of(store) / "notes").touch()
    assert latest(store).term == 1


# -- keeping it --------------------------------------------------------------------------------------------


def test_it_is_changed_in_place(store: JobStore, lease: ManagerLease, clock: Time) -> None:
    lease.take()
    before, size = latest(store), manager_lease.path_of(store, 1).stat().st_size
    assert lease.due == clock.now + 5
    lease.renew()
    assert latest(store).beat == before.beat + 1
    assert manager_lease.path_of(store, 1).stat().st_size == size


def test_who_was_silent_finds_its_successor(store: JobStore, lease: ManagerLease) -> None:
    lease.take()
    assert lease.successor() is None
    write(store, FAR._replace(term=2))
    found = lease.successor()
    assert found is not None
    assert found.host == "far"


def test_content_that_is_no_lease(store: JobStore, lease: ManagerLease) -> None:
    lease.take()
    for content in ("", "[]", "{}", '{"host": 1}', json.dumps({"host": "x", "pid": "y"}), "\0", "[" * 5000):
        manager_lease.path_of(store, 1).write_text(content)
        assert latest(store)[:2] == (1, "")


# -- what others see ---------------------------------------------------------------------------------------


def test_others_see_a_manager_elsewhere(store: JobStore) -> None:
    with ManagerLock(store):
        pass
    assert not manager_status.is_running(store)
    write(store, FAR)
    assert manager_status.is_running(store)
    assert manager_status.host(store) == "far"
    assert not list(store.base_path.glob(".clock-*"))


@pytest.mark.parametrize("age", [SECONDS + 5, -SECONDS - 5])
def test_one_without_a_sign_of_life_does_not_run(store: JobStore, age: float) -> None:
    with ManagerLock(store):
        pass
    write(store, FAR, age=age)
    assert not manager_status.is_running(store)
    assert manager_status.host(store) == ""


def test_it_is_not_ended_from_here(store: JobStore, managers: Managers) -> None:
    """The number of its process is that of another one here."""
    with ManagerLock(store):
        pass
    write(store, FAR._replace(pid=os.getpid()))
    store.pid_path.write_text(str(os.getpid()))
    stopped = run_cli(["stop", "--base-path", str(store.base_path)], managers.environment)
    assert stopped.returncode
    assert "runs on far; end it there" in stopped.stderr


# -- two mounts --------------------------------------------------------------------------------------------


def test_there_is_one_manager_for_two_mounts(mounts: tuple[JobStore, JobStore], managers: Managers) -> None:
    """The second one ends. It takes over when the first one was stopped for long, and that one ends without a word."""
    one, other = mounts
    managers.store = one
    first = managers.start()
    assert manager_status.is_running(other)
    managers.store = other
    refused = managers.launch()
    assert refused.wait(120) == ManagerRunningError.exit_code
    assert refused.stderr is not None
    assert f"of {os.uname().nodename}" in refused.stderr.read()
    one.submit("j", [task("a", "echo start >>ran; until test -e go; do sleep 0.1; done")], max_parallel_tasks=1)
    wait_until(lambda: one.get_tasks("j")[0].status == "running", what="the task runs")
    os.kill(first.pid, signal.SIGSTOP)
    second = managers.start()
    wait_until(lambda: other.get_tasks("j")[0].status == "running", what="the second one has adopted the task")
    before = one.paths("j").state.stat().st_mtime_ns
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(120) == 0
    assert one.paths("j").state.stat().st_mtime_ns == before
    assert manager_status.is_running(one)
    (one.paths("j").work / "go").touch()
    assert ended(other, "j").state is JobState.COMPLETED
    assert (one.paths("j").work / "ran").read_text() == "start\n"
    assert second.poll() is None


def test_a_task_in_another_space_of_processes_is_alive(
    store: JobStore, mounts: tuple[JobStore, JobStore], managers: Managers
) -> None:
    """Its manager was killed. The next one cannot see the task, and waits for its record."""
    one, other = mounts
    manager = " ".join(command(["manager", "--base-path", str(one.base_path), "--poll-interval", "0.5"], ""))
    inside = ["unshare", "-pf", "--kill-child", "--mount-proc", "sh", "-c", f"{manager} & echo $! >pid; cat >/dev/null"]
    with subprocess.Popen(inside, cwd=store.base_path, stdin=subprocess.PIPE, env=managers.environment) as there:
        assert there.stdin is not None
        try:
            wait_until(lambda: manager_status.is_running(one), what="the first manager runs")
            store.submit(
                "j",
                [
                    task("a", "echo start >>ran; until test -e go; do sleep 0.1; done; exit 7"),
                    task("b", "echo start >>ran; sleep 1000", retries=0),
                ],
                max_parallel_tasks=2,
            )
            wait_until(
                lambda: [found.status for found in store.get_tasks("j")] == [TaskStatus.RUNNING] * 2, what="both run"
            )
            _kill_in(there.pid, int((store.base_path / "pid").read_text()))
            managers.store = other
            managers.start("--host-timeout", "600")
            wait_until(lambda: (store.get_tasks("j")[0].where or "").endswith("cannot see it"), what="it is known")
            assert (store.paths("j").work / "ran").read_text() == "start\nstart\n"
            (store.paths("j").work / "go").touch()
            wait_until(lambda: store.get_tasks("j")[0].status.is_terminal, what="it has ended")
            first = store.get_tasks("j")[0]
            assert (first.exit_code, first.reason) == (7, Reason.EXIT)
            run_cli(["cancel", "j", "--base-path", str(other.base_path)], managers.environment)
            assert ended(store, "j").state is JobState.FAILED
            assert (store.paths("j").work / "ran").read_text() == "start\nstart\n"
        finally:
            there.kill()
    end_tasks_of(one)


def _kill_in(leader: int, number: int) -> None:
    """Kill a process by its number in the space of the child of a process."""
    (child,) = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
    for path in Path("/proc").glob("[0-9]*/status"):
        numbers = dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
        if numbers.get("PPid") == child and numbers["NSpid"].split()[-1] == str(number):
            os.kill(int(path.parent.name), signal.SIGKILL)
            return
    raise ProcessLookupError(number)


# -- attempts elsewhere ------------------------------------------------------------------------------------


@pytest.fixture
def gone(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> tuple[Elsewhere, list[Ended]]:
    """What follows attempts on a shared file system, and the ends that it tells."""
    monkeypatch.setattr(elsewhere.mounts, "may_be_shared", lambda _: True)
    store.submit("j", [task("a")])
    found: list[Ended] = []
    return Elsewhere(store, lambda _: None, lambda _, end: found.append(end), 0.5), found


@pytest.mark.parametrize(
    ("leases", "host"),
    [
        ([], ""),
        ([Lease(1, "far", 1, THERE, space="0therb00")], "far"),
        # It was started anew since.
        ([Lease(1, "far", 1, THERE, space="0therb00"), Lease(2, "far", 1, Place("an0ther", 1), space="an0ther")], ""),
        # This is that machine, and it was.
        ([Lease(1, os.uname().nodename, 1, THERE, space="0therb00")], ""),
        # Another container of this one.
        ([Lease(1, "c0ntainer", 1, Place(boot(), 1), space="0therb00")], "c0ntainer"),
    ],
)
def test_where_a_process_may_be(
    store: JobStore, gone: tuple[Elsewhere, list[Ended]], leases: list[Lease], host: str
) -> None:
    for lease in leases:
        write(store, lease)
    for token in ("0123456789abcdef0therb00", "12.34.0therb00", "12.34.0therb00.99", "0123456789abcdef.5.0therb00"):
        assert gone[0].host_of(token) == host
    for token in ("0123456789abcdef", processes.shell_token(), processes.identity(os.getpid()), "nonsense", ""):
        assert gone[0].host_of(token) == ""


def test_on_a_file_system_of_one_machine_it_is_gone(store: JobStore) -> None:
    store.create_directories()
    write(store, Lease(1, "far", 1, THERE, space="0therb00"))
    assert Elsewhere(store, print, lambda *_: None, 1).host_of("12.34.0therb00") == ""


def test_it_is_lost_when_nothing_is_seen_of_it(store: JobStore, gone: tuple[Elsewhere, list[Ended]]) -> None:
    follows, ends = gone
    write(store, Lease(1, "far", 1, THERE, space="0therb00"))
    found = LocalAttempt(Attempt.of("j", "a", 1), str(store.paths("j").record("a", 1)))
    assert follows.add(found, "12.34.0therb00") == "far"
    assert follows
    wait_until(lambda: follows.look() or ends, what="it is lost")
    assert ends[0].reason is Reason.LOST
    assert ends[0].error == "it ran on far, of which nothing was seen for 0.5 s"
    assert not follows


def test_one_that_writes_is_alive(
    store: JobStore, gone: tuple[Elsewhere, list[Ended]], monkeypatch: pytest.MonkeyPatch
) -> None:
    follows, ends = gone
    now = 1000.0
    monkeypatch.setattr(elsewhere.time, "monotonic", lambda: now)
    write(store, Lease(1, "far", 1, THERE, space="0therb00"))
    record = store.paths("j").record("a", 1)
    follows.add(LocalAttempt(Attempt.of("j", "a", 1), str(record)), "12.34.0therb00")
    for number in range(5):
        with open(store.paths("j").log("a"), "a") as file:
            file.write(f"{number}\n")
        now += 5
        follows.look()
    assert not ends
    record.write_text("12 2026-11-22T10:16:33+00:00 12.34.0therb00\n3\n")
    now += 5
    follows.look()
    assert [(end.exit_code, end.reason) for end in ends] == [(3, None)]


def test_a_token_of_before_there_were_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manager in a container adopts what the one before an upgrade has started there."""
    token = processes.identity(os.getpid())
    before = ".".join([*token.split(".")[:2], boot()])
    monkeypatch.setattr(processes, "space", lambda: "another")
    assert processes.is_shim(os.getpid(), before)
    assert processes.is_of_this_boot(before)
    assert not processes.is_shim(os.getpid(), f"{before}0")
    assert processes.is_shim(os.getpid(), processes.identity(os.getpid()))
