"""The process of a manager: how it is started in the background, found, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_provider_air_executor import exceptions
from airflow_provider_air_executor.jobs import manager_lease, manager_status

if TYPE_CHECKING:
    from airflow_provider_air_executor.jobs.store import JobStore

# A manager takes the lock in a fraction of a second, on a busy machine somewhat later; it may wait for a lease to end.
_DETACH_SECONDS = 20.0 + manager_lease.SECONDS
_STOP_SECONDS = 20.0
_NUMBER_SECONDS = 2.0
_LOG_BYTES = 10_000_000  # a manager.log longer than this is renamed when a detached manager starts


def leave_task() -> None:
    """Begin anew without what marks a process as one of a task, at whose end it would be ended."""
    from airflow_provider_air_executor.system.environment import TASK_VARIABLES, as_given

    if not os.environ.keys().isdisjoint(TASK_VARIABLES):
        environment = {key: value for key, value in as_given(os.environ).items() if key not in TASK_VARIABLES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606 - no shell


def detach(store: JobStore) -> int:
    """Go on in a process that outlives this one; it has imported already what a manager needs.

    :return: 0 in that process, and its number here, as soon as it holds the base path.
    """
    if manager_status.is_running(store):
        raise _running_error(store)
    store.create_directories()
    if store.manager_log_path.exists() and store.manager_log_path.stat().st_size > _LOG_BYTES:
        store.manager_log_path.replace(store.manager_log_path.with_suffix(".log.1"))
    log = os.open(store.manager_log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _leave_terminal(log)
        return 0
    os.close(log)
    deadline = time.monotonic() + _DETACH_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            if os.waitstatus_to_exitcode(status) == exceptions.ManagerRunningError.exit_code:  # another one was faster
                raise _running_error(store)
            raise exceptions.ManagerError(f"the manager could not start; see {store.manager_log_path}")
        if manager_status.pid(store) == pid:
            return pid
        time.sleep(0.02)
    raise exceptions.ManagerError(
        f"the manager did not start within {_DETACH_SECONDS:g} s; see {store.manager_log_path}"
    )


def _running_error(store: JobStore) -> exceptions.ManagerRunningError:
    return exceptions.ManagerRunningError(store.base_path, manager_status.pid(store), manager_status.host(store))


def _leave_terminal(log: int) -> None:
    """Detach from the terminal of the parent process; output goes to a file."""
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2:
            with contextlib.suppress(OSError):  # the one of the list itself is closed by now
                os.close(descriptor)


def stop(store: JobStore) -> int | None:
    """End the manager of a base path; its process id, if there was one."""
    pid = _number(store)
    if pid is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    # It removes its number before it releases the lock.
    while manager_status.is_running(store) and manager_status.pid(store) in (pid, None):
        if time.monotonic() > deadline:
            raise exceptions.ManagerError(f"manager {pid} did not end within {_STOP_SECONDS:g} s")
        time.sleep(0.02)
    return pid


def _number(store: JobStore) -> int | None:
    """The process id of the manager that runs, if one does.

    A manager publishes its number a moment after it has acquired the lock. Until then there is none, or that of an
    earlier manager that was killed.
    """
    deadline = time.monotonic() + _NUMBER_SECONDS
    while manager_status.is_running(store):
        host = manager_status.host(store)
        if host:
            raise exceptions.ManagerError(f"the manager of {store.base_path} runs on {host}; end it there")
        pid = manager_status.pid(store)
        if pid is not None and _is_manager(pid):
            return pid
        if time.monotonic() > deadline:
            if pid is None:
                raise exceptions.ManagerError(f"the manager of {store.base_path} has not published its process id")
            raise exceptions.ManagerError(f"manager {pid} of {store.base_path} runs in another container; end it there")
        time.sleep(0.02)
    return None


def _is_manager(pid: int) -> bool:
    """Whether a process of this machine, or container, is a manager: the number may stem from another one."""
    try:
        return b"manager" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")  # elsewhere than on Linux there is nothing to ask
    except OSError:
        return True
