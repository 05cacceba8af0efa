"""Starting a manager that outlives the process which needs it: an embedded manager.

The command of the manager's own command line does that, in a process of its own; nothing of it is imported here.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from airflow_provider_air_executor.exceptions import ManagerError, ManagerRunningError
from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system.environment import as_given
from airflow_provider_air_executor.system.python import module_command

IDLE_SECONDS = 600.0  # without work, after which an embedded manager ends, unless somebody says otherwise
_START_SECONDS = 60.0
_START_ATTEMPTS = 3


def start_if_none(store: JobStore) -> str:
    """Start a manager, unless one runs. Any number of processes may do so at once.

    :return: what it warns of, as for :func:`start`.
    :raises ManagerError: if it cannot be started; the message holds what it said.
    """
    return "" if manager_status.is_running(store) else start(store, "--embedded")


def start(
    store: JobStore,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    idle_seconds: float = IDLE_SECONDS,
    replace: bool = False,
) -> str:
    """Start a manager; if another one is faster, that is as good.

    :param flags: more flags of ``air-executor manager``.
    :param environment: what the manager, and its tasks, find in their environment; default: that of this process.
    :param idle_seconds: without work, after which it ends.
    :param replace: whether the one that runs is ended first.
    :return: what it warns of; empty if there is nothing.
    :raises ManagerError: if it cannot be started, or the one that runs not be replaced; the message holds what it said.
    """
    manager_status.keep_alive(store)
    command = module_command("airflow_provider_air_executor.manager.cli", "manager", "--detach")
    command += ["--base-path", str(store.base_path), "--idle-timeout", str(idle_seconds), *flags]
    command += ["--replace"] if replace else []
    variables = dict(as_given(os.environ) if environment is None else environment)
    if variables.get("PYTHONPATH"):  # what is relative in it, or empty, means our directory and not the manager's
        entries = variables["PYTHONPATH"].split(os.pathsep)
        variables["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, entries))
    for _ in range(_START_ATTEMPTS):
        try:
            started = subprocess.run(
                command,
                cwd=store.base_path,
                env=variables,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ManagerError(f"the embedded manager of {store.base_path} did not start: {error}") from None
        was_late = started.returncode == ManagerRunningError.exit_code
        if started.returncode == 0 or ((was_late or not replace) and manager_status.is_running(store)):
            return _text(started.stderr) if started.returncode == 0 else ""
        if not was_late:
            break  # otherwise the one that was in its way has ended in this moment
    said = _text(started.stderr)
    raise ManagerError(f"the embedded manager of {store.base_path} could not be started: {said}")


def _text(said: bytes) -> str:
    return said.decode(errors="replace").strip()
