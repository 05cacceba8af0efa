"""Which engine a name stands for."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.engines import registry
from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.registry import Engines
from airflow_provider_air_executor.exceptions import SettingsError
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager.settings import Settings


def begin(tmp_path: Path, engine: str) -> Any:
    """Begin as a manager does whose settings name an engine."""
    return Engines(JobStore(tmp_path), Settings(base_path=str(tmp_path), runner=engine), object(), {}, Children())


def test_one_whose_library_is_missing_says_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if "engines.kubernetes" in name or name.partition(".")[0] == "aiohttp"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SettingsError) as found:
        begin(tmp_path, "kubernetes")
    assert "aiohttp" in str(found.value)
    assert str(found.value).endswith("; pip install 'airflow-provider-air-executor[kubernetes]'")


def test_one_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is somebody else's, and we do not know what it needs."""
    broken = importlib.metadata.EntryPoint("mine", "no_such_module:Engine", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    with pytest.raises(SettingsError, match="runner 'mine' cannot be loaded: No module named 'no_such_module'$"):
        begin(tmp_path, "mine")


def test_one_that_there_is_not_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no runner 'slrum'; there are kubernetes, local, slurm, warm"):
        begin(tmp_path, "slrum")
