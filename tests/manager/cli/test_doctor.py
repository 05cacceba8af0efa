"""What `air-executor doctor` finds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor import __version__
from airflow_provider_air_executor.jobs import files, manager_info
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import Managers
from tests.support.mounts import bound, object_store
from tests.support.servers import ServerThread
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere other things work otherwise")


def findings(done: subprocess.CompletedProcess[str], verdict: str = "") -> dict[str, str]:
    """What was found in JSON, and is not well, by its subject."""
    found = json.loads(done.stdout)["findings"]
    return {each["subject"]: each["seen"] for each in found if each["verdict"] not in ("works", verdict)}


def test_all_is_well(run: Any, store: JobStore, manager: subprocess.Popen[str]) -> None:
    wait_until(lambda: (found := manager_info.load(store)) and found.version, what="it has said its version")
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert re.match(rf"version     {re.escape(__version__)}, (no )?Airflow", lines[0])
    assert f"base path   {store.base_path}" in lines
    assert f"manager     {manager.pid} on {os.uname().nodename}, version {__version__}" in lines
    assert "works      exclusive creation of files" in lines
    assert lines[-1] == "nothing is refused"
    found = json.loads(run("doctor", "--json").stdout)
    assert found["is_well"] is True
    assert found["manager"]["pid"] == manager.pid
    assert found["versions"]["python"] == sys.version.split(" ", maxsplit=1)[0]
    assert found["file_system"]["kind"]
    assert {each["verdict"] for each in found["findings"]} == {"works"}
    assert not [name for name in os.listdir(store.base_path) if name.startswith(".check-")]


def test_a_base_path_that_is_not_there_yet(run: Any, store: JobStore) -> None:
    done = run("doctor")
    assert done.returncode == 0, done.stdout
    assert f"base path   {store.base_path}, which is not there yet: {store.base_path.parent} was tried" in done.stdout
    assert f"none runs; start it: air-executor manager --detach --base-path {store.base_path}\n" in done.stdout
    assert not store.base_path.exists()


def test_settings_and_runners(run: Any, store: JobStore, managers: Managers) -> None:
    store.create_directories()
    store.config_path.write_text("runner: slurm\nrunners: {nowhere: {}}\npol_interval: 1\n")
    managers.environment["PATH"] = ""
    done = run("doctor", "--json")
    assert done.returncode == 1
    found = findings(done)
    assert found["runner nowhere"].startswith("there is no runner 'nowhere'")
    assert "sbatch" in found["runner slurm"]
    assert "no setting 'pol_interval'" in found["settings"]
    store.config_path.write_text("poll_interval: never\n")
    done = run("doctor")
    assert done.returncode == 1
    assert "refused    settings: poll_interval = 'never'" in done.stdout
    assert done.stdout.endswith("1 refused: see what to change above\n")


def test_a_manager_of_another_version_and_its_problems(run: Any, store: JobStore, manager: object) -> None:
    info = wait_until(lambda: (found := manager_info.load(store)) and found.version and found, what="it is known")
    run("pause")
    wait_until(lambda: json.loads(run("info", "--json").stdout)["paused"], what="it has said that it is paused")
    files.publish(manager_info.path_of(store), json.dumps({**info.as_json(), "version": "0.0.1"}).encode())
    problem = {"j": {"problem": "cannot be written: No space left on device", "since": "12:00"}}
    files.publish(store.problems_path, json.dumps(problem).encode())
    found = findings(run("doctor", "--json"))
    assert found["the manager"] == f"it runs version 0.0.1, and {__version__} is installed here"
    assert found["job j"] == "cannot be written: No space left on device (since 12:00)"


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user need root")
def test_a_base_path_of_another_user(run: Any, store: JobStore) -> None:
    store.create_directories()
    for path in (store.base_path, store.jobs_path, store.inbox_path):
        os.chown(path, 65534, 65534)
    done = run("doctor", "--json")
    assert done.returncode == 0
    assert "(65534)" in findings(done)["the user"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a mount")
def test_a_full_disk(run: Any, store: JobStore) -> None:
    """What cannot be tried there now is not known."""
    store.base_path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(store.base_path)], check=True)
    try:
        assert "room" in findings(run("doctor", "--json")), "there is little"
        filler = store.base_path / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1_000_000))
        done = run("doctor")
    finally:
        subprocess.run(["umount", "--lazy", str(store.base_path)], check=True)
    assert done.returncode == 1
    assert "refused    room: 0 " in done.stdout
    assert "unknown    reading what was just written: No space left on device" in done.stdout
    assert done.stdout.count("refused  ") == 1


def test_a_base_path_that_may_not_be_written(run: Any, store: JobStore, managers: Managers) -> None:
    """Root may, so this is a user who may not."""
    store.create_directories()
    managers.patch = "import os; real = os.access; os.access = lambda path, mode: mode != 3 and real(path, mode)"
    done = run("doctor")
    assert done.returncode == 1
    assert f"refused    the user: {store.base_path} belongs to " in done.stdout


def test_a_mount_of_an_object_store(run: Any, tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    with object_store(tmp_path / "bucket", tmp_path / "mounted") as place:
        done = run("doctor", "--base-path", str(place / "base"))
    assert done.returncode == 1
    assert "refused    appending to files: Operation not permitted" in done.stdout
    assert "mounts of object stores (rclone, s3fs) are not fit" in done.stdout


def test_a_shared_file_system(run: Any, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with bound(tmp_path / "source", tmp_path / "mounted") as place:
        done = run("doctor", "--base-path", str(place))
    assert done.returncode == 0
    assert "otherwise  notification of changes by other machines: it is fuse" in done.stdout
    assert "if jobs are written by hand, set poll_interval to a second" in done.stdout


def test_another_machine(run: Any, store: JobStore, managers: Managers, manager: object, server: ServerThread) -> None:
    """Its file system can only be tried there."""
    managers.environment["AIR_EXECUTOR_TOKEN"] = server.token("t", "read")
    done = run("doctor", "--url", server.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "works      the manager there: " in done.stdout
    assert "run `air-executor doctor` there" in done.stdout
    managers.environment["AIR_EXECUTOR_TOKEN"] = "wrong"
    done = run("doctor", "--url", server.url, "--json")
    assert done.returncode == 1
    (manager_there, file_system) = json.loads(done.stdout)["findings"]
    assert manager_there["verdict"] == "refused"
    assert "the token is not accepted" in manager_there["seen"]
    assert file_system["verdict"] == "unknown"
