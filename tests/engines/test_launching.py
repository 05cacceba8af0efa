"""Commands that are started without a shell, by a process that records their ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.children import Children, usage
from airflow_provider_air_executor.engines.local.adopted import refuse_unwritten
from airflow_provider_air_executor.engines.local.launcher import Received, Request
from airflow_provider_air_executor.engines.local.launching import Begun, CommandEnded, Launching, NotLaunched, _Launcher
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.jobs.attempt_record import Record, claim_with, read_record
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.clock import boot
from airflow_provider_air_executor.system.processes import claimed_token, command_token, is_claimed_token, is_shim
from tests.support.jobs import ended, only_task, read_log, task
from tests.support.launched import LAUNCHED
from tests.support.managers import Managers
from tests.support.processes import is_gone, with_environment
from tests.support.waiting import until, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there are launchers on Linux")

TOKEN = "0123456789abcdef"
LAUNCHER = b"airflow_provider_air_executor.engines.local.launcher"


def launchers_of(manager: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{manager.pid}/task/{manager.pid}/children").read_text().split()
    return [int(pid) for pid in children if LAUNCHER in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_what_a_killed_launcher_has_started_is_lost_and_tried_again(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.patch = LAUNCHED
    manager = managers.start()
    line = f"echo $$ >> {tmp_path}/pids; test $AIR_EXECUTOR_ATTEMPT = 2 || sleep 1000"
    store.submit("j", [task("a", line, retries=1)])
    wait_until((tmp_path / "pids").exists, what="it runs")
    wait_until(lambda: store.get_tasks("j")[0].status == "running", what="that is known")
    for pid in launchers_of(manager):
        os.kill(pid, signal.SIGKILL)
    assert ended(store, "j").state is JobState.COMPLETED
    assert only_task(store).attempt == 2
    first = int((tmp_path / "pids").read_text().split()[0])
    assert is_gone(first)
    assert not with_environment("AIR_EXECUTOR_ATTEMPT=1") or is_gone(first)


def test_its_record_has_the_number_of_the_command(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    managers.patch = LAUNCHED
    managers.start()
    store.submit("j", [task("a", f"echo $$ > {tmp_path}/pid; {until(tmp_path / 'go')}; exit 3")])
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), what="it runs")
    pid, path = int((tmp_path / "pid").read_text()), store.paths("j").record("a", 1)

    def record() -> Record | None:
        found = read_record(path)
        return found if found is not None and found.pid == pid else None

    found = wait_until(record, what="it is in the record")
    assert is_shim(pid, found.token)
    assert not is_shim(os.getpid(), found.token)
    (tmp_path / "go").touch()
    assert ended(store, "j").reason == "exit"
    assert read_record(path) == found._replace(exit_code=3)


def test_a_command_ignores_what_its_manager_was_started_to_ignore(store: JobStore, managers: Managers) -> None:
    managers.patch = LAUNCHED
    managers.start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    store.submit("j", [task("a", "grep SigIgn /proc/self/status")])
    assert only_task(store).status == "completed"
    assert int(read_log(store, "j", "a").text.split()[1], 16) & 1 << signal.SIGHUP - 1


def test_a_command_counts_until_its_end_is_recorded() -> None:
    """What starts it reaps it after that."""
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        token = command_token(TOKEN, process.pid)
        assert is_shim(process.pid, token)
    assert not is_shim(process.pid, token)


def test_nothing_is_concluded_from_a_record_that_has_just_been_claimed(tmp_path: Path) -> None:
    path = tmp_path / "record"
    claimed = Record(os.getpid(), datetime.now(UTC), claimed_token(TOKEN), None)
    os.close(claim_with(path, claimed.text.rjust(100, b"0")))
    assert path.stat().st_size == 100
    assert read_record(path) == claimed
    assert is_claimed_token(claimed.token)
    with pytest.raises(BlockingIOError):
        refuse_unwritten(str(path), claimed)
    os.utime(path, (0, 0))
    refuse_unwritten(str(path), claimed)
    os.utime(path)
    refuse_unwritten(str(path), claimed._replace(token=f"{TOKEN}.7.{boot()}"))


def test_a_request_is_read_as_it_was_sent() -> None:
    request = Request(7, -1, TOKEN, "record", "time", "log", "", "/bin/true", ["A=1", "B=\udcff=é"], ["", "x"])
    received = Received.of(request.data)
    assert received == (
        7,
        -1,
        *map(os.fsencode, (TOKEN, "record", "time", "log", "", "/bin/true")),
        [b"A=1", b"B=\xff=\xc3\xa9"],
        [b"", b"x"],
    )
    assert Received.of(request._replace(args=[]).data) == received._replace(args=[])


def test_messages_that_have_come_together_are_all_read() -> None:
    launching = Launching({"PATH": "/usr/bin"}, Children())
    launcher = object.__new__(_Launcher)
    launcher.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    attempts = [Attempt.of("j", task_id, 1) for task_id in "ab"]
    launcher.attempts, launcher._begun = dict(enumerate(attempts)), set()
    launcher._follower, launcher._short_in_a_row = None, 0
    launching._launchers[launcher.channel.fileno()] = launcher
    assert launching._epoll is not None
    launching._epoll.register(launcher.channel, select.EPOLLIN)
    theirs.send(b'[["begun",0,77,"token"],["ended",0,0,0.25,null]]')
    theirs.send(b'[["refused",1]]')
    theirs.close()
    events = []
    while select.select([launching.descriptor], [], [], 0)[0]:
        events += launching.poll()
    begun, ended, refused = events
    assert begun == Begun(attempts[0], 77, "token")
    assert ended == CommandEnded(attempts[0], 0, usage(0.25, None), ended.ended_at)
    assert refused == NotLaunched(attempts[1])
    assert not launching._launchers
    launching.close()


@pytest.mark.parametrize(
    ("path", "command", "expected"),
    [
        ("/usr/bin:/bin", "sh", "/usr/bin/sh"),
        ("/usr/bin:/bin", "no-such-command", ""),
        ("/away:/usr/bin", "sh", ""),
        (":/usr/bin", "sh", ""),
        ("/usr/bin", "/bin/sh", "/bin/sh"),
        ("/usr/bin", "/away/sh", ""),
        ("/usr/bin", "./sh", ""),
        ("/usr/bin", "/usr/bin/../../away/sh", ""),
    ],
)
def test_commands_are_looked_for_where_programs_of_the_machine_are(path: str, command: str, expected: str) -> None:
    """Elsewhere a file system may be away, and a launcher would wait for it."""
    launching = Launching({"PATH": path}, Children())
    assert launching._find(command) == expected
    launching.close()
