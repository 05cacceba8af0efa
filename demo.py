"""What `make demo` and `make up` run: a real Airflow, in a temporary home, with the example DAGs.

The demo runs a DAG that submits a job and waits deferred. It exits with 0 if the DAG succeeds and its wait was seen
deferred, and with 1 otherwise. `--up` keeps Airflow running until it is interrupted. Nothing is left behind.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from urllib.error import HTTPError

from tests.support.installation import Installation
from tests.support.ports import free_port

HERE = Path(__file__).resolve().parent
DAG_ID = "example_submit_and_wait"
PORT = 8080  # Airflow's own
# With LocalExecutor a task that defers fails now and then (apache/airflow #71172); the next try finds its job.
RETRIES = {"AIRFLOW__CORE__DEFAULT_TASK_RETRIES": "3", "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1"}


def main(dag_id: str) -> int:
    """Start an Airflow, run one of the example DAGs and show what happens.

    :return: the exit code.
    """
    say = _Clock().say
    say("starting Airflow: API server, scheduler, triggerer, dag-processor")
    with Installation(HERE / "example_dags", RETRIES) as airflow:
        say(f"Airflow runs at {airflow.url}")
        code = show(airflow, dag_id, say)
        print(f"The jobs' page was at {airflow.jobs_url}. To keep Airflow running and look at it: make up")
    return code


class _Clock:
    """Prints lines with the seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


def show(airflow: Installation, dag_id: str, say: Callable[[str], None]) -> int:
    """Run a DAG and show what happens.

    :param say: prints a line.
    :return: 0 if the DAG succeeds and its wait was seen deferred, 1 otherwise.
    """
    run_id = airflow.trigger(dag_id)
    say(f"DAG {dag_id}, run {run_id}")
    state, seen = airflow.follow(
        dag_id, run_id, on_change=lambda task, task_state: say(f"  Airflow task {task}: {task_state}")
    )
    say(f"DAG run: {state}")
    print()
    show_jobs(airflow, run_id)
    show_logs(airflow, dag_id, run_id, list(seen))
    deferred = any("deferred" in states for states in seen.values())
    if not deferred:
        say("no task was seen deferred")
    return 0 if state == "success" and deferred else 1


def up(port: int) -> int:
    """Run Airflow with the example DAGs until SIGINT or SIGTERM.

    :param port: where its UI is; 0: at 8080 if nobody listens there, else anywhere.
    :return: the exit code.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("Starting Airflow: API server, scheduler, triggerer, dag-processor ...", flush=True)
    try:
        with Installation(HERE / "example_dags", port=port or (PORT if is_free(PORT) else free_port())) as airflow:
            airflow.trigger("example_diamond")
            print(f"\nAirflow (no password):       {airflow.url}")
            print(f"Jobs, also in menu Browse:   {airflow.jobs_url}")
            command = Path(sys.executable).with_name("air-executor")  # the virtual environment need not be active there
            print(f"In a terminal:               {command} status --watch --base-path {airflow.base_path}")
            print("Start example DAGs in the UI. Ctrl-C ends everything and leaves nothing behind.", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    return 0


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def show_jobs(airflow: Installation, run_id: str) -> None:
    """Print each job of a DAG run: how its tasks ended, and what they printed."""
    from airflow_provider_air_executor.jobs.store import JobStore

    for job in JobStore(airflow.base_path).list_jobs():
        if job.submitted_by is not None and job.submitted_by.run_id == run_id:
            print(f"$ air-executor status {job.name}")
            print(airflow.air_executor("status", job.name))
            print(f"$ air-executor logs {job.name}")
            print(airflow.air_executor("logs", job.name))


def show_logs(airflow: Installation, dag_id: str, run_id: str, tasks: list[str]) -> None:
    """Print what the Airflow log of each task says about the job."""
    for task in tasks:
        print(f"Airflow's log of task {task}:")
        try:
            lines = airflow.log(dag_id, run_id, task).splitlines()
        except HTTPError as error:
            if error.code != HTTPStatus.NOT_FOUND:
                raise
            lines = ["it has none: the task failed before it began, or did not run"]
        for line in lines:
            if any(word in line for word in ("job ", "|", "printed", "tasks done", "task done", "completed", "failed")):
                print(f"    {line}")
        print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dag_id", nargs="?", default=DAG_ID, help="one of example_dags/ (default: %(default)s)")
    parser.add_argument("--up", action="store_true", help="run until interrupted, for a look at the UI")
    parser.add_argument("--port", type=int, default=0, help="of the UI with --up (default: 8080 if it is free)")
    arguments = parser.parse_args()
    sys.exit(up(arguments.port) if arguments.up else main(arguments.dag_id))
