"""A manager that is reached by its server alone: what works with files works, and an outage harms nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from structlog.testing import capture_logs

from airflow_provider_air_executor import Client, operators, sensors, trigger_locations
from airflow_provider_air_executor.event_triggers import AirExecutorJobEventTrigger
from airflow_provider_air_executor.exceptions import JobFailedError, JobsAwayError, JobTimeoutError
from airflow_provider_air_executor.hooks import AirExecutorHook
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.notifications import AirExecutorNotifier
from airflow_provider_air_executor.operators import AirExecutorSubmitOperator
from airflow_provider_air_executor.sensors import AirExecutorJobSensor
from airflow_provider_air_executor.server import presence
from airflow_provider_air_executor.triggers import AirExecutorJobTrigger
from tests.support.contexts import TaskInstance, context
from tests.support.servers import ServerThread
from tests.support.waiting import PATIENCE, until, wait_until

pytestmark = pytest.mark.embedded

RESULT = "echo '{\"rows\": 3}' > $AIR_EXECUTOR_OUTPUT"


@pytest.fixture
def server(store: JobStore) -> Iterator[ServerThread]:
    """A server that starts a manager with the first job."""
    with ServerThread(store, embedded=True) as found:
        yield found


def connect(monkeypatch: pytest.MonkeyPatch, host: str, **fields: Any) -> None:
    connection = {"conn_type": "air_executor", "host": host, **fields}
    monkeypatch.setenv("AIRFLOW_CONN_AIR_EXECUTOR_DEFAULT", json.dumps(connection))


@pytest.fixture(params=["tcp", "unix"])
def reached(server: ServerThread, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ServerThread:
    """The server, to which the default connection leads."""
    if request.param == "tcp":
        connect(monkeypatch, server.url, password=server.token("dags", "submit"))
    else:
        connect(monkeypatch, server.socket)
    return server


class Restarted:
    """Servers, one after the other, to which the default connection leads."""

    def __init__(self, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store = store
        self._server: ServerThread | None = None
        connect(monkeypatch, str(presence.socket_path(store)))

    def start(self) -> None:
        self._server = ServerThread(self._store, embedded=True).__enter__()

    def stop(self) -> None:
        if self._server is not None:
            self._server.__exit__()
            self._server = None


@pytest.fixture
def restarted(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Restarted]:
    found = Restarted(store, monkeypatch)
    found.start()
    yield found
    found.stop()


def operator(tasks: Any, **kwargs: Any) -> AirExecutorSubmitOperator:
    return AirExecutorSubmitOperator(task_id="t", tasks=tasks, poll_interval=0.2, **kwargs)


def text_of(line: Any) -> str:
    return str(line["event"] % line.get("positional_args", ()))


def deferred(tested: Any) -> AirExecutorJobTrigger:
    """The trigger for which an operator or sensor defers, as the triggerer makes it."""
    with pytest.raises(TaskDeferred) as raised:
        tested.execute(context())
    path, arguments = raised.value.trigger.serialize()
    assert path.endswith(".AirExecutorJobTrigger")
    assert arguments["base_path"] is None
    assert arguments["air_executor_conn_id"] == "air_executor_default"
    assert "aex_" not in json.dumps(arguments), "a token is never serialized"
    return AirExecutorJobTrigger(**arguments)


async def fired(tested: AirExecutorJobTrigger) -> dict[str, str]:
    async with asyncio.timeout(PATIENCE):
        (event,) = [event.payload async for event in tested.run()]
    return event


@pytest.mark.usefixtures("reached")
def test_an_operator_that_waits_itself(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    with capture_logs() as captured:

        def lines() -> list[str]:
            return [text_of(line) for line in captured]

        def let_it_end() -> None:
            """Let the task go on when the log has said how far its job is."""
            wait_until(lambda: any("running: a" in line for line in lines()), what="progress in the log")
            seen.touch()

        with ThreadPoolExecutor(1) as pool:
            ended = pool.submit(let_it_end)
            found = operator([{"id": "a", "bash": f"echo one; {until(seen)}; echo two; {RESULT}"}]).execute(context())
            ended.result()
    assert found == {"a": {"rows": 3}}
    assert [line for line in lines() if line.startswith("a | ")] == ["a | one", "a | two"]


@pytest.mark.usefixtures("reached")
def test_an_operator_whose_job_fails() -> None:
    with pytest.raises(JobFailedError, match="exit code 3") as failed:
        operator(["echo the end; exit 3"]).execute(context())
    assert "task-1 | the end" in failed.value.details


@pytest.mark.usefixtures("reached")
def test_an_operator_that_defers(tmp_path: Path) -> None:
    go = tmp_path / "go"
    tested = operator([{"id": "a", "bash": f"{until(go)}; echo one; {RESULT}"}], deferrable=True)
    with capture_logs() as captured:
        trigger = deferred(tested)
        go.touch()
        event = asyncio.run(fired(trigger))
        assert event["status"] == "completed"
        assert tested.execute_complete(context(), event) == {"a": {"rows": 3}}
    assert [text_of(line) for line in captured if text_of(line).startswith("a | ")] == ["a | one"]


@pytest.mark.usefixtures("reached")
def test_a_retry_reattaches_the_job() -> None:
    with pytest.raises(JobFailedError):
        operator(["[ $AIR_EXECUTOR_ATTEMPT = 2 ]"], on_kill="leave").execute(context(max_tries=1))
    assert operator(["true"]).execute(context(max_tries=1, try_number=2)) == {}


@pytest.mark.usefixtures("reached")
def test_a_sensor_waits_for_a_job_that_comes_later() -> None:
    sensor = AirExecutorJobSensor(task_id="s", job_name="j", deferrable=True, poke_interval=0.2)
    trigger = deferred(sensor)

    async def scenario() -> dict[str, str]:
        waiting = asyncio.create_task(fired(trigger))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(AirExecutorHook().create_job, "j", [RESULT])
        return await waiting

    event = asyncio.run(scenario())
    assert sensor.execute_complete(context(), event) == {"task-1": {"rows": 3}}


@pytest.mark.usefixtures("reached")
def test_each_end_of_a_job_fires_once() -> None:
    hook = AirExecutorHook()

    async def first(trigger: AirExecutorJobEventTrigger, number: int) -> list[str]:
        names = []
        async with asyncio.timeout(PATIENCE), contextlib.aclosing(trigger.run()) as events:  # type: ignore[type-var]
            asking = asyncio.ensure_future(asyncio.to_thread(submit)) if not hook.list_jobs() else None
            async for event in events:
                names.append(event.payload["job_name"])
                if len(names) == number:
                    break
            if asking is not None:
                await asking
        return names

    def submit() -> None:
        time.sleep(1)  # it must have subscribed
        for name in ("a-1", "b-1", "a-2"):
            hook.create_job(name, ["true"])
            hook.wait_for_job(name, timeout=PATIENCE)

    assert asyncio.run(first(AirExecutorJobEventTrigger(job_name="a-*", poll_interval=0.2), 2)) == ["a-1", "a-2"]


@pytest.mark.usefixtures("reached")
def test_a_callback_submits_one_job() -> None:
    for _ in range(2):
        AirExecutorNotifier(tasks=["true"])({"ti": TaskInstance(state="failed")})
    (job,) = AirExecutorHook().list_jobs()
    assert job.submitted_by is not None
    assert job.submitted_by.callback == "failure"


def test_what_the_test_of_the_connection_says(server: ServerThread, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, server.url, password=server.token("dags", "submit"))
    well, message = AirExecutorHook().test_connection()
    assert well
    assert server.url in message
    assert "token 'dags'" in message
    connect(monkeypatch, server.url, password="aex_wrong")
    well, message = AirExecutorHook().test_connection()
    assert not well
    assert "aex_wrong" not in message


def test_a_client_with_a_url(server: ServerThread) -> None:
    client = Client(server.url, token=server.token("programs", "submit"))
    assert client.run([{"id": "a", "bash": f"echo one; {RESULT}"}], "j") == {"a": {"rows": 3}}
    job = client.job("j")
    assert job.logs() == {"a": "one\n"}
    assert repr(job) == f"<job j in {server.url}>"
    job.delete()
    assert client.jobs() == []


def test_an_outage_is_said_once_and_harms_nothing(restarted: Restarted, tmp_path: Path) -> None:
    tested = operator([{"id": "a", "bash": f"echo one; {until(tmp_path / 'go')}; echo two"}], deferrable=True)

    def lines(text: str) -> list[str]:
        return [text_of(line) for line in captured if text in text_of(line)]

    def lose() -> None:
        wait_until(lambda: lines("a | one"), what="its output appears")
        restarted.stop()
        wait_until(lambda: lines("cannot be reached"), what="it is said that the manager is away")
        (tmp_path / "go").touch()
        time.sleep(1)
        restarted.start()

    async def scenario() -> dict[str, str]:
        losing = asyncio.create_task(asyncio.to_thread(lose))
        event = await fired(trigger)
        await losing
        return event

    with capture_logs() as captured:
        trigger = deferred(tested)
        assert asyncio.run(scenario())["status"] == "completed"
    assert lines("a | ") == ["a | one", "a | two"]
    assert len(lines("cannot be reached")) == 1
    assert len(lines("is reached again")) == 1


def test_a_worker_that_is_killed_during_an_outage_does_not_wait_for_its_end(
    restarted: Restarted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operators, "_KILL_PATIENCE", 0.2)
    tested = operator(["sleep 1000"], deferrable=True)
    deferred(tested)
    restarted.stop()
    tested.on_kill()
    assert "could not be cancelled" in caplog.text
    with pytest.raises(JobsAwayError):
        AirExecutorHook().patient(0).get_job("j")


def test_a_timeout_is_over_during_an_outage_too(
    restarted: Restarted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(operators, "_TIMEOUT_PATIENCE", 0.2)
    caplog.set_level(logging.INFO)
    tested = operator(["sleep 1000"], timeout=3)

    def stop() -> None:
        wait_until(lambda: "submitted job" in caplog.text, what="its answer is here")
        restarted.stop()

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(JobTimeoutError, match="it could not be cancelled"):
        tested.execute(context())
    stopping.join()
    assert caplog.text.count("it is tried again") == 1
    assert "cannot be read now" not in caplog.text


def test_nobody_waits_for_a_server_that_is_away_only_to_keep_its_manager(
    restarted: Restarted, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker has submitted its job: its own timeout begins now, whatever the network does."""
    hook = AirExecutorHook()
    hook.create_job("j", [RESULT])
    restarted.stop()
    hook.ensure_manager()
    assert "it is tried again" in caplog.text


def test_a_sensor_pokes_again_after_an_outage(
    restarted: Restarted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sensors, "_POKE_PATIENCE", 0.0)
    AirExecutorHook().create_job("j", [RESULT])
    AirExecutorHook().wait_for_job("j", timeout=PATIENCE)
    restarted.stop()
    sensor = AirExecutorJobSensor(task_id="s", job_name="j")
    for _ in range(3):
        assert not sensor.poke(context())
    restarted.start()
    wait_until(lambda: sensor.poke(context()).xcom_value == {"task-1": {"rows": 3}}, what="it sees the job again")
    assert caplog.text.count("cannot be reached") == 1


def test_a_token_that_was_replaced_is_taken_from_the_connection(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from airflow_provider_air_executor.server.tokens import Tokens

    monkeypatch.setattr(trigger_locations, "_FRESH_SECONDS", 0.0)
    connect(monkeypatch, server.url, password=server.token("old", "submit"))
    trigger = deferred(operator([until(tmp_path / "go")], deferrable=True))

    async def scenario() -> dict[str, str]:
        waiting = asyncio.create_task(fired(trigger))
        await asyncio.sleep(0.5)
        Tokens(server.store.base_path).revoke("old")
        await asyncio.sleep(1)
        connect(monkeypatch, server.url, password=server.token("new", "submit"))
        (tmp_path / "go").touch()
        return await waiting

    assert asyncio.run(scenario())["status"] == "completed"


def test_all_triggers_ask_airflow_for_a_connection_once(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "https://jobs.example.org")
    asked = []
    get_connection = AirExecutorHook.get_connection

    def counted(_: Any, conn_id: str) -> Any:
        asked.append(conn_id)
        return get_connection(conn_id)

    monkeypatch.setattr(AirExecutorHook, "get_connection", classmethod(counted))

    async def scenario() -> set[Any]:
        found = await asyncio.gather(*(trigger_locations.location_of("air_executor_default") for _ in range(1000)))
        return {*found, await trigger_locations.location_of("air_executor_default")}

    assert len(asyncio.run(scenario())) == 1
    assert asked == ["air_executor_default"]
