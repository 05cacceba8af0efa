"""The trigger: its one event, what it says meanwhile, and that it never blocks the loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from airflow.triggers.base import TaskSuccessEvent, TriggerEvent

from airflow_provider_air_executor import trigger_output, trigger_wait, triggers
from airflow_provider_air_executor.event_triggers import AirExecutorJobEventTrigger, event_of
from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs import files, inbox, manager_status
from airflow_provider_air_executor.jobs.completions import subscriber_path
from airflow_provider_air_executor.jobs.models import SubmittedBy
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.stream import LogStream
from airflow_provider_air_executor.triggers import AirExecutorJobTrigger, AirExecutorSubmitTrigger
from tests.support.contexts import TaskInstance
from tests.support.waiting import PATIENCE, until, wait_until


def trigger(store: JobStore, name: str = "j", **kwargs: Any) -> AirExecutorJobTrigger:
    """A trigger as the triggerer makes it, from what was serialized."""
    from airflow.serialization.serialized_objects import BaseSerialization

    path, arguments = AirExecutorJobTrigger(name, str(store.base_path), **kwargs).serialize()
    assert path == "airflow_provider_air_executor.triggers.AirExecutorJobTrigger"
    return AirExecutorJobTrigger(**BaseSerialization.deserialize(BaseSerialization.serialize(arguments)))


async def fired(tested: AirExecutorJobTrigger, timeout: float = PATIENCE) -> dict[str, str]:
    async with asyncio.timeout(timeout):
        events = [event.payload async for event in tested.run()]
    assert len(events) == 1
    return events[0]


@pytest.mark.embedded
@pytest.mark.parametrize(("line", "status"), [("sleep 0.3", "completed"), ("sleep 0.3; exit 1", "failed")])
def test_it_fires_when_the_job_ends(store: JobStore, line: str, status: str) -> None:
    AirExecutorHook().create_job("j", [line])
    event = asyncio.run(fired(trigger(store)))
    assert (event["status"], event["job_name"]) == (status, "j")


@pytest.mark.embedded
def test_it_fires_within_a_moment_of_the_end(store: JobStore) -> None:
    """By notification: the slow pass is an hour away."""
    AirExecutorHook().create_job("j", ["sleep 0.5"])
    asyncio.run(fired(trigger(store, poll_interval=3600)))


@pytest.mark.embedded
def test_the_deadline_is_a_point_in_time(store: JobStore) -> None:
    AirExecutorHook().create_job("j", ["sleep 1000"])
    event = asyncio.run(fired(trigger(store, deadline=time.time() + 0.3)))
    assert event["status"] == "timeout"
    assert asyncio.run(fired(trigger(store, deadline=time.time() - 100)))["status"] == "timeout"


def test_the_deadline_holds_where_no_answer_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is there, and the file system of the other machine stands still."""

    class Silent:
        where = "there"
        sees_output = True
        changed = ()

        def with_patience(self, patience: float) -> Silent:
            return self

        def get_tasks(self, name: str, *, at_once: bool) -> Any:
            raise OSError("no answer")

        @contextlib.asynccontextmanager
        async def watching(self, name: str, *, interval: float) -> AsyncIterator[Any]:
            yield self

        async def read(self) -> Any:
            await asyncio.Event().wait()

        async def wait(self, timeout: float | None = None) -> bool:
            await asyncio.sleep(timeout or 0)
            return False

    async def stay() -> bool:
        return False

    async def scenario() -> Any:
        waiting = trigger_wait.Waiting("j", 0.1, time.time() + 0.3, True, -1)
        async with asyncio.timeout(10.0):
            silent: Any = Silent()
            return await trigger_wait.JobWait(silent, waiting, None, logging.getLogger("x")).until_end(stay)

    monkeypatch.setattr(trigger_wait, "_LAST_SECONDS", 0.1)
    assert asyncio.run(scenario()).status == "timeout"


def test_a_job_that_is_gone_ends_the_wait_of_its_operator(store: JobStore) -> None:
    assert asyncio.run(fired(trigger(store)))["status"] == "not_found"


@pytest.mark.embedded
def test_a_job_that_comes_later_is_waited_for(store: JobStore) -> None:
    async def scenario() -> dict[str, str]:
        waiting = asyncio.create_task(fired(trigger(store, must_exist=False, poll_interval=0.2)))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(AirExecutorHook().create_job, "j", ["true"])
        return await waiting

    assert asyncio.run(scenario())["status"] == "completed"


def test_a_job_that_is_not_there_is_missed_aloud(store: JobStore) -> None:
    """A name that is misspelt would be waited for in silence; the pauses double."""
    from structlog.testing import capture_logs

    async def scenario() -> None:
        waiting = asyncio.create_task(fired(trigger(store, must_exist=False, poll_interval=0.05)))
        await asyncio.to_thread(
            wait_until, lambda: sum("there is no job 'j'" in line for line in said(lines)) >= 4, what="it is said again"
        )
        waiting.cancel()

    began = time.monotonic()
    with capture_logs() as lines:
        asyncio.run(scenario())
    assert time.monotonic() - began >= 0.05 + 0.1 + 0.2


@pytest.mark.embedded
def test_the_end_of_an_earlier_attempt_does_not_count(store: JobStore) -> None:
    hook = AirExecutorHook()
    hook.create_job("j", ["[ $AIR_EXECUTOR_ATTEMPT = 2 ]"])
    failed = hook.wait_for_job("j", timeout=PATIENCE)

    async def scenario() -> dict[str, str]:
        waiting = asyncio.create_task(fired(trigger(store, after_attempt=failed.attempt)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(hook.retry_job, "j")
        return await waiting

    assert asyncio.run(scenario())["status"] == "completed"


@pytest.mark.embedded
def test_a_half_written_state_is_not_the_jobs_failure(store: JobStore, tmp_path: Path) -> None:
    hook = AirExecutorHook()
    hook.create_job("j", [until(tmp_path / "go")])
    wait_until(lambda: store.get_job("j").state == "working", what="it works")  # nothing more is written until it ends
    whole = store.paths("j").state.read_bytes()

    async def scenario() -> dict[str, str]:
        store.paths("j").state.write_bytes(whole[:30])
        waiting = asyncio.create_task(fired(trigger(store)))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        (tmp_path / "go").touch()
        return await waiting

    assert asyncio.run(scenario())["status"] == "completed"


def said(lines: Sequence[Any]) -> list[str]:
    """The messages that were logged, of those that structlog has captured."""
    return [line["event"] % line.get("positional_args", ()) for line in list(lines)]


@pytest.mark.embedded
def test_progress_is_logged(store: JobStore, tmp_path: Path) -> None:
    from structlog.testing import capture_logs

    tested = trigger(store, poll_interval=0.1)
    tasks = [{"id": "a", "command": "true"}, {"id": "b", "bash": until(tmp_path / "go")}]
    AirExecutorHook().create_job("j", tasks)

    async def scenario() -> None:
        waiting = asyncio.create_task(fired(tested, timeout=PATIENCE))
        progress = "job j: 1 of 2 tasks done, running: b"
        await asyncio.to_thread(wait_until, lambda: progress in said(lines), what="its progress is logged")
        (tmp_path / "go").touch()
        await waiting

    with capture_logs() as lines:
        asyncio.run(scenario())


@pytest.mark.embedded
def test_the_embedded_manager_is_started_again(store: JobStore, tmp_path: Path) -> None:
    AirExecutorHook().create_job("j", [until(tmp_path / "go"), "true"])
    pid = manager_status.pid(store)
    assert pid
    wait_until(lambda: store.get_job("j").state == "working", what="it works")
    os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert asyncio.run(fired(trigger(store, embedded=True, poll_interval=0.2)))["status"] == "completed"


@pytest.mark.embedded
def test_a_job_that_could_not_be_read_at_its_end_is_read_again(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However often that fails: when it has ended, nothing changes any more that would tell of it."""
    AirExecutorHook().create_job("j", [until(tmp_path / "go")])
    load, failed = JobStore.load_job, []

    def load_job(self: JobStore, name: str) -> Any:
        found = load(self, name)
        if found[0].state.is_terminal and len(failed) < 20:
            failed.append(name)
            raise OSError(errno.EMFILE, "Too many open files")
        return found

    async def scenario() -> dict[str, str]:
        waiting = asyncio.create_task(fired(trigger(store, poll_interval=0.1)))
        await asyncio.sleep(0.5)
        monkeypatch.setattr(JobStore, "load_job", load_job)
        (tmp_path / "go").touch()
        return await waiting

    assert asyncio.run(scenario())["status"] == "completed"
    assert len(failed) == 20


@pytest.mark.embedded
def test_no_file_is_touched_in_the_loop(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even by two hundred triggers whose jobs all end; so nothing of it can block the triggerer."""
    hook = AirExecutorHook()
    for number in range(20):
        hook.create_job(f"j{number}", ["sleep 0.5"])
    threads: set[int] = set()

    def seen(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            threads.add(threading.get_ident())
            return real(*args, **kwargs)

        return call

    for name in ("read", "stamp", "is_real_directory", "open_regular"):
        monkeypatch.setattr(files, name, seen(getattr(files, name)))

    async def scenario() -> None:
        waiting = [
            fired(trigger(store, f"j{number % 20}", poll_interval=0.1), timeout=PATIENCE) for number in range(200)
        ]
        await asyncio.gather(*waiting)

    asyncio.run(scenario())
    assert threads
    assert threading.get_ident() not in threads


OWNER = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "try_number": 2, "max_tries": 1}


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("state", "submitted_by", "is_cancelled"),
    [
        (None, {"try_number": 1}, True),  # cleared; the job was submitted by an earlier try
        ("failed", {}, True),  # marked
        ("deferred", {}, False),  # another triggerer waits for it
        (None, {"max_tries": 2}, False),  # it has been cleared, and has submitted another job since
        ("failed", {"task_id": "other"}, False),
    ],
)
def test_a_user_ends_the_task(
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    state: str | None,
    submitted_by: dict[str, Any],
    is_cancelled: bool,
) -> None:
    async def task_state(owner: SubmittedBy) -> str | None:
        assert owner == SubmittedBy(**OWNER)
        return state

    monkeypatch.setattr(triggers, "task_state", task_state)
    hook = AirExecutorHook()
    hook.create_job("j", ["sleep 1000"], submitted_by=SubmittedBy(**{**OWNER, **submitted_by}))
    asyncio.run(trigger(store, owner=OWNER).on_kill())
    if is_cancelled:
        assert hook.wait_for_job("j", timeout=PATIENCE).reason == "cancelled"
    else:
        assert not inbox.requests(store)
        assert store.get_job("j").cancel_requested_at is None
        inbox.cancel(store, "j")


@pytest.mark.embedded
def test_what_a_user_has_ended_is_cancelled_although_airflow_does_not_wait_for_it(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second it cancels a trigger again that has not ended yet, and what that one asks with it."""
    asked, may_answer = threading.Event(), asyncio.Event()

    async def task_state(owner: SubmittedBy) -> str:
        asked.set()
        await may_answer.wait()
        return "failed"

    monkeypatch.setattr(triggers, "task_state", task_state)
    hook = AirExecutorHook()
    hook.create_job("j", ["sleep 1000"], submitted_by=SubmittedBy(**OWNER))

    async def as_the_triggerer_does() -> None:
        tested = trigger(store, owner=OWNER)
        for _ in range(3):
            killing = asyncio.create_task(tested.on_kill())
            await asyncio.to_thread(wait_until, asked.is_set, what="it asks")
            killing.cancel("user action")
            with pytest.raises(asyncio.CancelledError):
                await killing
        may_answer.set()
        await asyncio.to_thread(
            wait_until, lambda: inbox.requests(store) or store.get_job("j").reason, what="it has asked"
        )

    asyncio.run(as_the_triggerer_does())
    assert hook.wait_for_job("j", timeout=PATIENCE).reason == "cancelled"


@pytest.mark.embedded
def test_a_trigger_that_has_no_owner_cancels_nothing(store: JobStore) -> None:
    AirExecutorHook().create_job("j", ["sleep 1000"])
    asyncio.run(trigger(store).on_kill())
    assert not inbox.requests(store)
    inbox.cancel(store, "j")


@pytest.mark.embedded
def test_the_output_of_the_tasks_appears_once_also_after_a_restart(store: JobStore, tmp_path: Path) -> None:
    from structlog.testing import capture_logs

    line = f"echo one; {until(tmp_path / 'go')}; echo two; sleep 1; printf three"
    AirExecutorHook().create_job("j", [{"id": "a", "bash": line}])

    async def interrupted() -> None:
        waiting = asyncio.create_task(fired(trigger(store, stream_logs=True, poll_interval=0.1)))
        await asyncio.to_thread(wait_until, lambda: "a | one" in said(lines), what="its first line is logged")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with capture_logs() as lines:
        asyncio.run(interrupted())
        (tmp_path / "go").touch()
        asyncio.run(fired(trigger(store, stream_logs=True, poll_interval=0.1)))
    assert [line for line in said(lines) if "|" in line] == ["a | one", "a | two", "a | three"]


@pytest.mark.embedded
def test_a_trigger_that_is_ended_waits_until_its_lines_have_arrived(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The triggerer throws away what it has not yet read when the process of its triggers is gone."""
    from structlog.testing import capture_logs

    position = store.paths("j").logs / ".airflow.offsets"
    before: list[bool] = []
    monkeypatch.setattr(trigger_output, "ARRIVAL_SECONDS", 1000.0)
    monkeypatch.setattr(LogStream, "seconds_to_arrival", lambda self: before.append(position.exists()) or 0.0)
    AirExecutorHook().create_job("j", [{"id": "a", "bash": "while echo line; do sleep 0.01; done"}])

    async def interrupted() -> None:
        waiting = asyncio.create_task(fired(trigger(store, stream_logs=True, poll_interval=0.01)))
        await asyncio.to_thread(wait_until, lambda: said(lines).count("a | line") > 20, what="it logs lines")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert before == [False]
        assert json.loads(position.read_text()) == {"a": len("line\n") * said(lines).count("a | line")}

    with capture_logs() as lines:
        asyncio.run(interrupted())
    inbox.cancel(store, "j")


TRIGGERS_PROCESS = """
import asyncio, os, sys
from airflow.sdk.log import configure_logging

configure_logging(json_output=True, output=os.fdopen(int(sys.argv[1]), "wb", buffering=0), sending_to_supervisor=True)
from airflow_provider_air_executor.triggers import AirExecutorJobTrigger

async def run():
    async for event in AirExecutorJobTrigger("j", sys.argv[2], stream_logs=True).run():
        print(event.payload["status"], flush=True)

asyncio.run(run())
"""


@pytest.mark.embedded
def test_a_trigger_fires_when_its_last_lines_have_been_read(store: JobStore) -> None:
    """The triggerer closes the log of a trigger that has ended, whatever of it is still in the socket."""
    AirExecutorHook().create_job("j", ["seq 100"])
    AirExecutorHook().wait_for_job("j", timeout=PATIENCE)
    log, theirs = socket.socketpair()
    command = [sys.executable, "-c", TRIGGERS_PROCESS, str(theirs.fileno()), str(store.base_path)]
    read = b""
    with log, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        theirs.close()
        while b'| 100"' not in read:
            time.sleep(0.1)  # the triggerer looks into its database
            assert not select.select([process.stdout], [], [], 0)[0], "the trigger has fired"
            read += log.recv(4096)
        assert process.communicate()[0] == b"completed\n"
    assert [f'| {number}"'.encode() in read for number in range(1, 101)] == [True] * 100
    assert json.loads((store.paths("j").logs / ".airflow.offsets").read_text()) == {"task-1": 292}


def submitting(**kwargs: Any) -> AirExecutorSubmitTrigger:
    """A trigger that a task starts from, as the triggerer makes it."""
    from airflow.serialization.serialized_objects import BaseSerialization

    retries = kwargs.pop("retries", 0)
    task_instance = TaskInstance(**kwargs.pop("ti", {}))
    given = {"tasks": [{"id": "a", "bash": "echo 7 > $AIR_EXECUTOR_OUTPUT"}], "poll_interval": 0.1, **kwargs}
    _, arguments = AirExecutorSubmitTrigger(retries=retries, **given).serialize()
    made = AirExecutorSubmitTrigger(**BaseSerialization.deserialize(BaseSerialization.serialize(arguments)))
    made.task_instance = task_instance
    return made


async def ended(tested: AirExecutorSubmitTrigger) -> TriggerEvent:
    async with asyncio.timeout(60):
        (event,) = [event async for event in tested.run()]
    return event


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The triggerer's own way to connections is not here."""

    async def location(conn_id: str) -> tuple[str, bool]:
        return AirExecutorHook(conn_id).location

    monkeypatch.setattr(triggers, "location_of", location)


@pytest.mark.usefixtures("here")
class TestSubmitting:
    @pytest.mark.embedded
    def test_a_task_begins_and_ends_in_the_triggerer(self, store: JobStore) -> None:
        event = asyncio.run(ended(submitting(retries=2)))
        assert isinstance(event, TaskSuccessEvent)
        assert event.xcoms is not None
        assert event.xcoms["return_value"] == {"a": 7}
        job = store.get_job(event.xcoms["job_name"])
        assert event.xcoms["job_id"] == job.id
        assert job.submitted_by is not None
        assert (job.submitted_by.task_id, job.submitted_by.max_tries) == ("t", 2)

    @pytest.mark.embedded
    @pytest.mark.parametrize("streamed", [True, False])
    def test_its_output_appears_once(self, store: JobStore, streamed: bool) -> None:
        from structlog.testing import capture_logs

        with capture_logs() as lines:
            asyncio.run(ended(submitting(tasks=[{"id": "a", "bash": "echo ERROR one"}], stream_logs=streamed)))
        assert [line["log_level"] for line in lines if "| ERROR one" in said([line])[0]] == ["error"]

    @pytest.mark.embedded
    def test_a_second_triggerer_finds_the_job(self, store: JobStore) -> None:
        for _ in range(2):
            event = asyncio.run(ended(submitting(job_name="j", push_results=False)))
            assert event.xcoms is not None  # type: ignore[attr-defined]
            assert "return_value" not in event.xcoms  # type: ignore[attr-defined]
        assert store.get_job("j").attempt == 1

    @pytest.mark.embedded
    def test_a_failure_is_told_to_a_worker(self, store: JobStore) -> None:
        event = asyncio.run(ended(submitting(tasks=["exit 3"], job_name="j")))
        assert not isinstance(event, TaskSuccessEvent)
        assert event.payload["status"] == "failed"

    @pytest.mark.embedded
    @pytest.mark.parametrize(
        "more",
        [
            {"ti": {"try_number": 2}},  # it may be a retry, or have been cleared
            {"tasks": [{"command": "a", "dependencies": ["b"]}]},
            {"job_name": "taken"},
        ],
    )
    def test_what_is_not_simple_is_left_to_a_worker(self, store: JobStore, more: dict[str, Any]) -> None:
        AirExecutorHook().create_job("taken", ["true"])
        event = asyncio.run(ended(submitting(**more)))
        assert event.payload["status"] == "not_submitted"
        assert store.job_names() == ["taken"]

    def test_without_locks_nothing_is_submitted(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """The worker says why."""
        monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
        assert asyncio.run(ended(submitting())).payload["status"] == "not_submitted"
        assert store.job_names() == []

    @pytest.mark.embedded
    @pytest.mark.parametrize("output", ["18446744073709551616", '\\"\\\\ud800\\"', "[" * 5000 + "]" * 5000])
    def test_a_result_that_airflow_cannot_hand_on_is_left_to_a_worker(self, store: JobStore, output: str) -> None:
        """It would end the triggerer, again and again."""
        line = f'printf "%s" "{output}" > $AIR_EXECUTOR_OUTPUT'
        event = asyncio.run(ended(submitting(tasks=[line], job_name="j")))
        assert not isinstance(event, TaskSuccessEvent)
        assert event.payload["status"] == "completed"

    @pytest.mark.skipif(not triggers._STARTS, reason="before Airflow 3.3 a worker begins")
    def test_a_template_that_is_not_known_is_left_to_a_worker(self, store: JobStore) -> None:
        tested = submitting(tasks=["rm -rf {{ my_dir }}/out"])
        tested.template_fields = ("tasks",)
        tested.render_template_fields({})
        assert asyncio.run(ended(tested)).payload["status"] == "not_submitted"
        assert store.job_names() == []

    @pytest.mark.embedded
    @pytest.mark.skipif(not triggers._STARTS, reason="before Airflow 3.3 a worker begins")
    def test_templates_in_what_is_said_of_the_job_are_rendered(self, here: None, store: JobStore) -> None:
        """The operator has them as fields of its own, which the trigger does not have."""
        tested = submitting(
            tasks=["true"], spec={"labels": {"day": "{{ ds }}"}, "outlets": ["{{ ds }}.csv"], "priority": 2}
        )
        tested.template_fields = ("tasks",)
        tested.render_template_fields({"ds": "2026-11-29"})
        asyncio.run(ended(tested))
        (job,) = store.list_jobs()
        assert (job.labels, job.outlets, job.priority) == ({"day": "2026-11-29"}, ("2026-11-29.csv",), 2)

    @pytest.mark.embedded
    def test_a_task_that_is_ended_while_it_is_submitted_leaves_no_job(
        self, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def task_state(owner: SubmittedBy) -> str | None:
            return "success"

        monkeypatch.setattr(triggers, "task_state", task_state)
        tested = submitting(tasks=["sleep 1000"], job_name="j")
        submit = tested._submit

        def slowly(owner: SubmittedBy) -> Any:
            time.sleep(0.5)
            return submit(owner)

        monkeypatch.setattr(tested, "_submit", slowly)

        async def scenario() -> None:
            running = asyncio.create_task(ended(tested))
            await asyncio.sleep(0.2)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await tested.on_kill()

        asyncio.run(scenario())
        assert AirExecutorHook().wait_for_job("j", timeout=PATIENCE).reason == "cancelled"

    @pytest.mark.embedded
    def test_the_deadline_is_the_same_for_the_next_triggerer(self, store: JobStore) -> None:
        tested = submitting(tasks=["sleep 1000"], job_name="j", timeout=1)
        assert asyncio.run(ended(tested)).payload["status"] == "timeout"
        created = store.get_job("j").created_at
        assert created is not None
        assert tested.deadline == created.timestamp() + 1
        inbox.cancel(store, "j")


class TestEndsOfJobs:
    @pytest.mark.embedded
    def test_it_fires_for_what_matches(self, store: JobStore) -> None:
        tested = AirExecutorJobEventTrigger(
            job_name="a-*", labels={"team": "x"}, states=["completed"], base_path=str(store.base_path)
        )

        async def scenario() -> list[Any]:
            events: list[Any] = []

            async def take() -> None:
                async for event in tested.run():
                    events.append(event.payload)  # noqa: PERF401 - it goes on for ever

            reading = asyncio.create_task(take())
            reads = subscriber_path(store, tested.subscriber()).exists
            await asyncio.to_thread(wait_until, reads, what="it reads")
            hook = AirExecutorHook()
            for name, line, team in (
                ("b-1", "true", "x"),
                ("a-1", "exit 1", "x"),
                ("a-2", "true", "y"),
                ("a-3", "true", "x"),
            ):
                await asyncio.to_thread(hook.create_job, name, [line], labels={"team": team}, outlets=["file:///x"])
            await asyncio.to_thread(wait_until, lambda: events, what="it has fired")
            await asyncio.sleep(0.3)
            reading.cancel()
            return events

        (event,) = asyncio.run(scenario())
        assert (event["job_name"], event["state"], event["outlets"]) == ("a-3", "completed", ["file:///x"])
        assert event["job_id"] == store.get_job("a-3").id

    @pytest.mark.embedded
    def test_its_events_can_be_stored(self, store: JobStore) -> None:
        AirExecutorHook().create_job("j", ["exit 1"], submitted_by=SubmittedBy(**OWNER))
        AirExecutorHook().wait_for_job("j")
        told = json.loads(json.dumps(event_of(store.get_job("j"))))
        assert (told["state"], told["reason"], told["submitted_by"]["dag_id"]) == ("failed", "exit", "d")

    def test_another_state_is_refused(self) -> None:
        with pytest.raises(InvalidJobError, match="states"):
            AirExecutorJobEventTrigger(states=["working"])

    def test_equal_triggers_are_one_subscriber_and_others_are_not(self) -> None:
        subscribers = {
            AirExecutorJobEventTrigger(**arguments).subscriber()
            for arguments in ({}, {"poll_interval": 9}, {"job_name": "a"}, {"outlet": "file:///x"})
        }
        assert len(subscribers) == 4


class _Theirs(AirExecutorJobTrigger):
    """A class of a user, with one argument of its own."""

    def __init__(self, *args: Any, colour: str = "red", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.colour = colour


def test_a_class_of_a_user_that_hands_arguments_on_is_serialized(store: JobStore) -> None:
    path, arguments = _Theirs("j", str(store.base_path), colour="blue", poll_interval=3.0).serialize()
    assert path.endswith("._Theirs")
    again = _Theirs(**arguments)
    assert (again.job_name, again.colour, again.poll_interval) == ("j", "blue", 3.0)
    assert again.serialize() == (path, arguments)
