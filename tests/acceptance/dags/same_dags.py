"""A DAG whose tasks write down what they see, one after the other, with some between that change all they can."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import same_probe
from airflow.sdk import DAG, get_current_context, task

MARKS = Path(os.environ.get("SAME_TEST_MARKS", "/tmp"))
WHILE_PARSED = same_probe.look()
SHELL = "env; ls -l /proc/self/fd | sed 's/.* -> //; s/[0-9]*//g'; ulimit -a; umask; trap; pwd"


def write_down() -> None:
    """Leave what this task sees."""
    context = get_current_context()
    shell = subprocess.run(["sh", "-c", SHELL], capture_output=True, text=True, check=True).stdout
    found = {
        "run": same_probe.look(),
        "parsed": WHILE_PARSED,
        "shell": shell.splitlines(),
        "run_environment": sorted(os.environ),
        "context": sorted(context),
        "drawn": same_probe.draw(),
        "supervisor": os.getppid(),
    }
    name = context["ti"].task_id
    (MARKS / name).write_text(json.dumps(found))
    print("printed by", name)
    print("printed to stderr", file=sys.stderr)
    logging.getLogger("mine").warning("a warning with %s", "an argument", extra={"number": 7})
    logging.getLogger("airflow.task").info("for the task")
    warnings.warn("something to warn of", UserWarning, stacklevel=1)
    try:
        int("no number")
    except ValueError:
        logging.getLogger("mine").exception("it is logged")


def wreck() -> None:
    """Change what others must not see."""
    os.environ.update({"WRECKED": "1", "TZ": "Asia/Tokyo", "PATH": "/nowhere"})
    del os.environ["HOME"]
    sys.path.insert(0, "/wrecked")
    sys.meta_path.insert(0, sys.meta_path[-1])
    sys.argv = ["wrecked"]
    sys.excepthook = print
    sys.modules["wrecked"] = sys
    os.chdir("/")
    os.umask(0o777)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    warnings.simplefilter("error")
    random.seed(1)
    logging.disable(logging.CRITICAL)
    logging.getLogger("mine").addHandler(logging.NullHandler())
    os.open("/dev/null", os.O_RDONLY)
    threading.Thread(target=threading.Event().wait, args=(0.2,)).start()
    os.nice(3)


with DAG("same", schedule=None, start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), default_args={"retries": 0}) as dag:
    before = None
    for step in ("look1", "look2", "wreck1", "look3", "wreck2", "look4", "look5"):
        made = task(task_id=step)(wreck if step.startswith("wreck") else write_down)()
        if before is not None:
            before >> made
        before = made
