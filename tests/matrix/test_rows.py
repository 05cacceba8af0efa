"""The rows of the matrix that take seconds, and the page that says what the others have shown."""

from __future__ import annotations

import re

import pytest

from tests.matrix import page
from tests.matrix.rows import ROWS, Row
from tests.matrix.running import missing, run
from tests.support import ordinary_user

QUICK = [row for row in ROWS if row.quick]


@pytest.mark.skipif(bool(ordinary_user.missing()), reason=f"needs {', '.join(ordinary_user.missing())}")
@pytest.mark.parametrize("row", QUICK, ids=[row.name for row in QUICK])
def test_a_row_that_takes_seconds(row: Row) -> None:
    if missing(row):
        pytest.skip(f"not installed: {', '.join(missing(row))}")
    done = run(row, quick=True)
    assert done.outcome.is_good, done.output


def test_names_are_unique_and_can_be_typed() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names)


def test_each_row_has_tests_or_a_reason() -> None:
    assert all(bool(row.tests) != bool(row.reason) for row in ROWS)


def test_the_page_says_what_was_seen() -> None:
    """It is written by ``make matrix``; after a change of the rows, by ``make matrix-page``."""
    assert page.PAGE.read_text() == page.text(page.load())


def test_no_result_is_of_a_row_that_is_gone() -> None:
    assert page.load().keys() <= {row.name for row in ROWS}
