"""What an Airflow task says of its job while it waits; what it says in the end is in ``test_operators.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from airflow_provider_air_executor.job_report import JobOutput, lines_at_end, log_line
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.triggers import AirExecutorJobTrigger


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    """With a job whose only task runs."""
    made = JobStore(tmp_path)
    made.submit("j", ["true"])
    tasks = json.loads(made.paths("j").tasks.read_text())
    made.paths("j").tasks.write_text(json.dumps([{**task, "status": "running", "attempt": 1} for task in tasks]))
    made.paths("j").logs.mkdir(exist_ok=True)
    return made


def write(store: JobStore, text: str) -> None:
    with store.paths("j").log("task-1").open("a") as log:
        log.write(text)


def shown(output: JobOutput, **kwargs: Any) -> list[tuple[str, str]]:
    """What appears in the log."""
    with capture_logs() as captured:
        output.show(AirExecutorJobTrigger("j").log, **kwargs)
    return [(line["log_level"], str(line["event"] % line.get("positional_args", ()))) for line in captured]


def test_a_silent_job_is_looked_at_less_often(store: JobStore) -> None:
    output = JobOutput(FileJobs(store), "j")
    write(store, "one\n")
    assert shown(output) == [("info", "task-1 | one")]
    pauses = []
    for _ in range(6):
        assert shown(output, is_changed=False) == []
        pauses.append(output.pause(5))
    assert pauses == [10, 15, 20, 20, 20, 20]
    write(store, "ERROR two\n")
    assert shown(output, is_changed=False) == [("error", "task-1 | ERROR two")]
    assert output.pause(5) == 5


def test_the_tasks_are_read_when_they_may_have_changed(store: JobStore) -> None:
    output = JobOutput(FileJobs(store), "j")
    shown(output)
    store.paths("j").tasks.unlink()
    write(store, "one\n")
    assert shown(output, is_changed=False) == [("info", "task-1 | one")]
    write(store, "two\n")
    assert shown(output, is_changed=True) == []  # they cannot be read now
    assert output.pause(5) == 5


def test_the_limit_is_a_setting(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write(store, "one\ntwo\n")
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STREAM_LIMIT", "8")
    output = JobOutput(FileJobs(store), "j")
    assert len(shown(output)) == 2
    assert lines_at_end(output) == 0
    write(store, "three\n")
    assert "no more output of this job is shown here" in shown(output)[0][1]
    assert lines_at_end(output) == lines_at_end(None) == 20
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__STREAM_LIMIT", "0")
    store.paths("j").logs.joinpath(".airflow.offsets").unlink()
    assert len(shown(JobOutput(FileJobs(store), "j"))) == 3


def test_a_line_below_info_appears_also_where_the_log_has_none(store: JobStore) -> None:
    class Log:
        def __init__(self, is_enabled: bool) -> None:
            self.is_enabled = is_enabled
            self.levels: list[int] = []

        def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - as logging has it
            return self.is_enabled

        def log(self, level: int, *_: object) -> None:
            self.levels.append(level)

    for is_enabled, level in ((True, 10), (False, 20)):
        log = Log(is_enabled)
        log_line(log, "task-1 | DEBUG x")
        assert log.levels == [level]
