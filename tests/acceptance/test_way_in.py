"""The way in, as it is written down: the commands of the README, and the services of the compose file as processes."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.installation import DEFERS, Installation
from tests.support.jobs import read_log
from tests.support.postgresql import PostgreSQL
from tests.support.processes import kill_all_with_environment
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.airflow

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docs" / "install" / "compose.yaml"
# What the tests set besides: ports that are free, and patience, see Installation.
_OF_THE_TESTS = re.compile(
    r"AIRFLOW__(API__(PORT|BASE_URL|WORKERS)|CORE__EXECUTION_API_SERVER_URL|CORE__DAGBAG_IMPORT_TIMEOUT"
    r"|DATABASE__SQL_ALCHEMY_(CONN|MAX_OVERFLOW)|DAG_PROCESSOR__\w+|LOGGING__\w+|SCHEDULER__\w+|TRIGGERER__\w+|WORKERS__\w+)"
)
_LISTED = r"^\$ (.*)$"


class QuickStart(Installation):
    """Airflow as a newcomer starts it, with the commands of the README, in a home of his own."""

    def __init__(self) -> None:
        super().__init__(Path())
        (self.home / "airflow.cfg").unlink()
        text = (ROOT / "README.md").read_text()
        block = re.search(r"```console\n(\$ python3 -m venv.*?)```", text, re.DOTALL)
        assert block is not None
        self.commands = re.findall(_LISTED, block[1], re.MULTILINE)
        self.airflow_home = self.home / "air" / "home"
        self.base_path = self.airflow_home / "air-executor"
        kept = {
            key: value
            for key, value in self.environment.items()
            if not key.startswith("AIRFLOW") or _OF_THE_TESTS.fullmatch(key)
        }
        self.environment = {**kept, "HOME": str(self.home)}

    def start(self) -> None:
        venv, install, *others = self.commands
        create, activate = venv.split(" && ")
        self._run(create)
        self._lend_packages(install)
        script = "\n".join(["set -e", activate, *others[:-1], "env -0 > ~/environment", f"exec {others[-1]}"])
        with (self.home / "standalone.out").open("wb") as output:
            self._processes["standalone"] = subprocess.Popen(
                ["bash", "-c", script],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.wait_until_healthy()

    def _lend_packages(self, install: str) -> None:
        """Those of the tests take the place of what would be installed: no index of packages is asked."""
        constraints = re.fullmatch(r"pip install \. --constraint (\S+)", install)
        assert constraints is not None
        assert (ROOT / constraints[1]).is_file()
        venv = self.home / "air"
        (packages,) = venv.glob("lib/python*/site-packages")
        (packages / "lent.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        program = venv / "bin" / "airflow"
        program.write_text('#!/bin/sh\nexec python -m airflow "$@"\n')
        program.chmod(0o755)

    def _run(self, line: str, environment: dict[str, str] | None = None) -> str:
        environment = environment or self.environment
        command = ["bash", "-c", line]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        return done.stdout

    def in_the_second_terminal(self, line: str) -> str:
        """What a command prints that is typed with the environment of the first ones."""
        pairs = (entry.partition("=") for entry in (self.home / "environment").read_text().split("\0")[:-1])
        return self._run(line, {key: value for key, _, value in pairs})

    def explain(self, dag_id: str, run_id: str) -> str:
        logs = [self.log(dag_id, run_id, task) for task in self.task_states(dag_id, run_id)]
        return "\n".join([*logs, (self.home / "standalone.out").read_text(errors="replace")[-4000:]])

    def close(self) -> None:
        self.air_executor("stop", "--base-path", str(self.base_path), check=False)
        super().close()
        kill_all_with_environment(f"AIRFLOW_HOME={self.airflow_home}")


def test_the_readme_leads_to_a_job_that_is_seen_in_the_ui() -> None:
    with QuickStart() as airflow:
        assert len(airflow.commands) <= 6
        run_id = airflow.trigger("hello")  # as the button does
        assert airflow.follow("hello", run_id)[0] == "success", airflow.explain("hello", run_id)
        (job,) = _jobs_of_the_page(airflow)
        assert (job["state"], job["owner"]["dag_id"]) == ("completed", "hello")
        assert sum(job["task_counts"].values()) == 4
        (line,) = re.findall(r"`(airflow air-executor status)` shows the same", (ROOT / "README.md").read_text())
        assert job["name"] in airflow.in_the_second_terminal(line)


def _jobs_of_the_page(airflow: Installation) -> list[dict[str, Any]]:
    """What the page of jobs asks for."""
    airflow.api("/version")  # gets a token
    found: list[dict[str, Any]] = airflow._request("/air-executor/api/jobs", None, "GET", {})["jobs"]
    return found


# With LocalExecutor a task that defers fails now and then (apache/airflow #71172); the next try finds its job.
DAG = """
from datetime import timedelta

from airflow.sdk import dag
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator

@dag(schedule=None, is_paused_upon_creation=False)
def through_compose():
    AirExecutorSubmitOperator(task_id="deferred", deferrable=True, retries=9, retry_delay=timedelta(seconds=1), tasks=[
        {"id": "look", "bash": "sleep 2; env"},
        {"id": "give", "bash": "echo '{\\"rows\\": 3}' > $AIR_EXECUTOR_OUTPUT", "dependencies": ["look"]},
    ])
through_compose()
"""
SECRETS = {name: f"secret-of-the-tests-{name.lower()}" for name in ("POSTGRES_PASSWORD", "JWT_SECRET", "SECRET_KEY")}


class Compose(Installation):
    """The services of the compose file, each as a process of this machine in place of a container.

    Commands and environment are those of the file. Paths of volumes, names of hosts and ports are others, PostgreSQL is
    that of this machine, and all run as the user who runs the tests.
    """

    def __init__(self) -> None:
        super().__init__(Path())
        self._patience = {key: value for key, value in self.environment.items() if _OF_THE_TESTS.fullmatch(key)}
        self._system = {key: value for key, value in self.environment.items() if not key.startswith("AIRFLOW")}
        fernet_key = self.environment["AIRFLOW__CORE__FERNET_KEY"]
        self.services = _interpolated(
            yaml.safe_load(COMPOSE.read_text())["services"],
            {"AIRFLOW_IMAGE": "none", "FERNET_KEY": fernet_key, **SECRETS},
        )
        self._postgres = PostgreSQL()
        for path in (self.base_path, self.home / "dags", self.home / "logs"):
            path.mkdir(mode=0o700)
        (self.home / "dags" / "through_compose.py").write_text(DAG)

    def start(self) -> None:
        self._postgres.__enter__()
        database = psycopg2.connect(host="127.0.0.1", port=self._postgres.port, user="airflow", dbname="postgres")
        database.autocommit = True
        database.cursor().execute("CREATE DATABASE airflow")
        database.close()
        self.environment = self._environment_of("scheduler")
        started = {"postgres", "prepare"}  # the latter gives a new volume to its user
        while len(started) < len(self.services):
            ready = [
                name
                for name, service in self.services.items()
                if name not in started and started.issuperset(service.get("depends_on", ()))
            ]
            assert ready, f"nothing can start after {started}"
            for name in ready:
                self._wait_for_health_of(self.services[name].get("depends_on", {}))
                self._start(name)
                started.add(name)
        self.wait_until_healthy()

    def _wait_for_health_of(self, others: dict[str, dict[str, str]]) -> None:
        for name, wanted in others.items():
            if wanted["condition"] == "service_healthy" and name in self._processes:
                _, *command = self.services[name]["healthcheck"]["test"]
                command = [word.replace("http://localhost:8080", self.url) for word in command]
                wait_until(lambda command=command: _succeeds(command), what=f"{name} is healthy", interval=0.5)

    def _start(self, name: str) -> None:
        service = self.services[name]
        with (self.home / f"{name}.out").open("ab") as output:
            process = subprocess.Popen(
                [*service.get("entrypoint", ()), *service["command"]],
                env=self._environment_of(name),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if service.get("restart") == "no":
            assert process.wait(PATIENCE) == 0, (self.home / f"{name}.out").read_text()
        else:
            self._processes[name] = process

    def _environment_of(self, name: str) -> dict[str, str]:
        given = {key: self._here(value) for key, value in self.services[name]["environment"].items()}
        if name == "manager":
            return {**self._system, **given}
        of_the_image = {"AIRFLOW_HOME": str(self.home)}
        everyone = {"AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True"}  # the tests do not log in
        return {**self._system, **of_the_image, **self._patience, **everyone, **given}

    def _here(self, text: str) -> str:
        """A value of the file, with the places of this machine."""
        for theirs, ours in (
            ("/var/lib/air-executor", str(self.base_path)),
            ("@postgres:5432/", f"@127.0.0.1:{self._postgres.port}/"),
            ("http://api-server:8080", self.url),
        ):
            text = text.replace(theirs, ours)
        return text

    def pid_of(self, name: str) -> int:
        return self._processes[name].pid

    def close(self) -> None:
        super().close()
        self._postgres.__exit__(None, None, None)


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def _interpolated(value: Any, known: dict[str, str]) -> Any:
    """What docker compose makes of ``${NAME:?words}``."""
    if isinstance(value, dict):
        return {key: _interpolated(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, known) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: known[found[1]], value)
    return value


@pytest.mark.postgresql
def test_the_services_of_the_compose_file_run_a_dag() -> None:
    with Compose() as airflow:
        store = JobStore(airflow.base_path)
        run_id = airflow.trigger("through_compose")
        state, _ = airflow.follow("through_compose", run_id)
        assert state == "success", airflow.explain("through_compose", run_id)
        (found,) = airflow.tasks("through_compose", run_id)
        if found["try_number"] == 1:  # Airflow may know nothing of a try that failed when it deferred
            assert DEFERS in airflow.log("through_compose", run_id, "deferred")
        assert airflow.xcom("through_compose", run_id, "deferred") == {"give": {"rows": 3}}
        (job,) = store.list_jobs()
        assert manager_status.pid(store) == airflow.pid_of("manager")
        printed = read_log(store, job.name, "look").data.decode()
        assert "AIRFLOW__" not in printed
        assert not any(secret in printed for secret in SECRETS.values())
        assert [shown["name"] for shown in _jobs_of_the_page(airflow)] == [job.name]
