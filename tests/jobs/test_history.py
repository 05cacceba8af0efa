"""What is left of jobs that were removed, and how long the runs of a series took."""

from __future__ import annotations

import json
import stat
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import NoLocksError
from airflow_provider_air_executor.jobs import files, history, masking, task_lists
from airflow_provider_air_executor.jobs.history import Run, durations, series_of
from airflow_provider_air_executor.jobs.index import JobIndex
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, SubmittedBy, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage
from tests.support.jobs import publish_job, publish_tasks

OWNER = SubmittedBy(dag_id="d", run_id="r", task_id="t")


def end(store: JobStore, name: str, *, seconds: float = 5, ago: float = 0, **more: Any) -> Job:
    """Let a job end that was submitted, so many seconds ago."""
    ended = utc_now() - timedelta(seconds=ago)
    changes = {"state": JobState.COMPLETED, "started_at": ended - timedelta(seconds=seconds), "updated_at": ended}
    job = store.get_job(name).evolve(**changes | more)
    publish_job(store, job)
    return job


def past_run(store: JobStore, name: str = "j", **more: Any) -> Job:
    """A job that has ended, and was removed."""
    store.submit(name, ["true"], submitted_by=OWNER)
    job = end(store, name, **more)
    store.delete(name)
    return job


def test_a_removed_job_leaves_a_line(store: JobStore) -> None:
    store.submit("j", ["true", "true"], labels={"a": "b"}, submitted_by=OWNER)
    job = end(store, "j", state=JobState.FAILED, reason=Reason.EXIT, error="exit code 3")
    store.delete("j")
    (past,) = history.read(store)
    assert past._replace(created_at=None) == history.PastJob(
        name="j",
        series="d/t",
        state="failed",
        reason="exit",
        error="exit code 3",
        created_at=None,
        started_at=job.started_at,
        ended_at=job.updated_at,
        seconds=5.0,
        tasks=2,
        submitted_by={"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1},
        labels={"a": "b"},
    )
    assert past.created_at == job.created_at
    assert stat.S_IMODE((store.base_path / "history.jsonl").stat().st_mode) == 0o600


def test_what_its_tasks_have_used_is_in_the_line(store: JobStore) -> None:
    store.submit("j", ["true", "true", "true"])
    first, second, third = store.get_tasks("j")
    used = [Usage(cpu_seconds=1.25, max_memory=500), Usage(cpu_seconds=2)]
    publish_tasks(store, "j", [first.evolve(usage=used[0]), second.evolve(usage=used[1]), third])
    end(store, "j")
    store.delete("j")
    (past,) = history.read(store)
    assert (past.tasks, past.cpu_seconds, past.max_memory) == (3, 3.25, 500)


def test_a_line_of_before_that_was_kept_is_read(store: JobStore) -> None:
    past_run(store)
    path = store.base_path / "history.jsonl"
    line = json.loads(path.read_text())
    del line["cpu_seconds"], line["max_memory"]
    path.write_text(json.dumps(line) + "\n")
    (past,) = history.read(store)
    assert (past.name, past.cpu_seconds, past.max_memory) == ("j", None, None)


def test_a_job_without_a_start_has_no_duration(store: JobStore) -> None:
    store.submit("j", ["true"])
    publish_job(store, store.get_job("j").evolve(state=JobState.FAILED))
    store.delete("j")
    (past,) = history.read(store)
    assert (past.started_at, past.seconds) == (None, None)
    assert durations(store, JobIndex(store), "j") == []


def test_what_prune_removes_leaves_a_line_too(store: JobStore) -> None:
    store.submit("j", ["true"])
    end(store, "j", ago=1000)
    assert store.prune(timedelta(seconds=10)).removed == ["j"]
    assert [past.name for past in history.read(store)] == ["j"]


def test_a_job_that_cannot_be_removed_leaves_none(store: JobStore) -> None:
    store.submit("j", ["true"])
    with pytest.raises(Exception, match="is waiting"):
        store.delete("j")
    assert list(history.read(store)) == []


def test_a_job_goes_although_its_line_cannot_be_written(store: JobStore) -> None:
    store.submit("j", ["true"])
    end(store, "j")
    (store.base_path / "history.jsonl").mkdir()
    store.delete("j")
    assert store.job_names() == []
    assert list(history.read(store)) == []


def test_secrets_do_not_outlive_their_job_here(store: JobStore) -> None:
    store.submit("j", ["true"], labels={"token": "hunter2!"}, attached={masking.FILE: masking.dump(["hunter2!"])})
    end(store, "j", error="command hunter2! was not found")
    store.delete("j")
    (past,) = history.read(store)
    assert (past.error, past.labels) == ("command *** was not found", {"token": "***"})
    assert b"hunter2!" not in (store.base_path / "history.jsonl").read_bytes()


def test_texts_are_left_out_if_it_is_not_known_what_is_secret(store: JobStore) -> None:
    store.submit("j", ["true"], labels={"a": "b"}, attached={masking.FILE: b"{not json"})
    end(store, "j", error="some text")
    store.delete("j")
    (past,) = history.read(store)
    assert (past.error, past.labels) == (None, {})


def test_lines_are_of_bounded_length(store: JobStore) -> None:
    store.submit("j", ["true"], labels={"a": "b" * 100_000})
    end(store, "j", error="x" * 100_000)
    store.delete("j")
    assert (store.base_path / "history.jsonl").stat().st_size < 5000
    (past,) = history.read(store)
    assert past.labels == {}


def test_a_long_file_is_replaced_and_the_one_before_is_read_too(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_BYTES", 1500)
    names = [f"j{number}" for number in range(13)]
    for name in names:
        past_run(store, name)
    found = [past.name for past in history.read(store)]
    assert len(found) < len(names)
    assert found == names[: -len(found) - 1 : -1], "the latest ones, the last first"
    assert sorted(path.name for path in store.base_path.glob("history*")) == ["history.jsonl", "history.jsonl.1"]
    assert [run.name for run in durations(store, JobIndex(store), "d/t")] == found[::-1]


def test_several_that_remove_jobs_at_once_lose_nothing(store: JobStore) -> None:
    names = [f"j{number}" for number in range(40)]
    for name in names:
        store.submit(name, ["true"])
        end(store, name)
    threads = [
        threading.Thread(target=lambda part: [store.delete(name) for name in part], args=(names[start::4],))
        for start in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(past.name for past in history.read(store)) == sorted(names)


@pytest.mark.parametrize(
    ("more", "series"),
    [
        ({}, "d/t"),
        ({"map_index": 3}, "d/t/3"),
        ({"map_index": 0}, "d/t/0"),
        ({"callback": "on_failure"}, "d/t/on_failure"),
        ({"run_id": "another", "try_number": 2}, "d/t"),
    ],
)
def test_the_jobs_of_an_airflow_task_are_a_series(more: dict[str, Any], series: str) -> None:
    assert series_of(Job(id="j-1", name="j", submitted_by=OWNER.evolve(**more))) == series
    assert series_of(Job(id="j-1", name="j")) == "j"


def test_durations_are_of_jobs_that_are_there_and_of_those_that_were_removed(store: JobStore) -> None:
    past_run(store, "a", seconds=3, ago=300)
    past_run(store, "b", seconds=4, ago=200)
    store.submit("c", ["true"], submitted_by=OWNER)
    end(store, "c", seconds=5, ago=250, state=JobState.FAILED)
    store.submit("d", ["true"], submitted_by=OWNER)
    store.submit("other", ["true"])
    end(store, "other", seconds=6)

    def found(series: str = "d/t", **more: Any) -> list[tuple[str, float, str]]:
        return [(run.name, run.seconds, run.state) for run in durations(store, JobIndex(store), series, **more)]

    assert found() == [("a", 3, "completed"), ("c", 5, "failed"), ("b", 4, "completed")]
    assert found(limit=2) == [("c", 5, "failed"), ("b", 4, "completed")]
    assert found("other") == [("other", 6, "completed")]
    assert found("nothing") == []
    past_run(store, "e", seconds=7)
    assert found()[-1] == ("e", 7, "completed"), "what has been appended since is seen"
    (store.base_path / "history.jsonl").unlink()
    assert found() == [("c", 5, "failed")]


def test_lines_that_are_not_valid_are_passed_over(store: JobStore) -> None:
    past_run(store, "a")
    path = store.base_path / "history.jsonl"
    whole = path.read_text()
    broken = [{**json.loads(whole), "seconds": "x"}, {**json.loads(whole), "started_at": "yesterday"}, {}, 3, None]
    path.write_text("\n".join(["nonsense", *map(json.dumps, broken), whole + whole[:40]]))
    assert [past.name for past in history.read(store)] == ["a"]
    assert [run.name for run in durations(store, JobIndex(store), "d/t")] == ["a"]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(store: JobStore) -> None:
    past_run(store, "a")
    past_run(store, "b")
    path = store.base_path / "history.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + 10])
    assert [run.name for run in durations(store, JobIndex(store), "d/t")] == ["a"]
    with path.open("ab") as file:
        file.write(whole[first + 10 :])
    assert [run.name for run in durations(store, JobIndex(store), "d/t")] == ["a", "b"]


@given(content=st.binary(max_size=100))
def test_any_content_is_borne(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    store = JobStore(tmp_path_factory.mktemp("history"))
    (store.base_path / "history.jsonl").write_bytes(content)
    list(history.read(store))
    assert durations(store, JobIndex(store), "x") == []
    assert Run._fields == ("name", "started", "seconds", "state")


def test_tasks_are_counted_piece_by_piece(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads of the manager would wait for a list that is parsed at once, however long it is."""
    lengths, parse = [], task_lists._PARSE

    def parsing(text: str) -> tuple[Any, int]:
        lengths.append(len(text))
        return parse(text)

    monkeypatch.setattr(task_lists, "_PARSE", parsing)
    store.submit("j", ["true"] * 1000)
    assert store.paths("j").tasks.stat().st_size > 400_000
    end(store, "j")
    store.delete("j")
    (past,) = history.read(store)
    assert past.tasks == 1000
    assert len(lengths) == 1000
    assert max(lengths) < 20_000


def test_a_file_is_replaced_where_there_are_no_locks(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(_descriptor: int, path: Path) -> bool:
        raise NoLocksError(path, "not supported")

    monkeypatch.setattr(files, "lock", no_locks)
    monkeypatch.setattr(history, "MAX_BYTES", 1)
    past_run(store, "one")
    past_run(store, "two")
    assert list(store.jobs_path.iterdir()) == []
    assert [past.name for past in history.read(store)] == ["two"]
