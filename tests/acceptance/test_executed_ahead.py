"""A task whose DAG file was executed ahead sees what it sees with LocalExecutor, and never what the file was before."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.evidence import DAGS
from tests.acceptance.test_same_as_local import DIFFERENCES, AsUser, comparable, differing, flat, neutral
from tests.support.installation import EXECUTOR, SINCE_3_3

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(not SINCE_3_3, reason="before Airflow 3.3 a supervisor forks its tasks itself"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux"),
]

LOOKS = [f"look{number}" for number in range(8)]
MOST_RUNS = 50


class Ran:
    """An installation with the DAG.

    :param directory: of the DAG files.
    """

    def __init__(self, directory: Path, executor: str) -> None:
        self._marks = directory / executor.rpartition(".")[2]
        self._marks.mkdir()
        settings = {
            "AIRFLOW__CORE__EXECUTOR": executor,
            "AIRFLOW__CORE__PARALLELISM": "8",
            "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": "2",
            "SAME_TEST_MARKS": str(self._marks),
        }
        self.airflow = AsUser(directory / "dags", settings)

    def run(self) -> dict[str, dict[str, Any]]:
        """What the tasks of a run saw, by their names, with the lines of their logs."""
        run_id = self.airflow.trigger("ahead")
        state, _ = self.airflow.follow("ahead", run_id)
        assert state == "success", self.airflow.explain("ahead", run_id)
        ids = {task["task_id"]: task["id"] for task in self.airflow.tasks("ahead", run_id)}
        found = {}
        for name in LOOKS:
            task = json.loads((self._marks / name).read_text())
            words = {str(self.airflow.home): "HOME", run_id: "RUN", ids[name]: "ID", name: "TASK"}
            words |= {str(self._marks): "MARKS", f"localhost:{self.airflow.port}": "SERVER"}
            (log,) = (self.airflow.home / "logs").rglob(f"run_id={run_id}/task_id={name}/*.log")
            found[name] = {
                **task,
                "sights": neutral(flat({**task, "parsed": {}}, self.airflow.environment), words),
                "log": sorted(neutral(comparable(line), words) for line in log.read_text().splitlines()),
            }
        return found


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ahead")
    (path / "dags").mkdir()
    for name in ("ahead_dags.py", "same_probe.py"):
        (path / "dags" / name).write_text((DAGS / name).read_text())
    return path


@pytest.fixture(scope="module")
def ours(directory: Path) -> Iterator[Ran]:
    ran = Ran(directory, EXECUTOR)
    with ran.airflow:
        yield ran


def run_until(ran: Ran, edition: str) -> dict[str, dict[str, Any]]:
    """The tasks of the first run of which one has found its file executed; all have found this edition of it."""
    for _ in range(MOST_RUNS):
        tasks = ran.run()
        assert {task["edition"] for task in tasks.values()} == {edition}
        if any(task["ahead"] for task in tasks.values()):
            return tasks
    pytest.fail(f"in {MOST_RUNS} runs the file was never executed ahead")


@pytest.fixture(scope="module")
def seen(ours: Ran) -> dict[str, dict[str, Any]]:
    return {name: task for name, task in run_until(ours, "first").items() if task["ahead"]}


@pytest.fixture(scope="module")
def local(directory: Path) -> dict[str, dict[str, Any]]:
    ran = Ran(directory, "LocalExecutor")
    with ran.airflow:
        return ran.run()


def test_a_task_sees_the_same_and_its_log_has_the_same_lines(
    local: dict[str, dict[str, Any]], seen: dict[str, dict[str, Any]]
) -> None:
    for name, task in seen.items():
        assert differing(local[name]["sights"], task["sights"]).keys() <= DIFFERENCES.keys()
        assert local[name]["log"] == task["log"]


def test_each_task_draws_other_random_numbers(seen: dict[str, dict[str, Any]], ours: Ran) -> None:
    tasks = [*seen.values(), *(task for task in ours.run().values() if task["ahead"])]
    for kind in tasks[0]["drawn"]:
        assert len({task["drawn"][kind] for task in tasks}) == len(tasks), kind


def test_no_task_finds_what_the_file_was_before_it_was_edited(
    directory: Path, ours: Ran, seen: dict[str, dict[str, Any]]
) -> None:
    assert seen
    path = directory / "dags" / "ahead_dags.py"
    path.write_text(path.read_text().replace('EDITION = "first"', 'EDITION = "second"'))
    run_until(ours, "second")
