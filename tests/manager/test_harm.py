"""One job harms no other: whatever its files hold, it ends with a sentence, and the manager goes on."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import AirExecutorError, InvalidJobError, SettingsError
from airflow_provider_air_executor.jobs import inbox, manager_status, masking
from airflow_provider_air_executor.jobs.attempt_record import read_record
from airflow_provider_air_executor.jobs.models import Resources, SubmittedBy, Task, TaskStatus, parse_tasks
from airflow_provider_air_executor.jobs.outputs import read_outputs
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.schedule import TaskGraph
from airflow_provider_air_executor.manager.settings import load_settings
from airflow_provider_air_executor.system.processes import is_shim, kill_started_by
from tests.support.jobs import ended, outcomes, plain, publish_tasks, shim_pid, task, write_job
from tests.support.managers import Managers, run_cli
from tests.support.waiting import until, wait_until

NOW = "2026-11-28T12:00:00+00:00"
TOKEN = "0123456789abcdef"


def still_works(store: JobStore, manager: subprocess.Popen[str]) -> bool:
    """Whether the manager still runs jobs."""
    name = f"good-{time.time_ns()}"
    store.submit(name, ["true"])
    return ended(store, name).state == "completed" and manager.poll() is None


class TestRecords:
    @pytest.mark.parametrize(
        "content",
        [
            "7 2026-01-01T00:00:00 0123456789abcdef\n0\n",
            "7 0001-01-01T00:00:00+14:00 0123456789abcdef\n0\n",
            "7 2026-01-01T00:00:00+00:00 \n0\n",
            f"{'9' * 4301} {NOW} {TOKEN}\n0\n",
            f"7 {NOW} {TOKEN}\n{'9' * 900}\n",
            f"7 {NOW} {TOKEN}\nzero\n",
            f"7 {NOW} {TOKEN} more\n0\n",
            f"-7 {NOW} {TOKEN}\n0\n",
            "\n0\n",
            "7",
        ],
    )
    def test_what_is_not_a_record_in_all_its_parts_is_none(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "a.1").write_text(content)
        assert read_record(tmp_path / "a.1") is None

    def test_a_time_without_a_zone_ends_neither_manager_nor_other_jobs(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        """A task can write the record of another one that has not begun; the next manager reads it."""
        first = managers.start()
        line = 'printf "%s\\n" "999999 2026-01-01T00:00:00 0123456789abcdef" 0 > $AIR_EXECUTOR_JOB_DIR/runs/b.1'
        store.submit("j", [task("a", f"{line}; {until(tmp_path / 'go')}"), task("b", after="a")])
        wait_until(store.paths("j").record("b", 1).exists, what="it is written")
        managers.kill(first)
        second = managers.start()
        (tmp_path / "go").touch()
        assert ended(store, "j").state == "failed"
        assert outcomes(store, "j") == {"a": ("completed", None), "b": ("failed", "lost")}
        assert still_works(store, second)

    @pytest.mark.parametrize("token", ["", "sleep", "1000", "0123456789abcde", "x.1.2"])
    def test_a_token_that_no_shim_can_have_matches_no_process(self, token: str) -> None:
        with subprocess.Popen(["sleep", "1000"]) as stranger:
            assert not is_shim(stranger.pid, token)
            kill_started_by(token, stranger.pid)
            assert stranger.poll() is None
            stranger.kill()

    def test_a_stranger_is_not_adopted(self, store: JobStore, managers: Managers) -> None:
        with subprocess.Popen(["sleep", "1000"]) as stranger:
            path = write_job(store, "j", [plain("t", "true", status="running", attempt=1)], state="working")
            (path / "runs").mkdir()
            (path / "runs" / "t.1").write_text(f"{stranger.pid} {NOW} \n")
            manager = managers.start("--max-concurrent-runners", "1")
            assert ended(store, "j").reason == "lost"
            assert still_works(store, manager)
            assert stranger.poll() is None
            stranger.kill()


class TestNumbers:
    @pytest.mark.parametrize(
        "fields",
        [
            {"resources": {"memory": "9" * 300 + "T"}},
            {"resources": {"memory": "9" * 20 + "T"}},
            {"resources": {"gpus": 10**40}},
            {"resources": {"cpus": 1e300}},
            {"resources": {"time": "9" * 300 + "d"}},
            {"timeout": 1e300},
            {"retries": 10**40},
            {"retry_delay": 1e300},
        ],
    )
    def test_every_number_of_a_task_has_a_bound(self, fields: dict[str, Any]) -> None:
        with pytest.raises(InvalidJobError, match=r"tasks\[0\]"):
            parse_tasks([{"command": "true", **fields}])

    def test_what_fits_is_taken(self) -> None:
        assert Resources.model_validate({"memory": "4Gi", "time": "1h30m"}).memory == 4 * 1024**3

    @pytest.mark.parametrize("field", ["map_index", "try_number", "max_tries", "clear_number"])
    def test_every_number_of_an_owner_has_a_bound(self, field: str) -> None:
        with pytest.raises(ValueError, match=field):
            SubmittedBy.model_validate({"dag_id": "d", "run_id": "r", "task_id": "t", field: 10**40})

    @pytest.mark.parametrize(
        "text",
        [
            '[{"id": "a", "command": "true", "resources": {"memory": "%s"}}]' % ("9" * 300 + "T"),
            '[{"id": "a", "command": "true", "attempt": %s}]' % ("9" * 4300),
            '[{"id": "a", "command": "true", "x": %s}]' % ("9" * 5000),
            '[{"id": "a", "command": "true", "x": %s}]' % ("[" * 100_000),
        ],
    )
    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    def test_a_list_with_a_number_without_bound(
        self, store: JobStore, managers: Managers, tmp_path: Path, text: str, when: str
    ) -> None:
        if when == "before":
            write_job(store, "j", text)
            manager = managers.start()
        else:
            manager = managers.start()
            (tmp_path / "list").write_text(text)
            spoil = f"cp {tmp_path}/list $AIR_EXECUTOR_JOB_DIR/tasks.json; {until(tmp_path / 'go')}"
            store.submit("j", [task("a", spoil)])
        assert ended(store, "j").reason == "invalid"
        assert still_works(store, manager)
        managers.kill(manager)
        assert still_works(store, managers.start())

    @pytest.mark.parametrize(
        "more", ['"resources": {"memory": "%s"}' % ("9" * 300 + "T"), '"x": %s' % ("9" * 5000), '"timeout": 1e300']
    )
    def test_a_request_with_a_number_without_bound(
        self, store: JobStore, managers: Managers, tmp_path: Path, more: str
    ) -> None:
        """As a task may leave one for its job, or another."""
        manager = managers.start()
        store.submit("j", [task("a", until(tmp_path / "go"))])
        shim_pid(store, "j", "a")
        added = f'{{"id": "b", "command": "true", {more}}}'
        (store.inbox_path / "1.json").write_text(f'{{"request": "add_tasks", "job": "j", "tasks": [{added}]}}')
        wait_until(lambda: not inbox.requests(store), what="it is quarantined")
        (tmp_path / "go").touch()
        assert ended(store, "j").state == "completed"
        assert [found.id for found in store.get_tasks("j")] == ["a"]
        assert still_works(store, manager)


class TestSteps:
    """Whatever a step on a job raises."""

    def _manager(self, managers: Managers, patch: str) -> subprocess.Popen[str]:
        """A manager in which a function raises for job ``bad``."""
        managers.patch = patch
        return managers.start()

    @pytest.mark.parametrize(
        "step",
        [
            "active_job.ActiveJob.__init__",
            "active_job.ActiveJob.begin",
            "active_job.ActiveJob.complete",
            "active_job.ActiveJob.stop",
            "job_files.JobFiles.finalizing",
            "job_files.JobFiles.merging_external_edits",
            "job_files.JobFiles.publish_state",
            "job_files.JobFiles.snapshotting",
        ],
    )
    def test_the_job_ends_and_all_others_go_on(self, store: JobStore, managers: Managers, step: str) -> None:
        patch = f"""
import functools
from airflow_provider_air_executor.manager import active_job, job_files
real = {step}
@functools.wraps(real)
def raising(self, *args, **kwargs):
    if "bad" in (getattr(self, "job", None) or args[0]).name:
        raise KeyError("nobody has thought of this")
    return real(self, *args, **kwargs)
{step} = raising
"""
        process = self._manager(managers, patch)
        store.submit("bad", ["sleep 0.5", "exit 1" if step.endswith(".stop") else "true"], max_parallel_tasks=1)
        if step.endswith(".stop"):
            shim_pid(store, "bad", "task-1")
            inbox.cancel(store, "bad")
        if step.endswith((".snapshotting", ".merging_external_edits", ".publish_state")):
            line = "echo again >> $AIR_EXECUTOR_JOB_DIR/tasks.json; sleep 2"
            store.submit("bad-too", [line, line], max_parallel_tasks=1)
            assert ended(store, "bad-too").state == "failed"
        job = ended(store, "bad")
        assert job.reason == "invalid"
        assert "KeyError" in (job.error or "")
        assert still_works(store, process)

    @pytest.mark.parametrize("error", ["OSError(24, 'Too many open files')", "KeyError('nobody has thought of this')"])
    def test_a_failure_while_a_job_is_adopted(
        self, store: JobStore, managers: Managers, tmp_path: Path, error: str
    ) -> None:
        """It is adopted as a whole a moment later, or ends; never in part."""
        first = managers.start()
        store.submit("bad", [task("a", until(tmp_path / "go")), task("b", after="a")])
        shim_pid(store, "bad", "a")
        wait_until(lambda: outcomes(store, "bad")["a"][0] == "running", what="its list says so")
        managers.kill(first)
        patch = f"""
from airflow_provider_air_executor.engines.local.engine import LocalEngine
real, failed = LocalEngine.adopt, []
def adopt(self, attempt):
    if not failed:
        failed.append(attempt)
        raise {error}
    return real(self, attempt)
LocalEngine.adopt = adopt
"""
        process = self._manager(managers, patch)
        (tmp_path / "go").touch()
        job = ended(store, "bad")
        assert (job.state, job.reason) == (("completed", None) if "OSError" in error else ("failed", "invalid"))
        assert still_works(store, process)

    def test_a_kill_while_no_process_can_be_inspected(
        self, store: JobStore, managers: Managers, tmp_path: Path
    ) -> None:
        """Its end is emitted when that is over."""
        patch = f"""
import os
real = os.listdir
def listdir(path="."):
    if path == "/proc" and os.path.exists({str(tmp_path / "trouble")!r}):
        raise OSError(24, "Too many open files")
    return real(path)
os.listdir = listdir
"""
        (tmp_path / "trouble").touch()
        process = self._manager(managers, patch)
        store.submit("j", ["sleep 1000"])
        shim_pid(store, "j", "task-1")
        inbox.cancel(store, "j")
        assert still_works(store, process)
        (tmp_path / "trouble").unlink()
        assert ended(store, "j").reason == "cancelled"

    def test_a_task_whose_start_raises_fails_with_a_sentence(self, store: JobStore, managers: Managers) -> None:
        patch = """
from airflow_provider_air_executor.engines.local.engine import LocalEngine
real = LocalEngine.start
def start(self, attempt, task, started_at):
    if task.id == "bad":
        raise IsADirectoryError(21, "Is a directory")
    if task.id == "worse":
        raise RuntimeError("nobody has thought of this")
    return real(self, attempt, task, started_at)
LocalEngine.start = start
"""
        process = self._manager(managers, patch)
        store.submit("j", [task("bad"), task("worse"), task("good")])
        assert ended(store, "j").reason == "spawn"
        assert outcomes(store, "j") == {
            "bad": ("failed", "spawn"),
            "worse": ("failed", "spawn"),
            "good": ("completed", None),
        }
        assert still_works(store, process)

    @pytest.mark.parametrize("name", ["EROFS", "ESTALE", "EIO", "ENOSPC", "EDQUOT", "ENOTCONN"])
    def test_a_start_that_fails_for_the_file_system_is_tried_again(
        self, store: JobStore, managers: Managers, tmp_path: Path, name: str
    ) -> None:
        patch = f"""
import errno, os
from airflow_provider_air_executor.engines.local.engine import LocalEngine
real = LocalEngine.start
def start(self, attempt, task, started_at):
    if task.id == "a" and os.path.exists({str(tmp_path / "trouble")!r}):
        raise OSError(errno.{name}, os.strerror(errno.{name}))
    return real(self, attempt, task, started_at)
LocalEngine.start = start
"""
        (tmp_path / "trouble").touch()
        process = self._manager(managers, patch)
        store.submit("j", [task("a"), task("b", after="a")])
        wait_until(lambda: "j" in manager_status.problems(store), what="it is said what is wrong")
        assert os.strerror(getattr(errno, name)) in manager_status.problems(store)["j"]
        for flags in ([], ["--json"]):
            done = run_cli(["status", "j", "--base-path", str(store.base_path), *flags], managers.environment)
            assert os.strerror(getattr(errno, name)) in done.stdout.replace("\n", " ")
        assert still_works(store, process)
        assert not store.get_job("j").state.is_terminal
        (tmp_path / "trouble").unlink()
        assert ended(store, "j").state == "completed"
        wait_until(lambda: manager_status.problems(store) == {}, what="that is over")
        managers.kill(process)


def test_what_is_in_the_way_of_a_result_fails_the_task(store: JobStore, manager: subprocess.Popen[str]) -> None:
    store.submit("j", [task("a", "mkdir $AIR_EXECUTOR_JOB_DIR/runs/b.1.output"), task("b", after="a")])
    assert ended(store, "j").reason == "spawn"
    assert "in the way of its result" in (store.get_tasks("j")[1].error or "")
    assert still_works(store, manager)


def test_a_job_that_cannot_be_loaded_is_tried_by_one_timer(store: JobStore, managers: Managers) -> None:
    """Whatever else arrives meanwhile, and there is one line in the log when it begins, and one when it is over."""
    manager = managers.start("--poll-interval", "0.1")
    path = write_job(store, ".x", [plain("t", "true")], named="j")
    (path / ".tasks.json.previous").mkdir()
    (path / "runs").mkdir()
    os.utime(path / ".tasks.json.previous", (1, 1))
    path.rename(store.jobs_path / "j")
    wait_until(lambda: "j" in manager_status.problems(store), what="it is seen that it fails")
    for _ in range(10):
        assert still_works(store, manager)
    (store.paths("j").directory / ".tasks.json.previous").rmdir()
    assert ended(store, "j").state == "completed"
    wait_until(lambda: manager_status.problems(store) == {}, what="that is over")
    manager.send_signal(signal.SIGTERM)
    log = manager.communicate()[1]
    assert log.count("job j: cannot be loaded: [Errno") == 1
    assert len(re.findall(r"job j: cannot be loaded: over after [0-9.]+ s", log)) == 1


def test_secrets_that_are_nested_too_deep_hide_their_job_only(store: JobStore) -> None:
    store.submit("bad", ["true"], attached={masking.FILE: b"[" * 100_000})
    with pytest.raises(AirExecutorError, match="cannot be read"):
        masking.load(store.paths("bad"))


def test_a_result_that_is_nested_too_deep(store: JobStore) -> None:
    store.submit("j", [task("a")])
    (a,) = store.get_tasks("j")
    publish_tasks(store, "j", [a.evolve(status=TaskStatus.COMPLETED, attempt=1)])
    store.paths("j").output("a", 1).write_bytes(b"[" * 100_000)
    with pytest.raises(AirExecutorError, match="not JSON that can be read"):
        read_outputs(store.paths("j"), store.get_tasks("j"))


def test_a_request_with_a_long_name_holds_up_no_other(store: JobStore, managers: Managers) -> None:
    store.create_directories()
    (store.inbox_path / ("0" * 245 + ".json")).write_text("no request")
    manager = managers.start()
    store.submit("j", ["sleep 1000"])
    shim_pid(store, "j", "task-1")
    inbox.cancel(store, "j")
    assert ended(store, "j").reason == "cancelled"
    wait_until(lambda: not inbox.requests(store), what="the other one is quarantined")
    assert still_works(store, manager)


def test_one_job_of_another_user_takes_the_list_from_nobody(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.submit("a", ["true"])
    store.submit("b", ["true"])
    load = JobStore.load_job

    def load_job(self: JobStore, name: str) -> Any:
        if name == "a":
            raise PermissionError(13, "Permission denied")
        return load(self, name)

    monkeypatch.setattr(JobStore, "load_job", load_job)
    assert [job.name for job in store.list_jobs()] == ["b"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("a: " + "[" * 20_000, "nested deeper"),
        (
            "x0: &x0 [1, 2]\n" + "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 12)),
            "values",
        ),
        ("a: &a [*a]", "values"),
        ("#" * 2_000_000, "longer"),
    ],
)
def test_a_configuration_that_would_take_for_ever(tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(SettingsError, match=why):
        load_settings({"base_path": str(tmp_path)}, environment={})


def test_a_configuration_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(SettingsError, match="not a file"):
        load_settings({"base_path": str(tmp_path)}, environment={})


def test_an_alias_in_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("x: &limit 7\nmax_concurrent_runners: *limit\n")
    assert load_settings({"base_path": str(tmp_path)}, environment={})[0].max_concurrent_runners == 7


def test_a_chain_of_failed_tasks_is_walked_once() -> None:
    """What the end of a task means for those that depend on it is found out once, however often it is asked."""
    number = 3_000
    tasks = {f"t{i}": Task(id=f"t{i}", command="true", dependencies=(f"t{i - 1}",) if i else ()) for i in range(number)}
    graph = TaskGraph(tasks)
    for each in tasks.values():
        graph.add(each)
    for name, each in tasks.items():
        tasks[name] = each.evolve(status=TaskStatus.FAILED)
    visited = [dependent for _ in range(2) for name in tasks for dependent, _ in graph.ending(name)]
    assert visited == [f"t{i}" for i in range(1, number)]


def test_a_chain_of_failed_tasks_holds_up_nobody(store: JobStore, managers: Managers) -> None:
    """It is loaded while its job works, and a job of somebody else is run meanwhile."""
    number = 3_000
    chain = [
        plain(f"t{i}", "true", after=(f"t{i - 1}",) if i else (), status="failed", attempt=1, reason="exit")
        for i in range(number)
    ]
    write_job(store, "j", [*chain, plain("last", "sleep", "0.1")], state="working")
    manager = managers.start()
    assert still_works(store, manager)
    assert ended(store, "j").state == "failed"
