"""An engine of somebody else: it comes by entry points, and its options in tasks are checked as those of ours are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from airflow_provider_air_executor.exceptions import InvalidJobError
from airflow_provider_air_executor.jobs import engine_options
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import only_task, plain, read_log, task, write_job
from tests.support.managers import Managers

_ENTRY_POINTS = """\
[air_executor.runners]
mine = their_engine:TheirEngine
[air_executor.task_options]
mine = their_options:check_options
broken = their_options:not_there
"""
_ENGINE = """\
from airflow_provider_air_executor.engines.local.engine import LocalEngine

class TheirEngine(LocalEngine):
    def __init__(self, context):
        super().__init__(context.store, context.environment, context.children)

    def start(self, attempt, task, started_at):
        greeting = task.engine_options("mine").get("greeting", "none")
        super().start(attempt, task.evolve(args=(*task.args, greeting)), started_at)
"""
_OPTIONS = """\
def check_options(given):
    if not isinstance(given, dict) or set(given) - {"greeting"}:
        raise ValueError("only greeting can be said")
"""


@pytest.fixture
def installed(tmp_path: Path, managers: Managers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that this process and the managers find."""
    dist = tmp_path / "packages" / "their_engine-1.0.dist-info"
    dist.mkdir(parents=True)
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: their-engine\nVersion: 1.0\n")
    (dist / "entry_points.txt").write_text(_ENTRY_POINTS)
    (dist.parent / "their_engine.py").write_text(_ENGINE)
    (dist.parent / "their_options.py").write_text(_OPTIONS)
    monkeypatch.syspath_prepend(str(dist.parent))
    monkeypatch.setattr(engine_options, "_check_of", engine_options._check_of.__wrapped__)
    managers.environment["PYTHONPATH"] = str(dist.parent)
    monkeypatch.delitem(sys.modules, "their_options", raising=False)


@pytest.mark.usefixtures("installed")
def test_its_options_reach_it(store: JobStore, managers: Managers) -> None:
    managers.start()
    store.submit("j", [task("a", 'echo "it says $0"', runner="mine", mine={"greeting": "hello"})])
    assert only_task(store).status == "completed"
    assert read_log(store, "j", "a").text == "it says hello\n"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mine": {"greting": "hello"}}, r"tasks\[0\]\.mine: only greeting can be said"),
        ({"mine": "hello"}, r"tasks\[0\]\.mine: only greeting can be said"),
        ({"broken": {}}, r"tasks\[0\]\.broken: module 'their_options' has no attribute 'not_there'"),
        ({"theirs": {}}, r"tasks\[0\]\.theirs: there is no such field"),
    ],
)
def test_what_it_refuses_is_refused_where_it_is_submitted(
    store: JobStore, more: dict[str, object], message: str
) -> None:
    with pytest.raises(InvalidJobError, match=message):
        store.submit("j", [task("a", **more)])


@pytest.mark.usefixtures("installed")
def test_options_for_another_engine_are_passed_over(store: JobStore, managers: Managers) -> None:
    """A job may say for several engines how it is to be run on each of them."""
    managers.start()
    options = {"mine": {"greeting": "hello"}, "slurm": {"partition": "gpu"}, "kubernetes": {"image": "busybox"}}
    store.submit("j", [task("a", "echo alone", **options)])
    assert only_task(store).status == "completed"
    assert read_log(store, "j", "a").text == "alone\n"


def test_an_engine_that_is_installed_with_the_manager_alone(store: JobStore) -> None:
    """Its options cannot be checked where they are submitted; it does so itself."""
    (stored,) = store.get_tasks(store.submit("j", [task("a", runner="theirs", theirs={"any": [1]})]).name)
    assert stored.engine_options("theirs") == {"any": [1]}


def test_options_that_are_none(store: JobStore) -> None:
    """A template may give that, and versions before have written it into each list."""
    (stored,) = store.get_tasks(store.submit("j", [task("a", slurm=None, kubernetes=None)]).name)
    assert stored.engine_options("slurm") == {}
    store.submit("again", [stored])


@pytest.mark.parametrize("written", ["--partition=gpu", 1, ["a"]])
def test_options_without_names_that_were_written_by_hand(store: JobStore, written: object) -> None:
    write_job(store, "j", [{**plain("a", "true"), "slurm": written}])
    (stored,) = store.get_tasks("j")
    with pytest.raises(ValueError, match="options: must be a mapping"):
        stored.engine_options("slurm")
