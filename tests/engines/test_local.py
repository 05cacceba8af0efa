"""What the local engine leaves to the processes that it starts, and what becomes of those that cannot begin."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_provider_air_executor.engines.children import Children
from airflow_provider_air_executor.engines.local import shells
from airflow_provider_air_executor.engines.local.engine import LocalEngine
from airflow_provider_air_executor.engines.protocol import Attempt, Ended, Event, NotStarted
from airflow_provider_air_executor.engines.shim import FIND, could_not_fork, script_here
from airflow_provider_air_executor.jobs import inbox
from airflow_provider_air_executor.jobs.attempt_record import read_record
from airflow_provider_air_executor.jobs.models import utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from tests.support.jobs import ended, only_task, plain, read_log, shim_pid, task, write_job
from tests.support.managers import Managers
from tests.support.waiting import PATIENCE, wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE")

_NEW_MOUNTS, _PRIVATE = 0x00020000, 1 << 18 | 0x4000  # CLONE_NEWNS; MS_PRIVATE and MS_REC, see mount(2)


def mounted(path: Path) -> Callable[[], None]:
    """What gives a process a file system that never answers, for it alone and for what it starts."""
    libc = ctypes.CDLL(None, use_errno=True)

    def mount() -> None:
        descriptor = os.open("/dev/fuse", os.O_RDWR)
        os.set_inheritable(descriptor, True)
        options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()
        if (
            libc.unshare(_NEW_MOUNTS)
            or libc.mount(b"none", b"/", None, _PRIVATE, None)
            or libc.mount(b"away", os.fsencode(path), b"fuse", 0, options)
        ):
            raise OSError(ctypes.get_errno(), "mount")

    return mount


@needs_root
def test_a_file_system_that_does_not_answer_holds_up_its_own_tasks_only(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    managers.start(preexec_fn=mounted(away), close_fds=False)
    stuck = {
        "directory": task("t", cwd=f"{away}/here"),
        "command": {"id": "t", "command": f"{away}/program"},
        "path": {"id": "t", "command": "true", "env": {"PATH": f"{away}:/usr/bin:/bin"}},
    }
    for name, described in stuck.items():
        store.submit(name, [described])
        shim_pid(store, name, "t")
    store.submit("good", ["true"])
    assert ended(store, "good").state == "completed"
    wait_until(lambda: all(store.get_tasks(name)[0].status == "running" for name in stuck), what="they are said to run")
    for name in stuck:
        inbox.cancel(store, name)
    assert {name: ended(store, name).reason for name in stuck} == dict.fromkeys(stuck, "cancelled")


@pytest.mark.parametrize(
    ("described", "why"),
    [
        ({"command": "no-such-command"}, "command no-such-command was not found in PATH="),
        ({"command": "/no/such/command"}, "command /no/such/command was not found"),
        ({"command": "/etc/passwd"}, "command /etc/passwd is not an executable file"),
        ({"command": "/"}, "command / is not an executable file"),
        ({"command": "true", "env": {"PATH": ""}}, "command true was not found in PATH="),
        ({"command": "true", "cwd": "/no/such"}, "the directory /no/such (field cwd) does not exist"),
    ],
)
def test_what_is_not_there_is_said(
    store: JobStore, manager: subprocess.Popen[str], described: dict[str, object], why: str
) -> None:
    store.submit("j", [{"id": "a", **described}])
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "spawn")
    assert why in (done.error or "")


def test_a_command_is_found_from_the_directory_of_its_task(
    store: JobStore, manager: subprocess.Popen[str], tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho $0\n")
    program.chmod(0o755)
    store.submit("j", [{"id": "a", "command": "./program", "cwd": str(tmp_path)}])
    assert only_task(store).status == "completed"
    assert read_log(store, "j", "a").text == "./program\n"


def test_a_forked_shim_says_that_its_directory_is_not_there(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.start()
    command = {"id": "a", "command": sys.executable, "args": ["-m", "this"], "cwd": "/no/such", "runner": "warm"}
    store.submit("j", [command])
    done = only_task(store)
    assert (done.status, done.reason) == ("failed", "spawn"), read_log(store, "j", "a").text
    assert "/no/such" in (done.error or "")


@pytest.mark.parametrize("runner", ["local", "warm"])
def test_tasks_run_in_a_directory_of_their_job(
    store: JobStore, managers: Managers, tmp_path: Path, runner: str
) -> None:
    """Which is removed with it; a directory that is not absolute begins there."""
    (tmp_path / "where.py").write_text("import os, sys\nprint(os.getcwd())\nopen(sys.argv[1], 'x')\n")
    managers.environment["PYTHONPATH"] = str(tmp_path)
    managers.start()
    told = {"command": sys.executable, "args": ["-m", "where", "config.yaml"], "runner": runner}
    absolute = tmp_path / "else"
    absolute.mkdir()
    others = [{**told, "id": "b", "cwd": "below", "dependencies": ["m"]}, {**told, "id": "c", "cwd": str(absolute)}]
    store.submit("j", [{**told, "id": "a"}, {"command": "mkdir", "args": ["below"], "id": "m"}, *others])
    assert ended(store, "j").state == "completed"
    work = store.paths("j").work
    printed = [read_log(store, "j", name).text for name in ("a", "b", "c")]
    assert printed == [f"{work}\n", f"{work}/below\n", f"{absolute}\n"]
    assert {path.name for path in work.iterdir()} == {"config.yaml", "below"}
    assert not store.config_path.exists()
    store.delete("j")
    assert not work.exists()


def test_jobs_of_the_existing_system_run_where_the_manager_was_started(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    managers.start(cwd=tmp_path)
    write_job(store, "j", [plain("t", "pwd")])
    assert ended(store, "j").state == "completed"
    assert read_log(store, "j", "t").text == f"{tmp_path}\n"
    assert not store.paths("j").work.exists()


def test_a_job_directory_that_a_task_has_removed_is_there_again_for_a_retry(
    store: JobStore, manager: subprocess.Popen[str]
) -> None:
    store.submit("j", [task("a", 'rmdir "$PWD"; exit 1')])
    assert ended(store, "j").state == "failed"
    inbox.retry(store, "j")
    wait_until(lambda: store.get_job("j").attempt == 2, what="it is tried again")
    assert ended(store, "j").state == "failed"
    assert only_task(store).reason == "exit"


SHELLS = [name for name in ("dash", "bash", "busybox") if shutil.which(name)]  # others call it an exit code


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_that_cannot_fork_says_so(tmp_path: Path, shell: str) -> None:
    """It ends by itself, after it has made its record and before the command has begun."""
    tmp_path.chmod(0o777)
    (tmp_path / "sh").symlink_to(shutil.which(shell) or "")

    user = 60_000 + os.getpid()  # whose only process it is

    def poor() -> None:
        import resource

        os.setgroups([])
        os.setuid(user)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))

    words = ["record", "2026-01-01T00:00:00+00:00", "log", "", "sleep", "0"]
    environment = {"PATH": os.environ["PATH"], "AIR_EXECUTOR_RUN": secrets.token_hex(8)}
    text = f'{FIND}{script_here({})}shift; run "$@"'
    command = ["./sh", "-c", text, "shim", "token", *words]
    # From a directory that it may be in, below one that it may not enter.
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, preexec_fn=poor, capture_output=True, text=True, check=False
    )
    found = read_record(tmp_path / "record")
    assert found is not None, done.stderr
    assert could_not_fork(found), (found, done)
    assert done.returncode > 0


@pytest.mark.parametrize("shell", [*SHELLS, *filter(shutil.which, ("ksh93", "mksh", "yash"))])
def test_a_signal_is_told_as_128_and_its_number(tmp_path: Path, shell: str) -> None:
    """Whatever the shell itself says of it; that is no exit code."""
    (tmp_path / "sh").symlink_to(shutil.which(shell) or "")
    for line, code in (("kill -9 $$", 137), ("kill -15 $$", 143), ("exit 255", 255), ("exit 9", 9)):
        record = tmp_path / f"record-{code}"
        words = [str(record), "2026-01-01T00:00:00+00:00", "log", "", "/bin/dash", "-c", line]
        environment = {"PATH": os.environ["PATH"], "AIR_EXECUTOR_RUN": secrets.token_hex(8)}
        command = ["./sh", "-c", f'{script_here({})}shift; run "$@"', "shim", "token", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, timeout=PATIENCE)
        found = read_record(record)
        assert found is not None
        assert (found.exit_code, done.returncode) == (code, code)


class InThisProcess:
    """A local engine in this process, and the events of its attempts."""

    def __init__(self, store: JobStore) -> None:
        self.children = Children()
        self.engine = LocalEngine(store, dict(os.environ), self.children)
        self._events: list[Event] = []

    def start(self, store: JobStore, **described: object) -> Attempt:
        """Start the only task of a new job ``j``."""
        store.submit("j", [{"id": "a", **described}])
        attempt = Attempt.of("j", "a", 1)
        self.engine.start(attempt, store.get_tasks("j")[0], utc_now())
        return attempt

    def event(self) -> Event:
        """The next event."""

        def look() -> list[Event]:
            self.children.reap()
            self._events += self.engine.poll()
            return self._events

        return wait_until(look, what="something has become of it").pop(0)


def write_shell(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_what_could_not_fork_is_started_again(store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same number, since its command has not begun."""
    record = f"""echo "$$ $6 $AIR_EXECUTOR_RUN" > "$5"; echo '{_said()}' >> "$5"; exit 2"""
    shell = write_shell(tmp_path / "poor", f'if mkdir {tmp_path}/once; then {record}; fi; exec /bin/sh "$@"')
    monkeypatch.setattr(shells, "_SHELL", shell)
    here = InThisProcess(store)
    attempt = here.start(store, command="true")
    told = here.event()
    assert isinstance(told, NotStarted), told
    assert "cannot fork" in told.why
    here.engine.start(attempt, store.get_tasks("j")[0], utc_now())
    done = here.event()
    assert isinstance(done, Ended)
    assert done.exit_code == 0
    here.engine.close()


def _said() -> str:
    """The record of a shim that cannot fork; root's processes can."""
    line = next(line for line in script_here({}).splitlines() if "cannot fork" in line)
    return line.partition('"')[2].partition('"')[0]


def test_a_shell_that_cannot_be_on_standby_is_given_nothing(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every one knows ``-s`` with a name: that one ends, and what it had been handed would be lost."""
    shell = write_shell(tmp_path / "strange", 'case $1 in -s) exec sleep 1;; esac; exec /bin/sh "$@"')
    monkeypatch.setattr(shells, "_SHELL", shell)
    here = InThisProcess(store)
    here.engine.prepare()
    here.start(store, command="true")
    done = here.event()
    assert isinstance(done, Ended)
    assert done.exit_code == 0
    here.engine.close()


def test_a_shim_that_is_killed_before_it_has_made_its_record_has_not_begun(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = write_shell(
        tmp_path / "slow", f'if mkdir {tmp_path}/once 2>/dev/null; then kill -9 $$; fi; exec /bin/sh "$@"'
    )
    monkeypatch.setattr(shells, "_SHELL", shell)
    here = InThisProcess(store)
    here.start(store, command="true")
    assert isinstance(here.event(), NotStarted)
    here.engine.close()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are given to processes on Linux")
def test_a_task_that_needs_more_processors_than_the_manager_may_use_fails(store: JobStore, managers: Managers) -> None:
    only = min(os.sched_getaffinity(0))
    managers.start(preexec_fn=lambda: os.sched_setaffinity(0, {only}))
    store.submit("j", [task("a", resources={"cpus": 2}), task("b", resources={"cpus": 1})])
    ended(store, "j")
    a, b = store.get_tasks("j")
    assert (a.reason, b.status) == ("spawn", "completed")
    assert "it needs 2 cpus; this machine has 1 for local tasks" in (a.error or "")


@pytest.mark.parametrize("runner", ["local", "warm"])
def test_variables_for_which_a_shell_has_no_word_reach_the_command(
    store: JobStore, managers: Managers, tmp_path: Path, runner: str
) -> None:
    """Functions that bash has exported are such ones: on clusters, ``module``."""
    (tmp_path / "show.py").write_text(
        "import os, subprocess\nprint(os.environ['a.b'], flush=True)\nsubprocess.run(['bash', '-c', 'hello'])\n"
    )
    managers.environment.update({"a.b": "x 'y", "BASH_FUNC_hello%%": "() {  echo 100%\n}", "PYTHONPATH": str(tmp_path)})
    managers.start()
    store.submit("j", [{"id": "a", "command": sys.executable, "args": ["-m", "show"], "runner": runner}])
    assert only_task(store).status == "completed", read_log(store, "j", "a").text
    assert read_log(store, "j", "a").text == "x 'y\n100%\n"


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["-", "-x", "a"])
def test_a_relative_directory_is_the_one_of_that_name(tmp_path: Path, name: str, shell: str) -> None:
    """To cd, a dash is where it was before or begins an option; other names are looked for in CDPATH."""
    for place in (tmp_path / name, tmp_path / "elsewhere" / name):
        place.mkdir(parents=True)
    variables = {"CDPATH": f"{tmp_path}/elsewhere", "OLDPWD": f"{tmp_path}/elsewhere"}
    environment = {"PATH": os.environ["PATH"], "AIR_EXECUTOR_RUN": secrets.token_hex(8), **variables}
    words = ["token", "record", "2026-01-01T00:00:00+00:00", "log", name, "/bin/pwd"]
    (tmp_path / "sh").symlink_to(shutil.which(shell) or "")
    command = ["./sh", "-c", f'{FIND}{script_here({})}shift; run "$@"', "shim", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    found = read_record(tmp_path / "record")
    assert found is not None, done.stderr
    assert found.exit_code == 0
    assert (tmp_path / "log").read_text() == f"{tmp_path}/{name}\n"
