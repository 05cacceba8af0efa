"""The command line: what it prints, its exit codes, and how fast it starts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_air_executor.exceptions import ManagerError
from airflow_provider_air_executor.jobs import inbox, manager_status
from airflow_provider_air_executor.jobs.models import JobState, TaskStatus, utc_now
from airflow_provider_air_executor.jobs.store import JobStore
from airflow_provider_air_executor.manager import cli
from tests.support.jobs import ended, publish_job, read_log, reset_tasks, task
from tests.support.managers import CLI, Managers, run_cli
from tests.support.waiting import PATIENCE, until, wait_until


@pytest.fixture
def run(store: JobStore, managers: Managers) -> Any:
    """Runs ``air-executor`` on the base path of the test."""

    def call(*arguments: str, text: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
        environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path), "COLUMNS": "80"}
        return run_cli(arguments, environment, text=text, patch=managers.patch, **more)

    return call


JOB = {"name": "j", "tasks": [{"command": "echo", "args": ["hello"]}, {"bash": "echo [bold]ho; exit 3", "id": "b"}]}


def test_submit_and_wait(run: Any, manager: object) -> None:
    done = run("submit", "-", "--wait", text=json.dumps(JOB))
    assert (done.returncode, done.stdout) == (1, "j: failed: task b: exit code 3\n")
    done = run("submit", "-", "--wait", "--name", "k", "--json", text=json.dumps({"tasks": ["true"]}))
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "completed"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it cannot be seen what Python has set")
@pytest.mark.parametrize("given", [{}, {"LC_CTYPE": "C.UTF-8"}])
@pytest.mark.parametrize("of_a_task", [False, True])
def test_tasks_have_the_locale_that_the_manager_was_given(
    run: Any, store: JobStore, managers: Managers, given: dict[str, str], of_a_task: bool
) -> None:
    """And not what Python sets for itself where there is none."""
    inherited = {key: value for key, value in managers.environment.items() if not key.startswith(("LANG", "LC_"))}
    managers.environment = {**inherited, **given, **({"AIR_EXECUTOR_JOB": "another"} if of_a_task else {})}
    assert run("manager", "--detach").returncode == 0
    store.submit("a", [task("a", "env")])
    ended(store, "a")
    assert run("stop").returncode == 0
    lines = read_log(store, "a", "a").text.splitlines()
    assert [line for line in lines if line.startswith("LC_")] == [f"LC_CTYPE={value}" for value in given.values()]


def test_submit_says_when_nobody_will_run_it(run: Any) -> None:
    done = run("submit", "-", text=json.dumps(JOB))
    assert (done.returncode, done.stdout) == (0, "j: waiting\n")
    assert "no manager is running" in done.stderr


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("{", 2, "is not JSON"),
        ("[]", 2, "must be an object"),
        ('{"name": "j"}', 2, "tasks: the field is missing"),
        ('{"name": "j", "tasks": []}', 2, "tasks: the list is empty"),
        ('{"name": "j", "tasks": ["true"], "taks": 1}', 2, "taks: there is no such field"),
        ('{"name": "../j", "tasks": ["true"]}', 2, "job name '../j' is not valid"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run: Any, store: JobStore, text: str, code: int, says: str) -> None:
    done = run("submit", "-", text=text)
    assert done.returncode == code
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert store.job_names() == []


def test_exit_codes_for_what_is_missing_or_taken(run: Any, store: JobStore) -> None:
    assert run("status").returncode == 1
    store.submit("j", ["true"])
    assert run("submit", "-", text=json.dumps(JOB)).returncode == 4
    for command in ("status", "logs", "cancel", "retry"):
        done = run(command, "nope")
        assert done.returncode == 3
        assert "there is no job 'nope'" in done.stderr
    assert run("retry", "j").returncode == 4
    assert run("prune", "--older-than", "soon").returncode == 2


def test_status(run: Any, store: JobStore, manager: object) -> None:
    run("submit", "-", "--wait", text=json.dumps(JOB))
    table = run("status").stdout
    assert re.search(r"j    failed  [━╸╺ ]+  1/2 ", table)
    assert "1 job in" in table
    details = run("status", "j").stdout
    assert "1 of 2 tasks done, failed: b" in details
    assert "exit code 3" in details
    found = json.loads(run("status", "j", "--json").stdout)
    assert [item["status"] for item in found["tasks"]] == ["completed", "failed"]
    assert [job["name"] for job in json.loads(run("status", "--json").stdout)["jobs"]] == ["j"]


def test_watching_a_job_ends_with_it(store: JobStore, managers: Managers, manager: object, tmp_path: Path) -> None:
    store.submit("j", [until(tmp_path / "go"), "exit 1"], max_parallel_tasks=1)
    environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path), "COLUMNS": "80"}
    command = [*CLI, "status", "j", "--watch"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = watching.stdout.readline()
        (tmp_path / "go").touch()
        rest = watching.stdout.read()
    assert watching.returncode == 1
    assert first.startswith("j: 0 of 2 tasks done")
    assert "task task-2: exit code 1" in rest


def on_terminal(
    arguments: list[str], environment: dict[str, str], *, first: str, then: Callable[[], object], last: str
) -> str:
    """What a command shows on a terminal of 80 columns and 12 lines.

    :param first: what it shows before ``then`` is called.
    :param last: what it shows before it is ended.
    """
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 80, 0, 0))
    environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [*CLI, *arguments], env={**environment, "TERM": "xterm"}, stdin=side, stdout=side, stderr=side
    )
    os.close(side)
    shown = b""
    try:
        for expected, action in ((first, then), (last, partial(process.send_signal, signal.SIGINT))):
            while re.search(expected, shown.decode(errors="replace")) is None:
                shown += os.read(main, 65536)
            action()
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
        os.close(main)
    text = shown.decode(errors="replace").replace("\r", "").replace("\x1b[1A", "\n")
    return re.sub(r"\x1b\[[0-?]*[@-~]", "", text)


def test_watching_all_jobs_on_a_terminal(store: JobStore, managers: Managers, manager: object, tmp_path: Path) -> None:
    names = [f"nightly_report_of_a_long_name_{number}" + "-x" * 30 for number in range(20)]
    for name in names:
        store.submit(name, ["true"])
        ended(store, name)
    store.submit("the-last", [until(tmp_path / "go"), "true", "exit 3"], max_parallel_tasks=1)
    environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path)}
    shown = on_terminal(
        ["status", "--watch"],
        environment,
        first="the-last[^\n]+working[^\n]+0/3",
        then=(tmp_path / "go").touch,
        last="the-last[^\n]+failed[^\n]+2/3[^\n]+exit",
    )
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.fullmatch("the-last +working +[━╸╺]+ +0/3 .*", line) for line in lines)
    assert any(re.fullmatch("nightly_report.*…[x-]+x +completed +━+ +1/1 .*", line) for line in lines)
    screen = shown.split("JOB  ")[1].splitlines()  # the first one, whole
    assert len([line for line in screen if line.startswith(("the-last", "nightly"))]) == 9
    assert "21 jobs in" in "\n".join(screen)


def test_watching_a_job_on_a_terminal(store: JobStore, managers: Managers, manager: object, tmp_path: Path) -> None:
    store.submit("j", [until(tmp_path / "go"), {"id": "x" * 20, "bash": "exit 3"}], max_parallel_tasks=1)
    environment = {**managers.environment, "AIR_EXECUTOR_BASE_PATH": str(store.base_path)}
    shown = on_terminal(
        ["status", "j", "--watch"],
        environment,
        first="0 of 2 tasks done, running: task-1",
        then=(tmp_path / "go").touch,
        last="exit code 3",
    )
    assert max(map(len, shown.splitlines())) <= 80
    assert re.search("working ━* *.*0 of 2 tasks done, running: task-1", shown)
    assert re.search("failed .*1 of 2 tasks done, failed: x", shown)


def test_logs(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", [{"id": "a", "bash": "printf 'one\\ntwo'"}, {"id": "b", "bash": "printf '\\377'"}])
    ended(store, "j")
    environment = {**os.environ, "AIR_EXECUTOR_BASE_PATH": str(store.base_path)}
    both = subprocess.run([*CLI, "logs", "j"], env=environment, capture_output=True, check=True).stdout
    assert both == b"a | one\na | two\nb | \xff\n"
    assert subprocess.run([*CLI, "logs", "j", "b"], env=environment, capture_output=True, check=True).stdout == b"\xff"
    assert run("logs", "j", "nope").returncode == 2


def test_logs_follow(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", [task("a", "for i in 1 2 3; do echo $i; sleep 0.3; done")])
    assert run("logs", "j", "--follow").stdout == "a | 1\na | 2\na | 3\n"


@contextlib.contextmanager
def going_on(store: JobStore, managers: Managers, path: Path, *arguments: str) -> Iterator[Callable[[], bytes]]:
    """A command that waits for a job, and what it has said so far."""
    job = path.with_suffix(".json")
    job.write_text('{"name": "j", "tasks": ["true"]}')
    command = [*CLI, *arguments, "--base-path", str(store.base_path)]
    with path.open("wb") as file, job.open("rb") as text:
        process = subprocess.Popen(command, env=managers.environment, stdin=text, stdout=file, stderr=file)
    try:
        yield path.read_bytes
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_a_line_that_is_written_over_is_shown_while_it_lasts(
    store: JobStore, managers: Managers, manager: object, tmp_path: Path
) -> None:
    """As progress bars do, which may never end it; with one prefix a line."""
    states = "for i in $(seq 20); do printf '\\rstep %s' $i; done"
    store.submit("j", [task("a", f"{states}; {until(tmp_path / 'go')}; printf '\\rdone\\n'")])
    with going_on(store, managers, tmp_path / "out", "logs", "j", "--follow") as said:
        wait_until(lambda: b"a | step 20\n" in said() or said().count(b"\n") > 1, what="the state is shown")
        (tmp_path / "go").touch()
    lines = said().splitlines(keepends=True)
    assert lines[-1] == b"a | done\n"
    assert all(re.fullmatch(rb"a \| step \d+\n", line) for line in lines[:-1])


def test_a_log_that_is_truncated_begins_anew(
    store: JobStore, managers: Managers, manager: object, tmp_path: Path
) -> None:
    store.submit("j", [task("a", f"echo first; {until(tmp_path / 'go')}; echo second")])
    with going_on(store, managers, tmp_path / "out", "logs", "j", "--follow") as said:
        wait_until(lambda: b"first" in said(), what="it follows")
        os.truncate(store.paths("j").log("a"), 0)
        wait_until(lambda: b"truncated" in said(), what="it says so")
        (tmp_path / "go").touch()
    note = b"air-executor: a: the log has been truncated; it begins anew\n"
    assert said() == b"a | first\n" + note + b"a | second\n"


def test_cancel_and_retry(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    store.submit("j", [task("a", f"[ -e {tmp_path}/flag ] || sleep 1000")])
    assert run("cancel", "j").stdout == "j: cancellation requested\n"
    assert ended(store, "j").reason == "cancelled"
    assert "has ended already" in run("cancel", "j").stdout
    (tmp_path / "flag").touch()
    assert run("retry", "j").stdout == "j: retry requested\n"
    wait_until(lambda: store.get_job("j").state == "completed", what="it has completed")


def test_a_task_adds_tasks_to_its_own_job(run: Any, store: JobStore, manager: object, tmp_path: Path) -> None:
    """Also one that depends on a task which was added a moment before, and on itself, which has not ended."""
    add = f"{' '.join(map(shlex.quote, CLI))} add-task"
    line = f"""
{add} --id first -- sh -c 'echo first >> {tmp_path}/out' &&
{add} --id second --depends-on first --depends-on adds --retries 1 --bash 'echo second >> {tmp_path}/out' &&
{add} --depends-on second -- true
echo adds >> {tmp_path}/out
"""
    store.submit("j", [{"id": "adds", "bash": line}], max_parallel_tasks=1)
    assert ended(store, "j").state == "completed"
    tasks = store.get_tasks("j")
    assert [task.id for task in tasks][:3] == ["adds", "first", "second"]
    assert tasks[3].id.startswith("task-")
    assert tasks[2].retries == 1
    assert (tmp_path / "out").read_text() == "adds\nfirst\nsecond\n"


def test_adding_needs_one_task(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", ["sleep 1000"])
    assert run("add-task", "--job", "j").returncode == 2
    assert run("add-task", "--job", "j", "--bash", "true", "true").returncode == 2
    assert "no task 'nope'" in run("add-task", "--job", "j", "--depends-on", "nope", "true").stderr
    assert run("add-task", "true").returncode == 2  # whose job?
    inbox.cancel(store, "j")


def test_prune(run: Any, store: JobStore, manager: object) -> None:
    store.submit("j", ["true"])
    ended(store, "j")
    assert run("prune", "--older-than", "1h").stdout == "0 jobs removed\n"
    assert json.loads(run("prune", "--older-than", "0s", "--json").stdout) == {"pruned": ["j"]}


def as_if_not_root(store: JobStore, managers: Managers, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a command does if the modes of files count."""
    rights = "-dac_override,-dac_read_search"
    prefix = [] if os.geteuid() else ["setpriv", "--bounding-set", rights, "--inh-caps", rights]
    command = [*prefix, *CLI, *arguments, "--base-path", str(store.base_path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=managers.environment)


def with_directory(store: JobStore, name: str) -> Path:
    """A directory in that of a job that has ended, with a file."""
    publish_job(store, store.submit(name, ["true"]).evolve(state=JobState.COMPLETED))
    path = store.paths(name).directory / "cache"
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").touch()
    return path


@pytest.mark.parametrize("mode", [0o555, 0])
def test_prune_removes_directories_that_their_owner_has_locked(store: JobStore, managers: Managers, mode: int) -> None:
    path = with_directory(store, "j")
    for locked in (path / "inner", path):
        locked.chmod(mode)
    done = as_if_not_root(store, managers, "prune", "--older-than", "0s")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 job removed\n", "")
    assert list(store.jobs_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user need root")
def test_prune_says_each_time_what_it_may_not_remove(store: JobStore, managers: Managers) -> None:
    """And removes the rest."""
    for name in "abc":
        path = with_directory(store, name)
        if name == "a":
            os.chown(path, 65534, 65534)
    for removed in ("2 jobs removed\n", "0 jobs removed\n"):
        done = as_if_not_root(store, managers, "prune", "--older-than", "0s")
        assert (done.returncode, done.stdout) == (1, removed)
        assert re.fullmatch(
            r"air-executor: job 'a' could not be removed: .*/cache/inner: Permission denied; remove .*\n", done.stderr
        )
    store.submit("a", ["true"])  # its name is free
    shutil.rmtree(next(store.jobs_path.glob(".deleted-a-*")))
    assert as_if_not_root(store, managers, "prune", "--older-than", "0s").returncode == 0


def test_nothing_is_folded_into_a_pipe(store: JobStore, managers: Managers) -> None:
    """So that it can be searched, and copied."""
    name, task_id = "n" * 100, "t" * 150
    store.submit(name, [task(task_id)])
    environment = {key: value for key, value in managers.environment.items() if key != "COLUMNS"}
    for arguments, word in (([], name), ([name], task_id)):
        done = run_cli(["status", *arguments, "--base-path", str(store.base_path)], environment)
        assert any(line.startswith(word) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        (80, "JOB STATE TASKS AGE TOOK REASON"),
        (60, "JOB STATE TASKS AGE TOOK REASON"),  # and no bar
        (40, "JOB STATE TASKS AGE"),
        (25, "JOB STATE"),
    ],
)
def test_a_narrow_terminal_shows_names_before_all_else(
    store: JobStore, managers: Managers, columns: int, headings: str
) -> None:
    for name in ("bulk-04999", "n" * 100):
        publish_job(store, store.submit(name, ["true"]).evolve(started_at=utc_now()))
        reset_tasks(store, name, [found.evolve(status=TaskStatus.COMPLETED) for found in store.get_tasks(name)])
    problem = {"problem": "cannot be written " + "x" * 99, "since": "now"}
    store.problems_path.write_text(json.dumps({"bulk-04999": problem}))
    environment = {**managers.environment, "COLUMNS": str(columns)}
    done = run_cli(["status", "--base-path", str(store.base_path)], environment)
    heading, second, first, *_ = lines = done.stdout.splitlines()
    assert " ".join(heading.split()) == headings
    assert max(map(len, lines)) <= columns
    assert first.startswith("bulk-04999  ")
    assert re.match("nn+…nn+  waiting", second)
    assert ("━" in first) is ("━" in second) is (columns == 80)


def test_waiting_reports_that_no_manager_runs(store: JobStore, managers: Managers) -> None:
    job = '{"name": "j", "tasks": ["true"]}'
    command = [*CLI, "submit", "-", "--wait", "--base-path", str(store.base_path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=managers.environment,
        text=True,
    ) as waiting:
        assert waiting.stdin is not None
        assert waiting.stderr is not None
        waiting.stdin.write(job)
        waiting.stdin.close()
        assert "no manager is running; start it: air-executor manager" in waiting.stderr.readline()
        managers.start()
        assert waiting.wait() == 0


@pytest.mark.parametrize(
    "command", ["submit - --wait", "status j --watch", "status j --watch --json", "logs j --follow"]
)
def test_waiting_reports_what_the_manager_cannot_do(
    store: JobStore, managers: Managers, tmp_path: Path, command: str
) -> None:
    store.create_directories()
    if not command.startswith("submit"):
        store.submit("j", ["true"])
    problem = {"problem": "cannot be written: Permission denied", "since": "now"}
    store.problems_path.write_text(json.dumps({"j": problem}))
    with going_on(store, managers, tmp_path / "out", *command.split()) as said:
        wait_until(lambda: b"cannot be written: Permission denied (since now)" in said(), what="it says so")
        managers.start()


@pytest.fixture
def no_locks(managers: Managers) -> None:
    """As on a network file system without a lock service."""
    lines = "import errno, fcntl, os", "def flock(*_): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))"
    managers.patch = "\n".join([*lines, "fcntl.flock = flock"])


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("is_new", [True, False])
def test_without_locks_nothing_is_submitted_and_no_manager_starts(run: Any, store: JobStore, is_new: bool) -> None:
    if not is_new:
        store.create_directories()
        store.lock_path.touch()
    for arguments in (["submit", "-"], ["manager"], ["manager", "--detach"]):
        done = run(*arguments, text=json.dumps(JOB))
        assert done.returncode == 1
        said = done.stderr + (store.manager_log_path.read_text() if store.manager_log_path.exists() else "")
        assert f"air-executor: {store.lock_path} cannot be locked (No locks available)" in said
        assert "have its file system mounted with locks" in said
    assert store.job_names() == []


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_jobs_are_shown(run: Any, store: JobStore) -> None:
    store.submit("j", ["true"])
    store.lock_path.touch()
    for arguments in ([], ["j"], ["--json"], ["j", "--json"]):
        done = run("status", *arguments)
        assert done.returncode == 0, done.stderr
        assert re.search(r"\bj\b", done.stdout)
        assert "it is not known whether a manager runs: " in " ".join(done.stdout.split())


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user need root")
def test_what_is_forbidden_is_said_with_the_path_and_who_may(store: JobStore, managers: Managers) -> None:
    store.submit("j", ["true"])
    os.chown(store.inbox_path, 65534, 65534)
    done = as_if_not_root(store, managers, "cancel", "j")
    place = re.escape(str(store.inbox_path))
    assert done.returncode == 1
    assert re.fullmatch(
        f"air-executor: {place}/.*: Permission denied; {place} belongs to nobody, who may do this\n", done.stderr
    )


def test_a_job_filesystem_elsewhere_is_named(managers: Managers, tmp_path: Path) -> None:
    JobStore(tmp_path / "air-executor").submit("j", ["true"])
    environment = {**managers.environment, "AIRFLOW_HOME": str(tmp_path)}
    done = subprocess.run([*CLI, "status"], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert f"there is no job filesystem at {tmp_path}/.air-executor, but at {tmp_path}/air-executor; " in done.stderr


def test_detach_and_stop(run: Any, store: JobStore) -> None:
    done = run("manager", "--detach")
    pid = manager_status.pid(store)
    assert pid is not None
    assert done.stdout == f"manager {pid} runs the jobs of {store.base_path}\n"
    try:
        again = run("manager", "--detach")
        assert again.returncode == 4
        assert str(pid) in again.stderr
        assert store.manager_log_path.stat().st_mode & 0o777 == 0o600
        wait_until(lambda: f"manager {pid} runs the jobs" in store.manager_log_path.read_text(), what="it says so")
    finally:
        assert run("stop").stdout == f"manager {pid} has ended\n"
    assert "no manager is running" in run("stop").stdout


def test_a_setting_that_there_is_not_is_told_to_who_starts_a_manager(run: Any, store: JobStore) -> None:
    """And not in its log alone."""
    store.base_path.mkdir()
    store.config_path.write_text("pol_interval: 1\n")
    done = run("manager", "--detach")
    assert done.returncode == 0
    assert done.stderr == f"air-executor: {store.config_path}: there is no setting 'pol_interval'; it is ignored\n"
    assert run("stop").returncode == 0


def test_a_manager_does_not_import_from_the_directory_in_which_it_is_started(
    store: JobStore, managers: Managers, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('this is not the one')")
    command = [sys.executable, "-P", *CLI[1:], "manager", "--detach", "--base-path", str(store.base_path)]
    subprocess.run(command, env=managers.environment, cwd=tmp_path, check=True, timeout=PATIENCE)
    store.submit("j", ["true"])
    assert ended(store, "j").state == "completed"
    subprocess.run([*CLI, "stop", "--base-path", str(store.base_path)], env=managers.environment, check=True)


def test_replacing_waits_until_the_lock_is_free(run: Any, store: JobStore) -> None:
    """A manager that ends removes its number first, and lets the lock go a moment later."""
    store.create_directories()
    code = """
import fcntl, os, pathlib, signal, sys, time
lock = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
number = pathlib.Path(sys.argv[3])
number.write_text(str(os.getpid()))
signal.signal(signal.SIGTERM, lambda *_: (number.unlink(), time.sleep(1), os._exit(0)))
time.sleep(60)
"""
    paths = [str(store.lock_path), str(store.pid_path)]
    with subprocess.Popen([sys.executable, "-c", code, "manager", *paths]) as ending:
        wait_until(lambda: manager_status.pid(store) == ending.pid, what="it holds the lock")
        started = run("manager", "--replace", "--detach")
        assert started.returncode == 0, started.stderr
        assert run("stop").returncode == 0


def test_a_manager_that_has_just_begun_is_stopped(
    store: JobStore, managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment the number of its predecessor, which was killed, is still there."""
    process = managers.start()
    gone = subprocess.Popen(["true"])
    gone.wait()
    store.pid_path.write_text(str(gone.pid))

    def is_manager(pid: int) -> bool:
        store.pid_path.write_text(str(process.pid))  # only now it publishes its own
        return pid == process.pid

    monkeypatch.setattr(cli, "_is_manager", is_manager)
    assert cli._stop(store) == process.pid
    process.wait(PATIENCE)  # it may not have come to heed the signal, which ends it then
    assert not manager_status.is_running(store)


def test_a_manager_that_tells_no_number_is_not_taken_for_none(
    store: JobStore, managers: Managers, monkeypatch: pytest.MonkeyPatch
) -> None:
    managers.start()
    monkeypatch.setattr(cli, "_NUMBER_SECONDS", 0.0)
    store.pid_path.unlink()
    with pytest.raises(ManagerError, match="has not published its process id"):
        cli._stop(store)


def test_many_start_at_once_and_one_runs(store: JobStore, managers: Managers) -> None:
    command = [*CLI, "manager", "--detach", "--base-path", str(store.base_path)]
    starting = [subprocess.Popen(command, env=managers.environment, stderr=subprocess.PIPE) for _ in range(6)]
    codes = []
    for process in starting:
        process.communicate()
        codes.append(process.returncode)
    assert sorted(codes) == [0, 4, 4, 4, 4, 4]
    pid = manager_status.pid(store)
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not manager_status.is_running(store), what="it has ended")


def test_an_invalid_setting_stops_the_start(run: Any, store: JobStore) -> None:
    done = run("manager", "--max-concurrent-runners", "many")
    assert done.returncode == 2
    assert "max_concurrent_runners = 'many' (from --max-concurrent-runners) is not valid" in done.stderr
    store.base_path.mkdir()
    store.config_path.write_text("poll_interval: 0\n")
    done = run("manager", "--detach")
    assert done.returncode == 2
    assert "config.yaml" in done.stderr


def test_the_base_path_of_the_configuration_file_is_used(tmp_path: Path, managers: Managers) -> None:
    """In the existing system jobs of another base path never run."""
    (tmp_path / "config.yaml").write_text(f"base_path: {tmp_path}/elsewhere\n")
    process = subprocess.Popen(
        [*CLI, "manager", "--config", str(tmp_path / "config.yaml")],
        env=managers.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        store = JobStore(tmp_path / "elsewhere")
        store.submit("j", ["true"])
        assert ended(store, "j").state == "completed"
    finally:
        process.terminate()
        process.wait()


def test_an_idle_manager_retires_but_not_before_a_job_is_done(store: JobStore, managers: Managers) -> None:
    for number in range(5):
        store.submit(f"j{number}", ["sleep 1"])
    process = managers.launch("--idle-timeout", "0.3")
    assert process.wait(PATIENCE) == 0
    assert [store.get_job(f"j{number}").state for number in range(5)] == ["completed"] * 5
    assert manager_status.pid(store) is None


def test_log_as_json(store: JobStore, managers: Managers) -> None:
    process = managers.start("--log-format", "json")
    store.submit("j", ["true"])
    ended(store, "j")
    process.terminate()
    lines = [json.loads(line) for line in process.communicate()[1].splitlines()]
    assert {"time", "level", "message"} <= lines[0].keys()


def test_it_starts_fast_and_without_airflow() -> None:
    """The limit is 0.3 s on a quiet machine; here only what is imported is held to be little."""
    code = "import sys; import airflow_provider_air_executor.manager.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"airflow", "rich", "yaml", "tenacity", "asyncio", "hypothesis"} & set(loaded)
