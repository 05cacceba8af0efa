"""What Airflow loads reaches jobs through the interface, and so also those on another machine."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import airflow_provider_air_executor

PACKAGE = Path(airflow_provider_air_executor.__file__).parent
# The executor's jobs are files of its own; the hook finds out where the jobs are.
FILES = {"hooks.py"}
MODULES = sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("transfers/*.py"), *PACKAGE.glob("plugin/**/*.py")])
OF_JOBS = "airflow_provider_air_executor.jobs"
OF_FILES = {
    f"{OF_JOBS}.{name}" for name in ("attachments", "completions", "inbox", "manager_status", "paths", "store", "watch")
}


def imported(tree: ast.AST) -> set[str]:
    """The modules that a module imports, and the names from them, with their paths."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


# A program says itself where they are; the command line knows the manager's process.
ALLOWED = {"client.py": {"store"}, "cli.py": {"manager_status", "store"}}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name not in FILES], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_no_files_are_used(path: Path) -> None:
    tree = ast.parse(path.read_text())
    allowed = {f"{OF_JOBS}.{name}" for name in ALLOWED.get(path.name, ())}
    assert not imported(tree) & (OF_FILES - allowed)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "paths" not in {function.attr for function in calls if isinstance(function, ast.Attribute)}
