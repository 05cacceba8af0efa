"""Timers by a clock that a test moves on."""

from __future__ import annotations

from airflow_provider_air_executor.manager.timers import Backoff, Timers


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return 0


def test_a_pause_doubles_until_it_succeeds_and_has_one_timer() -> None:
    clock, tries = Clock(), []
    timers = Timers(clock)
    backoff = Backoff(timers)
    for pause in (1, 2, 4, 8, 16, 30, 30):
        for _ in range(2):
            backoff.retry(lambda: tries.append(clock.now))
        assert timers.next_due == clock.now + pause
        clock.now += pause
        timers.expire()
        assert not backoff.is_waiting
    assert len(tries) == 7
    backoff.reset()
    backoff.retry(lambda: None)
    assert timers.next_due == clock.now + 1


def test_a_cancelled_deadline_does_nothing() -> None:
    clock, done = Clock(), []
    timers = Timers(clock)
    for key in "ab":
        timers.by(key, 1, lambda key=key: done.append(key))  # type: ignore[misc]
    timers.cancel("a")
    clock.now = 1
    timers.expire()
    assert done == ["b"]
