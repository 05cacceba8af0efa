"""A real Airflow of its own: scheduler, triggerer, dag-processor and API server in a temporary home, on free ports."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import sqlalchemy

from tests.support import prepared
from tests.support.ports import free_port
from tests.support.postgresql import PostgreSQL
from tests.support.prepared import Forked, Prepared, Server
from tests.support.processes import kill, kill_all_with_environment, pids, session
from tests.support.run import directory, only_one
from tests.support.waiting import PATIENCE, wait_until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_dags"
# With LocalExecutor a task that defers fails now and then: the end of its first part, reported late, is taken for that
# of its second one (apache/airflow #71172). The demo runs with it.
EXECUTOR = "airflow_provider_air_executor.executor.AirExecutorExecutor"
DEFERS = "Pausing task as DEFERRED"  # in the log of a task that has deferred, also if nobody has seen it so
_PAUSE = """
import sys
from airflow_provider_air_executor.jobs.manager_control import set_paused
from airflow_provider_air_executor.jobs.store import JobStore
set_paused(JobStore(sys.argv[1]), bool(sys.argv[2]))
"""
SINCE_3_3 = tuple(map(int, version("apache-airflow").split(".")[:2])) >= (3, 3)

COMPONENTS = ("api-server", "scheduler", "triggerer", "dag-processor")
# What several of them import, and the command line.
_IMPORTED = (
    "airflow.cli.cli_parser",
    "airflow.api_fastapi.app",
    "airflow.api_fastapi.core_api.routes.public",
    "airflow.api_fastapi.core_api.routes.ui",
    "airflow.api_fastapi.execution_api.routes",
    "airflow.dag_processing.manager",
    "airflow.jobs.scheduler_job_runner",
    "airflow.jobs.triggerer_job_runner",
    "airflow.providers_manager",
)
_OVER = {"success", "failed", "skipped", "upstream_failed", "removed"}  # states that a task instance ends with
_STOP_SECONDS = 20
_DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"


class Installation:
    """A running Airflow; a context manager that leaves no file and no process behind.

    :param dags: the directory of DAG files.
    :param settings: more environment variables for all components.
    :param port: of the API server; default: a free one.
    :param postgresql: whether its database is in a PostgreSQL server of its own instead of a SQLite file.
    """

    def __init__(
        self,
        dags: Path,
        settings: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        postgresql: bool = False,
    ) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="air-executor-airflow-"))
        (self.home / "airflow.cfg").touch()  # else all components write one at the same time
        self.base_path = self.home / "air-executor"  # of the embedded manager
        self.commands_at: Callable[..., list[str]] = lambda *words: list(words)  # run where the base path is
        self.path_there: Path | None = None  # of it, if another machine has it
        self.tasks_path = self.home / "air-executor-tasks"  # of the executor
        self.port = port or free_port()
        self.url = f"http://localhost:{self.port}"
        self.jobs_url = f"{self.url}/plugin/air-executor"  # the page of all jobs, within Airflow's own
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "AIR_EXECUTOR"))},
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            # Four components share one SQLite file: on a slow machine the default of 5 s to wait for a lock is short.
            _DATABASE: f"sqlite:///{self.home}/airflow.db?timeout=300",
            # A task whose first request takes longer than 5 s fails before it has begun, and a DAG file that takes
            # longer than 30 s is not there.
            "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "300",
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
            "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "600",
            "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "300",
            # An API server that takes its time to start is away for more than the default of 5 minutes then.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "3600",
            # With the default of 15 connections the API server stands still for half a minute when ten tasks start.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_MAX_OVERFLOW": "-1",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__PORT": str(self.port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__WORKERS": "1",
            # On its first start, each component makes up what is missing of these, another one for itself.
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__TRIGGERER__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            # A look of an idle scheduler takes some 40 ms of processor time; in tests several of them share a machine.
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "2" if directory() else "1",
            "AIRFLOW__DAG_PROCESSOR__STALE_DAG_THRESHOLD": "86400",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",  # no test changes its DAGs
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            # The standard input of a task is a socket, and a bash that finds one there takes itself for the outermost
            # shell of a remote login and reads ~/.bashrc, unless it stands within another shell.
            "SHLVL": "1",
            **(settings or {}),
        }
        self._has_server = postgresql
        self._server: PostgreSQL | None = None
        self._engine: sqlalchemy.Engine | None = None
        self._processes: dict[str, subprocess.Popen[Any]] = {}
        self._prepared: list[tuple[dict[str, str], Server]] = []  # by the environment that it was started with
        self._token = ""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- processes -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Create the database, start all components, and wait until they answer."""
        self.create_database()
        for component in COMPONENTS:
            self.start_component(component)
        self.wait_until_healthy()

    def create_database(self) -> None:
        """Copy the database that has been made once for all tests of a run."""
        with only_one("airflow-on-postgresql" if self._has_server else "airflow.db") as template:
            if not template.exists():
                (self._migrate_server if self._has_server else self._migrate_file)(template)
            if self._has_server:
                self._server = PostgreSQL(template).__enter__()
                self.environment[_DATABASE] = self._server.url
            else:
                shutil.copy(template, self.home / "airflow.db")

    def _migrate_file(self, file: Path) -> None:
        new = file.with_suffix(".new")
        self._migrate(f"sqlite:///{new}")
        new.rename(file)

    def _migrate_server(self, home: Path) -> None:
        with PostgreSQL() as server:
            self._migrate(server.url)
            server.stop()
            server.home.rename(home)

    def _migrate(self, url: str) -> None:
        self.airflow("db", "migrate", settings={_DATABASE: url})

    def airflow(self, *arguments: str, settings: Mapping[str, str] | None = None) -> str:
        """Run ``airflow`` in this installation.

        :return: what it prints.
        :raises subprocess.CalledProcessError: if it fails; its output is shown.
        """
        environment = {**self.environment, **(settings or {})}
        server = None if settings else self._server_of_prepared()
        if server is None:
            command = [sys.executable, "-m", "airflow", *arguments]
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        else:
            process = Prepared(arguments, environment, stdout=True, server=server)
        stdout, stderr = process.communicate()
        if process.returncode:
            print(stdout + stderr)
            raise subprocess.CalledProcessError(process.returncode, process.args, stdout, stderr)
        return stdout

    def _server_of_prepared(self) -> Server | None:
        """What the processes of this Airflow are forked from; None if they are started as a user starts them."""
        if not prepared.in_use:
            return None
        if not self._prepared or self._prepared[-1][0] != self.environment:
            self._prepared.append((dict(self.environment), Server("airflow", _IMPORTED, self.environment)))
        return self._prepared[-1][1]

    def start_component(self, component: str, *, name: str = "", settings: Mapping[str, str] | None = None) -> int:
        """Start one of Airflow's processes; its output goes to a file in the home.

        :param name: by which it is known, if it is not the only one of its kind.
        :param settings: more environment variables for it alone.
        :return: its process id.
        """
        name = name or component
        server = None if settings else self._server_of_prepared()
        with (self.home / f"{name}.out").open("ab") as output, open(os.devnull, "rb") as nothing:
            if server is not None:
                descriptors = [nothing.fileno(), output.fileno(), output.fileno()]
                self._processes[name] = Forked(
                    server, [component], self.environment, descriptors, start_new_session=True
                )
            else:
                self._processes[name] = subprocess.Popen(
                    [sys.executable, "-m", "airflow", component],
                    env={**self.environment, **(settings or {})},
                    stdin=nothing,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        return self._processes[name].pid

    def pid_of(self, name: str) -> int:
        """The process id of one of Airflow's processes."""
        return self._processes[name].pid

    def stop_component(self, name: str) -> None:
        """End one of Airflow's processes as an operator of it does."""
        process = self._processes.pop(name)
        process.terminate()
        process.wait(PATIENCE)

    def kill_component(self, name: str) -> None:
        """``kill -9`` of one of Airflow's processes, and of nothing else."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        # What it has started itself, its log server for instance, keeps its ports and is not to be mourned.
        kill(pid for pid in pids() if session(pid) == process.pid)

    def wait_until_healthy(self) -> None:
        """Wait until all components answer."""
        wait_until(self._is_healthy, what="Airflow is healthy", interval=0.5)

    def _is_healthy(self) -> bool:
        for component, process in self._processes.items():
            if process.poll() is not None:
                output = (self.home / f"{component}.out").read_text(errors="replace")
                raise RuntimeError(f"airflow {component} ended:\n{output[-4000:]}")
        try:
            with urllib.request.urlopen(f"{self.url}/api/v2/monitor/health", timeout=5) as answer:
                health = json.load(answer)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        parts = ("metadatabase", "scheduler", "triggerer", "dag_processor")
        return all(health.get(part, {}).get("status") == "healthy" for part in parts)

    def close(self) -> None:
        """End everything that was started here, the embedded manager and what it runs included; once is enough."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        for base_path in self.home.glob("air-executor*"):
            self.air_executor("stop", "--base-path", str(base_path), check=False)
        for process in self._processes.values():
            # A worker of a component may outlive it; as long as there is one, the group's number is not given away.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        while self._prepared:
            self._prepared.pop()[1].close()
        kill_all_with_environment(f"AIRFLOW_HOME={self.home}")
        if self._engine is not None:
            self._engine.dispose()
        if self._server is not None:
            self._server.__exit__(None, None, None)
            self._server = None
        shutil.rmtree(self.home, ignore_errors=True)

    def air_executor(self, *arguments: str, check: bool = True) -> str:
        """Run ``air-executor`` on the base path of this installation."""
        command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", *arguments]
        environment = {**self.environment, "AIR_EXECUTOR_BASE_PATH": str(self.base_path)}
        done = subprocess.run(command, env=environment, check=check, capture_output=True, text=True)
        return done.stdout

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let the manager of the base path start nothing; the base path need not be there yet."""

        def say(paused: str) -> None:
            words = sys.executable, "-c", _PAUSE, str(self.path_there or self.base_path), paused
            subprocess.run(self.commands_at(*words), cwd=ROOT, check=True)

        say("yes")
        try:
            yield
        finally:
            say("")

    # -- Airflow's API -------------------------------------------------------------------------------------

    def api(
        self, path: str, body: object = None, *, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Call Airflow's public API."""
        if not self._token:
            self._token = self._request("/auth/token", None, "GET", {})["access_token"]
        return self._request(f"/api/v2{path}", body, method or ("GET" if body is None else "POST"), headers or {})

    def _request(self, path: str, body: object, method: str, headers: Mapping[str, str]) -> Any:
        request = urllib.request.Request(f"{self.url}{path}", method=method, headers=dict(headers))
        request.add_header("Content-Type", "application/json")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, data, timeout=PATIENCE) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def wait_for_dag(self, dag_id: str) -> None:
        """Wait until a DAG file has been parsed."""
        self._as_soon_as_known(dag_id, f"/dags/{dag_id}")

    def _as_soon_as_known(self, dag_id: str, path: str, body: object = None) -> Any:
        """Call the API about a DAG, again as long as it does not know it."""

        def call() -> Any:
            try:
                return self.api(path, body)
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise
                return None

        return wait_until(call, what=f"DAG {dag_id} is parsed", interval=0.5)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a DAG run, and return its id."""
        self.wait_for_dag(dag_id)
        # Its row may be there a moment before the DAG itself.
        body = {"logical_date": None, "conf": dict(conf or {})}
        run_id: str = self._as_soon_as_known(dag_id, f"/dags/{dag_id}/dagRuns", body)["dag_run_id"]
        return run_id

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a DAG run, as the API lists them."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances?limit=100"
        found: list[dict[str, Any]] = self.api(path)["task_instances"]
        return found

    def clear(self, dag_id: str, run_id: str, *task_ids: str | tuple[str, int]) -> None:
        """Let tasks run again, also if they run at the moment; one of a mapped task is named with its index."""
        body = {"dry_run": False, "only_failed": False, "dag_run_id": run_id, "task_ids": list(task_ids)}
        self.api(f"/dags/{dag_id}/clearTaskInstances", body)

    def mark(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Give a task another state, as a user does."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}"
        self.api(path, {"new_state": state}, method="PATCH")

    def run_state(self, dag_id: str, run_id: str) -> str:
        """The state of a DAG run."""
        rows = self._query("SELECT state FROM dag_run WHERE dag_id = :dag_id AND run_id = :run_id", dag_id, run_id)
        return str(rows[0][0])

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """The state of each task of a DAG run."""
        rows = self._query(
            "SELECT task_id, map_index, state FROM task_instance WHERE dag_id = :dag_id AND run_id = :run_id",
            dag_id,
            run_id,
        )
        return {task_id + (f"[{index}]" if index >= 0 else ""): state for task_id, index, state in rows}

    def _query(self, sql: str, dag_id: str, run_id: str) -> list[Any]:
        """Ask the database about a DAG run, since each answer of the API server takes some 40 ms of its time.

        That is for what is asked again and again.
        """
        if self._engine is None:
            engine = sqlalchemy.create_engine(self.environment[_DATABASE])
            self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        with self._engine.connect() as connection:
            return list(connection.execute(sqlalchemy.text(sql), {"dag_id": dag_id, "run_id": run_id}))

    def follow(
        self,
        dag_id: str,
        run_id: str,
        *,
        timeout: float = PATIENCE,
        on_change: Callable[[str, str], None] | None = None,
    ) -> tuple[str, dict[str, list[str]]]:
        """Wait for the end of a DAG run.

        :return: its state, and the states that each task was seen in, in order.
        """
        seen: dict[str, list[str]] = {}

        def ended() -> str | None:
            states = self.task_states(dag_id, run_id)
            for task, task_state in states.items():
                known = seen.setdefault(task, [])
                if task_state and (not known or known[-1] != task_state):
                    known.append(task_state)
                    if on_change is not None:
                        on_change(task, task_state)
            if not states or not _OVER.issuperset(states.values()):
                return None
            state = self.run_state(dag_id, run_id)
            return state if state in ("success", "failed") else None

        try:
            state = wait_until(ended, timeout=timeout, what=f"run {run_id} of {dag_id} has ended", interval=0.5)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.explain(dag_id, run_id)}") from None
        return state or "", seen

    def must_go_on(self, dag_id: str, run_id: str) -> None:
        """Nobody need wait for what a DAG run does if it has failed.

        :raises RuntimeError: if it has; with all that is known of it.
        """
        if self.run_state(dag_id, run_id) == "failed":
            raise RuntimeError(f"run {run_id} of {dag_id} has failed:\n{self.explain(dag_id, run_id)}")

    def explain(self, dag_id: str, run_id: str) -> str:
        """The state and the log of each task of a DAG run that did not go as it should."""
        parts = []
        for task, state in self.task_states(dag_id, run_id).items():
            try:
                log = self.log(dag_id, run_id, task)
            except (urllib.error.URLError, KeyError) as error:
                log = f"no log: {error}"
            parts.append(f"--- {task}: {state}\n{log}")
        for component in COMPONENTS:
            output = (self.home / f"{component}.out").read_text(errors="replace")
            wrong = [line for line in output.splitlines() if "rror" in line or "Traceback" in line]
            parts.append(f"--- {component}\n" + "\n".join(wrong[-20:]))
        return "\n".join(parts)

    def xcom(self, dag_id: str, run_id: str, task_id: str, key: str = "return_value") -> Any:
        """A value that a task has left in XCom."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries/{key}"
        return self.api(f"{path}?deserialize=true")["value"]

    def links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str]:
        """The extra links of a task, by their names."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/links"
        found: dict[str, str] = self.api(path)["extra_links"]
        return found

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1) -> str:
        """The log of a task, as the UI shows it."""
        path = f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/logs/{try_number}"
        lines = self.api(f"{path}?full_content=true")["content"]
        return "\n".join(_as_text(line) for line in lines)


def _as_text(line: str | dict[str, Any]) -> str:
    if isinstance(line, str):
        return line
    errors = [str(error.get("exc_value", "")) for error in line.get("error_detail") or ()]
    return "\n".join([str(line.get("event", "")), *errors])
