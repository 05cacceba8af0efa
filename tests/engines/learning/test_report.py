"""What tasks have reported is checked: anything may be in it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_air_executor.engines.local.learning.report import MAX_NAMES, Report
from airflow_provider_air_executor.system.import_report import MAX_REPORT
from tests.engines.learning.reports import report


def test_a_report_is_read() -> None:
    found = Report.parse(report(numpy=["numpy", "numpy.fft"], changed=("OMP_NUM_THREADS",)))
    assert found == Report("dags/a.py", 0.5, ("OMP_NUM_THREADS",), True, {"numpy": ("numpy", "numpy.fft")})


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff", b"[]", b"null", b"{}", b'{"file": 1}', b'{"file": ""}', b'{"file": "a\\nb"}', b"[" * 50_000,
        json.dumps({"file": "x" * 501}).encode(), report(numpy=["numpy"]) + b" " * MAX_REPORT,
    ],
)  # fmt: skip
def test_what_is_no_report_is_ignored(data: bytes) -> None:
    assert Report.parse(data) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parse", "long"), ("parse", True), ("parse", [1]), ("changed", "A"), ("changed", [1, "A B", "A=1", "", "9"]),
        ("roots", []), ("roots", {"../etc": ["../etc"]}), ("roots", {"a": "a"}), ("roots", {"a": [1, None, {}]}),
        ("roots", {"a": ["b", "ab.c", "a..b", "a.b\n", "a;b"]}), ("roots", {"a" * 300: ["a" * 300]}), ("base", "yes"),
        ("roots", {"ä": ["ä"]}),
    ],
)  # fmt: skip
def test_what_is_not_valid_in_it_is_left_out(field: str, value: Any) -> None:
    found = Report.parse(json.dumps({"file": "f", field: value}).encode())
    assert found == Report("f", 0.0, (), False, {})


def test_it_is_bounded() -> None:
    names = [f"a.b{number}" for number in range(MAX_NAMES + 5)]
    found = Report.parse(
        json.dumps({"file": "f", "parse": 1e300, "changed": ["A"] * 50, "roots": {"a": names}}).encode()
    )
    assert found is not None
    assert len(found.roots["a"]) == MAX_NAMES
    assert (found.parse_seconds, found.changed) == (3600.0, ("A",) * 20)
