"""A manager whose tasks an engine runs."""

from __future__ import annotations

import subprocess

import pytest

from tests.engines.contract import Engine
from tests.support.managers import Managers


@pytest.fixture
def engine() -> Engine | None:
    """The engine that a module of tests is about; None: that of this machine, as it is by default."""
    return None


@pytest.fixture
def manager(managers: Managers, engine: Engine | None) -> subprocess.Popen[str]:
    """A manager whose tasks run on the engine."""
    if engine is not None:
        engine.prepare(managers)
    return managers.start()
