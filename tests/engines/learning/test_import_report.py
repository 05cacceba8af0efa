"""What a task says of its imports, in a process of its own as any task is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.engines.local.learning.report import Report
from airflow_provider_air_executor.system import installed
from tests.support.waiting import PATIENCE

BEGIN = """
import os, socket, sys, time
from airflow_provider_air_executor.system import import_report
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    path = tmp_path / "site-packages"
    path.mkdir()
    return path


def module(packages: Path, name: str, code: str = "") -> None:
    path = packages / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)


def run(packages: Path, code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(packages), str(packages.parent)))},
        stdout=subprocess.PIPE,
        check=True,
        timeout=PATIENCE,
    )
    return json.loads(done.stdout)


def test_it_names_installed_modules_and_nothing_else(packages: Path) -> None:
    module(packages, "before.__init__")
    module(packages, "before.late")
    module(packages, "one.__init__", "import two\nfrom one import inner")
    module(packages, "one.inner")
    module(packages, "two")
    module(packages, "space.part.__init__", "from space.part import inner")
    module(packages, "space.part.inner")
    module(packages.parent, "mine")
    module(packages.parent, "own.__init__")
    found = run(
        packages,
        """
        import before
        import_report.begin(theirs)
        before_all = import_report.environment()
        import one, mine, own, space.part, before.late, wsgiref.headers
        sys.modules["odd"] = 5
        sys.modules["odder"] = type(sys)("another")
        os.environ["SECRET"] = "a secret"
        os.environ["AIRFLOW_CTX_X"] = "x"
        import_report.send("dags/a.py", parse_seconds=0.25, changed=import_report.changes(before_all))
        print(ours.recv(100_000).decode())
        """,
    )
    assert found == {
        "file": "dags/a.py",
        "parse": 0.25,
        "changed": ["SECRET"],
        "base": True,
        "roots": {
            "two": ["two"],
            "one": ["one", "one.inner"],
            "space.part": ["space.part", "space.part.inner"],
            "before.late": ["before.late"],
            "wsgiref": ["wsgiref", "wsgiref.headers"],
        },
    }
    assert Report.parse(json.dumps(found).encode()) is not None


def test_it_never_waits_and_is_never_an_error(packages: Path) -> None:
    assert run(
        packages,
        """
        import_report.send("a", parse_seconds=0, changed=())
        assert not import_report.is_wanted()
        import_report.begin(theirs, is_base=False)
        for _ in range(2000):
            import_report.send("a" * 1000, parse_seconds=0, changed=())
        ours.close()
        import_report.send("a", parse_seconds=0, changed=())
        theirs.close()
        import_report.send("a", parse_seconds=0, changed=())
        print(1)
        """,
    )


def test_it_is_cut_by_whole_names_and_the_packages_come_first(packages: Path) -> None:
    module(
        packages,
        "large.__init__",
        "import importlib\nfor n in range(900): importlib.import_module(f'large.{\"m\" * 80}{n}')",
    )
    for number in range(900):
        module(packages, f"large.{'m' * 80}{number}")
    module(packages, "last", "import large")
    found = run(
        packages,
        """
        import_report.begin(theirs)
        import last
        import_report.send("dags/a.py", parse_seconds=0.25, changed=())
        data = ours.recv(100_000)
        assert 55_000 < len(data) <= 60_000, len(data)
        print(data.decode())
        """,
    )
    assert list(found["roots"]) == ["large", "last"]
    assert found["roots"]["large"][0] == "large"
    assert 500 < len(found["roots"]["large"]) < 800


def test_a_module_that_answers_for_its_attributes_is_not_asked(packages: Path) -> None:
    code = """
    import_report.begin(theirs)
    class Lazy(type(sys)):
        def __getattribute__(self, name):
            os._exit(3)
    sys.modules["lazy"] = Lazy("lazy")
    import_report.send("a", parse_seconds=0, changed=())
    print(ours.recv(100_000).decode())
    """
    assert run(packages, code)["roots"] == {}


def test_a_report_costs_little(packages: Path) -> None:
    """A task that has imported nothing looks at no module of the fork server's."""
    seconds = run(
        packages,
        """
        import airflow_provider_air_executor.jobs.models
        import_report.begin(theirs)
        took = []
        for _ in range(200):
            began = time.perf_counter()
            before = import_report.environment()
            import_report.send("a", parse_seconds=0, changed=import_report.changes(before))
            took.append(time.perf_counter() - began)
            ours.recv(100_000)
        print(min(took))
        """,
    )
    assert seconds < 0.001


@pytest.mark.parametrize("name", ["a", "a.b_1", "_x.Y"])
def test_names_of_modules(name: str) -> None:
    assert installed.is_name(name)


@pytest.mark.parametrize("name", ["", ".a", "a.", "a..b", "a/b", "a b", "1a", "a\n", "é", 5, None, "a" * 201])
def test_what_is_no_name_of_a_module(name: Any) -> None:
    assert not installed.is_name(name)


def test_where_installed_modules_are(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    within = installed.directories([str(site) + "/", str(tmp_path), "", "/usr/lib/python3/dist-packages"])
    assert within == (str(site), "/usr/lib/python3/dist-packages")
    module(site, "a.__init__")
    assert installed.origin("a", within) == f"{site}/a/__init__.py"
    assert installed.origin("a.b", within) is None
    assert installed.has(f"{site}/a/__init__.py", "a", within)
    assert installed.has(f"{site}/a/b.cpython-311-x86_64-linux-gnu.so", "a.b", within)
    for origin, name in ((f"{site}/ab.py", "a"), (f"{site}/a/b.py", "b"), (f"{tmp_path}/a.py", "a"), (None, "a")):
        assert not installed.has(origin, name, within)
