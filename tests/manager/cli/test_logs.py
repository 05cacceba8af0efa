"""How logs are printed."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.commands import going_on
from tests.support.jobs import ended, read_log, task
from tests.support.managers import CLI, Managers
from tests.support.waiting import until, wait_until


def test_logs(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", [{"id": "a", "bash": "printf 'one\\ntwo'"}, {"id": "b", "bash": "printf '\\377'"}])
    ended(store, "j")
    environment = {**os.environ, "AIR_EXECUTOR_BASE_PATH": str(store.base_path)}
    both = subprocess.run([*CLI, "logs", "j"], env=environment, capture_output=True, check=True).stdout
    assert both == b"a | one\na | two\nb | \xff\n"
    assert subprocess.run([*CLI, "logs", "j", "b"], env=environment, capture_output=True, check=True).stdout == b"\xff"
    assert run("logs", "j", "nope").returncode == 2


def test_logs_follow(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", [task("a", "for i in 1 2 3; do echo $i; sleep 0.3; done")])
    assert run("logs", "j", "--follow").stdout == "a | 1\na | 2\na | 3\n"


def test_a_line_that_is_written_over_is_shown_while_it_lasts(
    store: JobStore, managers: Managers, manager: object, tmp_path: Path
) -> None:
    """As progress bars do, which may never end it; with one prefix a line."""
    states = "for i in $(seq 20); do printf '\\rstep %s' $i; done"
    store.submit("j", [task("a", f"{states}; {until(tmp_path / 'go')}; printf '\\rdone\\n'")])
    with going_on(store, managers, tmp_path / "out", "logs", "j", "--follow") as said:
        wait_until(lambda: b"a | step 20\n" in said() or said().count(b"\n") > 1, what="the state is shown")
        (tmp_path / "go").touch()
    lines = said().splitlines(keepends=True)
    assert lines[-1] == b"a | done\n"
    assert all(re.fullmatch(rb"a \| step \d+\n", line) for line in lines[:-1])


def test_a_log_that_is_truncated_begins_anew(
    store: JobStore, managers: Managers, manager: object, tmp_path: Path
) -> None:
    store.submit("j", [task("a", f"echo first; {until(tmp_path / 'go')}; echo second")])
    with going_on(store, managers, tmp_path / "out", "logs", "j", "--follow") as said:
        wait_until(lambda: b"first" in said(), what="it follows")
        os.truncate(store.paths("j").log("a"), 0)
        wait_until(lambda: b"truncated" in said(), what="it says so")
        (tmp_path / "go").touch()
    note = b"air-executor: a: the log has been truncated; it begins anew\n"
    assert said() == b"a | first\n" + note + b"a | second\n"


@pytest.fixture
def with_times(store: JobStore) -> None:
    """A job whose logs were noted: task a in two attempts at 10:00 and 11:00, task b at 10:30."""
    store.submit("j", [task("a"), task("b")])
    paths = store.paths("j")
    paths.log("a").write_text("a1\na2\na3\na4\n")
    paths.log("b").write_text("b1\nb2\n")
    ten = datetime(2026, 11, 29, 10, tzinfo=UTC).timestamp()
    paths.log_times("a").write_text(f"{ten} 6 1\n{ten + 3600} 6 2\n{ten + 3600} 12 2\n")
    paths.log_times("b").write_text(f"{ten + 1800} 6 1\n")
    for name in "ab":
        os.utime(paths.log(name), (ten + 3600, ten + 3600))


@pytest.mark.usefixtures("with_times")
@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--tail", "1"], "a | a4 b | b2"),
        (["-n", "3", "a"], "a2 a3 a4"),
        (["-n", "0"], ""),
        (["--attempt", "1", "a"], "a1 a2"),
        (["--attempt", "1"], "a | a1 a | a2 b | b1 b | b2"),
        (["--attempt", "2"], "a | a3 a | a4"),
        (["--attempt", "1", "--tail", "1", "a"], "a2"),
        (["--since", "2026-11-29T10:15:00+00:00"], "a | a3 a | a4 b | b1 b | b2"),
        (["--since", "2026-11-29T10:45:00+00:00"], "a | a3 a | a4"),
        (["--by-time"], "a | a1 a | a2 b | b1 b | b2 a | a3 a | a4"),
        (["--timestamps", "-n", "1"], "2026-11-29T11:00:00Z a | a4 2026-11-29T10:30:00Z b | b2"),
        (["-t", "--attempt", "1", "a"], "2026-11-29T10:00:00Z a1 2026-11-29T10:00:00Z a2"),
    ],
)
def test_a_part_of_the_logs(run: Any, arguments: list[str], shown: str) -> None:
    done = run("logs", "j", *arguments)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split("\n")).strip() == shown


@pytest.mark.usefixtures("with_times")
def test_parts_that_there_are_not(run: Any) -> None:
    done = run("logs", "j", "--attempt", "3")
    assert (done.returncode, done.stderr) == (2, "air-executor: nothing is known of attempt 3\n")
    assert run("logs", "j", "--since", "yesterday").returncode == 2
    assert run("logs", "j", "--since", "1s").stdout == ""


def test_following_from_the_end(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    store.submit("j", [task("a", f"seq 100; {until(tmp_path / 'go')}; echo more")])
    wait_until(lambda: "100\n" in read_log(store, "j", "a").text, what="it has printed")
    (tmp_path / "go").touch()
    assert run("logs", "j", "-f", "-n", "2", "--timestamps").stdout.splitlines()[-1].endswith("Z a | more")
    assert len(run("logs", "j", "-n", "2").stdout.splitlines()) == 2
