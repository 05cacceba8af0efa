"""The hook: where the job filesystem is, and that somebody runs the jobs there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_provider_air_executor.exceptions import (
    BasePathError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    NoLocksError,
)
from airflow_provider_air_executor.hooks import AirExecutorHook, tasks_base_path
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from tests.support.contexts import context
from tests.support.jobs import read_log
from tests.support.waiting import PATIENCE, wait_until


def connection(monkeypatch: pytest.MonkeyPatch, name: str = "AIR_EXECUTOR_DEFAULT", **extra: object) -> None:
    monkeypatch.setenv(f"AIRFLOW_CONN_{name}", json.dumps({"conn_type": "air_executor", "extra": extra}))


class TestLocation:
    def test_without_a_connection_the_embedded_default(self, home: Path) -> None:
        assert AirExecutorHook().location == (f"{home}/air-executor", True)

    def test_another_connection_must_exist(self, home: Path) -> None:
        with pytest.raises(AirflowNotFoundException):
            _ = AirExecutorHook("nope").location

    def test_a_connection_says_where(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        connection(monkeypatch, base_path="/srv/jobs")
        assert AirExecutorHook().location == ("/srv/jobs", False)
        connection(monkeypatch, "OTHER", embedded=True)
        assert AirExecutorHook("other").location == (f"{home}/air-executor", True)

    @pytest.mark.parametrize(("text", "embedded"), [("true", True), ("True", True), ("false", False)])
    def test_a_connection_that_is_a_uri(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, text: str, embedded: bool
    ) -> None:
        """All its extras are texts; and paths are what they are in Airflow's own settings."""
        monkeypatch.setenv("JOBS", "/srv/jobs")
        uri = f"air-executor://?base_path=%24JOBS%2Fof-mine&embedded={text}"
        monkeypatch.setenv("AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT", uri)
        hook = AirExecutorHook()
        assert hook.location.embedded is embedded
        assert hook.store.base_path == Path("/srv/jobs/of-mine")

    def test_a_home_that_names_a_variable(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WHERE", "/srv")
        monkeypatch.setenv("AIRFLOW_HOME", "$WHERE/airflow")
        assert AirExecutorHook().location == ("/srv/airflow/air-executor", True)
        assert tasks_base_path("") == "/srv/airflow/air-executor-tasks"
        assert tasks_base_path("$WHERE/tasks") == "/srv/tasks"

    @pytest.mark.parametrize("extra", [{"base_path": "relative"}, {"base_path": 7}, {"embedded": "yes"}])
    def test_a_bad_field_is_named(self, home: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, object]) -> None:
        connection(monkeypatch, **extra)
        with pytest.raises(ValueError, match=next(iter(extra))):
            _ = AirExecutorHook().location


class TestConnection:
    def test_embedded(self, store: JobStore) -> None:
        works, message = AirExecutorHook().test_connection()
        assert works
        assert "is started with the first one" in message

    def test_a_service_that_does_not_run(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        connection(monkeypatch, base_path=str(home))
        works, message = AirExecutorHook().test_connection()
        assert not works
        assert f"air-executor manager --base-path {home}" in message

    def test_without_locks_nothing_is_submitted(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """No embedded manager could run there."""
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
        works, message = AirExecutorHook().test_connection()
        assert not works
        assert "manager.lock cannot be locked (No locks available)" in message
        with pytest.raises(NoLocksError):
            AirExecutorHook().create_job("j", ["true"])
        assert store.job_names() == []

    @pytest.mark.parametrize("embedded", [True, False])
    def test_a_base_path_that_cannot_be_made_is_named_with_its_connection(
        self, home: Path, monkeypatch: pytest.MonkeyPatch, embedded: bool
    ) -> None:
        (home / "file").touch()
        connection(monkeypatch, "ELSEWHERE", base_path=f"{home}/file/jobs", embedded=embedded)
        with pytest.raises(BasePathError) as refused:
            AirExecutorHook("elsewhere").create_job("j", ["true"])
        assert str(refused.value).startswith(
            f"the job filesystem {home}/file/jobs of connection 'elsewhere' cannot be made: "
        )
        operator = AirExecutorSubmitOperator(task_id="t", tasks=["true"], air_executor_conn_id="elsewhere")
        with pytest.raises(BasePathError, match="connection 'elsewhere'"):
            operator.execute(context())

    def test_a_directory_that_is_not_there(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        connection(monkeypatch, base_path="/no/such/place")
        assert AirExecutorHook().test_connection()[0] is False


@pytest.mark.embedded
class TestEmbeddedManager:
    def test_it_is_started_with_the_first_job_and_found_by_the_second(self, store: JobStore) -> None:
        hook = AirExecutorHook()
        hook.create_job("a", ["echo hi"])
        pid = manager_status.pid(store)
        assert hook.wait_for_job("a", timeout=PATIENCE).state == "completed"
        assert hook.read_log("a", "task-1").text == "hi\n"
        assert b"--embedded" in Path(f"/proc/{pid}/cmdline").read_bytes(), "it removes old jobs by itself"
        hook.create_job("b", ["true"])
        assert hook.wait_for_job("b", timeout=PATIENCE).state == "completed"
        assert manager_status.pid(store) == pid
        assert hook.test_connection()[1].startswith(f"manager {pid} runs")

    def test_it_outlives_the_process_that_started_it(self, store: JobStore) -> None:
        """Also when that one's whole process group is killed."""
        code = "from airflow_provider_air_executor.hooks import AirExecutorHook\n"
        code += "AirExecutorHook().create_job('a', ['sleep 0.5; echo hi'])\n"
        starter = subprocess.Popen(
            [sys.executable, "-c", code + "input()"], stdin=subprocess.PIPE, start_new_session=True
        )
        wait_until(lambda: manager_status.is_running(store), what="the manager runs")
        os.killpg(starter.pid, signal.SIGKILL)
        starter.communicate()
        assert AirExecutorHook().wait_for_job("a", timeout=PATIENCE).state == "completed"

    def test_it_knows_nothing_of_the_airflow_task_that_started_it(
        self, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "d")
        monkeypatch.setenv("__AIRFLOW_SUPERVISOR_FD", "7")
        hook = AirExecutorHook()
        hook.create_job("a", ["env"])
        hook.wait_for_job("a", timeout=PATIENCE)
        log = hook.read_log("a", "task-1").text
        assert "AIRFLOW_CTX" not in log
        assert "SUPERVISOR" not in log

    def test_its_tasks_have_the_environment_of_a_fresh_process(self, store: JobStore, tmp_path: Path) -> None:
        """What is relative in PYTHONPATH does not mean the manager's directory; what Python has set is not there."""
        code = "from airflow_provider_air_executor.hooks import AirExecutorHook\n"
        code += "hook = AirExecutorHook(); hook.create_job('a', ['env']); hook.wait_for_job('a')"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("LANG", "LC_"))}
        environment["PYTHONPATH"] = ":mine"
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=PATIENCE)
        lines = read_log(store, "a", "task-1").text.splitlines()
        assert f"PYTHONPATH={os.path.realpath(tmp_path)}:{os.path.realpath(tmp_path)}/mine" in lines
        assert not [line for line in lines if line.startswith("LC_")]

    def test_modules_in_the_base_path_are_not_the_managers(self, store: JobStore) -> None:
        store.create_directories()
        (store.base_path / "json.py").write_text("raise RuntimeError('this is not the one')")
        hook = AirExecutorHook()
        hook.create_job("a", ["true"])
        assert hook.wait_for_job("a", timeout=PATIENCE).state == "completed"

    def test_a_setting_that_there_is_not_is_told_to_who_starts_it(
        self, store: JobStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.create_directories()
        store.config_path.write_text("pol_interval: 1\n")
        AirExecutorHook().create_job("a", ["true"])
        assert "there is no setting 'pol_interval'" in caplog.text

    @pytest.mark.parametrize("keep", [False, True])
    def test_its_tasks_do_not_find_the_secrets_of_airflow(
        self, store: JobStore, monkeypatch: pytest.MonkeyPatch, keep: bool
    ) -> None:
        """Whichever process has started it: the API server has them all."""
        settings = (
            "DATABASE__SQL_ALCHEMY_CONN",
            "DATABASE__SQL_ALCHEMY_CONN_ASYNC",
            "DATABASE__SQL_ALCHEMY_ENGINE_ARGS",  # Airflow's list of what is sensitive has it
            "CORE__SQL_ALCHEMY_CONN",
            "CORE__FERNET_KEY",
            "API__SECRET_KEY",
            "API_AUTH__JWT_SECRET",
            "CELERY__BROKER_URL",
            "CELERY__RESULT_BACKEND",
            "TEAM_A___CORE__FERNET_KEY",
        )
        names = [f"AIRFLOW__{name}{suffix}" for name in settings for suffix in ("", "_CMD", "_SECRET")]
        for name in names:
            monkeypatch.setenv(name, "{}" if name.endswith("ENGINE_ARGS") else "sqlite:////s3cr3t")
        monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__KEEP_SECRETS", str(keep))
        monkeypatch.setenv("AIRFLOW__CORE__PARALLELISM", "7")
        monkeypatch.setenv("PASSWORD_OF_A_USER", "7")
        hook = AirExecutorHook()
        hook.create_job("a", ["env", {"command": sys.executable, "args": ["-c", "from airflow.sdk import DAG"]}])
        assert keep or hook.wait_for_job("a", timeout=PATIENCE).state == "completed"  # a script may import Airflow
        hook.wait_for_job("a", timeout=PATIENCE)
        lines = hook.read_log("a", "task-1").text.splitlines()
        found = {line.partition("=")[0] for line in lines} & set(names)
        assert found == (set(names) if keep else {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"})
        assert keep or "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=sqlite://" in lines
        assert keep or not any("s3cr3t" in line for line in lines)
        assert {"AIRFLOW__CORE__PARALLELISM=7", "PASSWORD_OF_A_USER=7"} <= set(lines)

    def test_it_is_started_again_while_somebody_waits(self, store: JobStore) -> None:
        hook = AirExecutorHook()
        hook.create_job("a", ["sleep 1", "true"])
        pid = manager_status.pid(store)
        assert pid
        os.kill(pid, signal.SIGKILL)
        assert hook.wait_for_job("a", timeout=PATIENCE).state == "completed"

    def test_it_retires_after_the_configured_time(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AIRFLOW__AIR_EXECUTOR__EMBEDDED_IDLE_TIMEOUT", "2")
        AirExecutorHook().create_job("a", ["true"])
        wait_until(lambda: not manager_status.is_running(store), what="it has retired")
        assert store.get_job("a").state == "completed"


@pytest.mark.embedded
def test_jobs_through_the_hook(store: JobStore, tmp_path: Path) -> None:
    hook = AirExecutorHook()
    hook.create_job(
        "a", [{"id": "x", "bash": f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; [ -e {tmp_path}/ok ]"}]
    )
    with pytest.raises(JobTimeoutError, match="is still"):
        hook.wait_for_job("a", timeout=0.1)
    with pytest.raises(JobStateError):
        hook.delete_job("a")
    assert hook.add_tasks("a", [{"id": "y", "command": "true", "dependencies": ["x"]}]) == ("y",)
    wait_until(lambda: len(hook.get_tasks("a")) == 2, what="y is there")
    (tmp_path / "go").touch()
    failed = hook.wait_for_job("a", timeout=PATIENCE)
    assert failed.state == "failed"
    (tmp_path / "ok").touch()
    hook.retry_job("a")
    assert hook.wait_for_job("a", timeout=PATIENCE, after_attempt=failed.attempt).state == "completed"
    assert hook.cancel_job("a") is False
    assert hook.cancel_job("a", tasks=["x"]) is False
    hook.retry_job("a", ["y"])
    completed = hook.wait_for_job("a", timeout=PATIENCE, after_attempt=failed.attempt + 1)
    assert [task.attempt for task in hook.get_tasks("a")] == [2, 2]
    hook.retry_job("a", all=True)
    hook.wait_for_job("a", timeout=PATIENCE, after_attempt=completed.attempt)
    assert [task.attempt for task in hook.get_tasks("a")] == [3, 3]
    assert [job.name for job in hook.list_jobs()] == ["a"]
    hook.delete_job("a")
    with pytest.raises(JobNotFoundError):
        hook.get_job("a")
