"""What a task may hand over as its result."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.outputs import MAX_DEPTH, why_unfit


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ('{"a": [NaN]}', "nan is no number"),
        ("-Infinity", "-inf is no number"),
        ("1e999", "inf is no number"),
        (r'["a\u0000b"]', "NUL"),
        (r'{"\u0000": 1}', "NUL"),
        (r'{"a": "\ud800"}', "lone surrogate"),
        (r'{"\udfff": 1}', "lone surrogate"),
        ("18446744073709551616", "64 bits"),
        ("[-9223372036854775809]", "64 bits"),
        ('[{"__its": 1}]', "has __its among its keys"),
        ('{"x": {"b": 1, "a": 2, "c": 3}}', "has a and b among its keys"),
    ],
)
def test_what_no_reader_keeps_is_refused_at_any_depth(written: str, says: str) -> None:
    value = json.loads(written)
    for whole in (value, [{"x": [value]}]):
        assert says in str(why_unfit(whole, [frozenset({"__its"}), frozenset({"a", "b"})]))


def test_nesting_has_an_end() -> None:
    assert why_unfit(nested(MAX_DEPTH)) is None
    assert "deep" in str(why_unfit(nested(MAX_DEPTH + 1)))
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    assert "deep" in str(why_unfit(value))


@pytest.mark.parametrize("value", [None, True, 0.5, 2**64 - 1, -(2**63), "ä\U0001f600\x01", {"a": 1}, [], {"": {}}])
def test_all_else_is_kept(value: Any) -> None:
    assert why_unfit(value, [frozenset({"a", "b"})]) is None
