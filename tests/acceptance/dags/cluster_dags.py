"""DAGs for tasks that run on a cluster."""

from __future__ import annotations

import os
import time
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, get_current_context
from executor_dags import COMMON, MARKS, mark


def meet() -> None:
    """Wait until the other branch runs, too."""
    run_id = get_current_context()["run_id"]
    mark(f"node {os.environ.get('SLURMD_NODENAME')}")
    while (MARKS / run_id).read_text().count("node") < 2:
        time.sleep(0.1)


def alone(**more: Any) -> dict[str, Any]:
    """The options of a task that has a node of Slurm for itself."""
    return {"air_executor": {"slurm": {"exclusive": True}, **more}}


with DAG("branches", **COMMON):
    for branch in ("left", "right"):
        PythonOperator(task_id=branch, python_callable=meet, executor_config=alone())
