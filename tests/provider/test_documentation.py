"""The examples of the documentation are what Airflow takes, its links lead somewhere, and its reference is complete."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from airflow_provider_air_executor.jobs import base_path_check
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "airflow_provider_air_executor"
OTHERS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md")
PAGES = [*(ROOT / name for name in OTHERS), *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts)]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?(?:\s+\"([^\"]*)\")?\)")
_HEADING = re.compile(r"^#{1,6} (.*)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = {
    f"{page.stem}-{number}": code
    for page in PAGES
    for number, code in enumerate(_BLOCK.findall(page.read_text()))
    if page.stem not in ("sql", "python-client")  # run, and not only read, by the tests of those
}

# What is no whole file stands in a DAG. It imports all else itself.
AROUND = """
from airflow.sdk import DAG

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


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub and MyST make them."""
    headings = _HEADING.findall(_FENCED.sub("", page.read_text()))
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\]\([^)]*\)", "", text).lower()).strip().replace(" ", "-")
        for text in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_to_what_they_name(page: Path) -> None:
    """The title of a link is a place in the file, ``Class.method`` or ``Class: parameter``."""
    for target, anchor, title in _LINK.findall(_FENCED.sub("", page.read_text())):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor in _anchors(path), f"{page.name}: {target} has no heading #{anchor}"
        for word in re.findall(r"\w+", title):
            assert word in path.read_text(), f"{page.name}: {title!r} is not in {target}"


def test_each_yes_of_the_comparison_leads_to_a_test() -> None:
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \|", (DOCS / "comparison.md").read_text().partition("## Operators")[2], re.MULTILINE
    )
    answers = [(feature, ours) for feature, ours in rows if feature not in ("Feature", "---")]
    assert len(answers) > 50
    for feature, ours in answers:
        found = re.match(r'\[(yes|partly|nothing)\]\((\S+) "(test_\w+)"\)', ours)
        if found is None:
            assert re.match(r"no\b", ours), f"{feature}: {ours}"
            continue
        path = (DOCS / found[2]).resolve()
        assert path.is_relative_to(ROOT / "tests"), feature
        assert f"def {found[3]}(" in path.read_text(), f"{feature}: there is no {found[3]}"


# -- the way in --------------------------------------------------------------------------------------------


def test_the_dag_of_the_readme_is_the_file_that_is_copied() -> None:
    (shown, *_) = _BLOCK.findall((ROOT / "README.md").read_text())

    def body(text: str) -> list[str]:
        return [ast.dump(node) for node in ast.parse(text).body if not isinstance(node, ast.Expr | ast.ImportFrom)]

    file = (DOCS / "quick_start" / "hello.py").read_text()
    assert body(shown) == body(file)


def test_the_readme_and_the_quick_start_have_the_same_commands() -> None:
    blocks = [
        re.search(r"```console\n(\$ python3 -m venv.*?)```", page.read_text(), re.DOTALL)
        for page in (ROOT / "README.md", DOCS / "quick-start.md")
    ]
    (readme, page) = (block[1] for block in blocks if block is not None)
    assert readme == page
    assert len(readme.splitlines()) <= 6


def test_every_benchmark_is_listed() -> None:
    page = (DOCS / "benchmarks.md").read_text()
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert f"`benchmarks/{path.name}`" in page, path.name


def test_all_that_is_tried_in_a_base_path_is_described() -> None:
    page = " ".join((DOCS / "command-line.md").read_text().split())
    for trial in base_path_check.TRIALS:
        assert trial.subject in page, trial.subject


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


# -- messages ----------------------------------------------------------------------------------------------


def _texts_of_the_code() -> list[str]:
    """All texts in the package and its archive; what is put into them is a ``…``."""
    found = []
    for path in (*PACKAGE.rglob("*.py"), *(ROOT / "pyz").glob("*.py")):
        tree = ast.parse(path.read_text())
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(\.\d)?[sdrg]", "…", node.value))
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
    return found


def test_each_message_in_troubleshooting_is_one_of_the_code() -> None:
    texts = "\n".join(_texts_of_the_code())
    headings = re.findall(r"^### `(.*)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(headings) > 50
    wrong = [
        f"no message has the words {words!r} of {heading!r}"
        for heading in headings
        for words in (piece.strip(" ;:,()") for piece in heading.split("…"))
        if words not in texts
    ]
    assert not wrong, "\n".join(wrong)


# -- reference ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """What makes the pages of the reference."""
    found = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_reference_is_made_from_the_code_as_it_is(generate: ModuleType) -> None:
    for name, text in generate.pages().items():
        assert (DOCS / "reference" / name).read_text() == text, f"run make reference: {name}"


def test_the_reference_lists_all_that_users_import(generate: ModuleType) -> None:
    assert {kind.__name__ for kind in _public()} == {kind.__name__ for kind in generate.public_classes()}


def test_the_reference_describes_every_parameter(generate: ModuleType) -> None:
    page = (DOCS / "reference" / "dags.md").read_text()
    for kind in generate.public_classes():
        section = page.partition(f"## {kind.__name__}\n")[2].partition("\n## ")[0]
        for parameter in generate.parameters_of(kind):
            row = re.search(rf"^\| `{parameter.name}`.*\| (.+) \|$", section, re.MULTILINE)
            assert row, f"{kind.__name__}: {parameter.name}"


def test_the_reference_describes_every_field(generate: ModuleType) -> None:
    from airflow_provider_air_executor.jobs.models import Job, Resources, Task
    from airflow_provider_air_executor.jobs.spec import FIELDS
    from airflow_provider_air_executor.manager.settings import Settings

    for record in (Job, Resources, Settings, Task):
        missing = [name for name, text in generate.fields_of(record).items() if not text]
        assert not missing, (
            f"{record.__name__}: a :param: in the docstring, or a comment behind the field, for {missing}"
        )
    pages = {path.name: path.read_text() for path in (DOCS / "reference").glob("*.md")}
    for name in FIELDS:
        assert f"| `{name}` |" in pages["jobs.md"]
    for name in Settings.model_fields:
        assert f"| `{name}` |" in pages["manager-settings.md"]


def test_the_reference_lists_every_command_and_option() -> None:
    from airflow_provider_air_executor.manager.cli import main

    page = (DOCS / "reference" / "command-line.md").read_text()
    for name, command in main.commands.items():
        if not command.hidden:
            section = page.partition(f"## air-executor {name}\n")[2].partition("\n## ")[0]
            shown = (parameter for parameter in command.params if not getattr(parameter, "hidden", False))
            for option in (option for parameter in shown for option in parameter.opts if option[0] == "-"):
                assert option in section, f"{name} {option}"


def test_the_reference_lists_every_route(tmp_path: Path) -> None:
    from airflow_provider_air_executor.jobs.file_jobs import FileJobs
    from airflow_provider_air_executor.plugin.app import app
    from airflow_provider_air_executor.server.app import application
    from airflow_provider_air_executor.server.service import Service

    server = application(Service(FileJobs(JobStore(tmp_path))))
    for name, api, below in (("json-api.md", app, "/api/"), ("server-api.md", server, "/v1/")):
        page = (DOCS / "reference" / name).read_text()
        routes = [(path, methods) for path, methods in api.openapi()["paths"].items() if path.startswith(below)]
        assert len(routes) > 10
        for path, methods in routes:
            for method in methods:
                assert f"## {method.upper()} {path}\n" in page


def test_the_reference_lists_every_metric_and_exception(generate: ModuleType) -> None:
    from airflow_provider_air_executor import exceptions

    metrics = (DOCS / "reference" / "metrics.md").read_text()
    for name in generate.timers():
        assert re.search(rf"^\| `{re.escape(name)}` \| .+ \|$", metrics, re.MULTILINE), name
    page = (DOCS / "reference" / "exceptions.md").read_text()
    for name, kind in vars(exceptions).items():
        if inspect.isclass(kind) and kind.__module__ == exceptions.__name__:
            assert f"| `{name}` |" in page


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
