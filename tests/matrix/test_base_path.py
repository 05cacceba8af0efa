"""What a user does with jobs, on any base path: on one file system, or on two mounts of the same one.

By default the base path is a directory of this machine. The matrix sets :data:`BASE_PATHS` to directories of another
file system. With two of them, clients use the first and the manager the second, as on two hosts that share it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended, outcomes, read_log, task
from tests.support.managers import CLI, Managers
from tests.support.nfs import BASE_PATHS
from tests.support.processes import is_gone
from tests.support.waiting import until, wait_until

ROUNDS = int(os.environ.get("ROUNDS", "1"))  # of two managers; 200 before a release

# A task may write to the list of its own job; it keeps what it does not know of.
_APPEND = """\
import json, os
path = os.path.join(os.environ["AIR_EXECUTOR_JOB_DIR"], "tasks.json")
with open(path) as file:
    tasks = json.load(file)
tasks.append({"id": "added", "command": "echo", "args": ["it was added"], "dependencies": [], "status": "pending"})
with open(path + ".new", "w") as file:
    json.dump(tasks, file)
os.rename(path + ".new", path)
"""


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[list[JobStore]]:
    """The base path as the client sees it, and as the manager does."""
    places = [Path(place) for place in os.environ.get(BASE_PATHS, "").split(":") if place] or [tmp_path]
    name = f"base-{secrets.token_hex(4)}"
    yield [JobStore(place / name) for place in (places[0], places[-1])]
    shutil.rmtree(places[0] / name, ignore_errors=True)


@pytest.fixture
def store(sides: list[JobStore]) -> JobStore:
    return sides[0]


@pytest.fixture
def managers(sides: list[JobStore]) -> Iterator[Managers]:
    found = Managers(sides[1])
    yield found
    found.close()


def lines(path: Path) -> list[str]:
    """The lines of a file; none if it is not there yet."""
    return path.read_text().split() if path.exists() else []


def begun(store: JobStore, name: str, path: Path) -> list[str]:
    """Wait until a task has written to a file, and return the lines; a job that ends before that fails the test."""

    def there() -> list[str]:
        job = store.get_job(name)
        found = lines(path)
        assert found or not job.state.is_terminal, job
        return found

    return wait_until(there, what=f"{name} has begun")


def test_many_tasks_run_once_each(store: JobStore, manager: subprocess.Popen[str], tmp_path: Path) -> None:
    numbers = [str(number) for number in range(50)]
    tasks = [task(f"t{number}", f"echo {number} >> {tmp_path}/ran; echo {number}") for number in numbers]
    store.submit("j", tasks, max_parallel_tasks=10)
    assert ended(store, "j").state == "completed"
    assert sorted(lines(tmp_path / "ran"), key=int) == numbers
    assert [read_log(store, "j", f"t{number}").text for number in numbers] == [f"{number}\n" for number in numbers]


def test_a_chain_runs_in_order(store: JobStore, manager: subprocess.Popen[str], tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    tasks = [
        task(name, f"echo {name} >> {tmp_path}/ran", after=names[number - 1] if number else ())
        for number, name in enumerate(names)
    ]
    store.submit("j", tasks, max_parallel_tasks=4)
    assert ended(store, "j").state == "completed"
    assert lines(tmp_path / "ran") == names


def test_a_job_is_cancelled(store: JobStore, manager: subprocess.Popen[str], tmp_path: Path) -> None:
    store.submit("j", [task("a", f"echo $$ > {tmp_path}/pid; sleep 1000"), task("b", after="a")])
    (pid,) = begun(store, "j", tmp_path / "pid")
    inbox.cancel(store, "j")
    assert ended(store, "j").reason == "cancelled"
    wait_until(lambda: is_gone(int(pid)), what="its process is gone")


def test_a_job_that_failed_is_retried(store: JobStore, manager: subprocess.Popen[str], tmp_path: Path) -> None:
    line = f"echo a >> {tmp_path}/ran; test -e {tmp_path}/go"
    store.submit("j", [task("a", line), task("b", f"echo b >> {tmp_path}/ran", after="a")])
    assert ended(store, "j").state == "failed"
    assert outcomes(store, "j") == {"a": ("failed", "exit"), "b": ("failed", "dependency")}
    (tmp_path / "go").touch()
    inbox.retry(store, "j")
    wait_until(lambda: store.get_job("j").state == "completed", what="it has completed")
    assert lines(tmp_path / "ran") == ["a", "a", "b"]


def test_a_task_adds_one_to_its_own_list(store: JobStore, manager: subprocess.Popen[str], tmp_path: Path) -> None:
    (tmp_path / "append.py").write_text(_APPEND)
    store.submit("j", [task("a", f"sleep 0.5; python3 {tmp_path}/append.py")])
    assert ended(store, "j").state == "completed"
    assert outcomes(store, "j") == {"a": ("completed", None), "added": ("completed", None)}
    assert read_log(store, "j", "added").text == "it was added\n"


def test_a_log_is_followed(store: JobStore, manager: subprocess.Popen[str], tmp_path: Path) -> None:
    """Each line is shown while the task still runs."""
    steps = [f"echo line {number}; {until(tmp_path / f'go{number}')}" for number in range(3)]
    store.submit("j", [task("a", "; ".join(steps))])
    begun(store, "j", store.paths("j").log("a"))
    words = [*CLI, "logs", "--base-path", str(store.base_path), "--follow", "j", "a"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number in range(3):
            assert process.stdout.readline() == f"line {number}\n"
            (tmp_path / f"go{number}").touch()
        assert process.stdout.read() == ""
    assert process.returncode == 0
    assert ended(store, "j").state == "completed"


def test_the_manager_is_killed(
    store: JobStore, managers: Managers, manager: subprocess.Popen[str], tmp_path: Path
) -> None:
    """What runs meanwhile is neither lost nor repeated, whether it ends before the next manager starts or later."""
    for name in ("early", "late"):
        line = f"echo begin >> {tmp_path}/{name}; {until(tmp_path / f'go-{name}')}; echo end >> {tmp_path}/{name}"
        store.submit(name, [task("a", line), task("b", f"echo next >> {tmp_path}/{name}", after="a")])
    for name in ("early", "late"):
        begun(store, name, tmp_path / name)
    managers.kill(manager)
    (tmp_path / "go-early").touch()
    wait_until(lambda: len(lines(tmp_path / "early")) == 2, what="it has ended")
    store.submit("new", [task("a", f"echo new >> {tmp_path}/new")])
    managers.start()
    (tmp_path / "go-late").touch()
    for name, expected in (("early", ["begin", "end", "next"]), ("late", ["begin", "end", "next"]), ("new", ["new"])):
        assert ended(store, name).state == "completed"
        assert lines(tmp_path / name) == expected


def _other_host() -> list[str]:
    """Words that run a command as on another host: it does not see the processes of this one."""
    return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] if os.geteuid() == 0 else []


@pytest.mark.parametrize("number", range(ROUNDS))
def test_two_managers_never_run_a_task_twice(sides: list[JobStore], tmp_path: Path, number: int) -> None:
    """One manager for each mount: by its side effects, each command is started once, and ends once."""
    ran = tmp_path / "ran"
    both = [Managers(side) for side in sides]
    both[1].before = _other_host()
    try:
        processes = [both[0].start(), both[1].launch()]
        for name in ("j", "k"):
            says = [f"echo {what}-{name}-$AIR_EXECUTOR_TASK >> {ran}" for what in ("begin", "end")]
            tasks = [task(f"t{index}", "; sleep 1; ".join(says)) for index in range(6)]
            sides[0].submit(name, tasks, max_parallel_tasks=6)
        states = [ended(sides[0], name).state for name in ("j", "k")]
        expected = [f"{what}-{name}-t{index}" for what in ("begin", "end") for name in "jk" for index in range(6)]
        assert (states, Counter(lines(ran))) == (["completed", "completed"], Counter(expected))
        wait_until(lambda: any(process.poll() is not None for process in processes), what="one of them has ended")
    finally:
        for managers in both:
            managers.close()
