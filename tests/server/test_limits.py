"""Limits of what one client may ask."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.server import limits
from airflow_provider_air_executor.server.limits import FAILED_LOGINS, MAX_TASKS, FailedLogins, RequestLimits


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_failed_logins_are_limited_for_a_minute(clock: Clock):
    logins = FailedLogins(clock)
    for _ in range(FAILED_LOGINS):
        assert logins.wait("192.0.2.1") == 0
        logins.failed("192.0.2.1")
        clock.now += 1
    assert logins.wait("192.0.2.1") == 50
    assert logins.wait("192.0.2.2") == 0
    clock.now += 50
    assert logins.wait("192.0.2.1") == 0, "the first of them is a minute ago"
    logins.failed("192.0.2.1")
    assert logins.wait("192.0.2.1") == 1


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "192.0.2.1", False),
        ("unknown", "unknown", True),
    ],
)
def test_a_network_of_ipv6_counts_as_one_address(clock: Clock, one: str, other: str, is_same: bool):
    logins = FailedLogins(clock)
    for _ in range(FAILED_LOGINS):
        logins.failed(one)
    assert bool(logins.wait(other)) == is_same


def test_the_memory_of_failed_logins_is_bounded(clock: Clock):
    logins = FailedLogins(clock)
    for number in range(20_000):
        logins.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(logins._failed) <= 4_096


def test_the_number_of_tasks_is_limited():
    limits.check_tasks(MAX_TASKS)
    with pytest.raises(InvalidJobError, match="tasks"):
        limits.check_tasks(MAX_TASKS + 1)


async def ask(
    app: RequestLimits, pieces: list[bytes], *, path: str = "/v1/jobs", method: str = "POST", declared: str = ""
) -> tuple[int, dict[str, Any]]:
    """What a request is answered."""
    headers = [(b"content-length", declared.encode())] if declared else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    left = list(pieces)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not left:
            return {"type": "http.disconnect"}
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return 0, {}
    assert app._held == 0
    return sent[0]["status"], json.loads(sent[1]["body"])


async def counting(scope: Any, receive: Any, send: Any) -> None:
    """An application that says how long the body was."""
    message = await receive()
    assert not message["more_body"]
    assert (await receive())["type"] == "http.disconnect"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"length": len(message["body"])}).encode()})


def test_a_body_is_read_before_the_application_is_asked():
    assert asyncio.run(ask(RequestLimits(counting), [b"abc", b"", b"de"])) == (200, {"length": 5})
    assert asyncio.run(ask(RequestLimits(counting), [b""])) == (200, {"length": 0})


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_body_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch, method: str):
    monkeypatch.setattr(limits, "MAX_REQUEST_BYTES", 10)
    monkeypatch.setattr(limits, "MAX_SMALL_REQUEST_BYTES", 10)
    status, problem = asyncio.run(ask(RequestLimits(counting), [b"x" * 6, b"x" * 5], method=method))
    assert (status, problem["type"]) == (413, "urn:air-executor:too-large")


@pytest.mark.parametrize("declared", ["11", "9" * 30])
def test_a_body_that_is_said_to_be_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch, declared: str):
    monkeypatch.setattr(limits, "MAX_REQUEST_BYTES", 10)
    status, _ = asyncio.run(ask(RequestLimits(counting), [], declared=declared))
    assert status == 413


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/jobs", 200), ("/v1/jobs/a/tasks", 200), ("/v1/jobs/a/cancel", 413), ("/v1/records/query", 413)],
)
def test_only_a_submission_may_be_long(monkeypatch: pytest.MonkeyPatch, path: str, status: int):
    monkeypatch.setattr(limits, "MAX_SMALL_REQUEST_BYTES", 10)
    assert asyncio.run(ask(RequestLimits(counting), [b"x" * 11], path=path))[0] == status


def test_bodies_together_are_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "MAX_BODIES_BYTES", 10)
    status, problem = asyncio.run(ask(RequestLimits(counting), [b"x" * 6, b"x" * 5]))
    assert (status, problem["type"]) == (503, "urn:air-executor:unavailable")


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/jobs", "headers": []}
    asyncio.run(RequestLimits(counting)(scope, never, send))
    assert sent[0]["status"] == 408


def test_a_client_that_goes_is_not_answered():
    assert asyncio.run(ask(RequestLimits(counting), [])) == (0, {})
