"""What holds for all tests."""

from __future__ import annotations

import signal

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.support.run",
    "tests.support.base_path",
    "tests.support.fixtures",
    "tests.support.scheduling",
    "tests.support.sshd",
]

# How long an example takes is the machine's affair.
settings.register_profile("tests", deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", settings.get_profile("tests"), max_examples=8)  # make test-fast
settings.load_profile("tests")

# A shell without job control lets what it starts in the background ignore these, and all that is started there would.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that ask a PostgreSQL server."""
    for item in items:
        call = getattr(item, "callspec", None)
        if "postgresql" in getattr(item, "fixturenames", ()) or (call and "postgresql" in call.params.values()):
            item.add_marker(pytest.mark.postgresql)
