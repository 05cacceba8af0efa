"""The contract of runners, kept by those of this machine: a process of its own, and a forked one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.manager.runners.contract import Engine, RunnerContract
from tests.support.managers import Managers

pytestmark = pytest.mark.engine

# A module that becomes the command it is given, so that a forked runner can be asked for the same as all others.
_BECOME = """\
import os, signal, sys
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
"""


class TestLocal(RunnerContract):
    """A process of its own."""

    @pytest.fixture
    def engine(self) -> Engine:
        return Engine("local")


class _Warm(Engine):
    """Tasks whose processes are forked."""

    def __init__(self, modules: Path) -> None:
        super().__init__("warm", environment={"PYTHONPATH": str(modules)})

    def prepare(self, managers: Managers) -> None:
        Path(self.environment["PYTHONPATH"], "become.py").write_text(_BECOME)
        super().prepare(managers)

    def task(self, bash: str, **more: Any) -> dict[str, Any]:
        return self.command("bash", "-c", bash, **more)

    def command(self, *words: str, **more: Any) -> dict[str, Any]:
        return super().command(sys.executable, "-m", "become", *words, **more)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")
class TestWarm(RunnerContract):
    """A process that is forked from a warm one."""

    @pytest.fixture
    def engine(self, tmp_path: Path) -> Engine:
        modules = tmp_path / "modules"
        modules.mkdir()
        return _Warm(modules)

    @pytest.mark.skip(reason="its command is always a module, which finds out for itself what is not there")
    def test_a_missing_command(self) -> None:
        """Replaces the one of the contract."""

    @pytest.mark.skip(reason="its command is always a module")
    def test_a_builtin_of_the_shell_is_not_a_command(self) -> None:
        """Replaces the one of the contract."""
