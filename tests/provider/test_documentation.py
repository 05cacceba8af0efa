"""The examples of the documentation are what Airflow takes, and its links lead somewhere."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(((?!https?://|#)[^)#\s]+)(?:#[^)\s]*)?(?:\s+\"([^\"]*)\")?\)")
EXAMPLES = {
    f"{page.stem}-{number}": code
    for page in PAGES
    for number, code in enumerate(_BLOCK.findall(page.read_text()))
    if page.stem != "sql"  # run, and not only read, by the tests of the SQL operators
}

# What is no whole file stands in a DAG, with these names.
AROUND = """
import sys

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, task


def train():
    pass


with DAG("example", schedule=None):
"""

# The DAGs of a file are found, and survive what is done to them on their way to the scheduler. One process does so for
# all files: most of its time goes into the import of Airflow.
CHECK = """
import json, sys, traceback
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization

def check(path):
    bag = DagBag(path)
    assert not bag.import_errors, bag.import_errors
    assert len(bag.dags) == 1
    for dag in bag.dags.values():
        DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))

found = {}
for path in sys.argv[1:]:
    try:
        check(path)
    except BaseException:
        found[path] = traceback.format_exc()
print("FOUND", json.dumps(found))
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What is wrong with the examples, by their names."""
    home = tmp_path_factory.mktemp("home")
    for name, code in EXAMPLES.items():
        is_whole = "DAG(" in code or "@dag" in code
        (home / f"{name}.py").write_text(code if is_whole else AROUND + textwrap.indent(code, "    "))
    environment = {**os.environ, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    environment["AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT"] = str(PATIENCE)
    environment["AIRFLOW__CORE__EXECUTOR"] = (
        "LocalExecutor,airflow_provider_air_executor.executor.AirExecutorExecutor"  # a task of an example names it
    )
    command = [sys.executable, "-c", CHECK, *(str(home / f"{name}.py") for name in EXAMPLES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return {Path(path).stem: error for path, error in json.loads(line.partition(" ")[2]).items()}


@pytest.mark.airflow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_dags(name: str, errors: dict[str, str]) -> None:
    if "ExceptionRetryPolicy" in EXAMPLES[name]:
        pytest.importorskip(
            "airflow.sdk.definitions.retry_policy", reason="before Airflow 3.3 there are no retry policies"
        )
    assert name not in errors, errors[name]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_what_they_name(page: Path) -> None:
    """The title of a link is a place in the file, ``Class.method`` or ``Class: parameter``."""
    for target, title in _LINK.findall(page.read_text()):
        path = page.parent / target
        assert path.exists(), f"{page.name}: {target}"
        for word in re.findall(r"\w+", title):
            assert word in path.read_text(), f"{page.name}: {title!r} is not in {target}"


def _public() -> list[type]:
    """What people import into DAG files."""
    from airflow_provider_air_executor import (
        decorators,
        event_triggers,
        hooks,
        notifications,
        operators,
        sensors,
        triggers,
    )
    from airflow_provider_air_executor.transfers import air_executor_to_sql, sql_to_air_executor

    transfers = (air_executor_to_sql, sql_to_air_executor)
    modules = (decorators, event_triggers, hooks, notifications, operators, sensors, *transfers, triggers)
    return [
        kind
        for module in modules
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and re.search("AirExecutor", name)
    ]


@pytest.mark.parametrize("kind", _public(), ids=lambda kind: kind.__name__)
def test_every_parameter_is_described_with_its_unit_and_default(kind: type) -> None:
    described = dict(re.findall(r":param (\w+):(.*?)(?=:param |:raises |:return|$)", kind.__doc__ or "", re.DOTALL))
    for parameter in inspect.signature(kind.__init__).parameters.values():
        if parameter.name in ("self", "args", "kwargs", "context"):
            continue
        text = described.get(parameter.name)
        assert text, f"{kind.__name__}: {parameter.name} is not described"
        if parameter.default is not parameter.empty:
            says = "default" in text.lower() or "see there" in text
            assert says, f"{kind.__name__}: {parameter.name} has a default that is not told"
        if "float" in str(parameter.annotation):
            assert re.search("second|see ", text), f"{kind.__name__}: {parameter.name} has a unit that is not told"
