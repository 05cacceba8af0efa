"""DAGs that the executor is tried with. Each task that counts writes a line to a file: what was run is what it says."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.providers.standard.sensors.python import PythonSensor
from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
from airflow.sdk import (
    DAG,
    BaseOperator,
    Context,
    DeadlineAlert,
    DeadlineReference,
    SyncCallback,
    get_current_context,
    task,
)

MARKS = Path(os.environ.get("EXECUTOR_TEST_MARKS", "/tmp"))
COMMON: dict[str, Any] = {
    "schedule": None,
    "start_date": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    "max_active_tasks": 200,
    "max_active_runs": 50,
}


def mark(text: str) -> None:
    """Leave a line of evidence."""
    run_id = get_current_context()["run_id"]
    with (MARKS / run_id.replace("/", "_")).open("a") as file:
        file.write(text + "\n")


def work(seconds: float | str = 0.0) -> None:
    """Say that it begins, work, and say that it ends."""
    context = get_current_context()
    seconds = float(seconds)
    name = f"{context['ti'].task_id}.{context['ti'].map_index}"
    mark(f"begin {name} {context['ti'].try_number} {os.getpid()}")
    while (MARKS / "hold").exists():
        time.sleep(0.05)
    time.sleep(seconds)
    mark(f"end {name} {context['ti'].try_number} {os.getpid()}")


with DAG("mapped", **COMMON):

    @task
    def number(value: int) -> int:
        """One of twenty."""
        work()
        return value

    @task
    def total(values: list[int]) -> int:
        """Their sum."""
        return sum(values)

    total(number.expand(value=list(range(20))))  # type: ignore[arg-type]


class Defers(BaseOperator):
    """Waits in the triggerer, and is done when it is back in a worker."""

    def execute(self, context: Context) -> None:
        """Defer."""
        self.defer(trigger=TimeDeltaTrigger(dt.timedelta(seconds=8)), method_name="resume")

    def resume(self, context: Context, event: Any = None) -> None:
        """Be done."""


with DAG("deferring", **COMMON):
    Defers(task_id="wait") >> PythonOperator(task_id="after", python_callable=work)


def is_poked_thrice() -> bool:
    """Whether it has been asked for the third time in this run."""
    run_id = get_current_context()["run_id"]
    mark("poke")
    return (MARKS / run_id).read_text().count("poke") >= 3


with DAG("rescheduling", **COMMON):
    PythonSensor(task_id="wait", python_callable=is_poked_thrice, mode="reschedule", poke_interval=1, timeout=120)


def fail_once() -> None:
    """Raise in the first try."""
    try_number = get_current_context()["ti"].try_number
    mark(f"try {try_number}")
    if try_number == 1:
        raise ValueError("not yet")


with DAG("raising", **COMMON):
    PythonOperator(task_id="raises", python_callable=fail_once, retries=1, retry_delay=dt.timedelta(seconds=1))


with DAG("long", **COMMON):
    # In a session of its own, and stubborn: what a naive kill leaves behind.
    BashOperator(
        task_id="long",
        bash_command=f"echo $$ >> {MARKS}/pids; (trap '' TERM; echo $BASHPID >> {MARKS}/pids; exec sleep 300) & "
        "if [ {{ ti.try_number }} = 1 ]; then sleep 300; fi; kill -9 $!; echo again",
    )


with DAG("missing", **COMMON):
    BashOperator(task_id="missing", bash_command="there-is-no-such-command")


with DAG("options", **COMMON):
    PythonOperator(
        task_id="env",
        python_callable=lambda: mark(f"env {os.environ.get('FLAVOUR')}"),
        executor_config={"air_executor": {"env": {"FLAVOUR": "sweet"}}},
    )
    PythonOperator(
        task_id="times_out",
        python_callable=work,
        op_args=[300],
        executor_config={"air_executor": {"timeout": 10}},
    )
    PythonOperator(task_id="invalid", python_callable=work, executor_config={"air_executor": {"memory": "1G"}})
    PythonOperator(
        task_id="too_long",
        python_callable=work,
        executor_config={"air_executor": {"env": {"LONG": 200_000 * "x"}}},
    )


with DAG("where", **COMMON) as where:
    PythonOperator(task_id="here", python_callable=lambda: mark(f"{os.getcwd()} {os.environ.get('OF_A_SHELL')}"))


with DAG("straying", **COMMON):
    # It has dropped all that it could be known by.
    BashOperator(
        task_id="strays",
        bash_command=f"env -i setsid sh -c 'echo $$ >> {MARKS}/strays; sleep 600; :' & detach; sleep 600",
    )


class TakesLongToEnd(BaseOperator):
    """Is not done when it is ended, nor done with ending."""

    def execute(self, context: Context) -> None:
        """Wait for the end."""
        mark("begun")
        time.sleep(600)

    def on_kill(self) -> None:
        """Go on until SIGKILL."""
        mark("on_kill")
        time.sleep(600)


with DAG("ending", **COMMON):
    TakesLongToEnd(task_id="ends")


with DAG("many", **COMMON):
    for index in range(20):
        PythonOperator(
            task_id=f"t{index}",
            python_callable=work,
            op_args=["{{ dag_run.conf.get('seconds', 1) }}"],
            priority_weight=index + 1,
            retries=1,
            retry_delay=dt.timedelta(seconds=1),
        )


def talk() -> None:
    """Print, and wait until somebody has read it."""
    for line in range(200):
        print(f"line {line} of a running task", flush=True)
        time.sleep(0.3)
        if (MARKS / "heard").exists():
            break


with DAG("talking", **COMMON):
    PythonOperator(task_id="talks", python_callable=talk)


def secrets_in_sight() -> None:
    """Hold still while somebody searches for tokens."""
    child = subprocess.Popen(["/bin/sleep", "60"])
    mark("ready")
    while not (MARKS / "searched").exists():
        time.sleep(0.1)
    child.send_signal(signal.SIGKILL)


with DAG("holding", **COMMON):
    for index in range(2):
        PythonOperator(task_id=f"h{index}", python_callable=secrets_in_sight)


def be_late(text: str) -> None:
    """What is called when a deadline is missed."""
    (MARKS / "deadline").write_text(f"{text} {os.getpid()} {os.getcwd()}")


with DAG(
    "late",
    deadline=DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=dt.timedelta(seconds=1),
        callback=SyncCallback("executor_dags.be_late", kwargs={"text": "missed"}),
    ),
    **COMMON,
):
    PythonOperator(task_id="slow", python_callable=work, op_args=[8])


with DAG("side_by_side", **COMMON):
    PythonOperator(task_id="default", python_callable=work)
    PythonOperator(task_id="chosen", python_callable=work, executor="AirExecutorExecutor")
    PythonOperator(task_id="queued", python_callable=work, executor="AirExecutorExecutor", queue="heavy")
    Defers(task_id="deferred", executor="AirExecutorExecutor")
