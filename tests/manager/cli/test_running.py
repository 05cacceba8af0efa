"""A command as a job of its own: ``air-executor run``."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.commands import Dialog
from tests.support.jobs import ended, only_task
from tests.support.managers import CLI, Managers
from tests.support.waiting import PATIENCE, until, wait_until


def the_job(store: JobStore) -> str:
    (name,) = wait_until(store.job_names, what="it is submitted")
    return name


def test_it_prints_the_output_and_ends_with_the_exit_code(run: Any, store: JobStore, manager: object) -> None:
    done = run("run", "--", "sh", "-c", "printf 'one\\ntwo'; exit 7")
    assert (done.returncode, done.stdout) == (7, "one\ntwo")
    name = the_job(store)
    assert re.fullmatch("sh-[0-9a-f]{8}", name)
    assert done.stderr == f"air-executor: job {name}\n"
    assert run("run", "true").returncode == 0


def test_what_else_ends_it_is_said(run: Any, store: JobStore, manager: object) -> None:
    done = run("run", "--name", "killed", "--bash", "kill -9 $$")
    assert done.returncode == 128 + signal.SIGKILL
    assert "air-executor: killed: ended by SIGKILL" in done.stderr
    done = run("run", "--name", "late", "--timeout", "0.1", "--", "sleep", "1000")
    assert done.returncode == 124
    assert "timeout" in done.stderr
    done = run("run", "--name", "missing", "no-such-program")
    assert done.returncode == 127
    assert "air-executor: missing: command no-such-program was not found" in done.stderr


def test_where_and_with_what_it_runs(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    done = run("run", "--env", "A=b=c", "--bash", "pwd; echo $A", cwd=tmp_path)
    assert done.stdout == f"{tmp_path.resolve()}\nb=c\n"
    (tmp_path / "sub").mkdir()
    assert run("run", "--cwd", "sub", "pwd", cwd=tmp_path).stdout == f"{tmp_path.resolve()}/sub\n"
    done = run("run", "--name", "own", "--own-directory", "--label", "a=b", "--priority", "3", "pwd")
    assert done.stdout == f"{store.paths('own').work.resolve()}\n"
    job = store.get_job("own")
    assert (job.labels, job.priority) == ({"a": "b"}, 3)


def test_its_resources(run: Any, store: JobStore) -> None:
    given = ["--cpus", "2", "--memory", "1Gi", "--gpus", "1", "--runner", "slurm", "--retries", "2"]
    assert run("run", "--detach", "--name", "j", *given, "true").stdout == "j\n"
    (task,) = store.get_tasks("j")
    assert task.resources is not None
    assert (task.resources.cpus, task.resources.memory, task.resources.gpus) == (2, 2**30, 1)
    assert (task.retries, store.get_job("j").runner) == (2, "slurm")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--bash", "true", "true"],
        ["--env", "A", "true"],
        ["--detach", "--rm", "true"],
        ["--cwd", ".", "--own-directory", "true"],
        ["--timeout", "soon", "true"],
        ["--memory", "much", "true"],
    ],
)
def test_what_is_not_valid_is_not_submitted(run: Any, store: JobStore, arguments: list[str]) -> None:
    assert run("run", *arguments).returncode == 2
    assert store.job_names() == []


def test_a_job_can_be_replaced_and_removed(run: Any, store: JobStore, manager: object) -> None:
    assert run("run", "--name", "j", "true").returncode == 0
    assert run("run", "--name", "j", "true").returncode == 4
    assert run("run", "--name", "j", "--replace", "--rm", "--", "echo", "-n", "x").stdout == "x"
    assert store.job_names() == []


def test_without_a_manager_it_says_so_and_can_start_one(run: Any, store: JobStore) -> None:
    done = run("run", "--detach", "--name", "first", "true")
    assert "no manager is running; start it: air-executor manager --base-path" in done.stderr
    assert "--embedded" in done.stderr
    try:
        assert run("run", "--embedded", "--name", "second", "--", "echo", "hi").stdout == "hi\n"
        assert manager_status.is_running(store)
        assert ended(store, "first").state == "completed"
    finally:
        run("stop")


@pytest.fixture
def environment(managers: Managers, store: JobStore) -> dict[str, str]:
    return {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path)}


def test_ctrl_c_asks_whether_to_cancel(
    environment: dict[str, str], store: JobStore, manager: object, tmp_path: Path
) -> None:
    """And if not, it goes on."""
    line = f"echo begun; {until(tmp_path / 'go')}; echo goes on; sleep 1000"
    with Dialog(["run", "--name", "j", "--bash", line], environment) as dialog:
        dialog.expect("begun")
        dialog.interrupt()
        dialog.expect("cancel j? [Y/n]")
        dialog.answer("n")
        (tmp_path / "go").touch()
        dialog.expect("goes on")
        dialog.interrupt()
        dialog.expect("cancel j? [Y/n]")
        dialog.answer("")
        dialog.expect("j: cancellation requested")
        assert dialog.process.wait(PATIENCE) == 130
    assert only_task(store).reason == "cancelled"


def test_a_second_ctrl_c_leaves_it_running(
    environment: dict[str, str], store: JobStore, manager: object, tmp_path: Path
) -> None:
    with Dialog(["run", "--name", "j", "--bash", f"echo begun; {until(tmp_path / 'go')}"], environment) as dialog:
        dialog.expect("begun")
        dialog.interrupt()
        dialog.expect("cancel j? [Y/n]")
        dialog.interrupt()
        dialog.expect("job j goes on: air-executor logs j --follow")
        assert dialog.process.wait(PATIENCE) == 130
    assert not store.get_job("j").state.is_terminal
    (tmp_path / "go").touch()
    assert ended(store, "j").state == "completed"


def test_without_a_terminal_an_interrupt_cancels(
    environment: dict[str, str], store: JobStore, manager: object, tmp_path: Path
) -> None:
    command = [*CLI, "run", "--name", "j", "--", "sh", "-c", "echo begun; sleep 1000"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"begun\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE) == 130
    assert only_task(store).reason == "cancelled"
