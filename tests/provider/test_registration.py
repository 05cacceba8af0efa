"""What Airflow knows of the provider."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

import airflow_provider_air_executor
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
DAG_FILES = sorted((ROOT / "example_dags").glob("*.py"))


def airflow(*arguments: str, home: Path) -> str:
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "COLUMNS": "300"}
    command = [sys.executable, "-m", "airflow", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


def test_the_entry_point_leads_to_the_provider_info() -> None:
    (found,) = (
        point
        for point in entry_points(group="apache_airflow_provider")
        if point.module == airflow_provider_air_executor.__name__
    )
    assert found.load()() == airflow_provider_air_executor.get_provider_info()


def test_the_licences_of_packaged_files_are_declared() -> None:
    told = metadata("airflow-provider-air-executor")
    assert told["License-Expression"] == "Apache-2.0 AND MIT"
    static = Path(airflow_provider_air_executor.__file__).parent / "plugin" / "static"
    theirs = {str(path.relative_to(ROOT)) for path in static.rglob("*.LICENSE")}
    assert set(told.get_all("License-File") or ()) == {"LICENSE", *theirs}


def test_the_description_on_an_index_leads_nowhere_that_is_not_there() -> None:
    text = metadata("airflow-provider-air-executor")["Description"]
    assert "Run multi-step shell work from Airflow" in text
    assert "docs/index.md is the start: concepts, guides, reference" in text
    assert re.findall(r"\]\((?!https?:)", text) == []


def test_what_the_readme_names_is_in_the_source_distribution() -> None:
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"][
        "include"
    ]
    text = (ROOT / "README.md").read_text()
    named = {*re.findall(r"\]\((?!https?:)([^)#]+)", text), *re.findall(r"(?:--constraint|cp) (\S+)", text), "Makefile"}
    assert {path.partition("/")[0] for path in named} <= set(included)


def test_the_info_satisfies_airflows_schema() -> None:
    import airflow
    import jsonschema

    schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
    jsonschema.validate(airflow_provider_air_executor.get_provider_info(), schema)


def test_every_module_and_class_that_is_named_exists() -> None:
    info = airflow_provider_air_executor.get_provider_info()
    for kind in ("operators", "sensors", "hooks", "triggers"):
        for item in info[kind]:
            for module in item["python-modules"]:
                importlib.import_module(module)
    for item in info["task-decorators"]:
        module, _, name = item["class-name"].rpartition(".")
        assert callable(getattr(importlib.import_module(module), name))
    plugins = [plugin["plugin-class"] for plugin in info["plugins"]]
    for path in (*info["notifications"], *info["extra-links"], *plugins):
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)
    module, _, name = info["connection-types"][0]["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)
    assert hook.conn_type == info["connection-types"][0]["connection-type"]


def test_airflow_loads_the_plugin_from_its_entry_point() -> None:
    (plugin,) = airflow_provider_air_executor.get_provider_info()["plugins"]
    (found,) = (point for point in entry_points(group="airflow.plugins") if point.name == plugin["name"])
    assert found.value.replace(":", ".") == plugin["plugin-class"]
    assert found.load().name == plugin["name"]


@pytest.mark.airflow
def test_airflow_lists_provider_and_hook(tmp_path: Path) -> None:
    assert "airflow-provider-air-executor" in airflow(
        "providers", "get", "airflow-provider-air-executor", home=tmp_path
    )
    hooks = json.loads(airflow("providers", "hooks", "--output", "json", home=tmp_path))
    (found,) = (hook for hook in hooks if hook["connection_type"] == "air_executor")
    assert "Air-Executor" in found.values()


def test_the_connection_form_has_its_fields() -> None:
    from airflow.providers_manager import ProvidersManager

    widgets = ProvidersManager().connection_form_widgets
    fields = ("base_path", "embedded", "ssh_conn_id", "command", "ca", "client_cert", "client_key")
    assert {f"extra__air_executor__{field}" for field in fields} <= set(widgets)
    behaviour = ProvidersManager().field_behaviours["air_executor"]
    assert not {"host", "port", "schema", "password"} & set(behaviour["hidden_fields"])
    assert {"login", "extra"} <= set(behaviour["hidden_fields"])


PARSE = """
import json, runpy, sys, traceback
found = {}
for path in sys.argv[1:]:
    try:
        runpy.run_path(path)
    except BaseException:
        found[path] = traceback.format_exc()
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with the DAG files, by their paths. Most of the time goes into the import of Airflow."""
    home = tmp_path_factory.mktemp("home")
    (home / "README.py").write_text((ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0])
    command = [sys.executable, "-c", PARSE, *map(str, [*DAG_FILES, home / "README.py"])]
    environment = {**os.environ, "AIRFLOW_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return {Path(path).stem: error for path, error in json.loads(line.partition(" ")[2]).items()}


@pytest.mark.airflow
@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_example_dags_parse(path: Path, errors: dict[str, str]) -> None:
    assert path.stem not in errors, errors[path.stem]


@pytest.mark.airflow
def test_the_dag_of_the_readme_parses(errors: dict[str, str]) -> None:
    assert "AirExecutorSubmitOperator" in (ROOT / "README.md").read_text().partition("```python\n")[2]
    assert "README" not in errors, errors["README"]
