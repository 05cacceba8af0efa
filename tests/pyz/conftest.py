"""The archive, which one worker builds for all, and the Pythons of this machine."""

from __future__ import annotations

import functools
import glob
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs import manager_status
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.processes import kill_all_with_environment
from tests.support.run import only_one
from tests.support.waiting import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]


@functools.cache
def pythons() -> Mapping[str, str]:
    """The Pythons of this machine without anything installed, by their versions, such as ``3.11``."""
    own = os.path.join(sys.base_prefix, "bin", "python3")
    others = glob.glob(os.path.join(os.environ.get("PYENV_ROOT", "~"), "versions", "*", "bin", "python3"))
    found: dict[str, str] = {}
    for path in (own, *sorted(others), "/usr/bin/python3"):
        code = (
            "import sys; print('%s.%s' % sys.version_info[:2])\ntry: import airflow\nexcept ImportError: print('plain')"
        )
        said = (
            subprocess.run([path, "-c", code], check=False, capture_output=True, text=True)
            if os.path.exists(path)
            else None
        )
        version, _, is_plain = (said.stdout if said else "").partition("\n")
        if is_plain:
            found.setdefault(version, path)
    return found


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


SUPPORTED = {version: path for version, path in pythons().items() if _number(version) >= (3, 11)}
OLD = {version: path for version, path in pythons().items() if (3, 6) <= _number(version) < (3, 11)}


@pytest.fixture(scope="session")
def archive() -> Path:
    """``air-executor.pyz``, as ``make pyz`` builds it."""
    with only_one("pyz") as directory:
        path = directory / "air-executor.pyz"
        if not path.exists():
            constraints = ROOT / "constraints" / "airflow-3.3.2.txt"
            command = [sys.executable, str(ROOT / "pyz" / "build.py"), "--constraints", str(constraints)]
            subprocess.run([*command, "--output", str(path)], check=True)
    return path


class Pyz:
    """The archive with one Python, as a user runs it who has nothing else."""

    def __init__(self, archive: Path, python: str, base_path: Path, cache: Path) -> None:
        self.python = python
        self.base_path = base_path
        self.store = JobStore(base_path)
        self._command = [python, str(archive)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(base_path.parent), "LANG": "C.UTF-8"}
        self.environment |= {"AIR_EXECUTOR_BASE_PATH": str(base_path), "AIR_EXECUTOR_CACHE": str(cache)}
        self.environment |= {key: value for key, value in os.environ.items() if key.startswith("TESTS_OF_")}

    def run(self, *arguments: str, code: int = 0, text: str = "") -> str:
        """Run ``air-executor``, which ends with this code; what it prints on standard output."""
        ended = self._ended(*arguments, input=text)
        assert ended.returncode == code, ended.stderr
        return ended.stdout

    def fail(self, *arguments: str) -> str:
        """Run ``air-executor``, which cannot begin; what it says."""
        ended = self._ended(*arguments)
        assert ended.returncode == 1
        return ended.stderr

    def _ended(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        words = [*self._command, *arguments]
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=PATIENCE, check=False, **more
        )

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start ``air-executor`` in the background."""
        words = [*self._command, *arguments]
        process = subprocess.Popen(words, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def start_manager(self, *flags: str) -> subprocess.Popen[bytes]:
        """Start a manager, and wait until it holds the base path."""
        process = self.start("manager", *flags)
        wait_until(lambda: manager_status.pid(self.store) == process.pid or process.poll() is not None, what="it runs")
        assert process.poll() is None
        return process

    def close(self) -> None:
        """End all that it has started."""
        kill_all_with_environment(f"AIR_EXECUTOR_BASE_PATH={self.base_path}")
        for process in self._processes:
            process.wait()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the archive is unpacked once for each Python."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(params=SUPPORTED)
def pyz(archive: Path, tmp_path: Path, cache: Path, request: pytest.FixtureRequest) -> Iterator[Pyz]:
    """The archive in each Python of this machine; what it has started ends with the test."""
    found = Pyz(archive, SUPPORTED[request.param], tmp_path / "base", cache)
    yield found
    found.close()
