"""The job filesystem of this machine behind the interface that all above it uses."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import (
    BasePathError,
    CorruptFileError,
    InvalidJobError,
    JobNotFoundError,
    JobStateError,
    ManagerError,
    OutputError,
)
from airflow_provider_air_executor.jobs import masking
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.interface import STATE, JobFilter, Jobs, LinePosition
from airflow_provider_air_executor.jobs.models import Job, JobState, SubmittedBy, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job, publish_tasks, task
from tests.support.mounts import bound, object_store
from tests.support.waiting import PATIENCE

SECRET = "hunter2-and-more"


@pytest.fixture
def jobs(store: JobStore) -> Jobs:
    """A type checker sees here that it is one."""
    return FileJobs(store)


def end(store: JobStore, name: str = "j", state: JobState = JobState.COMPLETED) -> Job:
    job = store.get_job(name).evolve(state=state)
    publish_job(store, job)
    return job


def write_log(store: JobStore, data: bytes, task_id: str = "a") -> None:
    with store.paths("j").log(task_id).open("ab") as log:
        log.write(data)


class TestSubmitting:
    def test_secrets_go_with_the_job(self, jobs: Jobs, store: JobStore) -> None:
        job = jobs.submit("j", [task("a", f"echo {SECRET}")], secrets={SECRET}, labels={"team": "red"})
        assert jobs.get_job("j") == job
        assert jobs.mask("j").secrets == {SECRET}
        assert store.paths("j").attached(masking.FILE).stat().st_mode & 0o777 == 0o600
        jobs.submit("plain", ["true"])
        assert not store.paths("plain").attached(masking.FILE).exists()

    def test_secrets_of_tasks_that_are_added_are_known_before_the_tasks(self, jobs: Jobs) -> None:
        jobs.submit("j", ["true"])
        assert jobs.add_tasks("j", [task("b", f"echo {SECRET}")], secrets={SECRET}) == ("b",)
        assert jobs.mask("j").secrets == {SECRET}

    def test_what_cannot_be_prepared_names_whose_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(BasePathError, match="of the tests cannot be made"):
            FileJobs(JobStore(tmp_path / "file" / "base"), whose="the tests").prepare()

    def test_an_owner_that_has_reattached_the_job_is_the_one_who_cancels_it(self, jobs: Jobs) -> None:
        first = SubmittedBy(dag_id="d", run_id="r", task_id="t", try_number=1)
        second = first.evolve(try_number=2)
        jobs.submit("j", ["true"], submitted_by=first)
        jobs.reattach("j", second)
        assert not jobs.cancel("j", first)
        assert jobs.cancel("j", second)

    def test_a_job_is_deleted_when_it_has_ended(self, jobs: Jobs, store: JobStore) -> None:
        jobs.submit("j", ["true"])
        with pytest.raises(JobStateError):
            jobs.delete("j")
        end(store)
        jobs.delete("j")
        with pytest.raises(JobNotFoundError):
            jobs.get_job("j")
        assert [past.name for past in jobs.past_jobs()] == ["j"]


class TestReading:
    def test_jobs_at_a_glance_are_kept_by_the_process(self, jobs: Jobs, store: JobStore) -> None:
        jobs.submit("j", ["true"])
        assert [job.name for job in jobs.list_jobs()] == ["j"]
        assert [job.name for job in jobs.index().jobs()] == ["j"]
        assert FileJobs(store).index(ahead=True) is jobs.index()

    def test_a_half_written_list_is_refused_at_once_if_that_is_asked(self, jobs: Jobs, store: JobStore) -> None:
        jobs.submit("j", ["true"])
        path = store.paths("j").tasks
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])
        with pytest.raises(CorruptFileError):
            jobs.get_tasks("j", at_once=True)
        timer = threading.Timer(0.1, path.write_bytes, [whole])
        timer.start()
        assert len(jobs.get_tasks("j")) == 1
        timer.join()

    def test_a_log_has_no_secrets(self, jobs: Jobs, store: JobStore) -> None:
        jobs.submit("j", [task("a")], secrets={SECRET})
        log = jobs.log("j", "a")
        assert (log.size(), log.read().data, log.tail(3)) == (0, b"", [])
        line = f"one {SECRET} two\n".encode()
        write_log(store, line + b"three\n")
        assert log.read().text == "one *** two\nthree\n"
        assert log.read(len(line)).text == "three\n"
        assert log.read(-6).text == "three\n"
        assert log.read(0, 3).data == b"one"
        assert log.tail(2) == ["one *** two", "three"]
        assert log.size() == len(line) + 6
        assert (log.line_from(1, 100), log.lines_before(len(line), 100)) == (len(line), 1)
        assert log.search("hunter2", 0, log.size()).offsets == []
        assert log.search("THREE", 0, log.size()).offsets == [len(line)]
        assert log.times().attempts()[0].end == log.size()
        assert jobs.log_location("j") == str(store.paths("j").logs)
        with pytest.raises(InvalidJobError):
            jobs.log("j", "../a")

    def test_results(self, jobs: Jobs, store: JobStore) -> None:
        jobs.submit("j", [task("a"), task("b")], secrets={SECRET})
        tasks = [found.evolve(status=TaskStatus.COMPLETED, attempt=1) for found in jobs.get_tasks("j")]
        publish_tasks(store, "j", tasks)
        store.paths("j").output("a", 1).write_text(json.dumps({"word": SECRET}))
        assert jobs.results("j") == {"a": {"word": SECRET}}
        assert jobs.results("j", masked=True) == {"a": {"word": "***"}}
        with pytest.raises(OutputError, match="reserved"):
            jobs.results("j", [frozenset({"word"})])
        shown = jobs.shown_results("j", limit=10)
        assert (shown.total, shown.results[0].value) == (1, {"word": "***"})

    def test_the_position_of_a_reader(self, jobs: Jobs, store: JobStore) -> None:
        jobs.submit("j", [task("a")])
        assert jobs.load_positions("j", "r") == {}
        jobs.save_positions("j", "r", {"a": 7})
        assert jobs.load_positions("j", "r") == {"a": 7}
        (store.paths("j").logs / ".r.offsets").write_text("[")
        assert jobs.load_positions("j", "r") == {}
        for reader in ("../r", "", "r/s", "r" * 65):
            with pytest.raises(InvalidJobError, match="letters and digits"):
                jobs.load_positions("j", reader)
        end(store)
        jobs.delete("j")
        jobs.save_positions("j", "r", {"a": 7})


class TestNewLines:
    @pytest.fixture(autouse=True)
    def job(self, jobs: Jobs) -> None:
        jobs.submit("j", [task("a"), task("b")], secrets={SECRET})

    def test_of_those_tasks_alone_that_have_printed(self, jobs: Jobs, store: JobStore) -> None:
        write_log(store, f"one\n{SECRET}\ntw".encode())
        found = jobs.new_lines("j", {"a": LinePosition(), "b": LinePosition()})
        assert list(found) == ["a"]
        assert found["a"].lines == ("one", "***")
        assert found["a"].position.offset == len(f"one\n{SECRET}\n")
        assert jobs.new_lines("j", {"a": found["a"].position}) == {}
        assert jobs.new_lines("j", {"a": found["a"].position}, is_over=True)["a"].lines == ("tw",)

    def test_nothing_is_kept_between_two_calls(self, jobs: Jobs, store: JobStore) -> None:
        """A line that is written over: its states are told apart by the position."""
        write_log(store, b"\r10 %")
        first = jobs.new_lines("j", {"a": LinePosition()})["a"]
        assert first.lines == ("10 %",)
        assert (first.position.state, first.position.is_due) == ("10 %", False)
        write_log(store, b"\r20 %")
        assert jobs.new_lines("j", {"a": first.position})["a"].lines == ()
        again = jobs.new_lines("j", {"a": first.position._replace(is_due=True)})["a"]
        assert again.lines == ("20 %",)
        write_log(store, b"\nnext\n")
        assert jobs.new_lines("j", {"a": again.position})["a"].lines == ("next",)

    def test_a_log_that_was_truncated(self, jobs: Jobs) -> None:
        found = jobs.new_lines("j", {"a": LinePosition(100)})["a"]
        assert (found.is_truncated, found.lines, found.position) == (True, (), LinePosition())

    def test_an_answer_is_bounded(self, jobs: Jobs, store: JobStore) -> None:
        line = b"x" * 999 + b"\n"
        write_log(store, line * 1000)
        write_log(store, line, "b")
        positions = {"a": LinePosition(), "b": LinePosition()}
        found = jobs.new_lines("j", positions)
        assert list(found) == ["a"]
        assert 60 < len(found["a"].lines) < 200
        lines = 0
        while found := jobs.new_lines("j", positions):
            lines += sum(len(new.lines) for new in found.values())
            positions |= {task_id: new.position for task_id, new in found.items()}
        assert lines == 1001


class TestManager:
    def test_a_service_is_not_started(self, jobs: Jobs, store: JobStore) -> None:
        jobs.submit("j", ["true"])
        jobs.ensure_manager()
        assert jobs.manager() is None
        assert "no manager is running" in jobs.trouble("j")
        assert jobs.held_up(jobs.list_jobs()) == {"j": "no manager is running"}
        well, message = jobs.test()
        assert not well
        assert f"air-executor manager --base-path {store.base_path}" in message

    def test_an_embedded_one_is(self, store: JobStore) -> None:
        started: list[bool] = []
        jobs = FileJobs(store, start_manager=lambda: started.append(True))
        jobs.prepare()
        jobs.submit("j", ["true"])
        jobs.ensure_manager()
        assert started == [True]
        assert jobs.trouble("j") == ""
        assert "is started with the first one" in jobs.test().message

    @pytest.mark.usefixtures("manager")
    def test_one_that_runs(self, jobs: Jobs) -> None:
        info = jobs.manager()
        assert info is not None
        well, message = jobs.test()
        assert well
        assert message.startswith(f"manager {info.pid} runs the jobs of {jobs.where}")

    def test_what_it_is_to_do(self, jobs: Jobs) -> None:
        jobs.set_paused(True)
        jobs.set_slots(3)
        assert (jobs.control().paused, jobs.control().slots) == (True, {"local": 3})

    def test_a_directory_that_is_not_there_is_no_job_filesystem_of_a_service(self, tmp_path: Path) -> None:
        well, message = FileJobs(JobStore(tmp_path / "nope")).test()
        assert not well
        assert "is not a directory" in message


class TestWaiting:
    def test_a_watch_reads_the_job_when_it_has_changed(self, jobs: Jobs, store: JobStore) -> None:
        jobs.submit("j", ["true"])

        async def scenario() -> Job:
            async with asyncio.timeout(PATIENCE), jobs.watching("j", interval=3600) as watch:
                assert (await watch.read()).state is JobState.WAITING
                assert not watch.sees_output
                await asyncio.to_thread(end, store)
                assert await watch.wait()
                assert STATE in watch.changed
                return await watch.read()

        assert asyncio.run(scenario()).state is JobState.COMPLETED

    def test_a_manager_that_cannot_be_started_is_no_failure_of_a_watch(self, store: JobStore) -> None:
        tried = threading.Event()

        def start() -> None:
            tried.set()
            raise ManagerError("it cannot be started")

        async def scenario() -> None:
            async with FileJobs(store, start_manager=start).watching("j", interval=0.05) as watch:
                assert await asyncio.to_thread(tried.wait, PATIENCE)
                with pytest.raises(JobNotFoundError):
                    await watch.read()

        asyncio.run(scenario())

    def test_ends_are_delivered(self, jobs: Jobs, store: JobStore) -> None:
        async def scenario() -> list[str]:
            found = jobs.completions("r", JobFilter(name="a-*", states=("failed",)), interval=0.05)
            following = found.follow()
            first = asyncio.ensure_future(anext(following))
            await asyncio.sleep(0.2)  # it has subscribed
            for name, state in (("b-1", JobState.FAILED), ("a-1", JobState.COMPLETED), ("a-2", JobState.FAILED)):
                jobs.submit(name, ["true"])
                end(store, name, state)
            async with asyncio.timeout(PATIENCE):
                job = await first
            found.ack(job)
            await following.aclose()
            return [job.name]

        assert asyncio.run(scenario()) == ["a-2"]

    def test_one_after_the_other(self, jobs: Jobs, store: JobStore) -> None:
        inside, most = [0], [0]

        def enter() -> None:
            with FileJobs(store).only_one("installation"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                threading.Event().wait(0.02)
                inside[0] -= 1

        threads = [threading.Thread(target=enter) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1]
        with pytest.raises(InvalidJobError), jobs.only_one("../x"):
            pass


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (JobFilter(), ["a", "b"]),
        (JobFilter(name="a*"), ["a"]),
        (JobFilter(labels=(("team", "red"),)), ["a"]),
        (JobFilter(labels=(("team", "red"), ("kind", "x"))), []),
        (JobFilter(states=("failed",)), ["b"]),
        (JobFilter(outlet="s3://bucket/key"), ["b"]),
    ],
)
def test_which_jobs_a_filter_wants(jobs: Jobs, store: JobStore, wanted: JobFilter, names: list[str]) -> None:
    jobs.submit("a", ["true"], labels={"team": "red"})
    jobs.submit("b", ["true"], outlets=["s3://bucket/key"])
    ended = [end(store, "a"), end(store, "b", JobState.FAILED)]
    assert [job.name for job in ended if wanted.matches(job)] == names


class TestTheConnection:
    """What *Test* says of the file system, which a manager would meet there."""

    def test_on_a_shared_file_system(self, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        with bound(tmp_path / "source", tmp_path / "mounted") as place:
            found = FileJobs(JobStore(place / "base"), start_manager=lambda: None).test()
            assert sorted(path.name for path in (place / "base").iterdir()) == ["inbox", "jobs"]
        assert found.is_well
        begin, _, said = found.message.partition(". Its file system: ")
        assert begin == f"jobs go to {place}/base; the manager is started with the first one"
        assert "the manager looks five times a second whether its bell was rung" in said

    def test_on_the_mount_of_an_object_store(self, tmp_path: Path) -> None:
        (tmp_path / "bucket").mkdir()
        with object_store(tmp_path / "bucket", tmp_path / "mounted") as place:
            found = FileJobs(JobStore(place / "base"), start_manager=lambda: None).test()
        assert not found.is_well
        assert found.message.startswith(f"no manager can run on {place}/base: its file system (fuse.rclone) fails at ")
