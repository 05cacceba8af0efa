"""The job filesystem: publishing exactly once, reading what is half-written, asking, removing."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import (
    CorruptFileError,
    InvalidJobError,
    JobExistsError,
    JobNotFoundError,
    JobStateError,
)
from airflow_provider_air_executor.jobs import attachments, inbox, manager_status
from airflow_provider_air_executor.jobs.models import ALL_AT_ONCE, JobState, SubmittedBy, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import publish_job, read_log


def end(store: JobStore, name: str, state: JobState = JobState.COMPLETED) -> None:
    """What the manager would do."""
    publish_job(store, store.get_job(name).evolve(state=state))


def test_nothing_of_airflow_is_imported() -> None:
    """Neither by the store, nor by the manager, nor by the command line."""
    code = """
import sys, pkgutil, importlib
import airflow_provider_air_executor as package
package.Client
for part in ("jobs", "manager"):
    found = importlib.import_module(f"{package.__name__}.{part}")
    for module in pkgutil.walk_packages(found.__path__, found.__name__ + "."):
        importlib.import_module(module.name)
package.get_provider_info()
print([name for name in sys.modules if name.partition(".")[0] == "airflow"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package_itself_imports_the_standard_library_only() -> None:
    heavy = "{'pydantic', 'click', 'rich', 'yaml'}"
    code = f"import airflow_provider_air_executor, sys; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_submitted_job_is_whole_and_private(store: JobStore) -> None:
    owner = SubmittedBy(dag_id="d", run_id="r", task_id="t")
    job = store.submit(
        "j", ["true"], max_parallel_tasks=3, timeout=60, priority=2, labels={"a": "b"}, submitted_by=owner
    )
    assert store.get_job("j") == job
    assert job.id == f"j-{int(job.created_at.timestamp())}"  # type: ignore[union-attr]
    assert (job.state, job.max_parallel_tasks, job.priority, job.labels) == ("waiting", 3, 2, {"a": "b"})
    assert [(task.id, task.job_name, task.status) for task in store.get_tasks("j")] == [("task-1", "j", "pending")]
    for path in [store.base_path, *store.base_path.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_without_a_limit_all_independent_tasks_may_run_side_by_side(store: JobStore) -> None:
    assert store.submit("j", ["true"]).max_parallel_tasks == ALL_AT_ONCE


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("../../evil", {}, "job name"),
        ("j", {"max_parallel_tasks": 0}, "max_parallel_tasks"),
        ("j", {"timeout": -1}, "timeout"),
        ("j", {"priority": "high"}, "priority"),
        ("j", {"labels": {"a": 1}}, "labels.a"),
    ],
)
def test_bad_input_writes_nothing(store: JobStore, name: str, more: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidJobError, match=says):
        store.submit(name, ["true"], **more)
    with pytest.raises(InvalidJobError):
        store.submit("j", [])
    assert not store.base_path.exists()


def test_a_job_exists_exactly_once_however_many_submit_it(store: JobStore) -> None:
    barrier = threading.Barrier(8)

    def submit(number: int) -> int | None:
        barrier.wait()
        try:
            store.submit("j", [f"echo {number}"])
        except JobExistsError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(submit, range(8)) if number is not None]
    assert len(winners) == 1
    assert store.get_tasks("j")[0].args == ("-c", f"echo {winners[0]}")
    assert [path.name for path in store.jobs_path.iterdir()] == ["j"]


def test_a_name_is_taken_also_by_an_empty_directory(store: JobStore) -> None:
    store.create_directories()
    (store.jobs_path / "j").mkdir()
    with pytest.raises(JobExistsError):
        store.submit("j", ["true"])


def test_who_owns_a_taken_name_is_said(store: JobStore) -> None:
    store.submit("j", ["true"], submitted_by=SubmittedBy(dag_id="etl", run_id="r1", task_id="t"))
    with pytest.raises(JobExistsError, match="DAG etl, run r1"):
        store.submit("j", ["true"])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_a_fault_at_any_write_leaves_either_the_job_or_nothing(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """The Nth call that writes fails, for every N, and the submit is tried again."""
    calls = {"left": 0}

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls["left"] -= 1
            if calls["left"] == 0:
                raise OSError(error, os.strerror(error))
            return real(*args, **kwargs)

        return call

    for name in ("write", "fsync", "rename", "mkdir"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    for number in range(1, 40):
        job = f"j{number}"
        calls["left"] = number
        try:
            store.submit(job, ["true"])
        except OSError:
            if not (store.jobs_path / job).exists():
                assert not any(path.name.startswith(".submit") for path in store.jobs_path.glob(".*"))
                calls["left"] = 0
                store.submit(job, ["true"])
        assert len(store.get_tasks(job)) == 1
        if calls["left"] > 0:
            break
    else:
        pytest.fail("the last write was never reached")


def test_a_half_written_file_is_read_again(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_air_executor.jobs.store._HALF_WRITTEN_SECONDS", 30.0)
    store.submit("j", ["true"])
    whole = store.paths("j").state.read_bytes()
    store.paths("j").state.write_bytes(whole[:50])
    threading.Timer(0.1, store.paths("j").state.write_bytes, [whole]).start()
    assert store.get_job("j").name == "j"


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"id": "x"}', b"\xff\xfe", b'{"id": "j-1", "name": "j", "state": "odd"}']
)
def test_a_corrupt_file_is_called_so(store: JobStore, text: bytes) -> None:
    store.submit("j", ["true"])
    store.paths("j").state.write_bytes(text)
    with pytest.raises(CorruptFileError, match="state.json"):
        store.get_job("j")


def test_what_is_not_a_regular_file_does_not_block_a_reader(store: JobStore, tmp_path: Path) -> None:
    store.submit("pipe", ["true"])
    store.paths("pipe").state.unlink()
    os.mkfifo(store.paths("pipe").state)
    store.submit("link", ["true"])
    store.paths("link").state.rename(tmp_path / "state.json")
    store.paths("link").state.symlink_to(tmp_path / "state.json")
    for name in ("pipe", "link"):
        with pytest.raises(CorruptFileError):
            store.get_job(name)


def test_names_in_a_request_do_not_lead_outside(store: JobStore) -> None:
    store.submit("j", ["true"])
    for name in ("../j", "..", "", "a/b"):
        with pytest.raises(InvalidJobError):
            store.get_job(name)
        with pytest.raises(InvalidJobError):
            read_log(store, "j", name)
    with pytest.raises(JobNotFoundError):
        store.get_job("nope")


def test_listing_passes_over_what_is_no_job(store: JobStore, tmp_path: Path) -> None:
    assert store.job_names() == []
    store.submit("b", ["true"])
    store.submit("a", ["true"])
    (store.jobs_path / ".submit-1").mkdir()
    (store.jobs_path / "a file").touch()
    (store.jobs_path / "empty").mkdir()
    (store.jobs_path / "link").symlink_to(tmp_path)
    assert [job.name for job in store.list_jobs()] == ["a", "b"]


def test_deleting_and_pruning(store: JobStore) -> None:
    for name in ("old", "new", "busy"):
        store.submit(name, ["true"])
    publish_job(store, store.get_job("old").evolve(state=JobState.FAILED, updated_at=utc_now() - timedelta(days=8)))
    end(store, "new")
    with pytest.raises(JobStateError):
        store.delete("busy")
    assert store.prune(timedelta(days=7)) == (["old"], [])
    assert store.job_names() == ["busy", "new"]
    store.delete("new")
    with pytest.raises(JobNotFoundError):
        store.delete("new")


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user need root")
def test_what_root_makes_belongs_to_the_owner_of_the_base_path(store: JobStore) -> None:
    """Whose manager could not read it otherwise."""
    store.base_path.mkdir()
    os.chown(store.base_path, 65534, 65534)
    store.submit("j", ["true"], attached={"file": b""})
    attachments.append(store.paths("j"), "other", b"line\n")
    attachments.attach(store.paths("j"), "another", b"")
    inbox.reattach(store.paths("j"), SubmittedBy(dag_id="d", run_id="r", task_id="t"))
    inbox.cancel(store, "j")
    manager_status.keep_alive(store)
    made = [*store.base_path.rglob("*")]
    assert len(made) == 15
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(65534, 65534)}


def test_what_an_interrupted_submit_left_is_removed_when_it_is_old(store: JobStore) -> None:
    store.create_directories()
    for name, age in ((".submit-old", 7200), (".submit-new", 0)):
        (store.jobs_path / name).mkdir()
        when = utc_now().timestamp() - age
        os.utime(store.jobs_path / name, (when, when))
    store.remove_abandoned()
    assert [path.name for path in store.jobs_path.iterdir()] == [".submit-new"]


def test_statuses_are_what_the_format_calls_them() -> None:
    assert [state.value for state in JobState] == ["waiting", "working", "completed", "failed"]
    assert [status.value for status in TaskStatus] == ["pending", "running", "completed", "failed"]


def test_a_file_system_that_cannot_flush_a_directory(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSE, CIFS and some network file systems refuse it; what was published counts."""
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    store.submit("j", ["true"])
    assert inbox.cancel(store, "j")
    assert len(inbox.requests(store)) == 1


def test_nobody_waits_at_a_pipe_in_place_of_a_file(store: JobStore) -> None:
    """A task can put one wherever it likes."""
    store.submit("j", ["true"])
    for path in (store.lock_path, store.pid_path, store.keep_alive_path, store.paths("j").attached("file")):
        os.mkfifo(path)
    assert not manager_status.is_running(store)
    lock = os.open(store.lock_path, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert manager_status.pid(store) is None
    os.close(lock)
    for write in (
        lambda: manager_status.keep_alive(store),
        lambda: attachments.append(store.paths("j"), "file", b"x\n"),
    ):
        with pytest.raises(OSError, match="No such device"):
            write()
