"""Exit codes, errors in a sentence, and where commands look for jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.commands import as_if_not_root
from tests.support.managers import CLI, Managers, run_cli

JOB = {"name": "j", "tasks": [{"command": "echo", "args": ["hello"]}, {"bash": "echo [bold]ho; exit 3", "id": "b"}]}


def test_exit_codes_for_what_is_missing_or_taken(run: Any, store: JobStore) -> None:
    assert run("status").returncode == 1
    store.submit("j", ["true"])
    done = run("submit", "-", text=json.dumps(JOB))
    assert (done.returncode, done.stderr.endswith("or delete that job once it has ended (--replace)\n")) == (4, True)
    for command in ("status", "logs", "cancel", "retry"):
        done = run(command, "nope")
        assert done.returncode == 3
        assert "there is no job 'nope'" in done.stderr
    assert run("retry", "j").returncode == 4
    assert run("prune", "--older-than", "soon").returncode == 2


@pytest.fixture
def no_locks(managers: Managers) -> None:
    """As on a network file system without a lock service."""
    lines = "import errno, fcntl, os", "def flock(*_): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))"
    managers.patch = "\n".join([*lines, "fcntl.flock = flock"])


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("is_new", [True, False])
def test_without_locks_nothing_is_submitted_and_no_manager_starts(run: Any, store: JobStore, is_new: bool) -> None:
    if not is_new:
        store.create_directories()
        store.lock_path.touch()
    for arguments in (["submit", "-"], ["manager"], ["manager", "--detach"]):
        done = run(*arguments, text=json.dumps(JOB))
        assert done.returncode == 1
        said = done.stderr + (store.manager_log_path.read_text() if store.manager_log_path.exists() else "")
        assert f"air-executor: {store.lock_path} cannot be locked (No locks available)" in said
        assert "have its file system mounted with locks" in said
    assert store.job_names() == []


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_jobs_are_shown(run: Any, store: JobStore) -> None:
    store.submit("j", ["true"])
    store.lock_path.touch()
    for arguments in ([], ["j"], ["--json"], ["j", "--json"]):
        done = run("status", *arguments)
        assert done.returncode == 0, done.stderr
        assert re.search(r"\bj\b", done.stdout)
        assert "it is not known whether a manager runs: " in " ".join(done.stdout.split())


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user need root")
def test_what_is_forbidden_is_said_with_the_path_and_who_may(store: JobStore, managers: Managers) -> None:
    store.submit("j", ["true"])
    os.chown(store.inbox_path, 65534, 65534)
    done = as_if_not_root(store, managers, "cancel", "j")
    place = re.escape(str(store.inbox_path))
    assert done.returncode == 1
    assert re.fullmatch(
        f"air-executor: {place}/.*: Permission denied; {place} belongs to nobody, who may do this\n", done.stderr
    )


@pytest.mark.parametrize(
    "elsewhere", [["air-executor"], ["air-executor-tasks"], ["air-executor", "air-executor-tasks"]]
)
def test_a_job_filesystem_in_airflows_home_is_found(managers: Managers, tmp_path: Path, elsewhere: list[str]) -> None:
    """If it is the only one; otherwise they are named. It is not where one is named, or is here."""
    for name in elsewhere:
        JobStore(tmp_path / name).submit(f"of-{name}", ["true"])
    environment = {**managers.environment, "AIRFLOW_HOME": str(tmp_path)}

    def status(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*CLI, *arguments, "status"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    found = status()
    if len(elsewhere) == 1:
        assert f"of-{elsewhere[0]}" in found.stdout
    else:
        assert found.returncode == 1
        named = f"{tmp_path}/air-executor and {tmp_path}/air-executor-tasks"
        assert f"there is no job filesystem at {tmp_path}/.air-executor, but at {named}; " in found.stderr
    assert f"there is no job filesystem at {tmp_path}/nope, but at " in status("--base-path", "nope").stderr
    JobStore(tmp_path / ".air-executor").submit("here", ["true"])
    assert "here" in status().stdout


def test_the_base_path_may_be_before_the_command_and_after_it(managers: Managers, tmp_path: Path) -> None:
    """The last one counts, and both more than the environment."""
    for name in ("variable", "before", "after"):
        JobStore(tmp_path / name).submit(name, ["true"])
    environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(tmp_path / "variable")}
    before, after = (["--base-path", str(tmp_path / name)] for name in ("before", "after"))

    def shown(*arguments: str) -> list[str]:
        return [job["name"] for job in json.loads(run_cli([*arguments, "--json"], environment).stdout)["jobs"]]

    assert shown("status") == ["variable"]
    assert shown(*before, "status") == ["before"]
    assert shown(*before, "status", *after) == ["after"]


def test_it_starts_fast_and_without_airflow() -> None:
    """The limit is 0.3 s on a quiet machine; here only what is imported is held to be little."""
    code = "import sys; import airflow_provider_air_executor.manager.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"airflow", "rich", "yaml", "tenacity", "asyncio", "hypothesis"} & set(loaded)
