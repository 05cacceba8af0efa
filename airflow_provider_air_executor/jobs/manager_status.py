"""The manager of a base path, as other processes see it: by its lock, its lease, and small files beside ``jobs/``."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING

from airflow_provider_air_executor.jobs import files, manager_lease

if TYPE_CHECKING:  # the command line does not wait for what the store imports
    from airflow_provider_air_executor.jobs.store import JobStore


def is_running(store: JobStore) -> bool:
    """Whether a manager holds the base path.

    :raises NoLocksError: if that cannot be known, since the file system has no locks.
    """
    try:
        descriptor = os.open(store.lock_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # A manager that starts at this moment tries again for longer than this lock is held.
        is_locked = not files.lock(descriptor, store.lock_path, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
    return is_locked or manager_lease.running_elsewhere(store) is not None


def host(store: JobStore) -> str:
    """The host of the manager that holds the base path, if its lock is not seen here; empty otherwise."""
    lease = manager_lease.running_elsewhere(store)
    return "" if lease is None else lease.host or "another host"


def pid(store: JobStore) -> int | None:
    """The process id of the manager that holds the base path; None if there is none, or it has not written its id yet.

    :raises NoLocksError: if the file system has no locks.
    """
    if not is_running(store):
        return None
    try:
        return int(files.read_if_there(store.pid_path))
    except ValueError:
        return None


def check_locks(store: JobStore) -> None:
    """Check, before a job is submitted, that a manager could hold the base path.

    :raises NoLocksError: if the file system has no locks.
    """
    store.create_directories()
    if store.lock_path.exists():
        is_running(store)
        return
    path = store.base_path / files.unique_name(".lock-")
    try:
        with files.opened(path, os.O_RDWR | os.O_EXCL) as descriptor:
            files.lock(descriptor, store.lock_path)
    finally:
        files.remove(path)


def keep_alive(store: JobStore) -> None:
    """Ask the manager to stay: it does not end for lack of work before its idle timeout, counted from now."""
    store.create_directories()
    with files.opened(store.keep_alive_path, os.O_WRONLY) as descriptor:
        os.utime(descriptor)


def problems(store: JobStore) -> dict[str, str]:
    """The problems that the manager has now: a sentence for each job concerned, by the job's name."""
    try:
        found = json.loads(files.read(store.problems_path)[0])
        return {str(name): f"{known['problem']} (since {known['since']})" for name, known in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def say_not_replaced(store: JobStore, why: str) -> None:
    """Record that the running manager should have been replaced, and was not. The next manager removes the record.

    :param why: a sentence.
    """
    files.publish(store.not_replaced_path, why.encode())


def why_not_replaced(store: JobStore) -> str:
    """Why the running manager was not replaced, see :func:`say_not_replaced`; empty if there is no such record."""
    try:
        return files.read(store.not_replaced_path)[0].decode(errors="replace")
    except OSError:
        return ""
