"""The examples of the documentation are what Airflow takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (DOCS / "observability.md").read_text(), re.MULTILINE | re.DOTALL)

# The DAGs of a file are found, and survive what is done to them on their way to the scheduler.
CHECK = """
import sys
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
bag = DagBag(sys.argv[1])
assert not bag.import_errors, bag.import_errors
assert len(bag.dags) == 1
for dag in bag.dags.values():
    DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
"""


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_are_dags(code: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(code)
    environment = {**os.environ, "AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [sys.executable, "-c", CHECK, str(tmp_path / "example.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 3
