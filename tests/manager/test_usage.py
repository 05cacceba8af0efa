"""What the attempts of tasks on this machine have used is kept with them."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest

from airflow_provider_air_executor.jobs.models import JobState, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage
from tests.support.jobs import ended, only_task, publish_tasks, task
from tests.support.managers import Managers
from tests.support.stepped_manager import SteppedManager
from tests.support.waiting import until, wait_until

MEGABYTE = 1_000_000
_BUSY = "import time\nwhile time.process_time() < 0.4: pass"  # it is counted in ticks of 0.01 s


def used_by(stepped: SteppedManager, line: str) -> Usage:
    stepped.start_manager()
    stepped.submit("j", [task("t", line)], 1)
    assert stepped.let_all_end()
    (found,) = stepped.store.get_tasks("j")
    assert found.status is TaskStatus.COMPLETED
    assert found.usage is not None
    return found.usage


def test_processor_time_counts_all_that_a_command_has_waited_for(stepped: SteppedManager) -> None:
    used = used_by(stepped, f"{sys.executable} -c '{_BUSY}'; {sys.executable} -c '{_BUSY}' & wait")
    assert 0.6 <= used.cpu_seconds < 60


def test_the_most_memory_that_one_of_its_processes_had(stepped: SteppedManager) -> None:
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 200 * MEGABYTE
    used = used_by(stepped, f"{sys.executable} -c 'x = b\"x\" * {more}'; true")
    assert used.max_memory is not None
    assert more <= used.max_memory < more + 100 * MEGABYTE


def test_what_the_manager_itself_has_in_memory_is_not_the_tasks(stepped: SteppedManager) -> None:
    """The system counts it, since a process is a copy of the manager before it is the shell."""
    assert used_by(stepped, "true").max_memory is None


def test_it_is_that_of_the_latest_attempt(stepped: SteppedManager, tmp_path: Path) -> None:
    stepped.start_manager()
    line = f'test $AIR_EXECUTOR_ATTEMPT = 1 || {until(tmp_path / "go")}; {sys.executable} -c "{_BUSY}"; exit 1'
    stepped.submit("j", [task("t", line, retries=1)], 1)

    def second() -> Task | None:
        stepped.clock.passed += 1
        stepped.go_round()
        (found,) = stepped.store.get_tasks("j")
        return found if found.attempt == 2 and found.status is TaskStatus.RUNNING else None

    assert wait_until(second, what="the second attempt runs").usage is None
    (tmp_path / "go").touch()
    assert stepped.let_all_end()
    (found,) = stepped.store.get_tasks("j")
    assert found.status is TaskStatus.FAILED
    assert found.usage is not None
    assert found.usage.cpu_seconds >= 0.3
    assert found.reset().usage is None
    assert found.fresh("k", found.created_at).usage is None


def test_of_a_task_that_another_manager_has_started_its_shim_says_it(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    first = managers.start()
    line = f"{until(tmp_path / 'go')}; {sys.executable} -c '{_BUSY}'; test $AIR_EXECUTOR_TASK = t"
    store.submit("j", [task("t", line), task("fails", line)])
    wait_until(lambda: all(each.status is TaskStatus.RUNNING for each in store.get_tasks("j")), what="they run")
    managers.kill(first)
    managers.start()
    (tmp_path / "go").touch()
    assert ended(store, "j").state is JobState.FAILED
    for found in store.get_tasks("j"):
        assert found.usage is not None
        assert 0.3 <= found.usage.cpu_seconds < 60


def test_of_an_attempt_that_another_one_has_followed_it_is_known(store: JobStore, managers: Managers) -> None:
    managers.start()
    line = f"test $AIR_EXECUTOR_ATTEMPT = 2 || {{ {sys.executable} -c '{_BUSY}'; exit 1; }}"
    store.submit("j", [task("t", line, retries=1)])
    ended(store, "j")
    first, second = store.get_attempts("j")
    assert first.usage is not None
    assert second.usage is not None
    assert first.usage.cpu_seconds >= 0.3 > second.usage.cpu_seconds


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="warm runners need Linux")
def test_of_a_warm_task_it_is_that_of_its_own_process(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(f"{_BUSY}\nx = b'x' * {100 * MEGABYTE}\n")
    managers.environment["PYTHONPATH"] = str(tmp_path)
    managers.start("--preload", "json")
    store.submit("j", [{"id": "t", "command": sys.executable, "args": ["-m", "busy"], "runner": "warm"}])
    found = only_task(store)
    assert found.status is TaskStatus.COMPLETED
    assert found.usage is not None
    assert found.usage.cpu_seconds >= 0.3
    assert found.usage.max_memory is not None
    assert 100 * MEGABYTE <= found.usage.max_memory < 300 * MEGABYTE


def test_it_is_read_as_it_was_written(store: JobStore) -> None:
    store.submit("j", ["true"])
    (found,) = store.get_tasks("j")
    used = Usage(cpu_seconds=1.5, max_memory=7 * MEGABYTE)
    publish_tasks(store, "j", [found.evolve(usage=used)])
    assert store.get_tasks("j")[0].usage == used
    (record,) = json.loads(store.paths("j").tasks.read_text())
    assert record["usage"] == {"cpu_seconds": 1.5, "max_memory": 7 * MEGABYTE}
