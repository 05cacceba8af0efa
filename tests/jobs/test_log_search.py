"""A search in a log of any length."""

from __future__ import annotations

import pytest

from airflow_provider_air_executor.jobs import log_search
from airflow_provider_air_executor.jobs.log_search import search
from airflow_provider_air_executor.jobs.logs import TaskLog
from airflow_provider_air_executor.jobs.masking import Mask
from airflow_provider_air_executor.jobs.store import JobStore

ALL = 2**40


@pytest.fixture
def log(store: JobStore) -> TaskLog:
    store.submit("j", [{"id": "t", "command": "true"}])
    return TaskLog(store.paths("j"), "t")


def put(store: JobStore, data: bytes) -> None:
    store.paths("j").log("t").write_bytes(data)


@pytest.mark.parametrize(
    ("text", "offsets"),
    [
        ("ERROR", [0, 15]),
        ("error t", [15]),
        ("red alert", [26]),
        ("£", [45]),
        ("\x1b", []),
        ("one\nfine", []),
        ("missing", []),
    ],
)
def test_lines_with_a_text(store: JobStore, log: TaskLog, text: str, offsets: list[int]) -> None:
    put(store, b"Error one\nfine\nan error t\n\x1b[31mred\x1b[0m alert\n" + "5 £".encode())
    assert search(log, Mask(), text, 0, ALL).offsets == offsets


def test_a_part_of_a_log(store: JobStore, log: TaskLog) -> None:
    put(store, b"a\nb\na\nb\na\n")
    assert search(log, Mask(), "a", 2, 7) == ([4], None)
    assert search(log, Mask(), "a", 99, ALL) == ([], None)


def test_pieces_and_calls_do_not_cut_lines(store: JobStore, log: TaskLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_search, "_PIECE", 10)
    monkeypatch.setattr(log_search, "_MAX_SEARCHED", 25)
    lines = [b"needle %d" % number if number % 3 == 0 else b"x" * (number % 9) for number in range(60)]
    lines += [b"y" * 95, b"a needle"]
    put(store, b"\n".join(lines))
    expected = [sum(len(line) + 1 for line in lines[:n]) for n, line in enumerate(lines) if b"needle" in line]
    found: list[int] = []
    offset: int | None = 0
    calls = 0
    while offset is not None:
        part = search(log, Mask(), "NEEDLE", offset, ALL)
        found += part.offsets
        offset = part.next_offset
        calls += 1
    assert found == expected
    assert calls > 5


def test_a_call_ends_when_it_has_found_enough(store: JobStore, log: TaskLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_search, "_PIECE", 10)
    monkeypatch.setattr(log_search, "_MAX_FOUND", 3)
    put(store, b"a\n" * 50)
    first = search(log, Mask(), "a", 0, ALL)
    assert (len(first.offsets), first.next_offset) == (5, 10)


def test_secrets_are_not_found(store: JobStore, log: TaskLog) -> None:
    put(store, b"first\nthe hunter2 in it\nlast\nhunt\ner2\nend")
    mask = Mask(["hunter2"])
    for guess, offsets in {"hunter2": [], "the hunt": [], "hunt": [29], "er2": [34]}.items():
        assert search(log, mask, guess, 0, ALL).offsets == offsets
    assert search(log, mask, "the *** in", 0, ALL).offsets == [6]
    assert search(log, mask, "last", 0, ALL).offsets == [24]  # where the file has it


def test_a_secret_of_several_lines(store: JobStore, log: TaskLog) -> None:
    put(store, b"first\n-----\nkey\n-----\nlast\n")
    assert search(log, Mask(["-----\nkey\n-----"]), "last", 0, ALL).offsets == [0]  # about there
    assert search(log, Mask(["-----\nkey\n-----"]), "key", 0, ALL).offsets == []
