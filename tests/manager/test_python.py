"""How the package starts a Python of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_air_executor.system import python


def test_a_module_is_found_whatever_is_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the one of the working directory')")
    command = python.module_command("airflow_provider_air_executor.manager.cli", "--version")
    assert command[0] == sys.executable
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert said.startswith("air-executor, version")


def test_where_the_archive_was_unpacked_its_own_start_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tmp_path / "air_executor_start.py"
    monkeypatch.setattr(python, "_START", str(start))
    assert python.module_command("a.b", "c") == [sys.executable, "-P", "-m", "a.b", "c"]
    start.touch()
    assert python.module_command("a.b", "c") == [sys.executable, "-P", str(start), "a.b", "c"]
