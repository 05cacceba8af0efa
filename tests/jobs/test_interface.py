"""What a job filesystem does, whether it is in a directory here or on another machine: the same tests for both."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor import remote
from airflow_provider_air_executor.exceptions import (
    CorruptFileError,
    InvalidJobError,
    JobExistsError,
    JobNotFoundError,
    JobStateError,
    OutputError,
    SettingsError,
)
from airflow_provider_air_executor.jobs import history
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.interface import Completions, JobFilter, Jobs, JobWatch, LinePosition
from airflow_provider_air_executor.jobs.models import Job, JobState, Resources, SubmittedBy, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.remote.protocol import Target
from tests.support.jobs import ended, publish_job, publish_tasks, remove, task, write_job
from tests.support.managers import Managers
from tests.support.servers import ServerThread
from tests.support.waiting import PATIENCE, nothing_until, until, wait_until

INTERVAL = 5.0
OWNER = SubmittedBy(dag_id="d", run_id="r", task_id="t", try_number=1, max_tries=2)


@pytest.fixture(params=["files", "server"])
def jobs(request: pytest.FixtureRequest, store: JobStore) -> Iterator[Jobs]:
    if request.param == "files":
        store.create_directories()
        yield FileJobs(store)
        return
    with ServerThread(store) as server:
        found = remote.connect(Target(socket=server.socket, name=str(store.base_path)))
        yield found
        found.close()


def write_log(store: JobStore, name: str, task_id: str, text: str | bytes) -> None:
    """Let a task have printed something, as a task does: its log is closed then."""
    with (store.paths(name).logs / f"{task_id}.log").open("ab") as log:
        log.write(text.encode() if isinstance(text, str) else text)


def completed(store: JobStore, name: str, **changes: Any) -> Job:
    """Let a job have ended, as a manager does."""
    tasks = tuple(each.evolve(status=TaskStatus.COMPLETED, attempt=1) for each in store.get_tasks(name))
    publish_tasks(store, name, tasks)
    job = store.get_job(name)
    now = job.created_at + timedelta(seconds=1)
    publish_job(store, job.evolve(state=JobState.COMPLETED, started_at=job.created_at, updated_at=now, **changes))
    return store.get_job(name)


# -- submitting --------------------------------------------------------------------------------------------


def test_a_job_that_is_submitted_can_be_read_and_runs(jobs: Jobs, store: JobStore, managers: Managers) -> None:
    managers.start()
    jobs.prepare()
    job = jobs.submit(
        "a",
        ["echo hello", task("b", "exit 3", after="task-1"), Task(command="true", id="c")],
        submitted_by=OWNER,
        labels={"who": "me"},
        outlets=["s3://bucket/x"],
        timeout=timedelta(minutes=2),
        priority=3,
        max_parallel_tasks=None,
    )
    assert job.name == "a"
    assert (job.labels, job.outlets, job.timeout, job.priority) == ({"who": "me"}, ("s3://bucket/x",), 120.0, 3)
    assert job.submitted_by is not None
    assert job.belongs_to(OWNER)
    assert jobs.get_job("a").id == job.id
    ended(store, "a")
    assert jobs.get_job("a") == store.get_job("a")
    assert jobs.get_tasks("a") == store.get_tasks("a")
    assert [each.id for each in jobs.get_tasks("a", ["c", "b", "x"])] == ["b", "c"]
    assert jobs.get_tasks("a", ["x"]) == ()
    assert [(each.id, each.status.value, each.exit_code) for each in jobs.get_tasks("a")] == [
        ("task-1", "completed", 0),
        ("b", "failed", 3),
        ("c", "completed", 0),
    ]
    assert [job.name for job in jobs.list_jobs()] == ["a"]
    assert jobs.log("a", "task-1").read().text == "hello\n"


def test_all_that_a_task_may_have_arrives(jobs: Jobs, store: JobStore) -> None:
    given = {
        "id": "t é%?",
        "command": Path("/bin/echo"),
        "args": [1, 2.5, Path("/x"), "  ü "],
        "env": {"A": 3},
        "cwd": Path("work"),
        "timeout": timedelta(seconds=3),
        "retries": 2,
        "retry_delay": "1m",
        "resources": Resources(memory="1Gi", cpus="500m"),
        "slurm": {"partition": "gpu"},
        "append_env": False,
    }
    jobs.submit("a", [given, task("z", "true", after="t é%?", run_if="all_done")])
    first, second = jobs.get_tasks("a")
    assert (first.id, first.command, first.args) == ("t é%?", "/bin/echo", ("1", "2.5", "/x", "  ü "))
    assert (first.env, first.cwd, first.timeout, first.retries, first.retry_delay) == ({"A": "3"}, "work", 3.0, 2, 60)
    assert first.resources == Resources(memory=2**30, cpus=0.5)
    assert first.engine_options("slurm") == {"partition": "gpu"}
    assert not first.append_env
    assert second.dependencies == ("t é%?",)
    assert store.get_tasks("a") == (first, second)


@pytest.mark.parametrize(
    ("name", "tasks", "spec", "said"),
    [
        ("../x", ["true"], {}, "job name"),
        ("ok", [], {}, "tasks: the list is empty"),
        ("ok", "true", {}, "must be a list of tasks, not str"),
        ("ok", [{"command": "a", "args": "b"}], {}, r"tasks\[0\].args"),
        ("ok", [{"cmd": "a"}], {}, r"tasks\[0\]"),
        ("ok", [task("a", after="b")], {}, "there is no task 'b'"),
        ("ok", [task("a"), task("a")], {}, "is the id of another task"),
        ("ok", ["true"], {"timeout": -1}, "timeout"),
        ("ok", ["true"], {"labels": {"a": 3}}, "labels"),
        ("ok", ["true"], {"max_parallel_tasks": 0}, "max_parallel_tasks"),
        ("ok", [{"command": "a", "slurm": 3}], {}, r"tasks\[0\].slurm"),
    ],
)
def test_what_is_not_valid_is_refused_and_nothing_is_written(
    jobs: Jobs, store: JobStore, name: str, tasks: Any, spec: Any, said: str
) -> None:
    with pytest.raises(InvalidJobError, match=said):
        jobs.submit(name, tasks, **spec)
    assert store.job_names() == []


def test_a_name_is_taken_once(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"], submitted_by=OWNER)
    with pytest.raises(JobExistsError, match=r"a job 'a' exists already in .* \(submitted by task t of DAG d, run r\)"):
        jobs.submit("a", ["true"], submitted_by=OWNER)
    with pytest.raises(JobExistsError):
        jobs.submit("a", ["false"])
    assert store.job_names() == ["a"]


# -- changing ----------------------------------------------------------------------------------------------


def test_a_job_is_cancelled_by_its_owner_only(jobs: Jobs, store: JobStore, managers: Managers) -> None:
    managers.start()
    jobs.submit("a", ["sleep 1000"], submitted_by=OWNER)
    assert not jobs.cancel("a", OWNER.evolve(run_id="another"))
    assert not jobs.cancel("a", OWNER.evolve(max_tries=3))
    jobs.reattach("a", OWNER.evolve(try_number=2))
    assert not jobs.cancel("a", OWNER)
    assert jobs.cancel("a", OWNER.evolve(try_number=2))
    assert ended(store, "a").reason == "cancelled"
    assert not jobs.cancel("a")
    with pytest.raises(JobNotFoundError):
        jobs.cancel("b")
    with pytest.raises(JobNotFoundError):
        jobs.reattach("b", OWNER)


def test_single_tasks_are_cancelled(jobs: Jobs, store: JobStore, managers: Managers, tmp_path: Path) -> None:
    managers.start()
    jobs.submit("a", [task("x", "sleep 1000"), task("y", until(tmp_path / "go"))])
    wait_until(lambda: all(each.attempt for each in jobs.get_tasks("a")), what="both run")
    with pytest.raises(InvalidJobError, match="there is no task 'xx' in job 'a'; did you mean 'x'"):
        jobs.cancel("a", tasks=["xx"])
    assert jobs.cancel("a", tasks=["x"])
    wait_until(lambda: jobs.get_tasks("a")[0].status is TaskStatus.FAILED, what="it has ended")
    (tmp_path / "go").touch()
    ended(store, "a")
    assert [each.status.value for each in jobs.get_tasks("a")] == ["failed", "completed"]


def test_what_always_runs_ends_with_the_second_request(
    jobs: Jobs, store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.start()
    jobs.submit(
        "a",
        [task("x", "sleep 1000"), task("y", f"touch {tmp_path}/y; sleep 1000", after="x", run_if="always")],
        submitted_by=OWNER,
    )
    wait_until(lambda: jobs.get_tasks("a")[0].attempt, what="it runs")
    assert jobs.cancel("a", OWNER)
    wait_until((tmp_path / "y").exists, what="the other one runs")
    assert jobs.cancel("a", OWNER)  # an Airflow task may ask more than once
    assert jobs.cancel("a", OWNER, again=False)
    assert store.get_job("a").cancel_again_requested_at is None
    assert jobs.cancel("a")
    assert ended(store, "a").reason == "cancelled"


def test_a_job_is_retried_once_for_each_request(
    jobs: Jobs, store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    jobs.submit("a", [task("x", f"echo x >> {tmp_path}/x; test -e {tmp_path}/go"), task("y", "true")])
    with pytest.raises(JobStateError, match="is waiting; only a job that has ended can be retried"):
        jobs.retry("a")
    managers.start()
    ended(store, "a")
    with pytest.raises(InvalidJobError):
        jobs.retry("a", ["z"])
    with pytest.raises(InvalidJobError, match="not both"):
        jobs.retry("a", ["x"], all=True)
    (tmp_path / "go").touch()

    def retried(*tasks: str) -> Job:
        before = jobs.get_job("a").attempt
        jobs.retry("a", *tasks)
        return wait_until(
            lambda: (job := jobs.get_job("a")).attempt > before and job.state.is_terminal and job, what="again"
        )

    assert retried().state is JobState.COMPLETED
    with pytest.raises(JobStateError, match="nothing of it failed"):
        jobs.retry("a")
    retried("x")
    assert (tmp_path / "x").read_text() == "x\n" * 3
    attempts = jobs.get_attempts("a")
    assert [(each.task_id, each.number) for each in attempts if each.task_id == "y"] == [("y", 1)]
    assert jobs.get_attempts("a", []) == ()
    assert {each.task_id for each in jobs.get_attempts("a", [jobs.get_tasks("a")[1]])} == {"y"}
    assert jobs.get_attempts("a") == store.get_attempts("a")


def test_tasks_are_added(jobs: Jobs, store: JobStore, managers: Managers, tmp_path: Path) -> None:
    managers.start()
    jobs.submit("a", [task("x", until(tmp_path / "go"))])
    given = jobs.add_tasks("a", [task("new", "echo secret-1234", after="x"), "true"], secrets=["secret-1234"])
    assert given[0] == "new"
    assert len(given) == 2
    with pytest.raises(InvalidJobError, match="there is no task 'nothing'"):
        jobs.add_tasks("a", [task("more", after="nothing")])
    (tmp_path / "go").touch()
    assert ended(store, "a").state is JobState.COMPLETED
    assert [each.id for each in jobs.get_tasks("a")] == ["x", *given]
    assert jobs.log("a", "new").read().text == "***\n"
    with pytest.raises(JobStateError, match="tasks can be added only before it ends"):
        jobs.add_tasks("a", ["true"])


def test_a_job_is_deleted_when_it_has_ended(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"], labels={"l": "v"})
    with pytest.raises(JobStateError, match="cancel it before it is deleted"):
        jobs.delete("a")
    completed(store, "a")
    assert jobs.may_change(jobs.get_job("a"))
    jobs.delete("a")
    for ask in (jobs.get_job, jobs.get_tasks, jobs.delete, jobs.results, jobs.get_attempts):
        with pytest.raises(JobNotFoundError, match="there is no job 'a'"):
            ask("a")
    (past,) = jobs.past_jobs()
    assert past == next(history.read(store))
    assert (past.name, past.labels, past.seconds) == ("a", {"l": "v"}, 1.0)
    assert jobs.durations("a") == history.durations(store, FileJobs(store).index(), "a")
    assert [run.seconds for run in jobs.durations("a")] == [1.0]


# -- reading -----------------------------------------------------------------------------------------------


def test_a_file_that_is_not_valid_is_said_to_be_so(jobs: Jobs, store: JobStore) -> None:
    write_job(store, "a", "[{")
    with pytest.raises(CorruptFileError, match=r"tasks\.json"):
        jobs.get_tasks("a")
    (store.paths("a").directory / "state.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"state\.json"):
        jobs.get_job("a")
    assert list(jobs.list_jobs()) == []


def test_all_jobs_at_a_glance(jobs: Jobs, store: JobStore) -> None:
    index = jobs.index()
    assert list(index.jobs()) == []
    jobs.submit("a", ["true", "false"], labels={"k": "secret-1234", "m": "v"}, secrets=["secret-1234"])
    jobs.submit("b", ["true"])
    wait_until(lambda: {job.name for job in index.jobs()} == {"a", "b"}, what="both are seen")
    assert index.outcomes("a") == {"pending": 2}
    assert index.outcomes("nothing") == {}
    assert index.shown_labels(next(job for job in index.jobs() if job.name == "a")) == {"k": "***", "m": "v"}
    completed(store, "a")
    wait_until(lambda: {job.state.value for job in index.jobs()} == {"completed", "waiting"}, what="it has ended")
    wait_until(lambda: index.jobs() and index.outcomes("a") == {"completed": 2}, what="its tasks are seen")
    jobs.delete("a")
    wait_until(lambda: [job.name for job in index.jobs()] == ["b"], what="it is gone")
    assert index.unreadable == 0


def test_secrets_are_not_in_what_is_shown(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["echo secret-1234"], secrets=["secret-1234"])
    write_log(store, "a", "task-1", "x" * 10 + "secret-1234" + "y\nnext secret-1234\n")
    log = jobs.log("a", "task-1")
    assert log.read().text == "xxxxxxxxxx***y\nnext ***\n"
    assert log.tail(1) == ["next ***"]
    assert log.search("secret", 0, 100).offsets == []
    mask = jobs.mask("a")
    assert mask.text(jobs.get_tasks("a")[0].args[1]) == "echo ***"
    pieces, offset = b"", 0
    while offset < log.size():
        chunk = log.read(offset, 3)
        assert chunk.next_offset > offset
        pieces, offset = pieces + chunk.data, chunk.next_offset
    assert pieces == log.read().data


def test_what_may_be_the_beginning_of_a_secret_is_left_until_the_end(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"], secrets=["secret-1234"])
    write_log(store, "a", "task-1", "x secret-1")
    log = jobs.log("a", "task-1")
    assert log.read(is_over=False) == (b"x ", 2)
    assert log.read(is_over=True) == (b"x secret-1", 10)
    assert log.read(0, 4, is_over=False) == (b"x ", 2)


def test_a_log_is_read_from_any_offset(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"])
    log = jobs.log("a", "task-1")
    assert (log.size(), log.read(), log.tail(3)) == (0, (b"", 0), [])
    assert log.read(7, 3) == (b"", 7)
    text = b"first\nsec\xffond\nthird\n"
    write_log(store, "a", "task-1", text)
    assert log.size() == len(text)
    assert log.read(-6) == (b"third\n", len(text))
    assert log.read(3, 4) == (b"st\ns", 7)
    assert log.read(100, 5) == (b"", 100)
    assert log.read(0, 0) == (b"", 0)
    assert log.tail(2) == ["sec�ond", "third"]
    assert log.search("THIRD", 0, 1000) == ([14], None)
    assert jobs.log_location("a") == str(store.paths("a").logs)
    for task_id in ("", "../x", ".x"):
        with pytest.raises(InvalidJobError, match="task id"):
            jobs.log("a", task_id)
    with pytest.raises(JobNotFoundError):
        jobs.log("b", "task-1").read()


def test_a_long_log_is_read_as_a_whole(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"])
    text = b"".join(b"%07d\n" % number for number in range(300_000))
    write_log(store, "a", "task-1", text)
    log = jobs.log("a", "task-1")
    assert log.read() == (text, len(text))
    assert log.read(5, 2_000_000) == (text[5:2_000_005], 2_000_005)
    assert log.read(-1_500_000).data == text[-1_500_000:]
    assert log.line_from(12, 100) == 16
    assert log.line_from(0, 100) == 0
    assert log.lines_before(16, 10**6) == 2
    assert log.lines_before(16, 10) is None


def test_the_times_of_a_log(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"])
    write_log(store, "a", "task-1", "one\ntwo\nthree\n")
    (store.paths("a").logs / "task-1.times").write_text("1700000000.000 4 1\n1700000001.500 8 2\n1700000002 8 2\n")
    times, expected = jobs.log("a", "task-1").times(), FileJobs(store).log("a", "task-1").times()
    assert times.notes == expected.notes
    assert times.attempts() == expected.attempts()
    assert [part.number for part in times.attempts()] == [1, 2]
    for offset in range(-1, 20):
        assert times.time_of(max(0, offset)) == expected.time_of(max(0, offset))
    empty = jobs.log("a", "nothing").times()
    assert (empty.notes, empty.time_of(0)) == ([(0.0, 0)], None)


def test_new_lines_of_several_tasks_in_one_call(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", [task("x"), task("y"), task("z")], secrets=["secret-1234"])
    write_log(store, "a", "x", "one\ntwo secret-1234\nthr")
    write_log(store, "a", "y", "only\n")
    found = jobs.new_lines("a", {name: LinePosition() for name in "xyz"})
    assert {name: new.lines for name, new in found.items()} == {"x": ("one", "two ***"), "y": ("only",)}
    positions = {name: found[name].position if name in found else LinePosition() for name in "xyz"}
    assert positions["x"].offset == 20
    assert jobs.new_lines("a", positions) == {}
    write_log(store, "a", "x", "ee\nfour\nsecret-")
    found = jobs.new_lines("a", positions)
    assert {name: new.lines for name, new in found.items()} == {"x": ("three", "four")}
    write_log(store, "a", "x", "1234 end")
    found = jobs.new_lines("a", {"x": found["x"].position}, is_over=True)
    assert found["x"].lines == ("*** end",)
    (store.paths("a").logs / "y.log").write_text("n\n")
    assert jobs.new_lines("a", {"y": positions["y"]})["y"].is_truncated
    assert jobs.new_lines("a", {"y": LinePosition()})["y"].lines == ("n",)


def test_the_state_of_a_progress_bar_is_shown_now_and_then(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"])
    write_log(store, "a", "task-1", "\r 10 %\r 20 %")
    found = jobs.new_lines("a", {"task-1": LinePosition()})["task-1"]
    assert found.lines == (" 20 %",)
    assert not found.position.is_due
    write_log(store, "a", "task-1", "\r 30 %")
    shown = jobs.new_lines("a", {"task-1": found.position})
    assert all(new.lines == () for new in shown.values())
    position = shown["task-1"].position if shown else found.position
    due = jobs.new_lines("a", {"task-1": position._replace(is_due=True)})["task-1"]
    assert due.lines == (" 30 %",)
    write_log(store, "a", "task-1", "\r100 %\ndone\n")
    assert jobs.new_lines("a", {"task-1": due.position})["task-1"].lines == ("100 %", "done")


def test_positions_are_kept_with_the_job(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"])
    assert jobs.load_positions("a", "airflow") == {}
    jobs.save_positions("a", "airflow", {"task-1": 17, "/cut": 1})
    assert jobs.load_positions("a", "airflow") == {"task-1": 17, "/cut": 1}
    assert jobs.load_positions("a", "other") == {}
    with pytest.raises(InvalidJobError, match="reader"):
        jobs.load_positions("a", "x y")
    remove(store, "a")
    jobs.save_positions("a", "airflow", {"task-1": 20})
    assert store.job_names() == []


def test_results_are_those_of_the_tasks(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", [task("x"), task("y"), task("z")], secrets=["secret-1234"])
    completed(store, "a")
    values = {"x": b'{"n": 12345678901234567890, "t": "secret-1234"}', "y": b'[1.5, null, "\\u00e9"]'}
    for name, value in values.items():
        store.paths("a").output(name, 1).write_bytes(value)
    exact = {"x": {"n": 12345678901234567890, "t": "secret-1234"}, "y": [1.5, None, "é"]}
    assert jobs.results("a") == exact
    assert jobs.results("a", masked=True)["x"]["t"] == "***"
    shown = jobs.shown_results("a", limit=10)
    assert [(each.task_id, each.problem) for each in shown.results] == [("x", None), ("y", None)]
    assert shown.total == 2
    assert shown.results[0].value["t"] == "***"
    assert [each.task_id for each in jobs.shown_results("a", ["y"], limit=1).results] == ["y"]
    with pytest.raises(OutputError, match=r"x\.1\.output cannot be kept: .* reserved"):
        jobs.results("a", [frozenset({"n", "t"})])
    store.paths("a").output("z", 1).write_bytes(b"{")
    with pytest.raises(OutputError, match="is not JSON") as caught:
        jobs.results("a")
    assert (caught.value.job_name, caught.value.task_id) == ("a", "z")


# -- the manager -------------------------------------------------------------------------------------------


def test_the_manager_and_what_it_is_to_do(jobs: Jobs, store: JobStore, managers: Managers) -> None:
    job = jobs.submit("a", ["true"])
    assert jobs.manager() is None
    assert "no manager is running" in jobs.trouble("a")
    assert jobs.held_up([job]) == {"a": "no manager is running"}
    assert not jobs.test().is_well
    jobs.ensure_manager()  # which is a service of its own
    assert jobs.manager() is None
    jobs.set_paused(True)
    assert jobs.control().paused
    manager = managers.start("--max-concurrent-runners", "3")
    info = wait_until(lambda: (info := jobs.manager()) and info.version and info, what="it has said who it is")
    assert (info.pid, info.paused) == (manager.pid, True)
    assert info.slots["local"] == (0, 3)
    assert info == FileJobs(store).manager()
    assert "paused" in jobs.trouble("a")
    assert "paused" in jobs.held_up([job])["a"]
    test = jobs.test()
    assert test.is_well
    assert "3 of 3" in test.message
    jobs.set_slots(7)
    jobs.set_slots(2, "slurm")
    assert jobs.control().slots == {"local": 7, "slurm": 2}
    jobs.set_slots(None, "slurm")
    assert (jobs.control().paused, jobs.control().slots) == (True, {"local": 7})
    with pytest.raises(SettingsError, match="slots must be a whole number"):
        jobs.set_slots(0)
    jobs.set_paused(False)
    ended(store, "a")
    assert jobs.trouble("a") == ""
    assert jobs.held_up([jobs.get_job("a")]) == {}


# -- waiting -----------------------------------------------------------------------------------------------


async def changed_until(watch: JobWatch, is_so: Any) -> Job:
    """The job, when it is as it is to be; nobody looks before the watch is woken."""
    while not is_so(job := await watch.read()):
        assert await watch.wait(PATIENCE)
    return job


def test_a_watch_is_woken_when_its_job_changes(jobs: Jobs, store: JobStore) -> None:
    async def scenario() -> None:
        async with jobs.watching("a", interval=INTERVAL) as watch, jobs.watching("b", interval=INTERVAL) as other:
            assert (await watch.read()).state is JobState.WAITING
            with pytest.raises(JobNotFoundError, match="there is no job 'b'"):
                await other.read()
            publish_job(store, store.get_job("a").evolve(state=JobState.WORKING))
            await changed_until(watch, lambda job: job.state is JobState.WORKING)
            store.submit("b", ["true"])
            while True:
                assert await other.wait(PATIENCE)
                with contextlib.suppress(JobNotFoundError):
                    assert (await other.read()).name == "b"
                    break
            while await watch.wait(0.05):
                pass
            publish_tasks(store, "a", store.get_tasks("a"))
            assert await watch.wait(PATIENCE)
            remove(store, "a")
            with pytest.raises(JobNotFoundError):
                await changed_until(watch, lambda job: False)

    jobs.submit("a", ["true"])
    asyncio.run(scenario())


def test_a_thread_waits_for_a_change(jobs: Jobs, store: JobStore) -> None:
    jobs.submit("a", ["true"])
    seen = []

    def wait() -> None:
        while not jobs.get_job("a").state.is_terminal:
            seen.append(jobs.wait("a", 0.2))

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: seen, what="it waits")
    completed(store, "a")
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


async def following(completions: Completions, found: list[Job]) -> None:
    async with contextlib.aclosing(completions.follow()) as ends:
        async for job in ends:
            found.append(job)  # noqa: PERF401 - one by one, as they come


@contextlib.asynccontextmanager
async def followed(completions: Completions) -> AsyncIterator[list[Job]]:
    """The ends that a subscriber has been told so far."""
    found: list[Job] = []
    task = asyncio.create_task(following(completions, found))
    yield found
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def when(check: Any, what: str) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE):
        while not check():  # noqa: ASYNC110 - files and lists have no events
            await asyncio.sleep(0.01)


def subscribed(store: JobStore, subscriber: str) -> Any:
    return (store.base_path / "readers" / subscriber).exists


def test_each_end_is_delivered_once(jobs: Jobs, store: JobStore) -> None:
    async def scenario() -> None:
        wanted = JobFilter(name="j*", labels=(("k", "v=w"),), states=("completed",), outlet="s3://x")
        completions = jobs.completions("me", wanted, interval=INTERVAL)
        async with followed(completions) as found:
            await when(subscribed(store, "me"), "it has subscribed")
            for name in ("j1", "j2", "other"):
                await asyncio.to_thread(submit_and_complete, name)
            await when(lambda: len(found) == 2, "both were delivered")
            assert [job.name for job in found] == ["j1", "j2"]
            assert found[0] == jobs.get_job("j1")
            await asyncio.to_thread(completions.ack, found[0])
            await asyncio.to_thread(completions.nack, found[1])
            await asyncio.to_thread(submit_and_complete, "j3")
            await when(lambda: len(found) == 4, "what was refused was delivered once more")
            assert sorted(job.name for job in found[2:]) == ["j2", "j3"]
            await asyncio.to_thread(completions.ack, found[2])
        again = jobs.completions("me", wanted, interval=0.05)
        async with followed(again) as found:
            await when(lambda: found, "what was not acknowledged comes again")
            await asyncio.to_thread(submit_and_complete, "j4")
            await when(lambda: len(found) == 2, "and what follows")
            assert "j1" not in [job.name for job in found]

    def submit_and_complete(name: str) -> None:
        store.submit(name, ["true"], labels={"k": "v=w"}, outlets=["s3://x"])
        completed(store, name)

    asyncio.run(scenario())


def test_a_subscriber_has_one_holder(jobs: Jobs, store: JobStore) -> None:
    async def scenario() -> None:
        first, second = (jobs.completions("me", JobFilter(), interval=0.05) for _ in range(2))
        async with followed(first) as found:
            await when(subscribed(store, "me"), "it has subscribed")
            async with followed(second) as none:
                store.submit("a", ["true"])
                completed(store, "a")
                await when(lambda: found, "it was delivered")
                await asyncio.to_thread(first.ack, found[0])
                assert not none
        async with followed(jobs.completions("me", JobFilter(), interval=0.05)) as found:
            store.submit("b", ["true"])
            completed(store, "b")
            await when(lambda: [job.name for job in found] == ["b"], "the next holder gets what follows")

    asyncio.run(scenario())


def test_one_process_after_the_other(jobs: Jobs) -> None:
    order = []

    def second() -> None:
        with jobs.only_one("thing"):
            order.append("second")

    over = threading.Event()
    with jobs.only_one("thing"):
        other = threading.Thread(target=second)
        other.start()
        threading.Timer(0.2, over.set).start()
        nothing_until(over.is_set, unless=lambda: order, what="a moment is over")
        order.append("first")
    other.join(PATIENCE)
    assert order == ["first", "second"]
    with jobs.only_one("thing"), jobs.only_one("other"):
        pass
