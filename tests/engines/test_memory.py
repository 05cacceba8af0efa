"""A local attempt that uses more memory than its task may is killed as a whole."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.engines.local.attempt import TooMuchMemory
from airflow_provider_air_executor.jobs.models import Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import Usage, in_bytes
from tests.support.jobs import ended, only_task, read_log, task
from tests.support.managers import Managers
from tests.support.processes import with_environment
from tests.support.waiting import until, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the memory of processes is Linux's")

MEBIBYTE = 1 << 20
LIMIT = 300 * MEBIBYTE
_ERROR = re.compile(r"it was killed: it used [\d.]+ [MG]iB of memory, and may use 300 MiB")


def taking(size: int) -> str:
    """A command that has so many bytes of memory, and keeps them until it is killed; ``input`` waits for a pipe."""
    program = f"x = b'x' * {size}; input()"
    return f"sleep 100000 | {sys.executable} -c {shlex.quote(program)}"


def limited(line: str, **more: Any) -> dict[str, Any]:
    """A task that may use less memory than some do."""
    return task("t", line, resources={"memory": LIMIT}, **more)


def nothing_left(store: JobStore) -> bool:
    """Whether no process of a task of this base path lives."""
    return not with_environment(f"AIR_EXECUTOR_JOB_DIR={store.paths('j').directory}")


def check_killed(store: JobStore, found: Task) -> None:
    """It ended because of its memory, as a whole, with what it has used."""
    assert found.status is TaskStatus.FAILED
    assert found.reason is Reason.SIGNAL
    assert found.error is not None
    assert _ERROR.fullmatch(found.error)
    assert found.usage is not None
    assert found.usage.max_memory is not None
    assert found.usage.max_memory > LIMIT
    assert found.usage.cpu_seconds > 0
    assert found.error in read_log(store, "j", found.id).text
    assert nothing_left(store)


def test_one_process(store: JobStore, managers: Managers) -> None:
    managers.start()
    store.submit("j", [limited(taking(LIMIT + 100 * MEBIBYTE))])
    check_killed(store, only_task(store))


def test_what_all_of_its_processes_have_together_counts(store: JobStore, managers: Managers) -> None:
    managers.start()
    half = taking(LIMIT // 2 + 30 * MEBIBYTE)
    store.submit("j", [limited(f"{half} & {half}")])
    check_killed(store, only_task(store))


def test_a_process_in_another_session_counts(store: JobStore, managers: Managers) -> None:
    managers.start()
    store.submit("j", [limited(f"setsid sh -c {shlex.quote(taking(LIMIT + 100 * MEBIBYTE))} & sleep 100000")])
    check_killed(store, only_task(store))


def test_below_the_limit_nothing_happens(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    """Not to one that has less than it may, nor to one without a limit; and what processes share counts once."""
    managers.start()

    def keeping(size: int, name: str, more: str = "0") -> str:
        program = f"import os; x = b'x' * {size}; {more}; open('{tmp_path / name}', 'w'); input()"
        return f"{until(tmp_path / 'go')} | {sys.executable} -c {shlex.quote(program)} || true"

    limit, size = {"memory": LIMIT}, LIMIT // 2 + 30 * MEBIBYTE
    others = [
        task("near", keeping(size, "near"), resources=limit),
        task("shares", keeping(size, "shares", "os.fork()"), resources=limit),
        task("free", keeping(LIMIT + 100 * MEBIBYTE, "free")),
    ]
    store.submit("others", others)
    wait_until(lambda: all((tmp_path / other["id"]).exists() for other in others), what="they have their memory")
    store.submit("j", [limited(taking(LIMIT + 100 * MEBIBYTE))])
    assert only_task(store).reason is Reason.SIGNAL
    (tmp_path / "go").touch()
    assert ended(store, "others").error is None


def test_it_is_tried_again_as_after_any_failure(store: JobStore, managers: Managers) -> None:
    managers.start()
    line = f"test $AIR_EXECUTOR_ATTEMPT = 2 || {{ {taking(LIMIT + 100 * MEBIBYTE)}; }}"
    store.submit("j", [limited(line, retries=1)])
    found = only_task(store)
    assert found.status is TaskStatus.COMPLETED
    assert found.attempt == 2


def test_an_adopted_one_keeps_its_limit(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    first = managers.start()
    store.submit("j", [limited(f"{until(tmp_path / 'go')}; {taking(LIMIT + 100 * MEBIBYTE)}")])
    wait_until(lambda: store.get_tasks("j")[0].status is TaskStatus.RUNNING, what="it runs")
    managers.kill(first)
    managers.start()
    (tmp_path / "go").touch()
    check_killed(store, only_task(store))


def test_a_warm_one(store: JobStore, managers: Managers, tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text(f"import time\nx = b'x' * {LIMIT + 100 * MEBIBYTE}\ntime.sleep(100000)\n")
    managers.environment["PYTHONPATH"] = str(tmp_path)
    managers.start("--preload", "json")
    large = {"id": "t", "command": sys.executable, "args": ["-m", "large"], "runner": "warm"}
    store.submit("j", [{**large, "resources": {"memory": LIMIT}}])
    check_killed(store, only_task(store))
    assert "cold start" not in read_log(store, "j", "t").text


def test_a_warm_one_whose_process_has_had_attempts_without_a_limit(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    (tmp_path / "stays.py").write_text(
        "import os, time\n"
        "def renew(): return True\n"
        "def main():\n"
        "    if os.environ['AIR_EXECUTOR_TASK'] == 't':\n"
        f"        x = b'x' * {LIMIT + 100 * MEBIBYTE}\n"
        "        time.sleep(100000)\n"
        "    print(os.getpid())\n"
        "    return 0\n"
    )
    managers.environment["PYTHONPATH"] = str(tmp_path)
    managers.start("--preload", "stays")
    warm = {"command": sys.executable, "args": ["-m", "stays"], "runner": "warm", "resources": {"memory": LIMIT}}
    store.submit("j", [{**warm, "id": "first"}, {**warm, "id": "t", "dependencies": ["first"]}])
    ended(store, "j")
    check_killed(store, store.get_tasks("j")[1])


def test_in_words() -> None:
    over = TooMuchMemory(1 << 30, Usage(cpu_seconds=1, max_memory=1_288_490_189))
    assert over.error == "it was killed: it used 1.2 GiB of memory, and may use 1 GiB"
    over = TooMuchMemory(1 << 30, Usage(cpu_seconds=1, max_memory=(1 << 30) + 4096))
    assert over.error == "it was killed: it used more than the 1 GiB of memory that it may use"
    assert [in_bytes(number) for number in (12, 2048, 300 * MEBIBYTE, 5 << 40)] == [
        "12 B",
        "2 KiB",
        "300 MiB",
        "5 TiB",
    ]
