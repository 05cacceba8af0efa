"""DAGs for tasks that run on a cluster."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, get_current_context
from executor_dags import COMMON, MARKS, mark, work


def on_slurm(**options: Any) -> dict[str, Any]:
    """The options of a task, with some of sbatch."""
    return {"air_executor": {"slurm": options}}


def meet() -> None:
    """Wait until the other branch runs, too."""
    run_id = get_current_context()["run_id"]
    mark(f"node {os.environ.get('SLURMD_NODENAME')}")
    while (MARKS / run_id).read_text().count("node") < 2:
        time.sleep(0.1)


with DAG("branches", **COMMON):
    for branch in ("left", "right"):
        PythonOperator(task_id=branch, python_callable=meet, executor_config=on_slurm(exclusive=True))


with DAG("single", **COMMON):
    PythonOperator(task_id="one", python_callable=work)


with DAG("wide", **COMMON):
    PythonOperator.partial(task_id="one", python_callable=work).expand(op_args=[[0.0]] * 200)


def search() -> None:
    """Search for what must not be on a node, in all that a task can read there by itself."""
    from airflow.configuration import conf

    words = (MARKS / "secrets").read_text().split()
    settings = conf.as_dict(display_sensitive=True, include_env=True)
    places = {"environment": str(dict(os.environ)), "configuration": str(settings)}
    jobs = Path(os.environ["JOBS"])
    for path in [path for path in jobs.rglob("*") if path.is_file()]:
        places[str(path)] = path.read_bytes().decode(errors="replace")
    places.update((f"/proc/{pid}", _of_process(pid)) for pid in os.listdir("/proc") if pid.isdecimal())
    for place, text in places.items():
        for number, word in enumerate(words):
            if word in text:
                mark(f"found {number} in {place}")
    mark(
        f"searched {len(places)} {len(words)} {conf.get('my_section', 'my_option')} {os.environ['AIRFLOW_VAR_COLOUR']}"
    )
    while not (MARKS / "searched").exists():
        time.sleep(0.1)


def _of_process(pid: str) -> str:
    """The environment and the arguments of a process that runs for a batch job, others may hold what they like."""
    try:
        found = [Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace") for name in ("environ", "cmdline")]
    except OSError:
        return ""
    return "".join(found) if "SLURM_JOB_ID=" in found[0] else ""


with DAG("searching", **COMMON):
    PythonOperator(task_id="searches", python_callable=search)


with DAG("impossible", **COMMON):
    PythonOperator(task_id="partition", python_callable=work, executor_config=on_slurm(partition="nowhere"))
    PythonOperator(task_id="option", python_callable=work, executor_config=on_slurm(array="1-9"))
    PythonOperator(task_id="runner", python_callable=work, executor_config={"air_executor": {"runner": "slrum"}})


with DAG("prepared", **COMMON):
    PythonOperator(
        task_id="prologue",
        queue="prologue",
        python_callable=lambda: mark(f"prologue {os.environ.get('FROM_PROLOGUE')}"),
    )
    PythonOperator(task_id="broken", queue="broken", python_callable=work)
    PythonOperator(task_id="image", queue="image", python_callable=lambda: mark(f"image {os.environ.get('IN_IMAGE')}"))


def eat() -> None:
    """Take more memory than there is for it."""
    work()
    eaten = []
    while True:
        eaten.append(b"x" * 50_000_000)
        time.sleep(0.1)


with DAG("limits", **COMMON):
    PythonOperator(
        task_id="memory", python_callable=eat, executor_config={"air_executor": {"resources": {"memory": "700Mi"}}}
    )
    PythonOperator(task_id="time", python_callable=work, op_args=[900], executor_config=on_slurm(time=2))
