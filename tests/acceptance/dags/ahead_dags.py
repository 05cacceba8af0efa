"""A DAG file that gives the same in each task, so that it is executed ahead of some; they write down what they see."""

from __future__ import annotations

import datetime as dt
import gc
import json
import os
import subprocess
from pathlib import Path

import same_probe
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, get_current_context, task

MARKS = os.environ.get("SAME_TEST_MARKS", "/tmp")
EDITION = "first"
SHELL = "env; ls -l /proc/self/fd | sed 's/.* -> //; s/[0-9]*//g'; ulimit -a; umask; trap; pwd"


def write_down() -> None:
    """Leave what this task sees. What was there before a fork is frozen, and the garbage collector does not have it."""
    context = get_current_context()
    found = {
        "run": same_probe.look(),
        "shell": subprocess.run(["sh", "-c", SHELL], capture_output=True, text=True, check=True).stdout.splitlines(),
        "run_environment": sorted(os.environ),
        "context": sorted(context),
        "drawn": same_probe.draw(),
        "edition": EDITION,
        "ahead": not any(each is dag for each in gc.get_objects()),
    }
    Path(MARKS, context["ti"].task_id).write_text(json.dumps(found))
    print("printed by", context["ti"].task_id)


with DAG("ahead", schedule=None, start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) as dag:
    for number in range(8):
        task(task_id=f"look{number}", retries=0)(write_down)()
    for number in range(120):  # what takes no time is not executed ahead
        EmptyOperator(task_id=f"empty{number}")
