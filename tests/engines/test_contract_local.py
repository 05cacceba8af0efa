"""The contract of engines, with the local one: a process of its own, and a forked one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.store import JobStore
from tests.engines.contract import Engine, EngineContract
from tests.support import ordinary_user
from tests.support.launched import LAUNCHED
from tests.support.managers import Managers

pytestmark = pytest.mark.engine

# A module that ends as the command it is given, so that a forked process can be asked for the same as all others. It
# must not become the command: whoever does that leaves no record.
_BECOME = """\
import signal, subprocess, sys
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, lambda *_: None)  # the command hears it too
code = subprocess.Popen(sys.argv[1:]).wait()
sys.exit(128 - code if code < 0 else code)
"""


class TestLocal(EngineContract):
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

    def printed(self, store: JobStore) -> str:
        lines = super().printed(store).splitlines(keepends=True)  # one with an environment of its own starts cold
        return "".join(line for line in lines if not line.startswith("air-executor: a cold start"))

    def task(self, bash: str, **more: Any) -> dict[str, Any]:
        return self.command("bash", "-c", bash, **more)

    def command(self, *words: str, **more: Any) -> dict[str, Any]:
        return super().command(sys.executable, "-m", "become", *words, **more)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")
class TestWarm(EngineContract):
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


@pytest.mark.skipif(bool(ordinary_user.missing()), reason=f"needs {', '.join(ordinary_user.missing())}")
@pytest.mark.parametrize("name", [TestLocal.__name__, TestWarm.__name__])
def test_as_an_ordinary_user(name: str) -> None:
    ordinary_user.run_tests(f"{__file__}::{name}")


class _Launched(Engine):
    """Tasks that are started without a shell."""

    def prepare(self, managers: Managers) -> None:
        managers.patch = LAUNCHED
        super().prepare(managers)


class TestLaunched(EngineContract):
    """A process without a shell."""

    @pytest.fixture
    def engine(self) -> Engine:
        return _Launched("local")
