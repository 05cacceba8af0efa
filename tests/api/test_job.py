"""What somebody is given who looks at a job: its tasks, their graph, times and logs, without a server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import HTTPException

from airflow_provider_air_executor.api.routes import job as job_routes
from airflow_provider_air_executor.api.routes import logs as log_routes
from airflow_provider_air_executor.api.shape import busy_times
from airflow_provider_air_executor.api.task_records import TaskDetails
from airflow_provider_air_executor.api.view import FoundJob, WholeView
from airflow_provider_air_executor.jobs import masking
from airflow_provider_air_executor.jobs.attempts import AttemptRecord
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import Job, JobState, Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.outcomes import Outcome
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job, publish_tasks

FAILED = {"status": TaskStatus.FAILED, "attempt": 1}


def found(store: JobStore, name: str = "j") -> FoundJob:
    """The job, for a user who may see everything."""
    return FoundJob(store.get_job(name), WholeView(FileJobs(store)))


def secret_job(store: JobStore, tasks: list[Any]) -> Job:
    """A job one of whose secrets is ``hunter2``."""
    return store.submit("j", tasks, attached={masking.FILE: masking.dump(["hunter2"])})


# -- tasks -------------------------------------------------------------------------------------------------


def test_tasks_are_found_by_how_they_stand(store: JobStore) -> None:
    store.submit("j", [{"id": name, "command": "true"} for name in "abcd"])
    reasons = (Reason.EXIT, Reason.DEPENDENCY, Reason.TIMEOUT, Reason.DEPENDENCY)
    stands = zip(store.get_tasks("j"), reasons, strict=True)
    publish_tasks(store, "j", [task.evolve(**FAILED, reason=reason) for task, reason in stands])

    def listed(*outcome: Outcome) -> list[str]:
        return [task.id for task in job_routes.list_tasks(found(store), outcome=outcome).tasks]

    assert listed(Outcome.UPSTREAM_FAILED) == ["b", "d"]
    assert listed(Outcome.FAILED, Outcome.TIMED_OUT) == ["a", "c"]
    assert listed() == ["a", "b", "c", "d"]


def test_a_task_with_its_whole_command(store: JobStore) -> None:
    store.submit("j", [{"id": "a", "bash": "x" * 5000}, {"id": "b", "bash": "short"}])
    (cut, short) = job_routes.list_tasks(found(store)).tasks
    assert (len(cut.command), cut.is_command_cut) == (2004, True)
    assert (short.command, short.is_command_cut) == ("short", False)
    whole = job_routes.get_task(found(store), "a")
    assert (whole.command, whole.is_command_cut) == ("x" * 5000, False)
    with pytest.raises(HTTPException, match="no such task"):
        job_routes.get_task(found(store), "missing")


def test_how_a_task_is_run_without_secrets() -> None:
    pod = {"spec": {"containers": [{"name": "task", "env": [{"name": "A", "value": "seen"}], "args": ["hunter2"]}]}}
    task = Task(
        id="t",
        command="true",
        runner="kubernetes",
        resources={"cpus": 2, "memory": "1Gi"},  # type: ignore[arg-type]
        retry_delay=5,
        kubernetes={"image": "busybox:hunter2", "labels": {"hunter2": "x"}, "pod_template": pod},  # type: ignore[call-arg]
        slurm=None,  # type: ignore[call-arg]
        of_another_system={"env": "seen"},  # type: ignore[call-arg]
    )
    shown = TaskDetails.of(task, [], Mask(["hunter2"]))
    assert (shown.runner, shown.retry_delay) == ("kubernetes", 5)
    assert shown.resources is not None
    assert (shown.resources.cpus, shown.resources.memory) == (2, 2**30)
    assert set(shown.options) == {"kubernetes"}
    assert shown.options["kubernetes"]["image"] == "busybox:***"
    assert shown.options["kubernetes"]["labels"] == {"***": "x"}
    (container,) = shown.options["kubernetes"]["pod_template"]["spec"]["containers"]
    assert container == {"name": "task", "env": ["A"], "args": ["***"]}
    assert "seen" not in shown.model_dump_json()
    assert "hunter2" not in shown.model_dump_json()


# -- the shape of the job ----------------------------------------------------------------------------------


def test_the_graph(store: JobStore) -> None:
    tasks = [
        {"id": "a", "command": "true"},
        {"id": "b", "command": "true", "dependencies": ["a"]},
        {"id": "c", "command": "true", "dependencies": ["a", "b"]},
    ]
    store.submit("j", tasks)
    whole = job_routes.get_graph(found(store))
    assert whole.ids == ["a", "b", "c"]
    assert whole.dependencies == [[], [0], [0, 1]]
    assert whole.outcomes == ["pending"] * 3
    near = job_routes.get_graph(found(store), near="c", limit=2)
    assert (near.ids, near.dependencies) == (["a", "c"], [[], [0]])


START = datetime(2026, 1, 1, tzinfo=UTC)


def ran(begin: float, end: float | None, status: TaskStatus = TaskStatus.COMPLETED) -> AttemptRecord:
    """An attempt, by seconds."""
    ended = None if end is None else START + timedelta(seconds=end)
    return AttemptRecord("t", 1, status, started_at=START + timedelta(seconds=begin), completed_at=ended)


@pytest.mark.parametrize(
    ("attempts", "is_over", "expected"),
    [
        ([], True, []),
        ([ran(0, 5), ran(3, 9)], True, [(0, 9)]),
        ([ran(20, 25), ran(0, 5)], True, [(0, 5), (20, 25)]),
        ([ran(0, 5), ran(5.5, 9)], True, [(0, 9)]),  # close
        ([ran(0, 5), ran(3, None, TaskStatus.RUNNING)], False, [(0, None)]),
        ([ran(0, 5), ran(30, None, TaskStatus.RUNNING), ran(31, 40)], False, [(0, 5), (30, None)]),
        ([ran(0, 5), ran(30, None, TaskStatus.RUNNING)], True, [(0, 5), (30, 30)]),  # it was killed with its runner
        ([ran(0, 5), ran(30, None, TaskStatus.FAILED)], False, [(0, 5), (30, 30)]),
    ],
)
def test_when_tasks_ran(attempts: list[AttemptRecord], is_over: bool, expected: list[tuple[float, float]]) -> None:
    def seconds(moment: datetime | None) -> float | None:
        return None if moment is None else (moment - START).total_seconds()

    busy = busy_times(attempts, START + timedelta(hours=1) if is_over else None)
    assert [(seconds(begin), seconds(end)) for begin, end in busy] == expected


def test_very_many_moments_are_few() -> None:
    busy = busy_times([ran(2 * number, 2 * number + 0.1) for number in range(10_000)], START)
    assert len(busy) == 1


def test_the_times_of_a_job_do_not_depend_on_the_page(store: JobStore) -> None:
    job = store.submit("j", ["true", "true"])
    tasks = [
        task.evolve(status=TaskStatus.COMPLETED, attempt=1, started_at=START + delay, completed_at=START + 2 * delay)
        for task, delay in zip(store.get_tasks("j"), (timedelta(seconds=10), timedelta(hours=1)), strict=True)
    ]
    publish_tasks(store, "j", tasks)
    publish_job(store, job.evolve(state=JobState.COMPLETED))
    whole = job_routes.list_tasks(found(store))
    assert len(whole.busy) == 2
    assert job_routes.list_tasks(found(store), limit=1).busy == whole.busy
    assert job_routes.list_tasks(found(store), text="task-2").busy == whole.busy


# -- logs --------------------------------------------------------------------------------------------------


def read(store: JobStore, **query: Any) -> tuple[bytes, dict[str, str]]:
    answer = log_routes.get_log(found(store), "t", **query)
    return answer.body, {key: value for key, value in answer.headers.items() if key.startswith("x-")}  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("offset", "limit", "text", "begin"),
    [
        (0, 100, b"one\ntwo\nthree", 0),
        (1, 100, b"two\nthree", 4),
        (4, 100, b"two\nthree", 4),  # it begins with a line already
        (-6, 6, b"three", 8),
        (-5, 5, b"three", 8),
        (-4, 4, b"hree", 9),  # no line begins here
        (5, 3, b"wo\n", 5),  # none in what is asked for
        (99, 9, b"", 99),
    ],
)
def test_a_piece_of_a_log_begins_with_a_whole_line(
    store: JobStore, offset: int, limit: int, text: bytes, begin: int
) -> None:
    store.submit("j", [{"id": "t", "command": "true"}])
    store.paths("j").log("t").write_bytes(b"one\ntwo\nthree")
    body, headers = read(store, offset=offset, limit=limit, whole_lines=True)
    assert (body, headers["x-offset"]) == (text, str(begin))
    assert headers["x-next-offset"] == str(begin + len(text))


def test_the_number_of_a_line(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.submit("j", [{"id": "t", "command": "true"}])
    store.paths("j").log("t").write_bytes(b"".join(b"line %d\n" % number for number in range(100_000)))
    for offset, number in ((0, 1), (1, 2), (-1000, 99_911)):
        body, headers = read(store, offset=offset, limit=100, whole_lines=True, numbered=True)
        assert headers["x-line-number"] == str(number)
        assert body.startswith(b"line %d\n" % (number - 1))
    monkeypatch.setattr(log_routes, "_MAX_COUNTED", 1000)
    assert "x-line-number" not in read(store, offset=5000, limit=10, numbered=True)[1]
    assert "x-line-number" not in read(store, offset=0, limit=10)[1]


def test_a_whole_line_without_its_secret(store: JobStore) -> None:
    secret_job(store, [{"id": "t", "command": "true"}])
    store.paths("j").log("t").write_bytes(b"half hunter2\nwhole hunter2 line\n")
    body, headers = read(store, offset=7, limit=100, whole_lines=True)
    assert (body, headers["x-offset"]) == (b"whole *** line\n", "13")


def test_the_times_of_the_part_that_is_shown(store: JobStore) -> None:
    store.submit("j", [{"id": "t", "command": "true"}])
    store.paths("j").log("t").write_bytes(b"0123456789" * 3)
    store.paths("j").log_times("t").write_text("100 10 1\n101.5 20 1\n102 20 2\n")
    times = log_routes.get_log_times(found(store), "t", offset=-11)
    assert times.size == 30
    assert [offset for _, offset in times.times] == [20, 20, 30]
    assert [(part.number, part.begin, part.end) for part in times.attempts] == [(1, 0, 20), (2, 20, 30)]
    assert len(log_routes.get_log_times(found(store), "t", offset=0).times) == 4
    assert json.loads(times.model_dump_json())["times"][0] == [101.5, 20]


def test_a_search_in_the_whole_log(store: JobStore) -> None:
    secret_job(store, [{"id": "t", "command": "true"}])
    store.paths("j").log("t").write_bytes(b"one hunter2\ntwo\nONE\n")
    matches = log_routes.search_log(found(store), "t", text="one")
    assert (matches.offsets, matches.next_offset) == ([0, 16], None)
    assert log_routes.search_log(found(store), "t", text="hunter2").offsets == []
    assert log_routes.search_log(found(store), "t", text="one", offset=1, end=16).offsets == []
    assert log_routes.search_log(found(store), "t").offsets == []
