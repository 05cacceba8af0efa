"""DAGs for tasks that run in Pods."""

from __future__ import annotations

import datetime as dt
import os
import time

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, get_current_context
from executor_dags import COMMON, MARKS, mark, work


def meet() -> None:
    """Wait until the other branch runs, too."""
    run_id = get_current_context()["run_id"]
    mark(f"node {os.environ['NODE']}")
    while (MARKS / run_id).read_text().count("node") < 2:
        time.sleep(0.1)
    print(f"met on {os.environ['NODE']}")


with DAG("branches", **COMMON):
    for branch, node in (("left", "n1"), ("right", "n2")):
        options = {"kubernetes": {"node_selector": {"kubernetes.io/hostname": node}}}
        PythonOperator(task_id=branch, python_callable=meet, executor_config={"air_executor": options})


with DAG("several", **COMMON):
    for index in range(6):
        PythonOperator(
            task_id=f"t{index}",
            python_callable=work,
            op_args=["{{ dag_run.conf.get('seconds', 1) }}"],
            retries=1,
            retry_delay=dt.timedelta(seconds=1),
        )


with DAG("ends", **COMMON):
    # The kernel ends the process that uses most memory.
    PythonOperator(
        task_id="hungry",
        python_callable=lambda: len(b"x" * (900 << 20)),
        executor_config={"air_executor": {"resources": {"memory": "500Mi"}}},
    )
    for name, bad in (
        ("image", {"kubernetes": {"image": "docker.io/no/such:1", "image_pull_policy": "Never"}}),
        ("option", {"kubernetes": {"imagee": "x"}}),
    ):
        PythonOperator(task_id=name, python_callable=mark, op_args=[name], executor_config={"air_executor": bad})
    PythonOperator(
        task_id="waits",
        python_callable=mark,
        op_args=["waits"],
        executor_config={"air_executor": {"kubernetes": {"node_selector": {"air-executor/test": "later"}}}},
    )
