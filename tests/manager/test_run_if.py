"""Tasks that run although others failed, only then, or even if their job is cancelled."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.summary import failure, progress, root_failures, table
from tests.support.jobs import ended, outcomes, read_log, shim_pid, task, write_job
from tests.support.managers import Managers
from tests.support.processes import is_gone
from tests.support.waiting import until, wait_until

DONE, PENDING, SKIPPED = ("completed", None), ("pending", None), ("completed", "skipped")
CANCELLED, DEPENDENCY = ("failed", "cancelled"), ("failed", "dependency")


def test_a_failure_is_cleaned_up_and_told(store: JobStore, manager: subprocess.Popen[str]) -> None:
    store.submit(
        "j",
        [
            task("load", "exit 3"),
            task("use", after="load"),
            task("clean", "echo cleaned up", after="use", run_if="all_done"),
            task("tell", "echo it failed", after="use", run_if="any_failed"),
            task("after", after="clean"),
        ],
    )
    job = ended(store, "j")
    assert (job.state, job.reason) == ("failed", "exit")
    assert job.error == "task load: exit code 3; 1 more of 5 tasks did not complete"
    expected = {"load": ("failed", "exit"), "use": DEPENDENCY, "clean": DONE, "tell": DONE, "after": DONE}
    assert outcomes(store, "j") == expected
    assert read_log(store, "j", "tell").text == "it failed\n"
    assert [item.id for item in root_failures(store.get_tasks("j"))] == ["load"]


def test_what_is_only_for_failures_is_skipped_otherwise(store: JobStore, manager: subprocess.Popen[str]) -> None:
    """Without an attempt; what depends on it goes on."""
    store.submit(
        "j",
        [
            task("load"),
            task("tell", "exit 1", after="load", run_if="any_failed"),
            task("after", after="tell"),
            task("clean", after=["load", "tell"], run_if="all_done"),
        ],
    )
    assert ended(store, "j").state == "completed"
    assert outcomes(store, "j") == {"load": DONE, "tell": SKIPPED, "after": DONE, "clean": DONE}
    tasks = store.get_tasks("j")
    assert (tasks[1].attempt, tasks[1].exit_code, tasks[1].started_at) == (0, None, None)
    assert not store.paths("j").log("tell").exists()
    assert progress(tasks) == "4 of 4 tasks done, skipped: tell"
    assert table(tasks)[2].split() == ["tell", "completed", "0", "skipped"]


def test_a_job_that_is_cancelled_cleans_up_once_what_ran_has_ended(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.start("--kill-grace", "60")
    stops = f"trap 'sleep 0.5; touch {tmp_path}/has_stopped; exit' TERM; touch {tmp_path}/runs; sleep 1000 & wait"
    store.submit(
        "j",
        [
            task("work", stops),
            task("more", after="work"),
            task("aside", stops),
            task("clean", f"test -e {tmp_path}/has_stopped && echo clean", after="more", run_if="always"),
            task("tell", after="more", run_if="any_failed"),
        ],
    )
    wait_until((tmp_path / "runs").exists, what="it runs")
    inbox.cancel(store, "j")
    job = ended(store, "j")
    assert (job.state, job.reason, job.error) == ("failed", "cancelled", "cancelled")
    assert outcomes(store, "j") == {
        "work": CANCELLED,
        "more": CANCELLED,
        "aside": CANCELLED,
        "clean": DONE,
        "tell": CANCELLED,
    }


def test_a_job_that_is_cancelled_before_it_began_cleans_up_too(store: JobStore, managers: Managers) -> None:
    store.submit("j", [task("work"), task("clean", after="work", run_if="always")])
    inbox.cancel(store, "j")
    managers.start()
    assert ended(store, "j").reason == "cancelled"
    assert outcomes(store, "j") == {"work": CANCELLED, "clean": DONE}


def test_a_second_request_ends_what_runs_in_spite_of_the_first(store: JobStore, manager: subprocess.Popen[str]) -> None:
    clean = task("clean", "sleep 1000", after="work", run_if="always", retries=3)
    store.submit("j", [task("work"), clean, task("last", after="clean", run_if="always")])
    pid = shim_pid(store, "j", "clean")
    assert inbox.cancel(store, "j")
    wait_until(lambda: store.get_job("j").cancel_requested_at, what="it is being cancelled")
    wait_until(lambda: not inbox.requests(store), what="that is carried out")
    assert not is_gone(pid)
    assert inbox.cancel(store, "j")
    assert ended(store, "j").reason == "cancelled"
    assert outcomes(store, "j") == {"work": DONE, "clean": CANCELLED, "last": CANCELLED}
    assert store.get_tasks("j")[1].attempt == 1


def test_a_job_that_takes_too_long_is_cleaned_up(store: JobStore, manager: subprocess.Popen[str]) -> None:
    """With the attempts that it has, and without a limit of the job's."""
    flaky = "[ $AIR_EXECUTOR_ATTEMPT = 2 ]"
    store.submit(
        "j", [task("work", "sleep 1000"), task("clean", flaky, after="work", run_if="always", retries=1)], timeout=0.5
    )
    job = ended(store, "j")
    assert (job.state, job.reason) == ("failed", "timeout")
    assert outcomes(store, "j") == {"work": ("failed", "timeout"), "clean": DONE}
    assert store.get_tasks("j")[1].attempt == 2


@pytest.mark.parametrize("how", ["cancelled", "timeout"])
def test_the_next_manager_lets_a_job_clean_up(store: JobStore, managers: Managers, tmp_path: Path, how: str) -> None:
    """What runs goes on, what waits for it starts then, and nothing else does."""
    first = managers.start()
    limit = 1 if how == "timeout" else 1000
    store.submit(
        "j",
        [
            task("work", f"touch {tmp_path}/runs; sleep 1000"),
            task("more", after="work"),
            task("clean", until(tmp_path / "go"), after="work", run_if="always"),
            task("last", after="clean", run_if="always"),
        ],
        timeout=limit,
    )
    wait_until((tmp_path / "runs").exists, what="it runs")
    if how == "cancelled":
        inbox.cancel(store, "j")
    pid = shim_pid(store, "j", "clean")
    managers.kill(first)
    second = managers.start()
    wait_until(lambda: outcomes(store, "j")["clean"] == ("running", None), what="it is adopted")
    assert not is_gone(pid)
    managers.kill(second)
    (tmp_path / "go").touch()
    wait_until(lambda: is_gone(pid), what="it has ended, while no manager runs")
    managers.start()
    assert ended(store, "j").reason == how
    assert outcomes(store, "j") == {"work": ("failed", how), "more": ("failed", how), "clean": DONE, "last": DONE}
    assert [item.attempt for item in store.get_tasks("j")] == [1, 0, 1, 1]


def test_a_job_that_was_cancelled_twice_is_so_for_the_next_manager(store: JobStore, managers: Managers) -> None:
    store.submit("j", [task("work", "sleep 1000"), task("clean", "sleep 1000", after="work", run_if="always")])
    first = managers.start()
    shim_pid(store, "j", "work")
    inbox.cancel(store, "j")
    wait_until(lambda: store.get_job("j").cancel_requested_at, what="it is being cancelled")
    managers.kill(first)
    inbox.cancel(store, "j")
    managers.start()
    assert ended(store, "j").reason == "cancelled"
    assert outcomes(store, "j") == {"work": CANCELLED, "clean": CANCELLED}


def test_a_retry_cleans_up_again_and_takes_back_what_was_told(
    store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
) -> None:
    store.submit(
        "j",
        [
            task("keep"),
            task("load", f"[ -e {tmp_path}/flag ]", after="keep"),
            task("clean", f"echo x >> {tmp_path}/cleaned", after="load", run_if="all_done"),
            task("tell", after="load", run_if="any_failed"),
        ],
    )
    assert ended(store, "j").state == "failed"
    assert outcomes(store, "j")["tell"] == DONE
    (tmp_path / "flag").touch()
    inbox.retry(store, "j")
    wait_until(lambda: store.get_job("j").state == "completed", what="it has completed")
    assert outcomes(store, "j") == {"keep": DONE, "load": DONE, "clean": DONE, "tell": SKIPPED}
    assert [item.attempt for item in store.get_tasks("j")] == [1, 2, 2, 1]
    assert (tmp_path / "cleaned").read_text() == "x\nx\n"


def test_tasks_that_are_added_may_wait_for_any_end(
    store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
) -> None:
    store.submit("j", [task("a", "exit 1"), task("b", until(tmp_path / "go"))])
    wait_until(lambda: outcomes(store, "j")["a"] == ("failed", "exit"), what="it has failed")
    inbox.add_tasks(
        store,
        "j",
        [
            task("late", after="a"),
            task("clean", after=["late", "b"], run_if="always"),
            task("tell", after="a", run_if="any_failed"),
            task("quiet", after="tell", run_if="any_failed"),
        ],
    )
    wait_until(lambda: outcomes(store, "j").get("tell") == DONE, what="it has run")
    (tmp_path / "go").touch()
    ended(store, "j")
    found = outcomes(store, "j")
    assert [found[name] for name in ("late", "clean", "tell", "quiet")] == [DEPENDENCY, DONE, DONE, SKIPPED]


def test_many_tasks_are_skipped_in_pieces(store: JobStore, manager: subprocess.Popen[str]) -> None:
    """A chain of them is no chain of calls."""
    chain = [task(f"t{number}", after=f"t{number - 1}", run_if="any_failed") for number in range(1, 3000)]
    store.submit("j", [task("t0"), *chain, task("end", after="t2999")], durable=False)
    assert ended(store, "j").state == "completed"
    assert set(outcomes(store, "j").values()) == {DONE, SKIPPED}
    assert outcomes(store, "j")["end"] == DONE


def test_a_job_of_the_existing_system_knows_no_such_thing(store: JobStore, manager: subprocess.Popen[str]) -> None:
    """Its files have no such field, and its tasks fail as they did."""
    write_job(store, "j", [{"id": "a", "job_name": "j", "command": "false"}, _after_a("b"), _after_a("c")])
    assert ended(store, "j").error == "task a: exit code 1; 2 more of 3 tasks did not complete"
    assert outcomes(store, "j") == {"a": ("failed", "exit"), "b": DEPENDENCY, "c": DEPENDENCY}


def _after_a(task_id: str) -> dict[str, object]:
    return {"id": task_id, "job_name": "j", "command": "true", "dependencies": ["a"]}


def test_the_failure_of_a_job_is_not_that_of_what_follows(store: JobStore, manager: subprocess.Popen[str]) -> None:
    store.submit("j", [task("a", "exit 4"), task("tell", "echo told", after="a", run_if="any_failed")])
    jobs = FileJobs(store)
    assert "exit code 4" in failure(jobs, ended(store, "j"))
    assert "told" not in failure(jobs, store.get_job("j"))
