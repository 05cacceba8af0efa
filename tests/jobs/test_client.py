"""The client: jobs from any Python program."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import airflow_provider_air_executor as package
from airflow_provider_air_executor import AirExecutorClient, Client
from airflow_provider_air_executor.exceptions import (
    InvalidJobError,
    JobCancelledError,
    JobExistsError,
    JobFailedError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    OutputError,
    SettingsError,
)
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.models import JobState, Task
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended, task
from tests.support.managers import Managers, run_cli
from tests.support.waiting import PATIENCE, until, wait_until


@pytest.fixture
def client(store: JobStore) -> Client:
    return Client(store.base_path)


@pytest.mark.usefixtures("manager")
def test_a_job_from_beginning_to_end(client: Client, store: JobStore) -> None:
    tasks = [
        task("a", "echo one; echo '{\"rows\": 3}' > $AIR_EXECUTOR_OUTPUT"),
        Task(id="b", command="echo", args=("two",)),
        "printf '\\377'",
    ]
    job = client.create_job("j", tasks, labels={"team": "red"}, priority=2)
    assert job.name == "j"
    assert job.wait(PATIENCE).state is JobState.COMPLETED
    assert job.logs() == {"a": "one\n", "b": "two\n", "task-3": "\ufffd"}
    assert job.log("b") == "two\n"
    assert job.results() == {"a": {"rows": 3}}
    assert [found.exit_code for found in job.tasks()] == [0, 0, 0]
    assert (job.state, job.info().labels, job.info().priority) == ("completed", {"team": "red"}, 2)
    assert [found.name for found in client.jobs()] == ["j"]
    client.job("j").delete()
    assert client.jobs() == []
    for call in (job.wait, job.info, job.delete, lambda: client.job("j")):
        with pytest.raises(JobNotFoundError):
            call()


@pytest.mark.usefixtures("manager")
def test_run_returns_the_results_or_raises(client: Client) -> None:
    assert client.run([task("a", "echo 7 > $AIR_EXECUTOR_OUTPUT"), "true"]) == {"a": 7}
    with pytest.raises(JobFailedError, match="exit code 3") as failed:
        client.run(["echo the end; exit 3"], "j")
    assert failed.value.job_name == "j"
    assert "task-1 | the end" in failed.value.details
    with pytest.raises(OutputError, match="is not JSON"):
        client.run(["echo x > $AIR_EXECUTOR_OUTPUT"])


@pytest.mark.usefixtures("manager")
def test_an_interrupt_cancels_what_is_run(client: Client, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_: float) -> None:
        if store.get_job("j").state is JobState.WORKING:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        client.run(["sleep 1000"], "j")
    monkeypatch.undo()
    assert ended(store, "j").reason == "cancelled"


@pytest.mark.usefixtures("manager")
def test_a_job_is_cancelled_and_retried(client: Client, tmp_path: Path) -> None:
    """And to wait is to wait for what was asked for last."""
    job = client.create_job("j", [f"[ -e {tmp_path}/flag ] || sleep 1000", "true"])
    with pytest.raises(JobTimeoutError, match="is still"):
        job.wait(0.01)
    with pytest.raises(JobStateError):
        job.delete()
    wait_until(lambda: [str(found.status) for found in job.tasks()] == ["running", "completed"], what="they began")
    assert job.cancel() is True
    with pytest.raises(JobCancelledError):
        job.wait(PATIENCE)
    assert job.cancel() is False
    (tmp_path / "flag").touch()
    job.retry()
    assert job.wait(PATIENCE).attempt == 2
    with pytest.raises(JobStateError):
        job.retry()
    job.retry(all=True)
    assert job.wait(PATIENCE).attempt == 3
    job.retry("task-2")
    assert job.wait(PATIENCE).attempt == 4
    assert [found.attempt for found in job.tasks()] == [3, 3]


@pytest.mark.usefixtures("manager")
def test_one_of_its_tasks_is_cancelled(client: Client, tmp_path: Path) -> None:
    job = client.create_job(None, [task("a", "sleep 1000"), task("b", until(tmp_path / "go"))])
    wait_until(lambda: job.tasks()[0].status == "running", what="it runs")
    assert job.cancel("a") is True
    wait_until(lambda: job.tasks()[0].reason == "cancelled", what="it is cancelled")
    assert job.state is JobState.WORKING
    (tmp_path / "go").touch()
    with pytest.raises(InvalidJobError):
        job.cancel("nope")


def test_names(client: Client) -> None:
    first, second = client.create_job(None, ["true"]), client.create_job(None, ["true"])
    assert first.name != second.name
    client.create_job("j", ["true"])
    with pytest.raises(JobExistsError):
        client.create_job("j", ["true"])
    with pytest.raises(JobStateError):
        client.create_job("j", ["true"], replace=True)
    with pytest.raises(InvalidJobError, match="tasks: the list is empty"):
        client.create_job("k", [])


@pytest.mark.usefixtures("manager")
def test_a_job_that_has_ended_is_replaced(client: Client) -> None:
    client.create_job("j", ["echo one"]).wait()
    job = client.create_job("j", (each for each in ["echo two", "true"]), replace=True)
    job.wait()
    assert job.logs() == {"task-1": "two\n", "task-2": ""}


def test_who_waits_is_told_that_no_manager_runs(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    job = client.create_job("j", ["true"])
    with caplog.at_level(logging.WARNING), pytest.raises(JobTimeoutError):
        job.wait(0)
    assert f"no manager is running; start it: air-executor manager --base-path {client.base_path}" in caplog.text


@pytest.fixture
def embedded(store: JobStore, managers: Managers) -> Iterator[Client]:
    yield Client(store.base_path, embedded=True)
    run_cli(["stop", "--base-path", str(store.base_path)], managers.environment)


def test_a_manager_is_started(embedded: Client, store: JobStore) -> None:
    assert embedded.run(["true"]) == {}
    assert manager_status.is_running(store)


def test_the_base_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AIR_EXECUTOR_BASE_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Client().base_path == tmp_path / ".air-executor"
    monkeypatch.setenv("AIR_EXECUTOR_BASE_PATH", str(tmp_path / "variable"))
    assert Client().base_path == tmp_path / "variable"
    assert Client(str(tmp_path / "given")).base_path == tmp_path / "given"


def test_the_address_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client("https://host:8443", token="a-secret-word", ca="ca.pem")
    assert repr(client) == "Client('https://host:8443')"
    with pytest.raises(SettingsError, match="is on another machine"):
        _ = client.base_path
    monkeypatch.delenv("AIR_EXECUTOR_BASE_PATH", raising=False)
    monkeypatch.setenv("AIR_EXECUTOR_URL", "unix:///run/air.sock")
    assert repr(Client()) == "Client('unix:///run/air.sock')"
    monkeypatch.setenv("AIR_EXECUTOR_BASE_PATH", "/here")
    assert repr(Client()) == "Client('/here')", "a task of a job means the machine that it runs on"
    with pytest.raises(SettingsError, match="http is not encrypted"):
        Client("http://host:8080")


def test_the_class_of_the_existing_system(store: JobStore) -> None:
    """Its calls work as they stand there; the job as a text is the id that they returned."""
    client = AirExecutorClient(base_path=str(store.base_path))
    tasks = [
        {"command": "echo", "args": ["Hello"], "dependencies": []},
        {"command": "sleep", "args": ["2"], "dependencies": ["task-1"]},
    ]
    created = client.create_job(job_name="my-job", tasks=tasks)
    assert f"{created}" == store.get_job("my-job").id
    assert [(found.command, found.dependencies) for found in store.get_tasks("my-job")] == [
        ("echo", ()),
        ("sleep", ("task-1",)),
    ]


@pytest.mark.usefixtures("manager")
def test_the_examples_of_its_page(client: Client) -> None:
    """Those that need no file of a user run; the others are Python."""
    page = (Path(__file__).parents[2] / "docs" / "python-client.md").read_text()
    begin, run, failing, remote = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for needing_more in (begin, remote):
        compile(needing_more, "page", "exec")
    exec(run, {"client": client})
    printed: list[object] = []
    exec(
        failing.replace("make report", "echo the end; exit 3"),
        {"client": client, "print": lambda *a: printed.extend(a)},
    )
    assert printed[0] == "exit"
    assert "the end" in str(printed[1])


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Clint'"):
        _ = package.Clint


def test_it_needs_no_airflow() -> None:
    code = "from airflow_provider_air_executor import Client; import sys; print('airflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
