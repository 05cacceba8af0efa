"""The queues of the executor: their settings, what a task refines, and what travels to another machine."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from airflow.executors import workloads

from airflow_provider_air_executor.executor import AirExecutorExecutor, database, task_log, travelling
from airflow_provider_air_executor.executor.command_line import command_line
from airflow_provider_air_executor.executor.queues import Options, Queue
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.workload import WORKLOAD_FILE, ExitCode
from tests.support.installation import ROOT
from tests.support.jobs import publish_tasks


def make_queue(tmp_path: Path, **given: Any) -> Queue:
    return Queue.of("hpc", str(tmp_path / "base-hpc"), 8, given)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"slots": 1}, "has no setting 'slots'"),
        ({"runner": "slrum"}, "there is no runner 'slrum'; there are kubernetes, local, slurm"),
        ({"base_path": "relative"}, "base_path must be an absolute path"),
        ({"max_running_tasks": 0}, "max_running_tasks must be a whole number"),
        ({"max_running_tasks": "many"}, "max_running_tasks must be a whole number"),
        ({"resources": {"memory": "much"}}, "resources.memory"),
        ({"resources": ["cpus"]}, "resources must be a mapping"),
        ({"slurm": {"array": "1-9"}}, "slurm: array: the option array of sbatch"),
        ({"kubernetes": {"imag": "x"}}, "kubernetes.imag"),
        ({"env": {"A=B": "x"}}, "env: 'A=B' cannot be the name"),
        ({"env": {"A": 1}}, "env: A must be a text"),
        ({"settings": "all"}, "settings must be true, false, or a list"),
        ({"settings": ["core.fernet_key"]}, "core.fernet_key never travels"),
        ({"settings": ["database"]}, "database never travels"),
        ({"settings": ["api.secret_key_cmd"]}, "api.secret_key_cmd never travels"),
        ({"server": "airflow.example.org"}, "server must be the address"),
        ({"python": "venv/bin/python"}, "python must be an absolute path"),
        ({"prologue": "module load x"}, "prologue must be a list of lines"),
        ({"image": "images/x.sif"}, "image must be an absolute path"),
        ({"image": "/x.sif", "runner": "kubernetes"}, "image is one of Apptainer"),
    ],
)
def test_a_setting_that_is_not_valid_is_named(tmp_path: Path, given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what) as error:
        make_queue(tmp_path, **given)
    assert "[air_executor] queues: 'hpc'" in str(error.value)


def test_a_task_refines_its_queue(tmp_path: Path) -> None:
    queue = make_queue(
        tmp_path, runner="slurm", resources={"cpus": 2, "memory": "2Gi"}, slurm={"qos": "low"}, env={"A": "1", "B": "1"}
    )
    given = {"resources": {"cpus": 4}, "slurm": {"partition": "gpu"}, "env": {"B": "2"}}
    found = queue.placement(Options.of({"air_executor": given}))
    assert (found.runner, found.env) == ("slurm", {"A": "1", "B": "2"})
    assert found.fields == {
        "resources": {"cpus": 4, "memory": "2Gi"},
        "slurm": {"qos": "low", "partition": "gpu"},
    }
    assert not queue.placement(Options.of({"air_executor": {"runner": "local"}})).is_on_cluster
    assert make_queue(tmp_path).placement(Options.of({"air_executor": {"runner": "slurm"}})).is_on_cluster


def test_a_task_on_a_cluster_has_memory_unless_somebody_says_otherwise(tmp_path: Path) -> None:
    def resources(**given: Any) -> Any:
        return make_queue(tmp_path, **given).placement(Options()).fields.get("resources")

    assert resources(runner="slurm") == {"memory": "1Gi"}
    assert resources(runner="slurm", resources={"cpus": 2}) == {"memory": "1Gi", "cpus": 2}
    assert resources(runner="slurm", slurm={"mem_per_cpu": "1G"}) is None
    assert resources() is None


@pytest.mark.parametrize(("lines", "code"), [(["A=from-it; export A"], 7), (["false", "true"], 78), (["exit 0"], 78)])
def test_a_prologue_comes_before_the_workload_or_in_place_of_it(tmp_path: Path, lines: list[str], code: int) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$*" = "-P -m airflow_provider_air_executor.workload" ] && [ $A = from-it ] && exit 7\n'
    )
    python.chmod(0o755)
    queue = make_queue(tmp_path, runner="slurm", prologue=lines, python=str(python))
    done = subprocess.run(command_line(queue, "slurm", tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ("the prologue of the queue has failed" in done.stderr) is (code == ExitCode.NOT_PREPARED)


def test_a_python_that_is_not_there_after_the_prologue(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, runner="slurm", prologue=["true"], python="/nowhere/python")
    done = subprocess.run(command_line(queue, "slurm", tmp_path), capture_output=True, text=True, check=False)
    assert (done.returncode, "there is no /nowhere/python" in done.stderr) == (ExitCode.NOT_PREPARED, True)


def test_an_image_has_the_directory_of_the_job(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, runner="slurm", image="/x.sif")
    words = ["apptainer", "exec", "--bind", str(tmp_path), "/x.sif", "python3", "-P", "-m"]
    assert command_line(queue, "slurm", tmp_path)[:-1] == words


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> AirExecutorExecutor:
    """The executor with the settings that docs/executor-several.md shows."""
    (shown,) = re.findall(
        r"^```ini\n(.*?)^```", (ROOT / "docs" / "executor-several.md").read_text(), re.MULTILINE | re.DOTALL
    )
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(shown)
    for section in settings.sections():
        for option, value in settings[section].items():
            monkeypatch.setenv(f"AIRFLOW__{section}__{option}".upper(), value)
    return AirExecutorExecutor(parallelism=256)


@pytest.mark.parametrize(
    ("queue", "options", "where"),
    [
        ("default", {}, ("local", "/var/lib/airflow/tasks", 8)),
        ("unlisted", {}, ("local", "/var/lib/airflow/tasks", 8)),
        ("unlisted", {"runner": "slurm"}, ("slurm", "/var/lib/airflow/tasks", 8)),
        ("hpc", {}, ("slurm", "/shared/airflow/tasks-hpc", 500)),
        ("hpc", {"runner": "local"}, ("local", "/shared/airflow/tasks-hpc", 500)),
        ("pods", {}, ("kubernetes", "/var/lib/airflow/tasks-pods", 200)),
    ],
)
def test_several_at_once(
    documented: AirExecutorExecutor, queue: str, options: dict[str, Any], where: tuple[str, str, int]
) -> None:
    found = documented.settings.queue(queue)
    placement = found.placement(Options.of({"air_executor": options}))
    assert (placement.runner, str(found.store.base_path), found.max_running_tasks) == where


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AirExecutorExecutor:
    queues = {"hpc": {"runner": "slurm", "env": {"AIRFLOW__CORE__DAGS_FOLDER": "/there"}}, "here": {}}
    given = {
        "AIRFLOW__AIR_EXECUTOR__BASE_PATH": str(tmp_path / "base"),
        "AIRFLOW__AIR_EXECUTOR__QUEUES": json.dumps(queues),
        "AIRFLOW__AIR_EXECUTOR__EMBEDDED": "False",
        "AIRFLOW__API_AUTH__JWT_SECRET": "secret of JWT" * 5,
        "AIRFLOW__CORE__FERNET_KEY_CMD": "cat secret",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://user:secret@db/airflow",
        "AIRFLOW__SECRETS__BACKEND_KWARGS": "secret",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(tmp_path / "logs"),
        "AIRFLOW__MINE__OPTION": "mine",
        "AIRFLOW__CORE__DAGS_FOLDER": "/dags",
        "AIRFLOW_CONN_WAREHOUSE": "http://user:password@warehouse",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    travelling._all.cache_clear()
    return AirExecutorExecutor(parallelism=8)


def hand_over(executor: AirExecutorExecutor, queue: str) -> tuple[JobStore, str]:
    fields = {"task_id": "t", "dag_id": "d", "run_id": "r", "try_number": 1, "map_index": -1, "pool_slots": 1}
    more = {"id": uuid.uuid4(), "dag_version_id": uuid.uuid4(), "external_executor_id": str(uuid.uuid4())}
    ti = workloads.TaskInstanceDTO.model_construct(**fields, **more, queue=queue, priority_weight=1)
    bundle = workloads.BundleInfo(name="dags-folder")
    given = workloads.ExecuteTask(
        token="secret-token", dag_rel_path=Path("d.py"), bundle_info=bundle, log_path="d.log", ti=ti
    )
    executor.queued_tasks[ti.key] = given
    executor.trigger_tasks(open_slots=8)
    return executor.settings.queue(queue).store, str(more["external_executor_id"])


def test_what_travels_is_in_the_file_of_the_workload_alone(executor: AirExecutorExecutor) -> None:
    store, name = hand_over(executor, "hpc")
    (task,) = store.get_tasks(name)
    assert (task.runner, task.append_env, task.env) == ("slurm", False, {"AIRFLOW__CORE__DAGS_FOLDER": "/there"})
    path = store.paths(name).attached(WORKLOAD_FILE)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    variables = json.loads(text)["environment"]
    assert variables["AIRFLOW__MINE__OPTION"] == "mine"
    assert variables["AIRFLOW_CONN_WAREHOUSE"] == "http://user:password@warehouse"
    assert variables["AIRFLOW_CONFIG"] == os.devnull
    assert variables["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == "sqlite://"
    assert "AIRFLOW__CORE__DAGS_FOLDER" not in variables  # the queue says otherwise
    assert "secret" not in text.replace("secret-token", "")
    for file in [file for file in store.paths(name).directory.rglob("*") if file.is_file() and file != path]:
        assert "secret" not in file.read_text()
        assert "password" not in file.read_text()


def test_on_this_machine_nothing_travels(executor: AirExecutorExecutor) -> None:
    store, name = hand_over(executor, "here")
    assert "environment" not in json.loads(store.paths(name).attached(WORKLOAD_FILE).read_text())
    assert (store.get_tasks(name)[0].runner, store.get_tasks(name)[0].append_env) == ("warm", True)


def test_some_settings_travel_or_none(executor: AirExecutorExecutor) -> None:
    chosen = ("mine", "core.dags_folder", "AIRFLOW_CONN_WAREHOUSE")
    found = travelling.variables(chosen, "http://server/", shares_home=False)
    assert found == {
        "AIRFLOW__MINE__OPTION": "mine",
        "AIRFLOW__CORE__DAGS_FOLDER": "/dags",
        "AIRFLOW_CONN_WAREHOUSE": "http://user:password@warehouse",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": "http://server/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite://",
    }
    assert travelling.variables(False, "http://server/", shares_home=True) == {}


def test_settings_are_there_before_airflow_is_imported(tmp_path: Path) -> None:
    """In a process of its own, with a workload that no Airflow knows: what it says of that is in Airflow's own form."""
    variables = {"AIRFLOW_HOME": str(tmp_path / "home"), "AIRFLOW_CONFIG": os.devnull, "MARK": "it has travelled"}
    (tmp_path / WORKLOAD_FILE).write_text(json.dumps({"environment": variables, "workload": {}}))
    code = (
        "import os, sys; from airflow_provider_air_executor import workload; code = workload.main();"
        "from airflow.configuration import AIRFLOW_HOME; print(code, AIRFLOW_HOME, os.environ['MARK'])"
    )
    environment = {"AIR_EXECUTOR_JOB_DIR": str(tmp_path), "PATH": os.defpath, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"65 {tmp_path}/home it has travelled"
    assert not (tmp_path / WORKLOAD_FILE).exists()
    assert not (tmp_path / "airflow").exists()


def test_a_task_that_has_just_begun_elsewhere_is_not_stuck(
    executor: AirExecutorExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cold supervisor on a busy node may take longer than Airflow waits, until it tells that its task runs."""
    queued: list[Any] = []
    monkeypatch.setattr(database, "renew_queued_time", queued.extend)
    for queue in ("hpc", "here"):
        store, name = hand_over(executor, queue)
        store.paths(name).attached(WORKLOAD_FILE).unlink()
    tracked = list(executor._tracked)
    assert [item.is_on_cluster for item in tracked] == [True, False]
    for item in tracked:
        assert item.sees_start()
    executor._submitter.renew_tokens(tracked)
    assert queued == [tracked[0].ti_id]
    tracked[0].started_at -= 3600
    executor._submitter.renew_tokens(tracked)
    assert len(queued) == 1


def test_the_log_of_a_task_says_once_what_it_waits_for(executor: AirExecutorExecutor, tmp_path: Path) -> None:
    store, name = hand_over(executor, "hpc")
    (tracked,) = executor._tracked
    for where in (
        "Slurm job 7, waiting (Priority)",
        "Slurm job 7, waiting (Resources)",
        "Slurm job 7, waiting (Priority)",
    ):
        publish_tasks(store, name, [store.get_tasks(name)[0].evolve(where=where)])
        for _ in range(2):
            task_log.say_where_they_wait([tracked])
    lines = [json.loads(line) for line in (tmp_path / "logs" / "d.log").read_text().splitlines()]
    assert [line["event"] for line in lines] == [
        f"Slurm job 7, waiting (Priority) (job {name})",
        f"Slurm job 7, waiting (Resources) (job {name})",
    ]
