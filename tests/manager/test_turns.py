"""Long work on one job is done in pieces, in turns with that of others."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from airflow_provider_air_executor.manager import turns
from airflow_provider_air_executor.manager.turns import Turns

Done = list[str]


def work(name: str, done: Done, pieces: int, *, waits: bool = False) -> Generator[bool, None, None]:
    """Work of some pieces, each of which is noted."""
    for number in range(pieces):
        done.append(f"{name}{number}")
        yield waits
    done.append(f"{name} over")


@pytest.fixture
def failed() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def found(failed: list[tuple[str, str]]) -> Turns:
    return Turns(lambda name, error: failed.append((name, str(error))))


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece takes longer than work may take at a time."""
    monkeypatch.setattr(turns, "_SECONDS", -1.0)


def test_what_is_short_is_done_at_once(found: Turns) -> None:
    done: Done = []
    found.do("a", work("a", done, 3))
    assert done == ["a0", "a1", "a2", "a over"]
    assert not found.is_busy("a")
    assert found.poll_after is None


def test_long_work_takes_turns(found: Turns, one_at_a_time: None) -> None:
    done: Done = []
    for name in "ab":
        found.do(name, work(name, done, 2))
    assert done == ["a0", "b0"]
    assert found.is_busy("a")
    assert found.poll_after is not None
    for _ in range(2):
        found.advance()
    assert done == ["a0", "b0", "a1", "b1", "a over", "b over"]
    assert found.poll_after is None


def test_work_on_the_same_job_is_done_in_its_order(found: Turns, one_at_a_time: None) -> None:
    done: Done = []
    found.do("a", work("first", done, 1))
    found.do("a", work("second", done, 1))
    while found.is_busy("a"):
        found.advance()
    assert done == ["first0", "first over", "second0", "second over"]


def test_what_waits_for_the_disk_leaves_time_to_others(found: Turns) -> None:
    done: Done = []
    found.do("a", work("a", done, 2, waits=True))
    assert done == ["a0"]
    found.advance()
    assert found.poll_after is not None
    assert found.poll_after > 0


def test_what_fails_ends_and_what_follows_is_done(found: Turns, failed: list[tuple[str, str]]) -> None:
    done: Done = []

    def failing() -> Generator[bool, None, None]:
        yield True
        raise KeyError("no")

    found.do("a", failing())
    found.do("a", work("a", done, 0))
    found.advance()
    assert failed == [("a", "'no'")]
    assert done == ["a over"]


def test_work_may_drop_what_follows_and_begin_anew(found: Turns, one_at_a_time: None) -> None:
    """As that of a job whose directory is gone, while there is another one of its name already."""
    done: Done = []

    def dropping() -> Generator[bool, None, None]:
        yield False
        found.drop("a")
        found.do("a", work("new", done, 1))

    found.do("a", dropping())
    found.do("a", work("old", done, 1))
    while found.is_busy("a"):
        found.advance()
    assert done == ["new0", "new over"]


def test_dropped_work_ends_as_such(found: Turns, one_at_a_time: None) -> None:
    ended = []

    def closing() -> Generator[bool, None, None]:
        try:
            yield False
        finally:
            ended.append("closed")

    found.do("a", closing())
    found.drop("a")
    assert ended == ["closed"]
    assert not found.is_busy("a")
