"""A task sees with our executor what it sees with LocalExecutor, and with a supervisor that has run others before.

Each difference is in :data:`DIFFERENCES`, with its reason. One that is not there, or is there no more, fails a test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.acceptance.evidence import DAGS
from tests.support.installation import EXECUTOR, SINCE_3_3, Installation

pytestmark = [
    pytest.mark.airflow,
    pytest.mark.skipif(not SINCE_3_3, reason="LocalExecutor's own tasks saw other things before Airflow 3.3"),
]

LOOKS = ("look1", "look2", "look3", "look4", "look5")  # between them are others that change what they can
_OF_SCHEDULER = "a task of LocalExecutor has it from the scheduler"
DIFFERENCES = {
    "environment/AIR_EXECUTOR_RUN": "a kill finds the processes of a task by it",
    "environment/AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "ours tries for two minutes to report an end",
    "environment/AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "the same",
    "environment/_AIRFLOW_PROCESS_CONTEXT": f"{_OF_SCHEDULER}, and it says that this is a server",
    "modules/__main__": "the program is ours, and not `airflow scheduler`",
    "python/argv": "the same",
    "python/orig_argv": "the same",
    "python/flags": "no module of the working directory is found (-P)",
    "python/path": "the same: `python -m airflow scheduler` has its working directory there, in which tasks write",
    "multiprocessing/parent": f"{_OF_SCHEDULER}, which starts its workers with multiprocessing",
    "multiprocessing/process": "the same",
    "multiprocessing/start method": f"{_OF_SCHEDULER}; it is Python's default here",
    "streams/__stdin__": "multiprocessing closes it",
    "signals/SIGQUIT": f"{_OF_SCHEDULER}, whose handler prints stacks",
    "signals/SigCgt": "the same",
    "signals/SigIgn": "those two that glibc uses itself, where posix_spawn has started a program",
    "descriptors/others": "the scheduler's files and pipes there, the job's log and record here; none goes to a child",
}


class Seen(NamedTuple):
    """What the tasks of an executor saw."""

    tasks: dict[str, dict[str, Any]]  # by their names, as they have written it down
    sights: dict[str, dict[str, Any]]  # the same, flat, with one word for what differs between two installations
    logs: dict[str, list[str]]


class AsUser(Installation):
    """All processes are started as a user starts them, and not forked from one that has imported what they need."""

    def _server_of_prepared(self) -> None:
        return None


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the tests here; the DAGs are in it, since their modules are known by their path."""
    path = tmp_path_factory.mktemp("same")
    (path / "dags").mkdir()
    for name in ("same_dags.py", "same_probe.py"):
        (path / "dags" / name).write_text((DAGS / name).read_text())
    return path


def see(directory: Path, executor: str, parallelism: int) -> Seen:
    """Run the DAG, one task at a time."""
    marks = directory / executor.rpartition(".")[2]
    marks.mkdir()
    settings = {
        "AIRFLOW__CORE__EXECUTOR": executor,
        "AIRFLOW__CORE__PARALLELISM": str(parallelism),
        "AIRFLOW__AIR_EXECUTOR__MAX_RUNNING_TASKS": "1",
        "SAME_TEST_MARKS": str(marks),
    }
    with AsUser(directory / "dags", settings) as airflow:
        run_id = airflow.trigger("same")
        state, _ = airflow.follow("same", run_id)
        assert state == "success", airflow.explain("same", run_id)
        ids = {task["task_id"]: task["id"] for task in airflow.tasks("same", run_id)}
        tasks = {name: json.loads((marks / name).read_text()) for name in LOOKS}
        sights, logs = {}, {}
        for name in LOOKS:
            words = {str(airflow.home): "HOME", run_id: "RUN", ids[name]: "ID", name: "TASK"}
            words |= {str(marks): "MARKS", f"localhost:{airflow.port}": "SERVER"}
            sights[name] = neutral(flat(tasks[name], airflow.environment), words)
            (log,) = (airflow.home / "logs").rglob(f"task_id={name}/*.log")
            logs[name] = sorted(neutral(comparable(line), words) for line in log.read_text().splitlines())
        return Seen(tasks, sights, logs)


@pytest.fixture(scope="module")
def local(directory: Path) -> Seen:
    return see(directory, "LocalExecutor", 1)


@pytest.fixture(scope="module")
def ours(directory: Path) -> Seen:
    return see(directory, EXECUTOR, 8)


def flat(task: dict[str, Any], given: dict[str, str]) -> dict[str, Any]:
    """What a task saw while it ran, while its file was parsed (``parsed:``), and in a shell."""
    sights = {**task["run"], **{f"parsed:{name}": value for name, value in task["parsed"].items()}}
    sights["context/names"] = task["context"]
    sights["shell/all"] = [line for line in task["shell"] if line.partition("=")[0] not in task["run_environment"]]
    for name, value in given.items():  # ports, for example: those that it was started with are as they should be
        for when in ("", "parsed:"):
            key = f"{when}environment/{name}"
            if sights.get(key) == value:
                sights[key] = "as given"
    return sights


def neutral(value: Any, words: dict[str, str]) -> Any:
    """The same with one word for each text that differs between installations, runs and tasks."""
    if isinstance(value, dict):
        return {key: neutral(each, words) for key, each in value.items()}
    if isinstance(value, list):
        return [neutral(each, words) for each in value]
    if isinstance(value, str):
        for text, word in words.items():
            value = value.replace(text, word)
    return value


def comparable(line: str) -> str:
    """A line of a log without times."""
    record = json.loads(line)
    times = ("timestamp", "bundle_prepare_ms", "dag_file_parse_ms")
    return json.dumps({key: value for key, value in record.items() if key not in times}, sort_keys=True)


def differing(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The names of what is not the same, with both values."""
    return {
        name: (one.get(name), other.get(name)) for name in one.keys() | other.keys() if one.get(name) != other.get(name)
    }


@pytest.mark.parametrize("task", LOOKS)
def test_a_task_sees_the_same(task: str, local: Seen, ours: Seen) -> None:
    found = differing(local.sights[task], ours.sights[task])
    unknown = {name: both for name, both in found.items() if name.removeprefix("parsed:") not in DIFFERENCES}
    assert not unknown
    assert DIFFERENCES.keys() == {name.removeprefix("parsed:") for name in found}


def test_the_differences_are_no_larger_than_their_reasons(local: Seen, ours: Seen) -> None:
    there, here = local.sights["look1"], ours.sights["look1"]
    assert there["python/path"][1:] == here["python/path"]
    assert there["python/flags"].replace("safe_path=False", "safe_path=True") == here["python/flags"]
    assert int(there["signals/SigIgn"], 16) | 0b11 << 31 == int(here["signals/SigIgn"], 16)
    expected = re.compile(r"(socket|HOME/(air-executor-tasks/jobs/[\w-]+/(logs|runs)|logs)/\S*) not inherited")
    assert not [kind for kind in here["descriptors/others"] if not expected.fullmatch(kind)]


@pytest.mark.parametrize("task", LOOKS)
def test_its_log_has_the_same_lines(task: str, local: Seen, ours: Seen) -> None:
    assert local.logs[task] == ours.logs[task]


def test_no_task_sees_that_others_ran_before_it(ours: Seen) -> None:
    """Those before have changed all they could, and one supervisor ran more than one of them."""
    assert len({ours.tasks[name]["supervisor"] for name in LOOKS}) < len(LOOKS)
    first = ours.sights["look1"]
    for name in LOOKS:
        found = {where for where in differing(first, ours.sights[name]) if "/AIR_EXECUTOR_RUN" not in where}
        assert found <= {"descriptors/others", "parsed:descriptors/others"}  # the paths of its own job
        assert len(first["descriptors/others"]) == len(ours.sights[name]["descriptors/others"])


def test_each_task_draws_other_random_numbers(ours: Seen) -> None:
    for kind in ours.tasks["look1"]["drawn"]:
        assert len({ours.tasks[name]["drawn"][kind] for name in LOOKS}) == len(LOOKS), kind
