"""Does what every task does a few times in the fork server, so that the tasks find it done.

Python adapts the code of functions while they run, in the memory of that code, and libraries make tables at their first
use. In a forked process each such change copies a page. What was done often enough before the fork is not changed any
more: that takes a fourth off the time of a short task. Nothing that a task could see is left of it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_TIMES = 12  # Python (3.11 to 3.14) adapts a function after it has run 2 to 8 times, and its loops by then
_DAG = """\
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, task

with DAG("air_executor_rehearsal", schedule=None, default_args={"retries": 1}) as dag:
    first = [PythonOperator(task_id=f"p{number}", python_callable=print, op_args=["{{ ds }}"]) for number in range(4)]
    second = [BashOperator(task_id=f"b{number}", bash_command="true {{ ds }}") for number in range(2)]
    first[0] >> first[1:] >> second[0]

    @task
    def decorated(number):
        return number

    decorated(decorated(1))
"""


def rehearse() -> None:
    """Read a DAG file and render its tasks, again and again, without a trace."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        with _silence(), tempfile.TemporaryDirectory(prefix="air-executor-") as directory:
            for _ in range(_TIMES):
                _read_dag_file(Path(directory))
                _talk_to_supervisor()
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name not in modules and name.startswith("unusual_prefix_")]:
            del sys.modules[name]
        gc.collect()


def _read_dag_file(directory: Path) -> None:
    from airflow.dag_processing.dagbag import BundleDagBag

    file = directory / "rehearsal.py"
    file.write_text(_DAG)
    bag = BundleDagBag(
        dag_folder=str(file), safe_mode=False, load_op_links=False, bundle_path=directory, bundle_name="rehearsal"
    )
    for dag in bag.dags.values():
        for task in dag.tasks:
            with contextlib.suppress(Exception):  # an operator may want more of a context than there is here
                task.render_template_fields({"ds": "2026-01-01"})


def _talk_to_supervisor() -> None:
    """Make what a task talks to its supervisor with."""
    import structlog
    from airflow.sdk.execution_time.comms import CommsDecoder, ToSupervisor, ToTask

    log = structlog.get_logger(logger_name="task")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        CommsDecoder[ToTask, ToSupervisor](log=log, socket=ours)
    log.info("::group::Pre Execute")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing that is written to the standard streams meanwhile arrives anywhere."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in (1, 2):
            os.dup2(nothing, descriptor)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
        os.close(nothing)
