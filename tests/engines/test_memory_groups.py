"""Attempts whose memory the system itself limits, by a control group of each.

These tests make groups below the root of all, as root. Where memory does not belong to control groups of version 2, one
test runs all others in a virtual machine.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.jobs.models import Reason, Task, TaskStatus
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.jobs.usage import in_bytes
from airflow_provider_air_executor.system.control_groups import OWN
from tests.support import ordinary_user, virtual_machine
from tests.support.jobs import ended, only_task, read_log, task
from tests.support.launched import LAUNCHED
from tests.support.managers import Managers
from tests.support.waiting import until, wait_until

ROOT = Path("/sys/fs/cgroup")
MEBIBYTE = 1 << 20
LIMIT = 64 * MEBIBYTE
MUCH = 1024 * MEBIBYTE  # of which a process has a part within the time between two looks
_ERROR = f"it was killed: it used more than the {in_bytes(LIMIT)} of memory that it may use"
_PLACE = "AIR_EXECUTOR_TEST_GROUP"  # the variable of a pytest as another user: the group that it was given
_FILE = "tests/engines/test_memory_groups.py"


def _can_make_groups() -> bool:
    """Whether groups with memory of their own can be made below the root of all."""
    if _PLACE in os.environ:
        return True
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or (ROOT / "cgroup.type").exists():
        return False
    with suppress(OSError):
        return "memory" in (ROOT / "cgroup.subtree_control").read_text().split() and os.access(ROOT, os.W_OK)
    return False


CAN_MAKE_GROUPS = _can_make_groups()
needs_groups = pytest.mark.skipif(not CAN_MAKE_GROUPS, reason="they run in the virtual machine, if there is one")


@pytest.mark.engine
@pytest.mark.skipif(CAN_MAKE_GROUPS, reason="they run on this machine")
def test_in_a_virtual_machine() -> None:
    # They take some seconds each, or half a minute each if the machine is emulated.
    virtual_machine.run_tests(_FILE)


# -- where groups are ------------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[Path]:
    """A group of the test's own, in which nothing is."""
    if _PLACE in os.environ:
        yield Path(os.environ[_PLACE])
        return
    group = ROOT / f"test-{uuid.uuid4().hex[:12]}"
    group.mkdir()
    yield group
    wait_until(lambda: _remove(group), what="its groups are gone")


def _remove(group: Path) -> bool:
    """End what lives in a group, and remove it, with those within; whether it is gone."""
    with suppress(OSError):
        (group / "cgroup.kill").write_text("1")
    for directory, _, _ in os.walk(group, topdown=False):
        with suppress(OSError):
            os.rmdir(directory)
    return not group.exists()


def begins_in(managers: Managers, group: Path) -> None:
    """Start the next managers in a group."""
    managers.before = ["sh", "-c", f'echo 0 >{group}/cgroup.procs; exec "$@"', "sh"]


@pytest.fixture
def delegated(place: Path, managers: Managers) -> Path:
    """A group as systemd hands it over to a unit with ``DelegateSubgroup=``; managers are started in one within."""
    if _PLACE not in os.environ:
        os.setxattr(place, "user.delegate", b"1")
        (place / "manager").mkdir()
        begins_in(managers, place / "manager")
    return place


def groups_in(place: Path) -> list[Path]:
    """The groups of attempts."""
    return [path for path in place.glob("air-executor-*") if path.name != OWN]


def in_group(group: Path) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    return []


def nothing_left(place: Path) -> bool:
    return not groups_in(place)


# -- tasks -----------------------------------------------------------------------------------------------------------


def taking(size: int) -> str:
    """A command that has so many bytes of memory, and keeps them until it is killed; ``input`` waits for a pipe."""
    return f"sleep 100000 | {having(size)}"


def having(size: int, more: str = "input()") -> str:
    program = f"x = b'x' * {size}; {more}"
    return f"{sys.executable} -c {shlex.quote(program)}"


def together(number: int, directory: Path) -> str:
    """A line that runs so many processes, each with a third of the limit, until all of them have it."""
    directory.mkdir()
    wait = f"while len(os.listdir('{directory}')) < {number}: time.sleep(0.01)"
    one = having(LIMIT // 3, f"import os, time; open('{directory}/' + str(os.getpid()), 'w')\n{wait}")
    return " & ".join([one] * number) + " & wait"


def limited(line: str, name: str = "t", **more: Any) -> dict[str, Any]:
    return task(name, line, resources={"memory": LIMIT}, **more)


def check_killed(store: JobStore, place: Path, found: Task) -> None:
    """The system has killed it, before it had more than it may."""
    assert found.status is TaskStatus.FAILED
    assert found.reason is Reason.SIGNAL
    assert found.error == _ERROR
    assert found.usage is not None
    assert found.usage.max_memory is not None
    assert LIMIT // 2 < found.usage.max_memory <= LIMIT + MEBIBYTE
    assert found.usage.cpu_seconds > 0
    assert _ERROR in read_log(store, "j", found.id).text
    wait_until(lambda: nothing_left(place), what="its group is gone")


# -- how attempts start ----------------------------------------------------------------------------------------------


@needs_groups
def test_a_cold_one(store: JobStore, managers: Managers, delegated: Path) -> None:
    """Be it the first one, or by the shell on standby, or by one with an environment of its own."""
    managers.start()
    own = {"env": {"OWN": "1"}}
    store.submit("j", [limited("exit 3", "a"), limited(taking(MUCH)), limited(taking(MUCH), "u", **own)])
    ended(store, "j")
    first, *others = store.get_tasks("j")
    assert first.error == "exit code 3"
    for found in others:
        check_killed(store, delegated, found)


@needs_groups
def test_one_of_many_that_come_at_once(store: JobStore, managers: Managers, delegated: Path) -> None:
    """Others are started without a shell then."""
    managers.patch = LAUNCHED
    managers.start()
    tasks = [{"id": f"t{number}", "command": "sh", "args": ["-c", taking(MUCH)]} for number in range(4)]
    store.submit(
        "j", [{**each, "resources": {"memory": LIMIT}} for each in tasks] + [task("free", having(2 * LIMIT, "0"))]
    )
    ended(store, "j")
    *killed, free = store.get_tasks("j")
    for found in killed:
        check_killed(store, delegated, found)
    assert free.error is None


@needs_groups
def test_a_warm_one(store: JobStore, managers: Managers, delegated: Path, tmp_path: Path) -> None:
    (tmp_path / "large.py").write_text(f"import time\nx = b'x' * {MUCH}\ntime.sleep(100000)\n")
    managers.environment["PYTHONPATH"] = str(tmp_path)
    managers.start("--preload", "json")
    large = {"id": "t", "command": sys.executable, "args": ["-m", "large"], "runner": "warm"}
    store.submit("j", [{**large, "resources": {"memory": LIMIT}}])
    check_killed(store, delegated, only_task(store))
    assert "cold start" not in read_log(store, "j", "t").text


@needs_groups
def test_a_warm_one_whose_process_stays(store: JobStore, managers: Managers, delegated: Path, tmp_path: Path) -> None:
    """It leaves the group of each attempt. So a later one may have more, or less, and what it has is its own."""
    sizes = {"small": LIMIT // 2, "free": 2 * LIMIT, "last": MUCH}
    (tmp_path / "stays.py").write_text(
        "import os\n"
        "def renew(): return True\n"
        "def main():\n"
        f"    x = b'x' * {sizes}[os.environ['AIR_EXECUTOR_TASK']]\n"
        "    print(os.getpid(), open('/proc/self/cgroup').read())\n"
        "    return 0\n"
    )
    managers.environment["PYTHONPATH"] = str(tmp_path)
    managers.start("--preload", "stays")
    warm = {"command": sys.executable, "args": ["-m", "stays"], "runner": "warm"}
    limit = {"resources": {"memory": LIMIT}}
    store.submit(
        "j",
        [
            {**warm, **limit, "id": "small"},
            {**warm, "id": "free", "dependencies": ["small"]},
            {**warm, **limit, "id": "last", "dependencies": ["free"]},
        ],
    )
    ended(store, "j")
    small, free, last = store.get_tasks("j")
    logs = {each.id: read_log(store, "j", each.id).text.split() for each in (small, free)}
    assert logs["small"][0] == logs["free"][0], "it is the same process"
    assert "air-executor-" in logs["small"][1]
    assert "air-executor-" not in logs["free"][1]
    assert (small.error, free.error) == (None, None)
    assert small.usage is not None
    assert LIMIT // 2 < (small.usage.max_memory or 0) < LIMIT
    check_killed(store, delegated, last)


# -- what counts, and what comes after -------------------------------------------------------------------------------


@needs_groups
def test_what_has_hidden_from_its_shim_counts(store: JobStore, managers: Managers, delegated: Path) -> None:
    """In a session of its own, with nothing in its environment, and the child of process 1. All are killed together."""
    managers.start()
    hidden = f"env -i setsid sh -c {shlex.quote(f'({taking(MUCH)}) &')}"
    store.submit("j", [limited(f"{hidden}; sleep 100000")])
    check_killed(store, delegated, only_task(store))


@needs_groups
def test_what_all_of_its_processes_have_together_is_limited_and_said(
    store: JobStore, managers: Managers, delegated: Path, tmp_path: Path
) -> None:
    managers.start()
    store.submit("j", [limited(together(2, tmp_path / "two"), "two"), limited(together(3, tmp_path / "three"))])
    ended(store, "j")
    two, three = store.get_tasks("j")
    assert two.error is None
    assert two.usage is not None
    assert 2 * LIMIT // 3 < (two.usage.max_memory or 0) <= LIMIT, "not of the largest process"
    check_killed(store, delegated, three)


@needs_groups
def test_it_is_tried_again_as_after_any_failure(store: JobStore, managers: Managers, delegated: Path) -> None:
    managers.start()
    store.submit("j", [limited(f"test $AIR_EXECUTOR_ATTEMPT = 2 || {{ {taking(MUCH)}; }}", retries=1)])
    found = only_task(store)
    assert (found.status, found.attempt) == (TaskStatus.COMPLETED, 2)
    assert _ERROR in read_log(store, "j", "t").text


@needs_groups
def test_what_an_attempt_leaves_keeps_its_group(
    store: JobStore, managers: Managers, delegated: Path, tmp_path: Path
) -> None:
    managers.start()
    store.submit("j", [limited(f"setsid sh -c {shlex.quote(until(tmp_path / 'go'))} >/dev/null 2>&1 &")])
    assert only_task(store).error is None
    store.submit("next", [limited("true")])
    ended(store, "next")
    wait_until(lambda: len(groups_in(delegated)) == 1, what="the other one is gone")
    assert in_group(groups_in(delegated)[0])
    (tmp_path / "go").touch()
    wait_until(lambda: nothing_left(delegated), what="it is removed")


@needs_groups
def test_a_task_without_a_limit_has_no_group(
    store: JobStore, managers: Managers, delegated: Path, tmp_path: Path
) -> None:
    managers.start()
    store.submit("j", [task("t", f"touch {tmp_path}/here; {until(tmp_path / 'go')}")])
    wait_until((tmp_path / "here").exists, what="it runs")
    assert nothing_left(delegated)
    (tmp_path / "go").touch()
    assert ended(store, "j").error is None


# -- managers in a row -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_there", [False, True], ids=["while no manager runs", "adopted"])
@needs_groups
def test_the_limit_outlives_the_manager(
    store: JobStore, managers: Managers, delegated: Path, tmp_path: Path, is_there: bool
) -> None:
    first = managers.start()
    line = f"echo $$ >{tmp_path}/pid; {until(tmp_path / 'go')}; {taking(MUCH)}"
    store.submit("j", [limited(line)])
    wait_until(lambda: store.get_tasks("j")[0].status is TaskStatus.RUNNING, what="it runs")
    wait_until((tmp_path / "pid").exists, what="it has begun")
    managers.kill(first)
    if is_there:
        managers.start()
    (tmp_path / "go").touch()
    if not is_there:
        wait_until(lambda: not any(map(in_group, groups_in(delegated))), what="it is killed")
        assert groups_in(delegated), "the next manager learns from it why"
        managers.start()
    check_killed(store, delegated, only_task(store))


@needs_groups
def test_what_one_has_used_is_known_to_the_next_manager(
    store: JobStore, managers: Managers, delegated: Path, tmp_path: Path
) -> None:
    first = managers.start()
    store.submit("j", [limited(f"{until(tmp_path / 'go')}; {together(2, tmp_path / 'two')}; echo >{tmp_path}/end")])
    wait_until(lambda: store.get_tasks("j")[0].status is TaskStatus.RUNNING, what="it runs")
    managers.kill(first)
    (tmp_path / "go").touch()
    wait_until(lambda: (tmp_path / "end").exists() and not any(map(in_group, groups_in(delegated))), what="it ends")
    managers.start()
    found = only_task(store)
    assert found.error is None
    assert found.usage is not None
    assert 2 * LIMIT // 3 < (found.usage.max_memory or 0) <= LIMIT
    wait_until(lambda: nothing_left(delegated), what="its group is gone")


# -- where the manager is --------------------------------------------------------------------------------------------


@needs_groups
def test_a_unit_that_is_delegated_without_a_group_within_is_left_alone(
    store: JobStore, managers: Managers, place: Path
) -> None:
    """Systemd starts the next manager where this one is, which must stay possible: its tasks live on."""
    os.setxattr(place, "user.delegate", b"1")
    begins_in(managers, place)
    manager = managers.start()
    store.submit("j", [limited(taking(300 * MEBIBYTE))])
    found = only_task(store)
    assert found.error is not None
    assert re.fullmatch(r"it was killed: it used [\d.]+ [MG]iB of memory, and may use 64 MiB", found.error)
    check_untouched(place, manager.pid)


def check_untouched(place: Path, manager: int) -> None:
    assert manager in in_group(place)
    assert not [path for path in place.iterdir() if path.is_dir()]
    assert "memory" not in (place / "cgroup.subtree_control").read_text()


@needs_groups
def test_a_group_that_was_not_handed_over_is_left_alone(store: JobStore, managers: Managers, place: Path) -> None:
    (place / "manager").mkdir()
    begins_in(managers, place / "manager")
    managers.start()
    store.submit("j", [limited(taking(300 * MEBIBYTE))])
    assert only_task(store).reason is Reason.SIGNAL
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["manager"]
    assert "memory" not in (place / "cgroup.subtree_control").read_text()


@needs_groups
def test_beside_a_unit_of_systemd_no_group_is_made(store: JobStore, managers: Managers, place: Path) -> None:
    """As in a session of a user, whose groups are that user's."""
    os.setxattr(place, "user.delegate", b"1")
    (place / "terminal.scope").mkdir()
    begins_in(managers, place / "terminal.scope")
    managers.start()
    store.submit("j", [limited(taking(300 * MEBIBYTE))])
    assert only_task(store).reason is Reason.SIGNAL
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["terminal.scope"]


def begins_in_container(managers: Managers, group: Path, before: str = "") -> None:
    """Start the next managers in a group that is the root of all for them, as in a container."""
    here = 'umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"'
    start = f'echo 0 >{group}/cgroup.procs; {before} exec unshare --cgroup --mount sh -c {shlex.quote(here)} sh "$@"'
    managers.before = ["sh", "-c", start, "sh"]


def namespace(pid: int) -> str:
    """What says which groups a process sees."""
    return os.readlink(f"/proc/{pid}/ns/cgroup")


@needs_groups
def test_in_a_container(store: JobStore, managers: Managers, place: Path) -> None:
    """Also for the next manager, which is started where the processes of the container are by then."""
    begins_in_container(managers, place)
    first = managers.start()
    store.submit("j", [limited(taking(MUCH))])
    check_killed(store, place, only_task(store))
    assert not in_group(place)
    assert first.pid in in_group(place / OWN)
    inside = ["nsenter", "--cgroup", "--mount", f"--target={first.pid}"]
    with subprocess.Popen([*inside, "cat"], stdin=subprocess.PIPE) as keeper:  # of the container
        container = namespace(first.pid)
        wait_until(lambda: namespace(keeper.pid) == container, what="it is in the container")
        managers.kill(first)
        begins_in(managers, place / OWN)
        managers.before += [*inside[:-1], f"--target={keeper.pid}"]
        managers.start()
        store.delete("j")
        store.submit("j", [limited(taking(MUCH))])
        check_killed(store, place, only_task(store))


@needs_groups
def test_a_container_in_which_something_else_runs_is_left_alone(
    store: JobStore, managers: Managers, place: Path, tmp_path: Path
) -> None:
    begins_in_container(managers, place, f"(setsid sh -c {shlex.quote(until(tmp_path / 'go'))} &);")
    manager = managers.start()
    store.submit("j", [limited(taking(300 * MEBIBYTE))])
    assert only_task(store).reason is Reason.SIGNAL
    (tmp_path / "go").touch()
    check_untouched(place, manager.pid)


@needs_groups
@pytest.mark.skipif(bool(ordinary_user.missing()), reason="it needs an ordinary user")
def test_a_group_that_belongs_to_the_user_of_the_manager(place: Path) -> None:
    """As systemd hands it over with ``User=``: all is done by a manager, and tasks, that are not root's."""
    user, leaf = pwd.getpwnam(ordinary_user.USER), place / "manager"
    leaf.mkdir()
    for group in (place, leaf):
        for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(group / name, user.pw_uid, user.pw_gid)
    (leaf / "cgroup.procs").write_text("0")  # what is started now is there, too
    try:
        cases = [f"{_FILE}::{name}" for name in ("test_a_cold_one", "test_a_warm_one_whose_process_stays")]
        ordinary_user.run_tests(*cases, **{_PLACE: str(place)})
    finally:
        (ROOT / "cgroup.procs").write_text("0")
