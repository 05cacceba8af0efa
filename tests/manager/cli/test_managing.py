"""Managers are started and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from airflow_provider_air_executor.exceptions import ManagerError
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.cli import main, managing, processes
from airflow_provider_air_executor.manager.settings import Settings
from tests.support.jobs import ended, read_log, task
from tests.support.managers import CLI, Managers
from tests.support.mounts import bound, object_store
from tests.support.processes import command_line, pids, program
from tests.support.waiting import PATIENCE, wait_until


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it cannot be seen what Python has set")
@pytest.mark.parametrize("given", [{}, {"LC_CTYPE": "C.UTF-8"}])
@pytest.mark.parametrize("of_a_task", [False, True])
def test_tasks_have_the_locale_that_the_manager_was_given(
    run: Any, store: JobStore, managers: Managers, given: dict[str, str], of_a_task: bool
) -> None:
    """And not what Python sets for itself where there is none."""
    inherited = {key: value for key, value in managers.environment.items() if not key.startswith(("LANG", "LC_"))}
    managers.environment = {**inherited, **given, **({"AIR_EXECUTOR_JOB": "another"} if of_a_task else {})}
    assert run("manager", "--detach").returncode == 0
    store.submit("a", [task("a", "env")])
    ended(store, "a")
    assert run("stop").returncode == 0
    lines = read_log(store, "a", "a").text.splitlines()
    assert [line for line in lines if line.startswith("LC_")] == [f"LC_CTYPE={value}" for value in given.values()]


def test_detach_and_stop(run: Any, store: JobStore) -> None:
    done = run("manager", "--detach")
    pid = manager_status.pid(store)
    assert pid is not None
    assert done.stdout == f"manager {pid} runs the jobs of {store.base_path}\n"
    try:
        again = run("manager", "--detach")
        assert again.returncode == 4
        assert str(pid) in again.stderr
        assert store.manager_log_path.stat().st_mode & 0o777 == 0o600
        wait_until(lambda: f"manager {pid} runs the jobs" in store.manager_log_path.read_text(), what="it says so")
    finally:
        assert run("stop").stdout == f"manager {pid} has ended\n"
    assert "no manager is running" in run("stop").stdout


def test_what_is_done_otherwise_on_a_file_system_is_a_line_of_the_log(
    run: Any, store: JobStore, tmp_path: Path
) -> None:
    """There is none where everything works."""

    def said(there: JobStore) -> list[str]:
        assert run("manager", "--detach", "--base-path", str(there.base_path)).returncode == 0
        try:
            wait_until(lambda: "runs the jobs of" in there.manager_log_path.read_text(), what="it runs")
            return [line for line in there.manager_log_path.read_text().splitlines() if "file system" in line]
        finally:
            assert run("stop", "--base-path", str(there.base_path)).returncode == 0

    assert said(store) == []
    (tmp_path / "source").mkdir()
    with bound(tmp_path / "source", tmp_path / "mounted") as place:
        (line,) = said(JobStore(place / "base"))
    assert " INFO the file system of the base path (fuse" in line
    assert "; of what another machine, or another mount, writes there is no notification: the manager looks " in line


def test_a_file_system_that_does_not_answer_is_waited_for(tmp_path: Path) -> None:
    """As one on a server that starts later."""
    (tmp_path / "source").mkdir()
    with bound(tmp_path / "source", tmp_path / "mounted") as place:
        (server,) = [pid for pid in pids() if program(pid) == "bindfs" and str(place) in command_line(pid)]
        managers = Managers(JobStore(place / "base"))
        managers.patch = (
            "from airflow_provider_air_executor.manager.cli import managing; managing._SILENT_SECONDS = 0.2"
        )
        os.kill(server, signal.SIGSTOP)
        try:
            process = managers.launch()
            assert process.stderr is not None
            assert process.stderr.readline() == (
                "air-executor: the file system of the base path has not answered for 0.2 s, and is waited for\n"
            )
        finally:
            os.kill(server, signal.SIGCONT)
        try:
            wait_until(lambda: manager_status.pid(managers.store) == process.pid, what="it runs")
        finally:
            managers.close()


@pytest.mark.parametrize("flags", [(), ("--detach",), ("--replace", "--detach")])
def test_on_the_mount_of_an_object_store_no_manager_starts(run: Any, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """It did, and each job ended as invalid."""
    (tmp_path / "bucket").mkdir()
    with object_store(tmp_path / "bucket", tmp_path / "mounted") as place:
        refused = run("manager", "--base-path", str(place / "base"), *flags)
        assert manager_status.pid(JobStore(place / "base")) is None
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"air-executor: no manager can run on {place}/base: its file system (fuse")
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount")
def test_a_manager_starts_on_a_full_disk(store: JobStore, managers: Managers) -> None:
    """What it cannot try there now is not refused: it goes on when there is room."""
    store.base_path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(store.base_path)], check=True)
    try:
        store.submit("j", ["true"])
        store.lock_path.touch()
        filler = store.base_path / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1_000_000))
        manager = managers.launch()
        wait_until(lambda: manager_status.is_running(store) or manager.poll() is not None, what="it runs")
        assert manager.poll() is None
        filler.unlink()
        assert ended(store, "j").state == "completed"
    finally:
        managers.close()
        subprocess.run(["umount", "--lazy", str(store.base_path)], check=True)


def test_a_setting_that_there_is_not_is_told_to_who_starts_a_manager(run: Any, store: JobStore) -> None:
    """And not in its log alone."""
    store.base_path.mkdir()
    store.config_path.write_text("pol_interval: 1\n")
    done = run("manager", "--detach")
    assert done.returncode == 0
    assert done.stderr == f"air-executor: {store.config_path}: there is no setting 'pol_interval'; it is ignored\n"
    assert run("stop").returncode == 0


def test_a_manager_does_not_import_from_the_directory_in_which_it_is_started(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('this is not the one')")
    command = [sys.executable, "-P", *CLI[1:], "manager", "--detach", "--base-path", str(store.base_path)]
    subprocess.run(command, env=managers.environment, cwd=tmp_path, check=True, timeout=PATIENCE)
    store.submit("j", ["true"])
    assert ended(store, "j").state == "completed"
    subprocess.run([*CLI, "stop", "--base-path", str(store.base_path)], env=managers.environment, check=True)


def test_replacing_waits_until_the_lock_is_free(run: Any, store: JobStore) -> None:
    """A manager that ends removes its number first, and lets the lock go a moment later."""
    store.create_directories()
    code = """
import fcntl, os, pathlib, signal, sys, time
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
number = pathlib.Path(sys.argv[3])
number.write_text(str(os.getpid()))
signal.signal(signal.SIGTERM, lambda *_: (number.unlink(), time.sleep(1), os._exit(0)))
time.sleep(60)
"""
    paths = [str(store.lock_path), str(store.pid_path)]
    with subprocess.Popen([sys.executable, "-c", code, "manager", *paths]) as ending:
        wait_until(lambda: manager_status.pid(store) == ending.pid, what="it holds the lock")
        started = run("manager", "--replace", "--detach")
        assert started.returncode == 0, started.stderr
        assert run("stop").returncode == 0


def test_a_manager_that_has_just_begun_is_stopped(
    store: JobStore, managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment the number of its predecessor, which was killed, is still there."""
    process = managers.start()
    gone = subprocess.Popen(["true"])
    gone.wait()
    store.pid_path.write_text(str(gone.pid))

    def is_manager(pid: int) -> bool:
        store.pid_path.write_text(str(process.pid))  # only now it publishes its own
        return pid == process.pid

    monkeypatch.setattr(processes, "_is_manager", is_manager)
    assert processes.stop(store) == process.pid
    process.wait(PATIENCE)  # it may not have come to heed the signal, which ends it then
    assert not manager_status.is_running(store)


def test_a_manager_that_tells_no_number_is_not_taken_for_none(
    store: JobStore, managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    managers.start()
    monkeypatch.setattr(processes, "_NUMBER_SECONDS", 0.0)
    store.pid_path.unlink()
    with pytest.raises(ManagerError, match="has not published its process id"):
        processes.stop(store)


def test_many_start_at_once_and_one_runs(store: JobStore, managers: Managers) -> None:
    command = [*CLI, "manager", "--detach", "--base-path", str(store.base_path)]
    starting = [subprocess.Popen(command, env=managers.environment, stderr=subprocess.PIPE) for _ in range(6)]
    codes = []
    for process in starting:
        process.communicate()
        codes.append(process.returncode)
    assert sorted(codes) == [0, 4, 4, 4, 4, 4]
    pid = manager_status.pid(store)
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not manager_status.is_running(store), what="it has ended")


def test_an_invalid_setting_stops_the_start(run: Any, store: JobStore) -> None:
    done = run("manager", "--max-concurrent-runners", "many")
    assert done.returncode == 2
    assert "max_concurrent_runners = 'many' (from --max-concurrent-runners) is not valid" in done.stderr
    store.base_path.mkdir()
    store.config_path.write_text("poll_interval: 0\n")
    done = run("manager", "--detach")
    assert done.returncode == 2
    assert "config.yaml" in done.stderr


def test_the_base_path_of_the_configuration_file_is_used(tmp_path: Path, managers: Managers) -> None:
    """In the existing system jobs of another base path never run."""
    (tmp_path / "config.yaml").write_text(f"base_path: {tmp_path}/elsewhere\n")
    process = subprocess.Popen(
        [*CLI, "manager", "--config", str(tmp_path / "config.yaml")],
        env=managers.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        store = JobStore(tmp_path / "elsewhere")
        store.submit("j", ["true"])
        assert ended(store, "j").state == "completed"
    finally:
        process.terminate()
        process.wait()


def test_an_idle_manager_retires_but_not_before_a_job_is_done(store: JobStore, managers: Managers) -> None:
    for number in range(5):
        store.submit(f"j{number}", ["sleep 1"])
    process = managers.launch("--idle-timeout", "0.3")
    assert process.wait(PATIENCE) == 0
    assert [store.get_job(f"j{number}").state for number in range(5)] == ["completed"] * 5
    assert manager_status.pid(store) is None


def test_log_as_json(store: JobStore, managers: Managers) -> None:
    process = managers.start("--log-format", "json")
    store.submit("j", ["true"])
    ended(store, "j")
    process.terminate()
    lines = [json.loads(line) for line in process.communicate()[1].splitlines()]
    assert {"time", "level", "message"} <= lines[0].keys()


def test_the_manager_that_airflow_starts_keeps_a_limited_number_of_jobs(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody has set counts more."""
    given: list[Settings] = []
    monkeypatch.setattr(managing, "_run_manager", lambda _store, settings, *_: given.append(settings))
    for flags in ([], ["--embedded"], ["--embedded", "--keep-jobs", "7"]):
        result = CliRunner().invoke(main, ["manager", "--base-path", str(store.base_path), *flags])
        assert result.exit_code == 0, result.output
    assert [settings.keep_jobs for settings in given] == [None, 1000, 7]
    assert [settings.keep_failed_days for settings in given] == [None, 90, 90]
