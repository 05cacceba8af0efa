"""The command line by which another machine runs a workload."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow_provider_air_executor.executor.queues import Queue
from airflow_provider_air_executor.workload import MODULE, ExitCode

_PYTHON_OF_IMAGE = "python3"
# A prologue may end the shell by itself, so that a trap tells it from the workload. "$@" is what comes after it.
_SCRIPT = """\
trap 'echo "air-executor: the prologue of the queue has failed" >&2; exit %(failed)d' EXIT
set -e
%(prologue)s
set +e
command -v "$1" >/dev/null || { echo "air-executor: there is no $1 after the prologue" >&2; exit; }
trap - EXIT
exec "$@"
"""


def command_line(queue: Queue, runner: str, directory: Path) -> list[str]:
    """The program that runs a workload of this queue, and its arguments.

    :param directory: that of its job.
    """
    is_own = runner != "kubernetes" and queue.image is None  # such a machine has the files of this one
    python = queue.python or (sys.executable if is_own else _PYTHON_OF_IMAGE)
    words = [python, "-P", "-m", MODULE]
    if queue.image is not None and runner != "kubernetes":
        words = ["apptainer", "exec", "--bind", str(directory), queue.image, *words]
    if not queue.prologue:
        return words
    script = _SCRIPT % {"prologue": "\n".join(queue.prologue), "failed": ExitCode.NOT_PREPARED}
    return ["/bin/sh", "-c", script, "sh", *words]
