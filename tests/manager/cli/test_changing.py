"""Jobs are cancelled, retried and removed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import JobState
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.commands import Dialog, as_if_not_root
from tests.support.jobs import ended, publish_job, task
from tests.support.managers import Managers
from tests.support.waiting import PATIENCE, until, wait_until


def test_cancel_and_retry(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    store.submit("j", [task("a", f"[ -e {tmp_path}/flag ] || sleep 1000")])
    assert run("cancel", "j", "--wait").stdout == "j: cancellation requested\nj: failed: cancelled\n"
    assert ended(store, "j").reason == "cancelled"
    assert "has ended already" in run("cancel", "j").stdout
    (tmp_path / "flag").touch()
    assert run("retry", "j", "--wait").stdout == "j: retry requested\nj: completed\n"


def test_cancel_a_task_that_has_ended(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    store.submit("j", [task("a"), task("b", until(tmp_path / "go"))])
    wait_until(lambda: store.get_tasks("j")[0].status.is_terminal, what="the first one has ended")
    assert run("cancel", "j", "--task", "a").stdout == "j: task a: ended already\n"
    (tmp_path / "go").touch()
    ended(store, "j")
    assert run("cancel", "j", "--task", "a").stdout == "j: has ended already (completed)\n"


def test_prune(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", ["true"])
    ended(store, "j")
    assert run("prune", "--older-than", "1h").stdout == "0 jobs removed\n"
    assert json.loads(run("prune", "--older-than", "0s", "--json").stdout) == {"pruned": ["j"]}


def with_directory(store: JobStore, name: str) -> Path:
    """A directory in that of a job that has ended, with a file."""
    publish_job(store, store.submit(name, ["true"]).evolve(state=JobState.COMPLETED))
    path = store.paths(name).directory / "cache"
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").touch()
    return path


@pytest.mark.parametrize("mode", [0o555, 0])
def test_prune_removes_directories_that_their_owner_has_locked(store: JobStore, managers: Managers, mode: int) -> None:
    path = with_directory(store, "j")
    for locked in (path / "inner", path):
        locked.chmod(mode)
    done = as_if_not_root(store, managers, "prune", "--older-than", "0s")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 job removed\n", "")
    assert list(store.jobs_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user need root")
def test_prune_says_each_time_what_it_may_not_remove(store: JobStore, managers: Managers) -> None:
    """And removes the rest."""
    for name in "abc":
        path = with_directory(store, name)
        if name == "a":
            os.chown(path, 65534, 65534)
    for removed in ("2 jobs removed\n", "0 jobs removed\n"):
        done = as_if_not_root(store, managers, "prune", "--older-than", "0s")
        assert (done.returncode, done.stdout) == (1, removed)
        assert re.fullmatch(
            r"air-executor: job 'a' could not be removed: .*/cache/inner: Permission denied; remove .*\n", done.stderr
        )
    store.submit("a", ["true"])  # its name is free
    shutil.rmtree(next(store.jobs_path.glob(".deleted-a-*")))
    assert as_if_not_root(store, managers, "prune", "--older-than", "0s").returncode == 0


def test_who_asks_is_told_that_nobody_will_do_it(run: Any, store: JobStore) -> None:
    store.submit("j", ["true"])
    assert "no manager is running; start it: " in run("cancel", "j").stderr
    publish_job(store, store.get_job("j").evolve(state=JobState.FAILED))
    assert "no manager is running; start it: " in run("retry", "j").stderr
    assert run("cancel", "j").stderr == ""


def with_states(store: JobStore) -> None:
    """Jobs of all states, with labels."""
    for name, state in (("w", "waiting"), ("f1", "failed"), ("f2", "failed"), ("c", "completed")):
        publish_job(store, store.submit(name, ["true"], labels={"team": name[0]}).evolve(state=JobState(state)))


def test_many_are_cancelled_and_retried_at_once(run: Any, store: JobStore) -> None:
    """Those for which it is of no use are passed over, unless they are named."""
    with_states(store)
    assert run("cancel", "*").stdout == "w: cancellation requested\n"
    assert run("retry", "--label", "team").stdout == "f1: retry requested\nf2: retry requested\n"
    done = run("retry", "f1", "c", "f2")
    assert (done.returncode, done.stdout) == (4, "f1: retry requested\nf2: retry requested\n")
    assert "job 'c' is completed" in done.stderr
    done = run("retry", "--label", "team=x")
    assert (done.returncode, done.stderr) == (0, "no job is meant by this\n")
    assert run("cancel", "w", "nope").returncode == 3


def test_waiting_for_several_jobs(run: Any, store: JobStore, manager: object) -> None:
    store.submit("a", ["true"])
    store.submit("b", ["exit 3"])
    done = run("wait", "a", "b")
    assert done.returncode == 1
    assert sorted(done.stdout.splitlines()) == ["a: completed", "b: failed: task task-1: exit code 3"]
    assert run("wait", "a").returncode == 0
    store.submit("long", ["sleep 1000"])
    done = run("wait", "*", "--timeout", "0.1")
    assert (done.returncode, done.stderr) == (1, "air-executor: not ended after 0.1 s: long\n")
    inbox.cancel(store, "long")


def test_removing(run: Any, store: JobStore) -> None:
    with_states(store)
    done = run("rm", "c", "w", "f1")
    assert (done.returncode, done.stdout) == (4, "c: removed\nf1: removed\n")
    assert "job 'w' is waiting; cancel it before it is deleted" in done.stderr
    assert run("rm", "c").returncode == 3
    assert run("rm", "*").stdout == "1 job removed\n"
    assert store.job_names() == ["w"]


def test_removing_many_on_a_terminal_asks(store: JobStore, managers: Managers) -> None:
    for number in range(11):
        publish_job(store, store.submit(f"j{number}", ["true"]).evolve(state=JobState.COMPLETED))
    base_path = ["--base-path", str(store.base_path)]
    with Dialog(["rm", "j*", *base_path], managers.environment) as dialog:
        dialog.expect("remove 11 jobs? [y/N]")
        dialog.answer("n")
        assert dialog.process.wait(PATIENCE) == 1
    assert len(store.job_names()) == 11
    with Dialog(["rm", "j1*", *base_path], managers.environment) as dialog:
        dialog.expect("2 jobs removed")
    with Dialog(["rm", "j*", "--yes", *base_path], managers.environment) as dialog:
        dialog.expect("9 jobs removed")


def test_pruning_many_on_a_terminal_asks(store: JobStore, managers: Managers) -> None:
    first = store.submit("j0", ["true"])
    publish_job(store, first.evolve(state=JobState.COMPLETED))
    for number in range(1, 101):
        shutil.copytree(store.paths("j0").directory, store.jobs_path / f"j{number}")
    for path in store.jobs_path.glob("*/state.json"):
        path.write_text(path.read_text().replace('"j0"', f'"{path.parent.name}"'))
    command = ["prune", "--older-than", "0s", "--base-path", str(store.base_path)]
    with Dialog(command, managers.environment) as dialog:
        dialog.expect(f"remove 101 jobs of {store.base_path}? [y/N]")
        dialog.answer("y")
        dialog.expect("101 jobs removed")


def test_what_would_be_pruned(run: Any, store: JobStore) -> None:
    with_states(store)
    done = run("prune", "--older-than", "0s", "--dry-run")
    assert (done.stdout, done.stderr) == ("c\nf1\nf2\n", "3 jobs would be removed\n")
    done = run("prune", "--older-than", "0s", "--dry-run", "--label", "team=f", "--json")
    assert json.loads(done.stdout) == {"would_be_pruned": ["f1", "f2"]}
    assert run("prune", "--older-than", "1h", "--dry-run").stdout == ""
    assert run("prune", "--older-than", "0s", "--state", "failed").stdout == "2 jobs removed\n"
    assert store.job_names() == ["c", "w"]


def test_a_task_is_cancelled_and_retried(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    """And the job goes on with the others."""
    wait = f"[ -e {tmp_path}/flag ] || sleep 1000"
    store.submit("j", [task("a", wait), task("b", until(tmp_path / "go")), task("after-a", after="a")])
    wait_until(lambda: store.get_tasks("j")[0].status == "running", what="it runs")
    assert run("cancel", "j", "--task", "a").stdout == "j: task a: cancellation requested\n"
    wait_until(lambda: store.get_tasks("j")[0].reason == "cancelled", what="it is cancelled")
    assert not store.get_job("j").state.is_terminal
    (tmp_path / "go").touch()
    ended(store, "j")
    (tmp_path / "flag").touch()
    assert run("retry", "j", "--task", "a", "--wait").stdout == "j: retry requested\nj: completed\n"
    assert [found.attempt for found in store.get_tasks("j")] == [2, 1, 1]


def test_a_job_that_has_completed_runs_again(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", ["true", "true"])
    ended(store, "j")
    assert run("retry", "j").returncode == 4
    assert run("retry", "j", "--all", "--wait").stdout == "j: retry requested\nj: completed\n"
    assert [found.attempt for found in store.get_tasks("j")] == [2, 2]
    assert run("retry", "j*", "--all").stdout == "j: retry requested\n"


def test_tasks_of_one_job_only(run: Any, store: JobStore) -> None:
    store.submit("j", ["true"])
    for command in ("cancel", "retry"):
        assert "there is no task 'nope' in job 'j'" in run(command, "j", "--task", "nope").stderr
        for arguments in (["j*"], ["j", "k"], ["--state", "failed"]):
            assert run(command, *arguments, "--task", "task-1").returncode == 2
    assert run("retry", "j", "--all", "--task", "task-1").returncode == 2
