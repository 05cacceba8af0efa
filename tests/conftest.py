"""What holds for all tests."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.run", "tests.support.fixtures"]

# How long an example takes is the machine's affair.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# Tests that share what takes long to start run one after the other, in one worker. The groups that take longest come
# first, and single tests last, so that all workers end at about the same time.
LONGEST = ("kubernetes", "slurm", "examples", "operator", "crashes", "executor", "browser", "plugin", "documented")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark and group the tests that ask PostgreSQL, and put the longest groups first."""
    for item in items:
        call = getattr(item, "callspec", None)
        if "postgresql" in getattr(item, "fixturenames", ()) or (call and "postgresql" in call.params.values()):
            item.add_marker(pytest.mark.postgresql)
            item.add_marker(pytest.mark.xdist_group("postgresql"))
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    group = item.get_closest_marker("xdist_group")
    name = group.args[0] if group else ""
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)
