"""A real Airflow of its own: scheduler, triggerer, dag-processor and API server in a temporary home, on free ports."""

from __future__ import annotations

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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from tests.processes import free_port
from tests.waiting import wait_until

COMPONENTS = ("api-server", "scheduler", "triggerer", "dag-processor")
_START_SECONDS = 180
_STOP_SECONDS = 20


class Installation:
    """A running Airflow; a context manager that leaves no file and no process behind.

    :param dags: the directory of DAG files.
    :param settings: more environment variables for all components.
    :param port: of the API server; default: a free one.
    """

    def __init__(self, dags: Path, settings: Mapping[str, str] | None = None, *, port: int | None = None) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="air-executor-airflow-"))
        self.base_path = self.home / "air-executor"  # of the embedded manager
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
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.home}/airflow.db?timeout=60",
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
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
            "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__TRIGGERER__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(free_port()),
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.5",
            "AIRFLOW__DAG_PROCESSOR__STALE_DAG_THRESHOLD": "600",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONUNBUFFERED": "1",
            # The standard input of a task is a socket, and a bash that finds one there takes itself for the outermost
            # shell of a remote login and reads ~/.bashrc, unless it stands within another shell.
            "SHLVL": "1",
            **(settings or {}),
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
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
        subprocess.run(
            [sys.executable, "-m", "airflow", "db", "migrate"],
            env=self.environment,
            check=True,
            capture_output=True,
        )
        for component in COMPONENTS:
            self.start_component(component)
        self.wait_until_healthy()

    def start_component(self, component: str, *, name: str = "", settings: Mapping[str, str] | None = None) -> int:
        """Start one of Airflow's processes; its output goes to a file in the home.

        :param name: by which it is known, if it is not the only one of its kind.
        :param settings: more environment variables for it alone.
        :return: its process id.
        """
        name = name or component
        with (self.home / f"{name}.out").open("ab") as output:
            process = self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "airflow", component],
                env={**self.environment, **(settings or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return process.pid

    def pid_of(self, name: str) -> int:
        """The process id of one of Airflow's processes."""
        return self._processes[name].pid

    def stop_component(self, name: str) -> None:
        """End one of Airflow's processes as an operator of it does."""
        process = self._processes.pop(name)
        process.terminate()
        process.wait(60)

    def kill_component(self, name: str) -> None:
        """``kill -9`` of one of Airflow's processes, and of nothing else."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        # What it has started itself, its log server for instance, keeps its ports and is not to be mourned.
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ProcessLookupError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == process.pid:
                    os.kill(int(path.parent.name), signal.SIGKILL)

    def wait_until_healthy(self) -> None:
        """Wait until all components answer."""
        wait_until(self._is_healthy, timeout=_START_SECONDS, what="Airflow is healthy", interval=0.5)

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
        """End everything that was started here, the embedded manager and what it runs included."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        give_up = time.monotonic() + _STOP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, give_up - time.monotonic()))
        for base_path in self.home.glob("air-executor*"):
            self.air_executor("stop", "--base-path", str(base_path), check=False)
        self._none_is_left()
        for process in self._processes.values():
            # A worker of a component may outlive it; as long as there is one, the group's number is not given away.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with contextlib.suppress(TimeoutError):
            wait_until(self._none_is_left, what="all processes have ended")
        shutil.rmtree(self.home, ignore_errors=True)

    def _none_is_left(self) -> bool:
        """Kill what is left; False if there was something, which may still be ending."""
        left = self._left_behind()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    def _left_behind(self) -> list[int]:
        """Processes of this installation, wherever they have moved to: its home is in their environment."""
        mark = os.fsencode(f"AIRFLOW_HOME={self.home}")
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def air_executor(self, *arguments: str, check: bool = True) -> str:
        """Run ``air-executor`` on the base path of this installation."""
        command = [sys.executable, "-m", "airflow_provider_air_executor.manager.cli", *arguments]
        environment = {**self.environment, "AIR_EXECUTOR_BASE_PATH": str(self.base_path)}
        done = subprocess.run(command, env=environment, check=check, capture_output=True, text=True)
        return done.stdout

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
        with urllib.request.urlopen(request, data, timeout=60) as answer:
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

        return wait_until(call, timeout=_START_SECONDS, what=f"DAG {dag_id} is parsed", interval=0.5)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Start a DAG run, and return its id."""
        self.wait_for_dag(dag_id)
        # Its row may be there a moment before the DAG itself.
        body = {"logical_date": None, "conf": dict(conf or {})}
        run_id: str = self._as_soon_as_known(dag_id, f"/dags/{dag_id}/dagRuns", body)["dag_run_id"]
        return run_id

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """The task instances of a DAG run, as the API tells them."""
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
        state: str = self.api(f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}")["state"]
        return state

    def task_states(self, dag_id: str, run_id: str) -> dict[str, str | None]:
        """The state of each task of a DAG run."""
        return {
            item["task_id"] + (f"[{item['map_index']}]" if item["map_index"] >= 0 else ""): item["state"]
            for item in self.tasks(dag_id, run_id)
        }

    def follow(
        self, dag_id: str, run_id: str, *, timeout: float = 180, on_change: Callable[[str, str], None] | None = None
    ) -> tuple[str, dict[str, list[str]]]:
        """Wait for the end of a DAG run.

        :return: its state, and the states that each task was seen in, in order.
        """
        seen: dict[str, list[str]] = {}

        def ended() -> str | None:
            state = self.run_state(dag_id, run_id)
            for task, task_state in self.task_states(dag_id, run_id).items():
                states = seen.setdefault(task, [])
                if task_state and (not states or states[-1] != task_state):
                    states.append(task_state)
                    if on_change is not None:
                        on_change(task, task_state)
            return state if state in ("success", "failed") else None

        try:
            state = wait_until(ended, timeout=timeout, what=f"run {run_id} of {dag_id} has ended")
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.explain(dag_id, run_id)}") from None
        return state or "", seen

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
