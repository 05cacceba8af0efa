"""The log of a task that has run in a Pod, whose log folder may be another one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from airflow.models.taskinstancekey import TaskInstanceKey

from airflow_provider_air_executor.executor import task_log
from airflow_provider_air_executor.executor.queues import Options, Queue
from airflow_provider_air_executor.executor.submission import TASK_ID
from airflow_provider_air_executor.executor.tracking import Kind, TrackedWorkload
from airflow_provider_air_executor.jobs.store import JobStore

LOG_PATH = "dag_id=d/attempt=1.log"
RECORDS = [{"timestamp": f"2026-11-30T12:00:0{n}.5Z", "level": "info", "event": f"line {n}"} for n in range(3)]
PRINTED = "".join(json.dumps(record) + "\n" for record in RECORDS)


@pytest.fixture
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    return tmp_path / "logs" / LOG_PATH


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "base")


def tracked(store: JobStore, printed: str, runner: str = "kubernetes") -> TrackedWorkload:
    """A workload whose job has printed something."""
    store.submit("w", [{"id": TASK_ID, "command": "true", "runner": runner}], labels={"log_path": LOG_PATH})
    store.paths("w").log(TASK_ID).write_text(printed)
    return TrackedWorkload("w", TaskInstanceKey("d", "t", "r"), store, Kind.TASK)


def test_the_log_of_a_pod_is_brought_here_once(store: JobStore, log_file: Path) -> None:
    workload = tracked(store, PRINTED)
    task_log.write(LOG_PATH, workload.key, "Pod p, waiting", level="info")
    assert not task_log.is_there(log_file, store, "w")
    for _ in range(2):
        task_log.bring(workload, None, None)
        assert log_file.read_text().endswith(PRINTED)
        assert log_file.read_text().count("line 1") == 1
    assert "Pod p, waiting" in log_file.read_text()
    assert task_log.is_there(log_file, store, "w")


@pytest.mark.parametrize("printed", [PRINTED, PRINTED + '{"timestamp": "later", "event": "of the supervisor alone"}\n'])
def test_a_log_folder_that_the_pod_shares(store: JobStore, log_file: Path, printed: str) -> None:
    workload = tracked(store, printed)
    log_file.parent.mkdir(parents=True)
    log_file.write_text(PRINTED)
    assert task_log.is_there(log_file, store, "w")
    task_log.bring(workload, None, None)
    assert log_file.read_text() == PRINTED


@pytest.mark.parametrize(("runner", "printed"), [("local", PRINTED), ("slurm", PRINTED), ("kubernetes", "no record\n")])
def test_what_is_not_brought(store: JobStore, log_file: Path, runner: str, printed: str) -> None:
    task_log.bring(tracked(store, printed, runner), None, None)
    assert not log_file.exists() or not log_file.read_text()


def test_a_job_that_is_gone(store: JobStore, log_file: Path) -> None:
    workload = tracked(store, PRINTED)
    store.paths("w").log(TASK_ID).unlink()
    task_log.bring(workload, None, None)
    assert not log_file.exists()


def test_a_pod_gets_the_workload(store: JobStore) -> None:
    """By the option that hands it attached files, whatever the queue and the task say."""
    queue = Queue.of("q", "/base", 1, {"runner": "kubernetes", "kubernetes": {"image": "x"}})
    options = Options.of({"air_executor": {"kubernetes": {"namespace": "n"}}})
    expected = {"image": "x", "namespace": "n", "attached_files": ["workload.json"]}
    assert queue.placement(options).fields["kubernetes"] == expected
    here = queue.placement(Options.of({"air_executor": {"runner": "local"}}))
    assert "attached_files" not in here.fields["kubernetes"]
