"""A manager whose tasks an engine runs."""

from __future__ import annotations

import subprocess

import pytest

from tests.manager.runners.contract import Engine
from tests.support.managers import Managers


@pytest.fixture
def manager(managers: Managers, engine: Engine) -> subprocess.Popen[str]:
    """A manager whose tasks run on the engine."""
    engine.prepare(managers)
    return managers.start()
