"""The executor by itself: what it submits, and what it makes of a job that has ended."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.executors import workloads
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

from airflow_provider_air_executor.engines.local.endings import say_cold
from airflow_provider_air_executor.engines.protocol import Attempt
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.executor import AirExecutorExecutor, database, submission, tracking, upkeep
from airflow_provider_air_executor.executor.database import Instance
from airflow_provider_air_executor.executor.queues import Options
from airflow_provider_air_executor.executor.submission import Submitter
from airflow_provider_air_executor.executor.tracking import Kind, TrackedWorkload
from airflow_provider_air_executor.executor.upkeep import Managers
from airflow_provider_air_executor.jobs import files, inbox, manager_status
from airflow_provider_air_executor.jobs.models import JobState, Reason, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager import retention
from airflow_provider_air_executor.workload import WORKLOAD_FILE, ExitCode, _leave_managers_directory
from tests.support.installation import SINCE_3_3
from tests.support.jobs import publish_job, publish_tasks
from tests.support.processes import kill_all_with_environment
from tests.support.waiting import PATIENCE, wait_until


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AirExecutorExecutor:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__BASE_PATH", str(tmp_path / "base"))
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__EMBEDDED", "False")  # nothing here is to run
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "x" * 64)
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    return AirExecutorExecutor(parallelism=8)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "base")


def workload(task_id: str = "t", **more: Any) -> workloads.ExecuteTask:
    """A workload as the scheduler makes it."""
    ti = {
        "id": uuid.uuid4(),
        "dag_version_id": uuid.uuid4(),
        "task_id": task_id,
        "dag_id": "d",
        "run_id": "r",
        "try_number": 1,
        "map_index": -1,
        "pool_slots": 1,
        "queue": "default",
        "priority_weight": 3,
        "external_executor_id": str(uuid.uuid4()),
        **more,
    }
    return workloads.ExecuteTask(
        token="secret-token",
        dag_rel_path=Path("d.py"),
        bundle_info=workloads.BundleInfo(name="dags-folder"),
        log_path="d/r/t/1.log",
        ti=workloads.TaskInstanceDTO.model_construct(**ti),
    )


@pytest.fixture
def managed(executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobStore]:
    """The job filesystem of an executor that starts its manager; Airflow's database is left alone."""
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__EMBEDDED", "True")
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__PRELOAD", "json")  # nothing here is to run
    for name in ("pending_callbacks", "still_needed"):
        monkeypatch.setattr(database, name, lambda *_: set())
    yield store
    pid = manager_status.pid(store)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not manager_status.is_running(store), what="the manager has ended")


def start(job_id: int | None) -> AirExecutorExecutor:
    """Start an executor as a scheduler of this number does, or another one, which has none."""
    executor = AirExecutorExecutor(parallelism=8)
    executor.job_id = job_id
    executor.start()
    return executor


def environment_of(pid: int | None) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


@pytest.mark.embedded
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="environments are looked at in /proc")
def test_only_a_scheduler_replaces_a_manager_that_runs(managed: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may have a shell's environment and settings, which are no affair of the tasks to come."""
    asked: list[str] = []
    monkeypatch.setattr(database, "pending_callbacks", lambda: asked.append("adopt or prune") or [])
    start(1)
    wait_until(lambda: len(asked) == 2, what="callbacks have been adopted, and old jobs pruned")
    asked.clear()
    first = manager_status.pid(managed)
    monkeypatch.setenv("MARK", "of a shell")
    start(None)
    assert (manager_status.pid(managed), asked) == (first, [])
    assert "MARK=of a shell" not in environment_of(first)
    start(2)
    assert manager_status.pid(managed) not in (first, None)
    wait_until(lambda: len(asked) == 2, what="callbacks have been adopted, and old jobs pruned")


@pytest.mark.embedded
def test_without_a_manager_whoever_starts_the_executor_starts_one(managed: JobStore) -> None:
    start(None)
    assert manager_status.pid(managed)


@pytest.mark.embedded
def test_a_manager_that_is_gone_is_started_by_a_scheduler_before_others(
    managed: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For it is the scheduler's environment that the tasks to come are to have."""
    settings = start(None).settings
    other, scheduler = Managers(settings), Managers(settings)
    first = manager_status.pid(managed) or 0
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not manager_status.is_running(managed), what="it is gone")
    assert other.restart_missing(is_scheduler=False) is None
    assert scheduler.restart_missing(is_scheduler=True)
    wait_until(
        lambda: manager_status.pid(managed) not in (first, None), what="another one runs and has told its number"
    )
    os.kill(manager_status.pid(managed) or 0, signal.SIGKILL)
    wait_until(lambda: not manager_status.is_running(managed), what="it is gone, too")
    monkeypatch.setattr(upkeep, "OTHERS_SECONDS", 0.0)
    starting = other.restart_missing(is_scheduler=False)  # no scheduler has come
    wait_until(lambda: manager_status.is_running(managed), what="another one runs")
    assert starting is not None
    starting.join()


@pytest.mark.embedded
def test_a_manager_that_cannot_be_replaced_goes_on_and_that_is_said(
    managed: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    start(1)
    first = manager_status.pid(managed)
    (managed.base_path / "config.yaml").write_text("poll_interval: often\n")
    start(2)
    assert manager_status.pid(managed) == first
    assert f"manager {first} of {managed.base_path} is not replaced" in caplog.text
    assert "poll_interval = 'often'" in caplog.text
    text = " ".join(status(managed).split())
    assert f"manager {first} is not replaced" in text
    assert "poll_interval = 'often'" in text
    assert "poll_interval = 'often'" in json.loads(status(managed, "--json"))["problem"]
    (managed.base_path / "config.yaml").unlink()
    start(3)
    assert manager_status.pid(managed) != first
    wait_until(lambda: "not replaced" not in status(managed), what="the new manager has begun")


def status(store: JobStore, *flags: str) -> str:
    command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", "status"]
    done = subprocess.run(
        [*command, "--base-path", str(store.base_path), *flags], capture_output=True, text=True, check=True
    )
    return done.stdout


def hand_over(executor: AirExecutorExecutor, *given: workloads.ExecuteTask) -> None:
    for item in given:
        executor.queued_tasks[item.ti.key] = item
    executor.trigger_tasks(open_slots=8)


def end(store: JobStore, name: str, code: int | None, reason: Reason | None = None, error: str | None = None) -> None:
    """End a job as the manager does."""
    task = store.get_tasks(name)[0]
    status = TaskStatus.COMPLETED if code == 0 else TaskStatus.FAILED
    task = task.evolve(status=status, exit_code=code, reason=reason, error=error, started_at=utc_now())
    publish_tasks(store, name, [task])
    state = JobState.COMPLETED if code == 0 else JobState.FAILED
    publish_job(store, store.get_job(name).evolve(state=state, reason=reason, updated_at=utc_now()))


def believe(monkeypatch: pytest.MonkeyPatch, state: str | None) -> None:
    """Let Airflow's database say that all tasks are in this state."""
    monkeypatch.setattr(
        database, "instances", lambda keys: {key: Instance(state, None) for key in keys} if state else {}
    )


def test_managers_know_the_jobs_of_the_executor_by_their_label() -> None:
    """And leave their removal to it."""
    assert submission.LABEL == retention.EXECUTOR_LABEL


def test_making_one_touches_nothing(executor: AirExecutorExecutor, store: JobStore) -> None:
    assert not store.base_path.exists()
    for flag in (
        "is_local",
        "serve_logs",
        "supports_callbacks",
        "supports_connection_test",
        "supports_multi_team",
        "pre_assigns_external_executor_id",
    ):
        assert getattr(executor, flag) is True


def test_a_workload_becomes_a_job_of_its_external_executor_id(executor: AirExecutorExecutor, store: JobStore) -> None:
    given = workload()
    hand_over(executor, given)
    name = str(given.ti.external_executor_id)
    job, task = store.get_job(name), store.get_tasks(name)[0]
    assert (job.state, job.priority, job.labels["airflow"]) == ("waiting", 3, "task")
    assert job.submitted_by is not None
    assert (job.submitted_by.dag_id, job.submitted_by.task_id) == ("d", "t")
    assert (task.runner, task.args) == ("warm", ("-P", "-m", "airflow_provider_air_executor.workload"))
    assert task.preload_key == "dags-folder/d.py"
    assert given.ti.key in executor.running
    assert given.ti.key not in executor.queued_tasks
    path = store.paths(name).attached(WORKLOAD_FILE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_bytes())["workload"]["token"] == "secret-token"
    for other in ("state.json", "tasks.json"):
        assert "secret-token" not in (store.paths(name).directory / other).read_text()


def test_the_highest_priority_is_handed_over_first(executor: AirExecutorExecutor) -> None:
    for weight in (1, 5, 3):
        item = workload(f"t{weight}", priority_weight=weight)
        executor.queued_tasks[item.ti.key] = item
    assert [key.task_id for key, _ in executor.order_queued_tasks_by_priority()] == ["t5", "t3", "t1"]


def test_without_an_id_or_with_an_old_one_it_makes_its_own(executor: AirExecutorExecutor, store: JobStore) -> None:
    first = workload()
    hand_over(executor, first)
    resumed = workload(external_executor_id=first.ti.external_executor_id)  # after a deferral, with the same id
    hand_over(executor, resumed, workload("other", external_executor_id=None))
    names = store.job_names()
    assert len(names) == 3
    events = executor.get_event_buffer()
    assert {key.task_id: state for key, (state, _) in events.items()} == {  # type: ignore[union-attr]
        "t": TaskInstanceState.QUEUED,
        "other": TaskInstanceState.QUEUED,
    }
    assert {info for _, info in events.values()} < set(names)


def test_the_end_of_the_job_before_a_deferral_is_dropped(
    executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = workload(), workload()
    hand_over(executor, first)
    hand_over(executor, second)
    believe(monkeypatch, "queued")
    end(store, str(first.ti.external_executor_id), 0)
    executor.sync()
    assert executor.get_event_buffer() == {}
    assert second.ti.key in executor.running


FAILED, SUCCESS = TaskInstanceState.FAILED, TaskInstanceState.SUCCESS


@pytest.mark.parametrize(
    ("code", "reason", "state", "event", "runs"),
    [
        (ExitCode.REPORTED, None, "success", None, False),
        (ExitCode.REPORTED, None, "deferred", None, False),
        (ExitCode.REPORTED, None, "up_for_reschedule", None, False),
        (ExitCode.REPORTED, None, None, None, False),
        (ExitCode.REPORTED, None, "running", SUCCESS, False),
        (ExitCode.REPORTED, None, "restarting", SUCCESS, False),
        (ExitCode.SUPERSEDED, Reason.EXIT, "running", None, False),
        (ExitCode.SUPERSEDED, Reason.EXIT, "restarting", SUCCESS, False),
        (ExitCode.UNREACHABLE, Reason.EXIT, "queued", None, True),
        (ExitCode.UNREACHABLE, Reason.EXIT, "running", FAILED, False),
        (ExitCode.UNREACHABLE, Reason.EXIT, "success", None, False),
        (ExitCode.REFUSED, Reason.EXIT, "queued", None, True),
        (ExitCode.BAD_WORKLOAD, Reason.EXIT, "queued", None, True),
        (None, Reason.LOST, "queued", None, True),
        (None, Reason.LOST, "running", FAILED, False),
        (None, Reason.LOST, "restarting", SUCCESS, False),
        (None, Reason.SPAWN, "queued", FAILED, False),
        (None, Reason.TIMEOUT, "running", FAILED, False),
        (None, Reason.CANCELLED, "queued", FAILED, False),
        (None, Reason.CANCELLED, "failed", None, False),
    ],
)
def test_what_an_ended_job_means(
    executor: AirExecutorExecutor,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    code: int | None,
    reason: Reason | None,
    state: str | None,
    event: TaskInstanceState | None,
    runs: bool,
) -> None:
    given = workload()
    hand_over(executor, given)
    name = str(given.ti.external_executor_id)
    believe(monkeypatch, state)
    end(store, name, code, reason)
    executor.sync()
    events = executor.get_event_buffer()
    assert [found for found, _ in events.values()] == ([event] if event else [])
    assert (given.ti.key in executor.running) is runs
    assert all(name in str(info) for _, info in events.values())


def test_what_has_not_begun_is_submitted_again_under_its_name(
    executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = workload()
    hand_over(executor, given)
    name = str(given.ti.external_executor_id)
    believe(monkeypatch, "queued")
    monkeypatch.setattr(tracking, "RESUBMISSION_SECONDS", 0.0)
    for number in range(1, 6):
        files.remove(store.paths(name).attached(WORKLOAD_FILE))
        end(store, name, ExitCode.UNREACHABLE, Reason.EXIT)
        executor.sync()
        content = json.loads(store.paths(name).attached(WORKLOAD_FILE).read_bytes())
        assert content["workload"]["token"].count(".") == 2  # a new one
        assert len(inbox.requests(store)) == number
    end(store, name, ExitCode.UNREACHABLE, Reason.EXIT)
    executor.sync()
    assert [state for state, _ in executor.get_event_buffer().values()] == [FAILED]


def test_the_pause_before_a_workload_is_submitted_again_doubles(store: JobStore) -> None:
    tracked = TrackedWorkload("j", TaskInstanceKey("d", "t", "r", 1, -1), store, Kind.TASK)
    for tracked.submissions, pause in enumerate((1.0, 2.0, 4.0, 8.0, 16.0), start=1):
        earliest = time.monotonic() + pause
        tracked.resubmit_later()
        assert earliest <= (tracked.again_at or 0.0) <= time.monotonic() + pause


def test_why_a_task_failed_that_has_never_begun_stands_in_its_log(
    executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also if it was not even submitted. What stands there already is kept."""
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "there.log").write_text('{"event": "before"}\n')
    given = workload("long").model_copy(update={"log_path": "there.log"})
    invalid = workload("invalid", executor_config={"air_executor": {"memory": "1G"}})
    hand_over(executor, given, invalid)
    believe(monkeypatch, "queued")
    end(store, str(given.ti.external_executor_id), None, Reason.SPAWN, "the environment is too long")
    executor.sync()
    before, why = map(json.loads, (logs / "there.log").read_text().splitlines())
    assert before == {"event": "before"}
    assert (why["level"], "the environment is too long" in why["event"]) == ("error", True)
    assert not store.paths(str(given.ti.external_executor_id)).attached(WORKLOAD_FILE).exists()  # nobody will read it
    (line,) = (logs / "d/r/t/1.log").read_text().splitlines()
    assert "there is no option 'memory'" in json.loads(line)["event"]


def test_why_tasks_start_cold_is_said_once(
    executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them takes seconds longer, and few look into the logs of jobs and managers."""
    with_variables = workload("v", executor_config={"air_executor": {"env": {"A": "b"}}})
    warm = workload("w")
    given = [workload("t"), workload("u"), with_variables, warm]
    hand_over(executor, *given)
    believe(monkeypatch, "success")
    for item in given:
        name = str(item.ti.external_executor_id)
        task = store.get_tasks(name)[0]
        log = store.paths(name).log(task.id)
        log.parent.mkdir(exist_ok=True)
        if item is warm:
            log.write_text("what it prints\n")
        else:
            why = "its environment differs" if task.env else "importing x has started threads (y)"
            log.touch()
            say_cold(store, Attempt(name, task.id, 1, 0, "local"), why)
        end(store, name, ExitCode.REPORTED)
    executor.sync()
    (line,) = (record.getMessage() for record in caplog.records if record.name == upkeep.__name__)
    assert line.startswith(f"tasks of {store.base_path} start cold")
    assert line.endswith("importing x has started threads (y)")


def test_tasks_run_where_the_scheduler_does_unless_jobs_are_there(
    executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def directory() -> str:
        given = workload()
        hand_over(AirExecutorExecutor(parallelism=8), given)
        path = store.paths(str(given.ti.external_executor_id)).attached(WORKLOAD_FILE)
        found: str = json.loads(path.read_bytes())["directory"]
        return found

    monkeypatch.chdir(tmp_path)
    assert directory() == str(tmp_path.resolve())
    store.create_directories()
    for within in (store.base_path, store.jobs_path):
        monkeypatch.chdir(within)
        assert directory() == "/"
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert directory() == "/"


def test_a_task_is_not_in_the_managers_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for asked, found in ((str(tmp_path), tmp_path.resolve()), (str(tmp_path / "gone"), Path("/")), (None, Path("/"))):
        monkeypatch.chdir(tmp_path.parent)  # that of the manager
        _leave_managers_directory(asked)
        assert Path.cwd() == found


_ANOTHER_USER = """
import os, sys
from types import SimpleNamespace
from airflow.sdk.execution_time import task_runner
task_runner.parse = lambda what, log: SimpleNamespace(task=SimpleNamespace(run_as_user=sys.argv[1] or None))
from airflow_provider_air_executor import workload
workload._prepare()
task_runner.parse(None, None)
print(os.getcwd())
"""


@pytest.mark.airflow
@pytest.mark.parametrize(
    ("user", "is_open", "stays"), [("", False, True), ("else", False, False), ("else", True, True)]
)
def test_a_task_of_another_user_is_not_where_that_user_may_not_be(user: str, is_open: bool, stays: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # the parents of tmp_path are private
        os.chmod(directory, 0o755 if is_open else 0o700)
        environment = {**os.environ, "AIRFLOW_HOME": directory, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        command = [sys.executable, "-c", _ANOTHER_USER, user]
        said = subprocess.check_output(command, env=environment, cwd=directory, text=True, timeout=PATIENCE)
        assert said.splitlines()[-1] == (os.path.realpath(directory) if stays else "/")


def test_a_token_is_renewed_while_the_job_waits_and_not_put_back_when_it_has_begun(
    executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, begun = workload("waiting"), workload("begun")
    submitter = Submitter(executor.settings, lambda: executor.jwt_generator)
    tracked = [submitter.submit(waiting), submitter.submit(begun)]
    files.remove(store.paths(str(begun.ti.external_executor_id)).attached(WORKLOAD_FILE))
    queued: list[Any] = []
    monkeypatch.setattr(manager_status, "is_running", lambda _: True)
    monkeypatch.setattr(database, "renew_queued_time", queued.extend)
    submitter.renew_tokens(tracked)
    path = store.paths(str(waiting.ti.external_executor_id)).attached(WORKLOAD_FILE)
    assert json.loads(path.read_bytes())["workload"]["token"].count(".") == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not store.paths(str(begun.ti.external_executor_id)).attached(WORKLOAD_FILE).exists()
    assert queued == [waiting.ti.id]
    queued.clear()
    monkeypatch.setattr(manager_status, "is_running", lambda _: False)
    submitter.renew_tokens(tracked)
    assert queued == []  # without a manager they are stuck indeed


class TI:
    """As much of a task instance as an executor looks at when it adopts or revokes it."""

    def __init__(self, name: str | None, task_id: str = "t", state: str = "running") -> None:
        self.id = uuid.uuid4()
        self.state = state
        self.queue = "default"
        self.external_executor_id = name
        self.key = TaskInstanceKey("d", task_id, "r", 1, -1)
        self.try_number = 1
        self.executor_config: dict[str, object] = {}


def test_adoption(executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.submit("ended", ["true"])
    store.submit("waits", ["true"])
    end(store, "ended", 0)
    known = [TI("ended", "a"), TI("waits", "b")]
    unknown = [TI(None, "c"), TI("never-submitted", "d"), TI("../evil", "e")]
    assert executor.try_adopt_task_instances([*known, *unknown]) == unknown  # type: ignore[list-item]
    assert executor.running == {ti.key for ti in known}
    believe(monkeypatch, "running")
    executor.sync()
    assert [key.task_id for key in executor.get_event_buffer()] == ["a"]  # type: ignore[union-attr]


def test_what_was_not_submitted_yet_is_submitted_on_adoption(
    executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = workload()
    name = str(given.ti.external_executor_id)
    monkeypatch.setattr(database, "workload_of", lambda ti_id, generator: given)
    unknown = [TI("../evil", "b", "queued"), TI(None, "c", "queued")]
    assert executor.try_adopt_task_instances([TI(name, "t", "queued"), *unknown]) == unknown  # type: ignore[list-item]
    believe(monkeypatch, "queued")
    wait_until(lambda: (executor.sync(), store.paths(name).directory.exists())[1], what="it is submitted")
    content = json.loads(store.paths(name).attached(WORKLOAD_FILE).read_text())
    assert content["workload"]["token"].count(".") == 2  # a new one
    assert store.get_job(name).labels["airflow"] == "task"
    assert executor.get_event_buffer() == {}


def test_revoking_kills_and_emits_nothing(executor: AirExecutorExecutor, store: JobStore) -> None:
    given = workload()
    hand_over(executor, given)
    name = str(given.ti.external_executor_id)
    executor.revoke_task(ti=TI(name))  # type: ignore[arg-type]
    assert executor.running == set()
    assert executor.get_event_buffer() == {}
    assert [inbox.load_request(path).request for path in inbox.requests(store)] == ["cancel"]
    assert not store.paths(name).attached(WORKLOAD_FILE).exists()
    executor.revoke_task(ti=TI(None))  # type: ignore[arg-type]


def test_ended_jobs_are_pruned(executor: AirExecutorExecutor, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__PRUNE_AFTER", "0")
    given = workload()
    hand_over(executor, given)
    believe(monkeypatch, "success")
    end(store, str(given.ti.external_executor_id), 0)
    executor.sync()
    assert store.job_names() == []


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"memory": "1G"}, "no option 'memory'"),
        ("fast", "must be a mapping"),
        ({"priority": "high"}, "priority must be a whole number"),
    ],
)
def test_options_that_are_not_valid(given: Any, what: str) -> None:
    with pytest.raises(InvalidJobError, match=what):
        Options.of({"air_executor": given})


def test_a_task_with_options_that_are_not_valid_fails(executor: AirExecutorExecutor, store: JobStore) -> None:
    hand_over(
        executor,
        workload("a", executor_config={"air_executor": {"timeout": -1}}),
        workload("b", executor_config={"air_executor": {"env": {"A=B": "x"}}}),
        workload("c", executor_config={"air_executor": {"priority": 100, "timeout": 60, "env": {"A": "x"}}}),
    )
    events = executor.get_event_buffer()
    assert {key.task_id: state for key, (state, _) in events.items()} == {"a": FAILED, "b": FAILED}  # type: ignore[union-attr]
    (name,) = store.job_names()
    task = store.get_tasks(name)[0]
    assert (store.get_job(name).priority, task.timeout, task.env) == (100, 60, {"A": "x"})


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("base_path", "relative", "absolute path"),
        ("queues", "[]", "must map names"),
        ("queues", "{", "not JSON"),
        ("queues", '{"q": {"slots": 1}}', "no setting 'slots'"),
        ("max_running_tasks", "many", "must be a number"),
    ],
)
def test_settings_that_are_not_valid(
    executor: AirExecutorExecutor, monkeypatch: pytest.MonkeyPatch, key: str, value: str, what: str
) -> None:
    monkeypatch.setenv(f"AIRFLOW__AIR_EXECUTOR__{key.upper()}", value)
    with pytest.raises(ValueError, match=what):
        executor.start()


def test_queues_and_teams_have_job_filesystems_of_their_own(
    executor: AirExecutorExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__QUEUES", '{"heavy": {"max_running_tasks": 1}}')
    hand_over(executor, workload("light"), workload("heavy", queue="heavy"))
    assert len(JobStore(tmp_path / "base").job_names()) == len(JobStore(tmp_path / "base-heavy").job_names()) == 1
    assert [path.max_running_tasks for path in executor.settings.queues.values()] == [8, 1]
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path / "home"))
    team = AirExecutorExecutor(parallelism=8, team_name="blue")
    assert team.settings.queues[None].store.base_path == tmp_path / "home" / "air-executor-tasks-blue"
    monkeypatch.setenv("AIRFLOW__BLUE___AIR_EXECUTOR__BASE_PATH", str(tmp_path / "blue"))
    team = AirExecutorExecutor(parallelism=8, team_name="blue")
    assert team.settings.queues[None].store.base_path == tmp_path / "blue"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "auto,airflow_provider_air_executor.workload"),
        ("auto", "auto,airflow_provider_air_executor.workload"),
        ("auto, numpy", "auto,airflow_provider_air_executor.workload,numpy"),
        ("airflow_provider_air_executor.workload,auto", "airflow_provider_air_executor.workload,auto"),
        ("airflow_provider_air_executor.workload", "airflow_provider_air_executor.workload"),
        ("json", "json"),
    ],
)
def test_what_is_imported_ahead(
    executor: AirExecutorExecutor, monkeypatch: pytest.MonkeyPatch, given: str | None, found: str
) -> None:
    if given is not None:
        monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__PRELOAD", given)
    assert executor.settings.preload == found


_SHARES = """
from airflow_provider_air_executor import workload
workload.preload()
from airflow.sdk.execution_time import comms
one, two = (comms.CommsDecoder(socket=None) for _ in range(2))
assert one.body_decoder is two.body_decoder is two.err_decoder
assert one.body_decoder.validate_python({"type": "OKResponse", "ok": True}).ok
"""


@pytest.mark.airflow
def test_what_each_task_would_make_for_itself_is_made_once(home: Path) -> None:
    """In a process of its own, as the fork server is one."""
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    subprocess.run([sys.executable, "-c", _SHARES], env=environment, check=True, timeout=PATIENCE)


@pytest.mark.airflow
@pytest.mark.parametrize("has_thread", [False, True])
def test_plugins_are_found_once_unless_they_start_threads(tmp_path: Path, has_thread: bool) -> None:
    dist = tmp_path / "a_plugin-1.0.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Name: a-plugin\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text("[airflow.plugins]\na_plugin = a_plugin:Plugin\n")
    thread = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()" if has_thread else ""
    (tmp_path / "a_plugin.py").write_text(
        "import threading, time\nfrom airflow.plugins_manager import AirflowPlugin\n"
        f"{thread}\nclass Plugin(AirflowPlugin):\n    name = 'a_plugin'\n"
    )
    code = """
import sys
from airflow_provider_air_executor import workload
workload.preload()
from airflow.sdk import plugins_manager
find = plugins_manager._load_entrypoint_plugins
print("a_plugin" in sys.modules, find() is find())
plugins, errors = plugins_manager._get_plugins()
assert "a_plugin" in {plugin.name for plugin in plugins}, plugins
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert f"{not has_thread} {not has_thread}" in done.stdout.splitlines()


_ORPHANS = """
import os, subprocess, sys, time
from types import SimpleNamespace
from airflow_provider_air_executor import workload
workload._adopt_orphans()
script = "sleep 600 & echo $! > " + sys.argv[1] + "; sleep 0.01 & echo $! >> " + sys.argv[1]
subprocess.run(["sh", "-c", script], start_new_session=True)
child = subprocess.Popen(["true"])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
alive, ended = map(int, open(sys.argv[1]).read().split())
parent = lambda pid: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1]
assert int(parent(alive)) == int(parent(ended)) == os.getpid()
supervised = SimpleNamespace(pid=alive)
workload._reap_orphans(supervised)  # stops at a child of our own
assert child.wait() == 0
while os.path.exists(f"/proc/{ended}"):
    workload._reap_orphans(supervised)
os.kill(alive, 9)
os.waitid(os.P_PID, alive, os.WEXITED | os.WNOWAIT)
workload._reap_orphans(supervised)
assert os.waitpid(alive, 0)[1] == 9
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere orphans have another parent")
def test_only_orphans_are_reaped(tmp_path: Path) -> None:
    """Those of a task, by its supervisor, which waits itself for the task and for what it has started."""
    subprocess.run([sys.executable, "-c", _ORPHANS, str(tmp_path / "pids")], check=True, timeout=PATIENCE)


_SUPERVISOR = """
import pathlib, signal, sys, time
from types import SimpleNamespace
import httpx, structlog, uuid
from airflow_provider_air_executor import workload
workload._prepare()
from airflow.sdk.api.client import ServerResponseError
from airflow.sdk.api.datamodels._generated import TaskInstance
from airflow.sdk.execution_time import supervisor

directory, order = pathlib.Path(sys.argv[1]), sys.argv[2]
lines, ready = directory / "lines", directory / "ready"

def task():
    def on_kill(*_):
        with lines.open("a") as file:
            file.write("on_kill\\n")
        time.sleep(600)
    signal.signal(signal.SIGTERM, on_kill)
    ready.touch()
    time.sleep(600)

def heartbeat(*_, **__):
    if (ready if order == "supervisor" else lines).exists():
        (directory / "refused").touch()
        response = httpx.Response(409, request=httpx.Request("PUT", "http://server"), json={"detail": "no"})
        error = ServerResponseError("no", request=response.request, response=response)
        error.detail = "no"
        raise error

ti = TaskInstance(id=uuid.uuid4(), task_id="t", dag_id="d", run_id="r", try_number=1, dag_version_id=uuid.uuid4())
calls = SimpleNamespace(
    start=lambda *_: SimpleNamespace(should_retry=False, start_date=None, model_dump=dict),
    heartbeat=heartbeat,
    finish=lambda **_: None,
)
supervisor.ActivitySubprocess._on_child_started = lambda self, **_: None
process = supervisor.ActivitySubprocess.start(
    what=ti, dag_rel_path="d.py", bundle_info=None, client=SimpleNamespace(task_instances=calls), target=task,
    logger=structlog.get_logger(),
)
process.ti = ti
process.wait()
"""


@pytest.mark.airflow
@pytest.mark.skipif(not SINCE_3_3, reason="before Airflow 3.3 a task is in the process group of its supervisor")
@pytest.mark.parametrize("first", ["manager", "supervisor"])
def test_on_kill_runs_once_whoever_is_first_to_end_a_task(first: str, home: Path) -> None:
    """Both the manager and the supervisor, which is refused a heartbeat, send SIGTERM; on_kill runs with it."""
    environment = {**os.environ, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    environment["AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL"] = "1"
    command = [sys.executable, "-c", _SUPERVISOR, str(home), first]
    with subprocess.Popen(command, env=environment, start_new_session=True) as supervisor:
        try:
            awaited = home / ("ready" if first == "manager" else "lines")
            wait_until(lambda: awaited.exists() or supervisor.poll() is not None, what="it is time to end it")
            supervisor.send_signal(signal.SIGTERM)
            supervisor.wait(PATIENCE)  # it kills the task, which does not end by itself
        finally:
            supervisor.kill()
            kill_all_with_environment(f"AIRFLOW_HOME={home}")
    assert (home / "refused").exists()
    assert (home / "lines").read_text() == "on_kill\n"


@pytest.mark.parametrize(
    ("kinds", "terminated", "may_stay"),
    [
        ({"ExecuteTask"}, set(), True),
        ({"ExecuteTask"}, {1234}, False),
        ({"ExecuteTask", "ExecuteCallback"}, set(), False),
        ({"TestConnection"}, set(), False),
    ],
)
def test_a_supervisor_stays_that_has_run_tasks_to_their_ends(
    monkeypatch: pytest.MonkeyPatch, kinds: set[str], terminated: set[int], may_stay: bool
) -> None:
    from airflow_provider_air_executor import workload as module

    monkeypatch.setattr(module, "_kinds", kinds)
    monkeypatch.setattr(module, "_terminated", terminated)
    assert module.renew() is may_stay


def test_the_variable_of_the_working_directory_is_that_of_the_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("PWD", "/where/the/manager/is")
    _leave_managers_directory(str(tmp_path))
    assert (os.environ["PWD"], Path.cwd()) == (str(tmp_path), tmp_path)
