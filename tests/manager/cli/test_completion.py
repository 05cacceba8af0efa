"""What a shell completes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.managers import CLI, Managers


@pytest.fixture
def environment(managers: Managers, store: JobStore) -> dict[str, str]:
    store.submit("nightly-1", [{"id": "load", "bash": "true"}, {"id": "look", "bash": "true"}])
    store.submit("weekly", ["true"])
    (store.jobs_path / ".deleted-nightly-2").mkdir()
    return managers.environment


def completed(words: list[str], environment: dict[str, str], cwd: Path | None = None) -> list[str]:
    line = " ".join(["air-executor", *words])
    asked = {"_AIR_EXECUTOR_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    done = subprocess.run(CLI, env={**environment, **asked}, capture_output=True, text=True, check=True, cwd=cwd)
    return [word.partition(",")[2] for word in done.stdout.split()]


def test_names_and_tasks(environment: dict[str, str], store: JobStore) -> None:
    where = {**environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path)}
    assert completed(["logs", "n"], where) == ["nightly-1"]
    assert completed(["rm", "weekly", ""], where) == ["nightly-1", "weekly"]
    assert completed(["logs", "nightly-1", "lo"], where) == ["load", "look"]
    assert completed(["retry", "weekly", "--state", "c"], where) == ["completed", "cancelled"]
    assert completed(["retry", "nightly-1", "--task", "lo"], where) == ["load", "look"]
    assert completed(["cancel", "nightly-1", "--task", "load", "--task", "loo"], where) == ["look"]
    assert completed(["add-task", "--job", "nightly-1", "--depends-on", "lo"], where) == ["load", "look"]
    assert completed(["logs", "nope", ""], where) == []
    assert completed(["retry", "--task", ""], where) == []


def test_the_base_path_counts_before_and_after_the_command(environment: dict[str, str], store: JobStore) -> None:
    base_path = ["--base-path", str(store.base_path)]
    assert completed([*base_path, "status", "w"], environment) == ["weekly"]
    assert completed(["status", *base_path, "w"], environment) == ["weekly"]


def test_without_one_it_looks_where_commands_look(environment: dict[str, str], store: JobStore, tmp_path: Path) -> None:
    assert completed(["status", "w"], environment, tmp_path) == []
    store.base_path.rename(tmp_path / "air-executor")
    assert completed(["status", "w"], {**environment, "AIRFLOW_HOME": str(tmp_path)}, tmp_path) == ["weekly"]
    (tmp_path / "air-executor").rename(tmp_path / ".air-executor")
    assert completed(["status", "w"], environment, tmp_path) == ["weekly"]
