"""Secrets are masked, wherever pieces of a log begin and end."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_air_executor.exceptions import AirExecutorError, JobNotFoundError
from airflow_provider_air_executor.jobs import attachments, masking, summary
from airflow_provider_air_executor.jobs.file_jobs import FileJobs
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.models import TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.stream import LogStream
from tests.support.jobs import reset_tasks

SECRET = "hunter2!"


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    found = JobStore(tmp_path)
    found.submit("j", ["true"], attached={masking.FILE: masking.dump([SECRET, "abc"])})
    return found


def test_the_file_is_for_its_owner_only(store: JobStore) -> None:
    path = store.paths("j").attached(masking.FILE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert masking.load(store.paths("j")).secrets == {SECRET}  # what is short is found in too much


def test_a_job_without_secrets(store: JobStore) -> None:
    store.submit("other", ["true"])
    assert masking.load(store.paths("other")).secrets == frozenset()
    assert masking.load(store.paths("missing")).secrets == frozenset()


def test_nothing_is_shown_if_it_is_not_known_what_must_not_be(store: JobStore) -> None:
    store.paths("j").attached(masking.FILE).write_text("{not json")
    store.paths("j").log("task-1").write_text("text\n")
    with pytest.raises(AirExecutorError, match="cannot be read"):
        masking.load(store.paths("j"))
    said: list[str] = []
    LogStream(FileJobs(store), "j", "reader").follow(
        [task.evolve(attempt=1) for task in store.get_tasks("j")], said.append
    )
    assert said == []


def test_secrets_that_overlap_or_touch() -> None:
    mask = Mask(["abcdef", "defghijk", "lmnop"])
    assert mask.text("x abcdefghijk y") == "x *** y"
    assert mask.text("abcdeflmnop") == "******"
    assert mask.text("fghijk \ud800 abcde") == "fghijk \ud800 abcde"


def test_writers_at_the_same_time_lose_nothing(store: JobStore) -> None:
    threads = [
        threading.Thread(
            target=attachments.append, args=(store.paths("j"), masking.FILE, masking.dump([f"secret-{number}"]))
        )
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert masking.load(store.paths("j")).secrets == {SECRET, *(f"secret-{number}" for number in range(20))}
    with pytest.raises(JobNotFoundError):
        attachments.append(store.paths("missing"), masking.FILE, b"")


def pieces(store: JobStore, mask: Mask, size: int, *, is_over: bool) -> str:
    shown, offset = b"", 0
    while True:
        chunk = mask.read_log(TaskLog(store.paths("j"), "task-1"), offset, size, is_over=is_over)
        if chunk.next_offset == offset:
            return shown.decode()
        shown, offset = shown + chunk.data, chunk.next_offset


@given(
    parts=st.lists(st.sampled_from([SECRET, "hunt", "hunter2", "!", "x", "\n", "ünder"]), max_size=12),
    size=st.integers(1, 12),
)
def test_pieces_of_any_size_are_the_masked_whole(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], size: int
) -> None:
    store = JobStore(tmp_path_factory.mktemp("base"))
    store.submit("j", ["true"])
    text, mask = "".join(parts), Mask([SECRET])
    store.paths("j").log("task-1").write_text(text)
    assert pieces(store, mask, size, is_over=True) == text.replace(SECRET, "***")
    for offset in range(len(text.encode()) + 1):
        data = mask.read_log(TaskLog(store.paths("j"), "task-1"), offset, size, is_over=True).data
        assert data.startswith(b"***") or data in text.replace(SECRET, "***").encode()


@given(text=st.text("hunter2!x", max_size=40), size=st.integers(1, 12), steps=st.lists(st.integers(1, 6), min_size=1))
def test_a_log_that_grows_never_shows_the_beginning_of_a_secret(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int, steps: list[int]
) -> None:
    store = JobStore(tmp_path_factory.mktemp("base"))
    store.submit("j", ["true"])
    text, mask = text.replace("x", SECRET), Mask([SECRET])
    log, shown, offset, written = store.paths("j").log("task-1"), "", 0, 0
    log.touch()
    for number in range(len(text) + 1):
        is_over = written >= len(text)
        while True:
            chunk = mask.read_log(TaskLog(store.paths("j"), "task-1"), offset, size, is_over=is_over)
            if chunk.next_offset == offset:
                break
            shown, offset = shown + chunk.data.decode(), chunk.next_offset
        assert text.replace(SECRET, "***").startswith(shown)
        written = min(len(text), written + steps[number % len(steps)])
        log.write_text(text[:written])
    assert shown == text.replace(SECRET, "***")


def test_half_a_secret_waits_for_the_other_half(store: JobStore) -> None:
    log, mask = store.paths("j").log("task-1"), masking.load(store.paths("j"))
    log.write_text("it is hunt")
    first = mask.read_log(TaskLog(store.paths("j"), "task-1"), 0, 1000, is_over=False)
    assert first == (b"it is ", 6)
    log.write_text("it is hunter2!\n")
    assert mask.read_log(TaskLog(store.paths("j"), "task-1"), 6, 1000, is_over=False) == (b"***\n", 15)
    log.write_text("it is hunt")
    assert mask.read_log(TaskLog(store.paths("j"), "task-1"), 6, 1000, is_over=True) == (b"hunt", 10)
    assert mask.read_log(TaskLog(store.paths("j"), "task-1"), -4, 1000, is_over=True) == (b"hunt", 10)


KEY = "-----BEGIN KEY-----\n" + "\n".join("abcdefghijklmnop" for _ in range(30)) + "\n-----END KEY-----"


def test_a_secret_of_many_lines(store: JobStore) -> None:
    attachments.append(store.paths("j"), masking.FILE, masking.dump([KEY]))
    (task,) = store.get_tasks("j")
    failed = task.evolve(status=TaskStatus.FAILED, attempt=1, exit_code=1)
    reset_tasks(store, "j", [failed])
    log = store.paths("j").log("task-1")
    said: list[str] = []
    stream = LogStream(FileJobs(store), "j", "reader")
    log.write_text(f"the key:\n{KEY[:100]}")
    stream.follow([failed], said.append)
    log.write_text(f"the key:\n{KEY}\nafter\n")
    stream.follow([failed], said.append)
    log.write_text(f"the key:\n{KEY}\nafter\n{KEY}")
    stream.follow([failed], said.append, is_over=True)
    assert said == ["task-1 | the key:", "task-1 | ***", "task-1 | after", "task-1 | ***"]
    assert "abcdef" not in summary.failure(FileJobs(store), store.get_job("j"))


def test_a_secret_that_comes_later_and_a_line_without_an_end(store: JobStore) -> None:
    (task,) = (task.evolve(attempt=1) for task in store.get_tasks("j"))
    log = store.paths("j").log("task-1")
    said: list[str] = []
    stream = LogStream(FileJobs(store), "j", "reader")
    log.write_text("plain\n")
    stream.follow([task], said.append)
    attachments.append(store.paths("j"), masking.FILE, masking.dump(["added-later"]))
    log.write_text("plain\nadded-later\n" + "x" * 16_380 + "added-")
    stream.follow([task], said.append)
    log.write_text("plain\nadded-later\n" + "x" * 16_380 + "added-later\n")
    stream.follow([task], said.append)
    assert said == ["task-1 | plain", "task-1 | ***", f"task-1 | {'x' * 16_380}", "task-1 | ***"]


def test_neither_the_airflow_log_nor_a_failure_shows_them(store: JobStore) -> None:
    (task,) = store.get_tasks("j")
    store.paths("j").log("task-1").write_text(f"password {SECRET}\n")
    failed = task.evolve(status=TaskStatus.FAILED, attempt=1, exit_code=1)
    reset_tasks(store, "j", [failed])
    said: list[str] = []
    LogStream(FileJobs(store), "j", "reader").follow([failed], said.append)
    assert said == ["task-1 | password ***"]
    assert "  task-1 | password ***" in summary.failure(FileJobs(store), store.get_job("j")).splitlines()
    assert "  task-1 | password ***" in summary.describe(FileJobs(store), store.get_job("j"))
