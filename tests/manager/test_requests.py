"""Single tasks of a job are cancelled and retried, and a job runs again as a whole."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import InvalidJobError, JobStateError
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.models import Job
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended, outcomes, plain, shim_pid, task
from tests.support.managers import Managers
from tests.support.processes import is_gone
from tests.support.stepped_manager import SteppedManager
from tests.support.waiting import until, wait_until

DONE, EXIT = ("completed", None), ("failed", "exit")
CANCELLED, DEPENDENCY = ("failed", "cancelled"), ("failed", "dependency")


def ended_again(store: JobStore, attempt: int, name: str = "j") -> Job:
    """The job, once this run of it has ended."""

    def job() -> Job | None:
        found = store.get_job(name)
        return found if found.state.is_terminal and found.attempt == attempt else None

    return wait_until(job, what="it has ended again")


def attempts(store: JobStore, name: str = "j") -> dict[str, int]:
    return {item.id: item.attempt for item in store.get_tasks(name)}


def asked(store: JobStore) -> bytes:
    """The only request in the inbox."""
    (path,) = inbox.requests(store)
    return path.read_bytes()


class TestRetry:
    def test_a_completed_job_runs_again_as_a_whole(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", [task("a"), task("b", after="a")])
        ended(store, "j")
        with pytest.raises(JobStateError, match="'j' is completed, and nothing of it failed; retry all of it"):
            inbox.retry(store, "j")
        inbox.retry(store, "j", all=True)
        assert ended_again(store, 2).state == "completed"
        assert attempts(store) == {"a": 2, "b": 2}

    def test_a_failed_job_runs_again_as_a_whole(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", [task("a"), task("b", "[ $AIR_EXECUTOR_ATTEMPT = 2 ]")])
        assert ended(store, "j").state == "failed"
        inbox.retry(store, "j", all=True)
        assert ended_again(store, 2).state == "completed"
        assert attempts(store) == {"a": 2, "b": 2}

    def test_only_the_chosen_tasks_run_again(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        """And those that failed because of them. Others stay failed, so the job does."""
        store.submit(
            "j",
            [
                task("a", "[ $AIR_EXECUTOR_ATTEMPT = 2 ]"),
                task("b", after="a"),
                task("c", "exit 3"),
                task("d", after="c"),
                task("e", after=["b", "d"]),
                task("clean", after="a", run_if="all_done"),
            ],
        )
        ended(store, "j")
        inbox.retry(store, "j", ["a"])
        job = ended_again(store, 2)
        assert (job.state, job.reason, job.keep_failed) == ("failed", "exit", False)
        assert outcomes(store, "j") == {
            "a": DONE,
            "b": DONE,
            "c": EXIT,
            "d": DEPENDENCY,
            "e": DEPENDENCY,
            "clean": DONE,
        }
        assert attempts(store) == {"a": 2, "b": 1, "c": 1, "d": 0, "e": 0, "clean": 2}
        inbox.retry(store, "j")
        ended_again(store, 3)
        assert attempts(store) == {"a": 2, "b": 1, "c": 2, "d": 0, "e": 0, "clean": 2}

    def test_a_completed_task_runs_again_alone(self, store: JobStore, manager: subprocess.Popen[str]) -> None:
        store.submit("j", [task("a"), task("b", after="a")])
        ended(store, "j")
        inbox.retry(store, "j", "a")
        assert ended_again(store, 2).state == "completed"
        assert attempts(store) == {"a": 2, "b": 1}

    def test_what_cannot_be_retried_is_refused(self, store: JobStore, managers: Managers, tmp_path: Path) -> None:
        store.submit(
            "j",
            [
                task("load", "exit 1"),
                task("use", after="load"),
                task("more", after="use"),
                task("clean", after="more", run_if="all_done"),
                task("wait", until(tmp_path / "go")),
            ],
        )
        with pytest.raises(JobStateError, match="'j' is waiting; only a job that has ended can be retried"):
            inbox.retry(store, "j", ["load"])
        managers.start()
        (tmp_path / "go").touch()
        ended(store, "j")
        with pytest.raises(InvalidJobError, match="there is no task 'laod' in job 'j'; did you mean 'load'"):
            inbox.retry(store, "j", ["use", "laod"])
        with pytest.raises(InvalidJobError, match="not both"):
            inbox.retry(store, "j", ["use"], all=True)
        with pytest.raises(
            JobStateError, match="'more' of job 'j' cannot run before 'load', which failed; retry 'load'"
        ):
            inbox.retry(store, "j", ["more"])
        assert inbox.requests(store) == []
        inbox.retry(store, "j", ["clean"])
        ended_again(store, 2)
        assert attempts(store)["clean"] == 2
        inbox.retry(store, "j", ["more", "load"])
        ended_again(store, 3)
        assert attempts(store) == {"load": 2, "use": 0, "more": 0, "clean": 3, "wait": 1}

    @pytest.mark.parametrize("how", [{}, {"all": True}, {"tasks": ["a"]}])
    def test_a_request_that_a_manager_left_behind_is_carried_out_once(
        self, store: JobStore, managers: Managers, how: dict[str, object]
    ) -> None:
        first = managers.start()
        store.submit("j", [task("a"), task("b", "exit 1")])
        ended(store, "j")
        managers.kill(first)
        inbox.retry(store, "j", **how)  # type: ignore[arg-type]
        left = asked(store)
        managers.start()
        before = ended_again(store, 2)
        (store.inbox_path / "1.json").write_bytes(left)
        store.submit("next", ["true"])
        ended(store, "next")
        wait_until(lambda: not inbox.requests(store), what="the inbox is empty")
        assert store.get_job("j") == before

    def test_a_chosen_task_is_the_only_one_for_the_next_manager_too(self, store: JobStore, managers: Managers) -> None:
        """The manager is killed after it has published what runs again, and before anything has started."""
        managers.patch = """
import os
from airflow_provider_air_executor.manager import job_writer
real = job_writer.JobWriter.write_job
def write_job(self, job, **more):
    stamp = real(self, job, **more)
    if job.keep_failed:
        os.kill(os.getpid(), 9)
    return stamp
job_writer.JobWriter.write_job = write_job
"""
        first = managers.start()
        store.submit("j", [task("a", "exit 1"), task("b", "exit 1"), task("c", after="b")])
        ended(store, "j")
        inbox.retry(store, "j", ["a"])
        first.wait()
        assert store.get_job("j").state == "waiting"
        managers.patch = ""
        managers.start()
        ended_again(store, 2)
        assert attempts(store) == {"a": 2, "b": 1, "c": 0}


class TestCancelOfTasks:
    def test_only_these_end_and_the_job_goes_on(
        self, store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
    ) -> None:
        store.submit(
            "j",
            [
                task("a", "sleep 1000", retries=2),
                task("b", after="a"),
                task("clean", after="b", run_if="all_done"),
                task("c", until(tmp_path / "go")),
                task("d", after="c"),
                task("e", after="c"),
            ],
        )
        pid = shim_pid(store, "j", "a")
        shim_pid(store, "j", "c")
        assert inbox.cancel(store, "j", tasks=["a", "d"])
        wait_until(lambda: outcomes(store, "j")["clean"] == DONE, what="it goes on")
        assert is_gone(pid)
        assert store.get_job("j").state == "working"
        assert not inbox.cancel(store, "j", tasks="d")
        (tmp_path / "go").touch()
        job = ended(store, "j")
        assert (job.state, job.reason, job.cancel_requested_at) == ("failed", "cancelled", None)
        assert outcomes(store, "j") == {
            "a": CANCELLED,
            "b": DEPENDENCY,
            "clean": DONE,
            "c": DONE,
            "d": CANCELLED,
            "e": DONE,
        }
        assert attempts(store)["a"] == 1
        assert job.error == "task a: cancelled; 2 more of 6 tasks did not complete"
        inbox.retry(store, "j", ["d"])
        ended_again(store, 2)
        assert outcomes(store, "j")["d"] == DONE

    def test_a_task_of_a_job_that_has_not_begun_and_one_that_waits_for_its_next_attempt(
        self, store: JobStore, managers: Managers
    ) -> None:
        store.submit("j", [task("a"), task("b")])
        inbox.cancel(store, "j", tasks=["a"])
        managers.start()
        ended(store, "j")
        assert outcomes(store, "j") == {"a": CANCELLED, "b": DONE}
        assert attempts(store) == {"a": 0, "b": 1}
        store.submit("k", [task("a", "exit 1", retries=1, retry_delay=1000)])
        wait_until(
            lambda: attempts(store, "k") == {"a": 1} and outcomes(store, "k")["a"][0] == "pending", what="it waits"
        )
        inbox.cancel(store, "k", tasks=["a"])
        ended(store, "k")
        assert outcomes(store, "k") == {"a": CANCELLED}

    def test_what_cannot_be_cancelled_is_refused(self, store: JobStore) -> None:
        store.submit("j", [task("a"), task("b")])
        with pytest.raises(InvalidJobError, match="there is no task 'c' in job 'j'"):
            inbox.cancel(store, "j", tasks=["a", "c"])
        assert inbox.requests(store) == []
        inbox.add_tasks(store, "j", [task("late")])
        assert inbox.cancel(store, "j", tasks=["late"])

    @pytest.mark.parametrize(("ends", "code"), [(True, 5), (True, 0), (False, 5)])
    def test_the_next_manager_knows_that_a_task_was_cancelled(
        self, store: JobStore, managers: Managers, tmp_path: Path, *, ends: bool, code: int
    ) -> None:
        """Whether it still runs or has ended meanwhile: it is not tried again."""
        first = managers.start("--kill-grace", "1000")
        wait = until(tmp_path / "go") if ends else "sleep 1000 & wait; sleep 1000"
        line = f"trap 'touch {tmp_path}/told' TERM; touch {tmp_path}/runs; sleep 1000 & wait; {wait}; exit {code}"
        store.submit("j", [task("a", line, retries=3), task("b", until(tmp_path / "go"))])
        wait_until((tmp_path / "runs").exists, what="it runs")
        pid = shim_pid(store, "j", "a")
        inbox.cancel(store, "j", tasks=["a"])
        wait_until((tmp_path / "told").exists, what="it is told")
        managers.kill(first)
        (tmp_path / "go").touch()
        if ends:
            wait_until(lambda: is_gone(pid), what="it has ended")
        managers.start("--kill-grace", "0.5")
        ended(store, "j")
        assert outcomes(store, "j") == {"a": CANCELLED, "b": DONE}
        assert attempts(store) == {"a": 1, "b": 1}

    def test_a_request_that_a_manager_left_behind_does_no_harm(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        store.submit("j", [task("a"), task("b", until(tmp_path / "go"))])
        inbox.cancel(store, "j", tasks=["a"])
        left = asked(store)
        managers.start()
        wait_until(lambda: outcomes(store, "j")["a"] == CANCELLED, what="it is cancelled")
        (store.inbox_path / "1.json").write_bytes(left)
        wait_until(lambda: not inbox.requests(store), what="the inbox is empty")
        (tmp_path / "go").touch()
        ended(store, "j")
        assert outcomes(store, "j") == {"a": CANCELLED, "b": DONE}


def test_a_list_that_was_written_before_a_task_is_cancelled_is_read(stepped: SteppedManager) -> None:
    """The request replaces it, and so does the next change. The file system does not notify."""
    stepped.settings = {"idle_timeout": None, "poll_interval": 3600}
    stepped.submit("j", [{"id": name, **stepped.command(waits=True)} for name in "ab"], 2)
    wait_until(stepped.start_manager, what="it runs")
    assert stepped.manager is not None
    stepped.manager.shared.notifier.close()

    def statuses() -> list[str]:
        stepped.clock.passed += 1.0
        stepped.go_round()
        return [found.status.value for found in stepped.store.get_tasks("j")]

    wait_until(lambda: statuses() == ["running", "running"], what="both run")
    path = stepped.store.paths("j").tasks
    path.write_text(json.dumps([*json.loads(path.read_text()), plain("c", "true")]))
    inbox.cancel(stepped.store, "j", tasks=["b"])
    wait_until(lambda: statuses()[1] == "failed", what="one is cancelled")
    assert stepped.let_all_end()
    assert outcomes(stepped.store, "j") == {"a": DONE, "b": CANCELLED, "c": DONE}


def test_a_retry_of_single_tasks_that_was_refused_says_nothing_of_the_next_run(stepped: SteppedManager) -> None:
    stepped.start_manager()
    stepped.submit("j", [{"id": name, "command": "false"} for name in "ab"], 2)
    assert stepped.let_all_end()
    inbox.retry(stepped.store, "j", ["a"])
    paths = stepped.store.paths("j")
    shutil.rmtree(paths.logs)
    paths.logs.write_text("")
    assert stepped.let_all_end()
    assert stepped.store.get_job("j").reason == "invalid"
    paths.logs.unlink()
    state = json.loads(paths.state.read_text())
    paths.state.write_text(json.dumps(state | {"state": "waiting"}))  # by hand, which means all that failed
    wait_until(lambda: stepped.let_all_end() and stepped.store.get_job("j").attempt > state["attempt"], what="it ended")
    assert attempts(stepped.store) == {"a": 2, "b": 2}
