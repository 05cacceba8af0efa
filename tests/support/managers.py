"""Managers that run on a base path as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.prepared import MODULE, Prepared, can_be_prepared
from tests.support.processes import kill_all_with_environment
from tests.support.waiting import PATIENCE, wait_until

_LONG = 10_000  # characters, more than which a pipe may not hold
CLI = [sys.executable, "-m", MODULE]


def command(arguments: Sequence[str], patch: str) -> list[str]:
    """``air-executor`` with arguments; with a patch, a Python that runs this first."""
    if not patch:
        return [*CLI, *arguments]
    begin = f"import runpy; runpy.run_module({MODULE!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", f"{patch}\n{begin}", *arguments]


def run_cli(
    arguments: Sequence[str], environment: Mapping[str, str], *, text: str = "", patch: str = "", **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run ``air-executor``, as :func:`subprocess.run` does with ``capture_output=True, text=True``.

    :param text: what it reads.
    :param patch: code that it runs first.
    :param more: what else it is given, if it is to be started as a user starts it. A manager is, since `stop` looks at
        its command line.
    """
    if not more and arguments[0] != "manager" and len(text) < _LONG and can_be_prepared(environment):
        process = Prepared(arguments, environment, text=text, patch=patch, stdout=True)
        output, errors = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess([*CLI, *arguments], process.wait(), output, errors)
    return subprocess.run(
        command(arguments, patch),
        input=text,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **more,
    )


class Managers:
    """Starts and kills managers of one base path."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("AIR_EXECUTOR") and key not in ("COLUMNS", "LINES")  # as pytest leaves them
        }
        self.patch = ""  # code that the next ones run before they begin, so that something is other than it is
        self.before: list[str] = []  # words of a command that runs the next ones, in another place
        self._processes: list[subprocess.Popen[str]] = []

    def launch(self, *flags: str, **kwargs: Any) -> subprocess.Popen[str]:
        """Start a manager, without waiting for it."""
        arguments = [
            "manager",
            "--base-path",
            str(self.store.base_path),
            "--kill-grace",
            "0.5",
            "--poll-interval",
            "0.5",
        ]
        arguments += flags
        process: subprocess.Popen[str]
        if not kwargs and not self.before and can_be_prepared(self.environment):
            process = Prepared(arguments, self.environment, patch=self.patch)
        else:
            process = subprocess.Popen(
                [*self.before, *command(arguments, self.patch)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                **kwargs,
            )
        self._processes.append(process)
        return process

    def start(self, *flags: str, **kwargs: Any) -> subprocess.Popen[str]:
        """Start a manager, and wait until it holds the base path."""
        process = self.launch(*flags, **kwargs)
        wait_until(lambda: manager_status.pid(self.store) == process.pid or process.poll() is not None, what="it runs")
        assert process.poll() is None, process.communicate()[1]
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        """``kill -9``."""
        process.kill()
        process.communicate()

    def close(self) -> None:
        """End all managers, and whatever their tasks have left."""
        for process in self._processes:
            if process.stderr is not None and not process.stderr.closed:
                self.kill(process)
        end_tasks_of(self.store)


def end_tasks_of(store: JobStore) -> None:
    """End what the tasks of a base path have left, whether or not a manager runs."""
    kill_all_with_environment(f"AIR_EXECUTOR_BASE_PATH={store.base_path}")
