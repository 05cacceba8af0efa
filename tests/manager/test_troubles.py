"""Errors that may pass: they change no state; one line is logged when they begin, and one when they end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.engines import children
from airflow_provider_air_executor.engines.batch.handles import read_handle
from airflow_provider_air_executor.engines.local import adopted
from airflow_provider_air_executor.engines.slurm import commands
from airflow_provider_air_executor.jobs import files, inbox, manager_status, watch
from airflow_provider_air_executor.jobs.attempt_record import read_record
from airflow_provider_air_executor.jobs.completions import JobCompletions
from airflow_provider_air_executor.jobs.index import JobIndex
from airflow_provider_air_executor.jobs.inotify import Notifier
from airflow_provider_air_executor.jobs.models import Job, JobState, SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.system import clock, processes
from tests.support.jobs import outcomes, publish_job
from tests.support.stepped_manager import SteppedManager
from tests.support.system_calls import Trouble
from tests.support.waiting import PATIENCE, wait_until

STALE, FULL = errno.ESTALE, errno.ENOSPC


def submit(stepped: SteppedManager, name: str = "j", *, waits: bool = False, **more: Any) -> None:
    stepped.submit(name, [{"id": "t", **stepped.command(waits=waits), **more}], 1)


def go_rounds(stepped: SteppedManager, number: int = 5) -> None:
    for _ in range(number):
        stepped.clock.passed += 1.0
        stepped.go_round()


def has_run(stepped: SteppedManager) -> bool:
    """Whether the command of the only task has been started, and its shim has ended."""
    stepped.go_round()
    stepped.open_gate()
    return bool(stepped.done()) and not stepped.something_runs()


def all_is_well(stepped: SteppedManager) -> bool:
    """Whether the only task has run once, and its job has completed."""
    stepped.faults.trouble = None
    assert stepped.let_all_end()
    assert not stepped.lines.repeated
    assert not stepped.lines.wrong
    return list(stepped.done().values()) == [1] and stepped.store.get_job("j").state is JobState.COMPLETED


class TestManager:
    def test_a_record_that_cannot_be_read_when_its_shim_has_ended_is_read_later(self, stepped: SteppedManager) -> None:
        stepped.start_manager()
        submit(stepped, waits=True)
        wait_until(lambda: stepped.go_round() or stepped.done(), what="it runs")
        stepped.faults.trouble = Trouble("jobs.attempt_record", "open", STALE)
        wait_until(lambda: has_run(stepped) or stepped.faults.failed, what="its record was to be read")
        go_rounds(stepped)
        assert outcomes(stepped.store, "j") == {"t": ("running", None)}
        assert all_is_well(stepped)

    @pytest.mark.parametrize("error", [errno.EIO, errno.EACCES])
    def test_a_record_that_cannot_be_read_does_not_make_a_task_lost_for_the_next_manager(
        self, stepped: SteppedManager, error: int
    ) -> None:
        stepped.start_manager()
        submit(stepped, waits=True, retries=1)
        wait_until(lambda: stepped.go_round() or stepped.done(), what="it runs")
        stepped.kill_manager()
        stepped.faults.trouble = Trouble("jobs.attempt_record", "open", error)
        wait_until(stepped.start_manager, what="a child of the one before has closed the lock")
        go_rounds(stepped)
        assert stepped.faults.failed
        assert all_is_well(stepped)

    def test_a_request_about_a_job_that_cannot_be_loaded_does_not_reset_it(self, stepped: SteppedManager) -> None:
        stepped.start_manager()
        submit(stepped, waits=True)
        wait_until(lambda: stepped.go_round() or stepped.store.get_job("j").state is JobState.WORKING, what="it works")
        go_rounds(stepped)
        stepped.kill_manager()
        inbox.add_tasks(stepped.store, "j", [{"id": "more", **stepped.command(waits=False)}])
        stepped.faults.trouble = Trouble("manager.job_files", "open", errno.EIO)
        wait_until(stepped.start_manager, what="a child of the one before has closed the lock")
        go_rounds(stepped)
        assert stepped.faults.failed
        stepped.faults.trouble = None
        assert stepped.let_all_end()
        assert sorted(stepped.done().items()) == [(("j", "more", 1), 1), (("j", "t", 1), 1)]

    def test_jobs_that_could_not_be_listed_are_found_although_the_directory_does_not_change(
        self, stepped: SteppedManager
    ) -> None:
        submit(stepped)
        stepped.faults.trouble = Trouble("jobs.store", "scandir", errno.EMFILE)
        stepped.clock.passed += 10  # it was changed long ago
        wait_until(stepped.start_manager, what="a child of the one before has closed the lock")
        go_rounds(stepped)
        assert stepped.faults.failed
        assert all_is_well(stepped)

    @pytest.mark.parametrize(
        "trouble",
        [
            Trouble("jobs.store", "scandir", errno.EMFILE),
            Trouble("jobs.store", "listdir", errno.EIO),
            Trouble("manager.changes", "lstat", errno.EIO),
            Trouble("manager.loop", "lstat", errno.EIO),
            Trouble("manager.lock", "unlink", errno.EROFS),
        ],
        ids=lambda trouble: f"{trouble.module} {trouble.call}",
    )
    def test_a_manager_without_work_does_not_die_of_it(self, stepped: SteppedManager, trouble: Trouble) -> None:
        """That of the lock may end, since there is nothing to do."""
        stepped.start_manager()
        stepped.faults.trouble = trouble
        for _ in range(40):
            stepped.clock.passed += 1.0
            stepped.go_round()
        submit(stepped)
        assert all_is_well(stepped)

    def test_what_the_machine_is_short_of_is_said_once_and_so_is_its_end(self, stepped: SteppedManager) -> None:
        stepped.start_manager()
        stepped.faults.trouble = Trouble("engines.local.shells", "posix_spawn", errno.EAGAIN)
        submit(stepped)
        go_rounds(stepped, 10)
        assert stepped.lines.lines == [
            f"job j: a task cannot be started: {os.strerror(errno.EAGAIN)}; it is tried again",
        ]
        assert all_is_well(stepped)
        assert [line.rpartition(" after ")[0] for line in stepped.lines.lines[1:]] == [
            "job j: a task cannot be started: over"
        ]

    def test_it_is_not_said_to_be_over_before_it_was_tried_again(self, stepped: SteppedManager) -> None:
        """Between two looks at everything, much else goes well."""
        stepped.start_manager()
        stepped.go_round()
        stepped.faults.trouble = Trouble("jobs.files", "lstat", STALE)
        for _ in range(5):
            stepped.clock.passed += 1.0
            for _ in range(5):
                stepped.go_round()
        assert stepped.faults.failed
        assert len(stepped.lines.lines) == 1
        stepped.faults.trouble = None
        go_rounds(stepped)
        assert [line.rpartition(": ")[2] for line in stepped.lines.lines[1:]] == ["that is over"]

    def test_a_request_that_waits_for_its_turn_is_not_said_to_be_carried_out(self, stepped: SteppedManager) -> None:
        """On a slow machine, reading the job that it is about may take more than one round."""
        stepped.start_manager()
        submit(stepped, waits=True)
        wait_until(lambda: stepped.go_round() or stepped.store.get_job("j").state is JobState.WORKING, what="it works")
        stepped.kill_manager()
        inbox.add_tasks(stepped.store, "j", [{"id": "more", **stepped.command(waits=False)}])
        stepped.faults.trouble = Trouble("manager.job_files", "open", errno.EIO)
        wait_until(stepped.start_manager, what="a child of the one before has closed the lock")
        wait_until(lambda: stepped.go_round() or stepped.faults.failed, what="the job cannot be loaded")
        assert stepped.manager is not None
        is_read: list[bool] = []

        def reading() -> Iterator[bool]:
            while not is_read:
                yield True

        stepped.manager.shared.turns.do("j", reading())  # type: ignore[arg-type]
        go_rounds(stepped)
        assert "job j: a request cannot be carried out" in stepped.lines.wrong
        is_read.append(True)
        stepped.faults.trouble = None
        assert stepped.let_all_end()
        assert not stepped.lines.repeated
        assert not stepped.lines.wrong
        assert sorted(stepped.done().items()) == [(("j", "more", 1), 1), (("j", "t", 1), 1)]

    def test_a_request_that_cannot_be_removed_is_carried_out_once(self, stepped: SteppedManager) -> None:
        """Otherwise a job that fails again would be retried for ever."""
        stepped.start_manager()
        stepped.submit(
            "j", [{"id": "t", "command": "sh", "args": ["-c", f"echo j t $$ >> {stepped.done_path}; exit 1"]}], 1
        )
        assert stepped.let_all_end()
        inbox.retry(stepped.store, "j")
        stepped.faults.trouble = Trouble("manager.requests", "unlink", errno.EROFS)
        wait_until(lambda: go_rounds(stepped, 1) or stepped.store.get_job("j").attempt == 2, what="it is retried")
        wait_until(
            lambda: go_rounds(stepped, 1) or stepped.store.get_job("j").state.is_terminal, what="it has failed again"
        )
        go_rounds(stepped, 40)
        stepped.faults.trouble = None
        assert stepped.let_all_end()
        assert len(stepped.done()) == 2
        assert not stepped.lines.repeated
        assert not stepped.lines.wrong

    def test_what_is_wrong_is_not_shown_any_longer_although_that_could_not_be_written_at_once(
        self, stepped: SteppedManager
    ) -> None:
        stepped.start_manager()
        stepped.faults.trouble = Trouble("engines.local.shells", "posix_spawn", errno.EAGAIN)
        submit(stepped)
        go_rounds(stepped)
        assert manager_status.problems(stepped.store)
        stepped.faults.trouble = Trouble("jobs.files", "unlink", errno.EROFS)
        wait_until(lambda: go_rounds(stepped, 1) or stepped.done(), what="it runs")
        go_rounds(stepped)
        stepped.faults.trouble = None
        go_rounds(stepped)
        assert not manager_status.problems(stepped.store)


class TestProcesses:
    """Without a free descriptor, nothing can be seen of a process."""

    def test_a_process_that_cannot_be_inspected_counts_as_the_shim(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for token in ("1.2.abc", secrets.token_hex(8)):
            with monkeypatch.context() as patch:
                patch.setattr(Path, "read_bytes", _fails(errno.EMFILE))
                assert processes.is_shim(os.getpid(), token)
            assert not processes.is_shim(os.getpid(), token)

    def test_a_kill_is_not_over_because_no_process_can_be_inspected(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kill = processes.Kill(secrets.token_hex(8), None)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", _fails(errno.EMFILE))
            assert not any(kill.look() for _ in range(10))
        assert not kill.untouchable

    def test_a_boot_that_could_not_be_read_once_is_read_later(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Otherwise no forked shim would be identified any more."""
        clock.boot.cache_clear()
        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            patch.setattr(Path, "read_text", _fails(errno.EMFILE))
            clock.boot()
        assert clock.boot() != "unknown"


class TestCommands:
    def test_what_a_command_has_said_and_cannot_be_read_is_no_answer_and_blocks_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Buffer(io.FileIO):
            def read(self, size: int | None = -1) -> bytes | None:  # type: ignore[override]
                raise OSError(STALE, os.strerror(STALE))

        reaper = children.Children()
        commands = children.Commands(reaper, os.environ, limit=1, timeout=PATIENCE)
        heard: list[children.Result] = []
        with monkeypatch.context() as patch:
            patch.setattr(children, "_open_buffer", lambda: Buffer(os.memfd_create("x"), "w+"))
            commands.run(["true"], heard.append)
        commands.run(["echo", "hello"], heard.append)
        wait_until(lambda: reaper.reap() or len(heard) == 2, what="both have ended")
        assert [(result.exit_code, result.output) for result in heard] == [(children.NOT_RUN, ""), (0, "hello\n")]


class TestFiles:
    def test_a_file_that_cannot_be_inspected_exists(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A new one is not put in its place, where names cannot be exchanged."""
        path = tmp_path / "file"
        path.write_text("somebody else's")
        (tmp_path / "new").write_text("ours")
        monkeypatch.setattr(files, "_libc_renameat2", lambda: None)
        monkeypatch.setattr(os, "lstat", _fails(STALE))
        with pytest.raises(OSError, match="Stale"):
            files.put_with_backup(str(tmp_path / "new"), path, tmp_path / "previous")
        with pytest.raises(OSError, match="Stale"):
            files.replace(path, b"ours")
        assert path.read_text() == "somebody else's"

    def test_a_file_that_is_stale_when_it_has_been_opened_is_closed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Python looks at it once more."""
        (tmp_path / "file").write_text("x")
        before = len(os.listdir("/proc/self/fd"))
        for where, name, read in ((files, "FileIO", files.read), (os, "fstat", files.read), (os, "fstat", read_record)):
            with monkeypatch.context() as patch:
                patch.setattr(where, name, _fails(STALE))
                with pytest.raises(OSError, match="Stale"):
                    read(tmp_path / "file")
        assert len(os.listdir("/proc/self/fd")) == before

    def test_a_directory_that_cannot_be_watched_is_inspected_by_the_slow_pass(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with contextlib.closing(Notifier()) as notifier:
            monkeypatch.setattr(notifier._inotify, "add_watch", _fails(errno.ENOMEM))
            assert not notifier.add("x", tmp_path)
            monkeypatch.setattr(notifier._inotify, "read", _fails(errno.ENOMEM))
            assert notifier.read() == (set(), True)


class TestReaders:
    def test_a_job_that_cannot_be_seen_now_stays_in_the_index(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = JobStore(tmp_path)
        store.submit("j", ["true"])
        index = JobIndex(store)
        index._look()
        monkeypatch.setattr(files, "stamp", _fails(STALE))
        index._look()
        assert [job.name for job in index._jobs or ()] == ["j"]

    def test_a_completion_is_not_delivered_again_because_its_acknowledgement_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = JobStore(tmp_path)
        job = store.submit("j", ["true"]).evolve(state=JobState.FAILED)
        publish_job(store, job)

        def told() -> list[Job]:
            ends = JobCompletions(store, "r", interval=1)
            with contextlib.closing(Notifier()) as notifier:
                found = ends._find(notifier, None)
                with monkeypatch.context() as patch:
                    patch.setattr(JobStore, "load_job", lambda *_: (job, files.stamp(store.paths("j").state)))
                    patch.setattr(files, "read", _fails(STALE))
                    again = JobCompletions(store, "r", interval=1)
                    assert again._find(notifier, None) == []
                assert again._find(notifier, None) == found
            return found

        (first,) = told()
        JobCompletions(store, "r", interval=1).ack(first)
        assert told() == []

    def test_an_earlier_try_does_not_cancel_because_it_cannot_be_seen_who_waits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = JobStore(tmp_path)
        first = SubmittedBy(dag_id="d", run_id="r", task_id="t", try_number=1)
        job = store.submit("j", ["true"], submitted_by=first)
        inbox.reattach(store.paths("j"), first.evolve(try_number=2))
        assert not inbox.may_cancel(store.paths("j"), job, first)
        monkeypatch.setattr(files, "read", _fails(STALE))
        with pytest.raises(OSError, match="Stale"):
            inbox.may_cancel(store.paths("j"), job, first)

    def test_what_was_handed_to_slurm_is_not_forgotten_because_it_cannot_be_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would be submitted a second time."""
        handle = tmp_path / "handle"
        handle.write_text("# air-executor token {}\n")
        assert read_handle(commands, handle) == ("token", {})
        monkeypatch.setattr(os, "open", _fails(STALE))
        with pytest.raises(OSError, match="Stale"):
            read_handle(commands, handle)

    def test_a_watcher_says_once_that_it_cannot_look(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            passes = 0
            enough = asyncio.Event()
            loop = asyncio.get_running_loop()

            def on_pass() -> None:
                nonlocal passes
                passes += 1
                if passes == 5:
                    loop.call_soon_threadsafe(enough.set)
                if passes < 4:
                    raise OSError(STALE, os.strerror(STALE))

            async with watch.watching(JobStore(tmp_path), "j", interval=0.01, on_pass=on_pass):
                await enough.wait()

        with caplog.at_level(logging.INFO):
            asyncio.run(scenario())
        assert [record.levelname for record in caplog.records if record.name == watch.__name__] == ["WARNING", "INFO"]


def _fails(error: int) -> Any:
    def call(*_: object, **__: object) -> Any:
        raise OSError(error, os.strerror(error))

    return call


def test_a_step_that_fails_in_every_round_does_not_make_more_rounds(stepped: SteppedManager) -> None:
    """Each end of the sleep would be followed by as many others as there were rounds."""
    stepped.start_manager()
    (stepped.store.inbox_path / "request.json").write_text("{}")
    stepped.faults.trouble = Trouble("jobs.inbox", "listdir", STALE)
    for _ in range(100):
        stepped.go_round()
    assert stepped.manager is not None
    assert len(stepped.manager.shared.timers._timers) < 20
    go_rounds(stepped)
    failed = stepped.faults.failed
    go_rounds(stepped)
    assert stepped.faults.failed > failed, "it is tried again"


def test_a_task_is_not_lost_whose_shim_is_about_to_write_its_record(
    stepped: SteppedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has created the file when the next manager looks, and nothing more."""
    monkeypatch.setattr(adopted, "_UNWRITTEN_SECONDS", PATIENCE)
    stepped.start_manager()
    submit(stepped, waits=True)
    record = stepped.store.paths("j").record("t", 1)
    wait_until(lambda: stepped.go_round() or (record.exists() and record.stat().st_size), what="it runs")
    content = record.read_bytes()
    stepped.kill_manager()
    record.write_bytes(b"")
    stepped.start_manager()
    go_rounds(stepped)
    assert stepped.store.get_job("j").state is not JobState.FAILED
    record.write_bytes(content)
    go_rounds(stepped)
    assert stepped.let_all_end()
    assert outcomes(stepped.store, "j") == {"t": ("completed", None)}
    assert stepped.done() == {("j", "t", 1): 1}


def test_a_directory_in_the_place_of_a_record_is_not_waited_for(
    stepped: SteppedManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No shim is about to write it, however new it is."""
    monkeypatch.setattr(adopted, "_UNWRITTEN_SECONDS", PATIENCE)
    stepped.start_manager()
    stepped.store.submit("j", [{"id": "t", "command": "true", "retries": 1}])
    (stepped.store.paths("j").record("t", 1)).mkdir()
    (stepped.store.paths("j").record("t", 2)).mkdir()
    assert stepped.let_all_end()
    assert stepped.store.get_job("j").state.is_terminal
