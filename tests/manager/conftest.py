"""What several modules of the manager's tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.stepped_manager import SteppedManager


@pytest.fixture
def stepped() -> Iterator[SteppedManager]:
    """A manager that goes round when the test says so."""
    found = SteppedManager()
    yield found
    found.close()
